"""Restore photographs with a trained restorer: the method of the paper, or the recommended one."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rr import checkpoint
from rr.data import degrade
from rr.data.photo import crop_fov, fov_mask, put_back, to_photograph, to_tensor
from rr.files import RECOMMENDED
from rr.models.corrector import Corrector
from rr.paper import LABELS


def restore_with_regen(regen, image, seed=0):
    """Restore one photograph, uint8 (H, W, 3) of any size; returns a photograph of the same size and a report.

    The field of view is cropped, restored at the size of the model, enlarged and put back; what lies outside of it is
    left as it was. Detail finer than the model's pixels is therefore not that of the photograph. A photograph that is
    readable already, or no fundus photograph to the classifier, is returned as it came. The report holds "status"
    ("restored" | "readable already" | "no fundus photograph"), "passed", and under "before" and "after" the probability of
    every label. Raises InputError if there is no field of view.
    """
    device = next(regen.denoiser.parameters()).device
    crop, circle, box = crop_fov(image, regen.size)
    y = to_tensor(crop).to(device)
    done = regen(y, fov_mask([circle], regen.size).to(device), seed)
    status = (
        "readable already"
        if done.readable[0]
        else "no fundus photograph"
        if done.no_fundus[0]
        else "restored"
    )
    report = {"status": status, "passed": bool(done.passed[0])}
    for name, probabilities in (("before", done.before), ("after", done.after)):
        report[name] = dict(zip(LABELS, probabilities[0].tolist()))
    if status != "restored":
        return image, report
    # enlarged with its mask and divided by it, so that the black surround does not bleed into the rim
    mask = fov_mask([circle], regen.size).float()
    layers = torch.cat([done.image.cpu() * mask, mask], 1)  # 1, 4, size, size
    layers = F.interpolate(layers, (box.side, box.side), mode="bicubic", align_corners=False)
    patch = to_photograph((layers[:, :3] / layers[:, 3:].clamp(min=0.1)).clamp(0, 1))
    return put_back(image, patch, box, fov_mask([circle], box.side)[0, 0].numpy()), report


def assemble(folder, classifier):
    """Put the checkpoint folder `classifier` beside `folder`/denoiser, which makes `folder` a restorer of its own.

    Files are linked where the file system can, copied elsewhere.
    """
    target = Path(folder) / "classifier"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(classifier, target, ignore=shutil.ignore_patterns("last"), copy_function=_link)


def _link(source, target):
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def load_recommended(device="cpu", folder=RECOMMENDED):
    """The Corrector whose weights are in the repository, or another one. Raises InputError if missing or damaged."""
    return checkpoint.load(folder, Corrector, device)


def restore_photograph(model, image):
    """Restore one photograph, uint8 (H, W, 3) of any size, at its own resolution: (photograph of the same size, report).

    What lies outside of the field of view is returned as it came, and so is a photograph that needs nothing. The report
    holds "status" ("restored" | "left alone"); "quality", the estimated PSNR of the photograph's light and colour in dB;
    "correction", how much of what the network proposed was done (0 to 1); "blur", the estimated sigma in 1/512 of the width;
    "uncertainty", the estimated absolute error of the result, mean over the field of view (in 1/255). Raises InputError if
    there is no field of view.
    """
    crop, circle, box = crop_fov(image)
    device = next(model.parameters()).device
    y, fov = to_tensor(crop).to(device), fov_mask([circle], box.side).to(device)
    height, width = image.shape[:2]
    fov[..., : max(0, -box.top), :] = fov[..., max(0, height - box.top) :, :] = (
        False  # beyond the frame there is no eye
    )
    fov[..., :, : max(0, -box.left)] = fov[..., :, max(0, width - box.left) :] = False
    done = model.run(y, fov)
    changed = bool(done.amount[0] > 0 or done.sigma[0] > 0)
    report = {
        "status": "restored" if changed else "left alone",
        "quality": round(done.quality[0].item(), 2),
        "correction": round(done.amount[0].item(), 3),
        "blur": round(512 * done.sigma[0].item(), 2),
        "uncertainty": round(255 * done.uncertainty[fov].mean().item(), 2),
    }
    if not changed:
        return image, report
    restored = to_photograph(done.image)
    if (image == image[..., :1]).all():  # a grey photograph stays one
        restored = np.repeat(
            np.round(restored @ np.float32(degrade.LUMA)).astype(np.uint8)[..., None], 3, axis=2
        )
    return put_back(image, restored, box, fov[0, 0].cpu().numpy()), report

"""Restore photographs with a trained restorer.

    restorer = load_recommended()
    restored, report = restore_photograph(restorer, read_photograph("photo.jpg"))

A restorer is the recommended `Corrector`, which works at the size of the photograph, or a
`RetinaRegen` of one of the methods of notebook 06, which works at the size it was trained on.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rr import checkpoint
from rr.data import degrade
from rr.data.fov import fov_mask
from rr.data.photo import crop_fov, put_back, to_photograph, to_tensor
from rr.data.sources import EXTENSIONS
from rr.errors import InputError, choose
from rr.files import RECOMMENDED
from rr.models.bridge import Bridge
from rr.models.corrector import Corrector
from rr.models.readability import LABELS, Readability
from rr.models.restorer import Denoiser
from rr.models.retinaregen import RetinaRegen

METHODS = {"Denoiser": Denoiser, "Bridge": Bridge}  # "component" in config.json => its class


def load_recommended(device="cpu"):
    """The Corrector whose weights are in the repository."""
    return load(RECOMMENDED, device)


def load(folder, device="cpu"):
    """The restorer in a folder: a Corrector, or the RetinaRegen of a run of notebook 06.

    Such a run has the folders `classifier` and `denoiser`. Raises InputError if there is no
    restorer, or if its files are damaged.
    """
    folder = Path(folder)
    if not (folder / "denoiser").is_dir():
        return checkpoint.load(folder, Corrector, device)
    component = checkpoint.read_config(folder / "denoiser")["component"]
    method = choose(f"{folder / 'denoiser'}: restorer", component, METHODS)
    return RetinaRegen(
        checkpoint.load(folder / "classifier", Readability, device),
        checkpoint.load(folder / "denoiser", method, device),
    )


def assemble(folder, classifier):
    """Copy the checkpoint folder `classifier` to `folder`/classifier, beside `folder`/denoiser.

    `load` can then load `folder`. Files are hard links where the file system supports them.
    """
    target = Path(folder) / "classifier"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(classifier, target, ignore=shutil.ignore_patterns("last"), copy_function=_link)


def _link(source, target):
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def restore_photograph(restorer, image, seed=0):
    """Restore a photograph, uint8 (H, W, 3): (photograph of the same size, report).

    The report holds "status": "restored", or "left alone" if the photograph is returned unchanged;
    "summary", one sentence; and "estimates", the numbers of the restorer, see the two functions
    below. Outside the field of view the photograph is unchanged. seed: of the RetinaRegen noise.
    Raises InputError if there is no field of view.
    """
    if isinstance(restorer, Corrector):
        return restore_at_full_size(restorer, image)
    return restore_at_model_size(restorer, image, seed)


def restore_at_full_size(corrector, image):
    """`restore_photograph` with a Corrector, at the size of the photograph.

    Estimates: "quality", the PSNR of light and colour in dB; "correction", the share of the
    proposed colour correction that was applied (0 to 1); "blur", sigma in 1/512 of the width;
    "uncertainty", the mean absolute error of the result in 1/255.
    """
    crop, circle, box = crop_fov(image)
    device = next(corrector.parameters()).device
    y, fov = to_tensor(crop).to(device), fov_mask([circle], box.side).to(device)
    # the crop may be larger than the frame of the photograph, and there is no eye outside the frame
    height, width = image.shape[:2]
    frame = torch.zeros_like(fov)
    rows = slice(max(0, -box.top), max(0, height - box.top))
    columns = slice(max(0, -box.left), max(0, width - box.left))
    frame[..., rows, columns] = True
    fov &= frame

    result = corrector.run(y, fov)
    quality, gate, sigma = (v.item() for v in (result.quality, result.gate, result.sigma))
    report = {
        "status": "restored" if gate > 0 or sigma > 0 else "left alone",
        "summary": f"light and colour corrected by {gate:.0%} of the proposal",
        "estimates": {
            "quality": round(quality, 2),
            "correction": round(gate, 3),
            "blur": round(512 * sigma, 2),
            "uncertainty": round(255 * result.uncertainty[fov].mean().item(), 2),
        },
    }
    if sigma > 0:
        report["summary"] += f"; blur of {512 * sigma:.1f}/512 of the width removed"
    if report["status"] == "left alone":
        report["summary"] = "no defect found that this restorer corrects; others are possible"
        return image, report
    restored = to_photograph(result.image)
    if (image == image[..., :1]).all():  # a grey photograph stays grey
        grey = np.round(restored @ np.float32(degrade.LUMA)).astype(np.uint8)
        restored = np.repeat(grey[..., None], 3, axis=2)
    return put_back(image, restored, box, fov[0, 0].cpu().numpy()), report


def restore_at_model_size(regen, image, seed=0):
    """`restore_photograph` with a RetinaRegen, at the size of its networks.

    The result is enlarged, so its detail is not finer than the pixels of the model. A photograph
    that is readable, or that is not a fundus photograph, is left alone. Estimates: "passed",
    whether all labels are readable in the end; "before" and "after", the probability of each label.
    """
    device = next(regen.restorer.parameters()).device
    crop, circle, box = crop_fov(image, regen.size)
    fov = fov_mask([circle], regen.size)
    result = regen(to_tensor(crop).to(device), fov.to(device), seed)
    before, after = (p[0].tolist() for p in (result.before, result.after))
    report = {
        "status": "left alone",
        "summary": "all labels are readable already",
        "estimates": {
            "passed": bool(result.passed[0]),
            "before": dict(zip(LABELS, before)),
            "after": dict(zip(LABELS, after)),
        },
    }
    if result.readable[0]:
        return image, report
    if result.no_fundus[0]:
        return image, report | {"summary": "not a fundus photograph"}
    report["status"] = "restored"
    readable = [sum(p >= regen.THRESHOLD for p in labels) for labels in (before, after)]
    report["summary"] = f"{readable[0]} of 4 labels readable before, {readable[1]} after"

    # enlarged with its mask and divided by it, so that the black surround does not reach the rim
    mask = fov.float()
    layers = torch.cat([result.image.cpu() * mask, mask], 1)  # 1, 4, size, size
    layers = F.interpolate(layers, (box.side, box.side), mode="bicubic", align_corners=False)
    patch = to_photograph((layers[:, :3] / layers[:, 3:].clamp(min=0.1)).clamp(0, 1))
    return put_back(image, patch, box, fov_mask([circle], box.side)[0, 0].numpy()), report


def targets(photos, out):
    """{PNG to write in `out`: photograph}, for photographs and folders of photographs.

    Raises InputError if a folder has no photographs, if two photographs have one name, or if a PNG
    would replace a photograph.
    """
    inputs = []
    for photo in photos:
        if not photo.is_dir():
            inputs.append(photo)
            continue
        files = (file for file in photo.iterdir() if not file.name.startswith("."))
        photographs = sorted(file for file in files if file.suffix.lower() in EXTENSIONS)
        if not photographs:
            raise InputError(f"{photo}: no photographs in this folder ({', '.join(EXTENSIONS)})")
        inputs += photographs
    pngs, originals = {}, {photo.resolve() for photo in inputs}
    for photo in dict.fromkeys(inputs):
        target = out / f"{photo.stem}.png"
        if target in pngs:
            way_out = "restore them in two calls to two --out"
            raise InputError(f"{pngs[target]}, {photo}: both would become {target}; {way_out}")
        if target.resolve() in originals:
            raise InputError(
                f"{target}: a photograph to restore, which would be lost; choose another --out"
            )
        pngs[target] = photo
    return pngs

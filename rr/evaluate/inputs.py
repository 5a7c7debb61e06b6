"""What the harness evaluates: images, degradations and methods.

A method is a function from degraded images to restored ones of the same size,

    method(y, fov, params) -> x_hat

with y and x_hat (N, 3, H, W) in [0, 1] and the fields of view fov (N, 1, H, W). `params` holds the
parameters of the degradation if the method's name contains "known", and is None otherwise.
"""

from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rr import checkpoint, studies
from rr.data import degrade, haze, pairs, sources
from rr.data.fov import fov_mask
from rr.data.photo import to_tensor
from rr.data.splits import dhash, near_duplicates
from rr.errors import InputError, choose
from rr.evaluate import metrics
from rr.models.bridge import Bridge
from rr.models.restorer import Denoiser
from rr.models.retinaregen import RetinaRegen

SEVERITIES = (1 / 3, 2 / 3, 1.0)

# ------------------------------------------------------------------------------------------ images


class Images(NamedTuple):
    """Clean images to be degraded and restored."""

    names: list[str]  # N
    x: Tensor  # (N, 3, H, W) in [0, 1], black outside the field of view
    fov: Tensor  # (N, 1, H, W) bool
    disc: Tensor  # (N, 3): x, y, radius in widths; NaN if unknown

    def score(self, x_hat, lpips=None):
        """The table of metrics.score for restorations x_hat; its index is the names.

        The column `variation` is added, which has the same value for all images.
        """
        x_hat = x_hat.cpu()
        table = metrics.score(self.x, x_hat, self.fov, self.disc, lpips)
        table["variation"] = metrics.variation(x_hat, self.x, self.fov)
        return table.set_axis(self.names).rename_axis("image")


def test_images(packed, limit):
    """The first `limit` readable images of a data set's test split."""
    rows = packed.clean_rows("test")[:limit]
    return _packed_images(packed, rows, packed.batch(rows) * packed.fov(rows))


def test_pairs(packed, protocol="paired", limit=None, split="test"):
    """The test pairs of a protocol (pairs.test_pairs), the same in every run: (y, Images)."""
    rows, y, x, _ = pairs.test_pairs(packed, protocol, limit=limit, split=split)
    return y, _packed_images(packed, rows, x)


def _packed_images(packed, rows, x):
    names = packed.table["name"].iloc[rows].tolist()
    return Images(names, x, packed.fov(rows), packed.disc(rows))


def photographs(folder, size, names="*", exclude=None):
    """The photographs of a folder and its subfolders as Images of size x size.

    names: patterns with the wildcards * ? [1-5], separated by commas. exclude: Images of the same
    size; a photograph that shows one of them, perhaps resized or compressed, is left out. The discs
    are unknown. Raises InputError for a missing folder, an unreadable photograph, or if no
    photograph is left.
    """
    source = sources.folder(folder)
    patterns = [pattern.strip() for pattern in names.split(",")]
    selected = {
        name: source.image(i, size)  # (crop, metadata)
        for i, name in enumerate(source.table["name"])
        if any(fnmatch(name, pattern) for pattern in patterns)
    }
    if exclude is not None and selected:
        excluded = list((exclude.x * 255).round().byte().permute(0, 2, 3, 1).numpy())
        crops = excluded + [crop for crop, _ in selected.values()]
        groups = near_duplicates(np.stack([dhash(crop) for crop in crops]))
        new = ~np.isin(groups[len(excluded) :], groups[: len(excluded)])
        selected = {name: photo for (name, photo), keep in zip(selected.items(), new) if keep}
    if not selected:
        reason = "" if exclude is None else " that is not a test image"
        raise InputError(f"{folder}: no photograph matches {names!r}{reason}")
    keys = [f"fov_{key}" for key in ("x", "y", "r", "top", "bottom")]
    circles = [[metadata[key] for key in keys] for _, metadata in selected.values()]
    fov = fov_mask(torch.tensor(circles), size)
    x = torch.cat([to_tensor(crop) for crop, _ in selected.values()]) * fov
    return Images(list(selected), x, fov, torch.full((len(x), 3), torch.nan))


# ------------------------------------------------------------------------------------ degradations


def _mild_blur(n, generator, severity):
    return degrade.mild_blur(degrade.sample(n, generator, ("blur",), severity), generator)


OPERATORS = {  # family: (sample(n, generator, severity=...) -> params, apply(x, params, fov) -> y)
    "illumination": (partial(degrade.sample, families=("illumination",)), degrade.apply),
    "blur": (partial(degrade.sample, families=("blur",)), degrade.apply),
    "mild blur": (_mild_blur, degrade.apply),
    "spots": (partial(degrade.sample, families=("spots",)), degrade.apply),
    "all": (degrade.sample, degrade.apply),
    "haze": (haze.sample, haze.apply),  # not used in any training
}


class Condition(NamedTuple):
    family: str  # a key of OPERATORS, or "undegraded"
    severity: float  # in [0, 1]


UNDEGRADED = Condition("undegraded", 0.0)
FULL = Condition("all", 1.0)
CONDITIONS = (
    UNDEGRADED,
    *(Condition(family, severity) for family in OPERATORS for severity in SEVERITIES),
)


def degraded(images, condition, seed=0):
    """(y, params, A) of a condition: y = A(x), and A is a function of images (N, 3, H, W).

    An image gets the same degradation for every method, and a stronger version of the same
    degradation at a higher severity. Raises InputError for an unknown family.
    """
    x, generator = images.x, torch.Generator().manual_seed(seed)
    if condition.family == UNDEGRADED.family:
        return x, degrade.sample(len(x), generator, (), 0.0), torch.clone
    sample, apply = choose("degradation", condition.family, OPERATORS)
    params = sample(len(x), generator, severity=condition.severity)
    A = partial(apply, params=params, fov=images.fov)
    return A(x), params, A


# ----------------------------------------------------------------------------------------- methods


def uninformed(eyes, seed=0):
    """{name: method}: methods that ignore the degraded image.

    noise: Gaussian (mean 1/2, standard deviation 1/4), clipped. black and mid-grey: a constant.
    another eye: one of `eyes` (M, 3, H, W), training images of the same size, drawn at random.
    """

    def noise(y, fov, params):
        generator = torch.Generator().manual_seed(seed)
        return (0.5 + 0.25 * torch.randn(y.shape, generator=generator)).clamp(0, 1)

    def another_eye(y, fov, params):
        generator = torch.Generator().manual_seed(seed)
        return eyes[torch.randint(len(eyes), (len(y),), generator=generator)]

    return {
        "noise": noise,
        "black": lambda y, fov, params: torch.zeros_like(y),
        "mid-grey": lambda y, fov, params: torch.full_like(y, 0.5),
        "another eye": another_eye,
    }


def load_restorer(results_dir, configuration, seed, device):
    """The trained restorer of a run. Raises InputError if it is missing or damaged."""
    component = Denoiser if configuration.method == "diffusion" else Bridge
    folder = studies.folder(results_dir, configuration, seed) / "denoiser"
    return checkpoint.load(folder, component, device)


def trained(model, seed=0, **options):
    """A trained restorer as a method that is deterministic and returns images on the CPU.

    model: a module with `restore(y, fov, generator, **options)`. seed: of its noise, or None for a
    model that needs no generator. options: such as steps.
    """
    device = next(model.parameters()).device

    def method(y, fov, params=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return model.restore(y.to(device), fov.to(device), generator, **options).float().cpu()

    return method


def screened(classifier, model, seed=0):
    """The whole method of the paper (2.1): images that the classifier calls readable, or not a
    fundus, are returned unchanged.
    """
    regen, device = RetinaRegen(classifier, model), next(model.parameters()).device

    def method(y, fov, params):
        return regen(y.to(device), fov.to(device), seed).image.float().cpu()

    return method


def at_size(method, size):
    """A method of size x size for images of any size: reduce, restore, enlarge.

    Detail that is finer than the small pixels is lost.
    """

    def resized(y, fov, params):
        side = y.shape[-2:]
        if side == (size, size):
            return method(y, fov, params)
        # Division by the resized mask keeps the black surround from bleeding into the rim.
        cover = resize(fov.float(), size).clamp(min=0.1)
        mask = F.interpolate(fov.float(), (size, size), mode="area") > 0
        x_hat = method((resize(y * fov, size) / cover).clamp(0, 1) * mask, mask, params)
        layers = torch.cat([x_hat, mask.to(x_hat)], 1)  # N, 4, size, size
        layers = F.interpolate(layers, side, mode="bicubic", align_corners=False)
        return (layers[:, :3] / layers[:, 3:].clamp(min=0.1)).clamp(0, 1) * fov

    return resized


def resize(x, size):
    """Images (N, 3, H, W) in [0, 1] at size x size, without aliasing."""
    if x.shape[-2:] == (size, size):
        return x
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    return F.interpolate(x, (size, size), **options).clamp(0, 1)

"""What restoration does to what a reader uses: vessels, disc, colour, sharpness. A high PSNR does not say.

Defines the instruments `vessels` (ridge filter), `disc` (locator), `read` (all that one image gives away), the measures
`dice`, `cldice`, `precision_recall`, `displacement`, `colour_shift`, `sharpness`, and `measure`, the table of all of them
between clean and restored images. `reliability` says how good the instruments themselves are, on eyes that are known
exactly: on whole, undegraded eyes of 80, 128 and 256 px the vessel map has a Dice of about 0.6, 0.7 and 0.7 with the exact
mask, and the disc is found within about 1 % of the width. So every comparison is between two images seen by the same
instrument, not with the truth; how good the instrument is on photographs is not known.

Images (N, 3, H, W) in [0, 1], fov (N, 1, H, W) bool; lengths in image widths; a vector (N,) per measure, float64, NaN
where it has no value.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rr.data.degrade import blur
from rr.errors import InputError
from rr.evaluate.baselines import low_pass
from rr.evaluate.metrics import psnr

BACKGROUND = 0.04  # sigma of the low-pass that green is divided by
RIDGES = (
    0.002,
    0.004,
)  # sigma of the vessels looked for, at least half a pixel: widths of 0.5 to 1.5 %
RIDGE = 0.03  # curvature from which on a ridge is a vessel: about the depth of its dip, as a share of the background
TOLERANCE = 0.006  # a vessel that is off by so much, at least a pixel, is the same vessel

DISC_BLOB, DISC_AROUND = 0.04, 0.2  # sigmas: the disc is brighter at the first than at the second
VESSEL_WEIGHT = (
    0.2  # of the density of vessels against the brightness: exudates and spots are bright as well
)
INNER = 0.9  # share of the field of view in a blur of 2 %: the disc's centre is not looked for at the rim


class Reading(NamedTuple):
    """What the instruments see in images."""

    vessels: Tensor  # (N, H, W) bool
    skeleton: Tensor  # (N, H, W) bool, their centre lines
    disc: Tensor  # (N, 2), u and v of the disc's centre
    lab: list[np.ndarray]  # N arrays (pixels of the field of view, 3), CIE Lab
    energy: Tensor  # (N,), mean squared gradient inside of the field of view, per squared pixel


def vesselness(x: Tensor, fov: Tensor) -> Tensor:
    """Strength of dark ridges, (N, H, W) from 0: Sato's filter (1998) on green over its background.

    The larger eigenvalue of sigma^2 times the Hessian, the largest over RIDGES. Divided by the background, a vessel is as
    strong in dim as in bright light; a vessel whose contrast was blurred or veiled away is weaker, as for a reader. 0 at the
    rim, up to TOLERANCE, where a camera's edge is a dark line as well.
    """
    green, width = x[:, 1:2], x.shape[-1]
    dip = green / low_pass(green, fov, BACKGROUND).clamp_min(0.02)
    strength = torch.zeros_like(green)
    for sigma in {
        max(sigma, 0.5 / width) for sigma in RIDGES
    }:  # one scale where both are below half a pixel
        g = torch.nn.functional.pad(low_pass(dip, fov, sigma), (1, 1, 1, 1), mode="replicate")
        xx = g[..., 1:-1, 2:] - 2 * g[..., 1:-1, 1:-1] + g[..., 1:-1, :-2]
        yy = g[..., 2:, 1:-1] - 2 * g[..., 1:-1, 1:-1] + g[..., :-2, 1:-1]
        xy = (g[..., 2:, 2:] + g[..., :-2, :-2] - g[..., 2:, :-2] - g[..., :-2, 2:]) / 4
        largest = (xx + yy) / 2 + (((xx - yy) / 2) ** 2 + xy**2).sqrt()
        strength = torch.maximum(strength, (sigma * width) ** 2 * largest)
    return strength[:, 0] * ~_dilated(~fov[:, 0])


def vessels(x: Tensor, fov: Tensor) -> Tensor:
    """Vessel map, (N, H, W) bool: where `vesselness` exceeds RIDGE."""
    return vesselness(x, fov) > RIDGE


def disc(x: Tensor, fov: Tensor) -> Tensor:
    """Centre of the optic disc, (N, 2): u, v. Where an image is brighter than its surroundings and vessels are dense.

    There is always an answer, as there is for a reader who must give one; on an image that shows no disc it is arbitrary.
    """
    light = x[:, :2].mean(1, keepdim=True)
    brighter = (
        low_pass(light, fov, DISC_BLOB) / low_pass(light, fov, DISC_AROUND).clamp_min(0.02) - 1
    )
    ridges = vesselness(x, fov)[:, None].clamp_max(0.3)
    dense = low_pass(ridges, fov, 0.05) / low_pass(ridges, fov, 0.5).clamp_min(1e-3)
    inner = blur(fov.to(x), torch.full((len(x),), 0.02, device=x.device)) > INNER
    score = torch.where(inner, brighter + VESSEL_WEIGHT * dense, -torch.inf)
    k, width = score.flatten(1).argmax(1), x.shape[-1]
    return torch.stack([k % width + 0.5, k // width + 0.5], dim=1) / width


def read(x: Tensor, fov: Tensor) -> Reading:
    """All that the instruments see in images. The clean side of many comparisons is read once."""
    from skimage.color import rgb2lab
    from skimage.morphology import skeletonize

    maps = vessels(x, fov)
    skeleton = torch.from_numpy(np.stack([skeletonize(image) for image in maps.cpu().numpy()])).to(
        x.device
    )
    pixels = [image[:, mask[0]].T.cpu().numpy() for image, mask in zip(x, fov, strict=True)]
    return Reading(
        maps, skeleton, disc(x, fov), [rgb2lab(values) for values in pixels], _energy(x, fov)
    )


def dice(a: Tensor, b: Tensor) -> Tensor:
    """2 |a and b| / (|a| + |b|) of masks (N, H, W); NaN where both are empty."""
    return 2 * _count(a & b) / (_count(a) + _count(b))


def cldice(a: Tensor, skeleton_a: Tensor, b: Tensor, skeleton_b: Tensor) -> Tensor:
    """Centre-line Dice (Shit et al. 2021) of masks (N, H, W) with their skeletons: thin vessels count like thick ones.

    Harmonic mean of the share of a's centre lines inside b and that of b's inside a; 0 where one of the masks is empty,
    NaN where both are.
    """
    in_b, in_a = (
        _count(skeleton_a & b) / _count(skeleton_a),
        _count(skeleton_b & a) / _count(skeleton_b),
    )
    both = _count(skeleton_a) + _count(skeleton_b)
    value = 2 * in_a * in_b / (in_a + in_b)
    return torch.where(both > 0, value.nan_to_num(0), torch.nan)


def precision_recall(clean: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """Of vessel maps (N, H, W), up to TOLERANCE: 1 - precision is hallucinated, 1 - recall is lost.

    Precision: share of the restored map inside of the dilated clean one. Recall: share of the clean map inside of the
    dilated restored one. NaN where the map that is shared out is empty.
    """
    precision = _count(restored & _dilated(clean)) / _count(restored)
    return precision, _count(clean & _dilated(restored)) / _count(clean)


def displacement(a: Tensor, b: Tensor) -> Tensor:
    """Distance of points (N, 2) in % of the image width."""
    return 100 * (a.double() - b.double()).norm(dim=1)


def colour_shift(a: list[np.ndarray], b: list[np.ndarray]) -> Tensor:
    """Mean CIEDE2000 difference of Lab values, N arrays (pixels, 3) each; about 1 can just be seen."""
    from skimage.color import deltaE_ciede2000

    return torch.tensor(
        [deltaE_ciede2000(p, q).mean() if len(p) else np.nan for p, q in zip(a, b, strict=True)]
    ).double()


def sharpness(clean: Tensor, restored: Tensor) -> Tensor:
    """Ratio of gradient energies (N,): below 1 blurred, above 1 sharper (or noisier) than the clean image."""
    return torch.where(clean > 0, restored / clean, torch.nan)


def measure(
    x: Tensor,  # clean images
    x_hat: Tensor,  # restored from y
    y: Tensor,  # degraded images
    fov: Tensor,
    disc: Tensor
    | None = None,  # (N, 3): x, y, radius of the true disc in widths, as Packed.disc; NaN where unknown
    again: Callable[[Tensor], Tensor] | None = None,  # the degradation x -> A(x) that made y of x
    clean: Reading | None = None,  # read(x, fov), where it is at hand
) -> pd.DataFrame:
    """One row per image; NaN where a value cannot be had.

    vessel_dice, vessel_cldice, vessel_precision, vessel_recall, between the vessel maps of x and x_hat; disc_shift, how far
    from where it is found in x the disc is found in x_hat, % of the width; disc_error, how far from the truth; delta_e,
    colour shift inside of the field of view; sharpness; consistency, PSNR in dB of A(x_hat) against y inside of the field
    of view: what is not consistent was not in the photograph. Raises InputError if the shapes differ.
    """
    if not (x.shape == x_hat.shape == y.shape and fov.shape == (len(x), 1, *x.shape[-2:])):
        shapes = ", ".join(str(tuple(images.shape)) for images in (x, x_hat, y, fov))
        raise InputError(
            f"downstream: x, x_hat, y, fov of shapes {shapes}; give three (N, 3, H, W) and one (N, 1, H, W)"
        )
    clean = read(x, fov) if clean is None else clean
    restored = read(x_hat, fov)
    nan = torch.full((len(x),), torch.nan, dtype=torch.float64)
    precision, recall = precision_recall(clean.vessels, restored.vessels)
    columns = {
        "vessel_dice": dice(clean.vessels, restored.vessels),
        "vessel_cldice": cldice(clean.vessels, clean.skeleton, restored.vessels, restored.skeleton),
        "vessel_precision": precision,
        "vessel_recall": recall,
        "disc_shift": displacement(clean.disc, restored.disc),
        "disc_error": nan
        if disc is None
        else displacement(torch.as_tensor(disc)[:, :2].to(x.device), restored.disc),
        "delta_e": colour_shift(clean.lab, restored.lab),
        "sharpness": sharpness(clean.energy, restored.energy),
        "consistency": nan if again is None else psnr(again(x_hat), y, fov),
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def reliability(size: int, n: int = 24, seed: int = 1_000_003) -> pd.DataFrame:
    """How good the instruments are: one row per drawn eye, of `size` px, whose anatomy is known exactly.

    vessel_auc and vessel_dice, of `vesselness` and `vessels` against the exact mask inside of the field of view;
    disc_error, % of the width. The eyes are drawn with a seed that no preset uses.
    """
    from sklearn.metrics import roc_auc_score

    from rr.data.synthetic import fundus

    eyes = [fundus(seed, i, size) for i in range(n)]
    x = torch.stack([torch.from_numpy(eye.image).permute(2, 0, 1) for eye in eyes]).float() / 255
    fov = torch.stack([torch.from_numpy(eye.fov)[None] for eye in eyes])
    strength = vesselness(x, fov).numpy()
    exact = torch.stack([torch.from_numpy(eye.vessels) for eye in eyes])
    true_disc = torch.tensor([eye.disc_circle[:2] for eye in eyes]) / size
    return pd.DataFrame(
        {
            "vessel_auc": [
                roc_auc_score(e.vessels[e.fov], s[e.fov])
                for e, s in zip(eyes, strength, strict=True)
            ],
            "vessel_dice": dice(exact, vessels(x, fov)).numpy(),
            "disc_error": displacement(true_disc, disc(x, fov)).numpy(),
        }
    )


def _count(mask):
    """Pixels per mask, (N, H, W) => (N,)."""
    return mask.sum(dim=(1, 2)).double()


def _dilated(mask):
    """Masks (N, H, W) grown by TOLERANCE to every side."""
    k = max(1, round(TOLERANCE * mask.shape[-1]))
    return torch.nn.functional.max_pool2d(mask.float(), 2 * k + 1, stride=1, padding=k) > 0


def _energy(x, fov):
    """Mean squared difference of neighbours, both inside of fov, of the mean of the channels, (N,)."""
    grey, fov = x.double().mean(1), fov[:, 0]
    dx, dy = grey.diff(dim=2) ** 2, grey.diff(dim=1) ** 2
    along, down = fov[:, :, 1:] & fov[:, :, :-1], fov[:, 1:] & fov[:, :-1]
    return (dx * along).sum((1, 2)) / _count(along) + (dy * down).sum((1, 2)) / _count(down)

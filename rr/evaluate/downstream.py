"""Downstream metrics: what restoration does to vessels, optic disc, colour and sharpness.

Defines two detectors, `vessels` (ridge filter) and `disc` (locator); `structures`, all that they
detect in images; the metrics; and `measure`, the table of all metrics between clean and restored
images. `detector_accuracy` compares the detectors with drawn eyes, whose anatomy is known exactly:
at 80, 128 and 256 px the vessel map has a Dice of about 0.6, 0.7 and 0.7 with the exact mask, and
the error of the disc is about 1 % of the width. Therefore every metric compares two images by the
same detectors. Their accuracy on photographs is unknown.

Images are (N, 3, H, W) in [0, 1], fov is (N, 1, H, W) bool. Lengths are in image widths. A metric
is a vector (N,), float64, NaN where it is undefined.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from rr.errors import InputError
from rr.evaluate.metrics import psnr
from rr.models.deconvolution import blur, low_pass

BACKGROUND = 0.04  # sigma of the low-pass by which the green channel is divided
RIDGE_SIGMAS = (0.002, 0.004)  # of vessels of 0.5 to 1.5 %; at least half a pixel
RIDGE = 0.03  # least strength of a vessel: about its depth as a share of the background
TOLERANCE = 0.006  # a vessel that is displaced by this, at least one pixel, is the same vessel

DISC_SIGMA, AROUND_SIGMA = 0.04, 0.2  # the disc is brighter at the first scale than at the second
VESSEL_WEIGHT = 0.2  # of vessel density against brightness: exudates and spots are bright as well
INNER = 0.9  # of blur(fov): the centre of the disc is not searched for at the rim


class Structures(NamedTuple):
    """What the detectors see in N images."""

    vessels: Tensor  # (N, H, W) bool
    skeleton: Tensor  # (N, H, W) bool, the centre lines of the vessels
    disc: Tensor  # (N, 2), u and v of the centre of the disc
    lab: list[np.ndarray]  # N arrays (pixels in the field of view, 3), CIE Lab
    energy: Tensor  # (N,), mean squared gradient in the field of view, per squared pixel


def vesselness(x: Tensor, fov: Tensor) -> Tensor:
    """Strength of dark ridges from 0: Sato's filter (1998) on green over its background, (N, H, W).

    It is the larger eigenvalue of the Hessian times sigma^2, at the scale where this is largest.
    Because of the division, a vessel is as strong in dim as in bright light. A vessel that has lost
    contrast by blur or haze is weaker. The rim is 0 up to TOLERANCE, because the edge of the
    camera's image is a dark line as well. scikit-image's `sato` is not used: it has no mask, and
    its derivatives are wrong for a sigma of half a pixel, which images of 80 px need.
    """
    green, width = x[:, 1:2], x.shape[-1]
    ratio = green / low_pass(green, fov, BACKGROUND).clamp_min(0.02)
    strength = torch.zeros_like(green)
    for sigma in {max(sigma, 0.5 / width) for sigma in RIDGE_SIGMAS}:
        g = F.pad(low_pass(ratio, fov, sigma), (1, 1, 1, 1), mode="replicate")
        xx = g[..., 1:-1, 2:] - 2 * g[..., 1:-1, 1:-1] + g[..., 1:-1, :-2]
        yy = g[..., 2:, 1:-1] - 2 * g[..., 1:-1, 1:-1] + g[..., :-2, 1:-1]
        xy = (g[..., 2:, 2:] + g[..., :-2, :-2] - g[..., 2:, :-2] - g[..., :-2, 2:]) / 4
        larger = (xx + yy) / 2 + (((xx - yy) / 2) ** 2 + xy**2).sqrt()
        strength = torch.maximum(strength, (sigma * width) ** 2 * larger)
    return strength[:, 0] * ~_dilated(~fov[:, 0])


def vessels(x: Tensor, fov: Tensor) -> Tensor:
    """Vessel map: where `vesselness` exceeds RIDGE, (N, H, W) bool."""
    return vesselness(x, fov) > RIDGE


def disc(x: Tensor, fov: Tensor) -> Tensor:
    """Centre (u, v) of the optic disc, (N, 2): the brightest place with dense vessels.

    There is always an answer. In an image without a visible disc it is arbitrary.
    """
    light = x[:, :2].mean(1, keepdim=True)  # N, 1, H, W
    around = low_pass(light, fov, AROUND_SIGMA).clamp_min(0.02)
    brightness = low_pass(light, fov, DISC_SIGMA) / around - 1
    ridges = vesselness(x, fov)[:, None].clamp_max(0.3)
    density = low_pass(ridges, fov, 0.05) / low_pass(ridges, fov, 0.5).clamp_min(1e-3)
    inner = blur(fov.to(x), torch.full((len(x),), 0.02, device=x.device)) > INNER
    score = torch.where(inner, brightness + VESSEL_WEIGHT * density, -torch.inf)
    best, width = score.flatten(1).argmax(1), x.shape[-1]
    return torch.stack([best % width + 0.5, best // width + 0.5], dim=1) / width


def structures(x: Tensor, fov: Tensor) -> Structures:
    """All that the detectors see. Compute it once for clean images that are compared often."""
    from skimage.color import rgb2lab
    from skimage.morphology import skeletonize

    maps = vessels(x, fov)
    skeletons = np.stack([skeletonize(vessel_map) for vessel_map in maps.cpu().numpy()])
    pixels = [image[:, mask[0]].T.cpu().numpy() for image, mask in zip(x, fov, strict=True)]
    return Structures(
        vessels=maps,
        skeleton=torch.from_numpy(skeletons).to(x.device),
        disc=disc(x, fov),
        lab=[rgb2lab(colours) for colours in pixels],
        energy=_energy(x, fov),
    )


def dice(a: Tensor, b: Tensor) -> Tensor:
    """2 |a and b| / (|a| + |b|) of masks (N, H, W); NaN where both are empty."""
    return 2 * _count(a & b) / (_count(a) + _count(b))


def cldice(a: Tensor, skeleton_a: Tensor, b: Tensor, skeleton_b: Tensor) -> Tensor:
    """Centre-line Dice (Shit et al. 2021) of masks (N, H, W): thin vessels count as thick ones.

    It is the harmonic mean of two shares: of a's centre lines inside b, and of b's inside a. It is
    0 where one of the masks is empty, and NaN where both are.
    """
    share_a = _count(skeleton_a & b) / _count(skeleton_a)
    share_b = _count(skeleton_b & a) / _count(skeleton_b)
    value = (2 * share_a * share_b / (share_a + share_b)).nan_to_num(0)
    return torch.where(_count(skeleton_a) + _count(skeleton_b) > 0, value, torch.nan)


def precision_recall(clean: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall of vessel maps (N, H, W), up to TOLERANCE.

    Precision is the share of the restored map inside the dilated clean map; the rest is
    hallucinated. Recall is the share of the clean map inside the dilated restored map; the rest is
    lost. A share of an empty map is NaN.
    """
    precision = _count(restored & _dilated(clean)) / _count(restored)
    return precision, _count(clean & _dilated(restored)) / _count(clean)


def displacement(a: Tensor, b: Tensor) -> Tensor:
    """Distance of points (N, 2) in % of the image width."""
    return 100 * (a.double() - b.double()).norm(dim=1)


def colour_shift(a: list[np.ndarray], b: list[np.ndarray]) -> Tensor:
    """Mean CIEDE2000 difference of Lab values, N arrays (pixels, 3) each; 1 is just visible."""
    from skimage.color import deltaE_ciede2000

    pairs = zip(a, b, strict=True)
    means = [deltaE_ciede2000(*pair).mean() if len(pair[0]) else np.nan for pair in pairs]
    return torch.tensor(means).double()


def sharpness(clean: Tensor, restored: Tensor) -> Tensor:
    """Ratio of gradient energies (N,): below 1 blurred, above 1 sharper or noisier than clean."""
    return torch.where(clean > 0, restored / clean, torch.nan)


def measure(
    x: Tensor,  # clean images
    x_hat: Tensor,  # restored images
    y: Tensor,  # degraded images, y = A(x)
    fov: Tensor,
    disc: Tensor | None = None,  # (N, 3): x, y, radius of the true disc in widths; NaN if unknown
    degradation: Callable[[Tensor], Tensor] | None = None,  # A
    clean: Structures | None = None,  # structures(x, fov), if already computed
) -> pd.DataFrame:
    """All downstream metrics, one row per image; NaN where a metric is undefined.

    vessel_dice, vessel_cldice, vessel_precision, vessel_recall: of the vessel map of x_hat against
    that of x. disc_shift: distance of the discs found in x and x_hat, % of the width. disc_error:
    distance of the disc found in x_hat from the true one. delta_e: colour shift in the field of
    view. sharpness: ratio of gradient energies. consistency: PSNR of A(x_hat) against y in the
    field of view; a restoration that is not consistent contradicts the photograph. Raises
    InputError if the shapes differ.
    """
    if not (x.shape == x_hat.shape == y.shape and fov.shape == (len(x), 1, *x.shape[-2:])):
        shapes = ", ".join(str(tuple(images.shape)) for images in (x, x_hat, y, fov))
        raise InputError(
            f"downstream: x, x_hat, y, fov of shapes {shapes}; "
            "give three (N, 3, H, W) and one (N, 1, H, W)"
        )
    clean = structures(x, fov) if clean is None else clean
    restored = structures(x_hat, fov)
    masks = clean.vessels, clean.skeleton, restored.vessels, restored.skeleton
    precision, recall = precision_recall(clean.vessels, restored.vessels)
    disc_error = consistency = torch.full((len(x),), torch.nan, dtype=torch.float64)
    if disc is not None:
        centre = torch.as_tensor(disc)[:, :2].to(x.device)
        disc_error = displacement(centre, restored.disc)
    if degradation is not None:
        consistency = psnr(degradation(x_hat), y, fov)
    columns = {
        "vessel_dice": dice(clean.vessels, restored.vessels),
        "vessel_cldice": cldice(*masks),
        "vessel_precision": precision,
        "vessel_recall": recall,
        "disc_shift": displacement(clean.disc, restored.disc),
        "disc_error": disc_error,
        "delta_e": colour_shift(clean.lab, restored.lab),
        "sharpness": sharpness(clean.energy, restored.energy),
        "consistency": consistency,
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def detector_accuracy(size: int, n: int = 24, seed: int = 1_000_003) -> pd.DataFrame:
    """Accuracy of the detectors on n drawn eyes of `size` px with exact anatomy, one row per eye.

    vessel_auc and vessel_dice: of `vesselness` and `vessels` against the exact mask in the field of
    view. disc_error: % of the width. No preset uses the seed.
    """
    from sklearn.metrics import roc_auc_score

    from rr.data.synthetic import fundus

    eyes = [fundus(seed, i, size) for i in range(n)]
    x = torch.stack([torch.from_numpy(eye.image).permute(2, 0, 1) for eye in eyes]).float() / 255
    fov = torch.stack([torch.from_numpy(eye.fov)[None] for eye in eyes])
    exact = torch.stack([torch.from_numpy(eye.vessels) for eye in eyes])
    true_disc = torch.tensor([eye.disc_circle[:2] for eye in eyes]) / size
    strength = vesselness(x, fov).numpy()
    auc = [
        roc_auc_score(eye.vessels[eye.fov], ridges[eye.fov])
        for eye, ridges in zip(eyes, strength, strict=True)
    ]
    return pd.DataFrame(
        {
            "vessel_auc": auc,
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
    return F.max_pool2d(mask.float(), 2 * k + 1, stride=1, padding=k) > 0


def _energy(x, fov):
    """Mean squared difference of neighbours in the field of view, mean of the channels, (N,)."""
    grey, fov = x.double().mean(1), fov[:, 0]
    dx, dy = grey.diff(dim=2) ** 2, grey.diff(dim=1) ** 2
    in_x, in_y = fov[:, :, 1:] & fov[:, :, :-1], fov[:, 1:] & fov[:, :-1]
    return (dx * in_x).sum((1, 2)) / _count(in_x) + (dy * in_y).sum((1, 2)) / _count(in_y)

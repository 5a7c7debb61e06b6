"""Image metrics: PSNR, SSIM and LPIPS of a batch of images, one value per image.

Defines `psnr`, `ssim`, `load_lpips`, and `score`, the table of all three over the full frame,
inside the field of view and around the optic disc. `variation` shows restorers that return nearly
the same picture for every eye; it is one value for all images.

x and y are (N, 3, H, W) in [0, 1]. Scores are never pooled over images and images are never
resized.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from scipy.ndimage import correlate1d
from torch import Tensor

from rr.errors import InputError, choose
from rr.models import pretrained

METRICS = ("psnr", "ssim", "lpips")
REGIONS = ("", "_fov", "_disc")  # suffixes of the columns of `score`
PSNR_MAX = 58.9  # dB: the error of storing an image with 8 bits, 10 log10(12 x 255^2)
K1, K2 = 0.01, 0.03  # constants of SSIM; the range of the data is 1
WINDOW, SIGMA = 11, 1.5  # Gaussian window of SSIM, in pixels
RIM = WINDOW // 2  # pixels at the border, where the window would leave the image
LPIPS_SIDE = 64  # pixels; the last layers of the trunk see only padding in smaller images
LPIPS_TRUNKS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
BATCH = 64  # images that `score` compares at a time
DISC_CROP = 3.0  # half-width of the disc crop in disc radii: the disc and the vessels around it


def psnr(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB per image, 10 log10(1 / MSE): (N,), float64.

    The value is at most PSNR_MAX: otherwise identical images would give an infinite mean. With a
    mask (N, 1, H, W) the MSE is taken over its pixels only; an empty mask gives NaN.
    """
    x, y, mask = _checked(x, y, mask)
    mse = _mean((x.double() - y.double()) ** 2, mask)
    return (-10 * torch.log10(mse)).clamp(max=PSNR_MAX)


def ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004, equation 13) per image: (N,), float64.

    The window is Gaussian, the covariance is that of the population, and the value is the mean over
    channels and pixels. The 5 pixels at the border do not count, because the window would leave the
    image there. This is scikit-image's `structural_similarity` with gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False and data_range=1. With a mask (N, 1, H, W) the mean is
    taken over its pixels only; an empty mask gives NaN.
    """
    x, y, mask = _checked(x, y, mask)
    if min(x.shape[-2:]) < WINDOW:
        raise InputError(
            f"SSIM: images of {x.shape[-1]}x{x.shape[-2]} pixels; "
            f"the window needs at least {WINDOW}x{WINDOW}"
        )
    return _mean_ssim(_ssim_map(x, y), mask)


def _ssim_map(x, y):
    """SSIM around each pixel, (N, C, H, W) => (N, C, H - 10, W - 10), float64, on the CPU."""
    offsets, rim = np.arange(WINDOW) - RIM, slice(RIM, -RIM)
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    x, y = x.double().cpu().numpy(), y.double().cpu().numpy()
    local = np.stack([x, y, x * x + y * y, x * y])  # torch convolves float64 slowly
    local = correlate1d(local, window, axis=-1)[..., rim]
    mu_x, mu_y, squares, products = correlate1d(local, window, axis=-2)[..., rim, :]
    mu_xy, mu_squares = mu_x * mu_y, mu_x**2 + mu_y**2
    C1, C2 = K1**2, K2**2
    ssim_map = ((2 * mu_xy + C1) * (2 * (products - mu_xy) + C2)) / (
        (mu_squares + C1) * (squares - mu_squares + C2)
    )
    return torch.from_numpy(ssim_map)


def _mean_ssim(ssim_map, mask):
    return _mean(ssim_map, None if mask is None else mask[..., RIM:-RIM, RIM:-RIM].cpu())


def variation(x_hat: Tensor, x: Tensor, mask: Tensor) -> float:
    """How much restorations x_hat differ between images, as a multiple of the references x:

        spread(x_hat) / spread(x),   spread(x) = sqrt(mean(variance of x over the images)).

    The mean is over the channels and over the pixels that the mask (N, 1, H, W) of every image
    contains. The value is 0 if x_hat is one picture for all images, and 1 if x_hat = x. It is NaN
    for a single image.
    """
    x_hat, x, mask = _checked(x_hat, x, mask)
    inside = mask.bool().all(dim=0)[0]  # H, W
    restored, reference = (
        images.double().var(dim=0, correction=0)[:, inside].mean().sqrt() for images in (x_hat, x)
    )
    return (restored / reference).item()


def load_lpips(
    net: str = "alex",  # trunk: "alex" | "squeeze" | "vgg"
    weights: str = "none",  # "imagenet": download the trunk if necessary; "none": local file only
    folder: str | Path | None = None,  # of weight files; default: RR_WEIGHTS
    device: str | torch.device = "cpu",
) -> "Lpips | None":
    """LPIPS (Zhang et al. 2018) as a function of (x, y), or None if its trunk is not available.

    This is the `lpips` package with its own linear weights (v0.1) and the trunk's ImageNet weights.
    A random trunk is never used: without weights the result is None, and tables show n/a. Raises
    InputError for an unknown `net`, for a trunk that "imagenet" cannot download, and for a file
    that is damaged or lacks a parameter of the trunk.
    """
    name = choose("LPIPS trunk", net, LPIPS_TRUNKS)
    choose("weights", weights, pretrained.WEIGHTS)
    if weights == "none" and pretrained.available(name, folder) is None:
        return None
    import lpips

    trunk = getattr(torchvision.models, name)(weights=None)
    note = pretrained.load(trunk, name, "imagenet", folder, skip=("classifier.",))
    with warnings.catch_warnings():  # The package calls torchvision in a deprecated way.
        warnings.simplefilter("ignore")
        # pnet_rand: the package downloads no trunk of its own; it is replaced below.
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    # The package divides `features` into slices and keeps the numbers of the layers:
    # sliceK.N.weight is features.N.weight.
    features = trunk.features.state_dict()
    slices = {key: features[key.split(".", 1)[1]] for key in model.net.state_dict()}
    model.net.load_state_dict(slices, strict=True)
    return Lpips(model.to(device).requires_grad_(False), f"LPIPS v0.1 {net}, trunk {note}")


class Lpips:
    """LPIPS of images x, y (N, 3, H, W) in [0, 1] => (N,), float64, on the CPU.

    `note` says which weights are used. Raises InputError for values outside [0, 1] and for images
    below 64 pixels.
    """

    def __init__(self, model, note):
        self.model, self.note = model, note

    @torch.no_grad()
    def __call__(self, x, y):
        if min(x.shape[-2:]) < LPIPS_SIDE:
            raise InputError(
                f"LPIPS: images of {x.shape[-1]}x{x.shape[-2]} pixels; "
                f"it needs at least {LPIPS_SIDE}"
            )
        for image in (x, y):
            if not (image.amin() >= 0 and image.amax() <= 1):  # true for NaN as well
                raise InputError(
                    f"LPIPS: values from {image.amin():.3g} to {image.amax():.3g}; "
                    "give images in [0, 1]"
                )
        device = next(self.model.parameters()).device
        x, y = x.to(device, torch.float32), y.to(device, torch.float32)
        return self.model(x, y, normalize=True).flatten().double().cpu()


def score(
    x: Tensor,  # reference (N, 3, H, W)
    y: Tensor,  # image to score
    fov: Tensor | None = None,  # (N, 1, H, W) field of view
    disc: Tensor | np.ndarray | None = None,  # (N, 3): x, y, radius in widths; NaN if unknown
    lpips: Callable | None = None,  # from `load_lpips`
) -> pd.DataFrame:
    """One row per image: psnr, ssim and lpips of the frame, and the same with `_fov` and `_disc`.

    `_fov`: PSNR and SSIM average over the field of view; LPIPS compares both images with black
    outside. `_disc`: the square of half-width 3 disc radii around the disc, clipped at the frame.
    A value is NaN (shown as n/a) without a `fov`, a known disc or an LPIPS trunk, and where fewer
    than 64 pixels (LPIPS) or 11 pixels (SSIM) are left.
    """
    x, y, fov = _checked(x, y, fov)
    if disc is None:
        disc = np.full((len(x), 3), np.nan)
    values = np.full((len(x), len(REGIONS), len(METRICS)), np.nan)
    for i in range(0, len(x), BATCH):
        part = slice(i, i + BATCH)
        masks = [None] if fov is None else [None, fov[part]]
        values[part, : len(masks)] = _scores(x[part], y[part], masks, lpips)
    for i, circle in enumerate(np.asarray(disc, dtype=float)):
        columns, lines = _disc_crop(circle, *x.shape[-2:])
        crops = (image[i : i + 1, :, lines, columns] for image in (x, y))
        values[i : i + 1, 2:] = _scores(*crops, [None], lpips)
    names = [f"{metric}{region}" for region in REGIONS for metric in METRICS]
    return pd.DataFrame(values.reshape(len(x), len(names)), columns=names)


def _scores(x, y, masks, lpips):
    """The values of METRICS for each mask, (N, masks, 3); NaN where the images are too small."""
    side, values = min(x.shape[-2:]), np.full((len(x), len(masks), len(METRICS)), np.nan)
    ssim_map = _ssim_map(x, y) if side >= WINDOW else None
    for i, mask in enumerate(masks):
        values[:, i, 0] = psnr(x, y, mask).cpu()
        if ssim_map is not None:
            values[:, i, 1] = _mean_ssim(ssim_map, mask)
        if lpips is not None and side >= LPIPS_SIDE:
            black_outside = (x, y) if mask is None else (x * mask, y * mask)
            values[:, i, 2] = lpips(*black_outside)
    return values


def _disc_crop(circle, height, width):
    """The columns and lines of the disc crop as two slices; empty if the disc is unknown."""
    if not np.isfinite(circle).all():
        return slice(0), slice(0)
    u, v, radius = circle * width
    half = DISC_CROP * radius
    left, right = np.clip([round(u - half), round(u + half)], 0, width)
    top, bottom = np.clip([round(v - half), round(v + half)], 0, height)
    return slice(left, right), slice(top, bottom)


def _checked(x, y, mask):
    """The images and the mask on one device."""
    if x.shape != y.shape or x.ndim != 4:
        raise InputError(
            f"images of shapes {tuple(x.shape)} and {tuple(y.shape)}: give two of (N, 3, H, W)"
        )
    if mask is None:
        return x, y.to(x.device), None
    if mask.shape != (len(x), 1, *x.shape[-2:]):
        raise InputError(f"mask of shape {tuple(mask.shape)}: give {(len(x), 1, *x.shape[-2:])}")
    return x, y.to(x.device), mask.to(x.device)


def _mean(values, mask):
    """Mean over channels and pixels (of the mask (N, 1, H, W)): (N, C, H, W) => (N,)."""
    if mask is None:
        return values.mean(dim=(1, 2, 3))
    return (values * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * values.shape[1])

"""Classical restoration methods: the baselines that a trained restorer must exceed.

Defines `population` (statistics of readable images) and `baselines` ({name: method}). A method is a
function (y, fov, params) => x_hat of

    y (N, 3, H, W) in [0, 1], the degraded images
    fov (N, 1, H, W) bool, their fields of view
    params, the parameters of the degradation (rr.data.degrade), used only by a method with "known"
        in its name

that returns restored images of y's shape in [0, 1], black outside the field of view. Lengths are
fractions of the image width, so that 80 and 512 pixels get the same treatment. Nothing is random.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rr.data.degrade import Params, blur_width
from rr.errors import InputError
from rr.models import deconvolution
from rr.models.deconvolution import low_pass

Method = Callable[[Tensor, Tensor, Params], Tensor]

SWAP_SIGMA = 25 / 256  # illumination and colour are coarser than this
UNSHARP_SIGMA, UNSHARP_AMOUNT = 2 / 256, 1.0
CLAHE_CLIP = 2.0  # a bin in the histogram of a tile (8x8 tiles) counts at most twice the mean bin
CLAHE_BINS = 256


class Population(NamedTuple):
    """Statistics of readable images, on the CPU."""

    image: Tensor  # (1, 3, H, W), the mean image
    mean: Tensor  # (3,), mean colour inside the field of view, averaged over images
    std: Tensor  # (3,), standard deviation inside the field of view, averaged over images


def population(batches: Iterable[tuple[Tensor, Tensor]]) -> Population:
    """Statistics of batches (x (B, 3, H, W) in [0, 1], fov (B, 1, H, W)), read one at a time."""
    image, mean, std, count = 0, 0, 0, 0
    for x, fov in batches:
        x = x.double()
        m, s = _moments(x, fov)  # B, 3, 1, 1
        image = image + x.sum(0, keepdim=True)
        mean, std = mean + m.sum(0).flatten(), std + s.sum(0).flatten()
        count += len(x)
    if count == 0:
        raise InputError(
            "population: no images; give batches of readable images with their fields of view"
        )
    return Population(*((total / count).float().cpu() for total in (image, mean, std)))


def baselines(readable: Population) -> dict[str, Method]:
    """The classical methods by name. The later ones use more knowledge of the degradation."""
    return {
        "do nothing": do_nothing,
        "population mean": partial(population_mean, readable),
        "low-pass swap": partial(low_pass_swap, readable),
        "mean/std match": partial(match, readable),
        "CLAHE": clahe,
        "unsharp": unsharp,
        "Wiener (known blur)": wiener,
    }


def do_nothing(y, fov, params):
    """Return y."""
    return y * fov


def population_mean(readable, y, fov, params):
    """Return the mean readable image for every y."""
    return _mean_image(readable, y) * fov


def low_pass_swap(readable, y, fov, params):
    """Replace the low-pass of y (its illumination and colour) by that of the mean image."""
    mean = _mean_image(readable, y)
    return (y - low_pass(y, fov, SWAP_SIGMA) + low_pass(mean, fov, SWAP_SIGMA)).clamp(0, 1) * fov


def match(readable, y, fov, params):
    """Set mean and standard deviation of each channel in the field of view to the population's."""
    m, s = _moments(y, fov)
    mean, std = (value.to(y).view(1, 3, 1, 1) for value in (readable.mean, readable.std))
    return ((y - m) / s.clamp_min(1e-6) * std + mean).clamp(0, 1) * fov


def clahe(y, fov, params):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of L in CIE Lab.

    scikit-image stretches its input and its output to the full range, so L is scaled back to the
    range that it had.
    """
    from skimage.color import lab2rgb, rgb2lab
    from skimage.exposure import equalize_adapthist

    images = y.permute(0, 2, 3, 1).cpu().numpy().copy()
    for image in images:
        lab = rgb2lab(image)
        L, low, high = lab[..., 0], lab[..., 0].min(), lab[..., 0].max()
        if high > low:
            clip = CLAHE_CLIP / CLAHE_BINS
            equal = equalize_adapthist(L / 100, clip_limit=clip, nbins=CLAHE_BINS)
            lab[..., 0] = low + (high - low) * equal
            image[:] = lab2rgb(lab)
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(y.device).clamp(0, 1) * fov


def unsharp(y, fov, params):
    """Unsharp masking: detail finer than UNSHARP_SIGMA is added once more."""
    return (y + UNSHARP_AMOUNT * (y - low_pass(y, fov, UNSHARP_SIGMA))).clamp(0, 1) * fov


def wiener(y, fov, params):
    """Wiener deconvolution with the blur width of `params`, assumed equal in the whole image."""
    sigma = blur_width(params)  # N, in image widths
    a = deconvolution.estimate_surround(y, fov, sigma)
    z = deconvolution.remove_surround(y, fov, sigma, a)
    z = deconvolution.inpaint_outside(z, fov)
    return deconvolution.wiener(z, sigma).clamp(0, 1) * fov


def _moments(x, fov):
    """Mean and standard deviation per image and channel in the field of view, each (N, 3, 1, 1)."""
    inside = fov.to(x)
    count = inside.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    mean = (x * inside).sum(dim=(2, 3), keepdim=True) / count
    variance = ((x - mean) ** 2 * inside).sum(dim=(2, 3), keepdim=True) / count
    return mean, variance.sqrt()


def _mean_image(readable, y):
    """The population's mean image, resized to y and repeated: (N, 3, H, W)."""
    image = readable.image.to(y)
    if image.shape[-2:] != y.shape[-2:]:
        image = F.interpolate(image, y.shape[-2:], mode="bilinear", antialias=True)
    return image.expand_as(y)

"""Classical restoration methods: the baselines that a trained restorer must exceed.

Defines `population` (statistics of readable images), `baselines` ({name: method}) and `low_pass`. A
method is a function (y, fov, params) => x_hat of

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
from rr.data.shapes import blur
from rr.errors import InputError

Method = Callable[[Tensor, Tensor, Params], Tensor]

SWAP_SIGMA = 25 / 256  # illumination and colour are coarser than this
UNSHARP_SIGMA, UNSHARP_AMOUNT = 2 / 256, 1.0
CLAHE_CLIP = 2.0  # a bin in the histogram of a tile (8x8 tiles) counts at most twice the mean bin
CLAHE_BINS = 256
NOISE_TO_SIGNAL = 1e-2  # Wiener's K: frequencies that the blur reduced below sqrt(K) are given up
RIM = 0.99  # blur(fov) above which the surround has no influence
FILL_SIGMA = 1 / 64  # first and finest low-pass that fills the outside of the field of view


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
    return deconvolved(y, fov, blur_width(params))


def deconvolved(y, fov, sigma):
    """Wiener's deconvolution of a Gaussian blur of sigma (N,), in widths; 0 leaves an image as it is.

    The blur has mixed the surround, of unknown level a, into the rim: `surround` finds a, `unmixed` takes it out, what is left
    is continued over the surround, so that no jump rings all over the image, and `sharpened`.
    """
    z = continued(unmixed(y, fov, sigma, surround(y, fov, sigma)), fov)
    return sharpened(z, sigma).clamp(0, 1) * fov


def surround(y, fov, sigma):
    """Level a (N, 3, 1, 1) of the surround in y = B z + (1 - B) a, B = blur(fov).

    Where B is nearly 1, y = z; continued from there, z gives a by least squares over the rim.
    """
    B = blur(fov.to(y), sigma).clamp_min(0.01)
    mixed, a = (1 - B) * fov, 0
    for _ in range(2):  # the second time without the little of a that is in y where B is nearly 1
        excess = (mixed * (y - B * continued((y - (1 - B) * a) / B, fov & (B > RIM)))).sum(
            dim=(2, 3), keepdim=True
        )
        a = (excess / (mixed**2).sum(dim=(2, 3), keepdim=True).clamp_min(1e-9)).clamp(0, 1)
    return a


def unmixed(y, fov, sigma, a):
    """z = (y - (1 - B) a) / B inside the field of view, see `surround`."""
    B = blur(fov.to(y), sigma).clamp_min(0.01)
    return torch.where(fov, (y - (1 - B) * a) / B, y)


def sharpened(z, sigma):
    """Wiener's filter in the frequency domain, with H(f) = exp(-2 (pi sigma f)^2) and K = NOISE_TO_SIGNAL,

        F^-1[ F[z] (1 + K) H / (H^2 + K) ],

    so that constant areas and unblurred images stay as they are; z is mirrored at the frame.
    """
    *_, height, width = z.shape
    margin = min(width // 4, height - 1)  # more than the reach of the widest blur
    z = torch.nn.functional.pad(z, (margin,) * 4, mode="reflect")
    fy = torch.fft.fftfreq(z.shape[-2], device=z.device)[:, None] * width  # cycles per width
    fx = torch.fft.rfftfreq(z.shape[-1], device=z.device) * width
    H = torch.exp(-2 * (torch.pi * sigma[:, None, None, None]) ** 2 * (fx**2 + fy**2))
    K = NOISE_TO_SIGNAL
    sharp = torch.fft.irfft2(torch.fft.rfft2(z) * (1 + K) * H / (H**2 + K), s=z.shape[-2:])
    return sharp[..., margin : margin + height, margin : margin + width]


def low_pass(x: Tensor, fov: Tensor, sigma: float) -> Tensor:
    """Gaussian low-pass of x (N, C, H, W) within the field of view: blur(x fov) / blur(fov).

    sigma is in image widths. The black surround does not bleed in. Outside the field of view the
    image is continued as far as the Gaussian reaches.
    """
    inside, sigmas = fov.to(x), torch.full((len(x),), sigma, device=x.device)
    return blur(x * inside, sigmas) / blur(inside, sigmas).clamp_min(1e-6)


def continued(y, inside):
    """y, continued smoothly beyond the mask `inside`: by the finest low-pass that still sees something of it."""
    sigma, z, gap = FILL_SIGMA, y * inside, ~inside
    while gap.any() and sigma <= 1:
        reached = gap & (blur(inside.to(y), torch.full((len(y),), sigma, device=y.device)) > 0.05)
        z = torch.where(reached, low_pass(y, inside, sigma), z)
        gap, sigma = gap & ~reached, 2 * sigma
    return z


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

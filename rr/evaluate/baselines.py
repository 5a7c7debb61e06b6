"""Classical restorers, the rungs that a learned one must climb above: no weights, nothing trained.

Defines `Population` and `population` (what is known of readable images at large), `baselines` (name => method) and
`low_pass`. A method is a function (y, fov, params) => x_hat of

    y (N, 3, H, W) in [0, 1], the degraded images; fov (N, 1, H, W), bool, their fields of view;
    params, the parameters of the degradation (rr.degrade), at which only a method with "known" in its name looks

that returns restored images of y's shape in [0, 1], black outside of the field of view. Every length is a fraction of
the image width, so that 80 and 512 pixels get the same treatment, and nothing is random.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rr.data.degrade import Params, blur, blur_width
from rr.errors import InputError

Method = Callable[[Tensor, Tensor, Params], Tensor]

SWAP_SIGMA = 25 / 256  # illumination and colour are what is coarser than this
UNSHARP_SIGMA, UNSHARP_AMOUNT = 2 / 256, 1.0
CLAHE_TILES, CLAHE_CLIP = (
    8,
    2.0,
)  # 8x8 tiles; no bin of a tile's histogram counts more than twice the mean bin
CLAHE_BINS = 256
NOISE_TO_SIGNAL = 1e-2  # Wiener's constant: frequencies of which the blur left less than its root, 10 %, are given up
RIM = 0.99  # where the blur saw at least that much of the field of view, the surround changed nothing to speak of
FILL_SIGMA = (
    1 / 64
)  # first and finest of the low-passes that continue an image beyond its field of view


class Population(NamedTuple):
    """Readable images at large, on the CPU."""

    image: Tensor  # (1, 3, H, W), their mean
    mean: Tensor  # (3,), red, green and blue inside of the field of view, averaged over images
    std: Tensor  # (3,), their standard deviation inside of an image, averaged over images


def population(batches: Iterable[tuple[Tensor, Tensor]]) -> Population:
    """Population of readable images in batches of (x (B, 3, H, W) in [0, 1], fov (B, 1, H, W)), read one at a time."""
    image, mean, std, count = 0, 0, 0, 0
    for x, fov in batches:
        image = image + x.double().sum(0, keepdim=True)
        m, s = _moments(x.double(), fov)
        mean, std, count = mean + m.sum(0).flatten(), std + s.sum(0).flatten(), count + len(x)
    if count == 0:
        raise InputError(
            "population: no images; give batches of readable images with their fields of view"
        )
    return Population(*((total / count).float().cpu() for total in (image, mean, std)))


def baselines(known: Population) -> dict[str, Method]:
    """The classical methods by name, from nothing done to the one that knows most of the degradation."""
    return {
        "do nothing": do_nothing,
        "population mean": partial(population_mean, known),
        "low-pass swap": partial(low_pass_swap, known),
        "mean/std match": partial(match, known),
        "CLAHE": clahe,
        "unsharp": unsharp,
        "Wiener (known blur)": wiener,
    }


def do_nothing(y, fov, params):
    """y."""
    return y * fov


def population_mean(known, y, fov, params):
    """The mean readable image, whatever y is."""
    return _resized(known.image, y).expand_as(y) * fov


def low_pass_swap(known, y, fov, params):
    """y's own illumination and colour, its low-pass at SWAP_SIGMA, replaced by those of the mean image."""
    mean = _resized(known.image, y).expand_as(y)
    return (y - low_pass(y, fov, SWAP_SIGMA) + low_pass(mean, fov, SWAP_SIGMA)).clamp(0, 1) * fov


def match(known, y, fov, params):
    """Mean and standard deviation of each channel inside of the field of view, set to the population's."""
    m, s = _moments(y, fov)
    wanted_m, wanted_s = (value.to(y).view(1, 3, 1, 1) for value in (known.mean, known.std))
    return ((y - m) / s.clamp_min(1e-6) * wanted_s + wanted_m).clamp(0, 1) * fov


def clahe(y, fov, params):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of L in CIE Lab, by scikit-image.

    scikit-image stretches what it gets and what it returns to the full range; L goes back to the range that it had.
    """
    from skimage.color import lab2rgb, rgb2lab
    from skimage.exposure import equalize_adapthist

    x_hat = y.permute(0, 2, 3, 1).cpu().numpy().copy()
    for image in x_hat:
        lab = rgb2lab(image)
        L, low, high = lab[..., 0] / 100, lab[..., 0].min(), lab[..., 0].max()
        if high > low:
            lab[..., 0] = low + (high - low) * equalize_adapthist(
                L, clip_limit=CLAHE_CLIP / CLAHE_BINS, nbins=CLAHE_BINS
            )
            image[:] = lab2rgb(lab)
    return torch.from_numpy(x_hat).permute(0, 3, 1, 2).to(y.device).clamp(0, 1) * fov


def unsharp(y, fov, params):
    """Unsharp masking: the detail finer than UNSHARP_SIGMA, twice."""
    return (y + UNSHARP_AMOUNT * (y - low_pass(y, fov, UNSHARP_SIGMA))).clamp(0, 1) * fov


def wiener(y, fov, params):
    """`deconvolved` with the sigma that is known from `params`; an aim of the degradation is not heeded."""
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
    """Gaussian low-pass of x (N, C, H, W), sigma in widths, of the field of view alone: blur(x fov) / blur(fov).

    The black surround does not bleed in; outside of fov the image is continued as far as the Gaussian reaches.
    """
    inside = fov.to(x)
    sigmas = torch.full((len(x),), sigma, device=x.device)
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
    """Mean and standard deviation per image and channel inside of fov, each (N, 3, 1, 1)."""
    inside = fov.to(x)
    count = inside.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    mean = (x * inside).sum(dim=(2, 3), keepdim=True) / count
    return mean, (((x - mean) ** 2 * inside).sum(dim=(2, 3), keepdim=True) / count).sqrt()


def _resized(image, y):
    """A population's image (1, 3, H, W) at y's size and on its device."""
    size = y.shape[-2:]
    image = image.to(y)
    return (
        image
        if image.shape[-2:] == size
        else torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
    )

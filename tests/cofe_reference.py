"""The degradation as Shen et al. formulate it (2020, arXiv 2005.05594), image by image.

Shapes are drawn as discs at full resolution, and each is blurred with a Gaussian kernel of its own.
This is an oracle for rr.data.degrade and the peer of the benchmark T6. It shares nothing with
rr.data.degrade but the documented amplitudes and widths, so both must compute the same fields.
Kernels are separable and cut at four standard deviations.
"""

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

CUT = 4  # standard deviations
TINTS = np.array([(251, 249, 246), (141, 238, 238), (177, 195, 147)], np.float32) / 255
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def blurred(field, sigma):
    """A field (H, W), blurred with a Gaussian of sigma pixels; it is 0 outside the border."""
    return gaussian_filter(field, sigma, mode="constant", truncate=CUT)


def soft_disc(size, u, v, radius, sigma):
    """A blurred disc of height 1 with its centre at u, v (widths).

    A disc that crosses the border is drawn on a wider frame.
    """
    height, width = size
    inside = radius <= min(u, 1 - u, v, height / width - v)
    pad = 0 if inside else math.ceil(CUT * sigma * width)
    y, x = np.ogrid[-pad : height + pad, -pad : width + pad]
    disc = ((x + 0.5) / width - u) ** 2 + ((y + 0.5) / width - v) ** 2 <= radius**2
    return blurred(disc.astype(np.float32), sigma * width)[pad : pad + height, pad : pad + width]


def illumination(x, p, s):
    """Change brightness, contrast, saturation; add a tinted ring, subtract a hole. x (3, H, W)."""
    brightness, contrast, saturation = (
        1 + s * (p[name] - 1) for name in ("brightness", "contrast", "saturation")
    )
    y = x * brightness
    y = contrast * y + (1 - contrast) * np.tensordot(LUMA, y, 1).mean()
    y = saturation * y + (1 - saturation) * np.tensordot(LUMA, y, 1)
    y = y + s * halo(x, p)
    return y - s * hole(y, p)


def halo(x, p):
    at = x.shape[1:], p["halo_u"], p["halo_v"]
    soft = 0.28 * p["halo_width"]
    ring = soft_disc(*at, p["halo_inner"] + p["halo_width"], soft) - soft_disc(
        *at, p["halo_inner"], soft
    )
    return x.mean() * TINTS[int(p["halo_tint"])][:, None, None] * ring


def hole(y, p):
    depth = (0.26 + 0.055 * y.mean()) * np.clip((y.mean() - 0.2) / 0.1, 0, 1)
    soft = 0.15 * p["hole_soft"] * 2 * p["hole_radius"]
    return depth * soft_disc(y.shape[1:], p["hole_u"], p["hole_v"], p["hole_radius"], soft)


def spots(size, p, s):
    """Sum of the bright spots (H, W)."""
    total = np.zeros(size, np.float32)
    drawn = list(zip(p["spot_u"], p["spot_v"], p["spot_radius"]))[: int(p["spot_count"])]
    for u, v, radius in drawn:
        r = 512 * radius / 25
        alpha = (14 / 25 + 1 - r) * (1 - math.exp(-(0.5 + r) * 0.3 * r))
        total += s * alpha * soft_disc(size, u, v, radius, (5 + 20 * r) / 512)
    return total


def out_of_focus(y, sigma):
    """y (3, H, W), blurred with a Gaussian of sigma widths that is cut off at the border."""
    pixels = sigma * y.shape[2]
    there = blurred(np.ones(y.shape[1:], np.float32), pixels)
    return np.stack(
        [blurred(np.ascontiguousarray(channel, np.float32), pixels) / there for channel in y]
    )


def apply(x, params, fov=None):
    """y = A(x) for images x (N, 3, H, W) in [0, 1] and params of degrade.sample, no region."""
    degraded = []
    for i, image in enumerate(x.numpy()):
        p = {name: values[i].tolist() for name, values in params.items()}
        light, spot, focus = (p["severity"] * family for family in p["families"])
        y = illumination(image, p, light) if light else image
        y = np.clip(y + spots(image.shape[1:], p, spot) if spot else y, 0, 1)
        y = out_of_focus(y, focus * p["blur_sigma"]) if focus else y
        degraded.append(torch.from_numpy(np.clip(y, 0, 1).astype(np.float32)))
    y = torch.stack(degraded)
    return y if fov is None else y * fov

"""Blurred shapes on a pixel grid, one set of parameters per image."""

import math

import torch


def grid(x):
    """The coordinates u (W,) and v (H,) of the pixels of x."""
    width = x.shape[-1]
    u, v = (torch.arange(n, device=x.device) + 0.5 for n in (width, x.shape[-2]))
    return u / width, v / width


def per_image(value):
    """(N,) => (N, 1, 1, 1)."""
    return value[:, None, None, None]


def distance2(u, v, centre_u, centre_v):
    """The squared distance of every pixel to a centre (N,) per image, (N, 1, H, W)."""
    du, dv = u - centre_u[:, None], v - centre_v[:, None]
    return (dv**2)[:, None, :, None] + (du**2)[:, None, None, :]


def blurred_disc(r2, radius, sigma):
    """A disc of height 1 after a Gaussian blur, at squared distances r2 (N, 1, H, W) from its
    centre.

    This is P(|r + sigma z| <= radius) with z normal in the plane. The length |r + sigma z| has a
    Rice distribution, which is nearly normal with mean sqrt(r^2 + sigma^2) and standard deviation
    sigma. The error is below 0.005 where radius > 4 sigma.
    """
    sigma = per_image(sigma)
    return 0.5 * torch.erfc(((r2 + sigma**2).sqrt() - per_image(radius)) / (math.sqrt(2) * sigma))

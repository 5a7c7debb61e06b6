"""What the tests of photographs share: a drawn photograph, a saved file, an error of one line."""

import numpy as np


def disc(height, width, x, y, r, top=-np.inf, bottom=np.inf, notch=False):
    """An anti-aliased orange disc on a dark, noisy surround, cut flat at `top` and `bottom`."""
    iy, ix = (np.mgrid[: 4 * height, : 4 * width] + 0.5) / 4
    inside = ((ix - x) ** 2 + (iy - y) ** 2 < r**2) & (iy > top) & (iy < bottom)
    if notch:
        inside |= (abs(ix - x) < r / 20) & (iy < y) & (iy > y - 1.1 * r)
    cover = inside.reshape(height, 4, width, 4).mean((1, 3))
    noise = np.random.default_rng(0).normal(4, 2, (height, width, 1))
    return (cover[..., None] * (180, 90, 40) + noise).clip(0, 255).astype(np.uint8)


def line(error):
    """The message of an InputError, which has one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(folder, name, image, **options):
    path = folder / name
    image.save(path, **options)
    return path

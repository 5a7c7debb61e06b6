"""The field of view of a photograph: a bright disc on a dark surround, often cut above and below.

Pixel coordinates are continuous: pixel i covers [i, i + 1).
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from skimage.measure import CircleModel, ransac

THUMB = 256  # longer side of the thumbnail in which the field of view is found, px
TOLERANCE = 1.5  # px of the thumbnail: how far from the circle its outline may lie


class Fov(NamedTuple):
    """The disc (x, y, r) between the lines `top` and `bottom`, where cameras cut it."""

    x: float
    y: float
    r: float
    top: float
    bottom: float


NO_FOV = Fov(*[math.nan] * 5)


def find_fov(image):
    """The field of view of a photograph, uint8 (H, W, 3), as Fov in its pixels, or None.

    In a thumbnail, a threshold separates the surround from the retina. The circle is the one
    through most points of the outline of the largest bright component (RANSAC). So flat cuts,
    notches and the frame may hide up to 80 % of the rim. None means that there is no bright disc on
    a dark surround.
    """
    height, width = image.shape[:2]
    scale = max(height, width, THUMB) / THUMB
    w, h = max(1, round(width / scale)), max(1, round(height / scale))
    value = np.asarray(Image.fromarray(image).resize((w, h), Image.BOX)).max(2).astype(np.float32)
    dark, bright = np.percentile(value, (1, 95))
    if bright - dark < 16 or dark > bright / 2:  # uniform, or without a dark surround
        return None
    threshold = dark + max(6, 0.12 * (bright - dark))
    parts, count = ndimage.label(ndimage.median_filter((value > threshold).astype(np.uint8), 3))
    if count == 0:
        return None
    disc = ndimage.binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    points = _outline(disc)
    circle = _circle(points, low=0.15 * min(h, w), high=max(h, w))
    if circle is None:
        return None
    x, y, r = circle
    on_rim = np.abs(np.hypot(*(points - (x, y)).T) - r) < TOLERANCE
    angles = np.arctan2(*(points[on_rim] - (x, y)).T)
    seen = len(np.unique(np.floor(angles / np.pi * 36))) / 72  # share of the rim that is visible

    # A pixel passes the threshold before half of it is covered, so the circle is slightly too
    # large.
    r -= max(0, 0.5 - (threshold - dark) / (bright - dark))
    iy, ix = np.arange(h)[:, None] + 0.5, np.arange(w) + 0.5
    distance = np.hypot(ix - x, iy - y)
    inside = distance < r
    top = _cut(disc & inside, y, r)
    bottom = h - _cut((disc & inside)[::-1], h - y, r)
    inside &= (iy > top) & (iy < bottom)
    surround = (distance > 1.04 * r) | (iy < top - 2) | (iy > bottom + 2)
    if (
        on_rim.mean() < 0.35
        or seen < 0.18
        or surround.mean() < 0.005
        or (value[surround] > threshold).mean() > 0.2
        or disc[inside].mean() < 0.6
    ):
        return None
    sx, sy = width / w, height / h
    edges = max(0, top) * sy, min(h, bottom) * sy
    return Fov(*map(float, (x * sx, y * sy, r * (sx + sy) / 2, *edges)))


def _outline(disc):
    """Midpoints (N, 2) between neighbouring pixels inside and outside; the frame is no outline."""
    rows, columns = np.nonzero(disc[:, 1:] != disc[:, :-1])
    vertical = np.stack([columns + 1, rows + 0.5], 1)
    rows, columns = np.nonzero(disc[1:] != disc[:-1])
    return np.concatenate([vertical, np.stack([columns + 0.5, rows + 1], 1)]).astype(float)


def _circle(points, low, high):
    """The circle (x, y, r) with low < r < high through most of the points, or None."""
    if len(points) < 60:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # collinear triples
        model, near = ransac(
            points,
            CircleModel,
            min_samples=3,
            residual_threshold=TOLERANCE,
            max_trials=400,
            stop_probability=0.9999,
            is_model_valid=lambda model, *_: low < model.radius < high,
            rng=0,
        )
    if not model or near.sum() < 20 or not low < model.radius < high:
        return None
    return *model.center, model.radius


def _cut(disc, y, r):
    """The first row of the field of view: of a flat cut if there is one, otherwise y - r."""
    rows = np.arange(len(disc)) + 0.5
    chord = 2 * np.sqrt(np.maximum(r**2 - (rows - y) ** 2, 0))
    filled = disc.sum(1)
    first = np.argmax(filled > 0)
    full = np.argmax(filled > 0.8 * np.maximum(np.minimum(chord, disc.shape[1]), 3))
    slack = 1 + 0.02 * r
    flat = full - first <= slack and full - (y - r) > slack
    return float(full) if flat else y - r


def fov_mask(circle, size):
    """Masks (N, 1, size, size), bool, of fields of view `circle` (N, 5): x, y, r, top, bottom.

    A pixel belongs to the field of view if its centre does. NaN gives the whole frame.
    """
    x, y, r, top, bottom = torch.as_tensor(circle).float()[..., None, None].unbind(1)  # N, 1, 1
    column = (torch.arange(size, device=x.device) + 0.5) / size
    row = column[:, None]
    limit = torch.where((row >= top) & (row <= bottom), r**2, -1)  # N, size, 1
    return ~((column - x) ** 2 + (row - y) ** 2 > limit)[:, None]  # NaN is not greater

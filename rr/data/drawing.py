"""What rr.data.synthetic draws with: smooth fields, and lines: nerve fibres, choroid, vessels.

Images are float32 and S pixels wide, lengths are in widths (fractions of S), points are complex
numbers as in rr.data.anatomy.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from rr.data.anatomy import DISC, curves, jitter, perpendicular

COARSE = 96  # pixels; smooth fields are computed on this grid and enlarged


@lru_cache(maxsize=8)
def grid(size):
    """Pixel centres in widths: x (1, S), y (S, 1)."""
    x = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return x[None], x[:, None]


def distance(size, centre, rx, ry, part=np.s_[:, :]):
    """Elliptic distance (S, S) from `centre`, 1 on the ellipse.

    part: rows and columns, if only a part is wanted.
    """
    (x, y), (cx, cy, rx, ry) = grid(size), np.float32([centre.real, centre.imag, rx, ry])
    return np.sqrt(((x[:, part[1]] - cx) / rx) ** 2 + ((y[part[0]] - cy) / ry) ** 2)


def hill(distance, radius):
    return np.exp(-((distance / np.float32(radius)) ** 2))


def edge(distance, outer, width):
    """1 inside, 0 beyond `outer`, with a linear slope of `width` between."""
    return np.clip((outer - distance) / np.float32(width), 0, 1)


def uniform(rng, low, high):
    return np.float32(rng.uniform(low, high))  # float32 keeps whole images in float32


def enlarge(field, size):
    image = Image.fromarray(np.asarray(field, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def noise(rng, amplitudes, size):
    """Sum of smooth random fields; amplitudes is {number of cells across: amplitude}."""
    fields = [
        rng.standard_normal((k, k), np.float32) * np.float32(a) for k, a in amplitudes.items()
    ]
    return sum(enlarge(field, size) for field in fields)


def pixels(eye, points, scale):
    """Points of the retinal frame, one row per line, as lists [x0, y0, x1, y1, ...] in pixels."""
    placed = scale * (eye.fovea + points.real * eye.t + points.imag * eye.s)
    return placed.copy().view(float).tolist()


def draw_lines(eye, path, width, level):
    """Lines of `width` (in widths) and brightness `level` (0 to 1) on the coarse grid."""
    canvas = Image.new("L", (2 * COARSE, 2 * COARSE))
    draw, width = ImageDraw.Draw(canvas), (2 * COARSE * width).round().astype(int).tolist()
    lines, level = pixels(eye, path, 2 * COARSE), (255 * level).astype(int).tolist()
    for line, w, fill in zip(lines, width, level, strict=True):
        draw.line(line, fill=fill, width=max(1, w))
    return np.asarray(canvas.reduce(2), np.float32) / 255


def nerve_fibres(rng, eye, n=70):
    """Striae (C, C) that fan out of the disc, densest along the temporal arcades."""
    aside = rng.random(n)
    up = np.where(np.arange(n) % 2, 1, -1)
    way = rng.uniform(0.4, 1.2, n) * (-0.2 + aside + 1j * up * (0.45 + 0.5 * aside))
    c1, c2 = 0.1 * way.real + 0.5j * way.imag, 0.5 * way.real + 0.95j * way.imag
    path = curves(rng, 0 * way + DISC, c1 + DISC, c2 + DISC, way + DISC, 0.01)
    return draw_lines(eye, path[:, 4::2], np.full(n, 0.005), rng.uniform(0.2, 1, n))


def choroid(rng, eye, n=300):
    """Choroidal vessels (C, C): broad wavy bands that run outwards from the posterior pole."""
    start = rng.uniform(-2.2, 2.0, n) + 1j * rng.uniform(-2.1, 2.1, n)
    way = 0.7 * (start / (abs(start) + 0.3) + jitter(rng, 0.45, n))
    path = curves(rng, start, start + 0.4 * way, start + 0.6 * way, start + way, 0.06)
    return draw_lines(eye, path[:, ::3], rng.uniform(0.008, 0.018, n), rng.uniform(0.4, 1, n))


def draw_vessels(eye, path, radius, artery, size):
    """Draw the vessel tree, anti-aliased: (3, S, S) in [0, 1].

    The channels are the covered part of the pixel, the density of arterial and of venous blood.
    """
    over = max(2, round(672 / size))  # supersampling: a line is at least 1/672 of the width
    scale = size * over
    start = radius[:, 0]
    width = 2 * scale * start  # at the start, in pixels of the canvas
    wide, shiny = width >= 2.5, (start > 0.0022) & (width > 4)

    # outlines of wide vessels; half a pixel less, because a polygon also covers its outline
    direction = np.diff(path, axis=1, append=2 * path[:, -1:] - path[:, -2:-1])
    half = (radius - 0.5 / scale).clip(0) / (abs(direction) + 1e-9) / abs(eye.t)
    side = perpendicular(direction) * half
    outlines = np.concatenate([path + side, (path - side)[:, ::-1]], 1)
    outline = dict(zip(np.flatnonzero(wide).tolist(), pixels(eye, outlines[wide], scale)))
    line = pixels(eye, path[:, ::2], scale)
    centre_line = dict(zip(np.flatnonzero(shiny).tolist(), pixels(eye, path[shiny], scale)))

    density = 255 * (start / 0.004).clip(0, 1) ** 0.6  # a thin vessel absorbs less light
    reflex = (density * np.where(artery, 0.5, 0.75)).astype(int).tolist()
    density, width = density.astype(int).tolist(), width.tolist()
    canvas = Image.new("RGB", (scale, scale))
    draw = ImageDraw.Draw(canvas)
    for i in np.argsort(start).tolist():  # the widest on top
        fill = (255, density[i], 0) if artery[i] else (255, 0, density[i])
        if i in outline:
            draw.polygon(outline[i], fill=fill)
        else:
            draw.line(line[i], fill=fill, width=max(1, round(0.9 * width[i])))
        if i in centre_line:  # the light that the middle of a vessel reflects
            fill = (255, reflex[i], 0) if artery[i] else (255, 0, reflex[i])
            draw.line(centre_line[i], fill=fill, width=round(0.28 * width[i]))
    channels = np.asarray(canvas.reduce(over)).transpose(2, 0, 1)
    return channels.astype(np.float32, order="C") / np.float32(255)

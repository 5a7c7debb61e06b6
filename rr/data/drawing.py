"""What rr.data.synthetic draws with: smooth fields, and lines: nerve fibres, choroid, vessels.

Images are float32 and S pixels wide, lengths are in widths (fractions of S), points are complex
numbers as in rr.data.anatomy.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from rr.data.anatomy import DISC, curves, jitter, perpendicular

COARSE = 96  # pixels; the smooth fields of a larger image are computed on this grid and enlarged


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
    if len(field) == size:
        return field
    image = Image.fromarray(np.asarray(field, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def noise(rng, amplitudes, size):
    """Sum of smooth random fields; amplitudes is {number of cells across: amplitude}, ascending."""
    field = np.zeros((min(amplitudes),) * 2)
    for k, amplitude in amplitudes.items():
        field = enlarge(field, k) + rng.standard_normal((k, k), np.float32) * np.float32(amplitude)
    return enlarge(field, size)


def pixels(eye, points, scale):
    """Points of the retinal frame, one row per line, as lists [x0, y0, x1, y1, ...] in pixels."""
    placed = scale * (eye.fovea + points.real * eye.t + points.imag * eye.s)
    return placed.copy().view(float).tolist()


def draw_lines(eye, path, width, level, size):
    """Lines of `width` (in widths) and brightness `level` (0 to 1), (S, S) with S <= COARSE."""
    canvas = Image.new("L", (2 * COARSE, 2 * COARSE))
    draw, width = ImageDraw.Draw(canvas), (2 * COARSE * width).round().astype(int).tolist()
    lines, level = pixels(eye, path, 2 * COARSE), (255 * level).astype(int).tolist()
    for line, w, fill in zip(lines, width, level, strict=True):
        draw.line(line, fill=fill, width=max(1, w))
    canvas = canvas.resize((size, size), Image.Resampling.BOX)
    return np.asarray(canvas, np.float32) / np.float32(255)


def nerve_fibres(rng, eye, size, n=70):
    """Striae (S, S) that fan out of the disc, densest along the temporal arcades."""
    aside = rng.random(n)
    up = np.where(np.arange(n) % 2, 1, -1)
    way = rng.uniform(0.4, 1.2, n) * (-0.2 + aside + 1j * up * (0.45 + 0.5 * aside))
    c1, c2 = 0.1 * way.real + 0.5j * way.imag, 0.5 * way.real + 0.95j * way.imag
    path = curves(rng, 0 * way + DISC, c1 + DISC, c2 + DISC, way + DISC, 0.01)
    return draw_lines(eye, path[:, 4::2], np.full(n, 0.005), rng.uniform(0.2, 1, n), size)


def choroid(rng, eye, size, n=300):
    """Choroidal vessels (S, S): broad wavy bands that run outwards from the posterior pole."""
    start = rng.uniform(-2.2, 2.0, n) + 1j * rng.uniform(-2.1, 2.1, n)
    way = 0.7 * (start / (abs(start) + 0.3) + jitter(rng, 0.45, n))
    path = curves(rng, start, start + 0.4 * way, start + 0.6 * way, start + way, 0.06)
    width, level = rng.uniform(0.008, 0.018, n), rng.uniform(0.4, 1, n)
    return draw_lines(eye, path[:, ::3], width, level, size)


def draw_vessels(eye, path, radius, artery, size):
    """Draw the vessel tree, anti-aliased: (3, S, S) in [0, 1].

    The channels are the covered part of the pixel, the density of arterial and of venous blood.
    """
    over = min(max(2, round(672 / size)), 4)  # supersampling: pixels of the canvas in a pixel
    scale = size * over
    order = np.argsort(radius[:, 0])  # the widest on top
    path, radius, artery = path[order], radius[order], artery[order]
    start = radius[:, 0]
    width = 2 * scale * start  # at the start, in pixels of the canvas
    thin = np.searchsorted(width, 2.5)  # these are drawn as lines, the others as outlines
    cover = 255 * width.clip(0, 1)  # a line is at least one pixel wide
    density = cover * (start / 0.004).clip(0, 1) ** 0.6  # a thin vessel absorbs less light

    def inks(density):
        channels = np.stack([cover, density * artery, density * ~artery])
        return list(zip(*channels.astype(int).tolist()))

    canvas = Image.new("RGB", (scale, scale))
    draw, ink = ImageDraw.Draw(canvas), inks(density)
    pen = (0.9 * width).clip(1).round().astype(int).tolist()
    for line, w, fill in zip(pixels(eye, path[:thin, ::2], scale), pen, ink):
        draw.line(line, fill=fill, width=w)

    path, radius = path[thin:], radius[thin:]
    direction = np.diff(path, axis=1, append=2 * path[:, -1:] - path[:, -2:-1])
    # half a pixel less, because a polygon also covers its outline
    half = (radius - 0.5 / scale).clip(0) / (abs(direction) + 1e-9) / abs(eye.t)
    side = perpendicular(direction) * half
    outlines = pixels(eye, np.concatenate([path + side, (path - side)[:, ::-1]], 1), scale)
    shiny = (start > 0.0022) & (width > 4)  # the middle of a vessel reflects light
    shine = np.where(shiny, 0.28 * width, 0).round().astype(int).tolist()
    middles, reflex = pixels(eye, path, scale), inks(density * np.where(artery, 0.5, 0.75))
    wide = zip(outlines, ink[thin:], middles, reflex[thin:], shine[thin:])
    for outline, fill, middle, light, w in wide:
        draw.polygon(outline, fill=fill)
        draw.line(middle, fill=light, width=w)
    channels = np.asarray(canvas.reduce(over)).transpose(2, 0, 1)
    return channels.astype(np.float32, order="C") / np.float32(255)

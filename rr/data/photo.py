"""A photograph, read, its field of view found, cropped to a square.

Defines `read_photograph`, `find_fov` (circle and flat cuts, or None), `crop_fov` (square crop, and the box to paste a
result back), `read_crop` (both at once, several times faster for a large JPEG) and `fov_mask`. Pixel coordinates are
continuous: pixel i covers [i, i+1). Fractions are of the crop's width.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from scipy import ndimage

from rr.errors import InputError

MAX_PIXELS = 150_000_000  # more is refused before decoding; three times the largest fundus cameras
NARROW = 20  # a longer side of more than so many shorter ones is no photograph, and a square round it takes much memory
THUMB = 256  # longer side, in pixels, of the thumbnail in which the field of view is found


def read_photograph(path):
    """Read any common image file as an upright RGB photograph, uint8 (H, W, 3).

    EXIF orientation is applied, 16-bit greys are scaled to 8, transparency becomes black. Raises InputError if the
    file is missing, empty, truncated, no image, or larger than MAX_PIXELS (known from its header, not decoded).
    """
    return _read(path, path)[0]


def read_crop(file, size, name=None):
    """The field of view of a photograph as a square crop at size x size: (crop, Fov, Box, width, height), see `crop_fov`.

    file: a path, or an open file that errors call `name`. Without a field of view: the whole frame. Width, height and
    Box are in pixels of the upright photograph. A JPEG is decoded at a half, a quarter or an eighth of its size (Pillow's
    `draft`, which leaves out the high frequencies of each block) where the crop has at least size x size pixels even so.
    """
    name = name or file
    image, width, height = _read(file, name, size)
    crop, fov, box = crop_fov(image, size, required=False, frame=(width, height))
    short = min(image.shape[:2])
    if (
        short < min(width, height) and box.side * image.shape[1] < size * width
    ):  # a field of view smaller than the frame
        image, width, height = _read(file, name, math.ceil(size * min(width, height) / box.side))
        crop, fov, box = crop_fov(image, size, required=False, frame=(width, height))
    return crop, fov, box, width, height


def _read(file, name, least=None):
    """(image, width, height) of the upright photograph; least: pixels of the shorter side that suffice, if the longer has
    THUMB, None: all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow's own, softer warning for large images, and damaged EXIF
            with Image.open(file) as photo:
                width, height = photo.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if least is not None:
                    scale = max(least / min(width, height), THUMB / max(width, height))
                    photo.draft(
                        None, (math.ceil(scale * width), math.ceil(scale * height))
                    )  # of a JPEG only
                photo.load()
                ImageOps.exif_transpose(photo, in_place=True)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise InputError(
            f"{name}: more than {MAX_PIXELS // 10**6} megapixels; reduce it first"
        ) from None
    except Exception as error:
        reason = (
            " ".join(str(error).split()).replace(f" {str(file)!r}", "").replace(f" {file!r}", "")
            or type(error).__name__
        )
        raise InputError(
            f"{name}: not a readable image ({reason}); export it again as PNG or JPEG"
        ) from None
    if max(photo.size) > NARROW * min(photo.size):
        raise InputError(f"{name}: {width} x {height} pixels; give a photograph that is no strip")
    if (photo.width > photo.height) != (width > height):
        width, height = height, width
    if photo.mode.startswith("I"):
        grey = np.clip(np.asarray(photo), 0, 65535) / 257
        return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=2), width, height
    if photo.mode == "F":
        raise InputError(
            f"{name}: pixels are floating-point numbers of unknown range; export it as 8-bit PNG or JPEG"
        )
    if "A" in photo.mode or "a" in photo.mode or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "black"), photo)
    return np.array(photo if photo.mode == "RGB" else photo.convert("RGB")), width, height


class Fov(NamedTuple):
    """Field of view: the disc (x, y, r) between the horizontal lines `top` and `bottom`, where many cameras cut it."""

    x: float
    y: float
    r: float
    top: float
    bottom: float


class Box(NamedTuple):
    """The square of the photograph, in its pixels, that became the crop. It may reach over the photograph's edges."""

    left: int
    top: int
    side: int


def find_fov(image):
    """Field of view of a photograph, uint8 (H, W, 3), as Fov in its pixels; None if there is no bright disc on black.

    On a thumbnail: threshold between surround and retina, largest component, then the circle through most points of
    its outline (RANSAC, least squares), so that flat cuts, notches and the frame may take away up to 80 % of the rim.
    """
    height, width = image.shape[:2]
    scale = max(height, width, THUMB) / THUMB
    thumb = Image.fromarray(image).resize(
        (max(1, round(width / scale)), max(1, round(height / scale))), Image.BOX
    )
    red, green, blue = thumb.split()
    value = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)).astype(np.float32)
    h, w = value.shape
    dark, bright = np.percentile(value, (1, 95))
    if bright - dark < 16 or dark > bright / 2:  # uniform, or no dark surround
        return None
    threshold = dark + max(6, 0.12 * (bright - dark))
    parts, count = ndimage.label(_most(value > threshold))
    largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=2)[1:])
    disc = _filled(parts == largest)

    # The outline: midpoints between neighbouring pixels in and out of the disc. The frame itself is no outline.
    rows, columns = np.nonzero(disc[:, 1:] != disc[:, :-1])
    points = [np.stack([columns + 1, rows + 0.5], 1)]
    rows, columns = np.nonzero(disc[1:] != disc[:-1])
    points = np.concatenate([*points, np.stack([columns + 0.5, rows + 1], 1)]).astype(float)
    if count == 0 or len(points) < 60:
        return None
    circle = _circle_through_most(points, low=0.15 * min(h, w), high=max(h, w))
    if circle is None:
        return None
    x, y, r = circle
    on_rim = np.abs(np.hypot(*(points - (x, y)).T) - r) < 1.5
    angles = np.arctan2(*(points[on_rim] - (x, y)).T)
    seen = len(np.unique(np.floor(angles / np.pi * 36))) / 72  # share of the rim that is an outline

    r -= max(
        0, 0.5 - (threshold - dark) / (bright - dark)
    )  # a pixel passes the threshold before it is half covered
    iy, ix = np.arange(h)[:, None] + 0.5, np.arange(w) + 0.5
    distance2 = (ix - x) ** 2 + (iy - y) ** 2
    inside = distance2 < r**2
    top = _cut(disc & inside, y, r)
    bottom = h - _cut((disc & inside)[::-1], h - y, r)
    inside &= (iy > top) & (iy < bottom)
    surround = (distance2 > (1.04 * r) ** 2) | (iy < top - 2) | (iy > bottom + 2)
    if (
        on_rim.mean() < 0.35
        or seen < 0.18
        or surround.mean() < 0.005
        or (value[surround] > threshold).mean() > 0.2
        or disc[inside].mean() < 0.6
    ):
        return None
    sx, sy = width / w, height / h
    return Fov(
        *map(float, (x * sx, y * sy, r * (sx + sy) / 2, max(0, top) * sy, min(h, bottom) * sy))
    )


def _most(mask):
    """Whether most of the 3x3 pixels round each pixel are in the mask: the threshold of a median, and ten times as fast."""
    count = np.pad(mask, 1, mode="symmetric").astype(np.uint8)
    count = count[:-2] + count[1:-1] + count[2:]
    return count[:, :-2] + count[:, 1:-1] + count[:, 2:] > 4


def _filled(mask):
    """The mask with its holes: what is not connected to the frame (scipy's binary_fill_holes grows inwards, step by step)."""
    parts, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (parts != parts[0, 0])[1:-1, 1:-1]


def _circle_through_most(points, low, high, tries=400, tolerance=1.5):
    """Circle (x, y, r) with low < r < high within `tolerance` of most points (N, 2); None if no triple gives one."""
    rng = np.random.default_rng(0)
    a, b, c = points[rng.integers(len(points), size=(3, tries))]
    b, c = b - a, c - a
    area = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):  # collinear triples
        bb, cc = (b**2).sum(1), (c**2).sum(1)
        centre = (
            np.stack([c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb], 1) / area[:, None]
        )
    r = np.hypot(*centre.T)
    usable = (r > low) & (r < high)
    if not usable.any():
        return None
    centre, r = (centre + a)[usable], r[usable]
    # |d - r| < t is |d^2 - r^2 - t^2| < 2 r t, and d^2 = p^2 - 2 p c + c^2 is a product of matrices: (tries, 4) (4, N)
    circles = (
        np.c_[-2 * centre, np.ones(len(r)), (centre**2).sum(1) - r**2 - tolerance**2]
        / (2 * r * tolerance)[:, None]
    )
    away = circles @ np.c_[points, (points**2).sum(1), np.ones(len(points))].T  # (tries, N)
    near = np.abs(away, out=away) < 1
    near = near[near.sum(1).argmax()]
    for _ in range(3):  # least squares: x^2 + y^2 = 2 x a + 2 y b + (r^2 - a^2 - b^2)
        p = points[near]
        (x, y, k), *_ = np.linalg.lstsq(np.c_[2 * p, np.ones(len(p))], (p**2).sum(1), rcond=None)
        r = np.sqrt(max(k + x * x + y * y, 0))
        near = np.abs(np.hypot(*(points - (x, y)).T) - r) < tolerance
        if near.sum() < 20 or not low < r < high:
            return None
    return x, y, r


def _cut(disc, y, r):
    """First row of the field of view: where a disc mask starts flat, as after a cut, otherwise the circle's y - r."""
    rows = np.arange(len(disc)) + 0.5
    chord = 2 * np.sqrt(np.maximum(r**2 - (rows - y) ** 2, 0))
    filled = disc.sum(1)
    begun = np.argmax(filled > 0)
    full = np.argmax(filled > 0.8 * np.maximum(np.minimum(chord, disc.shape[1]), 3))
    slack = 1 + 0.02 * r
    flat = full - begun <= slack and full - (y - r) > slack
    return float(full) if flat else y - r


def crop_fov(image, size=None, required=True, frame=None):
    """Crop a photograph (H, W, 3) to the square round its field of view, black outside of the frame, at size x size.

    size None: the photograph's own pixels. frame: (width, height) of the photograph, where `image` is a smaller copy.

    Returns the crop, uint8 (size, size, 3); the Fov in fractions of the crop; the Box in pixels of the photograph.
    Without a field of view: InputError if `required`, otherwise the whole frame as a square and a Fov of NaN.
    """
    height, width = image.shape[:2]
    full_width, full_height = frame or (width, height)
    scale = round(
        full_width / width
    )  # a pixel of a JPEG's smaller copy is a block of 2, 4 or 8, the last one not always whole
    fov = find_fov(image)
    if fov is None:
        if required:
            raise InputError(
                "no field of view found (a bright disc on a dark surround); is it a fundus photograph?"
            )
        side = max(full_height, full_width)
        box, fov = (
            Box((full_width - side) // 2, (full_height - side) // 2, side),
            Fov(*[np.nan] * 5),
        )
    else:
        fov = Fov(
            fov.x * scale,
            fov.y * scale,
            fov.r * scale,
            fov.top * scale,
            min(fov.bottom * scale, full_height),
        )
        box = Box(round(fov.x - fov.r), round(fov.y - fov.r), max(1, round(2 * fov.r)))
        x, y, r, top, bottom = np.array(fov) / box.side
        x0, y0 = box.left / box.side, box.top / box.side
        fov = Fov(*map(float, (x - x0, y - y0, r, top - y0, bottom - y0)))
    left, top, right, bottom = (
        edge / scale for edge in (box.left, box.top, box.left + box.side, box.top + box.side)
    )
    x, y = int(np.floor(left)), int(np.floor(top))
    square = Image.fromarray(image).crop((x, y, int(np.ceil(right)), int(np.ceil(bottom))))
    size = size or box.side
    exact = (
        left - x,
        top - y,
        min(right - x, square.width),
        min(bottom - y, square.height),
    )  # between pixels of a smaller copy
    # Reduced by Hamming's window, twice as fast as Lanczos's and nearer to the mean over the area
    method = Image.HAMMING if exact[2] - exact[0] > size else Image.LANCZOS
    return np.array(square.resize((size, size), method, exact, reducing_gap=3)), fov, box


def put_back(image, patch, box, inside):
    """The photograph (H, W, 3) with a patch (side, side, 3), both uint8, in the Box it was cropped from, where `inside`
    (side, side), bool, says so."""
    result = Image.fromarray(image)
    result.paste(
        Image.fromarray(patch), (box.left, box.top), Image.fromarray(inside.astype(np.uint8) * 255)
    )
    return np.array(result)


def fov_mask(circle, size, out=None):
    """Masks (N, 1, size, size), bool, of fields of view `circle` (N, 5) in fractions x, y, r, top, bottom.

    NaN, an image without field of view, gives the whole frame. Pixels belong to it by their centres. out: where they go.
    """
    x, y, r, top, bottom = torch.as_tensor(circle).double()[..., None].unbind(1)  # (N, 1)
    row = (torch.arange(size, device=x.device) + 0.5) / size
    half = (
        r**2 - (row - y) ** 2
    ).sqrt()  # (N, size): of the chord in each row; NaN above and below the circle
    first = (
        ((x - half) * size - 0.5)
        .ceil()
        .where((half >= 0) & (row >= top) & (row <= bottom), size)
        .clamp(0, size)
    )
    end = ((x + half) * size + 0.5).floor().where(first < size, size).clamp(0, size)
    first = first.where(~x.isnan(), 0)
    # Each row is a run of columns, the difference of two triangles' rows: several times faster than size^2 distances.
    below = torch.ones(size + 1, size, dtype=torch.bool, device=x.device).tril(
        -1
    )  # below[k]: columns < k
    if out is None:
        out = torch.empty(len(x), 1, size, size, dtype=torch.bool, device=x.device)
    torch.index_select(below, 0, end.long().flatten(), out=out.view(-1, size))
    out.view(-1, size).bitwise_xor_(below.index_select(0, first.long().flatten()))
    return out


def to_tensor(image):
    """A photograph, uint8 (H, W, 3), as an image tensor (1, 3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def to_photograph(x):
    """The inverse of `to_tensor`, for one image (1, 3, H, W) in [0, 1] on any device."""
    return (x[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()

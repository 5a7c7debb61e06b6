"""A photograph: read it, crop it to the square around its field of view, and put a result back.

Pixel coordinates are continuous: pixel i covers [i, i + 1). Fractions are of the crop's width.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from rr.data.fov import NO_FOV, THUMB, Fov, find_fov
from rr.errors import InputError

MAX_PIXELS = 150_000_000  # more is refused before decoding; three times the largest fundus cameras
MAX_RATIO = 20  # of the sides: a square around a longer strip would take too much memory


class Box(NamedTuple):
    """The square of the photograph, that became the crop; it may exceed the frame."""

    left: int
    top: int
    side: int


def read_photograph(path):
    """Read any common image file as an upright RGB photograph, uint8 (H, W, 3).

    EXIF orientation is applied, 16-bit greys are scaled to 8 bits, transparency becomes black.
    Raises InputError if the file is missing, damaged, no image, or larger than MAX_PIXELS (which is
    known from its header).
    """
    return _read(path, path)[0]


def read_crop(file, size, name=None):
    """The field of view of a photograph at size x size: (crop, Fov, Box, width, height).

    file: a path, or an open file that errors call `name`. Without a field of view, the whole frame
    is cropped. Width, height and Box are in pixels of the upright photograph. A large JPEG is
    decoded at a half, a quarter or an eighth of its size (Pillow's `draft`), which is several times
    faster, if the crop has at least size x size pixels then.
    """
    image, width, height = _read(file, name or file, 1.2 * size)
    crop, fov, box = crop_fov(image, size, required=False, frame=(width, height))
    if image.shape[1] < width and box.side * image.shape[1] < size * width:  # a small field of view
        image, width, height = _read(file, name or file)
        crop, fov, box = crop_fov(image, size, required=False)
    return crop, fov, box, width, height


def _read(file, name, least=None):
    """(image, width, height). `least` allows a reduced copy with so many pixels at the shorter
    side.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images and damaged EXIF
            with Image.open(file) as photo:
                width, height = photo.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if least:
                    scale = max(least / min(width, height), THUMB / max(width, height))
                    photo.draft(None, (math.ceil(scale * width), math.ceil(scale * height)))
                photo.load()
                ImageOps.exif_transpose(photo, in_place=True)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        limit = MAX_PIXELS // 10**6
        raise InputError(f"{name}: more than {limit} megapixels; reduce it first") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.replace(f" {str(file)!r}", "").replace(f" {file!r}", "")
        raise InputError(
            f"{name}: not a readable image ({reason}); export it again as PNG or JPEG"
        ) from None
    if max(photo.size) > MAX_RATIO * min(photo.size):
        raise InputError(f"{name}: {width} x {height} pixels is a strip; give a photograph")
    if (photo.width > photo.height) != (width > height):
        width, height = height, width
    return _rgb(photo, name), width, height


def _rgb(photo, name):
    if photo.mode.startswith("I"):  # 16 bits
        grey = np.round(np.clip(np.asarray(photo), 0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if photo.mode == "F":
        raise InputError(
            f"{name}: its pixels are floating-point numbers of unknown range; export it as 8-bit "
            "PNG or JPEG"
        )
    if "A" in photo.mode or "a" in photo.mode or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "black"), photo)
    return np.array(photo.convert("RGB"))


def crop_fov(image, size=None, required=True, frame=None):
    """Crop a photograph (H, W, 3) to the square around its field of view: (crop, Fov, Box).

    The crop is uint8 (size, size, 3) and black outside of the frame. Fov is in fractions of the
    crop and Box in pixels of the photograph. size None keeps the pixels of the photograph. frame is
    (width, height) of the photograph if `image` is a reduced copy. Without a field of view,
    `required` raises InputError; otherwise the whole frame is cropped, and Fov is NaN.
    """
    width, height = frame or (image.shape[1], image.shape[0])
    scale = round(width / image.shape[1])  # a pixel of a reduced JPEG is a block of 1, 2, 4 or 8
    fov = find_fov(image)
    if fov is None:
        if required:
            raise InputError(
                "no field of view found (a bright disc on a dark surround); is this a fundus "
                "photograph?"
            )
        side = max(height, width)
        box, fov = Box((width - side) // 2, (height - side) // 2, side), NO_FOV
    else:
        x, y, r, top, bottom = np.array(fov) * scale
        box = Box(round(x - r), round(y - r), max(1, round(2 * r)))
        edges = x - box.left, y - box.top, r, top - box.top, min(bottom, height) - box.top
        fov = Fov(*(float(edge / box.side) for edge in edges))
    ends = box.left, box.top, box.left + box.side, box.top + box.side
    left, top, right, bottom = (edge / scale for edge in ends)
    x, y = math.floor(left), math.floor(top)
    square = Image.fromarray(image).crop((x, y, math.ceil(right), math.ceil(bottom)))
    exact = left - x, top - y, min(right - x, square.width), min(bottom - y, square.height)
    size = size or box.side
    method = Image.HAMMING if exact[2] - exact[0] > size else Image.LANCZOS
    return np.array(square.resize((size, size), method, exact, reducing_gap=3)), fov, box


def put_back(image, patch, box, inside):
    """The photograph (H, W, 3) with a patch (side, side, 3) in its Box, where `inside` is True."""
    result, mask = Image.fromarray(image), Image.fromarray(inside.astype(np.uint8) * 255)
    result.paste(Image.fromarray(patch), (box.left, box.top), mask)
    return np.array(result)


def to_tensor(image):
    """A photograph, uint8 (H, W, 3), as an image tensor (1, 3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def to_photograph(x):
    """The inverse of `to_tensor`, for one image (1, 3, H, W) in [0, 1] on any device."""
    return (x[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()

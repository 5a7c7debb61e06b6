"""rr.photo: photographs read or refused, fields of view of known geometry."""

import io
import struct
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from drawn import disc, line, saved
from PIL import Image

from rr.data import photo
from rr.data.fov import fov_mask
from rr.errors import InputError
from rr.files import ROOT

PHOTOS = sorted((ROOT.parent / "shared" / "photos").glob("*.jpg"))


# ---- field of view


@pytest.mark.parametrize(
    "height, width, x, y, r, top, bottom",
    [
        (300, 400, 200, 150, 130, None, None),
        (300, 400, 190, 155, 140, 50, 260),  # cut flat inside of the frame
        (600, 900, 450, 300, 400, None, None),  # cut by the frame, as HRF
        (200, 200, 100, 100, 120, None, None),  # only the corners are dark
        (64, 64, 32, 32, 30, None, None),
        (900, 300, 150, 400, 140, None, None),
        (300, 1200, 300, 150, 100, None, None),
        (300, 400, 380, 150, 130, None, None),  # cut at the right
        (1000, 1000, 500, 480, 300, 350, 700),
    ],
)
def test_fov_of_known_circles(height, width, x, y, r, top, bottom):
    image = disc(
        height,
        width,
        x,
        y,
        r,
        -np.inf if top is None else top,
        np.inf if bottom is None else bottom,
    )
    fov = photo.find_fov(image)
    assert np.allclose(fov[:3], (x, y, r), rtol=0, atol=0.01 * r)
    lines = (
        max(0, y - r) if top is None else top,
        min(height, y + r) if bottom is None else bottom,
    )
    assert np.allclose(fov[3:], lines, rtol=0, atol=0.02 * r)


def test_fov_ignores_a_notch():
    assert np.allclose(
        photo.find_fov(disc(300, 400, 200, 150, 120, notch=True))[:3], (200, 150, 120), atol=1.2
    )


def test_fov_of_a_dim_photograph():
    dim = (disc(300, 400, 200, 150, 120) * 0.25).astype(np.uint8)
    assert np.allclose(photo.find_fov(dim)[:3], (200, 150, 120), atol=1.2)


@pytest.mark.skipif(not PHOTOS, reason="no photographs beside the project")
def test_fov_of_real_photographs():
    for path in PHOTOS[::5]:
        image = photo.read_photograph(path)
        fov = np.array(photo.find_fov(image)) / image.shape[1]
        assert np.allclose(fov, (0.503, 0.3325, 0.465, 0, 0.667), atol=0.006), path


def test_fov_of_a_square_photograph():
    x, y, r, top, bottom = np.array(photo.find_fov(skimage.data.retina())) / 1411
    assert (
        abs(x - 0.5) < 0.01
        and abs(y - 0.5) < 0.01
        and abs(r - 0.494) < 0.005
        and top < 0.01
        and bottom > 0.99
    )


def rectangle():
    image = np.zeros((300, 400, 3), np.uint8)
    image[50:250, 100:300] = 200
    return image


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((300, 400, 3), np.uint8),
        np.full((300, 400, 3), 255, np.uint8),
        np.full((1, 5000, 3), 90, np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        np.repeat(skimage.data.page()[..., None], 3, axis=2),
        skimage.data.astronaut(),
        skimage.data.coffee(),
        rectangle(),
    ],
    ids=[
        "black",
        "white",
        "strip",
        "noise",
        "small-noise",
        "text",
        "astronaut",
        "coffee",
        "rectangle",
    ],
)
def test_no_fov(image):
    assert photo.find_fov(image) is None
    with pytest.raises(InputError, match="no field of view found"):
        photo.crop_fov(image, 32)
    crop, fov, box = photo.crop_fov(image, 32, required=False)
    assert crop.shape == (32, 32, 3) and np.isnan(fov).all() and box.side == max(image.shape[:2])


def test_crop_box_and_fractions():
    image = disc(600, 900, 400, 290, 350)
    crop, fov, box = photo.crop_fov(image, 128)
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8
    assert np.allclose(box, (50, -60, 700), atol=4)
    assert np.allclose(fov, (0.5, 0.5, 0.5, 60 / 700, 660 / 700), atol=0.006)
    assert np.array(fov)[:2] * box.side + (box.left, box.top) == pytest.approx((400, 290), abs=2)
    mask = fov_mask(torch.tensor([fov]), 128)[0, 0].numpy()
    bright = crop.max(axis=2) > 60
    assert (mask & bright).sum() / (mask | bright).sum() > 0.97
    assert not crop[:7].any()  # above the photograph: black


def test_fov_mask_without_fov_is_the_whole_frame():
    circle = torch.tensor([[0.5, 0.5, 0.4, 0.2, 1.0], [float("nan")] * 5])
    mask = fov_mask(circle, 200)
    assert mask.shape == (2, 1, 200, 200) and mask.dtype == torch.bool and mask[1].all()
    angle = np.arccos(0.3 / 0.4)  # the disc less the cap above y = 0.2
    area = 0.16 * (np.pi - angle + np.sin(angle) * np.cos(angle))
    assert mask[0].float().mean().item() == pytest.approx(area, abs=2e-3)


# ---- reading


def test_modes_become_rgb(tmp_path):
    rgb = Image.fromarray(disc(40, 50, 25, 20, 18))
    grey16 = Image.fromarray(np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50))
    transparent = rgb.copy()
    transparent.putalpha(Image.new("L", rgb.size, 0))
    for name, image in {
        "rgb": rgb,
        "l": rgb.convert("L"),
        "p": rgb.quantize(256),
        "rgba": rgb.convert("RGBA"),
    }.items():
        read = photo.read_photograph(saved(tmp_path, f"{name}.png", image))
        assert read.shape == (40, 50, 3) and read.dtype == np.uint8
        assert abs(read.astype(int) - np.array(image.convert("RGB"))).max() <= 1, name
    wide = photo.read_photograph(saved(tmp_path, "grey16.png", grey16))
    assert wide.min() == 0 and wide.max() == 255 and abs(wide.mean() - 127.5) < 1
    assert not photo.read_photograph(saved(tmp_path, "clear.png", transparent)).any()
    cmyk = photo.read_photograph(saved(tmp_path, "cmyk.jpg", rgb.convert("CMYK"), quality=95))
    assert abs(cmyk.astype(int) - np.array(rgb)).mean() < 5


def test_exif_orientation(tmp_path):
    image = Image.fromarray(disc(40, 60, 15, 20, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    read = photo.read_photograph(saved(tmp_path, "turned.png", image, exif=exif))
    assert np.array_equal(read, np.rot90(np.array(image), -1))


def test_unreadable_files(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(disc(200, 200, 100, 100, 90)).save(buffer, "jpeg")

    def png(side):  # a tiny file that claims side x side pixels
        chunks = (
            b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0),
            b"IDAT" + zlib.compress(bytes(99)),
        )
        parts = (
            struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    for name, content, reason in [
        ("truncated.jpg", buffer.getvalue()[:-1500], "not a readable image"),
        ("empty.jpg", b"", "not a readable image"),
        ("text.png", b"no image at all", "not a readable image"),
        ("bomb.png", png(60000), "megapixels"),
        ("large.png", png(13000), "megapixels"),
        ("short.png", png(100), "not a readable image"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason) as error:
            photo.read_photograph(tmp_path / name)
        assert line(error).count(name) == 1
    with pytest.raises(InputError, match="no such file"):
        photo.read_photograph(tmp_path / "absent.jpg")


# ---- prepared


def framed(height, width, x, y, r):
    """A disc with detail in it, in a larger frame."""
    image = disc(height, width, x, y, r).astype(float)
    iy, ix = np.mgrid[:height, :width]
    return (
        (image * (0.8 + 0.2 * np.sin(ix / 19) * np.sin(iy / 23))[..., None])
        .clip(0, 255)
        .astype(np.uint8)
    )


def area(path, box, size):
    """Pillow's mean over the area of each pixel, of the whole photograph decoded."""
    square = Image.fromarray(photo.read_photograph(path)).crop(
        (box.left, box.top, box.left + box.side, box.top + box.side)
    )
    return np.asarray(square.resize((size, size), Image.BOX), float)


@pytest.mark.parametrize(
    "height, width, x, y, r, reduced",
    [
        (1200, 1600, 800, 600, 590, 4),  # the crop has 1180 px, and a quarter of it is 295
        (1200, 1600, 800, 600, 200, 1),  # a small field of view: all pixels are needed
        (800, 1201, 601, 400, 595, 2),  # cut by the frame, of odd width
    ],
)
def test_a_jpeg_is_decoded_no_finer_than_needed(
    tmp_path, monkeypatch, height, width, x, y, r, reduced
):
    path = saved(tmp_path, "a.jpg", Image.fromarray(framed(height, width, x, y, r)), quality=92)
    seen, find_fov = [], photo.find_fov
    monkeypatch.setattr(
        photo, "find_fov", lambda image: seen.append(image.shape) or find_fov(image)
    )
    crop, fov, box, *sides = photo.read_crop(path, 224)
    assert seen[-1] == (-(-height // reduced), -(-width // reduced), 3) and sides == [width, height]
    assert np.abs(crop - area(path, box, 224)).mean() <= 2
    whole, fov_whole, box_whole = photo.crop_fov(photo.read_photograph(path), 224)
    assert np.allclose(box, box_whole, atol=0.01 * r) and np.allclose(fov, fov_whole, atol=0.01)
    assert np.abs(crop.astype(float) - whole).mean() <= 3


def test_prepared_upright_and_in_colour(tmp_path):
    image = Image.fromarray(framed(1000, 1500, 600, 500, 480))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, "turned.jpg", image, quality=95, exif=exif)
    crop, fov, box, *sides = photo.read_crop(path, 224)
    assert sides == [1000, 1500] and np.abs(crop - area(path, box, 224)).mean() <= 2
    assert np.allclose(box, (1000 - 500 - 480, 600 - 480, 960), atol=8)
    for mode, tolerance in (("CMYK", 2), ("L", 2)):
        path = saved(tmp_path, f"{mode}.jpg", image.convert(mode), quality=95)
        crop, fov, box, *sides = photo.read_crop(path, 224)
        assert sides == [1500, 1000] and np.abs(crop - area(path, box, 224)).mean() <= tolerance
    path = saved(tmp_path, "a.png", image)
    crop, fov, box, *sides = photo.read_crop(path, 224)
    oracle, fov_oracle, box_oracle = photo.crop_fov(
        np.array(image), 224
    )  # what is no JPEG is read whole
    assert (
        np.array_equal(crop, oracle)
        and (fov, box) == (fov_oracle, box_oracle)
        and sides == [1500, 1000]
    )


def test_prepared_without_a_field_of_view(tmp_path):
    path = saved(tmp_path, "coffee.jpg", Image.fromarray(skimage.data.coffee()))
    crop, fov, box, *sides = photo.read_crop(path, 64)
    assert (
        np.isnan(fov).all() and box == (0, -100, 600) and sides == [600, 400] and not crop[:7].any()
    )
    assert np.abs(crop - area(path, box, 64)).mean() <= 2


@pytest.mark.skipif(not PHOTOS, reason="no photographs beside the project")
def test_real_photographs_prepared():
    for path in PHOTOS[::15]:
        crop, fov, box, *_ = photo.read_crop(path, 256)
        assert np.abs(crop - area(path, box, 256)).mean() <= 2


def test_a_strip_is_no_photograph(tmp_path):
    Image.new("RGB", (20000, 2)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match="strip.png: 20000 x 2 pixels is a strip"):
        photo.read_crop(tmp_path / "strip.png", 64)

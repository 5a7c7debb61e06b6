"""Packed batches (row T2), photographs (T3), the degradation (T6) and embedded eyes (T9)."""

import math
from functools import partial

import cofe_reference
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.data import retina
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.functional import to_tensor as pil_to_tensor

from rr.data import degrade, packing, sources
from rr.data.dataset import batches
from rr.data.photo import read_crop, to_tensor
from rr.data.synthetic import fundus
from rr.paper import LABELS

# ---------- packed batches


class Jpegs(Dataset):
    """JPEG files as images in [0, 1], read one by one with PIL."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with Image.open(self.files[i]) as photo:
            return pil_to_tensor(photo.convert("RGB"))


class JpegBatches(Jpegs):
    """The same files as uint8 tensors. torchvision reads all files of a batch in one call."""

    def __getitems__(self, rows):
        return decode_jpeg([read_file(str(self.files[i])) for i in rows], ImageReadMode.RGB)


def decoded(files, i, size):
    return np.asarray(Image.open(files[i]).convert("RGB")), dict.fromkeys(LABELS, 1)


@pytest.fixture(scope="module")
def readers(tmp_path_factory, n=256, batch=64, size=224):
    """{name: function that yields float batches (64, 3, 224, 224) of the same 256 images}."""
    folder = tmp_path_factory.mktemp("packed")
    files = [folder / f"{i:04d}.jpg" for i in range(n)]
    for i, file in enumerate(files):
        Image.fromarray(fundus(0, i % 64, size).image).save(file, quality=95)
    table = pd.DataFrame({"name": [file.stem for file in files]})
    source = sources.Source({"kind": "jpeg"}, table, partial(decoded, files))
    packed = packing.pack(source, size, folder / "packed")
    shares = list(np.arange(n).reshape(-1, batch))
    np.save(folder / "array.npy", packed.pixels(range(n)).numpy())
    mapped = np.load(folder / "array.npy", mmap_mode="r")

    def stacked(images):
        return torch.stack(images).float().div_(255)

    return {
        "rr": lambda: (part.x for part in batches(packed, shares)),
        "DataLoader, PIL": partial(iter, DataLoader(Jpegs(files), batch)),
        "DataLoader, torchvision": partial(
            iter, DataLoader(JpegBatches(files), batch, collate_fn=stacked)
        ),
        "numpy memory map": lambda: (
            torch.from_numpy(mapped[share]).float().div_(255) for share in shares
        ),
    }


@pytest.mark.parametrize(
    "who", ["rr", "DataLoader, PIL", "DataLoader, torchvision", "numpy memory map"]
)
def test_batches(who, timed, readers):
    def read():
        for x in readers[who]():
            last = x
        return last

    last = timed("T2: float batches of 64 images of 224 px", read, 256, "images")
    expected = list(readers["DataLoader, PIL"]())[-1]
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-6)


# ---------- photographs


def framed(eye, width, height):
    """An eye (S, S, 3), enlarged, in the middle of a black frame (height, width, 3) with noise."""
    eye = Image.fromarray(eye).resize((height, height), Image.BICUBIC)
    frame = np.zeros((height, width, 3), np.float32)
    left = (width - height) // 2
    frame[:, left : left + height] = eye
    frame += np.random.default_rng(0).normal(0, 2, frame.shape)
    return frame.clip(0, 255).astype(np.uint8)


def with_pil(file, box, size, method=None, draft=False):
    """The square `box` (left, top, side) of a JPEG, resized; draft: decoded at a reduced size."""
    left, top, side = box
    with Image.open(file) as opened:
        width = opened.width
        if draft:
            opened.draft("RGB", [math.ceil(length * size / side) for length in opened.size])
        scale = opened.width / width
        corners = [round(edge * scale) for edge in (left, top, left + side, top + side)]
        return np.asarray(opened.convert("RGB").crop(corners).resize((size, size), method))


FRAMES = {
    "1024 x 768": lambda: framed(fundus(0, 0, 512).image, 1024, 768),
    "2048 x 1536": lambda: framed(fundus(0, 1, 512).image, 2048, 1536),
    "3000 x 2250": lambda: framed(fundus(0, 2, 512).image, 3000, 2250),
    "1411 x 1411 (retina)": retina,
}


@pytest.mark.parametrize("who", ["rr, looks for the eye", "PIL, resize", "PIL, draft and BOX"])
@pytest.mark.parametrize("frame", FRAMES)
def test_photograph(who, frame, timed, tmp_path, size=224):
    """The peers are told where the eye is; `rr` finds the field of view itself."""
    file = tmp_path / "photo.jpg"
    Image.fromarray(FRAMES[frame]()).save(file, quality=92)
    crop, _, box, *_ = read_crop(file, size)
    peer = partial(with_pil, file, box, size)
    calls = {
        "rr, looks for the eye": lambda: read_crop(file, size)[0],
        "PIL, resize": peer,
        "PIL, draft and BOX": partial(peer, Image.BOX, draft=True),
    }
    timed(f"T3: JPEG of {frame} px to 224 px", calls[who], 1, "photographs")
    assert np.abs(crop.astype(float) - peer(Image.BOX)).mean() < 2  # of 255


# ---------- degradation, embedded eyes


@pytest.mark.parametrize("who", ["rr", "full-resolution kernels, scipy"])
@pytest.mark.parametrize("size", [224, 512])
def test_degradation(who, size, timed, n=4):
    eyes = [fundus(0, i, size) for i in range(n)]
    x = torch.cat([to_tensor(eye.image) for eye in eyes])
    fov = torch.stack([torch.from_numpy(eye.fov) for eye in eyes])[:, None]
    params = degrade.sample(n, torch.Generator().manual_seed(0), severity=1.0)
    apply = degrade.apply if who == "rr" else cofe_reference.apply
    y = timed(f"T6: degradation, {size} px", partial(apply, x, params, fov), n, "images")
    torch.testing.assert_close(y, degrade.apply(x, params, fov), rtol=0, atol=0.01)


def test_embedded(timed, n=16):
    source = sources.embedded(n)

    def draw():
        return [source.image(i, 224)[0] for i in range(n)]

    images = timed("T9: embedded images of 224 px", draw, n, "images")
    assert np.array_equal(images[3], source.image(3, 224)[0])

"""A packed data set: images of one size in one memory-mapped file, and a table about them.

`Packed` opens the folder that rr.data.packing wrote. `batches` reads the batches of a training.
"""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rr.data.fov import Fov, fov_mask
from rr.data.splits import SPLITS
from rr.errors import InputError, choose
from rr.files import read_json, sha256
from rr.paper import LABELS

FORMAT = 4  # of the folder
UNIT = 1 / 255  # of a pixel


class Packed:
    """A packed data set.

    table     one row per image: name, labels, split, and what else is known
    labels    (N, 4) float32: 0, 1, or NaN if unknown
    size      side of the images, px
    manifest  the contents of manifest.json
    originals the same data set with the images before their degradation, see `clean_rows`
    hash      identity of the data set: from its recipe and the names, labels and splits of its
              images. The pixels are not part of it, because those of drawn eyes may differ by
              rounding between kinds of CPU.

    Opening reads the table but no image. verify: also compare the pixels with their sha256 in the
    manifest. Raises InputError if the folder is missing, incomplete or damaged, or if the images
    do not have the side `size`.
    """

    def __init__(self, path, size=None, verify=False, of_originals=False):
        self.path = path = Path(path)
        again = "run 01_data or `rr data prepare`"
        if not (path / "manifest.json").exists():
            raise InputError(f"{path}: no complete packed data set (no manifest.json); {again}")
        self.manifest = manifest = read_json(path / "manifest.json")
        try:
            if manifest["recipe"]["format"] != FORMAT:
                raise InputError(f"{path}: packed by another version; {again}")
            self.size, self.hash = manifest["recipe"]["size"], manifest["hash"]
            self._images = np.load(path / manifest["images"], mmap_mode="r")
            changed = [name for name in ("table.csv", *[manifest["images"]] * verify)
                       if sha256(path / name) != manifest["sha256"][name]]  # fmt: skip
        except InputError:
            raise
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error!r}); delete the folder, {again}") from None
        if changed:
            raise InputError(f"{path}: {changed[0]} was changed; delete the folder, {again}")
        if size not in (None, self.size):
            message = f"images of {self.size} px, not of {size} px"
            raise InputError(f"{path}: {message}; pack them again with 01_data and this preset")
        self.table = pd.read_csv(path / "table.csv", dtype={"name": str})
        self.labels = self._columns(LABELS)
        self._fovs = self._columns([f"fov_{key}" for key in Fov._fields])
        self._discs = self._columns(["disc_x", "disc_y", "disc_r"])
        self._position = self.table["position"].to_numpy()  # in the file of images
        self._of_originals = of_originals and manifest["originals"]
        if self._of_originals:
            self._position = self._position + len(self._images) // 2
        self._on_gpu = {}  # device: all images, or None if they do not fit

    def __len__(self):
        return len(self.table)

    def __reduce__(self):
        # another process opens the files itself
        return Packed, (self.path, None, False, self._of_originals)

    @cached_property
    def originals(self):
        """This data set with the images before their degradation, where they are known."""
        return Packed(self.path, of_originals=True)

    def rows(self, split=None, readable=None, **labels):
        """Indices, (M,) int64, of the images of a split with the given labels, for example
        rows("train", disc=0, fundus=1).

        readable: True for images with four labels 1, False for fundus images with a label 0.
        Images with unknown labels are in neither.
        """
        if split is not None:
            choose("split", split, SPLITS)
        for label in labels:
            choose("label", label, LABELS)
        table, four = self.table, self.table[list(LABELS)]
        keep = table["split"].isin(SPLITS if split is None else [split])
        if readable is True:
            keep &= (four == 1).all(axis=1)
        elif readable is False:
            keep &= (four["fundus"] == 1) & (four == 0).any(axis=1)
        for label, value in labels.items():
            keep &= four[label] == value
        return np.flatnonzero(keep)

    def labelled(self, split):
        """Rows of a split whose four labels are known. Raises InputError if there are none."""
        keep = self.table["split"].eq(split) & self.table[list(LABELS)].notna().all(axis=1)
        if not keep.any():
            message = f"no labels in split {split}; give 01_data a CSV with labels"
            raise InputError(f"{self.path}: {message} (parameter labels)")
        return np.flatnonzero(keep)

    def clean_rows(self, split):
        """Rows of a split that may serve as clean images: readable and, if that is known, not
        degraded.

        A drawn eye may be degraded and readable all the same. Every drawn eye is clean among the
        `originals`. Of photographs we know only that they are readable. Raises InputError if there
        are none.
        """
        severity, readable = self.table["severity"].to_numpy(), self.rows(split, readable=True)
        if self._of_originals:
            eyes = self.rows(split, fundus=1)
            rows = np.union1d(readable, eyes[~np.isnan(severity[eyes])])
        else:
            rows = readable[~(severity[readable] > 0)]
        if len(rows) == 0:
            message = f"no clean readable image in split {split}; use more images, with labels"
            raise InputError(f"{self.path}: {message}")
        return rows

    def mean(self, rows, size=256):
        """The mean image (1, 3, S, S) of `rows`, read `size` images at a time."""
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return sum(self.batch(part).sum(0, keepdim=True) for part in parts) / len(rows)

    def pixels(self, rows):
        """Images of `rows` as uint8 (B, 3, S, S)."""
        return torch.from_numpy(self._images[self._position[rows]])

    def batch(self, rows, device="cpu"):
        """Images of `rows` as float32 (B, 3, S, S) in [0, 1] on `device`."""
        return self.pixels(rows).to(device).float().mul_(UNIT)

    def fov(self, rows, device="cpu"):
        """Field-of-view masks of `rows`, bool (B, 1, S, S); the whole frame if it is unknown."""
        return fov_mask(self._fovs[rows].to(device, non_blocking=True), self.size)

    def disc(self, rows):
        """Optic discs of `rows` as (B, 3): x, y, r in fractions of the width, NaN if unknown."""
        return self._discs[rows]

    def on_gpu(self, device):
        """All images, uint8 (N, 3, S, S), on a GPU; None if they need more than half of the memory
        that was free at the first call."""
        if device not in self._on_gpu:
            fits = self._images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
            self._on_gpu[device] = self.pixels(slice(None)).to(device) if fits else None
        return self._on_gpu[device]

    def _columns(self, columns):
        return torch.tensor(self.table[list(columns)].to_numpy(np.float32))


class Batch(NamedTuple):
    """x (B, 3, H, W) in [0, 1], labels (B, 4) of 0/1 (NaN: unknown), fov (B, 1, H, W) bool."""

    x: Tensor
    labels: Tensor
    fov: Tensor


def batches(data, shares, device="cpu"):
    """Yield the Batch, on `device`, of each share, an array of rows of the Packed `data`.

    On a GPU, all images stay there as uint8 if they fit. Otherwise each share is read from the file
    and sent as uint8, from pinned memory, while the GPU still computes.
    """
    device = torch.device(device)
    on_gpu = data.on_gpu(device) if device.type == "cuda" else None
    for rows in shares:
        if on_gpu is not None:
            pixels = on_gpu[torch.as_tensor(rows, device=device)]
        elif device.type == "cuda":
            pixels = data.pixels(rows).pin_memory().to(device, non_blocking=True)
        else:
            pixels = data.pixels(rows)
        labels = data.labels[rows].to(device, non_blocking=True)
        yield Batch(pixels.float().mul_(UNIT), labels, data.fov(rows, device))

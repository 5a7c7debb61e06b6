"""Packed data sets, as `rr.packing` makes them: a folder of memory-mapped shards.

Defines `Packed` and `batches`, through which training reads it. Made for a million images: opening reads a table, no image.
"""

import hashlib
import io
import resource
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rr.data.photo import Fov, fov_mask
from rr.errors import InputError, choose
from rr.files import read_json, sha256
from rr.paper import LABELS

SPLITS = {"train": 0.64, "val": 0.16, "test": 0.20}  # paper 2.2
FORMAT = 2  # of the packed folder
UNIT = (
    1 / 255
)  # of a pixel; multiplied: a GPU divides by a number in just this way, and a CPU is faster


def header(file, n, size):
    """Write the beginning of a shard (.npy) of n images: uint8 (n, 3, size, size)."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (n, 3, size, size)}
    )


class Packed:
    """A packed folder: `table`, `manifest`, `labels` (N, 4), `size`, `hash`, and the images of rows (`pixels`, `batch`).

    Opening reads no image: it checks the sizes of all files and the table's hash, with `verify` also those of all shards.
    Raises InputError if the folder is missing, incomplete or damaged, or its images are not of the side `size` that is
    asked for.
    """

    def __init__(self, path, size=None, verify=False):
        self.path = path = Path(path)
        if not (path / "manifest.json").exists():
            raise InputError(
                f"{path}: no complete packed data set here (no manifest.json); pack it again"
            )
        self.manifest = read_json(path / "manifest.json")
        again = "; delete the folder and pack it again"
        try:
            if self.manifest["recipe"]["format"] != FORMAT:
                raise InputError(
                    f"{path}: packed by another version; run 01_data or `rr data prepare` again"
                )
            self.size = self.manifest["recipe"]["size"]
            shards = self.manifest["shards"]
            self._files = [path / f"{shard['name']}.npy" for shard in shards]
            self._ends = np.cumsum([shard["count"] for shard in shards])
            sums = [*(shard["sha256"] for shard in shards), self.manifest["table_sha256"]]
            files = zip(self._files, shards, strict=True)
            broken = [file.name for file, shard in files if not self._intact(file, shard, verify)]
            if sha256(path / "table.csv") != sums[-1] or self._ends[-1] != self.manifest["count"]:
                broken.append("table.csv")
        except (OSError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}: damaged packed data set ({error!r}){again}") from None
        if broken:
            raise InputError(f"{path}: {broken[0]} is not what the manifest says{again}")
        if size not in (None, self.size):
            raise InputError(
                f"{path}: images of {self.size} px, not of {size}; make them again with 01_data and this preset"
            )
        self.resident = {}  # device: all images, uint8 (N, 3, S, S), or None if they do not fit; see `batches`
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[
            0
        ]  # a memory map keeps its file open
        self._shard = lru_cache(open_files // 2 if open_files > 0 else None)(self._shard)
        self.table = pd.read_csv(path / "table.csv", dtype={"name": str})
        self.labels = self._columns(LABELS)
        self.circles = self._columns([f"fov_{key}" for key in Fov._fields])
        self.discs = self._columns(["disc_x", "disc_y", "disc_r"])
        self.hash = hashlib.sha256("".join(sums).encode()).hexdigest()[:12]

    def __len__(self):
        return len(self.table)

    def __reduce__(self):
        return Packed, (self.path,)  # another process opens it by itself

    def rows(self, split=None, readable=None, **labels):
        """Indices, (M,) int64, of the images of a split whose labels are as asked: rows("train", disc=0, fundus=1).

        readable: True for all four labels 1; False for a fundus with some label 0. Unknown labels fit neither.
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
        known = self.table["split"].eq(split) & self.table[list(LABELS)].notna().all(axis=1)
        if not known.any():
            raise InputError(
                f"{self.path}: no labels in split {split}; give 01_data a CSV with labels (parameter labels)"
            )
        return np.flatnonzero(known)

    def references(self, split):
        """Rows of a split that may serve as clean images: readable, and nothing was done to them as far as is known.

        Embedded images know how they were degraded: one may be readable in spite of a dark hole. Photographs do not,
        there readable must do. Raises InputError if there are none.
        """
        rows = self.rows(split, readable=True)
        if "severity" in self.table:
            rows = rows[self.table["severity"].to_numpy()[rows] == 0]
        if len(rows) == 0:
            raise InputError(
                f"{self.path}: no clean readable image in split {split}; use more images, with labels"
            )
        return rows

    def mean(self, rows, size=256):
        """The mean image (1, 3, S, S) of `rows`, read `size` images at a time."""
        parts = [
            self.batch(rows[i : i + size]).sum(0, keepdim=True) for i in range(0, len(rows), size)
        ]
        return sum(parts) / len(rows)

    def pixels(self, rows, out=None):
        """Images of `rows` as uint8 (B, 3, S, S), in the first B of `out` where given."""
        out = (
            torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
            if out is None
            else out[: len(rows)]
        )
        for image, pixels in zip(out, self._views(rows)):
            image.copy_(pixels)
        return out

    def batch(self, rows, device="cpu", out=None):
        """Images of `rows` as float32 (B, 3, S, S) in [0, 1] on `device`; on the CPU in the first B of `out` where given."""
        if torch.device(device).type != "cpu":
            return self.pixels(rows).to(device) * UNIT
        out = torch.empty(len(rows), 3, self.size, self.size) if out is None else out[: len(rows)]
        for image, pixels in zip(out, self._views(rows)):  # gathered and converted in one pass
            image.copy_(pixels)
        return out.mul_(UNIT)

    def fov(self, rows, device="cpu", out=None):
        """Field-of-view masks of `rows`, bool (B, 1, S, S); the whole frame where there is none. out: as in `batch`."""
        masks = fov_mask(self.circles[rows].to(device, non_blocking=True), self.size)
        return masks if out is None else out[: len(rows)].copy_(masks)

    def disc(self, rows):
        """Optic discs of `rows` as (B, 3): x, y, r in fractions of the width, NaN where unknown."""
        return self.discs[rows]

    def _views(self, rows):
        """Yield the image of each row, uint8 (3, S, S), where it lies in its file: to read from, not to write to."""
        rows = np.asarray(rows)
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard, row in zip(shards.tolist(), (rows - self._ends[shards]).tolist()):
            yield self._shard(shard)[row]  # counted from the shard's end: negative

    def _shard(self, k):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that one must not write to it
            return torch.from_numpy(np.load(self._files[k], mmap_mode="r"))

    def _intact(self, file, shard, verify):
        start = io.BytesIO()
        header(start, shard["count"], self.size)
        size = len(start.getvalue()) + shard["count"] * 3 * self.size**2
        return file.stat().st_size == size and not (verify and sha256(file) != shard["sha256"])

    def _columns(self, columns):
        return torch.tensor(self.table[list(columns)].to_numpy(np.float32))


class Batch(NamedTuple):
    """x (B, 3, H, W) in [0, 1], labels (B, 4) of 0/1 (NaN: unknown), fov (B, 1, H, W) bool."""

    x: Tensor
    labels: Tensor
    fov: Tensor


def batches(data, shares, device="cpu"):
    """Yield the Batch, on `device`, of each share (array of rows of the Packed `data`) of an iterable `shares`.

    On a CPU, x and fov lie in buffers that are used again: a batch is valid until the next one is asked for. On a GPU, pixels are
    uint8 until they are there. At the first call for a GPU it is decided once for this `data`: if all images fit into half
    of its free memory they are copied there and stay; otherwise a thread reads one share ahead and copies it at the side.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _buffered(data, shares)
    if device not in data.resident:
        fits = len(data) * 3 * data.size**2 < torch.cuda.mem_get_info(device)[0] / 2
        data.resident[device] = _resident(data, device) if fits else None
    pixels = data.resident[device]
    return _streamed(data, shares, device) if pixels is None else _kept(data, shares, pixels)


def _buffered(data, shares):
    x = fov = torch.empty(
        0
    )  # numpy's memory comes in huge pages (on Linux), torch's in small ones, each of which costs
    for rows in shares:
        if len(x) < len(rows):
            shapes = ((len(rows), n, data.size, data.size) for n in (3, 1))
            x, fov = (
                torch.from_numpy(np.empty(shape, dtype))
                for shape, dtype in zip(shapes, (np.float32, bool))
            )
        yield Batch(data.batch(rows, out=x), data.labels[rows], data.fov(rows, out=fov))


def _resident(data, device, step=1024):
    """All images, uint8 (N, 3, S, S), on `device`."""
    pixels = torch.empty(len(data), 3, data.size, data.size, dtype=torch.uint8, device=device)
    for start in range(0, len(data), step):
        pixels[start : start + step] = data.pixels(range(start, min(start + step, len(data)))).to(
            device
        )
    return pixels


def _kept(data, shares, pixels):
    device = pixels.device
    for rows in shares:
        x = pixels.index_select(0, torch.as_tensor(rows).to(device, non_blocking=True)) * UNIT
        yield Batch(x, data.labels[rows].to(device, non_blocking=True), data.fov(rows, device))


def _streamed(data, shares, device):
    """As `batches`: while one batch is worked on, a thread gathers the next into one of two buffers and sends it off.

    An exception of the thread is raised here; closing the generator ends the thread.
    """
    on_gpu = device.type == "cuda"
    buffers, sent = [torch.empty(0, dtype=torch.uint8)] * 2, [None] * 2
    side = torch.cuda.Stream(device) if on_gpu else None

    def read(k, rows):
        if sent[k] is not None:
            sent[k].synchronize()  # what left this buffer two shares ago has arrived
        if len(buffers[k]) < len(rows):
            buffers[k] = torch.empty(
                len(rows), 3, data.size, data.size, dtype=torch.uint8, pin_memory=on_gpu
            )
        pixels = data.pixels(rows, buffers[k])
        if on_gpu:
            with torch.cuda.stream(side):
                pixels = pixels.to(device, non_blocking=True)
                sent[k] = side.record_event()
        return rows, pixels, sent[k]

    def batch(rows, pixels, arrived):
        if on_gpu:
            here = torch.cuda.current_stream(device)
            here.wait_event(arrived)
            pixels.record_stream(
                here
            )  # its memory is not given away before this stream has read it
        return Batch(
            pixels * UNIT, data.labels[rows].to(device, non_blocking=True), data.fov(rows, device)
        )

    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for k, rows in enumerate(shares):
            following = reader.submit(read, k % 2, rows)
            if ahead is not None:
                yield batch(*ahead.result())
            ahead = following
        if ahead is not None:
            yield batch(*ahead.result())

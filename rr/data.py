"""Packed data sets: one memory-mapped folder, split 64/16/20 with near-duplicates kept together.

Defines `dhash` and `near_duplicates`, `split`, `pack` (one pass over a source, whole or absent), `Packed`, and
`batches`, through which training reads it.
"""

import hashlib
import multiprocessing
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rr.io import InputError, code, folder, read_json, sha256, sweep, write_json, write_table, writing
from rr.paper import LABELS
from rr.photo import Fov, fov_mask
from rr.presets import choose

SPLITS = {"train": 0.64, "val": 0.16, "test": 0.20}  # paper 2.2
NEAR_BITS = 15  # of 256: the same photograph resized or compressed again differs in <= 12, two eyes in >= 60
SKIPPED = 0.01  # share of unusable images that a pack leaves out (at least one); beyond it stops
FORMAT = 1  # of the packed folder
UNIT = 1 / 255  # of a pixel; multiplied: a GPU divides by a number in just this way, and a CPU is faster


def dhash(image):
    """Perceptual hash of a crop (S, S, 3), uint8 (32,): signs of horizontal differences of a 17x16 grey thumbnail.

    Of the inner 70 %, because the rim is the same in every eye, and after a high-pass, because so is the vignetting.
    """
    edge = 0.15 * len(image)
    inner = Image.fromarray(image).convert("L").convert("F")
    grey = np.asarray(inner.resize((17, 16), Image.BOX, box=(edge, edge, len(image) - edge, len(image) - edge)))
    grey = grey - ndimage.gaussian_filter(grey, 2)
    return np.packbits(grey[:, 1:] > grey[:, :-1] + 0.25)  # + 1/4: a uniform image hashes to 0 in spite of noise


def near_duplicates(hashes):
    """Group number (N,) of each 256-bit hash (N, 32): hashes at most NEAR_BITS apart are linked, links are followed.

    Exact by the pigeonhole principle: cut into NEAR_BITS + 2 bands, two such hashes agree in at least two whole bands.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(256)  # neighbouring bits are alike: mixed, every band tells much
    bits = np.unpackbits(unique, axis=1)[:, shuffled]
    power = 1 << np.arange(16, dtype=np.uint32)
    bands = [part @ power[: part.shape[1]] for part in np.array_split(bits, NEAR_BITS + 2, axis=1)]
    words = np.ascontiguousarray(unique).view(np.uint64)  # (N, 4)
    links = [np.empty((2, 0), int)]
    for one, two in combinations(bands, 2):  # each below 2^16
        key = (one << 16) | two
        order = np.argsort(key)
        key = key[order]
        first, step = np.arange(len(order)), 0
        while len(first):  # compare each hash with the next, the one after, ... as long as the key is equal
            step += 1
            first = first[first + step < len(order)]
            first = first[key[first] == key[first + step]]
            a, b = order[first], order[first + step]
            near = np.bitwise_count(words[a] ^ words[b]).sum(1) <= NEAR_BITS
            links.append(np.stack([a[near], b[near]]))
    a, b = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(unique),) * 2)
    return connected_components(graph, directed=False)[1][inverse.ravel()]


def split(labels, groups, seed=0):
    """Names of the splits, (N,), 64/16/20 within every label pattern of `labels` (N, 4); a group stays together.

    Groups are sorted by pattern, shuffled with `seed` inside each, and the k-th image opens a group in the split where
    the golden-ratio sequence frac(0.618 k) falls: evenly spread, so every run of neighbours has the right shares.
    """
    pattern = np.nan_to_num(np.asarray(labels), nan=2) @ [1, 3, 9, 27]
    frame = pd.DataFrame({"group": groups, "pattern": pattern})
    each = frame.groupby("group").agg(size=("group", "size"), pattern=("pattern", "min"))
    each = each.sample(frac=1, random_state=seed).sort_values("pattern", kind="stable")
    position = each["size"].cumsum() - each["size"]
    bounds = np.cumsum(list(SPLITS.values()))
    chosen = np.searchsorted(bounds[:-1], position * (np.sqrt(5) - 1) / 2 % 1, side="right")
    return np.array(list(SPLITS))[pd.Series(chosen, index=each.index).loc[frame["group"]].values]


def pack(source, size, out, seed=0, workers=1):
    """Write a source as a packed folder `out` (images.npy, table.csv, manifest.json) and return it as Packed.

    One pass, image by image, whatever their number. The manifest is written last: a folder without one is no pack. An
    existing pack of the same recipe, size and seed is returned as it is. Unusable images are skipped and listed, up to
    SKIPPED of all; then InputError. The content does not depend on `workers` (processes).
    """
    from filelock import FileLock

    out = folder(out)
    recipe = {"format": FORMAT, "size": size, "seed": seed, "source": source.recipe, "code": code("data")}
    with FileLock(out / ".lock"):  # two notebooks may ask for the same pack at once
        if (out / "manifest.json").exists() and read_json(out / "manifest.json").get("recipe") == recipe:
            return Packed(out)
        sweep(out)  # nobody else writes while we hold the lock
        _write(source, recipe, out, workers)
    return Packed(out)


def _write(source, recipe, out, workers):
    from tqdm import tqdm

    n, size = len(source), recipe["size"]
    allowed = max(1, int(SKIPPED * n))
    rows, hashes, skipped = [], [], []
    with writing(out / "images.npy") as part:
        with open(part, "wb") as file:
            _header(file, n, size)
            made = _made(source, size, workers)
            for i, done in enumerate(tqdm(made, total=n, desc=f"packing {source.recipe['kind']}", unit="image")):
                if isinstance(done, str):
                    skipped.append(done)
                    if len(skipped) > allowed or len(skipped) == n:
                        raise InputError(f"{len(skipped)} of the first {i + 1} images are unusable: {skipped[0]}")
                    continue
                pixels, hashed, row = done
                file.write(pixels)
                hashes.append(hashed)
                rows.append({"index": i, **row})
            file.seek(0)
            _header(file, len(rows), size)  # numpy pads the header so that the count can change in place
        images_sha256 = sha256(part)
        (out / "manifest.json").unlink(missing_ok=True)  # the old pack ends here
    table = pd.DataFrame(rows).set_index("index")
    table = source.table.loc[table.index].join(table).reset_index(drop=True)
    for column in (*(f"fov_{key}" for key in Fov._fields), "disc_x", "disc_y", "disc_r", "fovea_x", "fovea_y"):
        if column not in table:
            table[column] = np.nan
    labels = table[list(LABELS)]
    table["group"] = near_duplicates(np.stack(hashes))
    table["split"] = split(labels, table["group"], recipe["seed"])
    write_table(out / "table.csv", table)
    if source.missing:
        write_table(out / "missing.csv", pd.DataFrame({"name": source.missing}))
    else:
        (out / "missing.csv").unlink(missing_ok=True)
    sizes = Counter(f"{w}x{h}" for w, h in zip(table.get("source_width", []), table.get("source_height", [])))
    manifest = {
        "recipe": recipe,
        "count": len(table),
        "prevalence": labels.mean().to_dict(),
        "splits": table["split"].value_counts().to_dict(),
        "near_duplicates": len(table) - table["group"].nunique(),
        "without_fov": int(table["fov_r"].isna().sum()),
        "source_sizes": dict(sizes.most_common(10)),
        "missing": len(source.missing),
        "missing_first": source.missing[:5],
        "skipped": skipped,
        "images_sha256": images_sha256,
        "table_sha256": sha256(out / "table.csv"),
    }
    write_json(out / "manifest.json", manifest)


def _header(file, n, size):
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _made(source, size, workers):
    """Yield, in order, (pixels as bytes (3, S, S), hash, row) of every image, or the reason why there is none."""
    threads = torch.get_num_threads()
    if workers == 1:
        torch.set_num_threads(1)  # sums depend on the number of threads; every way of packing gives the same bytes
        try:
            yield from (_make(source.image, size, i) for i in range(len(source)))
        finally:
            torch.set_num_threads(threads)
        return
    spawn = multiprocessing.get_context("spawn")  # torch does not survive fork
    with ProcessPoolExecutor(workers, spawn, _start, (source.image, size)) as pool:
        for start in range(0, len(source), 256 * workers):  # in blocks: a bounded number of results waits
            yield from pool.map(_next, range(start, min(start + 256 * workers, len(source))), chunksize=16)


def _start(image, size):
    global _next_image
    _next_image = partial(_make, image, size)
    torch.set_num_threads(1)


def _next(i):
    return _next_image(i)


def _make(image, size, i):
    try:
        pixels, row = image(i, size)
    except InputError as error:
        return str(error)
    return pixels.transpose(2, 0, 1).tobytes(), dhash(pixels), row


class Packed:
    """A packed folder: `images` uint8 (N, 3, S, S) memory-mapped, `table`, `manifest`, `labels` (N, 4), `size`, `hash`.

    Opening checks sizes and the table's hash, and with `verify` the hash of all pixels. Raises InputError if the
    folder is missing, incomplete or damaged, or its images are not of the side `size` that is asked for.
    """

    def __init__(self, path, size=None, verify=False):
        self.path = path = Path(path)
        if not (path / "manifest.json").exists():
            raise InputError(f"{path}: no complete packed data set here (no manifest.json); pack it again")
        self.manifest = read_json(path / "manifest.json")
        again = "; delete the folder and pack it again"
        try:
            self.size = self.manifest["recipe"]["size"]
            shape = (self.manifest["count"], 3, self.size, self.size)
            sums = [self.manifest["images_sha256"], self.manifest["table_sha256"]]
            self.images = np.load(path / "images.npy", mmap_mode="r")
            intact = self.images.shape == shape and self.images.dtype == np.uint8
            intact = intact and sha256(path / "table.csv") == sums[1]
            intact = intact and (not verify or sha256(path / "images.npy") == sums[0])
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged packed data set ({error!r}){again}") from None
        if not intact:
            raise InputError(f"{path}: images.npy or table.csv is not what the manifest says{again}")
        if size not in (None, self.size):
            raise InputError(f"{path}: images of {self.size} px, not of {size}; make them again with 01_data and this preset")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that one must not write to it
            self._all = torch.from_numpy(self.images)
        self.resident = {}  # device: all images, uint8 (N, 3, S, S), or None if they do not fit; see `batches`
        self.table = pd.read_csv(path / "table.csv", keep_default_na=True, dtype={"name": str})
        self.labels = self._columns(LABELS)
        self.circles = self._columns([f"fov_{key}" for key in Fov._fields])
        self.discs = self._columns(["disc_x", "disc_y", "disc_r"])
        self.hash = hashlib.sha256("".join(sums).encode()).hexdigest()[:12]

    def __len__(self):
        return len(self.table)

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
            raise InputError(f"{self.path}: no labels in split {split}; give 01_data a CSV with labels (parameter labels)")
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
            raise InputError(f"{self.path}: no clean readable image in split {split}; use more images, with labels")
        return rows

    def mean(self, rows, size=256):
        """The mean image (1, 3, S, S) of `rows`, read `size` images at a time."""
        parts = [self.batch(rows[i : i + size]).sum(0, keepdim=True) for i in range(0, len(rows), size)]
        return sum(parts) / len(rows)

    def pixels(self, rows, out=None):
        """Images of `rows` as uint8 (B, 3, S, S), in the first B of `out` where given."""
        out = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8) if out is None else out[: len(rows)]
        for image, pixels in zip(out, self._views(rows)):
            image.copy_(pixels)
        return out

    def batch(self, rows, device="cpu", out=None):
        """Images of `rows` as float32 (B, 3, S, S) in [0, 1] on `device`; on the CPU in the first B of `out` where given."""
        if torch.device(device).type != "cpu":
            return self.pixels(rows).to(device) * UNIT
        out = torch.empty(len(rows), 3, self.size, self.size) if out is None else out[: len(rows)]
        for image, pixels in zip(out, self._views(rows)):  # one by one: converted and scaled while it is in the cache
            image.copy_(pixels).mul_(UNIT)
        return out

    def fov(self, rows, device="cpu", out=None):
        """Field-of-view masks of `rows`, bool (B, 1, S, S); the whole frame where there is none. out: as in `batch`."""
        return fov_mask(self.circles[rows].to(device), self.size, out if out is None else out[: len(rows)])

    def disc(self, rows):
        """Optic discs of `rows` as (B, 3): x, y, r in fractions of the width, NaN where unknown."""
        return self.discs[rows]

    def _views(self, rows):
        """Yield the image of each row, uint8 (3, S, S), where it lies in the file: to read from, not to write to."""
        for row in np.asarray(rows):
            yield self._all[row]

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
    x = fov = torch.empty(0)
    for rows in shares:
        if len(x) < len(rows):
            x, fov = (torch.empty(len(rows), n, data.size, data.size, dtype=dtype) for n, dtype in ((3, None), (1, torch.bool)))
        yield Batch(data.batch(rows, out=x), data.labels[rows], data.fov(rows, out=fov))


def _resident(data, device, step=1024):
    """All images, uint8 (N, 3, S, S), on `device`."""
    pixels = torch.empty(len(data), 3, data.size, data.size, dtype=torch.uint8, device=device)
    for start in range(0, len(data), step):
        pixels[start : start + step] = data.pixels(range(start, min(start + step, len(data)))).to(device)
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
            buffers[k] = torch.empty(len(rows), 3, data.size, data.size, dtype=torch.uint8, pin_memory=on_gpu)
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
            pixels.record_stream(here)  # its memory is not given away before this stream has read it
        return Batch(pixels * UNIT, data.labels[rows].to(device, non_blocking=True), data.fov(rows, device))

    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for k, rows in enumerate(shares):
            following = reader.submit(read, k % 2, rows)
            if ahead is not None:
                yield batch(*ahead.result())
            ahead = following
        if ahead is not None:
            yield batch(*ahead.result())

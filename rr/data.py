"""Packed data sets: a folder of memory-mapped shards, split 64/16/20 with near-duplicates kept together.

Defines `dhash` and `near_duplicates`, `split`, `pack` (one pass over a source, shard by shard), `Packed`, and `batches`,
through which training reads it. Made for a million images: what grows with their number is the table and the hashes.
"""

import hashlib
import io
import json
import multiprocessing
import resource
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from itertools import combinations, islice
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
SHARD = 4096  # images of a source that become one file; .6 GB at 224 px
FORMAT = 2  # of the packed folder
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
    group = np.arange(len(unique))
    for one, two in combinations(bands, 2):  # each below 2^16
        while len(links := _links((one << 16) | two, group, words)):
            graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(len(unique),) * 2)
            group = connected_components(graph, directed=False)[1][group]
    return group[inverse.ravel()]


def _links(key, group, words, most=2**20):
    """Pairs (M, 2) of groups, not yet linked, that hashes with equal keys link; those found first if they are many.

    Hashes of one key lie side by side, and among them those of one group: each is compared with what comes after its own
    group. So a thousand dark images, all alike, cost a thousand comparisons and not their square.
    """
    both = key.astype(np.uint64) << 32 | group.astype(np.uint64)
    order = np.argsort(both)
    key, of, both = key[order], group[order], both[order]
    ends = np.flatnonzero(np.append(both[1:] != both[:-1], True))
    first = np.arange(len(order))
    second = np.repeat(ends + 1, np.diff(ends, prepend=-1))
    found, count = [np.empty((0, 2), int)], 0
    while len(first) and count < most:
        keep = second < len(order)
        first, second = first[keep], second[keep]
        keep = key[first] == key[second]
        first, second = first[keep], second[keep]
        near = np.bitwise_count(words[order[first]] ^ words[order[second]]).sum(1) <= NEAR_BITS
        found.append(np.stack([of[first[near]], of[second[near]]], 1))
        count += near.sum()
        second = second + 1
    return np.concatenate(found)


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
    """Write a source as a packed folder `out` and return it as Packed.

    shard-<recipe>-00000.npy holds the images of the first SHARD rows of the source that could be used, uint8 (n, 3, S, S),
    and so on; table.csv one line per image; manifest.json, written last, says what there is: a folder without one is no
    pack. An existing pack of the same recipe, size and seed is returned as it is; one of another stays until the new one
    is whole. A call that was stopped, or killed, goes on after the shards that are complete. Unusable images are skipped
    and listed, up to SKIPPED of all; then InputError. The content depends neither on that nor on `workers` (processes), the
    memory not on the number of images but for table and hashes.
    """
    from filelock import FileLock

    out = folder(out)
    recipe = {"format": FORMAT, "size": size, "seed": seed, "source": source.recipe, "code": code("data")}
    with FileLock(out / ".lock"):  # two notebooks may ask for the same pack at once
        if (out / "manifest.json").exists() and read_json(out / "manifest.json").get("recipe") == recipe:
            return Packed(out)
        sweep(out)  # nobody else writes while we hold the lock
        _finish(source, recipe, out, _shards(source, recipe, out, workers))
    return Packed(out)


def _shards(source, recipe, out, workers):
    """Write what is missing of the shards; returns of each its name, count, sha256 and what it skipped.

    progress.json lists those that are complete, each with a table of its rows beside it, until the manifest does.
    """
    from tqdm import tqdm

    n, size, stem = len(source), recipe["size"], hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
    allowed = max(1, int(SKIPPED * n))
    done = _complete(out, recipe)
    start = min(n, len(done) * SHARD)
    skipped = [reason for shard in done for reason in shard["skipped"]]
    bar = tqdm(total=n, initial=start, desc=f"packing {source.recipe['kind']}", unit="image")
    with bar, closing(_made(source, size, workers, start)) as made:
        for first in range(start, n, SHARD):
            name = f"shard-{stem}-{len(done):05d}"
            rows, reasons = [], []
            with writing(out / f"{name}.npy") as part:
                with open(part, "wb") as file:
                    _header(file, SHARD, size)
                    for i, image in enumerate(islice(made, min(SHARD, n - first)), first):
                        bar.update()
                        if isinstance(image, str):
                            reasons.append(image)
                            skipped.append(image)
                            if len(skipped) > allowed or len(skipped) == n:
                                raise InputError(f"{len(skipped)} of the first {i + 1} images are unusable: {skipped[0]}")
                            continue
                        pixels, hashed, row = image
                        file.write(pixels)
                        rows.append({"index": i, "hash": hashed.tobytes().hex(), **row})
                    file.seek(0)
                    _header(file, len(rows), size)  # numpy pads the header so that the count can change in place
                digest = sha256(part)
            write_table(out / f"{name}.csv", pd.DataFrame(rows, columns=None if rows else ["index", "hash"]))
            done.append({"name": name, "count": len(rows), "sha256": digest, "skipped": reasons})
            write_json(out / "progress.json", {"recipe": recipe, "shards": done})
    return done


def _complete(out, recipe):
    """The shards that an earlier call of the same recipe completed; all others are removed."""
    progress = out / "progress.json"
    known = read_json(progress) if progress.exists() else {}
    done = known["shards"] if known.get("recipe") == recipe else []
    whole = [(out / f"{shard['name']}.npy").exists() and (out / f"{shard['name']}.csv").exists() for shard in done]
    done = done[: [*whole, False].index(False)]
    if done:
        print(f"{out}: goes on after {len(done)} shards, {sum(shard['count'] for shard in done)} images")
    manifest = out / "manifest.json"
    old = read_json(manifest).get("shards", []) if manifest.exists() else []
    if old or (known and not done):
        print(f"{out}: holds images of another recipe, which are replaced")
    _sweep(out, [*done, *old])
    return done


def _sweep(out, shards):
    """Remove all shards but these."""
    names = {shard["name"] for shard in shards}
    for path in [*out.glob("shard-*"), *out.glob("images.npy")]:  # the latter: of format 1
        if path.stem not in names:
            path.unlink()


def _finish(source, recipe, out, shards):
    """Write table and manifest from what lies beside the shards: the same whether they were made at once or not."""
    read = partial(pd.read_csv, dtype={"hash": str}, float_precision="round_trip")
    known = pd.concat([read(out / f"{shard['name']}.csv") for shard in shards if shard["count"]]).set_index("index")
    hashes = np.frombuffer(bytes.fromhex("".join(known.pop("hash"))), np.uint8).reshape(-1, 32)
    table = source.table.loc[known.index].join(known).reset_index(drop=True)
    for column in (*(f"fov_{key}" for key in Fov._fields), "disc_x", "disc_y", "disc_r", "fovea_x", "fovea_y"):
        if column not in table:
            table[column] = np.nan
    labels = table[list(LABELS)]
    table["group"] = near_duplicates(hashes)
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
        "shards": [{key: shard[key] for key in ("name", "count", "sha256")} for shard in shards],
        "prevalence": labels.mean().to_dict(),
        "splits": table["split"].value_counts().to_dict(),
        "near_duplicates": len(table) - table["group"].nunique(),
        "without_fov": int(table["fov_r"].isna().sum()),
        "source_sizes": dict(sizes.most_common(10)),
        "missing": len(source.missing),
        "missing_first": source.missing[:5],
        "skipped": [reason for shard in shards for reason in shard["skipped"]],
        "table_sha256": sha256(out / "table.csv"),
    }
    write_json(out / "manifest.json", manifest)
    for path in (out / "progress.json", *(out / f"{shard['name']}.csv" for shard in shards)):
        path.unlink(missing_ok=True)  # all of it is in the table and the manifest
    _sweep(out, shards)


def _header(file, n, size):
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _made(source, size, workers, start):
    """Yield, in order, (pixels as bytes (3, S, S), hash, row) of every image from `start`, or why there is none."""
    threads = torch.get_num_threads()
    if workers == 1:
        torch.set_num_threads(1)  # sums depend on the number of threads; every way of packing gives the same bytes
        try:
            yield from (_make(source.image, size, i) for i in range(start, len(source)))
        finally:
            torch.set_num_threads(threads)
        return
    spawn = multiprocessing.get_context("spawn")  # torch does not survive fork
    with ProcessPoolExecutor(workers, spawn, _start, (source.image, size)) as pool:
        for first in range(start, len(source), 64 * workers):  # in blocks: a bounded number of results waits
            yield from pool.map(_next, range(first, min(first + 64 * workers, len(source))), chunksize=4)


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
    """A packed folder: `table`, `manifest`, `labels` (N, 4), `size`, `hash`, and the images of rows (`pixels`, `batch`).

    Opening reads no image: it checks the sizes of all files and the table's hash, with `verify` also those of all shards.
    Raises InputError if the folder is missing, incomplete or damaged, or its images are not of the side `size` that is
    asked for.
    """

    def __init__(self, path, size=None, verify=False):
        self.path = path = Path(path)
        if not (path / "manifest.json").exists():
            raise InputError(f"{path}: no complete packed data set here (no manifest.json); pack it again")
        self.manifest = read_json(path / "manifest.json")
        again = "; delete the folder and pack it again"
        try:
            if self.manifest["recipe"]["format"] != FORMAT:
                raise InputError(f"{path}: packed by another version; run 01_data or `rr data prepare` again")
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
            raise InputError(f"{path}: images of {self.size} px, not of {size}; make them again with 01_data and this preset")
        self.resident = {}  # device: all images, uint8 (N, 3, S, S), or None if they do not fit; see `batches`
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # a memory map keeps its file open
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
        for image, pixels in zip(out, self._views(rows)):  # gathered and converted in one pass
            image.copy_(pixels)
        return out.mul_(UNIT)

    def fov(self, rows, device="cpu", out=None):
        """Field-of-view masks of `rows`, bool (B, 1, S, S); the whole frame where there is none. out: as in `batch`."""
        return fov_mask(self.circles[rows].to(device, non_blocking=True), self.size, out if out is None else out[: len(rows)])

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
        header = io.BytesIO()
        _header(header, shard["count"], self.size)
        size = len(header.getvalue()) + shard["count"] * 3 * self.size**2
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
    x = fov = torch.empty(0)  # numpy's memory comes in huge pages (on Linux), torch's in small ones, each of which costs
    for rows in shares:
        if len(x) < len(rows):
            shapes = ((len(rows), n, data.size, data.size) for n in (3, 1))
            x, fov = (torch.from_numpy(np.empty(shape, dtype)) for shape, dtype in zip(shapes, (np.float32, bool)))
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

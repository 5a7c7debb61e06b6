"""Packing: the images of a source, resized once, in one file that training maps into memory.

`pack` is made for a million images: it uses several processes, continues after a kill, and keeps
in memory only the table.
"""

import csv
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from rr.data.dataset import FORMAT, Packed
from rr.data.fov import Fov
from rr.data.sources import Source
from rr.data.splits import dhash, near_duplicates, split
from rr.errors import InputError
from rr.files import (
    exclusive_lock,
    folder,
    read_json,
    readable_errors,
    remove_partial_files,
    sha256,
    write_json,
    write_table,
)
from rr.paper import LABELS
from rr.provenance import code

SKIPPED = 0.01  # share of unusable images that a pack leaves out (at least one image)
CHUNK = 64  # images that a process packs at a time
REPAID = 500  # images that take longer (80 px: 5.5 s) than the start of a process (3.4 s)
COLUMNS = (  # what a source may say about an image
    *LABELS, *(f"fov_{key}" for key in Fov._fields), "disc_x", "disc_y", "disc_r", "fovea_x",
    "fovea_y", "severity", "families", "aim", "source_width", "source_height",
)  # fmt: skip
PROGRESS = ("position", "unusable", "hash", *COLUMNS)  # one line per image, while packing


def pack(source, size, out, seed=0, workers=1, fresh=False):
    """Pack the images of a source in the folder `out`; returns them as Packed.

    images-<recipe>.npy   uint8 (N, 3, size, size); unusable images leave gaps. If the source knows
                          the images before their degradation, these N originals follow
    table.csv             one row per image
    manifest.json         what is there; written last, so a folder without it is no pack

    An existing pack is used if its recipe (format, size, seed, source) is the same, whatever has
    changed in the code; `fresh` packs again. A pack of another recipe stays until the new one is
    complete. A call that was stopped or killed is continued by the same call. The result depends
    neither on that nor on `workers`, the number of processes. 0 stands for one process per core
    that we may use, each with at least REPAID images. Images that cannot be used are skipped and
    listed, but an InputError is raised if they are more than SKIPPED of all. It is also raised if
    `out` holds other files.
    """
    out = folder(out)
    recipe = {"format": FORMAT, "size": size, "seed": seed, "source": source.recipe}
    if not fresh and _manifest(out).get("recipe") == recipe:
        return Packed(out)
    with exclusive_lock(out / ".lock", f"another process packs images in {out}"):
        old = _manifest(out)
        if fresh or old.get("recipe") != recipe:  # it may be complete by now
            stem = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
            images, progress = out / f"images-{stem}.npy", out / f"rows-{stem}.csv"
            _check_folder(out, old, recipe, progress, fresh)
            threads = torch.get_num_threads()  # OMP_NUM_THREADS, or the cores of this process
            workers = workers or max(1, min(threads, len(source) // REPAID))
            torch.set_num_threads(1)  # the rounding of sums depends on it
            try:
                with readable_errors(images):
                    _pack_images(source, size, images, progress, workers)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                message = "a process was killed, perhaps because memory was short"
                raise InputError(f"{out}: {message}; continue with fewer workers") from error
            finally:
                torch.set_num_threads(threads)
            _finish(source, recipe, out, images, progress)
    return Packed(out)


def _manifest(out):
    """The manifest of a pack; {} if there is none, or if the file is not a pack's."""
    path = out / "manifest.json"
    manifest = read_json(path) if path.exists() else {}
    return manifest if isinstance(manifest, dict) and "recipe" in manifest else {}


def _check_folder(out, old, recipe, progress, fresh):
    """Check that we may write to `out`, and say what happens to a pack of another recipe."""
    remove_partial_files(out)
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    ours = old or any(re.fullmatch(r"rows-[0-9a-f]{8}\.csv", name) for name in names)
    if names and not ours:
        message = f"holds {names[0]} and is no packed data set; choose an empty folder"
        raise InputError(f"{out}: {message}")
    if fresh:
        progress.unlink(missing_ok=True)
    if old.get("recipe") == recipe:  # its images are going to be overwritten
        (out / "manifest.json").unlink()
    elif old:
        before, after = (r | r.get("source", {}) | {"source": 0} for r in (old["recipe"], recipe))
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        changes = [f"{key} {before.get(key)} becomes {after.get(key)}" for key in changed]
        print(f"{out}: is replaced when the new pack is complete ({', '.join(changes)})")


def _pack_images(source, size, images, progress, workers):
    """Write the images that are missing, and a line about each image to the file `progress`."""
    from tqdm import tqdm

    n = len(source)
    done = _resume(progress, images)
    if done:
        print(f"{progress.parent}: continues after {done} images")
    else:
        stored = 2 * n if source.originals else n
        np.lib.format.open_memmap(images, "w+", np.uint8, (stored, 3, size, size))
    unusable = _read_progress(progress)["unusable"].dropna().tolist()
    # Every worker of the loader packs whole chunks. Results come in the order of the images.
    chunks = DataLoader(
        _Task(source, size, images), CHUNK, sampler=range(done, n), collate_fn=list,
        num_workers=workers if workers > 1 else 0, generator=torch.Generator(),
        multiprocessing_context="spawn" if workers > 1 else None,
    )  # fmt: skip
    with (
        tqdm(total=n, initial=done, desc=f"packing {source.recipe['kind']}", unit="image") as bar,
        open(images, "rb") as image_file,
        open(progress, "a", newline="", encoding="utf-8") as file,
    ):
        for rows in chunks:
            unusable += [row["unusable"] for row in rows if "unusable" in row]
            if len(unusable) > max(1, int(SKIPPED * n)) or len(unusable) == n:
                count = rows[-1]["position"] + 1
                message = f"{len(unusable)} of the first {count} images are unusable"
                raise InputError(f"{message}, at most {SKIPPED:.0%} of all may be: {unusable[0]}")
            os.fsync(image_file.fileno())  # before the lines that say that they are there
            csv.DictWriter(file, PROGRESS).writerows(rows)
            file.flush()
            bar.update(len(rows))


@dataclass
class _Task:
    """The rows of the images. Asking for those of a chunk writes its images to the file."""

    source: Source
    size: int
    images: Path

    def __getitems__(self, positions):
        with open(self.images, "r+b") as file:  # a full disk would kill a process that maps it
            return [self._row(i, file) for i in positions]

    def _row(self, i, file):
        try:
            pixels, row = self.source.image(i, self.size)
        except InputError as error:
            return {"position": i, "unusable": " ".join(str(error).split())}
        stored = [pixels, row.pop("original", pixels)][: 1 + self.source.originals]
        for kind, image in enumerate(stored):  # all images come first, then all originals
            before_end = (len(stored) - kind) * len(self.source) - i
            file.seek(-before_end * image.nbytes, os.SEEK_END)
            file.write(image.transpose(2, 0, 1).tobytes())
        return {"position": i, "hash": dhash(pixels).tobytes().hex(), **row}


def _resume(progress, images):
    """The number of images that an earlier call packed. Removes a line that was cut off."""
    with open(progress, "a+b") as file:
        file.seek(0)
        lines = file.read()
        file.truncate(lines.rfind(b"\n") + 1 if images.exists() else 0)
    return lines.count(b"\n") if images.exists() else 0


def _read_progress(progress):
    types = dict.fromkeys(("unusable", "hash", "families", "aim"), str)
    return pd.read_csv(progress, names=PROGRESS, dtype=types, float_precision="round_trip")


def _finish(source, recipe, out, images, progress):
    """Write the table and the manifest, and remove all files of other packs."""
    rows = _read_progress(progress)
    usable = rows[rows["unusable"].isna()].reset_index(drop=True)
    given = source.table.iloc[usable["position"]].reset_index(drop=True)
    table = pd.concat([given["name"], usable.drop(columns=["unusable", "hash"])], axis=1)
    for column in given.columns.drop("name"):
        table[column] = table[column].fillna(given[column])
    hashes = np.frombuffer(bytes.fromhex("".join(usable["hash"])), np.uint8).reshape(-1, 32)
    table["group"] = near_duplicates(hashes)
    table["split"] = split(table[list(LABELS)], table["group"], recipe["seed"])
    write_table(out / "table.csv", table)
    write_table(out / "missing.csv", pd.DataFrame({"name": source.missing}))
    identity = json.dumps(recipe) + table[["name", *LABELS, "split"]].to_csv(index=False)
    manifest = {
        "recipe": recipe,
        "hash": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "count": len(table),
        "images": images.name,
        "originals": source.originals,
        "sha256": {name: sha256(out / name) for name in ("table.csv", images.name)},
        "code": code(),
        "prevalence": table[list(LABELS)].mean().to_dict(),
        "splits": table["split"].value_counts().to_dict(),
        "near_duplicates": len(table) - table["group"].nunique(),
        "missing": len(source.missing),
        "missing_first": source.missing[:5],
        "skipped": rows["unusable"].dropna().tolist(),
    }
    write_json(out / "manifest.json", manifest)
    for path in [*out.glob("images-????????.npy"), *out.glob("rows-????????.csv")]:
        if path != images:
            path.unlink()

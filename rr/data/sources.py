"""Where images come from: drawn eyes, a folder of photographs, or a folder of parquet files.

A `Source` has a table with one row per image, and a function that makes one image at a time.
"""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rr.data import degrade, parquet, synthetic
from rr.data.fov import Fov, fov_mask
from rr.data.labels import SYNFUNDUS, check_labels, match_names, read_labels
from rr.data.photo import read_crop, to_tensor
from rr.data.readable import readable
from rr.errors import InputError
from rr.files import sha256
from rr.paper import LABELS

PARQUET = ".parquet"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """Images to pack. image(i, size) returns the crop of row i, uint8 (size, size, 3), and a dict
    of what is known about it: some of packing.COLUMNS."""

    recipe: dict  # what decides the content (kind, seed, files); equal recipes give equal packs
    table: pd.DataFrame  # one row per image: its name, and those columns known without reading it
    image: Callable[[int, int], tuple[np.ndarray, dict]]
    missing: list = field(default_factory=list)  # names in the label table that have no image
    originals: bool = False  # the dict has the image before its degradation, under "original"

    def __len__(self):
        return len(self.table)


def source(data, labels, n, seed):
    """The source that notebook 01 names: n drawn eyes ("embedded"), or a folder and its labels."""
    if data != "embedded":
        return folder(data, labels or None)
    if labels:
        message = "embedded images have labels of their own; name the folder of your images (data)"
        raise InputError(f"{labels}: {message}")
    return embedded(n, seed)


# ------------------------------------------------------------------------------------- drawn eyes


def embedded(n, seed=0):
    """n drawn images: 6 % are no fundus; of the eyes, 45 % are clean and 55 % are degraded.

    Half of the degraded eyes are degraded only around the disc or around the macula. The labels
    follow from `readable` in each region. Each degraded eye is packed with its clean original.
    Image i depends on (seed, i) alone. Its pixels may differ by rounding between kinds of CPU.
    """
    if n < 1:
        raise InputError(f"embedded data: {n} images asked for; at least 1 is needed")
    table = pd.DataFrame({"name": [f"embedded-{seed}-{i:06d}" for i in range(n)]})
    recipe = {"kind": "embedded", "n": n, "seed": seed}
    return Source(recipe, table, partial(_embedded_image, seed), originals=True)


def _embedded_image(seed, index, size):
    rng = np.random.default_rng([seed, index, 3])  # 3: not the stream of rr.data.synthetic
    if rng.random() < 0.06:
        return synthetic.not_fundus(seed, index, size), dict.fromkeys(LABELS, 0)
    eye = synthetic.fundus(seed, index, size)
    disc_x, disc_y, disc_r = (float(v) / size for v in eye.disc_circle)
    fovea_x, fovea_y = (float(v) / size for v in eye.fovea)

    severity = 0.0 if rng.random() < 0.45 else float(rng.random() ** (1 / 3))  # often severe
    drawn = rng.permutation(degrade.FAMILIES)[: rng.integers(1, len(degrade.FAMILIES) + 1)]
    families = tuple(name for name in degrade.FAMILIES if name in drawn)
    aim = str(rng.choice(["whole", "whole", "disc", "macula"]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

    image, row = eye.image, dict.fromkeys(LABELS, 1)
    if severity:
        macula, disc = (fovea_x, fovea_y), (disc_x, disc_y)
        circles = {"disc": (disc, 2 * disc_r), "macula": (macula, 2.6 * disc_r)}
        area = {}
        if aim in circles:
            centre, radius = circles[aim]
            area = {"centre": torch.tensor([centre]), "radius": torch.tensor([radius])}
        x, fov = to_tensor(eye.image).contiguous(), torch.from_numpy(eye.fov)[None, None]
        params = degrade.sample(1, generator, families, severity, **area)
        y = degrade.apply(x, params, fov).mul_(255).round_()
        image = y[0].permute(1, 2, 0).to(torch.uint8).numpy()
        circles = [[*macula, 2 * disc_r, 0, 1], [*disc, 1.2 * disc_r, 0, 1]]
        regions = torch.cat([fov, fov & fov_mask(circles, size)])
        for label, region in zip(("retina", "macula", "disc"), regions, strict=True):
            row[label] = int(readable(x, y / 255, region[None])[0])
    row |= {f"fov_{key}": v / size for key, v in zip(Fov._fields, eye.view)}
    row |= {"disc_x": disc_x, "disc_y": disc_y, "disc_r": disc_r}
    row |= {"fovea_x": fovea_x, "fovea_y": fovea_y, "severity": severity}
    row |= {"families": "+".join(families), "aim": aim} if severity else {}
    return image, row | {"original": eye.image}


# ------------------------------------------------------------------------- folders of photographs


def folder(path, labels=None):
    """The photographs of a folder and its subfolders, with the labels of the CSV `labels`.

    Without a CSV, there are no labels. `match_names` says which names are found; the others become
    `missing`. A folder of parquet files: see `parquet_folder`. Raises InputError for a missing or
    empty folder and for bad labels.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    files, shards = _files(path)
    if files and shards:
        message = f"holds photographs ({files[0]}) and parquet files ({shards[0]})"
        raise InputError(f"{path}: {message}; name a folder of one kind")
    if shards:
        return parquet_folder(path, shards, labels)
    if not files:
        raise InputError(f"{path}: no images in this folder ({', '.join(EXTENSIONS)}, or .parquet)")
    recipe = _folder_recipe("folder", path, files)
    if labels is None:
        table, missing = pd.DataFrame({"name": files}), []
    else:
        table, missing, counts = _labelled(labels, files, path)
        recipe |= counts
    return Source(recipe, table, partial(_photograph, path, table["name"].to_numpy()), missing)


def _photograph(path, names, index, size):
    return _row(*read_crop(path / names[index], size, names[index]))


def _row(crop, fov, box, width, height):
    row = {f"fov_{key}": value for key, value in fov._asdict().items()}
    return crop, row | {"source_width": width, "source_height": height}


def _files(path):
    """(photographs, parquet files) of a folder and its subfolders: sorted relative paths."""
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*"))
    files = [name for name in files if not name.startswith(".") and "/." not in name]
    photographs = [name for name in files if name.lower().endswith(EXTENSIONS)]
    shards = [name for name in files if name.lower().endswith(PARQUET)]
    for name in photographs + shards:
        if name != name.encode(errors="replace").decode():
            raise InputError(f"{path}: the name of the file {ascii(name)} is not UTF-8; rename it")
    return photographs, shards


def _folder_recipe(kind, path, files):
    """A folder is recognised by the names and the sizes of its files."""
    sizes = {name: os.path.getsize(path / name) for name in files if (path / name).exists()}
    listing = "".join(f"{name} {sizes.get(name, 'broken link')}\n" for name in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    name = path.resolve().name
    return {"kind": kind, "folder": name, "files": len(files), "listing_sha256": digest}


def _labelled(labels, files, path):
    """The rows of the CSV `labels` that have an image: (table, missing, counts).

    Raises InputError if none has, or if one image has two names with different labels.
    """
    table, counts = read_labels(labels)
    matches = match_names(table["name"], files, path)
    missing = table["name"][matches.isna()].tolist()
    if len(missing) == len(table):
        message = f"none of its {len(table)} images is in {path} (first: {missing[0]})"
        raise InputError(f"{labels}: {message}")
    table = table.assign(name=matches)[matches.notna()].drop_duplicates(ignore_index=True)
    if len(twice := table["name"][table["name"].duplicated()]):
        message = f"{len(twice)} images have two names with different labels"
        raise InputError(f"{labels}: {message} (first: {twice.iloc[0]})")
    counts |= {"csv": Path(labels).name, "csv_sha256": sha256(labels)}
    return table, missing, counts | {"files_without_label": len(files) - len(table)}


def assume_readable(path):
    """The photographs of a folder, taken as clean images: readable in all labels, not degraded."""
    photographs = folder(path)
    table = photographs.table[["name"]].assign(**dict.fromkeys(LABELS, 1.0), severity=0.0)
    return Source(photographs.recipe | {"assume_readable": True}, table, photographs.image)


def joined(*sources):
    """Several sources as one: the images of the first, then those of the second, and so on."""
    kind = "+".join(source.recipe["kind"] for source in sources)
    recipe = {"kind": kind, "sources": [source.recipe for source in sources]}
    table = pd.concat([source.table for source in sources], ignore_index=True)
    images = [source.image for source in sources]
    ends = np.cumsum([len(source) for source in sources])
    missing = [name for source in sources for name in source.missing]
    originals = any(source.originals for source in sources)
    return Source(recipe, table, partial(_joined_image, images, ends), missing, originals)


def _joined_image(images, ends, index, size):
    k = int(np.searchsorted(ends, index, side="right"))
    return images[k](index - (ends[k - 1] if k else 0), size)


# ---------------------------------------------------------------------------------- parquet files


def parquet_folder(path, shards, labels=None):
    """The photographs in the parquet files `shards` of the folder `path`, see rr.data.parquet.

    The labels come from the CSV `labels`, whose names are the paths in the files, or from columns
    of the files that `check_labels` knows. Raises InputError if there are neither.
    """
    names, numbers, columns, groups = parquet.read_index(path, shards)
    recipe = _folder_recipe("parquet", path, shards) | {"images": len(names)}
    order, missing = np.arange(len(names)), []
    if labels is not None:
        names = names.fillna(numbers)
        table, missing, counts = _labelled(labels, names, path)
        order = pd.Series(order, index=names)[table["name"]].to_numpy()
        in_files = np.argsort(order)  # so each row group is read once
        table, order = table.iloc[in_files].reset_index(drop=True), order[in_files]
    elif len(columns.columns):
        unnamed = names.isna() | names.duplicated(keep=False)
        table, counts = check_labels(columns.assign(name=names.mask(unnamed, numbers)), path)
    else:
        message = f"its parquet files have no columns of labels ({', '.join(SYNFUNDUS)})"
        raise InputError(f"{path}: {message}; give a CSV of labels")
    image = partial(_parquet_image, groups, order, table["name"].to_numpy())
    return Source(recipe | counts, table, image, missing)


def _parquet_image(groups, order, names, index, size):
    content = parquet.image_bytes(groups, order[index])
    if content is None:
        message = "no bytes in this row; only images inside the parquet file can be read"
        raise InputError(f"{names[index]}: {message}")
    return _row(*read_crop(io.BytesIO(content), size, names[index]))

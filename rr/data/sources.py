"""Where images come from: procedural eyes, SynFundus-1M, a folder of photographs or of parquet shards.

Defines the four labels, `source`, `embedded`, `folder` (SynFundus-1M too) and `parquet` (as Hugging Face has them), which
return a `Source` (a table, and one image at a time), and `read_labels` (a label CSV, checked).
"""

import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rr.data import degrade, synthetic
from rr.data.photo import Fov, fov_mask, read_crop, to_tensor
from rr.data.readable import readable
from rr.errors import InputError
from rr.files import sha256
from rr.paper import LABELS

SYNFUNDUS = {  # SynFundus-1M's column => label
    "is_fundus": "fundus",
    "is_macular_readable": "macula",
    "is_optic_disc_readable": "disc",
    "is_retinal_region_readable": "retina",
}
NAMES = (
    "name",
    "file_name",
    "idx",
)  # columns that may hold the image's name, in order of preference
PARQUET = ".parquet"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """Images to pack. `image(i, size)` gives the uint8 (size, size, 3) crop of row i and what is known of it."""

    recipe: (
        dict  # what decides the content: kind, seed, files; a pack with an equal recipe is reused
    )
    table: (
        pd.DataFrame
    )  # one row per image: name, and the labels as far as they are known before reading
    image: Callable[[int, int], tuple[np.ndarray, dict]]
    missing: list = field(default_factory=list)  # names in the label table that have no image

    def __len__(self):
        return len(self.table)


def source(data, csv, n, seed):
    """What the parameters of notebook 01 name: n embedded eyes (data is "embedded") or the folder `data` with its CSV."""
    if data == "embedded":
        if csv:
            raise InputError(
                f"{csv}: embedded images bring their own labels; name the folder of your images too (data)"
            )
        return embedded(n, seed)
    return folder(data, csv or None)


def embedded(n, seed=0):
    """n procedural images (rr.synthetic), 6 % no fundus, of the others 45 % clean and 55 % degraded (rr.degrade).

    Half of the degraded ones only round the disc or round the macula. Labels follow from readable in each
    region. Image i depends on (seed, i) alone.
    """
    if n < 1:
        raise InputError(f"embedded data: {n} images asked for; at least 1 is needed")
    table = pd.DataFrame({"name": [f"embedded-{seed}-{i:06d}" for i in range(n)]})
    recipe = {"kind": "embedded", "n": n, "seed": seed}
    return Source(recipe, table, partial(_embedded_image, seed))


def _embedded_image(seed, index, size):
    rng = np.random.default_rng(
        [seed, index, 3]
    )  # 3: a stream of its own, beside those of rr.synthetic
    if rng.random() < 0.06:
        return synthetic.not_fundus(seed, index, size), dict.fromkeys(LABELS, 0)
    eye = synthetic.fundus(seed, index, size)
    disc_x, disc_y, disc_r = (float(v) / size for v in eye.disc_circle)
    fovea_x, fovea_y = (float(v) / size for v in eye.fovea)

    # severity 0 in 45 %; the cube root favours what is visibly degraded
    severity = 0.0 if rng.random() < 0.45 else float(rng.random() ** (1 / 3))
    chosen = rng.permutation(degrade.FAMILIES)[: rng.integers(1, len(degrade.FAMILIES) + 1)]
    families = tuple(name for name in degrade.FAMILIES if name in chosen)
    aim = str(rng.choice(["whole", "whole", "disc", "macula"]))
    where = {
        "whole": {},
        "disc": {"centre": torch.tensor([[disc_x, disc_y]]), "radius": torch.tensor([2 * disc_r])},
        "macula": {
            "centre": torch.tensor([[fovea_x, fovea_y]]),
            "radius": torch.tensor([2.6 * disc_r]),
        },
    }[aim]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    regions = {
        "macula": torch.tensor([[fovea_x, fovea_y, 2 * disc_r, 0, 1]]),
        "disc": torch.tensor([[disc_x, disc_y, 1.2 * disc_r, 0, 1]]),
        "retina": None,
    }
    stored, row = (
        eye.image,
        dict.fromkeys(LABELS, 1),
    )  # nothing was done to it: all regions are as readable as they can be
    if severity:
        x, fov = to_tensor(eye.image), torch.from_numpy(eye.fov)[None, None]
        y = (
            degrade.apply(x, degrade.sample(1, generator, families, severity, **where), fov)
            .mul_(255)
            .round_()
        )
        stored = y[0].permute(1, 2, 0).to(torch.uint8).numpy()
        for label, circle in regions.items():
            region = fov if circle is None else fov & fov_mask(circle, size)
            row[label] = int(readable(x, y / 255, region)[0])
    row |= {f"fov_{key}": v / size for key, v in zip(Fov._fields, eye.view)}
    row |= {
        "disc_x": disc_x,
        "disc_y": disc_y,
        "disc_r": disc_r,
        "fovea_x": fovea_x,
        "fovea_y": fovea_y,
    }
    row |= {
        "severity": severity,
        "families": "+".join(families) if severity else "",
        "aim": aim if severity else "",
    }
    return stored, row


def joined(*sources):
    """Several sources as one: the images of the first, then those of the next, each with its own labels."""
    table = pd.concat([each.table for each in sources], ignore_index=True)
    recipe = {
        "kind": "+".join(each.recipe["kind"] for each in sources),
        "sources": [each.recipe for each in sources],
    }
    starts = np.cumsum([0, *map(len, sources)])
    missing = [name for each in sources for name in each.missing]
    return Source(
        recipe,
        table,
        partial(_joined_image, [each.image for each in sources], starts.tolist()),
        missing,
    )


def _joined_image(images, starts, index, size):
    which = int(np.searchsorted(starts, index, side="right")) - 1
    return images[which](index - starts[which], size)


def good(path):
    """The photographs of a folder that their owner vouches for: readable in all four labels, nothing done to them."""
    found = folder(path)
    return Source(
        found.recipe | {"good": True}, found.table[["name"]], partial(_good_image, found.image)
    )


def _good_image(image, index, size):
    crop, row = image(index, size)
    return crop, dict.fromkeys(LABELS, 1) | {"severity": 0.0} | row


def folder(path, csv=None):
    """The photographs of a folder and its subfolders, with the labels of `csv` where given (otherwise NaN).

    Names in the CSV are relative paths or file names, with or without extension. Rows without an image become
    `missing`. A folder of parquet files instead of photographs: see `parquet`. Raises InputError for a missing or empty
    folder, a bad CSV (see read_labels), names that fit several files.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    files, shards = _files(path)
    if files and shards:
        raise InputError(
            f"{path}: holds photographs ({files[0]}) and parquet files ({shards[0]}); name a folder of one kind"
        )
    if shards:
        return parquet(path, shards, csv)
    if not files:
        raise InputError(f"{path}: no images in this folder ({', '.join(EXTENSIONS)}, or .parquet)")
    recipe = _recipe("folder", path, files)
    if csv is None:
        table, missing = pd.DataFrame({"name": files}).assign(**dict.fromkeys(LABELS, np.nan)), []
    else:
        table, missing, seen = _labelled(csv, files, path)
        recipe |= seen
    return Source(recipe, table, partial(_photograph, path, table["name"].array), missing)


def _files(path):
    """(photographs, parquet files) of a folder and its subfolders: relative paths, sorted."""
    found = [Path(where, name).relative_to(path).as_posix() for where, _, names in os.walk(path) for name in names
             if name.lower().endswith((*EXTENSIONS, PARQUET))]  # fmt: skip
    found = sorted(
        name for name in found if not re.search(r"(^|/)\.", name)
    )  # none that is hidden, or in a hidden folder
    for name in found:
        if name != name.encode(errors="replace").decode():
            raise InputError(f"{path}: the name of the file {ascii(name)} is not UTF-8; rename it")
    shards = [name for name in found if name.lower().endswith(PARQUET)]
    return [name for name in found if not name.lower().endswith(PARQUET)], shards


def _size(file):
    try:
        return os.path.getsize(file)
    except FileNotFoundError:  # a broken link: named when its image is read
        return -1


def _recipe(kind, path, files):
    listing = "".join(f"{name} {_size(path / name)}\n" for name in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return {
        "kind": kind,
        "folder": path.resolve().name,
        "files": len(files),
        "listing_sha256": digest,
    }


def _labelled(csv, files, path):
    """Table of the images of `csv` that are among `files`, by the files' names; the names that are not; facts."""
    table, seen = read_labels(csv)
    found = _match(table["name"], files, path)
    missing = table["name"][found.isna()].tolist()
    if len(missing) == len(table):
        raise InputError(
            f"{csv}: none of its {len(table)} images is in {path} (first: {missing[0]})"
        )
    table = table.assign(name=found)[found.notna()].drop_duplicates(ignore_index=True)
    if len(twice := table["name"][table["name"].duplicated()]):
        raise InputError(
            f"{csv}: {len(twice)} images stand there under two names with different labels (first: {twice.iloc[0]})"
        )
    without = len(files) - table["name"].nunique()
    return (
        table,
        missing,
        {"csv": Path(csv).name, "csv_sha256": sha256(csv), **seen, "files_without_label": without},
    )


def _photograph(path, names, index, size):
    return _known(*read_crop(path / names[index], size, names[index]))


def _known(crop, fov, box, width, height):
    """A crop, and what is known of it, as a row of the table."""
    row = {f"fov_{key}": v for key, v in fov._asdict().items()} | {
        f"box_{key}": v for key, v in box._asdict().items()
    }
    return crop, row | {"source_width": width, "source_height": height}


def parquet(path, shards, csv=None):
    """The photographs in parquet `shards` (files of folder `path`), each with a column of images: struct {bytes, path}.

    Labels come from `csv`, whose names are the structs' paths, or else from the columns that `read_labels` knows. Raises
    InputError for shards without one such column of images, and, showing the text that they have, without labels: text
    is not interpreted.
    """
    import pyarrow
    import pyarrow.parquet as pq

    parts, names, numbered, groups, rows = [], [], [], [], 0
    for shard in shards:
        try:
            file = pq.ParquetFile(path / shard)
            column = _image_column(path / shard, file.schema_arrow)
            labels = [
                name for name in file.schema_arrow.names if name in SYNFUNDUS or name in LABELS
            ]
            named = (
                [f"{column}.path"]
                if file.schema_arrow.field(column).type.get_field_index("path") >= 0
                else []
            )
            read = file.read(columns=[*named, *labels], use_threads=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{path / shard}: not a readable parquet file ({' '.join(str(error).split())[:120]})"
            ) from None
        n = file.metadata.num_rows
        numbered += [f"{shard}/{i}" for i in range(n)]
        chunks = read.column(column).chunks if named else []
        names += [name for chunk in chunks for name in chunk.field("path").to_pylist()] or [
            None
        ] * n
        parts.append(read.select(labels).to_pandas())
        for group in range(file.num_row_groups):
            groups.append((shard, group, column, rows))
            rows += file.metadata.row_group(group).num_rows
    names, every = pd.Series(names, dtype=str), pd.concat(parts, ignore_index=True)
    recipe, missing, at = _recipe("parquet", path, shards) | {"images": rows}, [], np.arange(rows)
    if csv is not None:
        names = names.fillna(pd.Series(numbered))
        table, missing, seen = _labelled(csv, names, path)
        at = pd.Series(at, index=names)[table["name"]].to_numpy()  # unique: _match has seen to it
        order = np.argsort(at)  # as they lie in the shards, which are read from front to back
        table, at = table.iloc[order].reset_index(drop=True), at[order]
    elif len(every.columns):
        unnamed = names.isna() | names.duplicated(keep=False)
        table, seen = _checked(every.assign(name=names.mask(unnamed, numbered)), path)
    else:
        raise InputError(f"{path}: no readability columns ({', '.join(SYNFUNDUS)}) in these parquet files, and no CSV that "
                         f"labels their images; {_sample(path / shards[0])}")  # fmt: skip
    return Source(
        recipe | seen,
        table,
        partial(_parquet_image, _Rows(path, groups), table["name"].array, at),
        missing,
    )


def _image_column(path, schema):
    """Name of the column of fundus photographs: the only one of images, or the only one of them called so."""
    images = [
        each.name
        for each in schema
        if str(each.type).startswith("struct<") and each.type.get_field_index("bytes") >= 0
    ]
    named = [name for name in images if "fundus" in name.lower()]
    if len(images) != 1 and len(named) != 1:
        raise InputError(f"{path}: {len(images)} columns of images (struct with bytes and path) among {', '.join(schema.names)}; "
                         "needed is one, or one whose name says fundus")  # fmt: skip
    return images[0] if len(images) == 1 else named[0]


def _sample(path):
    """What the columns of text in a parquet file say, as far as a line holds it."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    text = [each.name for each in file.schema_arrow if str(each.type) in ("string", "large_string")]
    if not text or not file.metadata.num_rows:
        return f"{path.name} has no text"
    first = next(file.iter_batches(1, columns=text)).to_pylist()[0]
    return f"{path.name} says " + ", ".join(
        f"{key}: {' '.join(str(value).split())[:160]!r}" for key, value in first.items()
    )


class _Rows:
    """Bytes of the image in a row. Made for rising rows: in memory are the pages at hand, never more than a row group.

    Hugging Face writes groups of 100 images; one that holds a whole shard costs its size.
    """

    def __init__(self, path, groups):
        self.path, self.groups, self.starts = path, groups, [start for *_, start in groups]
        self.group, self.first, self.images = None, 0, []

    def __getstate__(self):
        return {
            **self.__dict__,
            "group": None,
            "first": 0,
            "images": [],
            "batches": None,
        }  # each process opens its own

    def __call__(self, row):
        import pyarrow
        import pyarrow.parquet as pq

        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        shard, number, column, start = self.groups[group]
        try:
            if group != self.group or row < self.first:
                file = pq.ParquetFile(self.path / shard, buffer_size=2**20, pre_buffer=False)
                self.batches = file.iter_batches(
                    16, row_groups=[number], columns=[f"{column}.bytes"], use_threads=False
                )
                self.group, self.first, self.images = group, start, []
            while row >= self.first + len(self.images):
                self.first += len(self.images)
                self.images = next(self.batches).column(0).field("bytes")
        except (OSError, pyarrow.ArrowException) as error:
            self.group = None  # the next row begins anew
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{shard}: damaged at row {row - start} of row group {number} ({reason})"
            ) from None
        return self.images[row - self.first].as_py()


def _parquet_image(rows, names, at, index, size):
    content = rows(at[index])
    if content is None:
        raise InputError(
            f"{names[index]}: no bytes in this row; only images that lie in the parquet file itself can be read"
        )
    return _known(*read_crop(io.BytesIO(content), size, names[index]))


def _match(names, files, path):
    """File of each name: equal as a path, then without extension, then by file name, then by file name without."""
    files = pd.Series(files, dtype=str)
    found = pd.Series(np.nan, index=names.index, dtype=object)
    last = files.str.rsplit("/", n=1).str[-1]
    stem = [each.str.replace(r"\.[^./]*$", "", regex=True) for each in (files, last)]
    for key in (files, stem[0], last, stem[1]):
        file_of = pd.Series(files.values, index=key)
        several = names[found.isna() & names.isin(key[key.duplicated()])]
        if len(several):
            raise InputError(
                f"{path}: {len(several)} names fit several files (first: {several.iloc[0]}); write paths"
            )
        found = found.fillna(names.map(file_of[~file_of.index.duplicated()]))
    return found


def read_labels(csv):
    """Read a label CSV: a name column (NAMES) and the four labels under our names or SynFundus-1M's.

    Values are 0/1, true/false, or numbers in [0, 1] cut at 0.5. Returns the table (name, the labels as float 0/1) and
    what was seen. Raises InputError that lists, in one line, every missing column and the first bad rows of each
    column (row 1 follows the header), or names that come twice with different labels.
    """
    wanted = {**{name: name for name in (*NAMES, *LABELS)}, **SYNFUNDUS}
    try:
        raw = pd.read_csv(
            csv,
            usecols=lambda column: column in wanted,
            dtype=dict.fromkeys(NAMES, str),
            index_col=False,
            skipinitialspace=True,
        )
        header = pd.read_csv(csv, nrows=0, index_col=False, skipinitialspace=True)
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file") from None
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: parser, encoding and empty-file errors of pandas
        raise InputError(
            f"{csv}: not a readable CSV ({' '.join(str(error).split())[:120]})"
        ) from None
    if raw.empty and not len(raw.columns) and (other := _separator(csv)):
        raise InputError(f"{csv}: its columns are separated by {other!r}; save it with commas")
    for column in raw:
        if f"{column}.1" in header:  # pandas renames the second
            raise InputError(f"{csv}: column {column} comes twice; leave one")
    return _checked(raw, csv)


def _checked(raw, origin):
    """What `read_labels` returns, from the columns found in `origin`."""
    import pandera.pandas as pa

    name = next((column for column in NAMES if column in raw), None)
    raw = raw.rename(
        columns={old: new for old, new in SYNFUNDUS.items() if new not in raw} | {name: "name"}
    )
    table = pd.DataFrame({column: raw[column] for column in ("name", *LABELS) if column in raw})
    for label in table.columns.intersection(LABELS):
        if not pd.api.types.is_numeric_dtype(table[label]):
            words = (
                table[label]
                .astype(str)
                .str.strip()
                .str.lower()
                .replace({"true": "1", "false": "0"})
            )
            table[label] = pd.to_numeric(words, errors="coerce")
        table[label] = table[label].astype(float)

    readable = {label: pa.Column(float, pa.Check.in_range(0, 1)) for label in LABELS}
    try:
        pa.DataFrameSchema({"name": pa.Column(nullable=False), **readable}).validate(
            table, lazy=True
        )
    except pa.errors.SchemaErrors as error:
        raise InputError(f"{origin}: {_summary(error.failure_cases, raw)}") from None
    if table.empty:
        raise InputError(f"{origin}: no rows")
    seen = {
        "rows": len(table),
        "values_between_0_and_1": int(((table[list(LABELS)] % 1) > 0).any(axis=1).sum()),
    }
    table[list(LABELS)] = (table[list(LABELS)] >= 0.5).astype(float)
    table = table.drop_duplicates(ignore_index=True)
    twice = table["name"][table["name"].duplicated()]
    if len(twice):
        raise InputError(
            f"{origin}: {len(twice)} names come twice with different labels (first: {twice.iloc[0]})"
        )
    return table, seen | {"repeated_rows": seen["rows"] - len(table)}


def _separator(csv):
    """';' or a tab, if the first line has one, else None."""
    with open(csv, encoding="utf-8", errors="replace") as file:
        header = file.readline()
    return next((mark for mark in ";\t" if mark in header), None)


def _summary(failures, raw):
    """One line from pandera's failure cases: missing columns, then the first three bad rows of each column."""
    spelt = {new: f"{new} (or {old})" for old, new in SYNFUNDUS.items()} | {
        "name": " or ".join(NAMES)
    }
    absent = failures.loc[failures["check"] == "column_in_dataframe", "failure_case"]
    lines = [f"column {spelt[column]} is missing" for column in absent]
    for column, bad in failures[failures["index"].notna()].groupby("column", sort=False):
        rows = sorted(set(bad["index"].astype(int)))
        first = ", ".join(f"row {i + 1}: {raw[column].iloc[i]}" for i in rows[:3])
        rule = "empty" if column == "name" else "not in 0..1"
        lines.append(f"{column} is {rule} in {len(rows)} rows ({first})")
    return "; ".join(lines)

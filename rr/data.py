"""Photographs in, one packed data set out.

Defines, in the order in which a photograph passes through them: `read_photograph`, `find_fov` and `crop_fov` (field of
view found, cropped, padded to a square, resized), the three sources `embedded`, `synfundus` and `folder`, the split
64/16/20 that keeps near-duplicates together, `pack` (one pass into a memory-mapped folder) and `Packed` (reads it).

Pixel coordinates are continuous: pixel i covers [i, i+1). Fractions are of the width of the square crop.
"""

import hashlib
import multiprocessing
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rr import degrade, synthetic
from rr.io import InputError, read_json, sha256, write_json, write_table, writing

LABELS = ("fundus", "macula", "disc", "retina")  # the four readability labels, in the paper's order
SYNFUNDUS = {  # SynFundus-1M's column => label
    "is_fundus": "fundus",
    "is_macular_readable": "macula",
    "is_optic_disc_readable": "disc",
    "is_retinal_region_readable": "retina",
}
NAMES = ("name", "file_name", "idx")  # columns that may hold the image's name, in order of preference
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
SPLITS = {"train": 0.64, "val": 0.16, "test": 0.20}  # paper 3.1
MAX_PIXELS = 150_000_000  # more is refused before decoding; three times the largest fundus cameras
NEAR_BITS = 15  # of 256: the same photograph resized or compressed again differs in <= 12, two eyes in >= 60
SKIPPED = 0.01  # share of unusable images that a pack leaves out (at least one); beyond it stops
FORMAT = 1  # of the packed folder


# ----------------------------------------------------------------------------------------------------- photographs


def read_photograph(path):
    """Read any common image file as an upright RGB photograph, uint8 (H, W, 3).

    EXIF orientation is applied, 16-bit greys are scaled to 8, transparency becomes black. Raises InputError if the
    file is missing, empty, truncated, no image, or larger than MAX_PIXELS (known from its header, not decoded).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, softer warning for large images, and damaged EXIF
            with Image.open(path) as photo:
                if photo.width * photo.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                photo.load()
                photo = ImageOps.exif_transpose(photo)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path}: more than {MAX_PIXELS // 10**6} megapixels; reduce it first") from None
    except Exception as error:  # noqa: BLE001  damaged files: OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason}); export it again as PNG or JPEG") from None
    if photo.mode.startswith("I"):
        grey = np.clip(np.asarray(photo), 0, 65535) / 257
        return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=2)
    if photo.mode == "F":
        raise InputError(f"{path}: pixels are floating-point numbers of unknown range; export it as 8-bit PNG or JPEG")
    if "A" in photo.mode or "a" in photo.mode or "transparency" in photo.info:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "black"), photo)
    return np.array(photo.convert("RGB"))


class Fov(NamedTuple):
    """Field of view: the disc (x, y, r) between the horizontal lines `top` and `bottom`, where many cameras cut it."""

    x: float
    y: float
    r: float
    top: float
    bottom: float


class Box(NamedTuple):
    """The square of the photograph, in its pixels, that became the crop. It may reach over the photograph's edges."""

    left: int
    top: int
    side: int


def find_fov(image):
    """Field of view of a photograph, uint8 (H, W, 3), as Fov in its pixels; None if there is no bright disc on black.

    On a thumbnail: threshold between surround and retina, largest component, then the circle through most points of
    its outline (RANSAC, least squares), so that flat cuts, notches and the frame may take away up to 80 % of the rim.
    """
    height, width = image.shape[:2]
    scale = max(height, width, 256) / 256
    thumb = Image.fromarray(image).resize((max(1, round(width / scale)), max(1, round(height / scale))), Image.BOX)
    value = np.asarray(thumb).max(axis=2).astype(np.float32)
    h, w = value.shape
    dark, bright = np.percentile(value, (1, 95))
    if bright - dark < 16 or dark > bright / 2:  # uniform, or no dark surround
        return None
    threshold = dark + max(6, 0.12 * (bright - dark))
    parts, count = ndimage.label(ndimage.median_filter(value, 3) > threshold)
    largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=2)[1:])
    disc = ndimage.binary_fill_holes(parts == largest)

    # The outline: midpoints between neighbouring pixels in and out of the disc. The frame itself is no outline.
    rows, columns = np.nonzero(disc[:, 1:] != disc[:, :-1])
    points = [np.stack([columns + 1, rows + 0.5], 1)]
    rows, columns = np.nonzero(disc[1:] != disc[:-1])
    points = np.concatenate([*points, np.stack([columns + 0.5, rows + 1], 1)]).astype(float)
    if count == 0 or len(points) < 60:
        return None
    circle = _circle_through_most(points, low=0.15 * min(h, w), high=max(h, w))
    if circle is None:
        return None
    x, y, r = circle
    on_rim = np.abs(np.hypot(*(points - (x, y)).T) - r) < 1.5
    angles = np.arctan2(*(points[on_rim] - (x, y)).T)
    seen = len(np.unique(np.floor(angles / np.pi * 36))) / 72  # share of the rim that is an outline

    r -= max(0, 0.5 - (threshold - dark) / (bright - dark))  # a pixel passes the threshold before it is half covered
    iy, ix = np.mgrid[:h, :w] + 0.5
    distance = np.hypot(ix - x, iy - y)
    top = _cut(disc & (distance < r), y, r)
    bottom = h - _cut((disc & (distance < r))[::-1], h - y, r)
    inside = (distance < r) & (iy > top) & (iy < bottom)
    surround = (distance > 1.04 * r) | (iy < top - 2) | (iy > bottom + 2)
    if (
        on_rim.mean() < 0.35
        or seen < 0.18
        or surround.mean() < 0.005
        or (value[surround] > threshold).mean() > 0.2
        or disc[inside].mean() < 0.6
    ):
        return None
    sx, sy = width / w, height / h
    return Fov(*map(float, (x * sx, y * sy, r * (sx + sy) / 2, max(0, top) * sy, min(h, bottom) * sy)))


def _circle_through_most(points, low, high, tries=400, tolerance=1.5):
    """Circle (x, y, r) with low < r < high within `tolerance` of most points (N, 2); None if no triple gives one."""
    rng = np.random.default_rng(0)
    a, b, c = points[rng.integers(len(points), size=(3, tries))]
    b, c = b - a, c - a
    area = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):  # collinear triples
        bb, cc = (b**2).sum(1), (c**2).sum(1)
        centre = np.stack([c[:, 1] * bb - b[:, 1] * cc, b[:, 0] * cc - c[:, 0] * bb], 1) / area[:, None]
    r = np.hypot(*centre.T)
    usable = (r > low) & (r < high)
    if not usable.any():
        return None
    centre, r = (centre + a)[usable], r[usable]
    distance = np.hypot(*(points - centre[:, None]).transpose(2, 0, 1))  # (tries, N)
    near = np.abs(distance - r[:, None]) < tolerance
    near = near[near.sum(1).argmax()]
    for _ in range(3):  # least squares: x^2 + y^2 = 2 x a + 2 y b + (r^2 - a^2 - b^2)
        p = points[near]
        (x, y, k), *_ = np.linalg.lstsq(np.c_[2 * p, np.ones(len(p))], (p**2).sum(1), rcond=None)
        r = np.sqrt(max(k + x * x + y * y, 0))
        near = np.abs(np.hypot(*(points - (x, y)).T) - r) < tolerance
        if near.sum() < 20 or not low < r < high:
            return None
    return x, y, r


def _cut(disc, y, r):
    """First row of the field of view: where a disc mask starts flat, as after a cut, otherwise the circle's y - r."""
    rows = np.arange(len(disc)) + 0.5
    chord = 2 * np.sqrt(np.maximum(r**2 - (rows - y) ** 2, 0))
    filled = disc.sum(1)
    begun = np.argmax(filled > 0)
    full = np.argmax(filled > 0.8 * np.maximum(np.minimum(chord, disc.shape[1]), 3))
    slack = 1 + 0.02 * r
    flat = full - begun <= slack and full - (y - r) > slack
    return float(full) if flat else y - r


def crop_fov(image, size, required=True):
    """Crop a photograph (H, W, 3) to the square round its field of view, black outside of the frame, at size x size.

    Returns the crop, uint8 (size, size, 3); the Fov in fractions of the crop; the Box in pixels of the photograph.
    Without a field of view: InputError if `required`, otherwise the whole frame as a square and a Fov of NaN.
    """
    height, width = image.shape[:2]
    fov = find_fov(image)
    if fov is None:
        if required:
            raise InputError("no field of view found (a bright disc on a dark surround); is it a fundus photograph?")
        side = max(height, width)
        box, fov = Box((width - side) // 2, (height - side) // 2, side), Fov(*[np.nan] * 5)
    else:
        box = Box(round(fov.x - fov.r), round(fov.y - fov.r), max(1, round(2 * fov.r)))
        x, y, r, top, bottom = np.array(fov) / box.side
        x0, y0 = box.left / box.side, box.top / box.side
        fov = Fov(*map(float, (x - x0, y - y0, r, top - y0, bottom - y0)))
    square = Image.fromarray(image).crop((box.left, box.top, box.left + box.side, box.top + box.side))
    return np.array(square.resize((size, size), Image.LANCZOS, reducing_gap=3)), fov, box


def fov_mask(circle, size):
    """Masks (N, 1, size, size), bool, of fields of view `circle` (N, 5) in fractions x, y, r, top, bottom.

    NaN, an image without field of view, gives the whole frame.
    """
    x, y, r, top, bottom = torch.as_tensor(circle, dtype=torch.float32)[:, :, None, None, None].unbind(1)
    at = (torch.arange(size, device=x.device) + 0.5) / size
    column, row = at[None, :], at[:, None]
    inside = ((column - x) ** 2 + (row - y) ** 2 <= r**2) & (row >= top) & (row <= bottom)
    return inside | x.isnan()


# --------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class Source:
    """Images to pack. `image(i, size)` gives the uint8 (size, size, 3) crop of row i and what is known of it."""

    recipe: dict  # what decides the content: kind, seed, files; a pack with an equal recipe is reused
    table: pd.DataFrame  # one row per image: name, and the labels as far as they are known before reading
    image: Callable[[int, int], tuple[np.ndarray, dict]]
    missing: list = field(default_factory=list)  # names in the label table that have no image

    def __len__(self):
        return len(self.table)


def embedded(n, seed=0):
    """n procedural images (rr.synthetic), 6 % no fundus, of the others 30 % clean and 70 % degraded (rr.degrade).

    Half of the degraded ones only round the disc or round the macula. Labels follow from degrade.readable in each
    region. Image i depends on (seed, i) alone.
    """
    if n < 1:
        raise InputError(f"embedded data: {n} images asked for; at least 1 is needed")
    code = hashlib.sha256(b"".join(Path(m.__file__).read_bytes() for m in (synthetic, degrade))).hexdigest()[:12]
    table = pd.DataFrame({"name": [f"embedded-{seed}-{i:06d}" for i in range(n)]})
    return Source({"kind": "embedded", "n": n, "seed": seed, "code": code}, table, partial(_embedded_image, seed))


def _embedded_image(seed, index, size):
    rng = np.random.default_rng([seed, index, 3])  # 3: a stream of its own, beside those of rr.synthetic
    if rng.random() < 0.06:
        return synthetic.not_fundus(seed, index, size), dict.fromkeys(LABELS, 0)
    eye = synthetic.fundus(seed, index, size)
    circle = find_fov(np.repeat(eye.fov[..., None] * np.uint8(255), 3, axis=2))
    disc_x, disc_y, disc_r = (float(v) / size for v in eye.disc_circle)
    fovea_x, fovea_y = (float(v) / size for v in eye.fovea)

    # severity 0 in 30 %; the cube root favours what is visibly degraded
    severity = 0.0 if rng.random() < 0.3 else float(rng.random() ** (1 / 3))
    chosen = rng.permutation(degrade.FAMILIES)[: rng.integers(1, len(degrade.FAMILIES) + 1)]
    families = tuple(name for name in degrade.FAMILIES if name in chosen)
    aim = str(rng.choice(["whole", "whole", "disc", "macula"]))
    where = {
        "whole": {},
        "disc": {"centre": torch.tensor([[disc_x, disc_y]]), "radius": torch.tensor([2 * disc_r])},
        "macula": {"centre": torch.tensor([[fovea_x, fovea_y]]), "radius": torch.tensor([2.6 * disc_r])},
    }[aim]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    x = torch.from_numpy(eye.image).permute(2, 0, 1)[None] / 255
    fov = torch.from_numpy(eye.fov)[None, None]
    y = degrade.apply(x, degrade.sample(1, generator, families, severity, **where), fov)
    regions = {
        "macula": fov & fov_mask(torch.tensor([[fovea_x, fovea_y, 2 * disc_r, 0, 1]]), size),
        "disc": fov & fov_mask(torch.tensor([[disc_x, disc_y, 1.2 * disc_r, 0, 1]]), size),
        "retina": fov,
    }
    stored = (y * 255).round().to(torch.uint8)
    row = {"fundus": 1} | {label: int(degrade.readable(x, stored / 255, regions[label])[0]) for label in regions}
    row |= {f"fov_{key}": v / size for key, v in circle._asdict().items()}
    row |= {"disc_x": disc_x, "disc_y": disc_y, "disc_r": disc_r, "fovea_x": fovea_x, "fovea_y": fovea_y}
    row |= {"severity": severity, "families": "+".join(families) if severity else "", "aim": aim if severity else ""}
    return stored[0].permute(1, 2, 0).numpy(), row


def synfundus(images, csv):
    """SynFundus-1M: a folder of images, flat or nested, and its annotation CSV (file_name or idx, the is_* columns)."""
    return folder(images, csv)


def folder(path, csv=None):
    """The photographs of a folder and its subfolders, with the labels of `csv` where given (otherwise NaN).

    Names in the CSV are relative paths or file names, with or without extension. Rows without an image become
    `missing`. Raises InputError for a missing or empty folder, a bad CSV (see read_labels), names that fit several files.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")
    files = sorted(
        os.path.relpath(os.path.join(where, name), path).replace(os.sep, "/")
        for where, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
    )
    if not files:
        raise InputError(f"{path}: no images in this folder ({', '.join(EXTENSIONS)})")
    listing = "".join(f"{name} {os.path.getsize(path / name)}\n" for name in files)
    recipe = {"kind": "folder", "folder": path.resolve().name, "files": len(files)}
    recipe["listing_sha256"] = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    if csv is None:
        table, missing = pd.DataFrame({"name": files}).assign(**dict.fromkeys(LABELS, np.nan)), []
    else:
        table, seen = read_labels(csv)
        recipe |= {"csv": Path(csv).name, "csv_sha256": sha256(csv), **seen}
        found = _match(table["name"], files, path)
        missing = table["name"][found.isna()].tolist()
        if len(missing) == len(table):
            raise InputError(f"{csv}: none of its {len(table)} images is in {path} (first: {missing[0]})")
        table = table.assign(name=found)[found.notna()].reset_index(drop=True)
        recipe["files_without_label"] = len(files) - table["name"].nunique()
    return Source(recipe, table, partial(_photograph, path, table["name"].tolist()), missing)


def _photograph(path, names, index, size):
    image = read_photograph(path / names[index])
    crop, fov, box = crop_fov(image, size, required=False)
    row = {f"fov_{key}": v for key, v in fov._asdict().items()} | {f"box_{key}": v for key, v in box._asdict().items()}
    return crop, row | {"source_width": image.shape[1], "source_height": image.shape[0]}


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
            raise InputError(f"{path}: {len(several)} names fit several files (first: {several.iloc[0]}); write paths")
        found = found.fillna(names.map(file_of[~file_of.index.duplicated()]))
    return found


def read_labels(csv):
    """Read a label CSV: a name column (NAMES) and the four labels under our names or SynFundus-1M's.

    Values are 0/1, true/false, or numbers in [0, 1] cut at 0.5. Returns the table (name, the labels as float 0/1) and
    what was seen. Raises InputError that lists, in one line, every missing column and the first bad rows of each
    column (row 1 follows the header), or names that come twice with different labels.
    """
    import pandera.pandas as pa

    wanted = {**{name: name for name in (*NAMES, *LABELS)}, **SYNFUNDUS}
    try:
        raw = pd.read_csv(csv, usecols=lambda column: column in wanted, dtype=dict.fromkeys(NAMES, str))
    except FileNotFoundError:
        raise InputError(f"{csv}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: parser, encoding and empty-file errors of pandas
        raise InputError(f"{csv}: not a readable CSV ({' '.join(str(error).split())[:120]})") from None
    name = next((column for column in NAMES if column in raw), None)
    raw = raw.rename(columns={old: new for old, new in SYNFUNDUS.items() if new not in raw} | {name: "name"})
    table = pd.DataFrame({column: raw[column] for column in ("name", *LABELS) if column in raw})
    for label in table.columns.intersection(LABELS):
        if not pd.api.types.is_numeric_dtype(table[label]):
            words = table[label].astype(str).str.strip().str.lower().replace({"true": "1", "false": "0"})
            table[label] = pd.to_numeric(words, errors="coerce")
        table[label] = table[label].astype(float)

    readable = {label: pa.Column(float, pa.Check.in_range(0, 1)) for label in LABELS}
    try:
        pa.DataFrameSchema({"name": pa.Column(nullable=False), **readable}).validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        raise InputError(f"{csv}: {_summary(error.failure_cases, raw)}") from None
    if table.empty:
        raise InputError(f"{csv}: no rows")
    seen = {"rows": len(table), "values_between_0_and_1": int(((table[list(LABELS)] % 1) > 0).any(axis=1).sum())}
    table[list(LABELS)] = (table[list(LABELS)] >= 0.5).astype(float)
    table = table.drop_duplicates(ignore_index=True)
    twice = table["name"][table["name"].duplicated()]
    if len(twice):
        raise InputError(f"{csv}: {len(twice)} names come twice with different labels (first: {twice.iloc[0]})")
    return table, seen | {"repeated_rows": seen["rows"] - len(table)}


def _summary(failures, raw):
    """One line from pandera's failure cases: missing columns, then the first three bad rows of each column."""
    spelt = {new: f"{new} (or {old})" for old, new in SYNFUNDUS.items()} | {"name": " or ".join(NAMES)}
    absent = failures.loc[failures["check"] == "column_in_dataframe", "failure_case"]
    lines = [f"column {spelt[column]} is missing" for column in absent]
    for column, bad in failures[failures["index"].notna()].groupby("column", sort=False):
        rows = sorted(set(bad["index"].astype(int)))
        first = ", ".join(f"row {i + 1}: {raw[column].iloc[i]}" for i in rows[:3])
        rule = "empty" if column == "name" else "not in 0..1"
        lines.append(f"{column} is {rule} in {len(rows)} rows ({first})")
    return "; ".join(lines)


# ---------------------------------------------------------------------------------------------------------- splits


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


# --------------------------------------------------------------------------------------------------------- packing


def pack(source, size, out, seed=0, workers=1):
    """Write a source as a packed folder `out` (images.npy, table.csv, manifest.json) and return it as Packed.

    One pass, image by image, whatever their number. The manifest is written last: a folder without one is no pack. An
    existing pack of the same recipe, size and seed is returned as it is. Unusable images are skipped and listed, up to
    SKIPPED of all; then InputError. The content does not depend on `workers` (processes).
    """
    from filelock import FileLock

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"format": FORMAT, "size": size, "seed": seed, "source": source.recipe}
    with FileLock(out / ".lock"):  # two notebooks may ask for the same pack at once
        if (out / "manifest.json").exists() and read_json(out / "manifest.json").get("recipe") == recipe:
            return Packed(out)
        for left in out.glob(".images-*.npy"):  # of a killed run; nobody else writes while we hold the lock
            left.unlink()
        _write(source, recipe, out, workers)
    return Packed(out)


def _write(source, recipe, out, workers):
    from tqdm.auto import tqdm

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
    folder is missing, incomplete or damaged.
    """

    def __init__(self, path, verify=False):
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
        self.table = pd.read_csv(path / "table.csv", keep_default_na=True, dtype={"name": str})
        self.labels = torch.tensor(self.table[list(LABELS)].to_numpy(np.float32))
        self.hash = hashlib.sha256("".join(sums).encode()).hexdigest()[:12]

    def __len__(self):
        return len(self.table)

    def rows(self, split=None, readable=None, **labels):
        """Indices, (M,) int64, of the images of a split whose labels are as asked: rows("train", disc=0, fundus=1).

        readable: True for all four labels 1; False for a fundus with some label 0. Unknown labels fit neither.
        """
        if split not in (None, *SPLITS):
            raise InputError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
        if unknown := set(labels) - set(LABELS):
            raise InputError(f"label {unknown.pop()!r}: choose from {', '.join(LABELS)}")
        table, four = self.table, self.table[list(LABELS)]
        keep = table["split"].isin(SPLITS if split is None else [split])
        if readable is True:
            keep &= (four == 1).all(axis=1)
        elif readable is False:
            keep &= (four["fundus"] == 1) & (four == 0).any(axis=1)
        for label, value in labels.items():
            keep &= four[label] == value
        return np.flatnonzero(keep)

    def batch(self, rows, device="cpu"):
        """Images of `rows` as float32 (B, 3, S, S) in [0, 1] on `device`."""
        return torch.from_numpy(self.images[np.asarray(rows)]).to(device).float() / 255

    def fov(self, rows, device="cpu"):
        """Field-of-view masks of `rows`, bool (B, 1, S, S); the whole frame where there is none."""
        return fov_mask(self._columns(rows, [f"fov_{key}" for key in Fov._fields]).to(device), self.size)

    def disc(self, rows):
        """Optic discs of `rows` as (B, 3): x, y, r in fractions of the width, NaN where unknown."""
        return self._columns(rows, ["disc_x", "disc_y", "disc_r"])

    def _columns(self, rows, columns):
        return torch.tensor(self.table[columns].to_numpy(np.float32)[np.asarray(rows)])

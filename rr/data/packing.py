"""Packing: a source's images, once, into a folder of shards, split 64/16/20 with near-duplicates kept together.

Defines `dhash` and `near_duplicates`, `split`, and `pack`, one pass over a source, shard by shard, which ends as an
rr.data.Packed. Made for a million images: what grows with their number is the table and the hashes.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from itertools import combinations, islice

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rr.data.dataset import FORMAT, SPLITS, Packed, header
from rr.data.photo import Fov
from rr.errors import InputError
from rr.files import (
    exclusive_lock,
    folder,
    read_json,
    remove_partial_files,
    sha256,
    write_json,
    write_table,
    writing,
)
from rr.paper import LABELS

NEAR_BITS = 15  # of 256: the same photograph resized or compressed again differs in <= 12, two eyes in >= 60
SKIPPED = 0.01  # share of unusable images that a pack leaves out (at least one); beyond it stops
SHARD = 4096  # images of a source that become one file; .6 GB at 224 px


def dhash(image):
    """Perceptual hash of a crop (S, S, 3), uint8 (32,): signs of horizontal differences of a 17x16 grey thumbnail.

    Of the inner 70 %, because the rim is the same in every eye, and after a high-pass, because so is the vignetting.
    """
    edge = 0.15 * len(image)
    inner = Image.fromarray(image).convert("L").convert("F")
    grey = np.asarray(
        inner.resize((17, 16), Image.BOX, box=(edge, edge, len(image) - edge, len(image) - edge))
    )
    grey = grey - ndimage.gaussian_filter(grey, 2)
    return np.packbits(
        grey[:, 1:] > grey[:, :-1] + 0.25
    )  # + 1/4: a uniform image hashes to 0 in spite of noise


def near_duplicates(hashes):
    """Group number (N,) of each 256-bit hash (N, 32): hashes at most NEAR_BITS apart are linked, links are followed.

    Exact by the pigeonhole principle: cut into NEAR_BITS + 2 bands, two such hashes agree in at least two whole bands.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(
        256
    )  # neighbouring bits are alike: mixed, every band tells much
    bits = np.unpackbits(unique, axis=1)[:, shuffled]
    power = 1 << np.arange(16, dtype=np.uint32)
    bands = [part @ power[: part.shape[1]] for part in np.array_split(bits, NEAR_BITS + 2, axis=1)]
    words = np.ascontiguousarray(unique).view(np.uint64)  # (N, 4)
    group = np.arange(len(unique))
    for one, two in combinations(bands, 2):  # each below 2^16
        while len(links := _links((one << 16) | two, group, words)):
            graph = coo_array(
                (np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(len(unique),) * 2
            )
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
    memory not on the number of images but for table and hashes. Raises InputError if `out` holds other things than a pack.
    """
    out = folder(out)
    recipe = {
        "format": FORMAT,
        "size": size,
        "seed": seed,
        "source": source.recipe,
    }
    if _recorded(out / "manifest.json").get("recipe") == recipe:
        return Packed(out)
    with exclusive_lock(
        out / ".lock", f"another process packs images in {out}"
    ):  # two notebooks may ask for the same pack at once
        if _recorded(out / "manifest.json").get("recipe") != recipe:
            remove_partial_files(out)  # nobody else writes while we hold the lock
            _finish(source, recipe, out, _shards(source, recipe, out, workers))
    return Packed(out)


def _recorded(path):
    """What a manifest or a list of progress says; {} where there is none, or where somebody else's file has its name."""
    known = read_json(path) if path.exists() else {}
    return known if isinstance(known, dict) and "recipe" in known else {}


def _shards(source, recipe, out, workers):
    """Write what is missing of the shards; returns of each its name, count, sha256 and what it skipped.

    progress.json lists those that are complete, each with a table of its rows beside it, until the manifest does.
    """
    from tqdm import tqdm

    n, size, stem = (
        len(source),
        recipe["size"],
        hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8],
    )
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
                    header(file, SHARD, size)
                    for i, image in enumerate(islice(made, min(SHARD, n - first)), first):
                        bar.update()
                        if isinstance(image, str):
                            reasons.append(image)
                            skipped.append(image)
                            if len(skipped) > allowed or len(skipped) == n:
                                write_table(out / "unusable.csv", pd.DataFrame({"reason": skipped}))
                                raise InputError(f"{len(skipped)} of the first {i + 1} images are unusable: {skipped[0]}; "
                                                 f"{SKIPPED:.0%} of all may be; they are in {out / 'unusable.csv'}")  # fmt: skip
                            continue
                        pixels, hashed, row = image
                        file.write(pixels)
                        rows.append({"index": i, "hash": hashed.tobytes().hex(), **row})
                    file.seek(0)
                    header(
                        file, len(rows), size
                    )  # numpy pads the header so that the count can change in place
                digest = sha256(part)
            write_table(
                out / f"{name}.csv", pd.DataFrame(rows, columns=None if rows else ["index", "hash"])
            )
            done.append({"name": name, "count": len(rows), "sha256": digest, "skipped": reasons})
            write_json(out / "progress.json", {"recipe": recipe, "shards": done})
    return done


def _complete(out, recipe):
    """The shards that an earlier call of the same recipe completed; all others are removed."""
    known, old = _recorded(out / "progress.json"), _recorded(out / "manifest.json")
    if not (known or old) and (
        others := [path.name for path in out.iterdir() if not path.name.startswith(".")]
    ):
        raise InputError(
            f"{out}: holds {min(others)} and is no packed data set; choose an empty folder"
        )
    done = known["shards"] if known.get("recipe") == recipe else []
    whole = [
        (out / f"{shard['name']}.npy").exists() and (out / f"{shard['name']}.csv").exists()
        for shard in done
    ]
    done = done[: [*whole, False].index(False)]
    if done:
        print(
            f"{out}: goes on after {len(done)} shards, {sum(shard['count'] for shard in done)} images"
        )
    elif old or known.get("recipe", recipe) != recipe:
        print(f"{out}: holds images of another recipe, which are replaced")
    _sweep(out, [*done, *old.get("shards", [])])
    write_json(
        out / "progress.json", {"recipe": recipe, "shards": done}
    )  # from now on this folder is ours
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
    known = pd.concat(
        [read(out / f"{shard['name']}.csv") for shard in shards if shard["count"]]
    ).set_index("index")
    hashes = np.frombuffer(bytes.fromhex("".join(known.pop("hash"))), np.uint8).reshape(-1, 32)
    table = source.table.loc[known.index].join(known).reset_index(drop=True)
    for column in (
        *(f"fov_{key}" for key in Fov._fields),
        "disc_x",
        "disc_y",
        "disc_r",
        "fovea_x",
        "fovea_y",
    ):
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
    sizes = Counter(
        f"{w}x{h}" for w, h in zip(table.get("source_width", []), table.get("source_height", []))
    )
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
    for path in (
        out / "progress.json",
        out / "unusable.csv",
        *(out / f"{shard['name']}.csv" for shard in shards),
    ):
        path.unlink(missing_ok=True)  # all of it is in the table and the manifest
    _sweep(out, shards)


def _made(source, size, workers, start):
    """Yield, in order, (pixels as bytes (3, S, S), hash, row) of every image from `start`, or why there is none."""
    threads = torch.get_num_threads()
    if workers == 1:
        torch.set_num_threads(
            1
        )  # sums depend on the number of threads; every way of packing gives the same bytes
        try:
            yield from (_make(source.image, size, i) for i in range(start, len(source)))
        finally:
            torch.set_num_threads(threads)
        return
    spawn = multiprocessing.get_context("spawn")  # torch does not survive fork
    try:
        with ProcessPoolExecutor(workers, spawn, _start, (source.image, size)) as pool:
            for first in range(
                start, len(source), 64 * workers
            ):  # in blocks: a bounded number of results waits
                yield from pool.map(
                    _next, range(first, min(first + 64 * workers, len(source))), chunksize=4
                )
    except BrokenProcessPool:
        raise InputError(
            "packing: a worker was killed, for want of memory perhaps; the same call with fewer workers goes on"
        )


def _start(image, size):
    global _next_image
    _next_image = partial(_make, image, size)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """A killed parent leaves its workers waiting for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _next(i):
    return _next_image(i)


def _make(image, size, i):
    try:
        pixels, row = image(i, size)
    except InputError as error:
        return str(error)
    return pixels.transpose(2, 0, 1).tobytes(), dhash(pixels), row

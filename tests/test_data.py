"""rr.packing and rr.data: near-duplicates, splits, packs that are whole or absent."""

import dataclasses
import functools
import io
import os
import pickle
import resource
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from drawn import line
from PIL import Image

from rr.data import dataset as data
from rr.data import packing, photo, sources
from rr.errors import InputError
from rr.files import ROOT, sha256
from rr.paper import LABELS

PHOTOS = sorted((ROOT.parent / "shared" / "photos").glob("*.jpg"))


# ---- splits


def shard(folder, k):
    """The k-th shard of the only pack in a folder."""
    (path,) = folder.glob(f"shard-*-{k:05d}.npy")
    return path


def test_near_duplicates_equal_brute_force():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (400, 32), dtype=np.uint8)
    bits = np.unpackbits(hashes, axis=1)
    for i in range(100):  # copies with 0 to 20 flipped bits, some of them chains
        bits[300 + i] = bits[200 + i]
        bits[300 + i, rng.choice(256, i % 21, replace=False)] ^= 1
    hashes = np.packbits(bits, axis=1)
    groups = packing.near_duplicates(hashes)
    apart = (bits[:, None] != bits[None]).sum(-1)
    assert np.array_equal(groups[:, None] == groups[None], apart <= packing.NEAR_BITS)
    assert len(np.unique(groups)) == 400 - sum(i % 21 <= packing.NEAR_BITS for i in range(100))


def test_near_duplicates_of_many_alike():
    rng = np.random.default_rng(0)
    bits = np.zeros(
        (3000, 256), np.uint8
    )  # nearly black images: few bits at random, all within reach of one another
    for row in bits[:2900]:
        row[rng.choice(256, 4, replace=False)] = 1
    bits[2900:] = rng.integers(0, 2, (100, 256))
    hashes = np.packbits(bits, axis=1)
    group = packing.near_duplicates(hashes)
    assert len(np.unique(group[:2900])) == 1 and len(np.unique(group)) == 101
    assert np.array_equal(group == group[0], np.arange(3000) < 2900)
    few = packing._links(
        np.zeros(3000, np.uint32), np.arange(3000), hashes.view(np.uint64), most=10
    )
    assert len(few) >= 10  # and not all four million


def test_hash_survives_a_second_compression_and_separates_eyes():
    image = skimage.data.retina()
    buffer = io.BytesIO()
    Image.fromarray(image).resize((900, 900)).save(buffer, "jpeg", quality=70)
    again = photo.crop_fov(photo.read_photograph(buffer), 224)[0]
    first = packing.dhash(photo.crop_fov(image, 224)[0])
    assert np.bitwise_count(first ^ packing.dhash(again)).sum() <= packing.NEAR_BITS
    eyes = np.array([packing.dhash(sources.embedded(9).image(i, 96)[0]) for i in range(9)])
    apart = np.bitwise_count(eyes[:, None] ^ eyes[None]).sum(-1)[np.triu_indices(9, 1)]
    assert apart.min() > 2 * packing.NEAR_BITS


def test_split_is_stratified_deterministic_and_keeps_groups():
    rng = np.random.default_rng(0)
    labels = (rng.random((5000, 4)) < (0.94, 0.7, 0.8, 0.9)).astype(float)
    groups = np.concatenate([np.arange(4800), rng.integers(0, 4800, 200)])
    names = packing.split(labels, groups, seed=3)
    assert np.array_equal(names, packing.split(labels, groups, seed=3))
    assert (names != packing.split(labels, groups, seed=4)).mean() > 0.3
    assert pd.Series(names).groupby(groups).nunique().max() == 1
    patterns = pd.Series([str(row) for row in labels])
    for pattern, count in patterns.value_counts().items():
        for name, share in data.SPLITS.items():
            found = (names[patterns == pattern] == name).mean()
            assert abs(found - share) < max(0.02, 3 / count), (pattern, count, name)
    for name, share in data.SPLITS.items():
        assert abs((names == name).mean() - share) < 0.005


@pytest.mark.parametrize(
    "n, counts", [(1, (1, 0, 0)), (3, (3, 0, 0)), (5, (4, 0, 1)), (25, (16, 4, 5))]
)
def test_split_of_few(n, counts):
    names = packing.split(np.full((n, 4), np.nan), np.arange(n))
    assert tuple((names == name).sum() for name in data.SPLITS) == counts


def test_same_picture_never_in_two_splits(tmp_path, photos):
    for i in range(8):
        Image.open(photos / "a.jpg").save(photos / f"again{i}.jpg", quality=72 + 3 * i)
    table = packing.pack(sources.folder(photos), 48, tmp_path / "out").table
    same = table[table["name"].str.match("a.jpg|again")]
    assert len(same) == 9 and same["group"].nunique() == same["split"].nunique() == 1
    assert table["group"].nunique() == 6


# ---- packs


def test_pack_does_not_depend_on_workers(tmp_path):
    one = packing.pack(sources.embedded(24, seed=2), 32, tmp_path / "one")
    two = packing.pack(sources.embedded(24, seed=2), 32, tmp_path / "two", workers=2)
    assert one.manifest == two.manifest and one.hash == two.hash
    assert [sha256(tmp_path / "one" / f"{shard['name']}.npy") for shard in one.manifest["shards"]] == [
        shard["sha256"] for shard in two.manifest["shards"]]  # fmt: skip
    image, _ = sources.embedded(24, seed=2).image(7, 32)
    assert np.array_equal(one.pixels([7])[0].permute(1, 2, 0), image)
    x = one.batch([7, 3])
    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32
    assert torch.allclose(
        x[0], torch.from_numpy(image).permute(2, 0, 1).float() / 255, rtol=0, atol=1e-7
    )


def test_pack_is_reused_or_remade(tmp_path):
    first = packing.pack(sources.embedded(4), 32, tmp_path)
    written = shard(tmp_path, 0).stat().st_mtime_ns
    assert packing.pack(sources.embedded(4), 32, tmp_path).hash == first.hash
    assert shard(tmp_path, 0).stat().st_mtime_ns == written
    assert len(packing.pack(sources.embedded(5), 32, tmp_path)) == 5
    assert packing.pack(sources.embedded(5), 40, tmp_path).size == 40


def test_rows(tmp_path):
    packed = packing.pack(sources.embedded(60, seed=1), 32, tmp_path)
    parts = [set(packed.rows(name)) for name in data.SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(packed) == 60
    readable, unreadable, other = (
        packed.rows(readable=True),
        packed.rows(readable=False),
        packed.rows(fundus=0),
    )
    assert sorted([*readable, *unreadable, *other]) == list(range(60))
    assert (packed.labels[readable] == 1).all() and (
        packed.labels[unreadable].min(dim=1).values == 0
    ).all()
    assert set(packed.rows("train", disc=False)) == parts[0] & set(
        np.flatnonzero(packed.labels[:, 2] == 0)
    )
    for bad in ({"split": "trian"}, {"optic": 1}):
        with pytest.raises(InputError, match="choose"):
            packed.rows(**bad)


class Killed(Exception):
    pass


def stopping(source, at, stop):
    """The source, which ends with `stop(i)` when image `at` is asked for."""
    return dataclasses.replace(
        source, image=lambda i, size: source.image(i, size) if i < at else stop(i)
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "SHARD", 4)


def test_a_stopped_pack_goes_on_and_ends_with_the_same_bytes(tmp_path, small_shards, capsys):
    source = sources.embedded(11, seed=4)
    whole = packing.pack(source, 32, tmp_path / "whole")
    assert [shard["count"] for shard in whole.manifest["shards"]] == [4, 4, 3]
    made = []

    def counted(i, size):
        made.append(i)
        return source.image(i, size)

    def killed(i):
        raise Killed

    for at in (9, 9, 6):  # in the third shard; again, before anything new is complete; before that
        with pytest.raises(Killed):
            packing.pack(stopping(source, at, killed), 32, tmp_path / "cut")
        with pytest.raises(InputError, match="no complete packed data set"):
            data.Packed(tmp_path / "cut")
    cut = packing.pack(dataclasses.replace(source, image=counted), 32, tmp_path / "cut")
    assert made == [8, 9, 10] and "goes on after 2 shards, 8 images" in capsys.readouterr().out
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") and cut.hash == whole.hash
    assert torch.equal(
        cut.pixels([10, 3, 4]), torch.stack([whole.pixels([i])[0] for i in (10, 3, 4)])
    )


def test_shards_of_another_recipe_are_discarded(tmp_path, small_shards, capsys):
    def killed(i):
        raise Killed

    with pytest.raises(Killed):
        packing.pack(stopping(sources.embedded(11, seed=4), 9, killed), 32, tmp_path)
    assert len(list(tmp_path.glob("shard-*.npy"))) == 2
    packed = packing.pack(sources.embedded(3, seed=5), 32, tmp_path)
    assert "another recipe" in capsys.readouterr().out and len(packed) == 3
    assert sorted(contents(tmp_path)) == ["manifest.json", shard(tmp_path, 0).name, "table.csv"]


def test_killed_pack_leaves_whole_shards_only(tmp_path, small_shards):
    code = (
        "import os, sys; from rr import packing, sources; source = sources.embedded(9); image = source.image\n"
        "packing.SHARD = 4\n"
        "def stop(i, size):\n    return image(i, size) if i < 5 else os._exit(9)\n"
        "object.__setattr__(source, 'image', stop); packing.pack(source, 32, sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, check=False
    )
    assert (
        done.returncode == 9
        and list(tmp_path.glob(".shard-*-00001.part-*"))
        and not list(tmp_path.glob("shard-*-00001.npy"))
    )
    with pytest.raises(InputError, match="no complete packed data set"):
        data.Packed(tmp_path)
    first = shard(tmp_path, 0).stat().st_mtime_ns
    assert (
        len(packing.pack(sources.embedded(9), 32, tmp_path)) == 9
    )  # the next call goes on, and cleans up
    assert shard(tmp_path, 0).stat().st_mtime_ns == first and not list(tmp_path.glob(".shard-*"))


def flat(n, bad=()):
    """n images of one colour each, their number modulo 256, of which some are bad."""

    def image(i, size):
        if i in bad:
            raise InputError(f"image {i}: bad")
        return np.full((size, size, 3), i % 256, np.uint8), dict.fromkeys(LABELS, 1)

    return dataclasses.replace(sources.embedded(n), image=image)


def test_bad_images_over_all_shards(tmp_path, small_shards):
    packed = packing.pack(flat(301, bad=[4, 5, 300]), 8, tmp_path / "few")
    counts = [shard["count"] for shard in packed.manifest["shards"]]
    assert counts[1] == 2 and counts[-1] == 0 and sum(counts) == len(packed) == 298
    assert packed.manifest["skipped"] == [f"image {i}: bad" for i in (4, 5, 300)]
    assert (
        packed.pixels([4, 297])[:, 0, 0, 0].tolist() == [6, 299 % 256]
        and packed.table["name"][4] == "embedded-0-000006"
    )
    with pytest.raises(
        InputError, match="4 of the first 251 images are unusable: image 4"
    ) as error:
        packing.pack(flat(301, bad=[4, 5, 99, 250]), 8, tmp_path / "many")
    line(error)
    reasons = pd.read_csv(tmp_path / "many" / "unusable.csv")["reason"].tolist()
    assert reasons == [f"image {i}: bad" for i in (4, 5, 99, 250)] and str(
        tmp_path / "many" / "unusable.csv"
    ) in str(error.value)
    assert len(list((tmp_path / "many").glob("shard-*.npy"))) == 62  # what was complete is not lost
    with pytest.raises(InputError, match="2 of the first 2 images"):
        packing.pack(flat(2, bad=[0, 1]), 8, tmp_path / "all")


def test_stopped_before_the_first_shard_was_whole(tmp_path, small_shards, capsys):
    with pytest.raises(ZeroDivisionError):
        packing.pack(
            dataclasses.replace(
                flat(9), image=lambda i, size: 1 / 0 if i else flat(1).image(0, size)
            ),
            8,
            tmp_path,
        )
    assert (
        len(packing.pack(flat(9), 8, tmp_path)) == 9
        and "another recipe" not in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "name", ["table.csv", "shard-of-glass.txt", "manifest.json", "progress.json"]
)
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("[1]")
    with pytest.raises(
        InputError, match=f"holds {name} and is no packed data set; choose an empty folder"
    ) as error:
        packing.pack(flat(2), 8, tmp_path)
    line(error)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".lock"} == {name: "[1]"} | (
        {".lock": ""} if (tmp_path / ".lock").exists() else {})  # fmt: skip


def test_a_whole_pack_is_used_where_nobody_may_write(tmp_path, monkeypatch):
    first = packing.pack(flat(3), 8, tmp_path)
    monkeypatch.setattr(packing, "alone", lambda *_: pytest.fail("would write a lock"))
    assert packing.pack(flat(3), 8, tmp_path).hash == first.hash


def test_a_worker_that_is_killed_is_said_in_one_line(tmp_path):
    source = dataclasses.replace(flat(3), image=functools.partial(ended, os.getpid()))
    with pytest.raises(InputError, match="a worker was killed.*fewer workers goes on") as error:
        packing.pack(source, 8, tmp_path, workers=2)
    line(error)


def ended(parent, i, size):
    assert os.getpid() != parent
    os._exit(9)


def test_more_shards_than_files_may_be_open(tmp_path, small_shards):
    packing.pack(flat(400), 8, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, limits[1]))
    try:
        packed = data.Packed(tmp_path)
        assert packed.pixels(range(400))[:, 0, 0, 0].tolist() == [i % 256 for i in range(400)]
        packed = pickle.loads(pickle.dumps(packed))
        assert packed.pixels([399, 0])[:, 2, 7, 7].tolist() == [143, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_rows_that_are_not_there(eyes):
    for row in (-1, 30):
        with pytest.raises(IndexError):
            eyes.pixels([row])


def test_damaged_packs_are_refused(tmp_path, small_shards):
    packing.pack(sources.embedded(6), 32, tmp_path)
    whole = contents(tmp_path)
    second = shard(tmp_path, 1).name
    images = whole[second]
    flipped = images[:-50] + bytes(255 - b for b in images[-50:])
    for name, content in [
        (second, images[:-1000]),
        (second, b""),
        ("table.csv", whole["table.csv"][:-9]),
        ("manifest.json", whole["manifest.json"][:40]),
        ("manifest.json", b"{}"),
        ("manifest.json", whole["manifest.json"].replace(b'"format": 2', b'"format": 1')),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            data.Packed(tmp_path)
        line(error)
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / second).write_bytes(flipped)
    with pytest.raises(InputError, match=f"{second} is not what the manifest says"):
        data.Packed(tmp_path, verify=True)
    (tmp_path / second).unlink()
    with pytest.raises(InputError, match="damaged"):
        data.Packed(tmp_path)
    (tmp_path / second).write_bytes(images)
    assert len(data.Packed(tmp_path, verify=True)) == 6


# ---- batches


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return packing.pack(sources.embedded(30, seed=3), 32, tmp_path_factory.mktemp("eyes"))


SHARES = [np.array([3, 1, 29]), np.array([0, 0]), np.array([5, 17, 28, 4, 2]), np.array([7])]


def streamed(pack, shares):
    return data._streamed(pack, shares, torch.device("cpu"))


def kept(pack, shares):
    return data._kept(pack, shares, data._resident(pack, torch.device("cpu"), step=7))


@pytest.mark.parametrize("way", [data.batches, streamed, kept])
def test_batches_equal_the_images_and_what_is_known_of_them(eyes, way):
    count = 0
    for rows, batch in zip(SHARES, way(eyes, iter(SHARES)), strict=True):
        count += 1
        assert torch.equal(batch.x, eyes.batch(rows)) and batch.x.dtype == torch.float32
        assert (
            torch.allclose(batch.x, eyes.pixels(rows).double().div(255).float(), rtol=0, atol=1e-7)
            and batch.x.max() <= 1
        )
        assert torch.equal(batch.labels, eyes.labels[rows]) and torch.equal(
            batch.fov, eyes.fov(rows)
        )
    assert count == len(SHARES)
    assert list(way(eyes, [])) == []


def test_white_is_one_exactly():
    assert torch.full((1,), 255, dtype=torch.uint8).float().mul_(data.UNIT).item() == 1


def test_on_a_cpu_the_buffer_is_used_again(eyes):
    places = {batch.x.data_ptr() for batch in data.batches(eyes, [SHARES[2], SHARES[0], SHARES[2]])}
    assert len(places) == 1


def test_the_reading_thread_ends_and_its_errors_arrive(eyes):
    before = threading.active_count()
    stream = streamed(eyes, SHARES)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
    stream = streamed(eyes, [SHARES[0], np.array([30])])
    assert len(next(stream).x) == 3
    with pytest.raises(IndexError):
        next(stream)
    assert threading.active_count() == before

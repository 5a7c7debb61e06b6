"""rr.data.packing: packs that are complete or absent, continued, replaced, never overwritten."""

import dataclasses
import functools
import os

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import line
from PIL import Image

from rr import files, provenance
from rr.data import packing, sources
from rr.data.dataset import Packed
from rr.errors import InputError
from rr.paper import LABELS


def flat_image(bad, i, size):
    if i in bad:
        raise InputError(f"image {i}: bad")
    return np.full((size, size, 3), i % 256, np.uint8), dict.fromkeys(LABELS, 1)


def flat(n, bad=()):
    """n images of one colour each, their number modulo 256; those in `bad` cannot be read."""
    image = functools.partial(flat_image, bad)
    return dataclasses.replace(sources.embedded(n), image=image, originals=False)


class Killed(Exception):
    pass


def stopping(source, at):
    """The same source, which is interrupted when image `at` is asked for."""

    def image(i, size):
        if i >= at:
            raise Killed
        return source.image(i, size)

    return dataclasses.replace(source, image=image)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def images_of(folder):
    (path,) = folder.glob("images-*.npy")
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 4)


def test_a_pack_holds_the_images_and_what_is_known_about_them(tmp_path):
    source = sources.embedded(12, seed=2)
    packed = packing.pack(source, 32, tmp_path)
    for i in (0, 7, 11):
        image, row = source.image(i, 32)
        original = row.pop("original")
        assert np.array_equal(packed.originals.pixels([i])[0].permute(1, 2, 0), original)
        assert np.array_equal(packed.pixels([i])[0].permute(1, 2, 0), image)
        stored = packed.table.loc[i, list(row)]
        assert all(value == stored[key] or stored.isna()[key] for key, value in row.items())
    assert packed.manifest["splits"] == packed.table["split"].value_counts().to_dict()
    assert packed.manifest["code"] == provenance.code()


def test_a_pack_does_not_depend_on_workers(tmp_path, small_chunks):
    state = torch.get_rng_state()
    packs = [packing.pack(flat(99, bad=[40]), 8, tmp_path / str(k), workers=k) for k in (1, 2)]
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and packs[0].hash == packs[1].hash
    assert torch.equal(torch.get_rng_state(), state)  # a training that follows draws the same


@pytest.mark.parametrize("n, cores, processes", [(19, 4, 0), (31, 4, 3), (99, 4, 4), (99, 1, 0)])
def test_every_core_packs_if_that_repays_the_start_of_a_process(
    tmp_path, monkeypatch, n, cores, processes
):
    asked, loader_of_torch = [], packing.DataLoader

    def loader(*arguments, num_workers, multiprocessing_context, **options):
        asked.append(num_workers)
        return loader_of_torch(*arguments, **options)

    monkeypatch.setattr(packing, "DataLoader", loader)
    monkeypatch.setattr(packing, "REPAID", 10)
    torch.set_num_threads(cores)
    try:
        packing.pack(flat(n), 8, tmp_path, workers=0)
    finally:
        torch.set_num_threads(1)  # as in all tests
    assert asked == [processes]


def test_same_picture_never_in_two_splits(tmp_path, photos):
    for i in range(8):
        Image.open(photos / "a.jpg").save(photos / f"again{i}.jpg", quality=72 + 3 * i)
    table = packing.pack(sources.folder(photos), 48, tmp_path / "out").table
    same = table[table["name"].str.match("a.jpg|again")]
    assert len(same) == 9 and same["group"].nunique() == same["split"].nunique() == 1
    assert table["group"].nunique() == 6


# ---- the recipe decides


def test_a_pack_is_used_whatever_the_code_is(tmp_path, monkeypatch):
    first = packing.pack(flat(4), 8, tmp_path)
    source = sources.embedded(4).recipe
    assert first.manifest["recipe"] == {"format": 4, "size": 8, "seed": 0, "source": source}
    monkeypatch.setattr(packing, "code", lambda: "edited")
    monkeypatch.setattr(packing, "exclusive_lock", lambda *_: pytest.fail("would write"))
    again = packing.pack(stopping(flat(4), 0), 8, tmp_path)
    assert again.hash == first.hash and again.manifest["code"] == first.manifest["code"]


def test_fresh_packs_again(tmp_path, monkeypatch):
    packing.pack(flat(4), 8, tmp_path)
    monkeypatch.setattr(packing, "code", lambda: "edited")
    packed = packing.pack(flat(4, bad=[1]), 8, tmp_path, fresh=True)
    assert packed.manifest["code"] == "edited" and len(packed) == 3


def test_a_pack_of_another_recipe_stays_until_the_new_one_is_complete(tmp_path, capsys):
    first = packing.pack(flat(4), 8, tmp_path)
    old = contents(tmp_path)
    with pytest.raises(Killed):
        packing.pack(stopping(flat(5), 2), 16, tmp_path)
    assert "(size 8 becomes 16, n 4 becomes 5)" in capsys.readouterr().out
    assert old.items() <= contents(tmp_path).items() and Packed(tmp_path).hash == first.hash
    packed = packing.pack(flat(5), 16, tmp_path)
    assert len(packed) == 5 and packed.size == 16 and packed.hash != first.hash
    expected = {"manifest.json", "table.csv", "missing.csv", images_of(tmp_path).name}
    assert contents(tmp_path).keys() == expected


def test_the_hash_is_that_of_recipe_names_labels_and_splits(tmp_path):
    """Rounding of pixels does not change the identity of a data set. A label does."""

    def altered(value, label):
        image = lambda i, size: (  # noqa: E731
            np.full((size, size, 3), 90 + 20 * i + value, np.uint8),
            dict.fromkeys(LABELS, 1) | {"disc": label if i == 2 else 1, "fov_x": 0.5 + value / 1e9},
        )
        return dataclasses.replace(sources.embedded(4), image=image)

    packs = [
        packing.pack(altered(*values), 8, tmp_path / str(k))
        for k, values in enumerate([(0, 1), (1, 1), (0, 0)])
    ]
    pixels = [pack.manifest["sha256"][pack.manifest["images"]] for pack in packs]
    assert packs[0].hash == packs[1].hash != packs[2].hash and pixels[0] != pixels[1]
    assert packing.pack(altered(0, 1), 8, tmp_path / "3", seed=1).hash != packs[0].hash


# ---- interruptions


def test_a_stopped_pack_continues_and_ends_with_the_same_bytes(tmp_path, small_chunks, capsys):
    source = sources.embedded(11, seed=4)
    whole = packing.pack(source, 32, tmp_path / "whole")
    asked = []

    def image(i, size):
        asked.append(i)
        return source.image(i, size)

    for at in (9, 9, 6):  # in the third chunk; again, without any progress; before that
        with pytest.raises(Killed):
            packing.pack(stopping(source, at), 32, tmp_path / "cut")
        with pytest.raises(InputError, match="no complete packed data set"):
            Packed(tmp_path / "cut")
    (progress,) = (tmp_path / "cut").glob("rows-*.csv")
    with open(progress, "a") as file:
        file.write("8,,12ab")  # a line that was cut off
    cut = packing.pack(dataclasses.replace(source, image=image), 32, tmp_path / "cut")
    assert asked == [8, 9, 10] and "continues after 8 images" in capsys.readouterr().out
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") and cut.hash == whole.hash


def test_progress_without_images_is_of_no_use(tmp_path, small_chunks):
    with pytest.raises(Killed):
        packing.pack(stopping(flat(9), 6), 8, tmp_path)
    images_of(tmp_path).unlink()
    assert packing.pack(flat(9), 8, tmp_path).pixels([3])[0].unique().tolist() == [3]


def test_unusable_images_leave_no_trace_up_to_a_limit(tmp_path, small_chunks):
    packed = packing.pack(flat(301, bad=[4, 5, 300]), 8, tmp_path / "few")
    assert packed.manifest["skipped"] == [f"image {i}: bad" for i in (4, 5, 300)]
    assert packed.pixels(range(298))[:, 0, 0, 0].tolist() == [
        i % 256 for i in range(301) if i not in (4, 5, 300)
    ]
    assert packed.table["name"][4] == "embedded-0-000006"
    many = "4 of the first 252 images are unusable, at most 1% of all may be: image 4"
    with pytest.raises(InputError, match=many) as error:
        packing.pack(flat(301, bad=[4, 5, 99, 250]), 8, tmp_path / "many")
    line(error)
    again = packing.pack(flat(301, bad=[4, 5, 99]), 8, tmp_path / "many")  # one was repaired
    assert len(again) == 298
    with pytest.raises(InputError, match="2 of the first 2 images"):
        packing.pack(flat(2, bad=[0, 1]), 8, tmp_path / "all")


@pytest.mark.slow
def test_a_killed_worker_is_reported_in_one_line(tmp_path):
    source = dataclasses.replace(flat(3), image=functools.partial(end_process, os.getpid()))
    with pytest.raises(InputError, match="a process was killed.*with fewer workers") as error:
        packing.pack(source, 8, tmp_path, workers=2)
    line(error)


def end_process(parent, i, size):
    assert os.getpid() != parent
    os._exit(9)


# ---- the folder


@pytest.mark.parametrize("name", ["table.csv", "images.txt", "manifest.json", "rows-mine.csv"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("[1]")
    message = f"holds {name} and is no packed data set; choose an empty folder"
    with pytest.raises(InputError, match=message) as error:
        packing.pack(flat(2), 8, tmp_path)
    line(error)
    with pytest.raises(InputError, match=message):
        packing.pack(flat(2), 8, tmp_path, fresh=True)
    assert contents(tmp_path) == {name: b"[1]"}


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / f".table{files.PART}x.csv").write_text("half")
    packing.pack(flat(2), 8, tmp_path)
    assert not list(tmp_path.glob(f"*{files.PART}*"))
    assert pd.read_csv(tmp_path / "missing.csv").empty

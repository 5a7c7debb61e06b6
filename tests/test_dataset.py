"""rr.data.dataset: rows of a packed data set, damaged ones, batches."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from drawn import line

from rr.data import dataset, packing, sources, synthetic
from rr.data.splits import SPLITS
from rr.errors import InputError


def test_rows(eyes80):
    parts = [set(eyes80.rows(name)) for name in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(eyes80) == 72
    readable, unreadable = eyes80.rows(readable=True), eyes80.rows(readable=False)
    assert sorted([*readable, *unreadable, *eyes80.rows(fundus=0)]) == list(range(72))
    assert (eyes80.labels[readable] == 1).all()
    assert (eyes80.labels[unreadable].min(dim=1).values == 0).all()
    no_disc = set(np.flatnonzero(eyes80.labels[:, 2] == 0))
    assert set(eyes80.rows("train", disc=False)) == parts[0] & no_disc
    assert np.array_equal(eyes80.labelled("train"), eyes80.rows("train"))
    for bad in ({"split": "trian"}, {"optic": 1}):
        with pytest.raises(InputError, match="choose"):
            eyes80.rows(**bad)
    with pytest.raises(IndexError):
        eyes80.pixels([72])


def test_a_split_without_labels(tmp_path, photos):
    packed = packing.pack(sources.folder(photos), 32, tmp_path / "out")
    for rows, reason in ((packed.labelled, "no labels"), (packed.clean_rows, "no clean readable")):
        with pytest.raises(InputError, match=f"{reason}.* in split train") as error:
            rows("train")
        line(error)


def test_the_mean_image_does_not_depend_on_how_many_are_read_at_once(eyes80):
    rows = eyes80.rows("train")
    expected = eyes80.batch(rows).mean(0, keepdim=True)
    assert torch.allclose(eyes80.mean(rows, size=7), expected, atol=1e-6)


def test_another_process_opens_the_same_files(eyes80):
    again = pickle.loads(pickle.dumps(eyes80))
    assert torch.equal(again.pixels([9, 3]), eyes80.pixels([9, 3])) and again.hash == eyes80.hash


def test_damaged_packs_are_refused(tmp_path):
    packed = packing.pack(sources.embedded(6), 32, tmp_path)
    images = packed.manifest["images"]
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = whole["manifest.json"].replace(b'"format": 4', b'"format": 3')
    for name, content, reason in [
        (images, whole[images][:-1000], "damaged"),
        (images, b"", "damaged"),
        ("table.csv", whole["table.csv"][:-9], "table.csv was changed"),
        ("manifest.json", whole["manifest.json"][:40], "not valid JSON"),
        ("manifest.json", b"{}", "damaged"),
        ("manifest.json", b"[1]", "damaged"),
        ("manifest.json", old, "packed by another version"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason) as error:
            dataset.Packed(tmp_path)
        line(error)
        (tmp_path / name).write_bytes(whole[name])
    flipped = whole[images][:-50] + bytes(255 - byte for byte in whole[images][-50:])
    (tmp_path / images).write_bytes(flipped)
    with pytest.raises(InputError, match=f"{images} was changed"):
        dataset.Packed(tmp_path, verify=True)
    (tmp_path / images).unlink()
    with pytest.raises(InputError, match="damaged"):
        dataset.Packed(tmp_path)
    (tmp_path / images).write_bytes(whole[images])
    assert len(dataset.Packed(tmp_path, size=32, verify=True)) == 6
    with pytest.raises(InputError, match="images of 32 px, not of 80 px"):
        dataset.Packed(tmp_path, size=80)


# ---- batches

SHARES = [np.array([3, 1, 29]), np.array([0, 0]), np.array([5, 17, 28, 4, 2]), np.array([7])]


def test_batches_hold_their_images_after_the_next_one_was_read(eyes80):
    read = list(dataset.batches(eyes80, iter(SHARES)))
    assert len(read) == len(SHARES)
    for rows, batch in zip(SHARES, read, strict=True):
        expected = eyes80.pixels(rows).double() / 255
        assert batch.x.dtype == torch.float32 and batch.x.max() <= 1
        assert torch.allclose(batch.x.double(), expected, rtol=0, atol=1e-7)
        assert torch.equal(batch.x, eyes80.batch(rows))
        assert torch.equal(batch.labels, eyes80.labels[rows])
        assert torch.equal(batch.fov, eyes80.fov(rows))
    assert list(dataset.batches(eyes80, [])) == []


def test_white_is_one_exactly():
    assert torch.full((1,), 255, dtype=torch.uint8).float().mul_(dataset.UNIT).item() == 1


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [True, False])
def test_batches_on_a_gpu_are_those_on_a_cpu(eyes80, fits, monkeypatch):
    eyes = pickle.loads(pickle.dumps(eyes80))
    free = 2 * eyes._images.nbytes + 1 if fits else 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    for on_gpu, on_cpu in zip(
        dataset.batches(eyes, SHARES, "cuda"), dataset.batches(eyes, SHARES), strict=True
    ):
        for a, b in zip(on_gpu, on_cpu, strict=True):
            assert a.is_cuda and torch.equal(a.cpu(), b)
    assert (eyes.on_gpu(torch.device("cuda")) is not None) == fits


def test_every_drawn_eye_has_a_clean_original(eyes80):
    """Fails if an original is degraded, belongs to another eye or split, or is no eye; or if only
    the eyes that happen to be clean and readable can be trained on."""
    originals = eyes80.originals
    for split in ("train", "val", "test"):
        rows = originals.clean_rows(split)
        table = eyes80.table.iloc[rows]
        is_eye = (eyes80.table["split"] == split) & (eyes80.table["fundus"] == 1)
        assert rows.tolist() == is_eye.to_numpy().nonzero()[0].tolist()
        assert set(eyes80.clean_rows(split)) < set(rows)
        for row, name in zip(rows[:5], table["name"]):
            eye = synthetic.fundus(0, int(name.rsplit("-", 1)[1]), 80)
            drawn = torch.from_numpy(eye.image).permute(2, 0, 1)
            assert (originals.pixels([row])[0].int() - drawn.int()).abs().max() <= 1
    assert originals.hash == eyes80.hash and torch.equal(originals.labels, eyes80.labels)


def test_photographs_are_their_own_originals(tmp_path):
    packed = packing.pack(dataclasses.replace(sources.embedded(24), originals=False), 32, tmp_path)
    rows = packed.clean_rows("train")
    assert packed.originals.clean_rows("train").tolist() == rows.tolist()
    assert torch.equal(packed.originals.pixels(rows), packed.pixels(rows))

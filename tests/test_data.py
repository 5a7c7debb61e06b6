"""rr.data: fields of view of known geometry, bad files and tables, splits, packs that are whole or absent."""

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from PIL import Image

from rr import data
from rr.io import ROOT, InputError, sha256

PHOTOS = sorted((ROOT.parent / "shared" / "photos").glob("*.jpg"))


def disc(height, width, x, y, r, top=-np.inf, bottom=np.inf, notch=False):
    """An anti-aliased orange disc on a dark, noisy surround, cut flat at `top` and `bottom`."""
    iy, ix = (np.mgrid[: 4 * height, : 4 * width] + 0.5) / 4
    inside = ((ix - x) ** 2 + (iy - y) ** 2 < r**2) & (iy > top) & (iy < bottom)
    if notch:
        inside |= (abs(ix - x) < r / 20) & (iy < y) & (iy > y - 1.1 * r)
    cover = inside.reshape(height, 4, width, 4).mean((1, 3))
    noise = np.random.default_rng(0).normal(4, 2, (height, width, 1))
    return (cover[..., None] * (180, 90, 40) + noise).clip(0, 255).astype(np.uint8)


def line(error):
    """The message of an InputError, which has one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- field of view


@pytest.mark.parametrize(
    "height, width, x, y, r, top, bottom",
    [
        (300, 400, 200, 150, 130, None, None),
        (300, 400, 190, 155, 140, 50, 260),  # cut flat inside of the frame
        (600, 900, 450, 300, 400, None, None),  # cut by the frame, as HRF
        (200, 200, 100, 100, 120, None, None),  # only the corners are dark
        (64, 64, 32, 32, 30, None, None),
        (900, 300, 150, 400, 140, None, None),
        (300, 1200, 300, 150, 100, None, None),
        (300, 400, 380, 150, 130, None, None),  # cut at the right
        (1000, 1000, 500, 480, 300, 350, 700),
    ],
)
def test_fov_of_known_circles(height, width, x, y, r, top, bottom):
    image = disc(height, width, x, y, r, -np.inf if top is None else top, np.inf if bottom is None else bottom)
    found = data.find_fov(image)
    assert np.allclose(found[:3], (x, y, r), rtol=0, atol=0.01 * r)
    lines = (max(0, y - r) if top is None else top, min(height, y + r) if bottom is None else bottom)
    assert np.allclose(found[3:], lines, rtol=0, atol=0.02 * r)


def test_fov_ignores_a_notch():
    assert np.allclose(data.find_fov(disc(300, 400, 200, 150, 120, notch=True))[:3], (200, 150, 120), atol=1.2)


def test_fov_of_a_dim_photograph():
    dim = (disc(300, 400, 200, 150, 120) * 0.25).astype(np.uint8)
    assert np.allclose(data.find_fov(dim)[:3], (200, 150, 120), atol=1.2)


@pytest.mark.skipif(not PHOTOS, reason="no photographs beside the project")
def test_fov_of_real_photographs():
    for path in PHOTOS[::5]:
        image = data.read_photograph(path)
        found = np.array(data.find_fov(image)) / image.shape[1]
        assert np.allclose(found, (0.503, 0.3325, 0.465, 0, 0.667), atol=0.006), path


def test_fov_of_a_square_photograph():
    x, y, r, top, bottom = np.array(data.find_fov(skimage.data.retina())) / 1411
    assert abs(x - 0.5) < 0.01 and abs(y - 0.5) < 0.01 and abs(r - 0.494) < 0.005 and top < 0.01 and bottom > 0.99


def rectangle():
    image = np.zeros((300, 400, 3), np.uint8)
    image[50:250, 100:300] = 200
    return image


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((300, 400, 3), np.uint8),
        np.full((300, 400, 3), 255, np.uint8),
        np.full((1, 5000, 3), 90, np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8),
        np.repeat(skimage.data.page()[..., None], 3, axis=2),
        skimage.data.astronaut(),
        skimage.data.coffee(),
        rectangle(),
    ],
    ids=["black", "white", "strip", "noise", "small-noise", "text", "astronaut", "coffee", "rectangle"],
)
def test_no_fov(image):
    assert data.find_fov(image) is None
    with pytest.raises(InputError, match="no field of view found"):
        data.crop_fov(image, 32)
    crop, fov, box = data.crop_fov(image, 32, required=False)
    assert crop.shape == (32, 32, 3) and np.isnan(fov).all() and box.side == max(image.shape[:2])


def test_crop_box_and_fractions():
    image = disc(600, 900, 400, 290, 350)
    crop, fov, box = data.crop_fov(image, 128)
    assert crop.shape == (128, 128, 3) and crop.dtype == np.uint8
    assert np.allclose(box, (50, -60, 700), atol=4)
    assert np.allclose(fov, (0.5, 0.5, 0.5, 60 / 700, 660 / 700), atol=0.006)
    assert np.array(fov)[:2] * box.side + (box.left, box.top) == pytest.approx((400, 290), abs=2)
    mask = data.fov_mask(torch.tensor([fov]), 128)[0, 0].numpy()
    bright = crop.max(axis=2) > 60
    assert (mask & bright).sum() / (mask | bright).sum() > 0.97
    assert not crop[:7].any()  # above the photograph: black


def test_fov_mask_without_fov_is_the_whole_frame():
    circle = torch.tensor([[0.5, 0.5, 0.4, 0.2, 1.0], [float("nan")] * 5])
    mask = data.fov_mask(circle, 200)
    assert mask.shape == (2, 1, 200, 200) and mask.dtype == torch.bool and mask[1].all()
    angle = np.arccos(0.3 / 0.4)  # the disc less the cap above y = 0.2
    area = 0.16 * (np.pi - angle + np.sin(angle) * np.cos(angle))
    assert mask[0].float().mean().item() == pytest.approx(area, abs=2e-3)


# ---- reading


def saved(folder, name, image, **options):
    path = folder / name
    image.save(path, **options)
    return path


def test_modes_become_rgb(tmp_path):
    rgb = Image.fromarray(disc(40, 50, 25, 20, 18))
    grey16 = Image.fromarray(np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50))
    transparent = rgb.copy()
    transparent.putalpha(Image.new("L", rgb.size, 0))
    for name, image in {"rgb": rgb, "l": rgb.convert("L"), "p": rgb.quantize(256), "rgba": rgb.convert("RGBA")}.items():
        read = data.read_photograph(saved(tmp_path, f"{name}.png", image))
        assert read.shape == (40, 50, 3) and read.dtype == np.uint8
        assert abs(read.astype(int) - np.array(image.convert("RGB"))).max() <= 1, name
    wide = data.read_photograph(saved(tmp_path, "grey16.png", grey16))
    assert wide.min() == 0 and wide.max() == 255 and abs(wide.mean() - 127.5) < 1
    assert not data.read_photograph(saved(tmp_path, "clear.png", transparent)).any()
    cmyk = data.read_photograph(saved(tmp_path, "cmyk.jpg", rgb.convert("CMYK"), quality=95))
    assert abs(cmyk.astype(int) - np.array(rgb)).mean() < 5


def test_exif_orientation(tmp_path):
    image = Image.fromarray(disc(40, 60, 15, 20, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    read = data.read_photograph(saved(tmp_path, "turned.png", image, exif=exif))
    assert np.array_equal(read, np.rot90(np.array(image), -1))


def test_unreadable_files(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(disc(200, 200, 100, 100, 90)).save(buffer, "jpeg")

    def png(side):  # a tiny file that claims side x side pixels
        chunks = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(99))
        parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    for name, content, reason in [
        ("truncated.jpg", buffer.getvalue()[:-1500], "not a readable image"),
        ("empty.jpg", b"", "not a readable image"),
        ("text.png", b"no image at all", "not a readable image"),
        ("bomb.png", png(60000), "megapixels"),
        ("large.png", png(13000), "megapixels"),
        ("short.png", png(100), "not a readable image"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason) as error:
            data.read_photograph(tmp_path / name)
        assert line(error).count(name) == 1
    with pytest.raises(InputError, match="no such file"):
        data.read_photograph(tmp_path / "absent.jpg")


# ---- label tables

OURS = ["name", *data.LABELS]
THEIRS = ["file_name", *data.SYNFUNDUS]


def csv_of(folder, columns, rows, name="labels.csv"):
    pd.DataFrame(rows, columns=columns).to_csv(folder / name, index=False)
    return folder / name


def test_labels_in_every_accepted_form(tmp_path):
    rows = [["a", 1, 1.0, True, 0.7], ["b", 0, 0.0, False, 0.2], ["c", 1, 0.5, True, 1], ["c", 1, 0.5, True, 1]]
    for columns in (OURS, THEIRS, ["idx", *THEIRS[1:]]):
        table, seen = data.read_labels(csv_of(tmp_path, columns, rows))
        assert table.columns.tolist() == OURS and table["name"].tolist() == ["a", "b", "c"]
        assert table[list(data.LABELS)].to_numpy().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
        assert seen == {"rows": 4, "values_between_0_and_1": 4, "repeated_rows": 1}


def test_bad_labels_are_all_in_one_line(tmp_path):
    rows = [["a", 1, 2, 1], ["b", 0, 1, "x"], [None, 1, -1, 0], ["d", 1, None, 0]]
    with pytest.raises(InputError) as error:
        data.read_labels(csv_of(tmp_path, ["file_name", *THEIRS[1:4]], rows))
    message = line(error)
    assert "column retina (or is_retinal_region_readable) is missing" in message
    assert "macula is not in 0..1 in 3 rows (row 1: 2.0, row 3: -1.0, row 4: nan)" in message
    assert "disc is not in 0..1 in 1 rows (row 2: x)" in message and "name is empty in 1 rows (row 3: nan)" in message


def test_other_bad_tables(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    conflict = csv_of(tmp_path, OURS, [["a", 1, 1, 1, 1], ["a", 1, 0, 1, 1]], "conflict.csv")
    for path, reason in [
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path / "empty.csv", "not a readable CSV"),
        (tmp_path / "binary.csv", "binary.csv: "),
        (csv_of(tmp_path, ["x"], [[1]], "other.csv"), "column name or file_name or idx is missing; column fundus"),
        (csv_of(tmp_path, OURS, [], "header.csv"), "no rows"),
        (conflict, "1 names come twice with different labels"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            data.read_labels(path)
        line(error)


def test_many_rows_are_read_fast(tmp_path):
    n = 200_000
    table = pd.DataFrame({"file_name": np.char.add("img_", np.arange(n).astype(str))})
    for column in data.SYNFUNDUS:
        table[column] = np.random.default_rng(1).integers(0, 2, n)
    table.to_csv(tmp_path / "many.csv", index=False)
    started = time.time()
    read, _ = data.read_labels(tmp_path / "many.csv")
    assert len(read) == n and read["macula"].sum() == table["is_macular_readable"].sum()
    assert time.time() - started < 5


# ---- sources


@pytest.fixture
def photos(tmp_path):
    """Six photographs in nested folders, every one another picture: one eye, turned and mirrored."""
    eye = np.array(Image.fromarray(skimage.data.retina()).resize((200, 200)))
    for i, name in enumerate(["a.jpg", "b.png", "part1/c.jpg", "part1/d.JPG", "part2/e.tif", "part2/f.jpeg"]):
        image = np.pad(np.rot90(eye if i < 4 else eye[:, ::-1], i), ((0, i), (40, 60), (0, 0)))
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


def test_synfundus_finds_images_and_lists_missing_ones(tmp_path, photos):
    names = ["a.jpg", "b", "c.jpg", "part1/d.JPG", "part2/e", "gone_1", "gone_2.jpg"]
    source = data.synfundus(photos, csv_of(tmp_path, THEIRS, [[name, 1, 0, 1, 1] for name in names]))
    assert source.table["name"].tolist() == ["a.jpg", "b.png", "part1/c.jpg", "part1/d.JPG", "part2/e.tif"]
    assert source.missing == ["gone_1", "gone_2.jpg"] and source.recipe["files_without_label"] == 1
    packed = data.pack(source, 32, tmp_path / "out")
    assert packed.manifest["missing"] == 2 and packed.manifest["missing_first"] == source.missing
    assert pd.read_csv(tmp_path / "out" / "missing.csv")["name"].tolist() == source.missing
    assert packed.manifest["source_sizes"] == {f"300x{200 + i}": 1 for i in range(5)}
    assert packed.manifest["prevalence"] == {"fundus": 1, "macula": 0, "disc": 1, "retina": 1}


def test_folder_without_labels(tmp_path, photos):
    packed = data.pack(data.folder(photos), 32, tmp_path / "out")
    assert len(packed) == 6 and packed.labels.isnan().all() and packed.disc([0]).isnan().all()
    assert len(packed.rows()) == 6 and len(packed.rows(readable=True)) == len(packed.rows(readable=False)) == 0


def test_bad_folders(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        data.folder(tmp_path / "absent")
    with pytest.raises(InputError, match="no images"):
        data.folder(tmp_path / "empty")
    with pytest.raises(InputError, match="none of its 1 images is in"):
        data.folder(photos, csv_of(tmp_path, OURS, [["zzz", 1, 1, 1, 1]]))
    Image.fromarray(disc(90, 120, 60, 45, 40)).save(photos / "part2" / "c.jpg")
    with pytest.raises(InputError, match="1 names fit several files"):
        data.folder(photos, csv_of(tmp_path, OURS, [["c.jpg", 1, 1, 1, 1]]))


def test_bad_photographs_are_skipped_up_to_a_limit(tmp_path, photos):
    (photos / "bad1.jpg").write_bytes(b"")
    packed = data.pack(data.folder(photos), 32, tmp_path / "out")
    assert len(packed) == 6 and len(packed.images) == 6 and "bad1.jpg" in packed.manifest["skipped"][0]
    assert packed.table["name"].tolist() == data.folder(photos).table["name"].drop(2).tolist()
    (photos / "bad2.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="are unusable"):
        data.pack(data.folder(photos), 32, tmp_path / "out")
    assert len(data.Packed(tmp_path / "out")) == 6  # the earlier pack is as it was


def test_embedded_depends_on_seed_and_index_only():
    few, many = data.embedded(3, seed=5), data.embedded(50, seed=5)
    for i in (2, 0):
        (a, row_a), (b, row_b) = few.image(i, 48), many.image(i, 48)
        assert np.array_equal(a, b) and str(row_a) == str(row_b)
    assert not np.array_equal(few.image(0, 48)[0], data.embedded(3, seed=6).image(0, 48)[0])
    with pytest.raises(InputError):
        data.embedded(0)


def test_embedded_labels_and_anatomy(tmp_path):
    packed = data.pack(data.embedded(150, seed=1), 48, tmp_path)
    table = packed.table
    eyes = table[table["fundus"] == 1]
    assert 0 < len(table) - len(eyes) < 25
    assert (table.loc[table["fundus"] == 0, list(data.LABELS)] == 0).all(axis=None)
    clean = eyes[eyes["severity"] == 0]
    assert 0.2 < len(clean) / len(eyes) < 0.4 and (clean[list(data.LABELS)] == 1).all(axis=None)
    # region-wise unreadability exists, and aiming reaches the region it is aimed at and not the other
    assert len(packed.rows(disc=0, macula=1)) > 3 and len(packed.rows(disc=1, macula=0)) > 3
    assert (eyes.loc[eyes["aim"] == "disc", "macula"] == 1).all() and (
        eyes.loc[eyes["aim"] == "macula", "disc"] == 1
    ).all()
    assert ((eyes["fov_r"] - 0.5).abs() < 0.03).all()
    distance = np.hypot(eyes["fovea_x"] - eyes["disc_x"], eyes["fovea_y"] - eyes["disc_y"]) / (2 * eyes["disc_r"])
    assert distance.between(2, 3.2).all()
    x, fov = packed.batch(eyes.index[:20]), packed.fov(eyes.index[:20])
    assert x[~fov.expand_as(x)].mean() < 0.02 and x[fov.expand_as(x)].mean() > 0.1


# ---- splits


def test_near_duplicates_equal_brute_force():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (400, 32), dtype=np.uint8)
    bits = np.unpackbits(hashes, axis=1)
    for i in range(100):  # copies with 0 to 20 flipped bits, some of them chains
        bits[300 + i] = bits[200 + i]
        bits[300 + i, rng.choice(256, i % 21, replace=False)] ^= 1
    hashes = np.packbits(bits, axis=1)
    groups = data.near_duplicates(hashes)
    apart = (bits[:, None] != bits[None]).sum(-1)
    assert np.array_equal(groups[:, None] == groups[None], apart <= data.NEAR_BITS)
    assert len(np.unique(groups)) == 400 - sum(i % 21 <= data.NEAR_BITS for i in range(100))


def test_hash_survives_a_second_compression_and_separates_eyes():
    image = skimage.data.retina()
    buffer = io.BytesIO()
    Image.fromarray(image).resize((900, 900)).save(buffer, "jpeg", quality=70)
    again = data.crop_fov(data.read_photograph(buffer), 224)[0]
    first = data.dhash(data.crop_fov(image, 224)[0])
    assert np.bitwise_count(first ^ data.dhash(again)).sum() <= data.NEAR_BITS
    eyes = np.array([data.dhash(data.embedded(9).image(i, 96)[0]) for i in range(9)])
    apart = np.bitwise_count(eyes[:, None] ^ eyes[None]).sum(-1)[np.triu_indices(9, 1)]
    assert apart.min() > 2 * data.NEAR_BITS


def test_split_is_stratified_deterministic_and_keeps_groups():
    rng = np.random.default_rng(0)
    labels = (rng.random((5000, 4)) < (0.94, 0.7, 0.8, 0.9)).astype(float)
    groups = np.concatenate([np.arange(4800), rng.integers(0, 4800, 200)])
    names = data.split(labels, groups, seed=3)
    assert np.array_equal(names, data.split(labels, groups, seed=3))
    assert (names != data.split(labels, groups, seed=4)).mean() > 0.3
    assert pd.Series(names).groupby(groups).nunique().max() == 1
    patterns = pd.Series([str(row) for row in labels])
    for pattern, count in patterns.value_counts().items():
        for name, share in data.SPLITS.items():
            found = (names[patterns == pattern] == name).mean()
            assert abs(found - share) < max(0.02, 3 / count), (pattern, count, name)
    for name, share in data.SPLITS.items():
        assert abs((names == name).mean() - share) < 0.005


@pytest.mark.parametrize("n, counts", [(1, (1, 0, 0)), (3, (3, 0, 0)), (5, (4, 0, 1)), (25, (16, 4, 5))])
def test_split_of_few(n, counts):
    names = data.split(np.full((n, 4), np.nan), np.arange(n))
    assert tuple((names == name).sum() for name in data.SPLITS) == counts


def test_same_picture_never_in_two_splits(tmp_path, photos):
    for i in range(8):
        Image.open(photos / "a.jpg").save(photos / f"again{i}.jpg", quality=60 + 4 * i)
    table = data.pack(data.folder(photos), 48, tmp_path / "out").table
    same = table[table["name"].str.match("a.jpg|again")]
    assert len(same) == 9 and same["group"].nunique() == same["split"].nunique() == 1
    assert table["group"].nunique() == 6


# ---- packs


def test_pack_does_not_depend_on_workers(tmp_path):
    one = data.pack(data.embedded(24, seed=2), 32, tmp_path / "one")
    two = data.pack(data.embedded(24, seed=2), 32, tmp_path / "two", workers=2)
    assert one.manifest == two.manifest and one.hash == two.hash
    assert sha256(tmp_path / "one" / "images.npy") == one.manifest["images_sha256"]
    image, _ = data.embedded(24, seed=2).image(7, 32)
    assert np.array_equal(one.images[7].transpose(1, 2, 0), image)
    x = one.batch([7, 3])
    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32
    assert torch.equal(x[0], torch.from_numpy(image).permute(2, 0, 1).float() / 255)


def test_pack_is_reused_or_remade(tmp_path):
    first = data.pack(data.embedded(4), 32, tmp_path)
    written = (tmp_path / "images.npy").stat().st_mtime_ns
    assert data.pack(data.embedded(4), 32, tmp_path).hash == first.hash
    assert (tmp_path / "images.npy").stat().st_mtime_ns == written
    assert len(data.pack(data.embedded(5), 32, tmp_path)) == 5
    assert data.pack(data.embedded(5), 40, tmp_path).size == 40


def test_rows(tmp_path):
    packed = data.pack(data.embedded(60, seed=1), 32, tmp_path)
    parts = [set(packed.rows(name)) for name in data.SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(packed) == 60
    readable, unreadable, other = packed.rows(readable=True), packed.rows(readable=False), packed.rows(fundus=0)
    assert sorted([*readable, *unreadable, *other]) == list(range(60))
    assert (packed.labels[readable] == 1).all() and (packed.labels[unreadable].min(dim=1).values == 0).all()
    assert set(packed.rows("train", disc=False)) == parts[0] & set(np.flatnonzero(packed.labels[:, 2] == 0))
    for bad in ({"split": "trian"}, {"optic": 1}):
        with pytest.raises(InputError, match="choose"):
            packed.rows(**bad)


def test_killed_pack_leaves_nothing_valid(tmp_path):
    code = (
        "import os, sys; from rr import data; source = data.embedded(9); image = source.image\n"
        "def stop(i, size):\n    return image(i, size) if i < 5 else os._exit(9)\n"
        "object.__setattr__(source, 'image', stop); data.pack(source, 32, sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 9 and list(tmp_path.glob(".images-*.npy")) and not (tmp_path / "images.npy").exists()
    with pytest.raises(InputError, match="no complete packed data set"):
        data.Packed(tmp_path)
    assert len(data.pack(data.embedded(9), 32, tmp_path)) == 9  # the next run cleans up
    assert not list(tmp_path.glob(".images-*.npy"))


def test_damaged_packs_are_refused(tmp_path):
    data.pack(data.embedded(4), 32, tmp_path)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    images = whole["images.npy"]
    flipped = images[:-50] + bytes(255 - b for b in images[-50:])
    for name, content in [
        ("images.npy", images[:-1000]),
        ("images.npy", b""),
        ("table.csv", whole["table.csv"][:-9]),
        ("manifest.json", whole["manifest.json"][:40]),
        ("manifest.json", b"{}"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            data.Packed(tmp_path)
        line(error)
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / "images.npy").write_bytes(flipped)
    with pytest.raises(InputError, match="not what the manifest says"):
        data.Packed(tmp_path, verify=True)
    (tmp_path / "images.npy").write_bytes(images)
    assert len(data.Packed(tmp_path, verify=True)) == 4

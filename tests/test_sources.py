"""rr.data.sources: folders of photographs, SynFundus-1M, drawn eyes."""

import numpy as np
import pandas as pd
import pytest
from drawn import disc, line
from PIL import Image
from test_labels import OURS, THEIRS, csv_of

from rr.data import packing, sources, synthetic
from rr.errors import InputError
from rr.paper import LABELS

# ---- folders


def test_synfundus_finds_images_and_lists_missing_ones(tmp_path, photos):
    names = ["a.jpg", "b", "c.jpg", "part1/d.JPG", "part2/e", "gone_1", "gone_2.jpg"]
    rows = [[name, 1, 0, 1, 1] for name in names]
    source = sources.folder(photos, csv_of(tmp_path, THEIRS, rows))
    files = ["a.jpg", "b.png", "part1/c.jpg", "part1/d.JPG", "part2/e.tif"]
    assert source.table["name"].tolist() == files
    assert source.missing == ["gone_1", "gone_2.jpg"] and source.recipe["files_without_label"] == 1
    packed = packing.pack(source, 32, tmp_path / "out")
    assert packed.manifest["missing"] == 2 and packed.manifest["missing_first"] == source.missing
    assert pd.read_csv(tmp_path / "out" / "missing.csv")["name"].tolist() == source.missing
    assert packed.table["source_height"].tolist() == [200 + i for i in range(5)]
    assert packed.manifest["prevalence"] == {"fundus": 1, "macula": 0, "disc": 1, "retina": 1}


def test_folder_without_labels(tmp_path, photos):
    packed = packing.pack(sources.folder(photos), 32, tmp_path / "out")
    assert packed.labels.isnan().all() and packed.disc([0]).isnan().all()
    assert len(packed.rows()) == 6
    assert len(packed.rows(readable=True)) == len(packed.rows(readable=False)) == 0


def test_photographs_assumed_readable_are_clean(tmp_path, photos):
    source = sources.joined(sources.embedded(4), sources.assume_readable(photos))
    packed = packing.pack(source, 32, tmp_path / "out")
    clean = sum(len(packed.clean_rows(split)) for split in set(packed.table["split"]))
    drawn = (packed.table["severity"][:4] == 0).sum()
    assert clean == 6 + drawn and packed.table["name"][5] == "b.png"
    one, _ = sources.folder(photos).image(1, 32)
    assert np.array_equal(packed.pixels([5])[0].permute(1, 2, 0), one)


def test_folders_that_are_refused(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").mkdir()
    open(bytes(tmp_path / "bytes") + b"/eye\xff.jpg", "wb").close()
    stranger = csv_of(tmp_path, OURS, [["zzz", 1, 1, 1, 1]])
    for path, labels, reason in [
        (tmp_path / "absent", None, "no such folder"),
        (tmp_path / "empty", None, "no images"),
        (tmp_path / "bytes", None, "is not UTF-8; rename it"),
        (photos, stranger, "none of its 1 images is in"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            sources.folder(path, labels)
        line(error)


def test_hidden_files_are_ignored_and_two_kinds_of_files_refused(photos):
    (photos / ".hidden").mkdir()
    (photos / "a.jpg").rename(photos / ".hidden" / "a.jpg")
    assert len(sources.folder(photos)) == 5
    (photos / "part1" / "x.parquet").write_bytes(b"")
    two = "holds photographs .b.png. and parquet files .part1/x.parquet."
    with pytest.raises(InputError, match=two) as error:
        sources.folder(photos)
    line(error)


def test_one_photograph_with_two_names_has_one_label(tmp_path, photos):
    rows = [["a.jpg", 1, 0, 1, 1], ["a", 1, 0, 1, 1]]
    assert sources.folder(photos, csv_of(tmp_path, OURS, rows)).table["name"].tolist() == ["a.jpg"]
    rows[1][2] = 1
    twice = "1 images have two names with different labels .first: a.jpg"
    with pytest.raises(InputError, match=twice) as error:
        sources.folder(photos, csv_of(tmp_path, OURS, rows))
    line(error)


def test_a_recipe_changes_with_the_files(photos):
    before = sources.folder(photos).recipe
    assert sources.folder(photos).recipe == before
    Image.fromarray(disc(90, 120, 60, 45, 40)).save(photos / "a.jpg")
    assert sources.folder(photos).recipe["listing_sha256"] != before["listing_sha256"]


def test_bad_photographs_are_skipped_up_to_a_limit(tmp_path, photos):
    (photos / "bad1.jpg").symlink_to(photos / "nothing.jpg")
    packed = packing.pack(sources.folder(photos), 32, tmp_path / "out")
    assert len(packed) == 6 and packed.manifest["skipped"] == ["bad1.jpg: no such file"]
    assert packed.table["name"].tolist() == sources.folder(photos).table["name"].drop(2).tolist()
    (photos / "bad2.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="are unusable"):
        packing.pack(sources.folder(photos), 32, tmp_path / "out")


def test_what_notebook_01_names(tmp_path):
    assert len(sources.source("embedded", "", 5, 0)) == 5
    with pytest.raises(InputError, match="have labels of their own"):
        sources.source("embedded", "labels.csv", 5, 0)
    with pytest.raises(InputError, match="no such folder"):
        sources.source(str(tmp_path / "absent"), "", 5, 0)


# ---- drawn eyes


def test_embedded_depends_on_seed_and_index_only():
    few, many = sources.embedded(3, seed=5), sources.embedded(50, seed=5)
    for i in (2, 0):
        (a, row_a), (b, row_b) = few.image(i, 48), many.image(i, 48)
        assert np.array_equal(a, b) and str(row_a) == str(row_b)
    assert not np.array_equal(few.image(0, 48)[0], sources.embedded(3, seed=6).image(0, 48)[0])
    with pytest.raises(InputError):
        sources.embedded(0)


def test_embedded_labels_and_anatomy(eyes80):
    table = eyes80.table
    eyes = table[table["fundus"] == 1]
    assert 0 < len(table) - len(eyes) < 12
    assert (table.loc[table["fundus"] == 0, list(LABELS)] == 0).all(axis=None)
    clean = eyes[eyes["severity"] == 0]
    assert 0.3 < len(clean) / len(eyes) < 0.6 and (clean[list(LABELS)] == 1).all(axis=None)
    # degradation that is aimed at a region leaves the other one readable
    assert len(eyes80.rows(disc=0, macula=1)) > 1 and len(eyes80.rows(disc=1, macula=0)) > 1
    assert (eyes.loc[eyes["aim"] == "disc", "macula"] == 1).all()
    assert (eyes.loc[eyes["aim"] == "macula", "disc"] == 1).all()
    assert ((eyes["fov_r"] - 0.5).abs() < 0.03).all()
    distance = np.hypot(eyes["fovea_x"] - eyes["disc_x"], eyes["fovea_y"] - eyes["disc_y"])
    assert (distance / (2 * eyes["disc_r"])).between(2, 3.2).all()


def test_fields_of_view_of_embedded_eyes_are_exact(eyes80):
    eyes = eyes80.rows(fundus=1)[:30]
    masks = eyes80.fov(eyes)[:, 0].numpy()
    for mask, i in zip(masks, eyes, strict=True):
        assert (mask == synthetic.fundus(0, int(i), 80).fov).all()
    x, fov = eyes80.batch(eyes), eyes80.fov(eyes)
    assert x[~fov.expand_as(x)].mean() < 0.02 and x[fov.expand_as(x)].mean() > 0.1


def test_clean_rows_hold_eyes_as_they_were_drawn(eyes80):
    count = 0
    for split in ("train", "val", "test"):
        rows = eyes80.clean_rows(split)
        count += len(rows)
        assert (eyes80.labels[rows] == 1).all()
        for i in rows[:2]:
            clean = synthetic.fundus(0, int(i), 80).image
            assert (eyes80.pixels([i])[0].permute(1, 2, 0).numpy() == clean).all()
    assert 20 < count < 45
    degraded = eyes80.table["severity"] > 0
    readable_but_degraded = eyes80.rows(readable=True)
    assert degraded[readable_but_degraded].any()  # these are left out

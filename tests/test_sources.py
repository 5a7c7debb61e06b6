"""rr.sources: label tables, folders, SynFundus-1M, embedded eyes."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawn import disc, line
from PIL import Image

from rr.data import dataset as data
from rr.data import packing, photo, sources, synthetic
from rr.errors import InputError
from rr.files import ROOT

PHOTOS = sorted((ROOT.parent / "shared" / "photos").glob("*.jpg"))


# ---- label tables

OURS = ["name", *sources.LABELS]
THEIRS = ["file_name", *sources.SYNFUNDUS]


def csv_of(folder, columns, rows, name="labels.csv"):
    pd.DataFrame(rows, columns=columns).to_csv(folder / name, index=False)
    return folder / name


def test_labels_in_every_accepted_form(tmp_path):
    rows = [
        ["a", 1, 1.0, True, 0.7],
        ["b", 0, 0.0, False, 0.2],
        ["c", 1, 0.5, True, 1],
        ["c", 1, 0.5, True, 1],
    ]
    for columns in (OURS, THEIRS, ["idx", *THEIRS[1:]]):
        table, seen = sources.read_labels(csv_of(tmp_path, columns, rows))
        assert table.columns.tolist() == OURS and table["name"].tolist() == ["a", "b", "c"]
        assert table[list(sources.LABELS)].to_numpy().tolist() == [
            [1, 1, 1, 1],
            [0, 0, 0, 0],
            [1, 1, 1, 1],
        ]
        assert seen == {"rows": 4, "values_between_0_and_1": 4, "repeated_rows": 1}


def test_bad_labels_are_all_in_one_line(tmp_path):
    rows = [["a", 1, 2, 1], ["b", 0, 1, "x"], [None, 1, -1, 0], ["d", 1, None, 0]]
    with pytest.raises(InputError) as error:
        sources.read_labels(csv_of(tmp_path, ["file_name", *THEIRS[1:4]], rows))
    message = line(error)
    assert "column retina (or is_retinal_region_readable) is missing" in message
    assert "macula is not in 0..1 in 3 rows (row 1: 2.0, row 3: -1.0, row 4: nan)" in message
    assert (
        "disc is not in 0..1 in 1 rows (row 2: x)" in message
        and "name is empty in 1 rows (row 3: nan)" in message
    )


def test_other_bad_tables(tmp_path):
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 9)
    conflict = csv_of(tmp_path, OURS, [["a", 1, 1, 1, 1], ["a", 1, 0, 1, 1]], "conflict.csv")
    for path, reason in [
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path / "empty.csv", "not a readable CSV"),
        (tmp_path / "binary.csv", "binary.csv: "),
        (
            csv_of(tmp_path, ["x"], [[1]], "other.csv"),
            "column name or file_name or idx is missing; column fundus",
        ),
        (csv_of(tmp_path, OURS, [], "header.csv"), "no rows"),
        (conflict, "1 names come twice with different labels"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            sources.read_labels(path)
        line(error)


def test_many_rows_are_read(tmp_path):
    n = 200_000
    table = pd.DataFrame({"file_name": np.char.add("img_", np.arange(n).astype(str))})
    for column in sources.SYNFUNDUS:
        table[column] = np.random.default_rng(1).integers(0, 2, n)
    table.to_csv(tmp_path / "many.csv", index=False)
    read, _ = sources.read_labels(tmp_path / "many.csv")
    assert len(read) == n and read["macula"].sum() == table["is_macular_readable"].sum()


# ---- sources


def test_synfundus_finds_images_and_lists_missing_ones(tmp_path, photos):
    names = ["a.jpg", "b", "c.jpg", "part1/d.JPG", "part2/e", "gone_1", "gone_2.jpg"]
    source = sources.folder(
        photos, csv_of(tmp_path, THEIRS, [[name, 1, 0, 1, 1] for name in names])
    )
    assert source.table["name"].tolist() == [
        "a.jpg",
        "b.png",
        "part1/c.jpg",
        "part1/d.JPG",
        "part2/e.tif",
    ]
    assert source.missing == ["gone_1", "gone_2.jpg"] and source.recipe["files_without_label"] == 1
    packed = packing.pack(source, 32, tmp_path / "out")
    assert packed.manifest["missing"] == 2 and packed.manifest["missing_first"] == source.missing
    assert pd.read_csv(tmp_path / "out" / "missing.csv")["name"].tolist() == source.missing
    assert packed.manifest["source_sizes"] == {f"300x{200 + i}": 1 for i in range(5)}
    assert packed.manifest["prevalence"] == {"fundus": 1, "macula": 0, "disc": 1, "retina": 1}


def test_folder_without_labels(tmp_path, photos):
    packed = packing.pack(sources.folder(photos), 32, tmp_path / "out")
    assert len(packed) == 6 and packed.labels.isnan().all() and packed.disc([0]).isnan().all()
    assert (
        len(packed.rows()) == 6
        and len(packed.rows(readable=True)) == len(packed.rows(readable=False)) == 0
    )


def test_bad_folders(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder"):
        sources.folder(tmp_path / "absent")
    with pytest.raises(InputError, match="no images"):
        sources.folder(tmp_path / "empty")
    with pytest.raises(InputError, match="none of its 1 images is in"):
        sources.folder(photos, csv_of(tmp_path, OURS, [["zzz", 1, 1, 1, 1]]))
    Image.fromarray(disc(90, 120, 60, 45, 40)).save(photos / "part2" / "c.jpg")
    with pytest.raises(InputError, match="1 names fit several files"):
        sources.folder(photos, csv_of(tmp_path, OURS, [["c.jpg", 1, 1, 1, 1]]))


def test_folders_of_two_kinds_and_names_that_cannot_be_written_down(tmp_path, photos):
    (photos / ".hidden").mkdir()
    (photos / "a.jpg").rename(photos / ".hidden" / "a.jpg")
    assert len(sources.folder(photos)) == 5
    shards_of(photos / "part1", **{name: lambda i: 1 for name in sources.LABELS})
    with pytest.raises(
        InputError, match="holds photographs .b.png. and parquet files .part1/part-0.parquet."
    ) as error:
        sources.folder(photos)
    line(error)
    (tmp_path / "bytes").mkdir()
    open(bytes(tmp_path / "bytes") + b"/eye\xff.jpg", "wb").close()
    with pytest.raises(InputError, match="is not UTF-8; rename it") as error:
        sources.folder(tmp_path / "bytes")
    line(error)


def test_one_photograph_under_two_names_has_one_label(tmp_path, photos):
    same = [["a.jpg", 1, 0, 1, 1], ["a", 1, 0, 1, 1]]
    assert sources.folder(photos, csv_of(tmp_path, OURS, same)).table["name"].tolist() == ["a.jpg"]
    with pytest.raises(
        InputError, match="1 images stand there under two names with different labels .first: a.jpg"
    ) as error:
        sources.folder(photos, csv_of(tmp_path, OURS, [same[0], ["a", 1, 1, 1, 1]]))
    line(error)
    (tmp_path / "twice.csv").write_text("name,fundus,fundus,macula,disc,retina\na.jpg,1,0,1,1,1\n")
    with pytest.raises(InputError, match="column fundus comes twice"):
        sources.read_labels(tmp_path / "twice.csv")


def test_bad_photographs_are_skipped_up_to_a_limit(tmp_path, photos):
    (photos / "bad1.jpg").symlink_to(photos / "nothing.jpg")
    packed = packing.pack(sources.folder(photos), 32, tmp_path / "out")
    assert len(packed) == 6 and packed.manifest["skipped"] == [
        "bad1.jpg: no such file"
    ]  # relative to the folder
    assert packed.table["name"].tolist() == sources.folder(photos).table["name"].drop(2).tolist()
    (photos / "bad2.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="are unusable"):
        packing.pack(sources.folder(photos), 32, tmp_path / "out")


def test_embedded_depends_on_seed_and_index_only():
    few, many = sources.embedded(3, seed=5), sources.embedded(50, seed=5)
    for i in (2, 0):
        (a, row_a), (b, row_b) = few.image(i, 48), many.image(i, 48)
        assert np.array_equal(a, b) and str(row_a) == str(row_b)
    assert not np.array_equal(few.image(0, 48)[0], sources.embedded(3, seed=6).image(0, 48)[0])
    with pytest.raises(InputError):
        sources.embedded(0)


def test_embedded_labels_and_anatomy(tmp_path):
    packed = packing.pack(sources.embedded(150, seed=1), 48, tmp_path)
    table = packed.table
    eyes = table[table["fundus"] == 1]
    assert 0 < len(table) - len(eyes) < 25
    assert (table.loc[table["fundus"] == 0, list(sources.LABELS)] == 0).all(axis=None)
    clean = eyes[eyes["severity"] == 0]
    assert 0.2 < len(clean) / len(eyes) < 0.4 and (clean[list(sources.LABELS)] == 1).all(axis=None)
    # region-wise unreadability exists, and aiming reaches the region it is aimed at and not the other
    assert len(packed.rows(disc=0, macula=1)) > 3 and len(packed.rows(disc=1, macula=0)) > 3
    assert (eyes.loc[eyes["aim"] == "disc", "macula"] == 1).all() and (
        eyes.loc[eyes["aim"] == "macula", "disc"] == 1
    ).all()
    assert ((eyes["fov_r"] - 0.5).abs() < 0.03).all()
    distance = np.hypot(eyes["fovea_x"] - eyes["disc_x"], eyes["fovea_y"] - eyes["disc_y"]) / (
        2 * eyes["disc_r"]
    )
    assert distance.between(2, 3.2).all()
    x, fov = packed.batch(eyes.index[:20]), packed.fov(eyes.index[:20])
    assert x[~fov.expand_as(x)].mean() < 0.02 and x[fov.expand_as(x)].mean() > 0.1


def test_fields_of_view_of_embedded_eyes_are_exact(tmp_path):
    packed = packing.pack(sources.embedded(40, seed=5), 96, tmp_path)
    eyes = [i for i in range(40) if packed.labels[i, 0] == 1]
    masks = packed.fov(eyes)[:, 0].numpy()
    for mask, i in zip(masks, eyes, strict=True):
        assert (mask == synthetic.fundus(5, i, 96).fov).all()


def test_references_are_clean(tmp_path):
    packed = packing.pack(sources.embedded(60, seed=5), 80, tmp_path)
    found = []
    for split in data.SPLITS:
        rows = packed.references(split)
        assert (packed.table["severity"].to_numpy()[rows] == 0).all() and (
            packed.labels[rows] == 1
        ).all()
        for i in rows[:2]:
            clean = synthetic.fundus(5, int(packed.table["name"][i].rsplit("-", 1)[1]), 80).image
            assert (packed.pixels([i])[0].permute(1, 2, 0).numpy() == clean).all()
        found.append(len(rows))
    assert 15 < sum(found) < 40
    assert torch.allclose(
        packed.mean(rows, size=2), packed.batch(rows).mean(0, keepdim=True), atol=1e-6
    )


def test_tables_of_other_programs(tmp_path):
    rows = ["a.jpg,1,0,1,1", "b.jpg,1,1,1,0"]
    spaced = tmp_path / "spaced.csv"
    spaced.write_text(
        "name, fundus, macula, disc, retina\n"
        + "\n".join(row.replace(",", ", ") + "," for row in rows)
    )
    table, _ = sources.read_labels(spaced)
    assert table["name"].tolist() == ["a.jpg", "b.jpg"] and table["retina"].tolist() == [1, 0]
    for mark in (";", "\t"):
        other = tmp_path / "other.csv"
        other.write_text("\n".join(["name,fundus,macula,disc,retina", *rows]).replace(",", mark))
        with pytest.raises(InputError, match="save it with commas"):
            sources.read_labels(other)


def test_what_notebook_01_names(tmp_path):
    assert len(sources.source("embedded", "", 5, 0)) == 5
    with pytest.raises(InputError, match="bring their own labels"):
        sources.source("embedded", "labels.csv", 5, 0)
    with pytest.raises(InputError, match="no such folder"):
        sources.source(str(tmp_path / "absent"), "", 5, 0)
    (tmp_path / "part-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        sources.source(str(tmp_path), "", 5, 0)


# ---- parquet


def encoded(i, side=60):
    """A JPEG of a disc whose colour tells i; returns its bytes."""
    content = io.BytesIO()
    image = disc(side, side + 10, side / 2 + 5, side / 2, side / 2 - 4) * (1 - i / 40)
    Image.fromarray(image.astype(np.uint8)).save(content, "jpeg", quality=95)
    return content.getvalue()


def shards_of(folder, counts=(7, 4), column="image", **more):
    """Parquet shards of so many images in row groups of 3, and the bytes of all; more: further columns by row."""
    folder.mkdir(exist_ok=True)
    start, every = 0, [encoded(i) for i in range(sum(counts))]
    for k, count in enumerate(counts):
        rows = range(start, start + count)
        table = {column: [{"bytes": every[i], "path": f"eye_{i}.jpg"} for i in rows]}
        table |= {name: [value(i) for i in rows] for name, value in more.items()}
        pq.write_table(pa.table(table), folder / f"part-{k}.parquet", row_group_size=3)
        start += count
    return every


def known(i):
    return {name: i >> k & 1 for k, name in enumerate(sources.SYNFUNDUS)}


def test_parquet_with_labels_in_columns(tmp_path):
    columns = {name: lambda i, name=name: known(i)[name] for name in sources.SYNFUNDUS}
    every = shards_of(tmp_path / "shards", **columns, text=lambda i: "no matter")
    source = sources.source(str(tmp_path / "shards"), "", 1, 0)
    assert (
        source.table["name"].tolist() == [f"eye_{i}.jpg" for i in range(11)]
        and source.recipe["kind"] == "parquet"
    )
    assert source.table[list(sources.LABELS)].to_numpy().tolist() == [
        list(known(i).values()) for i in range(11)
    ]
    for i in (0, 1, 5, 8, 2, 10, 10, 7):  # forwards, backwards, over row groups and shards
        crop, row = source.image(i, 32)
        oracle, fov, box, width, height = photo.read_crop(io.BytesIO(every[i]), 32)
        assert np.array_equal(crop, oracle) and (row["source_width"], row["source_height"]) == (
            70,
            60,
        ) == (width, height)
    one, two = (
        packing.pack(source, 32, tmp_path / f"{workers}", workers=workers) for workers in (1, 2)
    )
    assert one.hash == two.hash and len(one) == 11
    assert np.array_equal(one.pixels([10])[0].permute(1, 2, 0), source.image(10, 32)[0])


def test_parquet_with_a_csv(tmp_path):
    shards_of(tmp_path / "shards")
    rows = [[f"eye_{i}", 1, i % 2, 1, 0] for i in (9, 2, 4)] + [["gone", 1, 1, 1, 1]]
    source = sources.folder(tmp_path / "shards", csv_of(tmp_path, THEIRS, rows))
    assert source.table["name"].tolist() == ["eye_2.jpg", "eye_4.jpg", "eye_9.jpg"]  # as they lie
    assert source.table["macula"].tolist() == [0, 0, 1] and source.missing == ["gone"]
    whole = shards_of(tmp_path / "again")
    assert np.array_equal(source.image(2, 32)[0], photo.read_crop(io.BytesIO(whole[9]), 32)[0])


def test_parquet_rows_without_paths_are_numbered(tmp_path):
    (tmp_path / "bare").mkdir()
    table = {"image": [{"bytes": encoded(i)} for i in range(3)]}
    pq.write_table(pa.table(table), tmp_path / "bare" / "x.parquet")
    rows = [["x.parquet/2", 1, 1, 1, 0], ["x.parquet/0", 1, 0, 1, 0]]
    source = sources.folder(tmp_path / "bare", csv_of(tmp_path, OURS, rows))
    assert source.table["name"].tolist() == ["x.parquet/0", "x.parquet/2"]
    assert np.array_equal(source.image(1, 32)[0], photo.read_crop(io.BytesIO(encoded(2)), 32)[0])


def test_a_damaged_page_costs_its_rows_only(tmp_path):
    shards_of(tmp_path / "shards", counts=(9,), **{name: lambda i: 1 for name in sources.LABELS})
    path = tmp_path / "shards" / "part-0.parquet"
    content, second = (
        bytearray(path.read_bytes()),
        pq.ParquetFile(path).metadata.row_group(1).column(0),
    )
    start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    source = sources.folder(tmp_path / "shards")
    for i in (3, 4, 5):
        with pytest.raises(
            InputError, match="part-0.parquet: damaged at row . of row group 1"
        ) as error:
            source.image(i, 32)
        line(error)
    for i in (6, 2):
        assert np.array_equal(
            source.image(i, 32)[0], photo.read_crop(io.BytesIO(encoded(i)), 32)[0]
        )


def test_parquet_without_labels_shows_its_text(tmp_path):
    text = {"sparse text": lambda i: f"Eye {i}:\nimage quality is good" * 99, "n": lambda i: i}
    shards_of(tmp_path / "text", column="Fundus images", **text)
    says = "no readability columns.*part-0.parquet says sparse text: 'Eye 0: image quality is"
    with pytest.raises(InputError, match=says) as error:
        sources.folder(tmp_path / "text")
    assert len(line(error)) < 700
    shards_of(tmp_path / "partly", is_fundus=lambda i: 1)
    with pytest.raises(InputError, match="column macula .or is_macular_readable. is missing"):
        sources.folder(tmp_path / "partly")


def test_parquet_whose_images_cannot_be_told(tmp_path):
    shards_of(tmp_path / "shards", column="picture", OCT=lambda i: {"bytes": b"", "path": "x"})
    with pytest.raises(InputError, match="2 columns of images .* among picture, OCT") as error:
        sources.folder(tmp_path / "shards")
    line(error)
    labels = {name: lambda i: 1 for name in sources.LABELS}
    every = shards_of(
        tmp_path / "named",
        column="Fundus image",
        OCT=lambda i: {"bytes": b"", "path": "x"},
        **labels,
    )
    assert np.array_equal(
        sources.folder(tmp_path / "named").image(3, 32)[0],
        photo.read_crop(io.BytesIO(every[3]), 32)[0],
    )
    empty = [
        {"bytes": None, "path": "a.jpg"},
        {"bytes": b"no image", "path": "a.jpg"},
        {"bytes": every[0], "path": None},
    ]
    (tmp_path / "odd").mkdir()
    table = {"image": empty} | {name: [1, 1, 1] for name in sources.LABELS}
    pq.write_table(pa.table(table), tmp_path / "odd" / "x.parquet")
    source = sources.folder(tmp_path / "odd")
    assert source.table["name"].tolist() == [
        "x.parquet/0",
        "x.parquet/1",
        "x.parquet/2",
    ]  # paths that name several rows
    for i, reason in ((0, "x.parquet/0: no bytes"), (1, "x.parquet/1: not a readable image")):
        with pytest.raises(InputError, match=reason) as error:
            source.image(i, 32)
        line(error)
    assert source.image(2, 32)[0].any()

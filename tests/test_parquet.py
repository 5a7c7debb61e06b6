"""rr.data.parquet and sources.parquet_folder: photographs in the files of Hugging Face."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import disc, line
from PIL import Image
from test_labels import OURS, THEIRS, csv_of

from rr.data import packing, photo, sources
from rr.data.labels import SYNFUNDUS
from rr.errors import InputError
from rr.paper import LABELS


def encoded(i):
    """The bytes of a JPEG of a disc whose brightness depends on i."""
    content = io.BytesIO()
    image = disc(60, 70, 35, 30, 26) * (1 - i / 40)
    Image.fromarray(image.astype(np.uint8)).save(content, "jpeg", quality=95)
    return content.getvalue()


def crop(i):
    return photo.read_crop(io.BytesIO(encoded(i)), 32)[0]


def shards_of(folder, counts=(7, 4), column="image", **more):
    """Files of so many images, in row groups of 3; more: functions that give further columns."""
    folder.mkdir(exist_ok=True)
    start = 0
    for k, count in enumerate(counts):
        rows = range(start, start + count)
        table = {column: [{"bytes": encoded(i), "path": f"eye_{i}.jpg"} for i in rows]}
        table |= {name: [value(i) for i in rows] for name, value in more.items()}
        pq.write_table(pa.table(table), folder / f"part-{k}.parquet", row_group_size=3)
        start += count
    return folder


ONES = {name: lambda i: 1 for name in LABELS}


def test_labels_in_columns(tmp_path):
    columns = {name: lambda i, k=k: i >> k & 1 for k, name in enumerate(SYNFUNDUS)}
    folder = shards_of(tmp_path / "shards", **columns, text=lambda i: "no matter")
    source = sources.folder(folder)
    assert source.table["name"].tolist() == [f"eye_{i}.jpg" for i in range(11)]
    bits = [[i >> k & 1 for k in range(4)] for i in range(11)]
    assert source.table[list(LABELS)].to_numpy().tolist() == bits
    for i in (0, 1, 5, 8, 2, 10, 10, 7):  # forwards, backwards, over row groups and files
        image, row = source.image(i, 32)
        assert np.array_equal(image, crop(i))
        assert (row["source_width"], row["source_height"]) == (70, 60)
    packed = packing.pack(pickle.loads(pickle.dumps(source)), 32, tmp_path / "out")
    assert len(packed) == 11 and np.array_equal(packed.pixels([10])[0].permute(1, 2, 0), crop(10))


def test_labels_in_a_csv(tmp_path):
    rows = [[f"eye_{i}", 1, i % 2, 1, 0] for i in (9, 2, 4)] + [["gone", 1, 1, 1, 1]]
    source = sources.folder(shards_of(tmp_path / "shards"), csv_of(tmp_path, THEIRS, rows))
    assert source.table["name"].tolist() == ["eye_2.jpg", "eye_4.jpg", "eye_9.jpg"]
    assert source.table["macula"].tolist() == [0, 0, 1] and source.missing == ["gone"]
    assert np.array_equal(source.image(2, 32)[0], crop(9))


def test_rows_without_paths_are_numbered(tmp_path):
    (tmp_path / "bare").mkdir()
    table = {"image": [{"bytes": encoded(i)} for i in range(3)]}
    pq.write_table(pa.table(table), tmp_path / "bare" / "x.parquet")
    rows = [["x.parquet/2", 1, 1, 1, 0], ["x.parquet/0", 1, 0, 1, 0]]
    source = sources.folder(tmp_path / "bare", csv_of(tmp_path, OURS, rows))
    assert source.table["name"].tolist() == ["x.parquet/0", "x.parquet/2"]
    assert np.array_equal(source.image(1, 32)[0], crop(2))


def test_a_damaged_row_group_leaves_the_others_readable(tmp_path):
    folder = shards_of(tmp_path / "shards", counts=(9,), **ONES)
    path = folder / "part-0.parquet"
    content = bytearray(path.read_bytes())
    second = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    source = sources.folder(folder)
    for i in (3, 4):
        with pytest.raises(InputError, match="part-0.parquet: row group 1 is damaged") as error:
            source.image(i, 32)
        line(error)
    assert np.array_equal(source.image(6, 32)[0], crop(6))
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        sources.folder(folder)


def test_images_without_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="no columns of labels .*give a CSV of labels") as error:
        sources.folder(shards_of(tmp_path / "text", text=lambda i: "image quality is good"))
    line(error)
    with pytest.raises(InputError, match="column macula .or is_macular_readable. is missing"):
        sources.folder(shards_of(tmp_path / "partly", is_fundus=lambda i: 1))


def test_the_column_of_images_is_the_only_one_or_says_fundus(tmp_path):
    oct = {"OCT": lambda i: {"bytes": b"", "path": "x"}}
    with pytest.raises(InputError, match="2 columns of images .* among picture, OCT") as error:
        sources.folder(shards_of(tmp_path / "shards", column="picture", **oct))
    line(error)
    folder = shards_of(tmp_path / "named", column="Fundus image", **oct, **ONES)
    assert np.array_equal(sources.folder(folder).image(3, 32)[0], crop(3))


def test_rows_that_cannot_be_used(tmp_path):
    rows = [(None, "a.jpg"), (b"no image", "a.jpg"), (encoded(0), None)]
    table = {"image": [{"bytes": content, "path": path} for content, path in rows]}
    table |= {name: [1, 1, 1] for name in LABELS}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    source = sources.folder(tmp_path)
    numbered = ["x.parquet/0", "x.parquet/1", "x.parquet/2"]  # two images have one path
    assert source.table["name"].tolist() == numbered
    for i, reason in ((0, "x.parquet/0: no bytes"), (1, "x.parquet/1: not a readable image")):
        with pytest.raises(InputError, match=reason) as error:
            source.image(i, 32)
        line(error)
    assert np.array_equal(source.image(2, 32)[0], crop(0))

"""Photographs in parquet files as Hugging Face writes them: a column of struct {bytes, path}."""

import bisect
from functools import lru_cache
from operator import itemgetter

import pandas as pd

from rr.data.labels import SYNFUNDUS
from rr.errors import InputError
from rr.paper import LABELS


def read_index(path, shards):
    """(names, numbers, labels, groups) of all images in the files `shards` of the folder `path`.

    No image is read. Raises InputError for a damaged file, or one without one column of images.
    """
    import pyarrow
    import pyarrow.parquet as pq

    names = []  # the paths in the structs; None if there is none
    numbers = []  # <shard>/<row>: unique names
    labels = []  # the columns that may be labels, of each file
    groups = []  # of rows: (number of the first image, file, number in the file, column)
    for shard in shards:
        try:
            file = pq.ParquetFile(path / shard)
            column = _image_column(path / shard, file.schema_arrow)
            columns = [name for name in file.schema_arrow.names if name in {*SYNFUNDUS, *LABELS}]
            table = file.read(columns=[f"{column}.path", *columns], use_threads=False)
        except (OSError, pyarrow.ArrowException) as error:
            message = f"not a readable parquet file ({_line(error)})"
            raise InputError(f"{path / shard}: {message}") from None
        first = len(numbers)
        for group in range(file.num_row_groups):
            groups.append((first, path / shard, group, f"{column}.bytes"))
            first += file.metadata.row_group(group).num_rows
        numbers += [f"{shard}/{i}" for i in range(len(table))]
        has_paths = column in table.column_names
        paths = table[column].combine_chunks().field("path").to_pylist() if has_paths else []
        names += paths or [None] * len(table)
        labels.append(table.select(columns).to_pandas())
    names, numbers = pd.Series(names, dtype=str), pd.Series(numbers, dtype=str)
    return names, numbers, pd.concat(labels, ignore_index=True), groups


def image_bytes(groups, number):
    """The encoded image with this number; None if only its path is in the file."""
    first, *place = groups[bisect.bisect(groups, number, key=itemgetter(0)) - 1]
    return _row_group(*place)[int(number) - first]["bytes"].as_py()


@lru_cache(maxsize=1)
def _row_group(file, group, column):
    """The images of one row group, 100 or 1000 in the files of Hugging Face."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        parquet_file = pq.ParquetFile(file)
        return parquet_file.read_row_group(group, columns=[column], use_threads=False)[0]
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file.name}: row group {group} is damaged ({_line(error)})") from None


def _image_column(file, schema):
    """The column of images; if there are several, the one whose name contains "fundus"."""
    images = [item.name for item in schema if str(item.type).startswith("struct<bytes")]
    if len(images) > 1:
        images = [name for name in images if "fundus" in name.lower()] or images
    if len(images) != 1:
        message = f"{len(images)} columns of images (struct of bytes and path) among"
        needed = "one is needed, or one whose name contains fundus"
        raise InputError(f"{file}: {message} {', '.join(schema.names)}; {needed}")
    return images[0]


def _line(error):
    return " ".join(str(error).split())[:120]

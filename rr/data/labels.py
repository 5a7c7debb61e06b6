"""Readability labels of images: a table with a name and the four labels of the paper, each 0 or 1.

The CSV files of SynFundus-1M and our own are accepted: see `read_labels`.
"""

import csv

import numpy as np
import pandas as pd

from rr.errors import InputError
from rr.paper import LABELS

SYNFUNDUS = {  # column of SynFundus-1M: label
    "is_fundus": "fundus",
    "is_macular_readable": "macula",
    "is_optic_disc_readable": "disc",
    "is_retinal_region_readable": "retina",
}
NAME_COLUMNS = ("name", "file_name", "idx")  # columns that may name the image; the first one counts
ALLOWED = {*NAME_COLUMNS, *LABELS, *SYNFUNDUS}


def read_labels(path):
    """Read a CSV of labels as (table, counts): see `check_labels`.

    The file has one of NAME_COLUMNS and the four labels, under our names or those of SynFundus-1M.
    Other columns are ignored. Raises InputError for a file that is not such a CSV.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, skipinitialspace=True), [])
        raw = pd.read_csv(path, usecols=ALLOWED.__contains__, dtype=str, index_col=False,
                          skipinitialspace=True)  # fmt: skip
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:  # ValueError: damaged, binary, or empty
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not a readable CSV ({reason})") from None
    if len(header) == 1 and (mark := next((mark for mark in ";\t" if mark in header[0]), "")):
        message = f"its columns are separated by {mark!r}; save it with commas"
        raise InputError(f"{path}: {message}")
    if repeated := [name for name in header if name in ALLOWED and header.count(name) > 1]:
        raise InputError(f"{path}: column {repeated[0]} comes twice; leave one")
    return check_labels(raw, path)


def check_labels(raw, origin):
    """Check the columns of `raw`: returns (table, counts).

    table: name, and the four labels as 0.0 or 1.0. Values may be 0/1, true/false, or numbers in
    [0, 1], of which those from 0.5 become 1. counts: rows, repeated rows (which are removed), and
    rows with values between 0 and 1. Raises InputError, in one line, that lists every missing
    column and the first bad rows of each column (row 1 follows the header); also for a name that
    comes twice with different labels.
    """
    names = [column for column in NAME_COLUMNS if column in raw]
    columns = {new: old for old, new in SYNFUNDUS.items()}
    columns = {label: label if label in raw else columns[label] for label in LABELS}
    table, problems = pd.DataFrame(index=raw.index), []
    if names:
        table["name"] = raw[names[0]]
        problems += _bad_rows("name", "empty", raw[names[0]], table["name"].isna())
    else:
        problems.append(f"column {' or '.join(NAME_COLUMNS)} is missing")
    for label, column in columns.items():
        if column not in raw:
            problems.append(f"column {label} (or {column}) is missing")
            continue
        text = raw[column].astype(str).str.strip().str.lower()
        text = text.replace({"true": "1", "false": "0"})
        table[label] = pd.to_numeric(text, errors="coerce").astype(float)
        bad = ~table[label].between(0, 1)
        problems += _bad_rows(label, "not in 0..1", raw[column], bad)
    if problems:
        raise InputError(f"{origin}: {'; '.join(problems)}")
    if table.empty:
        raise InputError(f"{origin}: no rows")

    values = table[list(LABELS)]
    counts = {"rows": len(table), "values_between_0_and_1": int((values % 1 > 0).any(axis=1).sum())}
    table[list(LABELS)] = (values >= 0.5).astype(float)
    table = table.drop_duplicates(ignore_index=True)
    if len(twice := table["name"][table["name"].duplicated()]):
        message = f"{len(twice)} names come twice with different labels (first: {twice.iloc[0]})"
        raise InputError(f"{origin}: {message}")
    return table, counts | {"repeated_rows": counts["rows"] - len(table)}


def _bad_rows(column, rule, values, bad):
    rows = np.flatnonzero(bad)
    first = ", ".join(f"row {row + 1}: {values.iloc[row]}" for row in rows[:3])
    return [f"{column} is {rule} in {len(rows)} rows ({first})"] if len(rows) else []


def match_names(names, files, path):
    """The file of each name, as a Series with the index of `names`; NaN where there is none.

    A name is a relative path, a path without extension, a file name, or a file name without
    extension; the first of these that fits counts. Raises InputError if several files fit.
    """
    files = pd.Series(files, dtype=str)
    file_names = files.str.rsplit("/", n=1).str[-1]
    path_stems, stems = (s.str.replace(r"\.[^./]*$", "", regex=True) for s in (files, file_names))
    matches = pd.Series(np.nan, index=names.index, dtype=object)
    for key in (files, path_stems, file_names, stems):
        ambiguous = names[matches.isna() & names.isin(key[key.duplicated()])]
        if len(ambiguous):
            message = f"{len(ambiguous)} names fit several files (first: {ambiguous.iloc[0]})"
            raise InputError(f"{path}: {message}; write paths")
        file_of = pd.Series(files.to_numpy(), index=key)
        matches = matches.fillna(names.map(file_of[~file_of.index.duplicated()]))
    return matches

"""rr.data.labels: tables of labels in every accepted form, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from drawn import line

from rr.data import labels
from rr.errors import InputError
from rr.paper import LABELS

OURS = ["name", *LABELS]
THEIRS = ["file_name", *labels.SYNFUNDUS]


def csv_of(folder, columns, rows, name="labels.csv"):
    pd.DataFrame(rows, columns=columns).to_csv(folder / name, index=False)
    return folder / name


def test_labels_in_every_accepted_form(tmp_path):
    rows = [["a", 1, 1.0, True, 0.7], ["b", 0, 0.0, False, 0.2], ["c", 1, 0.5, True, 1]]
    for columns in (OURS, THEIRS, ["idx", *THEIRS[1:]]):
        table, counts = labels.read_labels(csv_of(tmp_path, columns, [*rows, rows[-1]]))
        assert table.columns.tolist() == OURS and table["name"].tolist() == ["a", "b", "c"]
        assert table[list(LABELS)].to_numpy().tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
        assert counts == {"rows": 4, "values_between_0_and_1": 4, "repeated_rows": 1}


def test_all_problems_are_in_one_line(tmp_path):
    rows = [["a", 1, 2, 1], ["b", 0, 1, "x"], [None, 1, -1, 0], ["d", 1, None, 0]]
    with pytest.raises(InputError) as error:
        labels.read_labels(csv_of(tmp_path, ["file_name", *THEIRS[1:4]], rows))
    message = line(error)
    assert "column retina (or is_retinal_region_readable) is missing" in message
    assert "macula is not in 0..1 in 3 rows (row 1: 2.0, row 3: -1.0, row 4: nan)" in message
    assert "disc is not in 0..1 in 1 rows (row 2: x)" in message
    assert "name is empty in 1 rows (row 3: nan)" in message


def test_tables_that_are_refused(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    good = "name,fundus,macula,disc,retina\na.jpg,1,0,1,1\n"
    conflict = csv_of(tmp_path, OURS, [["a", 1, 1, 1, 1], ["a", 1, 0, 1, 1]], "conflict.csv")
    twice = good.replace("fundus,", "fundus,fundus,").replace("jpg,", "jpg,1,")
    for path, reason in [
        (tmp_path / "absent.csv", "no such file"),
        (write("empty.csv", b""), "not a readable CSV"),
        (write("binary.csv", bytes(range(256)) * 9), "not a readable CSV"),
        (
            write("other.csv", b"x\n1\n"),
            "column name or file_name or idx is missing; column fundus",
        ),
        (csv_of(tmp_path, OURS, [], "header.csv"), "no rows"),
        (conflict, "1 names come twice with different labels"),
        (write("twice.csv", twice.encode()), "column fundus comes twice"),
        (write("semicolon.csv", good.replace(",", ";").encode()), "save it with commas"),
        (write("tab.csv", good.replace(",", "\t").encode()), "save it with commas"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            labels.read_labels(path)
        line(error)


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_spaces_final_commas_and_byte_order_marks(tmp_path, start):
    path = tmp_path / "spaced.csv"
    path.write_text(start + "name, fundus, macula, disc, retina\na.jpg, 1, 0, 1, 1,\n", "utf-8")
    table, _ = labels.read_labels(path)
    assert table.to_numpy().tolist() == [["a.jpg", 1, 0, 1, 1]]


def test_names_are_matched_by_path_then_stem_then_file_name():
    files = ["a.jpg", "b.png", "part1/c.jpg", "part1/d.JPG", "part2/c.jpg", "part2/e.v2.tif"]
    names = ["a.jpg", "b", "part2/c", "d.JPG", "e.v2", "gone", "d"]
    matches = labels.match_names(pd.Series(names), files, "folder")
    expected = [files[0], files[1], files[4], files[3], files[5], np.nan, files[3]]
    assert matches.fillna("").tolist() == pd.Series(expected).fillna("").tolist()
    for ambiguous in ("c.jpg", "c"):
        with pytest.raises(InputError, match="1 names fit several files .first: c") as error:
            labels.match_names(pd.Series([ambiguous, "a"]), files, "folder")
        line(error)

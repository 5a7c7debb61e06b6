"""Atomic writes, JSON, provenance."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from rr import files as io
from rr.errors import InputError
from rr.provenance import provenance


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    io.write_text(path, "first")
    with pytest.raises(RuntimeError), io.writing(path) as part:
        part.write_text("second, half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    path = tmp_path / "a.txt"
    io.write_text(path, "first")
    with pytest.raises(InputError, match="disk is full"), io.writing(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "first"


def test_folders_that_cannot_be_written_to_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (io.folder, lambda path: io.write_text(path / "a.txt", "")):
        with pytest.raises(InputError, match="another folder"):
            call(tmp_path / "file" / "below")


def test_other_errors_of_a_full_disk_are_known_too(tmp_path, monkeypatch):
    for error in (
        RuntimeError("[enforce fail at inline_container.cc:671]"),
        OSError("No space left on device (os error 28)"),
    ):
        if isinstance(error, RuntimeError):
            full = shutil._ntuple_diskusage(10, 10, 0)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(InputError, match="disk is full"), io.writing(tmp_path / "a.pt"):
            raise error


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    io.write_text(path, "first")
    code = (
        "import os, signal, sys; from rr import files as io\nwith io.writing(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=io.ROOT)
    assert done.returncode == -9 and path.read_text() == "first"


def test_json_knows_arrays_and_nan(tmp_path):
    io.write_json(
        tmp_path / "a.json",
        {"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": tmp_path},
    )
    assert io.read_json(tmp_path / "a.json") == {
        "a": 0.5,
        "b": [0, 1],
        "c": None,
        "d": str(tmp_path),
    }
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="b.json: not valid JSON"):
        io.read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="no such file"):
        io.read_json(tmp_path / "c.json")


def test_tables_keep_full_precision(tmp_path):
    table = pd.DataFrame({"x": [1 / 3, np.pi * 1e-7]})
    io.write_table(tmp_path / "t.csv", table)
    assert (pd.read_csv(tmp_path / "t.csv") == table).all().all()


def test_provenance_says_where_a_number_comes_from():
    import time

    facts = provenance(started=time.time() - 2, preset="mini")
    assert facts["preset"] == "mini" and facts["seconds"] >= 2
    assert facts["versions"]["torch"] and facts["threads"] >= 1 and facts["peak_memory_mib"] > 10
    assert facts["commit"] is None or len(facts["commit"]) == 40

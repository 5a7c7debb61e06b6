"""Atomic writes, locks, JSON, results and their provenance."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from rr import files as io
from rr.errors import InputError
from rr.provenance import provenance, read_result, write_result


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


def test_errors_of_the_block_itself_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), io.writing(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_text()


def test_one_process_at_a_time_has_a_lock(tmp_path, capsys):
    code = "import sys; from rr import files as io\nwith io.exclusive_lock(sys.argv[1], 'busy'):\n"
    code += "    print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=io.ROOT, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="^busy; wait for its end, or stop it$"):
            with io.exclusive_lock(tmp_path / ".lock", "busy", wait=False):
                pass
        holder.kill()
        with io.exclusive_lock(tmp_path / ".lock", "busy"):  # the system has released it
            pass


def test_partial_files_of_killed_writers_are_removed(tmp_path):
    for name in (f".a{io.PART}1.txt", f".b{io.PART}2.txt", "a.txt"):
        (tmp_path / name).touch()
    io.remove_partial_files(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == [f".b{io.PART}2.txt", "a.txt"]


def test_the_reference_and_a_users_run_have_their_own_folders():
    assert io.results("smoke") == io.ROOT / "results" / "smoke"
    assert io.figures("smoke") == io.ROOT / "figures" / "smoke"
    assert io.results("smoke", io.REFERENCE) == io.ROOT / "results" / "reference" / "smoke"
    assert io.figures("smoke", io.REFERENCE) == io.ROOT / "figures" / "reference" / "smoke"
    assert io.figures("smoke", "/elsewhere") == io.results("smoke", "/elsewhere") / "figures"
    with pytest.raises(InputError, match="out: empty"):
        io.results("smoke", " ")


def test_git_ignores_a_users_run_and_keeps_the_reference():
    """So that `make reproduce` leaves `git status` clean."""
    paths = {
        "results/smoke/01_data.json": True,
        "results/.smoke.lock": True,
        "figures/smoke/01_data_labels.png": True,
        "notebooks/05_vae.ipynb": True,
        "results/reference/smoke/01_data.json": False,
        "results/reference/smoke/runs/a_0/per_image.csv": False,
        "results/reference/smoke/runs/a_0/denoiser/model.safetensors": True,
        "results/reference/smoke/checkpoints/vae/config.json": True,
        "figures/reference/smoke/01_data_labels.png": False,
        "notebooks/05_vae.py": False,
    }
    command = ["git", "check-ignore", "--no-index", *paths]
    done = subprocess.run(command, cwd=io.ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == [path for path, ignored in paths.items() if ignored]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    io.write_text(path, "first")
    code = (
        "import os, sys; from rr import files as io\nwith io.writing(sys.argv[1]) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), 9)"
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

    record = provenance(started=time.time() - 2, preset="mini")
    assert record["preset"] == "mini" and record["seconds"] >= 2 and len(record["code"]) == 12
    assert record["versions"]["torch"] and record["threads"] >= 1 and record["peak_memory_mib"] > 10
    assert record["commit"] is None or len(record["commit"]) == 40


def test_a_result_vouches_for_its_files(tmp_path):
    io.write_text(tmp_path / "eyes.png", "eyes")
    write_result(tmp_path / "result.json", {"psnr": 20.0}, files=["eyes.png"], preset="mini")
    result = read_result(tmp_path / "result.json")
    assert result["numbers"] == {"psnr": 20.0} and result["provenance"]["preset"] == "mini"
    io.write_text(tmp_path / "eyes.png", "other eyes")
    with pytest.raises(InputError, match="eyes.png: .* not the one that result.json was written"):
        read_result(tmp_path / "result.json")
    (tmp_path / "eyes.png").unlink()
    with pytest.raises(InputError, match="eyes.png: missing"):
        read_result(tmp_path / "result.json")
    io.write_json(tmp_path / "result.json", [1])
    with pytest.raises(InputError, match="not the result of a notebook"):
        read_result(tmp_path / "result.json")

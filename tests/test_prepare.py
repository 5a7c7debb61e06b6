"""`rr data prepare` as a user calls it: once, again, after kill -9, wrongly."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from typer.testing import CliRunner

from rr.cli import app
from rr.data.dataset import Packed
from rr.errors import InputError
from rr.files import ROOT

EMBEDDED = ("data", "prepare", "embedded", "--size", "32", "--out")


def call(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_prepared_once_found_again_and_made_afresh(tmp_path):
    words = (*EMBEDDED, tmp_path / "one", "--n", 5, "--seed", 3)
    first, manifest = call(*words), tmp_path / "one" / "manifest.json"
    assert first.exit_code == 0 and "one: 5 images of 32 px, 0.0 MB" in first.output
    written = manifest.stat().st_mtime_ns
    assert call(*words).exit_code == 0 and manifest.stat().st_mtime_ns == written
    assert call(*words, "--fresh").exit_code == 0 and manifest.stat().st_mtime_ns > written
    assert len(Packed(tmp_path / "one", size=32, verify=True)) == 5


SCRIPT = """\
from rr import __main__
from rr.data import packing

packing.CHUNK = 10  # so that there is progress within seconds
__main__.main()
"""


def start(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return psutil.Popen([sys.executable, "-c", SCRIPT, *map(str, words)], env=environment,
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def lines_of(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("rows-*.csv"))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_call_continues_and_leaves_no_process(tmp_path, workers):
    words = ("--n", 60, "--workers", workers)
    killed = start(*EMBEDDED, tmp_path / "cut", *words)
    until = time.time() + 120
    while not 10 < lines_of(tmp_path / "cut") < 60:
        assert killed.poll() is None and time.time() < until, killed.communicate()
        time.sleep(0.02)
    children = killed.children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert not (tmp_path / "cut" / "manifest.json").exists()
    done = call(*EMBEDDED, tmp_path / "cut", *words)
    assert done.exit_code == 0 and "continues after" in done.output, done.output
    whole = call(*EMBEDDED, tmp_path / "whole", "--n", 60)
    assert whole.exit_code == 0 and "continues after" not in whole.output
    cut, whole = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("cut", "whole")
    )
    assert cut == whole


def test_what_cannot_be_prepared(tmp_path, photos):
    (photos / "text.jpg").write_text("no image")
    (photos / "more.jpg").write_text("no image either")
    for words, reason in [
        ([tmp_path / "absent"], "no such folder"),
        ([photos, "--labels", tmp_path / "absent.csv"], "no such file"),
        ([photos], "2 of the first"),
        ([""], "the name of the source is empty"),
    ]:
        done = call("data", "prepare", *words, "--size", 32, "--out", tmp_path / "out")
        assert isinstance(done.exception, InputError) and reason in str(done.exception)
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_was_left_out_is_reported(tmp_path, photos):
    (photos / "text.jpg").write_text("no image")
    rows = [f"{name},1,1,1,1" for name in ("a.jpg", "b", "text", "gone")]
    (tmp_path / "labels.csv").write_text("\n".join(["name,fundus,macula,disc,retina", *rows]))
    done = call("data", "prepare", photos, "--labels", tmp_path / "labels.csv",
                "--size", 32, "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1 unusable images were left out (all in manifest.json), the first: text" in done.output
    assert "1 names of the labels have no image (missing.csv), the first: gone" in done.output

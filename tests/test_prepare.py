"""rr data prepare, as a user calls it: once, again, after kill -9, wrongly."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil

from rr.data import dataset as data
from rr.files import ROOT


def test_prepared_once_and_found_again(rr, tmp_path):
    words = (
        "data",
        "prepare",
        "embedded",
        "--n",
        5,
        "--size",
        32,
        "--seed",
        3,
        "--out",
        tmp_path / "one",
    )
    first, again = rr(*words), rr(*words)
    assert first.returncode == again.returncode == 0, first.stderr
    assert re.search(
        r"one: 5 images of 32 px, 0.0 MB; 5 made now, [\d.]+ images/s; at most \d+ MiB",
        first.stdout,
    ), first.stdout
    assert (
        "0 made now" in again.stdout
        and len(data.Packed(tmp_path / "one", size=32, verify=True)) == 5
    )


def test_killed_it_goes_on(tmp_path):
    shards = "from rr import packing, __main__; packing.SHARD = 20; __main__.main()"  # small ones, as a test has no hours
    words = ["data", "prepare", "embedded", "--n", "90", "--size", "64", "--out"]

    def call(name):
        return subprocess.Popen([sys.executable, "-c", shards, *words, str(tmp_path / name)], cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    killed = call("cut")
    until = time.time() + 120
    while not list((tmp_path / "cut").glob("shard-*-00001.csv")):
        assert killed.poll() is None and time.time() < until, killed.communicate()
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "cut" / "manifest.json").exists()
    for name in ("cut", "whole"):
        process = call(name)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert ("goes on after" in said) == (name == "cut")
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("cut", "whole")
    )
    assert one == two and any(name.endswith("-00004.npy") for name in one)


def test_workers_end_with_the_process_that_started_them(tmp_path):
    words = (
        f"-m rr data prepare embedded --n 4000 --size 64 --workers 2 --out {tmp_path / 'x'}".split()
    )
    process = psutil.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.time() + 120
    while (
        not list((tmp_path / "x").glob(".shard-*")) or len(process.children()) < 3
    ):  # with multiprocessing's own
        assert process.poll() is None and time.time() < until
        time.sleep(0.05)
    time.sleep(5)  # until they work
    children = process.children(recursive=True)
    process.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) >= 2 and not alive


def test_what_cannot_be_prepared(rr, tmp_path, photos):
    (photos / "text.jpg").write_text("no image")
    (photos / "more.jpg").write_text("no image either")
    for words, reason in [
        ([tmp_path / "absent"], "no such folder"),
        ([photos, "--labels", tmp_path / "absent.csv"], "no such file"),
        ([photos], "2 of the first"),
    ]:
        done = rr("data", "prepare", *words, "--size", 32, "--out", tmp_path / "out")
        assert (
            done.returncode == 2
            and done.stderr.strip().splitlines()[-1].startswith("error: ")
            and reason in done.stderr
        )
        assert "Traceback" not in done.stderr and not (tmp_path / "out" / "manifest.json").exists()

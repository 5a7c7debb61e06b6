"""workflow/gpu, on the CPU: what is compared, measured and collected, and parts that fail."""

import importlib
import signal
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pandas as pd
import psutil
import pytest
import typer

from rr import studies
from rr.files import ROOT

sys.path.append(str(ROOT / "workflow"))
gpu, gpu_parts = (importlib.import_module(name) for name in ("gpu", "gpu_parts"))
FAST = ("vae", "restorer vae", "bridge")


@pytest.fixture
def out(tmp_path, eyes80):
    """Results of preset mini that hold a data set and nothing else."""
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "data").symlink_to(eyes80.path)
    return tmp_path


def checked(out):
    return pd.read_csv(out / "gpu" / "check.csv")


@pytest.mark.parametrize(
    "names", [FAST, pytest.param(tuple(gpu_parts.COMPONENTS), marks=pytest.mark.slow)]
)
def test_the_cpu_agrees_with_the_cpu(tmp_path, monkeypatch, names):
    some = {name: gpu_parts.COMPONENTS[name] for name in names}
    monkeypatch.setattr(gpu_parts, "COMPONENTS", some)
    monkeypatch.setattr(gpu_parts, "code", lambda: "019105788663")  # not read back as a number
    gpu_parts.check(results=str(tmp_path))
    table = checked(tmp_path)
    assert table["agrees"].all() and table["difference"].max() < 1e-3
    assert {*table["component"]} == {*some, "recommended"}
    values = {"loss", "gradient", "input", "validation", "restored", "photograph"}
    assert {*table["value"]} == values
    monkeypatch.setattr(gpu_parts, "compare", None)
    gpu_parts.check(results=str(tmp_path))  # all agrees already, so nothing is compared again


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_gradient_that_differs_does_not_agree(tmp_path, monkeypatch, error):
    monkeypatch.setattr(gpu_parts, "COMPONENTS", {"vae": gpu_parts.COMPONENTS["vae"]})
    monkeypatch.setattr(gpu_parts, "compare_recommended", lambda device: 0.0)
    calls, step = [], gpu_parts.step

    def wrong_on_the_device(*arguments):
        values = step(*arguments)
        calls.append(values)
        if len(calls) == 2:  # the first one is the CPU's
            values["gradient"] = values["gradient"] * (1 + error)
        return values

    monkeypatch.setattr(gpu_parts, "step", wrong_on_the_device)
    with pytest.raises(typer.Exit):
        gpu_parts.check(results=str(tmp_path))
    (row,) = checked(tmp_path).query("not agrees").itertuples()
    assert (row.component, row.precision, row.value) == ("vae", "exact", "gradient")


def test_every_component_has_a_rate(out, monkeypatch):
    monkeypatch.setattr(gpu_parts, "code", lambda: "019105788663")  # not read back as a number
    gpu_parts.rates("mini", str(out), seconds=0)
    table = pd.read_csv(out / "gpu" / "rates.csv", dtype={"code": str})
    assert [*table["component"]] == [*gpu_parts.COMPONENTS]
    assert (table[["images_per_s_float32", "images_per_s_as_used"]] > 0).all(axis=None)
    assert table["in_steps_percent"].between(0, 100).all()
    assert table["gpu_busy_percent"].isna().all()  # nothing is known about a GPU that is not there
    monkeypatch.setattr(gpu_parts, "measure", None)
    gpu_parts.rates("mini", str(out), seconds=0)  # every row is there
    table.query("component != 'vae'").to_csv(out / "gpu" / "rates.csv", index=False)
    with pytest.raises(TypeError):
        gpu_parts.rates("mini", str(out), seconds=0)


# ----------------------------------------------------------------------------- parts and collection


PYTHON = """#!/usr/bin/env bash
case "$*" in
  *" check "*) echo "no such device"; exit 3 ;;
  *" data prepare "*) sleep 1000 & echo $! > {pid}; wait ;;
  *) echo "$*" ;;
esac
"""


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    python = tmp_path / "python"
    python.write_text(PYTHON.format(pid=tmp_path / "pid"))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(gpu, "ENDS", {"check": 0.9, "data": 0.1, "rates": 0.9, "reproduce": 0.9})
    for name in ("CUDA_VISIBLE_DEVICES", "TQDM_MININTERVAL"):
        monkeypatch.setenv(name, "")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as end:
            gpu.main(
                "mini", str(tmp_path), str(tmp_path / "out"), "cpu", limit=60, elapsed=0, jobs=3
            )
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert end.value.exit_code == 1
    said, log = capsys.readouterr().out, (tmp_path / "out" / "log.txt").read_text()
    for line in (
        "check: failed with exit code 3",
        "data: stopped",
        "rates: done",
        "reproduce: done",
        "numbers.tar.gz: 0 of 0 files",
        f"0 of {len(gpu.workflow.jobs())} notebooks",
        "2 of 4 parts are done",
    ):
        assert line in said and line in log
    assert "no such device" in log and f"--out {tmp_path} --jobs 3" in log
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.fixture
def made(tmp_path):
    """Some of the files that a run leaves, with two trained restorers of 300 and of 60 kB."""
    noise = np.random.default_rng(0)
    bridge, regen = (f"mini/runs/{studies.EVALUATED[name]}_0" for name in ("bridge", "RetinaRegen"))
    for path, size in {
        "gpu/check.csv": 10, "gpu/mini/data.npy": 10, "mini/data/table.csv": 10,
        "mini/checkpoints/vae/config.json": 10, "mini/11_summary.json": 10,
        "mini/executed/01_data.log": 10, "mini/executed/01_data.ipynb": 50_000,
        "mini/figures/a.png": 50_000, f"{bridge}/result.json": 10,
        f"{bridge}/denoiser/weights-1.safetensors": 60_000, f"{bridge}/denoiser/config.json": 10,
        f"{bridge}/denoiser/last/state.pt": 10, f"{regen}/denoiser/weights-1.safetensors": 300_000,
    }.items():  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(noise.bytes(size))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("a line\n")
    return tmp_path


def collected(out):
    files = {}
    for path in (out / "out").glob("*.tar.gz"):
        with tarfile.open(path) as tar:
            files[path.name] = {*tar.getnames()}
    return files


def test_numbers_figures_and_weights_are_collected_and_data_is_not(made):
    list(gpu.collect("mini", str(made), made / "out"))
    files = collected(made)
    run = f"mini/runs/{studies.BRIDGE}_0"
    assert {"mini/11_summary.json", "mini/executed/01_data.log", f"{run}/result.json"} <= (
        files["numbers.tar.gz"]
    )
    assert files["measured.tar.gz"] == {"gpu/check.csv"}
    assert files["figures.tar.gz"] == {"mini/figures/a.png"}
    assert files["executed.tar.gz"] == {"mini/executed/01_data.ipynb"}
    names = ("config.json", "weights-1.safetensors")
    assert files["weights-bridge.tar.gz"] == {f"{run}/denoiser/{name}" for name in names}
    every = set.union(*files.values())
    assert not any("/data" in name or "checkpoints" in name or "last" in name for name in every)
    assert len([*(made / "out").iterdir()]) <= 8


@pytest.mark.parametrize(
    "one, total, missing",
    [(0.2, 9, {"RetinaRegen"}), (0.2, 0.12, {"RetinaRegen", "bridge"}), (0.03, 9, None)],
)
def test_the_largest_files_are_left_out_if_an_archive_is_too_large(
    made, monkeypatch, one, total, missing
):
    monkeypatch.setattr(gpu, "MIB", one)
    monkeypatch.setattr(gpu, "TOTAL_MIB", total)
    (made / "mini" / "figures" / "small.png").write_bytes(b"1" * 10)
    (made / "out" / "weights-RetinaRegen.tar.gz").write_text("of an earlier call")
    lines = list(gpu.collect("mini", str(made), made / "out"))
    sizes = [path.stat().st_size for path in (made / "out").iterdir()]
    assert max(sizes) <= one * 2**20 and sum(sizes) <= total * 2**20 and len(sizes) <= 8
    files = collected(made)
    if missing is None:  # the figure and the notebook of 50 kB are too large, too
        assert files["figures.tar.gz"] == {"mini/figures/small.png"}
        assert any(line.startswith("figures.tar.gz: 1 of 2 files") for line in lines)
        assert files["executed.tar.gz"] == set()
        return
    assert len(files["figures.tar.gz"]) == 2
    for name in ("RetinaRegen", "bridge"):
        held = any("safetensors" in file for file in files[f"weights-{name}.tar.gz"])
        assert held == (name not in missing)


def test_a_machine_without_a_gpu_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([ROOT / "workflow" / "gpu"], capture_output=True, text=True,
                          env={**gpu.os.environ, "PYTHON": sys.executable})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: this machine has no GPU; use --device cpu\n"


def test_wheels_are_installed_without_an_index_and_found(tmp_path):
    """Fails if the wheels are not on the path of the Python that runs the parts."""
    (tmp_path / "project" / "workflow").mkdir(parents=True)
    script = tmp_path / "project" / "workflow" / "gpu"
    script.write_bytes((ROOT / "workflow" / "gpu").read_bytes())
    script.with_suffix(".py").write_text("import sys, tiny\nprint(tiny.WORD, sys.argv[1:])\n")
    info = "tiny-1.0.dist-info"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "WORD = 'installed'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\n"
                       "Root-Is-Purelib: true\nTag: py3-none-any\n")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")
    words = ["bash", script, "--wheels", "wheels", "--limit", "9"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path,
                          env={**gpu.os.environ, "PYTHON": sys.executable})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "installed ['--elapsed', " in done.stdout and "'--limit', '9']" in done.stdout

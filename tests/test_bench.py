"""rr.bench: the timing, the table that rows keep, peers that are missing; every row of rr.bench_cpu at its smallest."""

import json
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from rr import cli, studies
from rr.benchmarks import bench, bench_cpu
from rr.benchmarks.bench import Gate, NotMeasured, Task
from rr.errors import InputError
from rr.evaluate import metrics
from rr.models import pretrained as weights
from rr.provenance import read_result, write_result

GOOD = Gate("error", 0.0, 1.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told: clock(name, s, ...) is a call that takes these seconds in turn; clock.log, the calls."""
    now, log = [0.0], []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def make(name, *durations):
        durations = list(durations)

        def call():
            log.append(name)
            now[0] += durations.pop(0)

        return call

    make.log = log
    return make


@pytest.fixture
def rows(monkeypatch):
    """rr bench cpu with two rows of our own; rows["A"].value is what A's gate measures."""
    state = SimpleNamespace(value=0.25, missing=False)

    def a():
        """A: what is kept."""
        yield Task("a", "images", 1, int, 0, Gate("error", state.value, 1.0), {"peer": int})

    def b():
        """B: what may be missing."""
        if state.missing != "at once":
            yield Task("b", "images", 2, int, 0, GOOD)
        if state.missing:
            raise NotMeasured("peer: not installed; `pip install peer`")
        yield Task("c", "images", 2, int, np.inf, GOOD)

    monkeypatch.setitem(sys.modules, "rr.bench_cpu", SimpleNamespace(ROWS={"A": a, "B": b}))
    return state


def test_compare_calls_by_turns_and_leaves_the_first_calls_out(clock):
    times = bench.compare(clock("ours", 100, 1, 2, 3), clock("peer", 100, 4, 5, 6), pairs=3)
    assert clock.log == ["ours", "peer"] * 4
    np.testing.assert_array_equal(times, [[1, 4], [2, 5], [3, 6]])


def test_measure_gives_the_median_of_the_pairwise_ratios(clock):
    ours, peer = (
        clock("ours", 9, 1, 1, 2, 2, 8),
        clock("peer", 9, 2, 3, 8, 10, 8),
    )  # ratios 2 3 4 5 1
    (line,) = bench.measure(Task("t", "images", 4, ours, 3, GOOD, {"peer": peer}))
    assert (line["ratio"], line["low"], line["high"]) == (3, 1, 5) and line["met"]
    assert (line["ours"], line["theirs"]) == (
        2,
        0.5,
    )  # medians of 4 4 2 2 .5 and of 2 1.33 .5 .4 .5 images/s


def test_measure_counts_the_work_of_each_side(clock):
    task = Task(
        "t",
        "GFLOP",
        4,
        clock("ours", *[1] * 6),
        1,
        GOOD,
        {"ceiling": clock("peer", *[2] * 6)},
        peer_amount=16,
    )
    (line,) = bench.measure(task)
    assert (line["ours"], line["theirs"], line["ratio"], line["met"]) == (4, 8, 0.5, False)


def test_measure_without_a_peer_judges_the_rate(clock):
    (fast,) = bench.measure(Task("t", "images", 10, clock("ours", *[1] * 6), 10, GOOD))
    (slow,) = bench.measure(Task("t", "images", 10, clock("ours", *[2] * 6), 10, GOOD))
    assert fast["met"] and not slow["met"] and np.isnan(fast["ratio"])


def test_a_missed_target_says_why_and_a_gate_is_its_own_matter(clock):
    def line(target, value):
        peers = {"peer": clock("peer", *[2] * 6)}
        gate = Gate("error", value, 1.0)
        return next(
            bench.measure(
                Task(
                    "t",
                    "i",
                    1,
                    clock("o", *[1] * 6),
                    target,
                    gate,
                    peers,
                    note="big",
                    why=lambda: "slow",
                )
            )
        )

    assert line(2, 0.0)["note"] == "big" and line(3, 0.0)["note"] == "big; slow"
    assert line(2, 2.0)["met"] and not line(2, 2.0)["ok"] and not line(2, np.nan)["ok"]


def test_only_measures_one_row_and_keeps_the_others(rows, tmp_path):
    assert bench.run("cpu", folder=tmp_path) == {}
    before = read_result(tmp_path / "cpu.json")["numbers"]
    assert [line["task"] for line in before] == ["a", "b", "c"] and [
        line["met"] for line in before
    ] == [True, True, False]
    kept = [{**line, "commit": "earlier", "written": "earlier"} for line in before]
    write_result(tmp_path / "cpu.json", kept, files=["cpu.csv"])
    rows.value = 0.5
    bench.run("cpu", "A", tmp_path)
    after = read_result(tmp_path / "cpu.json")["numbers"]
    assert after[1:] == kept[1:]
    assert after[0]["value"] == 0.5 and after[0]["written"] != "earlier"
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert (
        list(table) == bench.COLUMNS
        and list(table["task"]) == ["a", "b", "c"]
        and list(table["threads"]) == [1, 1, 1]
    )


def test_a_row_that_cannot_be_measured_says_so_and_others_go_on(
    rows, tmp_path, monkeypatch, capsys
):
    rows.missing = True
    failed = bench.run("cpu", folder=tmp_path)
    assert failed == {"B": "peer: not installed; `pip install peer`"}
    table = pd.read_csv(tmp_path / "cpu.csv")
    assert list(table["task"]) == [
        "a",
        "b",
        "B: what may be missing",
    ]  # what B measured before is not lost
    assert table["note"].iloc[
        2
    ] == "not measured: peer: not installed; `pip install peer`" and pd.isna(table["ours"].iloc[2])

    rows.missing = "at once"
    assert bench.run("cpu", only="B", folder=tmp_path) == failed
    assert "B: what was measured of it before stays" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "cpu.csv"), table)
    (tmp_path / "cpu.csv").unlink()
    with pytest.raises(
        InputError, match="run it again; or delete cpu.json: all rows are then measured anew"
    ):
        bench.run("cpu", folder=tmp_path)

    monkeypatch.setattr(bench, "run", lambda device, only: failed)
    monkeypatch.setattr(sys, "argv", ["rr", "bench", "cpu"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: B: peer: not installed; `pip install peer`\n"


def test_need_names_the_command(monkeypatch):
    bench.need("skimage")
    monkeypatch.setitem(bench.PEERS, "no_such_peer", "no-such-peer")
    with pytest.raises(
        NotMeasured, match=r"^no-such-peer: not installed; `pip install no-such-peer`"
    ):
        bench.need("skimage", "no_such_peer")


@pytest.mark.parametrize("arguments, said", [(["tpu"], "device 'tpu': unknown; choose one of cpu, gpu"),
                                             (["cpu", "T99"], "row 'T99': unknown; choose one of T1, ")])  # fmt: skip
def test_wrong_arguments_measure_nothing(arguments, said, tmp_path):
    with pytest.raises(InputError, match=said):
        bench.run(*arguments, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="torch sees no GPU here; use rr bench cpu"):
        bench.run("gpu", folder=tmp_path)


def test_one_thread_on_the_cpu_and_as_many_as_before_afterwards(rows, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "measure", lambda task: seen.append(torch.get_num_threads()) or [])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench.run("cpu", "A", tmp_path)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------- the rows, at their smallest


def tasks(row, **sizes):
    """The row's Tasks, each with ours and every peer called once while its stage stands."""
    found = []
    for task in row(**sizes):
        task.ours()
        for call in task.peers.values():
            call()
        assert task.name and task.amount > 0 and task.target > 0
        found.append(task)
    return found


def needs(module):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


@needs("papermill")
@pytest.mark.skipif(sys.platform != "linux", reason="forks need Linux")
def test_t1_runs_the_same_notebook_twice(monkeypatch):
    parameters, _ = bench_cpu.NOTEBOOK.split("# %%\n")
    monkeypatch.setattr(
        bench_cpu, "NOTEBOOK", f"{parameters}# %%\nprint(number)\n"
    )  # without torch, which costs seconds
    stage = bench_cpu.notebook()
    assert next(stage).gate.ok
    stage.close()


@needs("papermill")
@pytest.mark.parametrize(
    "theirs, error",
    [("1", ""), ("2", ""), ("1", "runs without the server of forks (it has ended)")],
)
def test_t1_compares_what_the_notebooks_print(theirs, error, monkeypatch):
    def run(words, cwd, **options):
        name, text = ("ours", "1") if "rr" in words else ("theirs", theirs)
        cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("stream", text=text)])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), Path(cwd) / f"{name}.ipynb")
        return SimpleNamespace(stderr=error)

    monkeypatch.setattr(bench_cpu.sys, "platform", "linux")
    monkeypatch.setattr(bench_cpu.forked, "server", lambda threads: nullcontext({}))
    monkeypatch.setattr(bench_cpu.subprocess, "run", run)
    if error:  # then it would be ours without what is ours
        with pytest.raises(NotMeasured, match="takes no job here"):
            next(bench_cpu.notebook())
    else:
        assert next(bench_cpu.notebook()).gate.ok == (theirs == "1")


def test_t2_packed_batches_are_those_of_the_jpegs(monkeypatch):
    sizes = {"size": 64, "n": 8, "batch": 4, "passes": 1}
    task, _, arrays = tasks(bench_cpu.packed, **sizes)
    assert task.gate.ok and arrays.gate.ok and task.amount == task.peer_amount == 8
    honest = bench_cpu.data.batches
    negative = lambda *arguments: (batch._replace(x=1 - batch.x) for batch in honest(*arguments))  # noqa: E731
    monkeypatch.setattr(bench_cpu.data, "batches", negative)
    assert not next(bench_cpu.packed(**sizes)).gate.ok


def test_t3_prepares_the_crop_that_pil_makes(monkeypatch):
    found = tasks(bench_cpu.photographs, frames=((400, 300),), size=64, n=1)
    assert len(found) == 4 and all(
        task.gate.ok for task in found
    )  # 400 px, and scikit-image's retina, told and searching
    honest = bench_cpu.sources.folder

    def shifted(path):
        def image(i, size):
            crop, row = source.image(i, size)
            return np.roll(crop, 9, axis=1), row

        source = honest(path)
        return SimpleNamespace(table=source.table, image=image)

    monkeypatch.setattr(bench_cpu.sources, "folder", shifted)
    assert not next(bench_cpu.photographs(frames=((400, 300),), size=64, n=1)).gate.ok


def test_t4_is_scikit_images_ssim(monkeypatch):
    (task,) = tasks(bench_cpu.ssim, size=32, n=2)
    assert task.gate.ok and 0 < task.gate.value
    honest = bench_cpu.metrics.ssim
    monkeypatch.setattr(bench_cpu.metrics, "ssim", lambda x, y: honest(x, y) + 1e-4)
    assert not next(bench_cpu.ssim(size=32, n=2)).gate.ok


@pytest.mark.skipif(weights.available("alexnet") is None, reason="no weights of AlexNet here")
def test_t5_is_the_packages_lpips(monkeypatch):
    (task,) = tasks(bench_cpu.lpips, size=64, n=2)
    assert task.gate.ok and task.amount == 2 * len(studies.STUDIES["extractors"])

    honest = metrics.Lpips.__call__
    monkeypatch.setattr(metrics.Lpips, "__call__", lambda self, x, y: 1.01 * honest(self, x, y))
    assert not next(bench_cpu.lpips(size=64, n=2)).gate.ok


def test_t5_takes_no_random_trunk_for_lpips(monkeypatch):
    monkeypatch.setattr(weights, "available", lambda name: None)
    with pytest.raises(NotMeasured, match="no ImageNet weights of AlexNet here"):
        next(bench_cpu.lpips())


@pytest.mark.parametrize("changed, same", [("", True), (" + 0.02", False)])
def test_t6_is_the_reference_formulation(changed, same, tmp_path, monkeypatch):
    stand_in = tmp_path / "reference.py"
    stand_in.write_text(
        f"from rr import degrade\ndef apply(x, params, fov): return degrade.apply(x, params, fov){changed}\n"
    )
    monkeypatch.setattr(bench_cpu, "REFERENCE", stand_in)
    large, small = tasks(bench_cpu.degradation, sizes=(64, 32), n=2)
    assert large.gate.ok == small.gate.ok == same and (large.target, small.target) == (10, 3)


def test_t6_says_where_the_reference_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_cpu, "REFERENCE", tmp_path / "cofe_reference.py")
    with pytest.raises(NotMeasured, match="^cofe_reference.py: is in the project's tests"):
        next(bench_cpu.degradation())


def test_t7_counts_the_work_of_both_sides(monkeypatch):
    monkeypatch.setattr(bench_cpu, "Readability", lambda: honest("resnet18"))
    monkeypatch.setattr(bench_cpu, "SHAPES", [(8, 8)])
    honest = sys.modules["rr.readability"].Readability
    (task,) = tasks(bench_cpu.classifier, sizes=(64,), batch=2)
    assert task.gate.ok
    assert task.peer_amount * 1e9 == pytest.approx(
        3 * 2 * 2 * 8 * 8 * 9 * 64
    )  # forward, by x and by w: 2 FLOP a MAC
    assert (
        3 * 0.9 < task.amount * 1e9 / (2 * 2 * 149e6) < 3
    )  # ResNet18 at 64 px, 149 MMAC; the image needs no gradient
    still = {"rmsprop": lambda parameters, lr: torch.optim.SGD(parameters, 1.0, maximize=True)}
    monkeypatch.setattr(bench_cpu.train, "OPTIMIZERS", still)
    assert not next(bench_cpu.classifier(sizes=(64,), batch=2)).gate.ok  # it goes uphill


@needs("denoising_diffusion_pytorch")
def test_t8_has_no_fewer_parameters_and_trains_both(monkeypatch):
    sizes = {"dims": (4,), "size": 16, "batch": 2, "steps": 2, "n": 8}
    (task,) = tasks(bench_cpu.denoiser, **sizes)
    ours, theirs = (float(part.split(" M ")[0].split()[-1]) for part in task.note.split("; "))
    assert ours >= theirs > 0 and np.isfinite(task.gate.value)
    scores = iter([10.0, 11.0])  # ours, theirs
    monkeypatch.setattr(bench_cpu, "_trained", lambda *arguments: next(scores))
    assert not next(bench_cpu.denoiser(**sizes)).gate.ok


def test_t8_training_learns():
    torch.manual_seed(0)
    eyes = 2 * torch.rand(64, 3, 1, 1).expand(-1, -1, 16, 16) - 1
    few, many = (
        bench_cpu._trained(bench_cpu.backbones.UNet(8), eyes, 4, steps) for steps in (1, 150)
    )
    assert many > few + 2


def test_t9_draws_the_same_eyes_again_and_restores_one(monkeypatch):
    stage = bench_cpu.absolute(size=64, n=2, side=500)
    drawn = next(stage)
    assert drawn.gate.ok and len(drawn.ours()) == 2
    restored = next(stage)
    assert (
        0.1 < restored.gate.value
        and restored.gate.ok
        and restored.note == "the photograph was restored"
    )
    assert "%" in restored.why()
    stage.close()
    count = iter(range(100))
    changing = SimpleNamespace(
        image=lambda i, size: (np.full((2, 2, 3), next(count), np.uint8), {})
    )
    monkeypatch.setattr(bench_cpu.sources, "embedded", lambda n: changing)
    assert not next(bench_cpu.absolute(size=64, n=2)).gate.ok


def test_hotspots_name_what_takes_the_time():
    a = torch.rand(300, 300)
    assert bench.hotspots(lambda: a @ a).startswith("aten::mm ")
    assert bench_cpu.functions(lambda: json.loads("[" + "1," * 200_000 + "1]")).count("%") >= 1

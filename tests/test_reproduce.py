"""`rr reproduce` on preset mini: every notebook, what runs again, and what survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import nbformat
import pytest

from rr import cli, paper, studies
from rr import files as io
from rr.files import ROOT
from rr.provenance import read_result
from rr.workflow import jobs as workflow
from rr.workflow import notebook, reproduce

NOTEBOOKS = sorted(notebook.NOTEBOOKS.glob("[0-9]*.py"))
pytestmark = pytest.mark.xdist_group("workflow")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, because tests edit it."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("rr", "notebooks", "workflow"):
        shutil.copytree(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def made(rr, project, tmp_path_factory):
    """The results of preset mini, made by two calls: (out, output of the first, of the second).

    Every notebook runs, but not every configuration is trained: between the calls, the runs that
    are not of the study of backbones become copies of one that has the same backbone. Snakemake
    takes a result that it did not make itself as it is.
    """
    out = tmp_path_factory.mktemp("with space")
    command = ("reproduce", "--preset", "mini", "--out", out, "--jobs", 2)
    first = rr(*command, "--study", "backbones", cwd=project, PYTHONPATH=str(project))
    assert first.returncode == 0, first.stdout + first.stderr
    results_dir, copy = io.results("mini", out), partial(shutil.copytree, copy_function=os.link)
    original = io.extractor_folder(results_dir, "resnet34", 0)
    for extractor in paper.EXTRACTORS.keys() - {"resnet34"}:
        copy(original, io.extractor_folder(results_dir, extractor, 0))
    for row in {*studies.distinct(), *studies.EVALUATED.values()}:
        target = studies.folder(results_dir, row, 0)
        if row.method == "diffusion" and not target.exists():
            original = studies.RETINAREGEN._replace(backbone=row.backbone)
            copy(studies.folder(results_dir, original, 0), target)
    second = rr(*command, cwd=project, PYTHONPATH=str(project))
    assert second.returncode == 0, second.stdout + second.stderr
    return out, first.stdout, second.stdout


@pytest.fixture
def call(made, project, capfd, monkeypatch):
    """call(*options): exit code, stdout lines, stderr lines of `rr reproduce` in this process."""
    monkeypatch.setattr(io, "ROOT", project)
    monkeypatch.setattr(reproduce, "WORKFLOW", project / "workflow")
    monkeypatch.setenv("PYTHONPATH", str(project))

    def run(*options, out=made[0], preset="mini"):
        with pytest.raises(SystemExit) as end:
            cli.main(["reproduce", "--preset", preset, "--out", str(out), *map(str, options)])
        printed = capfd.readouterr()
        return end.value.code or 0, printed.out.splitlines(), printed.err.splitlines()

    return run


def would_run(lines):
    return {line.split(":")[0] for line in lines[:-1]}


def after(*jobs):
    """These jobs, those that share their kernels, and all that read their results."""
    table, collected = workflow.jobs(), set(jobs)
    for names in workflow.groups(table, reproduce.TOGETHER):  # in an order in which they can run
        needs = {need for name in names for need in table[name].needs}
        if collected & {*names, *needs}:
            collected |= set(names)
    return collected


# --------------------------------------------------------------------------------------- everything


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_on_preset_mini(made, path):
    results_dir = io.results("mini", made[0])
    jobs = [name for name, job in workflow.jobs().items() if job.notebook == path.stem]
    executed = [results_dir / "executed" / f"{job}.ipynb" for job in jobs]
    ran = [job for job, file in zip(jobs, executed) if file.is_file()]
    assert ran
    for job in ran:
        nb = json.loads((results_dir / "executed" / f"{job}.ipynb").read_text())
        assert nb["metadata"]["papermill"]["exception"] is None
        provenance = read_result(workflow.result(results_dir, job))["provenance"]
        assert provenance["seconds"] > 0 and provenance["device"] and provenance["code"]
    assert list((results_dir / "figures").glob(f"{path.stem}*.png"))  # a chapter shows a figure


def test_it_says_what_ran_and_where_everything_is(made):
    out, first, second = made
    lines = second.splitlines()
    assert sum(": done, " in line for line in lines) == sum(": starts" in line for line in lines)
    assert "05_vae: starts" in lines and "05_vae: starts" not in first.splitlines()
    assert lines[-4].startswith("preset mini, seeds 1, study all: all 51 notebooks have a result")
    folders = [line.split()[0] for line in lines[-3:]]
    assert folders == ["figures", "tables", "notebooks"]
    assert all(
        line.rstrip("/").endswith(name) for line, name in zip(lines[-2:], ("tables", "executed"))
    )


def test_a_study_is_made_with_what_it_needs_alone(made):
    started = {line.split(":")[0] for line in made[1].splitlines() if line.endswith(": starts")}
    assert started == set(workflow.jobs(study="backbones"))


# ---------------------------------------------------------------------------------- what runs again


def test_a_second_call_has_nothing_to_do(call):
    assert call("--dry-run") == (0, ["0 notebooks to run"], [])
    code, lines, errors = call()
    assert (code, errors) == (0, []) and not any("starts" in line for line in lines)


def test_a_missing_file_is_made_again_and_what_reads_it(call, made):
    results_dir = io.results("mini", made[0])
    for job, path in (
        ("04_diffusion", results_dir / "04_diffusion.json"),
        ("03_features_resnet34_0", results_dir / "extractors/resnet34_0/condition.safetensors"),
        (
            f"06_restoration_{studies.RETINAREGEN}_0",
            studies.folder(results_dir, studies.RETINAREGEN, 0) / "eyes.png",
        ),
    ):
        path.rename(path.with_name("away"))
        code, lines, _ = call("--dry-run")
        path.with_name("away").rename(path)
        assert code == 0 and would_run(lines) == after(job)
        assert any(line.startswith(f"{job}: Missing output files") for line in lines)


def test_an_edited_notebook_runs_again_and_a_touched_one_does_not(call, project):
    path = project / "notebooks" / "04_diffusion.py"
    text = path.read_text()
    path.touch()
    assert call("--dry-run")[1] == ["0 notebooks to run"]
    path.write_text(text + "\n# %%\n1\n")
    assert would_run(call("--dry-run")[1]) == {"04_diffusion"}
    path.write_text(text)


def test_a_changed_value_of_the_preset_runs_everything_again(call, monkeypatch):
    from rr import presets

    row = presets.PRESETS["mini"]
    monkeypatch.setitem(presets.PRESETS, "mini", presets.replace(row, T=21))
    code, lines, _ = call("--dry-run")
    assert code == 0 and len(would_run(lines)) > 13 and "Params have changed" in lines[0]


def test_an_edit_of_the_package_runs_nothing_again(call, project):
    """The configuration decides whether a result is current, and not the code."""
    for name in ("models/vae.py", "train/loop.py", "evaluate/figures.py", "errors.py"):
        with open(project / "rr" / name, "a") as file:
            file.write("\nEDITED = True\n")
    assert call("--dry-run")[1] == ["0 notebooks to run"]


def test_more_seeds_run_what_is_new(call):
    code, lines, _ = call("--study", "fusion", "--seeds", 2, "--dry-run")
    new = {f"06_restoration_{row}_1" for row in studies.STUDIES["fusion"]}
    assert would_run(lines) == {"03_features_resnet34_1", *new, "09_fusion"}


def test_where_every_run_has_its_own_kernel_the_same_runs_are_planned(call, tmp_path, monkeypatch):
    """On GPUs and clusters. Fails if a run is in no rule, or in two."""
    planned = call("--seeds", 2, "--dry-run", out=tmp_path)[1]
    monkeypatch.setattr(reproduce, "TOGETHER", 1)
    code, lines, errors = call("--seeds", 2, "--dry-run", out=tmp_path)
    assert (code, errors) == (0, []) and would_run(lines) == would_run(planned)
    assert lines[-1] == planned[-1] == f"{len(workflow.jobs(2))} notebooks to run"


def test_fresh_deletes_the_results_and_only_those(call, tmp_path, monkeypatch):
    (tmp_path / "mini" / ".snakemake").mkdir(parents=True)
    (tmp_path / "mini" / "figures").mkdir()
    monkeypatch.setattr(reproduce, "_run", lambda *_: reproduce.Progress(None, False))
    (tmp_path / "other").mkdir()
    code, lines, _ = call("--fresh", out=tmp_path)
    assert code == 0 and lines[0].startswith(
        f"deleting {tmp_path}/mini/ and {tmp_path}/mini/figures/"
    )
    assert not (tmp_path / "mini").exists() and (tmp_path / "other").exists()
    (tmp_path / "mini" / "photographs").mkdir(parents=True)
    code, _, errors = call("--fresh", out=tmp_path)
    assert code == 2 and "not made by `rr reproduce`" in errors[0]
    assert (tmp_path / "mini" / "photographs").exists()


# ------------------------------------------------------------------------------- failures and kills


def copy_without(made, folder, configuration):
    """A copy of the results in which one run of study fusion is missing, with its training."""
    original, copy = io.results("mini", made[0]), folder / "mini"
    linked = {"copy_function": os.link, "ignore": shutil.ignore_patterns(".snakemake")}
    shutil.copytree(original, copy, **linked)
    shutil.copytree(original / ".snakemake", copy / ".snakemake")  # written to in place
    shutil.rmtree(studies.folder(copy, configuration, 0))
    return f"06_restoration_{configuration}_0"


def test_a_failing_job_is_named_with_its_error(call, made, tmp_path):
    configuration = studies.STUDIES["fusion"][0]
    job = copy_without(made, tmp_path, configuration)
    broken = studies.folder(tmp_path / "mini", configuration, 0)
    broken.mkdir()
    (broken / "denoiser").write_text("a file where a folder is needed")
    code, _, errors = call("--study", "fusion", out=tmp_path)
    assert code == 1 and len(errors) == 2
    assert errors[0].startswith(f"error: {job}: ") and "denoiser" in errors[0]
    assert (
        errors[1]
        == "error: 3 of 8 notebooks must run again; after a repair the same command continues"
    )
    nb = nbformat.read(tmp_path / "mini" / "executed" / f"{job}.ipynb", 4)
    assert any(o.output_type == "error" for c in nb.cells for o in c.get("outputs", []))


def numbers(results_dir, job):
    collected = read_result(workflow.result(results_dir, job))["numbers"]
    return {
        name: value for name, value in collected.items() if name not in ("cost", "training_seconds")
    }


def children(pid):
    """{command: pid} of a process and all below it."""
    collected = {}
    for child in subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True
    ).stdout.split():
        with open(f"/proc/{child}/cmdline") as command:
            collected[command.read().replace("\0", " ")] = int(child)
        collected |= children(child)
    return collected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "victim",
    [
        "ipykernel",
        "rr reproduce",
        pytest.param("rr run", marks=pytest.mark.slow),
    ],
)
def test_the_same_command_continues_after_kill_9(made, project, tmp_path, victim):
    """The numbers are those of a run that nobody killed, and no partial file is left."""
    job = copy_without(made, tmp_path, studies.RETINAREGEN)
    command = [sys.executable, "-m", "rr", "reproduce", "--preset", "mini", "--study", "fusion"]
    command += ["--out", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    options = dict(cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process = subprocess.Popen(command, **options, text=True)
    training = studies.folder(tmp_path / "mini", studies.RETINAREGEN, 0) / "denoiser"
    deadline = time.monotonic() + 300
    while not training.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    below = children(process.pid)
    killed = [pid for command, pid in below.items() if victim in command] or [process.pid]
    os.kill(killed[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    if victim != "rr reproduce":
        assert f"error: {job}: " in said and "the same command continues" in said
    done = subprocess.run(command, **options, text=True)
    assert done.returncode == 0, done.stdout
    results_dir = tmp_path / "mini"
    assert numbers(results_dir, job) == numbers(io.results("mini", made[0]), job)
    assert workflow.result(results_dir, "09_fusion").is_file()
    assert not list(results_dir.rglob(f".*{io.PART}*"))


# ------------------------------------------------------------------------------------ one at a time


def test_two_calls_for_one_folder_are_one_line(call, tmp_path):
    with io.exclusive_lock(tmp_path / ".mini.lock", "a test"):
        code, lines, errors = call(out=tmp_path)
    assert (code, lines) == (2, [])
    (line,) = errors
    assert "another `rr reproduce` is running; wait for its end, or stop it" in line


@pytest.mark.parametrize(
    ("options", "threads", "cores"),
    [
        ({}, 1, 2),
        ({"jobs": 1}, 2, 2),
        ({"jobs": 2}, 1, 2),
        ({"jobs": 5}, 1, 5),
        ({"cores": 8}, 4, 8),
    ],
)
def test_jobs_share_the_cores(monkeypatch, tmp_path, options, threads, cores):
    monkeypatch.setattr(reproduce, "CORES", 2)
    monkeypatch.setattr(reproduce, "gpus", list)
    calls = []
    nothing = reproduce.Progress(None, False)
    monkeypatch.setattr(reproduce, "_run", lambda arguments, _: calls.append(arguments) or nothing)
    reproduce.snakemake(tmp_path, {"preset": "mini"}, **options)
    assert calls[0][calls[0].index("--cores") + 1] == str(cores)
    assert {f"threads={threads}", f"cores={cores}"} <= {*calls[0]}  # 01_data takes all cores

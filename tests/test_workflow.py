"""The table of jobs, what is tracked of each, marks and failures, and leases of GPUs."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rr import files as io
from rr import studies
from rr.errors import InputError
from rr.files import ROOT
from rr.presets import preset
from rr.workflow import jobs as workflow
from rr.workflow import notebook


def of(table, stem):
    return [name for name, job in table.items() if job.notebook == stem]


def test_every_configuration_runs_once():
    table = workflow.jobs()
    assert len(of(table, "06_restoration")) == 15 + 16 and len(of(table, "03_features")) == 8
    headline = "06_restoration_paired_vae_resnet34_bilinear-static_0"
    for stem, rows in {"07_backbones": 5, "08_extractors": 8, "09_fusion": 4}.items():
        assert (
            len(table[stem].needs) == len(set(table[stem].needs)) == rows
            and headline in table[stem].needs
        )
    assert table["00_start_here"].needs == []  # its weights come with the project
    assert (
        headline in table["11_summary"].needs and table["11_summary"].needs[0] == "02_readability"
    )
    assert (
        len(table["11_summary"].needs) == 2 + 15 and "10_what_matters" in table["11_summary"].needs
    )
    assert {path.stem for path in notebook.NOTEBOOKS.glob("[0-9]*.py")} == {
        job.notebook for job in table.values()
    }


def test_seeds_share_data_and_classifier():
    table = workflow.jobs(seeds=3)
    stems = ("01_data", "02_readability", "03_features", "06_restoration", "07_backbones")
    assert [len(of(table, stem)) for stem in stems] == [1, 1, 24, 3 * 31, 1] and len(
        table["07_backbones"].needs
    ) == 15
    two = table["06_restoration_paired_unet++_resnet34_bilinear-static_2"]
    assert two.values["seed"] == 2 and two.needs == [
        "01_data",
        "02_readability",
        "03_features_resnet34_2",
    ]


@pytest.mark.parametrize("study", ["all", *workflow.NOTEBOOKS])
def test_jobs_come_after_what_they_need_with_values_that_their_notebooks_take(study):
    table, before = workflow.jobs(2, study, "photos", "labels.csv"), set()
    for name, job in table.items():
        assert set(job.needs) <= before
        before.add(name)
        values = notebook.check(notebook.find(job.notebook), job.values)
        assert workflow.name(job.notebook, {"seed": 0, **values}) == name
    if study != "all":
        needed = {name for job in table.values() for name in job.needs}
        assert set(table) - needed == {workflow.NOTEBOOKS[study]}, (
            "a study makes nothing that it does not need"
        )
    assert table["01_data"].values == {"data": "photos", "labels": "labels.csv"}
    with pytest.raises(InputError, match="study 'tables': unknown; choose one of all, backbones"):
        workflow.jobs(study="tables")


USED = {
    "01_data": {"n", "size"},
    "02_readability": {"weights", "batch", "ema", "classifier_epochs", "classifier_lr"},
    "03_features": {"weights", "batch", "ema", "extractor_epochs", "attention", "heads", "lr"},
    "08_extractors": set(),
}


@pytest.mark.parametrize("stem", USED)
def test_tracked_are_the_values_that_a_notebook_uses(stem):
    mini = preset("mini")
    found = workflow.tracked(stem, mini)
    assert found.pop("code") == workflow.tracked(stem, preset("smoke"))["code"]
    assert set(found) - {"size"} == USED[stem] - {"size"} and all(
        found[name] == getattr(mini, name) for name in found
    )


def test_tracked_code_is_what_a_notebook_computes_with(tmp_path):
    """In a copy of the project: the code of one module concerns those that import it, comments and docstrings nobody."""
    for part in ("rr", "notebooks"):
        shutil.copytree(ROOT / part, tmp_path / part)
    script = (
        "from rr import workflow\nfrom rr.presets import preset\n"
        "for stem in ('02_readability', '05_vae', '06_restoration', '11_summary'):\n"
        "    print(workflow.tracked(stem, preset('mini'))['code'])"
    )

    def codes():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.split()

    def changed(file, old, new):
        before, text = codes(), (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new, 1))
        return [a != b for a, b in zip(before, codes())]

    assert changed("rr/vae.py", '"""', '"""Another docstring. ') == [False] * 4
    assert changed("rr/vae.py", "\nclass VAE", "\n# a comment\n\n\nclass VAE") == [False] * 4
    assert changed("rr/vae.py", "\nclass VAE", "\nEXTRA = 1\nclass VAE") == [
        False,
        True,
        True,
        False,
    ]
    assert (
        changed("notebooks/05_vae.py", "# %% [markdown]\n", "# %% [markdown]\n# More prose.\n")
        == [False] * 4
    )
    assert changed("notebooks/05_vae.py", "started = time.time()", "started = time.time() + 0") == [
        False,
        True,
        False,
        False,
    ]
    assert changed("rr/presets.py", "lr=1e-3", "lr=2e-3") == [False] * 4, (
        "values are tracked by themselves"
    )
    assert changed("rr/paper.py", "27.4521", "27.4522") == [False, False, False, True]


def test_results_lie_where_notebooks_write_them(tmp_path):
    assert workflow.result(tmp_path, "05_vae") == tmp_path / "05_vae.json"
    folder = studies.folder(tmp_path, studies.RETINAREGEN, 1)
    assert (
        workflow.result(tmp_path, f"06_restoration_{studies.RETINAREGEN}_1")
        == folder / "result.json"
    )
    assert (
        workflow.result(tmp_path, "03_features_vgg16_0")
        == io.extractor_folder(tmp_path, "vgg16", 0) / "result.json"
    )


# ------------------------------------------------------------------------------------------------- marks and failures


def run(home, name="04_diffusion", **values):
    """The context in which `rr run` runs a job."""
    stem = "_".join(name.split("_")[:2])
    return workflow.reported(
        home / "executed" / f"{name}.ipynb",
        workflow.mark(home, name),
        stem,
        {"preset": "mini", **values},
    )


def write(path, text):
    io.write_json(path, {"numbers": text, "provenance": {}})


def test_a_job_ends_with_a_mark_or_a_failure(tmp_path):
    mark, failure, result = (
        each(tmp_path, "04_diffusion")
        for each in (workflow.mark, workflow.failure, workflow.result)
    )
    write(result, "one")
    with run(tmp_path):
        assert not mark.exists()
    first = mark.read_text()
    mark.unlink()  # as Snakemake does before it runs a job again
    for error, line in (
        (
            notebook.NotebookError("04_diffusion: ValueError: no;\n see it"),
            "ValueError: no; see it",
        ),
        (KeyError("x"), "KeyError: 'x'"),
    ):
        with pytest.raises(type(error)), run(tmp_path):
            raise error
        assert not mark.exists() and failure.read_text() == f"04_diffusion: {line}\n"
    write(result, "two")
    with run(tmp_path):
        assert not failure.exists()
    assert mark.read_text() != first, (
        "Snakemake compares contents: what was made again must look new"
    )
    result.unlink()
    with (
        pytest.raises(notebook.NotebookError, match="04_diffusion: ended without writing"),
        run(tmp_path),
    ):
        pass


def test_a_mark_vouches_for_one_result_made_in_one_way(tmp_path, monkeypatch):
    job = workflow.jobs()["04_diffusion"]

    def trusted(preset="mini", values=job.values):
        return workflow.trusted(tmp_path, "04_diffusion", job._replace(values=values), preset)

    result = workflow.result(tmp_path, "04_diffusion")
    assert not trusted()
    write(result, "one")
    with run(tmp_path, out="here"):
        pass
    assert trusted() and not trusted(preset="smoke") and not trusted(values={"seed": 1})
    row = preset("mini")
    monkeypatch.setattr(workflow, "preset", lambda name: dataclasses.replace(row, n=5))
    assert trusted(), "04 does not use n"
    monkeypatch.setattr(workflow, "preset", lambda name: dataclasses.replace(row, T=5))
    assert not trusted()
    monkeypatch.undo()
    write(result, "another, made by hand")
    assert not trusted()
    write(result, "one")
    assert trusted()
    result.write_text("half")
    assert not trusted()


def test_what_others_read_must_be_there(tmp_path):
    jobs = workflow.jobs()
    name = next(name for name in jobs if name.startswith("06_restoration_"))
    result = workflow.result(tmp_path, name)
    io.write_text(result.parent / "eyes.png", "eyes")
    files = {"eyes.png": io.sha256(result.parent / "eyes.png")}
    for each in workflow.WRITTEN["06_restoration"]:
        io.write_text(result.parent / each, "{}")
    io.write_json(result, {"numbers": 1, "provenance": {"files": files}})
    with run(tmp_path, name, **jobs[name].values):
        pass
    assert workflow.trusted(tmp_path, name, jobs[name], "mini")
    for path, text in (
        (result.parent / "eyes.png", "eyes"),
        (result.parent / workflow.WRITTEN["06_restoration"][0], "{}"),
    ):
        path.unlink()
        assert not workflow.trusted(tmp_path, name, jobs[name], "mini")
        io.write_text(path, text)
    io.write_text(result.parent / "eyes.png", "others")
    assert not workflow.trusted(tmp_path, name, jobs[name], "mini")


def test_a_job_ends_with_its_owner(tmp_path):
    owner = subprocess.Popen(["sleep", "600"])
    script = "import time\nfrom rr import workflow\nwith workflow.owned():\n    print(1, flush=True)\n    time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), workflow.OWNER: str(owner.pid)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE
    ) as job:
        job.stdout.readline()
        assert job.poll() is None
        owner.kill()
        owner.wait()
        assert job.wait(20) == -signal.SIGTERM


# ------------------------------------------------------------------------------------------------------------ leases

SCRIPT = """import os, time
from rr.workflow import jobs as workflow
with workflow.lease():
    print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)
    time.sleep({})"""


def holder(tmp_path, seconds=600, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **variables}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_jobs_share_gpus_evenly_and_give_them_back_when_killed(tmp_path):
    jobs = []
    try:
        for expected in ("0", "1", "0", "1"):
            jobs.append(holder(tmp_path, **{workflow.GPUS: "0,1"}))
            assert jobs[-1].stdout.readline().strip() == expected
        jobs[1].kill()
        jobs[1].wait()
        jobs.append(holder(tmp_path, **{workflow.GPUS: "0,1"}))
        assert jobs[-1].stdout.readline().strip() == "1", (
            "the place of the killed one is free again"
        )
    finally:
        for job in jobs:
            job.kill()
            job.wait()
            job.stdout.close()


def test_without_gpus_to_share_nothing_is_set(tmp_path):
    with holder(tmp_path, 0) as job:
        assert job.stdout.read().strip() == "None"


def test_gpus_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5ab")
    assert workflow.gpus() == ["2", "GPU-5ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workflow.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho 'GPU 1: H100 (UUID: GPU-2)'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workflow.gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", "")
    started = time.monotonic()
    assert workflow.gpus() == [] and time.monotonic() - started < 1


def test_an_evaluation_of_photographs_is_not_the_workflows_own():
    assert workflow.name("12_evaluation", {"photos": ""}) == "12_evaluation"
    assert workflow.name("12_evaluation", {"photos": "mine"}) == "12_evaluation_photographs"

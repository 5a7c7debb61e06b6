"""The table of jobs, where their results are, and the lease of a GPU."""

import os
import subprocess
import sys
from itertools import product

import pytest

from rr import files as io
from rr import studies
from rr.errors import InputError
from rr.files import ROOT
from rr.workflow import jobs as workflow
from rr.workflow import notebook


def of(table, stem):
    return [name for name, job in table.items() if job.notebook == stem]


def test_every_configuration_runs_once():
    table = workflow.jobs()
    assert len(of(table, "06_restoration")) == 15 + 17 and len(of(table, "03_features")) == 8
    headline = f"06_restoration_{studies.RETINAREGEN}_0"
    assert [name for name, job in table.items() if job.values.get("draw")] == [headline]
    for stem, rows in {"07_backbones": 5, "08_extractors": 8, "09_fusion": 4}.items():
        needs = table[stem].needs
        assert len(needs) == len(set(needs)) == rows and headline in needs
    assert table["00_start_here"].needs == []  # its weights come with the project
    assert {headline, "02_readability", "10_what_matters"} < {*table["11_summary"].needs}
    assert len(table["11_summary"].needs) == 2 + 15
    stems = {path.stem for path in notebook.NOTEBOOKS.glob("[0-9]*.py")}
    assert stems == {job.notebook for job in table.values()}


def test_seeds_share_data_and_classifier():
    table = workflow.jobs(seeds=3)
    stems = ("01_data", "02_readability", "03_features", "06_restoration", "07_backbones")
    assert [len(of(table, stem)) for stem in stems] == [1, 1, 24, 3 * 32, 1]
    assert len(table["07_backbones"].needs) == 15
    job = table["06_restoration_paired_unet++_resnet34_bilinear-static_2"]
    assert job.values["seed"] == 2
    assert job.needs == ["01_data", "02_readability", "03_features_resnet34_2"]


@pytest.mark.parametrize("study", ["all", *workflow.NOTEBOOKS])
def test_jobs_come_after_what_they_need_with_values_that_their_notebooks_take(study):
    table, before = workflow.jobs(2, study, "photos", "labels.csv"), set()
    checked = {}
    for name, job in table.items():
        assert set(job.needs) <= before
        before.add(name)
        key = job.notebook, tuple(job.values)
        if key not in checked:  # the names of the values are what matters
            checked[key] = notebook.check(notebook.find(job.notebook), job.values)
        assert workflow.name(job.notebook, {"seed": 0, **checked[key], **job.values}) == name
    if study != "all":  # a study makes nothing that it does not need
        needed = {name for job in table.values() for name in job.needs}
        assert set(table) - needed == {workflow.NOTEBOOKS[study]}
    assert table["01_data"].values == {"data": "photos", "labels": "labels.csv"}


def test_runs_that_share_a_kernel_are_the_same_in_every_study():
    """Fails if a study or a second seed changes a list, because Snakemake would run it again."""
    table = workflow.jobs(2)
    lists = workflow.groups(table, 8)
    assert sorted(name for names in lists for name in names) == sorted(table)
    for names in lists:
        assert len(names) <= 8
        assert len({(table[name].notebook, table[name].values.get("seed")) for name in names}) == 1
    for study, seeds in product(workflow.NOTEBOOKS, (1, 2)):
        for names in workflow.groups(workflow.jobs(seeds, study), 8):
            assert names in lists
    stems = [table[names[0]].notebook for names in lists]
    assert (stems.count("03_features"), stems.count("06_restoration")) == (2 * 2, 2 * 7)
    assert workflow.groups(table, 1) == [[name] for name in table]


def test_an_unknown_study_is_one_line():
    with pytest.raises(InputError, match="study 'tables': unknown; choose one of all, backbones"):
        workflow.jobs(study="tables")


def test_results_are_where_notebooks_write_them(tmp_path):
    assert workflow.result(tmp_path, "05_vae") == tmp_path / "05_vae.json"
    assert workflow.result(tmp_path, "10_what_matters") == tmp_path / "10_what_matters.json"
    folder = studies.folder(tmp_path, studies.RETINAREGEN, 1)
    job = f"06_restoration_{studies.RETINAREGEN}_1"
    assert workflow.result(tmp_path, job) == folder / "result.json"
    folder = io.extractor_folder(tmp_path, "vgg16", 0)
    assert workflow.result(tmp_path, "03_features_vgg16_0") == folder / "result.json"


def test_an_evaluation_of_photographs_has_a_name_of_its_own():
    assert workflow.name("12_evaluation", {"photos": ""}) == "12_evaluation"
    assert workflow.name("12_evaluation", {"photos": "mine"}) == "12_evaluation_photographs"


# ------------------------------------------------------------------------------------------- leases

SCRIPT = """import os, time
from rr.workflow.jobs import lease
with lease():
    print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)
    time.sleep({})"""


def holder(tmp_path, seconds=600, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **variables}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", SCRIPT.format(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_each_job_has_a_gpu_of_its_own_and_a_killed_one_gives_it_back(tmp_path):
    jobs = []
    try:
        for expected in ("0", "1"):
            jobs.append(holder(tmp_path, **{workflow.GPUS: "0,1"}))
            assert jobs[-1].stdout.readline().strip() == expected
        jobs.append(holder(tmp_path, **{workflow.GPUS: "0,1"}))  # waits
        jobs[1].kill()
        assert jobs[2].stdout.readline().strip() == "1"
    finally:
        for job in jobs:
            job.kill()
            job.wait()
            job.stdout.close()


@pytest.mark.parametrize("variables", [{}, {workflow.GPUS: ""}, {workflow.GPUS: "0"}])
def test_without_gpus_to_share_nothing_is_set(tmp_path, variables):
    with holder(tmp_path, 0, **variables) as job:
        assert job.stdout.read().strip() == "None"


def test_gpus_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5ab")
    assert workflow.gpus() == ["2", "GPU-5ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workflow.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: x)'\necho 'GPU 1: H100 (UUID: y)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workflow.gpus() == ["0", "1"]
    monkeypatch.setenv("PATH", "")
    assert workflow.gpus() == []

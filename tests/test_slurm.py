"""The cluster path on a real SLURM: sbatch, a cancelled job, a job that runs out of time, srun.

Skipped where no SLURM answers; `eval "$(tests/slurm/start FOLDER)"` makes one of this machine.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from rr.files import ROOT, read_json
from rr.provenance import read_result
from rr.workflow import jobs as workflow


def answers():
    """Whether this machine can submit jobs: there is an sbatch, and its controller answers."""
    if not shutil.which("sbatch"):
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return ping.returncode == 0 and " is UP" in ping.stdout


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not answers(), reason="no SLURM: no sbatch, or no controller answers"),
]


def project(folder):
    """A copy of the project. Its last notebook takes five minutes, more than its job is given."""
    for part in ("rr", "notebooks", "workflow"):
        shutil.copytree(ROOT / part, folder / part)
    slow = folder / "notebooks" / "09_fusion.py"
    slow.write_text(
        slow.read_text().replace("started = time.time()", "started = time.time()\ntime.sleep(300)")
    )
    profile = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    values = yaml.safe_load(profile.read_text())  # made quick, and small enough for one node
    values["default-resources"] |= {"cpus_per_task": 1, "runtime": 10, "mem_mb": 3000}
    values |= {
        "set-resources": {"09_fusion": {"runtime": 1}},
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 5,
    }
    profile.write_text(yaml.safe_dump(values))


def jobs(folder):
    """{job number: (rule, state)} of all jobs that were submitted from `folder`."""
    lines = subprocess.check_output(
        ["squeue", "--noheader", "--states=all", "--format=%i|%k|%T|%Z"], text=True
    )
    rows = [line.split("|") for line in lines.splitlines()]
    return {
        number: (re.search(r"\d\d_[a-z_]+?(?=_wildcards|$)", rule)[0], state)
        for number, rule, state, submitted_from in rows
        if submitted_from == str(folder)
    }


def cancel(folder, rule, process, seconds=200):
    """scancel the rule's job once it runs; returns its number."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for number, what in jobs(folder).items():
            if what == (rule, "RUNNING"):
                subprocess.run(["scancel", number], check=True)
                return number
        time.sleep(0.5)
    raise AssertionError(
        f"no job of rule {rule} ran within {seconds} s; SLURM's jobs: {jobs(folder)}"
    )


def test_the_workflow_goes_through_slurm(tmp_path):
    """One job is cancelled and tried again; one runs out of time and is named at the end."""
    copy, out = tmp_path / "project", tmp_path / "out"
    project(copy)
    command = [sys.executable, "-m", "rr", "reproduce", "--preset", "mini", "--study", "fusion"]
    command += ["--profile", "slurm", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        cancelled = cancel(out / "mini", "02_readability", process)
        code = process.wait(840)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    said = (tmp_path / "output").read_text()

    assert code == 1 and "error: 1 of 8 notebooks must run again" in said, said
    assert "error: 09_fusion: " in said and "SLURM status is: 'TIMEOUT'" in said
    states = jobs(out / "mini")
    assert states[cancelled] == ("02_readability", "CANCELLED")
    assert Counter(states.values()) == {
        ("01_data", "COMPLETED"): 1,
        ("02_readability", "CANCELLED"): 1,
        ("02_readability", "COMPLETED"): 1,
        ("03_features", "COMPLETED"): 1,
        ("06_restoration", "COMPLETED"): 4,
        ("09_fusion", "TIMEOUT"): 2,
    }
    results = {job: workflow.result(out / "mini", job) for job in workflow.jobs(study="fusion")}
    assert [job for job, result in results.items() if not result.is_file()] == ["09_fusion"]
    result = read_result(workflow.result(out / "mini", "02_readability"))
    assert result["provenance"]["threads"] == 1, "as many as SLURM reserved"


def test_srun_starts_the_processes_of_one_training(tmp_path, eyes80):
    """Two tasks of a job are the two processes of tests/ranks.py, which train one model."""
    out = tmp_path / "two"
    words = {"out": str(out), "data": str(eyes80.path), "component": "plain", "devices": 2}
    command = ["srun", "--ntasks-per-node", "2", "--time", "5", sys.executable]
    command += [str(ROOT / "tests" / "ranks.py"), json.dumps(words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = read_json(out / "config.json")["provenance"]
    assert record["processes"] == 2
    first, second = (
        set(json.loads((out / f"seen-{rank}.json").read_text())[0]) for rank in range(2)
    )
    assert first and second and not first & second and len(first | second) == record["rows"]

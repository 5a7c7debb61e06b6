"""The cluster path, on a real SLURM: jobs go through sbatch, a cancelled one is tried again, one out of time is named.

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

from rr import files as io
from rr.data import packing, sources
from rr.files import ROOT
from rr.provenance import read_result
from rr.workflow import jobs as workflow


def answers():
    """Whether this machine can submit jobs: there is an sbatch, and its controller answers within 20 seconds."""
    if not shutil.which("sbatch"):
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return ping.returncode == 0 and " is UP" in ping.stdout


pytestmark = pytest.mark.skipif(
    not answers(), reason="no SLURM: sbatch is absent or no controller answers"
)


def project(folder):
    """A copy of the project whose last notebook takes five minutes, which its SLURM job has not; returns its profile."""
    for part in ("rr", "notebooks", "workflow"):
        shutil.copytree(ROOT / part, folder / part)
    slow = folder / "notebooks" / "09_fusion.py"
    slow.write_text(
        slow.read_text().replace("started = time.time()", "started = time.time()\ntime.sleep(300)")
    )
    profile = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    values = yaml.safe_load(
        profile.read_text()
    )  # the profile that is tested, made quick and small enough for one node
    values["default-resources"] |= {"cpus_per_task": 1, "runtime": 10, "mem_mb": 3000}
    values |= {
        "set-resources": {"09_fusion": {"runtime": 1}},
        "slurm-init-seconds-before-status-checks": 2,
        "latency-wait": 5,
    }
    profile.write_text(yaml.safe_dump(values))


def jobs(folder):
    """{SLURM's job number: (rule, state)} of the jobs submitted from `folder`, finished ones included."""
    lines = subprocess.check_output(
        ["squeue", "--noheader", "--states=all", "--format=%i|%k|%T|%Z"], text=True
    )
    rows = [line.split("|") for line in lines.splitlines()]
    return {
        number: (re.search(r"\d\d_[a-z_]+?(?=_wildcards|$)", rule)[0], state)
        for number, rule, state, where in rows
        if where == str(folder)
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
    """Jobs succeed; one is cancelled and tried again; one runs out of time and is named in the summary."""
    copy, out = tmp_path / "project", tmp_path / "out"
    project(copy)
    words = [
        "reproduce",
        "--preset",
        "mini",
        "--study",
        "fusion",
        "--profile",
        "slurm",
        "--out",
        str(out),
    ]
    command, environment = (
        [sys.executable, "-m", "rr", *words],
        {**os.environ, "PYTHONPATH": str(copy)},
    )
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

    assert code == 1 and "error: 1 of 8 notebooks failed" in said, said
    assert "error: 09_fusion: " in said and "SLURM status is: 'TIMEOUT'" in said
    states = jobs(out / "mini")
    assert states[cancelled] == ("02_readability", "CANCELLED")
    assert Counter(states.values()) == {
        ("01_data", "COMPLETED"): 1, ("02_readability", "CANCELLED"): 1, ("02_readability", "COMPLETED"): 1,
        ("03_features", "COMPLETED"): 1, ("06_restoration", "COMPLETED"): 4, ("09_fusion", "TIMEOUT"): 2,
    }  # fmt: skip
    results = {job: workflow.result(out / "mini", job) for job in workflow.jobs(study="fusion")}
    assert [job for job, result in results.items() if not result.is_file()] == ["09_fusion"]
    facts = read_result(workflow.result(out / "mini", "02_readability"))["provenance"]
    assert facts["threads"] == 1, "as many as SLURM reserved"


def test_srun_starts_the_processes_of_one_training(tmp_path):
    """Two tasks of a job are the two processes of tests/ranks.py, with one set of weights in the end."""
    packed = packing.pack(sources.embedded(72, 0), 80, tmp_path / "data")
    words = json.dumps(
        {"out": str(tmp_path / "two"), "data": str(packed.path), "component": "plain", "devices": 2}
    )
    command = [
        "srun",
        "--ntasks-per-node",
        "2",
        "--time",
        "5",
        sys.executable,
        str(ROOT / "tests" / "ranks.py"),
        words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = io.read_json(tmp_path / "two" / "config.json")["provenance"]
    assert made["processes"] == 2
    seen = [
        set(json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text())[0])
        for rank in range(2)
    ]
    assert all(seen) and not seen[0] & seen[1] and len(seen[0] | seen[1]) == made["rows"]

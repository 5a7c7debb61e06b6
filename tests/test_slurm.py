"""The cluster path, on a real SLURM: jobs go through sbatch, a cancelled one is tried again, one out of time is named.

Skipped where no SLURM answers; `eval "$(tests/slurm/start FOLDER)"` makes one of this machine.
"""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rr.io import ROOT


def answers():
    """Whether this machine can submit jobs: there is an sbatch, and its controller answers within 20 seconds."""
    if not shutil.which("sbatch"):
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return ping.returncode == 0 and " is UP" in ping.stdout


pytestmark = pytest.mark.skipif(not answers(), reason="no SLURM: sbatch is absent or no controller answers")

# Rules in which the profile's values show: only `cancelled` may be tried again as the profile says.
SNAKEFILE = """
rule all:
    input: "first", "second", "cancelled", "late", "failed"

COMMANDS = {  # as params: Snakemake evaluates shell: after the loop
    "first": "sleep 1", "second": "sleep 1", "cancelled": "test -e tried || { touch tried; sleep 300; }",
    "late": "sleep 300", "failed": "exit 3",
}
for name, command in COMMANDS.items():
    rule:
        name: name
        output: touch(name)
        log: f"{name}.log"
        params: preset=config["preset"], command=command
        retries: 0 if name in ("late", "failed") else None
        resources: runtime=1
        shell: "echo {params.preset} $SLURM_JOB_ID > {log}; {params.command}"
"""


def workflow(folder):
    """The command that is tested, on the workflow in `folder`: the profile, made quick and small enough for one node."""
    return [
        sys.executable, "-m", "snakemake", "--profile", ROOT / "workflow" / "profiles" / "slurm",
        "--snakefile", folder / "Snakefile", "--directory", folder, "--nocolor", "--latency-wait", "5",
        "--default-resources", "runtime=5", "mem_mb=500", "tasks=1", "cpus_per_task=1",
        "--slurm-init-seconds-before-status-checks", "2", "--config", 'preset="mini"',
    ]  # fmt: skip


def jobs(folder):
    """{SLURM's job number: (rule, state)} of the jobs submitted from `folder`, finished ones included."""
    lines = subprocess.check_output(["squeue", "--noheader", "--states=all", "--format=%i|%k|%T|%Z"], text=True)
    rows = [line.split("|") for line in lines.splitlines()]
    return {number: (rule.removeprefix("rule_"), state) for number, rule, state, where in rows if where == str(folder)}


def cancel(folder, rule, process, seconds=120):
    """scancel the rule's job once it runs (`tried` is there); returns its number."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for number, what in jobs(folder).items():
            if what == (rule, "RUNNING") and (folder / "tried").exists():
                subprocess.run(["scancel", number], check=True)
                return number
        time.sleep(0.5)
    raise AssertionError(f"no job of rule {rule} ran within {seconds} s; SLURM's jobs: {jobs(folder)}")


def reported(output):
    """{(rule, SLURM's state)} of the failures that Snakemake's output names."""
    found = re.findall(r"^Error in rule (\w+):\n +message: SLURM-job '\d+' failed, SLURM status is: '(\w+)'", output, re.M)
    return set(found)


def test_jobs_of_a_workflow_go_through_slurm(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(workflow(tmp_path), cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
    try:
        cancelled = cancel(tmp_path, "cancelled", process)
        code = process.wait(400)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # Snakemake cancels its jobs then; on SIGTERM it waits for them
            process.wait(60)
    output = (tmp_path / "output").read_text()

    assert code == 1, output
    assert reported(output) == {("cancelled", "CANCELLED"), ("late", "TIMEOUT"), ("failed", "FAILED")}, output
    states = jobs(tmp_path)
    assert sorted(states.values()) == [
        ("cancelled", "CANCELLED"), ("cancelled", "COMPLETED"), ("failed", "FAILED"), ("first", "COMPLETED"),
        ("late", "TIMEOUT"), ("second", "COMPLETED"),
    ]  # fmt: skip
    assert states[cancelled] == ("cancelled", "CANCELLED")
    assert set(re.findall(r"submitted with SLURM jobid (\d+)", output)) == set(states)
    assert [name for name in ("first", "second", "cancelled", "late", "failed") if (tmp_path / name).exists()] == [
        "first", "second", "cancelled",
    ]  # fmt: skip
    preset, number = (tmp_path / "first.log").read_text().split()
    assert preset == "mini" and states[number] == ("first", "COMPLETED")

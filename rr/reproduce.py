"""`rr reproduce`: Snakemake over the jobs of rr.workflow, so that it can be killed at any moment and called again.

Only one call works in a results folder: it holds a lock that the system releases when it and its Snakemake are dead, so
that nothing that a killed one left behind is in the way of the next.
"""

import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from typing import NamedTuple

from rr import forked, io, notebook, workflow
from rr.io import InputError
from rr.presets import PRESETS, choose

SNAKEFILE = io.ROOT / "workflow" / "Snakefile"
PROFILES = io.ROOT / "workflow" / "profiles"
CORES = os.cpu_count() or 1
SIDE_BY_SIDE = max(min(2, CORES), len(workflow.gpus()))  # jobs on this machine
SHOWN = re.compile(r"\d\d_[\w+-]+  [^\s\d]|\d+ of \d+ steps")  # of the output of Snakemake and its jobs


class Plan(NamedTuple):
    """What to reproduce, and where. Relative paths of `out` start at the project's root; data, labels are absolute."""

    preset: str = "smoke"
    out: str = "results"
    seeds: int = 1
    study: str = "all"
    profile: str = "laptop"   # a folder in workflow/profiles, or the path of another one
    side_by_side: int | None = None
    data: str = ""
    labels: str = ""

    @property
    def home(self):
        return io.results(self.preset, self.out)

    @property
    def threads(self):
        """Of one job on this machine. Two one-thread jobs are faster than one job of two threads; a CPU's results depend
        on the number of threads in their last digits, which is why it is in the provenance."""
        return max(1, CORES // (self.side_by_side or SIDE_BY_SIDE))

    def jobs(self):
        return workflow.jobs(self.seeds, self.study, self.data, self.labels)

    def command(self, *options):
        """Snakemake's command line. Raises InputError for an unknown preset, study or profile."""
        choose("preset", self.preset, PRESETS)
        self.jobs()
        profile = PROFILES / self.profile  # a path of its own if self.profile is absolute
        if not (profile / "config.yaml").is_file():
            known = ", ".join(sorted(path.parent.name for path in PROFILES.glob("*/config.yaml")))
            raise InputError(f"profile {self.profile!r}: unknown; choose one of {known}, or name a folder with a config.yaml")
        config = {"preset": self.preset, "out": self.out, "seeds": self.seeds, "study": self.study,
                  "data": self.data, "labels": self.labels}
        if self.profile == "laptop":
            config["threads"] = self.threads
            options = ("--cores", str((self.side_by_side or SIDE_BY_SIDE) * self.threads), *options)
        elif self.side_by_side:
            options = ("--jobs", str(self.side_by_side), *options)
        return [
            sys.executable, "-m", "snakemake", "--snakefile", SNAKEFILE, "--directory", self.home,
            "--profile", profile, *options, "--config", *(f"{key}={json.dumps(value)}" for key, value in config.items()),
        ]  # fmt: skip


def preview(plan):
    """Print the jobs that `run` would run, each with Snakemake's reason."""
    io.folder(plan.home)
    command = plan.command("--dry-run", "--nolock")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"snakemake: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    found = re.findall(r"output: [^\n]*/\.([^/\s]+)\.done$.*?reason: ([^\n]*)", done.stdout, re.M | re.S)
    for job, reason in found:
        reason = re.sub(r"\S*/\.([^/\s,]+)\.done", r"\1", reason)
        print(f"{job}  {'not made yet' if reason.startswith('Missing') else reason}")
    print(f"{len(found)} of {len(plan.jobs())} notebooks to run" if found else "nothing to do")


def run(plan):
    """Run what is not made yet; says what was made, or what failed and why. Returns whether everything is there."""
    command = plan.command("--nolock", "--quiet", "rules", "host", "reason")
    io.folder(plan.home)
    with open(plan.home / ".reproduce.lock", "a+") as lock:  # holds: host, our process, Snakemake's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _stop_orphan(plan.home, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for job in plan.jobs():
            workflow.failure(plan.home, job).unlink(missing_ok=True)
        here = plan.profile == "laptop"
        with forked.server(plan.threads) if here else nullcontext({}) as variables:
            gpus = {workflow.GPUS: ",".join(workflow.gpus())} if here else {}
            code, busy, rest = _snakemake(command, lock, os.environ | variables | gpus)
    if code == 0:
        print(f"\npreset {plan.preset}, seeds {plan.seeds}, study {plan.study}:",
              "everything is made" if busy else "nothing to do, all was made before")
        return True
    _summarize(plan, busy, rest)
    return False


def _snakemake(command, lock, environment):
    """Run Snakemake, showing its jobs' lines; returns (exit code, whether a job ran, its other lines).

    Snakemake inherits the open file `lock`: the lock is held while either of us lives and is released by the system however
    we die, so that Snakemake's own lock, which survives a kill, is not needed (--nolock).
    """
    snakemake = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
        start_new_session=True, pass_fds=[lock.fileno()],
    )  # fmt: skip
    lock.truncate(0)
    print(platform.node(), os.getpid(), snakemake.pid, file=lock, flush=True)
    busy, rest = False, []
    with notebook.terminable():
        try:
            for line in snakemake.stdout:
                if SHOWN.match(line) or line.startswith("error: "):
                    busy = True
                    print(line, end="", flush=True)
                else:
                    rest.append(line)
            return snakemake.wait(), busy, rest
        finally:
            if snakemake.poll() is None:
                _stop(snakemake.pid, lambda: snakemake.poll() is not None)


def _stop(pid, ended):
    """End a Snakemake and its jobs: Ctrl-C makes it cancel those on a cluster; those here end with it, and their kernels."""
    for signal_, seconds in ((signal.SIGINT, 30), (signal.SIGTERM, 20), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal_)
        end = time.monotonic() + seconds
        while not ended() and time.monotonic() < end:
            time.sleep(0.1)


def _stop_orphan(home, lock):
    """End a Snakemake whose `rr reproduce` was killed. Raises InputError if both live, with what to type."""
    lock.seek(0)
    host, ours, snakemake = (lock.read().split() + ["", "0", "0"])[:3]
    try:
        os.kill(int(ours), 0)
    except ProcessLookupError:
        if host == platform.node():  # the lock is held, hence by this Snakemake: its number was not given away
            _stop(int(snakemake), lambda: _free(lock))
            return
    stop = f"on {host}: kill -- -{snakemake}"
    raise InputError(f"{home}: another `rr reproduce` is at work there; wait for its end, or stop it {stop}")


def _free(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _summarize(plan, busy, rest):
    """On stderr: every job that failed, with the last line of its error, and what could not be made because of it."""
    jobs, why, hindered = plan.jobs(), {}, []
    ends = re.findall(r"SLURM status is: '(\w+)'(?:.*\n)*? +output: .*/\.([^/\s]+)\.done", "".join(rest))
    slurm = {name: f"SLURM says {state}" for state, name in ends}
    for name, job in jobs.items():
        failed = workflow.failure(plan.home, name)
        if any(need in why or need in hindered for need in job.needs):
            hindered.append(name)
        elif failed.is_file():
            why[name] = failed.read_text(encoding="utf-8").strip()
        elif not workflow.mark(plan.home, name).is_file():
            why[name] = f"{name}: ended without a word: {slurm.get(name, 'killed, or out of memory')}"
    if not busy:  # Snakemake itself
        print("".join(rest).rstrip(), file=sys.stderr)
        return
    print(f"\n{len(why)} of {len(jobs)} notebooks failed:", file=sys.stderr)
    for line in why.values():
        print(f"  {line}", file=sys.stderr)
    if hindered:
        print("not made because of that:", ", ".join(hindered), file=sys.stderr)
    print("error: not everything could be made; after a repair the same command continues", file=sys.stderr)

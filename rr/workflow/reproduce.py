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
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from rr import files as io
from rr.errors import InputError, choose
from rr.presets import PRESETS
from rr.workflow import forked, notebook
from rr.workflow import jobs as workflow

SNAKEFILE = io.ROOT / "workflow" / "Snakefile"
PROFILES = io.ROOT / "workflow" / "profiles"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SHOWN = re.compile(
    r"\d\d_[\w+-]+  [^\s\d]|\d+ of \d+ steps"
)  # of the output of Snakemake and its jobs


class Plan(NamedTuple):
    """What to reproduce, and where. Relative paths of `out` start at the project's root; data, labels are absolute."""

    preset: str = "smoke"
    out: str = "results"
    seeds: int = 1
    study: str = "all"
    profile: str = "laptop"  # a folder in workflow/profiles, or the path of another one
    side_by_side: int | None = None
    data: str = ""
    labels: str = ""

    @property
    def home(self):
        return io.results(self.preset, self.out)

    @property
    def folder(self):
        """Of the Snakemake profile: the project's of that name, or a path."""
        own = PROFILES / self.profile
        return own if (own / "config.yaml").is_file() else Path(self.profile).resolve()

    @property
    def local(self):
        """Whether jobs run on this machine: the profile names no other executor."""
        return not re.search(
            r"^executor: *(?!local)",
            (self.folder / "config.yaml").read_text(encoding="utf-8"),
            re.M,
        )

    @property
    def threads(self):
        """Of one job on this machine. Two one-thread jobs are faster than one job of two threads; a CPU's results depend
        on the number of threads in their last digits, which is why it is in the provenance."""
        return max(1, CORES // self.here)

    @property
    def here(self):
        """Jobs side by side on this machine."""
        return self.side_by_side or max(min(2, CORES), len(workflow.gpus()))

    def jobs(self):
        return workflow.jobs(self.seeds, self.study, self.data, self.labels)

    def distrusted(self):
        """Names of the jobs whose marks do not vouch for what is there."""
        return [
            name
            for name, job in self.jobs().items()
            if not workflow.trusted(self.home, name, job, self.preset)
        ]

    def command(self, *options):
        """Snakemake's command line. Raises InputError for an unknown preset, study or profile."""
        choose("preset", self.preset, PRESETS)
        self.jobs()
        if "{" in str(self.home) or "}" in str(self.home):
            raise InputError(
                f"out {self.out}: braces have a meaning for Snakemake; name another folder"
            )
        source, packed = "folder" if self.data else "embedded", self.home / "data" / "manifest.json"
        if (
            packed.is_file()
            and (found := io.read_json(packed)["recipe"]["source"]["kind"]) != source
        ):
            raise InputError(
                f"{packed.parent}: holds {found} data, not {source} data; give --data as before, or another --out"
            )
        if not (self.folder / "config.yaml").is_file():
            known = ", ".join(sorted(path.parent.name for path in PROFILES.glob("*/config.yaml")))
            raise InputError(
                f"profile {self.profile!r}: unknown; choose one of {known}, or name a folder with a config.yaml"
            )
        config = {
            "preset": self.preset,
            "out": self.out,
            "seeds": self.seeds,
            "study": self.study,
            "data": self.data,
            "labels": self.labels,
        }
        if self.local:
            config["threads"] = self.threads
            options = ("--cores", str(self.here * self.threads), *options)
        elif self.side_by_side:
            options = ("--jobs", str(self.side_by_side), *options)
        return [
            sys.executable, "-m", "snakemake", "--snakefile", SNAKEFILE, "--directory", self.home,
            "--profile", self.folder, *options, "--config", *(f"{key}={json.dumps(value)}" for key, value in config.items()),
        ]  # fmt: skip


def preview(plan):
    """Print the jobs that `run` would run, each with Snakemake's reason."""
    command = plan.command("--dry-run", "--nolock")
    io.folder(plan.home)
    forced = [
        mark for name in plan.distrusted() if (mark := workflow.mark(plan.home, name)).is_file()
    ]
    done = subprocess.run(
        [*command, *(["--forcerun", *forced] if forced else [])], capture_output=True, text=True
    )
    if done.returncode:
        lines = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if line.strip() and "Using profile" not in line
        ]
        raise InputError(
            f"snakemake: {lines[-1] if lines else f'ended with code {done.returncode}'}"
        )
    found = re.findall(
        r"output: [^\n]*/\.([^/\s]+)\.done$.*?reason: ([^\n]*)", done.stdout, re.M | re.S
    )
    for job, reason in found:
        reason = re.sub(r"\S*/\.([^/\s,]+)\.done", r"\1", reason)
        reason = "made otherwise, or damaged" if reason.startswith("Forced") else reason
        print(f"{job}  {'not made yet' if reason.startswith('Missing') else reason}")
    print(f"{len(found)} of {len(plan.jobs())} notebooks to run" if found else "nothing to do")


def run(plan):
    """Run what is not made yet; says what was made, or what failed and why. Returns whether everything is there."""
    command = plan.command("--nolock")
    io.folder(plan.home)
    with _open(plan.home / ".reproduce.lock") as lock:  # holds: host, our process, Snakemake's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _stop_orphan(plan.home, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        _owners(lock, os.getpid())
        for name in plan.jobs():
            workflow.failure(plan.home, name).unlink(missing_ok=True)
        for name in plan.distrusted():
            workflow.mark(plan.home, name).unlink(missing_ok=True)
        with forked.server(plan.threads) if plan.local else nullcontext({}) as variables:
            if plan.local:
                variables |= {
                    workflow.GPUS: ",".join(workflow.gpus()),
                    workflow.OWNER: str(os.getpid()),
                }
            code, busy, rest = _snakemake(command, lock, os.environ | variables)
    if code == 0:
        print(
            f"\npreset {plan.preset}, seeds {plan.seeds}, study {plan.study}:",
            "everything is made" if busy else "nothing to do, all was made before",
        )
        return True
    _summarize(plan, rest)
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
    _owners(lock, os.getpid(), snakemake.pid)
    busy, rest = False, []

    def bury():  # a Snakemake that was killed leaves jobs, which hold the pipe
        snakemake.wait()
        with suppress(ProcessLookupError):
            os.killpg(snakemake.pid, signal.SIGTERM)

    threading.Thread(target=bury, daemon=True).start()
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
    print("stopping; the same command continues later", file=sys.stderr, flush=True)
    with suppress(
        ValueError
    ):  # a second Ctrl-C must not leave them alone; only the main thread can say so
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (
        [signal.SIGINT] * 5 + [signal.SIGTERM] * 5 + [signal.SIGKILL]
    ):  # one may come when none is listened to
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        end = time.monotonic() + 3
        while not ended() and time.monotonic() < end:
            time.sleep(0.1)
        if ended():
            return


def _stop_orphan(home, lock):
    """End a Snakemake whose `rr reproduce` was killed. Raises InputError if both live, with what to type."""
    lock.seek(0)
    host, *pids = lock.read().split() or [""]
    if len(pids) == 2 and host == platform.node() and not workflow.alive(int(pids[0])):
        # the lock is held by this Snakemake, for its owner is dead: its number was not given away
        _stop(int(pids[1]), lambda: _free(lock))
        return
    stop = f", or stop it on {host}: kill -- -{pids[1]}" if len(pids) == 2 else ""
    raise InputError(f"{home}: another `rr reproduce` is at work there; wait for its end{stop}")


def _owners(lock, *pids):
    """Write who holds the lock: host, `rr reproduce`, and its Snakemake once there is one."""
    lock.truncate(0)
    print(platform.node(), *pids, file=lock, flush=True)


def _open(path):
    try:
        return open(path, "a+")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose another --out"
        ) from error


def _free(lock):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _summarize(plan, rest):
    """On stderr: every job that failed, with the last line of its error, and what could not be made because of it."""
    jobs, why, hindered = plan.jobs(), {}, []
    said = "".join(rest)
    errors = re.findall(r"^Error in rule (?:.*\n)*? +output: .*/\.([^/\s]+)\.done", said, re.M)
    ends = re.findall(r"SLURM status is: '(\w+)'(?:.*\n)*? +output: .*/\.([^/\s]+)\.done", said)
    slurm = {name: f"SLURM says {state}" for state, name in ends}
    for name, job in jobs.items():
        failed = workflow.failure(plan.home, name)
        if any(need in why or need in hindered for need in job.needs):
            hindered.append(name)
        elif failed.is_file():
            why[name] = failed.read_text(encoding="utf-8").strip()
        elif name in errors and not workflow.mark(plan.home, name).is_file():
            why[name] = (
                f"{name}: ended without a word: {slurm.get(name, 'killed, or out of memory')}"
            )
    if not why:  # then it is Snakemake's own failure
        print("\n".join(["", *said.rstrip().splitlines()[-20:]]), file=sys.stderr)
        print(
            "error: the workflow ended early; after a repair the same command continues",
            file=sys.stderr,
        )
        return
    print(f"\n{len(why)} of {len(jobs)} notebooks failed:", file=sys.stderr)
    for name, line in why.items():
        executed = plan.home / "executed" / f"{name}.ipynb"
        print(
            f"  {line}"
            + (f"; see {executed}" if executed.is_file() and str(executed) not in line else ""),
            file=sys.stderr,
        )
    if hindered:
        print("not made because of that:", ", ".join(hindered), file=sys.stderr)
    print(
        "error: not everything could be made; after a repair the same command continues",
        file=sys.stderr,
    )

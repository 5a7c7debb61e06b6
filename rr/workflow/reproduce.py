"""Run the jobs of rr.workflow.jobs with Snakemake, in this process."""

import io
import json
import logging
import os
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml

from rr.errors import InputError
from rr.files import ROOT
from rr.workflow.jobs import GPUS, gpus

WORKFLOW = ROOT / "workflow"
# On a machine without GPUs, up to so many runs share a kernel. The start of a kernel takes 7 s of a
# CPU core, and a run of preset smoke 15 to 25 s. On a GPU or a cluster every run is its own job.
TOGETHER = 8
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Progress(logging.Handler):
    """Snakemake's log events: prints what starts and ends, and collects what failed and why."""

    def __init__(self, stream, dry_run):
        super().__init__()
        self.stream, self.dry_run = stream, dry_run
        self.names, self.ended, self.failed = {}, [], {}

    def emit(self, record):
        from snakemake.logging import LogEvent

        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO and record.log:
            names = self.names[record.jobid] = [Path(log).stem for log in record.log]
            reason = textwrap.shorten(str(record.reason), 100)
            self.say(names, reason if self.dry_run else "starts")
        elif event == LogEvent.JOB_ERROR:
            names = self.names[record.jobid]
            self.failed[tuple(names)] = record.rule_msg or "killed, or out of memory"
        elif event == LogEvent.JOB_FINISHED:
            self.ended = self.names.get(record.job_id, [])
            self.failed.pop(tuple(self.ended), None)  # it failed before, and was tried again
        elif event == LogEvent.PROGRESS:
            self.say(self.ended, f"done, {record.done} of {record.total} steps")

    def say(self, names, text):
        for name in names:
            print(f"{name}: {text}", file=self.stream, flush=True)


def snakemake(results_dir, config, profile="laptop", cores=None, jobs=None, dry_run=False):
    """Run the jobs that have no current result; returns {names of jobs without one: reason}.

    config: the values that workflow/Snakefile takes. profile: a folder in workflow/profiles, or the
    path of another Snakemake profile. cores: of this machine, all by default. jobs: how many run
    side by side. dry_run: list them only. Raises InputError if Snakemake cannot run.
    """
    folder = WORKFLOW / "profiles" / profile
    folder = folder if folder.is_dir() else Path(profile).resolve()
    if not (folder / "config.yaml").is_file():
        names = ", ".join(sorted(path.name for path in (WORKFLOW / "profiles").iterdir()))
        raise InputError(
            f"profile {profile!r}: unknown; choose one of {names}, or a folder with a config.yaml"
        )
    found = gpus()
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    if settings.get("executor", "local") == "local":
        os.environ[GPUS] = ",".join(found)
        config["together"] = 1 if found else TOGETHER
    side_by_side = jobs or max(min(2, CORES), len(found))
    config["threads"] = max(1, (cores or CORES) // side_by_side)
    config["cores"] = side_by_side * config["threads"]
    arguments = [
        "--snakefile", WORKFLOW / "Snakefile", "--directory", results_dir, "--profile", folder,
        "--cores", config["cores"], *(["--jobs", jobs] if jobs else []),
        "--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input",
        *(["--dry-run"] if dry_run else []),
        "--config", *(f"{key}={json.dumps(value)}" for key, value in config.items()),
    ]  # fmt: skip
    progress = _run(list(map(str, arguments)), dry_run)
    if dry_run:
        print(f"{sum(map(len, progress.names.values()))} notebooks to run")
    executed = results_dir / "executed"
    return {
        names: _reason(executed / f"{names[0]}.log", message)
        for names, message in progress.failed.items()
    }


def _run(arguments, dry_run):
    """Snakemake in this process. What it prints itself is only shown if it fails without a job."""
    progress, output = Progress(sys.stdout, dry_run), io.StringIO()
    logging.getLogger("snakemake").addHandler(progress)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            from snakemake.cli import args_to_api, parse_args

            parser, parsed = parse_args(arguments)
            success = args_to_api(parsed, parser)
    except SystemExit:  # of its argument parser
        success = False
    finally:
        logging.getLogger("snakemake").removeHandler(progress)
    if not success and not progress.failed:
        lines = [line for line in output.getvalue().splitlines() if line.strip()] or ["no message"]
        raise InputError(f"snakemake: {lines[-1].strip()}; the same command continues")
    return progress


def _reason(log, message):
    """The error in the log of a job, or else the message of Snakemake."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if any(line.startswith("Traceback") for line in lines):
        message = lines[-1]
    return f"{log.stem}: {message}; see {log}"

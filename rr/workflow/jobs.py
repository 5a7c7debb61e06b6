"""The whole of the paper as jobs: which notebook runs with which values after which others.

Defines `jobs` (the table that workflow/Snakefile turns into rules), `tracked` (what decides about a notebook's numbers),
the marks and failures by which the parts of the workflow speak to each other, and `lease` (one GPU for one job). Nothing
here needs torch. What runs the jobs is Snakemake, called by rr.reproduce.
"""

import hashlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from rr import files as io
from rr import paper, studies
from rr.errors import InputError, choose
from rr.presets import preset
from rr.provenance import read_result
from rr.workflow import notebook

NOTEBOOKS = {
    "backbones": "07_backbones",
    "extractors": "08_extractors",
    "fusion": "09_fusion",
    "matters": "10_what_matters",
}
SUMMARY = "11_summary"  # of all studies and of the judges
EVALUATION = "12_evaluation"  # of restorers, trained or not, on the same images
WRITTEN = {  # what else must be there, beside a job's result, for the jobs that read it
    "01_data": ["data/manifest.json", "data/table.csv"],
    "02_readability": ["checkpoints/readability/config.json", "checkpoints/judge/config.json"],
    "03_features": ["config.json", "condition.safetensors"], "06_restoration": ["denoiser/config.json", "classifier/config.json"],
    "07_backbones": ["tables/07_backbones.csv"], "08_extractors": ["tables/08_extractors.csv"],
    "09_fusion": ["tables/09_fusion.csv"], "10_what_matters": ["tables/10_what_matters.csv", "10_what_matters_per_image.csv"],
    "11_summary": ["tables/11_summary.csv"], "12_evaluation": ["tables/12_evaluation.csv"],
}  # fmt: skip
RECOMMENDED = ("00_start_here", EVALUATION)  # use the weights in the repository
OWNER = "RR_OWNER"  # environment: process without which a job of this machine ends
GPUS = "RR_GPUS"  # environment: ids of the GPUs that the jobs of this machine share, "0,1"


class Job(NamedTuple):
    """One execution of a notebook; needs: names of the jobs whose results it reads."""

    notebook: str
    values: dict
    needs: list[str]


def jobs(seeds=1, study="all", data="", labels=""):
    """{name: Job}, in an order in which they can run: what it takes to make `study` with `seeds` seeds.

    What no configuration changes is made once, with seed 0: the data and the classifier, so that all runs are scored on the same
    images by the same judge. A seed concerns what is trained for a configuration: the extractor with its static
    condition, and the restorer. Raises InputError for an unknown study.
    """
    choose("study", study, ("all", *NOTEBOOKS))
    wanted = list(NOTEBOOKS) if study == "all" else [study]
    every = {
        "01_data": Job("01_data", {"data": data, "labels": labels} if data else {}, []),
        "02_readability": Job("02_readability", {}, ["01_data"]),
    }
    configurations = [(each, seed) for seed in range(seeds) for each in studies.distinct(wanted)]
    for each, seed in configurations:
        if each.extractor in paper.EXTRACTORS:  # the others are not trained
            values = {"extractor": each.extractor, "seed": seed}
            every[name("03_features", values)] = Job("03_features", values, ["01_data"])
    if study == "all":
        every |= {
            "04_diffusion": Job("04_diffusion", {}, ["01_data"]),
            "05_vae": Job("05_vae", {}, ["01_data"]),
        }
    for each, seed in configurations:
        values = {**each.values, "seed": seed}
        needs = [
            "01_data",
            "02_readability",
            *filter(every.__contains__, [name("03_features", values)]),
        ]
        every[name("06_restoration", values)] = Job("06_restoration", values, needs)
    for each in wanted:
        needs = [
            _restoration(configuration, seed)
            for configuration in studies.STUDIES[each]
            for seed in range(seeds)
        ]
        every[NOTEBOOKS[each]] = Job(NOTEBOOKS[each], {"seeds": seeds}, needs)
    if study == "all":
        summed = [
            (each, seed) for seed in range(seeds) for each in studies.distinct(studies.VARIES)
        ]
        needs = ["02_readability", NOTEBOOKS["matters"], *(_restoration(*each) for each in summed)]
        every[SUMMARY] = Job(SUMMARY, {"seeds": seeds}, needs)
        evaluated = dict.fromkeys([*studies.EVALUATED.values(), *studies.STUDIES["backbones"]])
        needs = [
            "01_data",
            "02_readability",
            *(_restoration(each, seed) for each in evaluated for seed in range(seeds)),
        ]
        every[EVALUATION] = Job(EVALUATION, {"seeds": seeds}, needs)
        every["00_start_here"] = Job("00_start_here", {}, [])
    return every


def _restoration(configuration, seed):
    return name("06_restoration", {**configuration.values, "seed": seed})


def name(stem, values):
    """Name of the job that runs a notebook with these values: its stem, and for 03 and 06 what its results are called by."""
    if stem == "03_features":
        return f"{stem}_{values['extractor']}_{values['seed']}"
    if stem == "06_restoration":
        words = {word: values[word] for word in studies.Configuration._fields if word in values}
        return f"{stem}_{studies.Configuration(**words)}_{values['seed']}"
    return (
        f"{stem}_photographs" if stem == EVALUATION and values.get("photos") else stem
    )  # beside the workflow's own


def result(home, job):
    """The result file that a job writes, by its name."""
    stem = job[:2]
    if stem in ("03", "06") and job.count("_") > 1:
        return (
            home / {"03": "extractors", "06": "runs"}[stem] / job.split("_", 2)[2] / "result.json"
        )
    return home / f"{job}.json"


def tracked(stem, row):
    """What decides about a notebook's numbers: the whole preset, and the recommended weights where they are used."""
    values = {name: value for name, value in asdict(row).items() if name not in ("name", "seed")}
    if stem in RECOMMENDED:
        values["recommended"] = io.read_json(io.RECOMMENDED / "config.json")["sha256"]
    return values


# ------------------------------------------------------------------------------------------------- marks and failures


def mark(home, job):
    """The file that says, to Snakemake, that a job's results in `home` are the workflow's own and whole.

    Results themselves are no outputs of rules: they may have come with the project as a reference, without the data and
    models that the next notebook needs, and Snakemake deletes outputs before it makes them again.
    """
    return home / "executed" / f".{job}.done"


def failure(home, job):
    """The file that holds the line with which a job failed; it goes when the job is tried again."""
    return home / "executed" / f".{job}.failed"


def stamp(stem, values):
    """Hash of what decides about a job's numbers: `tracked`, and its parameters {name: value or text}, preset among them."""
    values = {name: str(value) for name, value in values.items() if name not in ("out", "device")}
    facts = tracked(stem, preset(values["preset"])), sorted(values.items())
    return hashlib.sha256(repr(facts).encode()).hexdigest()


@contextmanager
def reported(executed, mark, stem, values):
    """Run a job: in the end either `mark` is written or the failure beside it says why not. Without a mark: nothing.

    The mark holds the hash of the job's result and its stamp. The result bears the time of its making: Snakemake compares
    contents, and a job that was run again must look new to those that read its results, even if the workflow was killed
    between them. The stamp knows when a folder was moved or has lost Snakemake's own memory.
    """
    if mark is None:
        yield
        return
    home, job = mark.parent.parent, executed.stem
    failed = failure(home, job)
    failed.unlink(missing_ok=True)
    try:
        yield
        if not result(home, job).is_file():
            raise notebook.NotebookError(f"{job}: ended without writing {result(home, job)}")
    except Exception as error:
        known = isinstance(error, InputError | notebook.NotebookError)
        line = str(error) if known else f"{job}: {type(error).__name__}: {error}"
        io.write_text(failed, " ".join(line.split()) + "\n")
        raise
    io.write_text(mark, f"{io.sha256(result(home, job))}\n{stamp(stem, values)}\n")


def trusted(home, name, job, preset):
    """Whether a job's mark vouches for what is there: its result and the files that belong to it, made as they would be now."""
    path, found = mark(home, name), result(home, name)
    try:
        read_result(found)
        written = path.read_text(encoding="utf-8").split()
    except (InputError, FileNotFoundError):
        return False
    there = all((found.parent / each).is_file() for each in WRITTEN.get(job.notebook, ()))
    return there and written == [
        io.sha256(found),
        stamp(job.notebook, {"preset": preset, **job.values}),
    ]


@contextmanager
def owned():
    """Within the block, end this process as by SIGTERM when the process that RR_OWNER names has ended."""

    def watch(pid):
        while alive(pid):
            time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    if OWNER in os.environ:
        threading.Thread(target=watch, args=[int(os.environ[OWNER])], daemon=True).start()
    yield


def alive(pid):
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ----------------------------------------------------------------------------------------------------------- one GPU


def gpus():
    """Ids of this machine's GPUs that we may use, as text; empty without any. Needs no torch, initialises no CUDA."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [
            each
            for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",")
            if each.strip() not in ("", "-1")
        ]
    return _listed(os.environ.get("PATH"))


@cache
def _listed(path):
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed, re.M)


@contextmanager
def lease():
    """Within the block this process, and what it starts, sees one GPU of those in RR_GPUS: the one with the fewest leases.

    Does nothing without RR_GPUS: on a cluster, a job has what it asked for. A lease is a locked file; the system
    gives it back however its process ends.
    """
    ids = [each for each in os.environ.get(GPUS, "").split(",") if each]
    if not ids:
        yield
        return
    from filelock import FileLock, Timeout

    folder = Path(tempfile.gettempdir()) / f"rr-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for place in count():  # a second job goes to a GPU when every GPU has a first
        for gpu in ids:
            lock = FileLock(folder / f"{gpu.replace('/', '-')}.{place}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                yield
            finally:
                lock.release()
            return

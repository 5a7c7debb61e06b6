"""The whole paper as jobs: which notebook runs with which values, after which other jobs.

workflow/Snakefile turns the table of `jobs` into rules. Nothing here needs torch.
"""

import math
import os
import re
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle, pairwise
from pathlib import Path
from typing import NamedTuple

from rr import paper, studies
from rr.errors import choose

NOTEBOOKS = {
    "backbones": "07_backbones",
    "extractors": "08_extractors",
    "fusion": "09_fusion",
    "matters": "10_what_matters",
}
SUMMARY = "11_summary"  # of all studies and of the classifiers
EVALUATION = "12_evaluation"  # of restorers, trained or not, on the same images
# What a job writes, in the results of a preset: its result first, then what other jobs read. The
# folders of checkpoints and of the packed data are not among these files, because Snakemake deletes
# the outputs of a job before it runs again, and a training that was stopped shall continue.
OUTPUTS = {
    "03_features": ["extractors/{run}/result.json", "extractors/{run}/condition.safetensors"],
    "06_restoration": [
        f"runs/{{run}}/{file}" for file in ("result.json", "per_image.csv", "eyes.png")
    ],
    "10_what_matters": ["10_what_matters.json", "10_what_matters_per_image.csv"],
}
GPUS = "RR_GPUS"  # environment variable: the GPUs that the jobs of this machine share, "0,1"


class Job(NamedTuple):
    """One execution of a notebook."""

    notebook: str
    values: dict
    needs: list[str]  # names of the jobs whose results it reads
    studies: tuple[str, ...] = ()  # that need it, if it is one of several runs of its notebook


def jobs(seeds=1, study="all", data="", labels=""):
    """{name: Job}, in an order in which they can run: all that `study` needs, with `seeds` seeds.

    The data and the classifiers are made once, with seed 0, so that all runs are evaluated on the
    same images by the same classifiers. A seed concerns what is trained for a configuration: the
    extractor with its static condition, and the restorer. Raises InputError for an unknown study.
    """
    choose("study", study, ("all", *NOTEBOOKS))
    selected = list(NOTEBOOKS) if study == "all" else [study]
    runs = [
        (configuration, seed)
        for seed in range(seeds)
        for configuration in studies.distinct(selected)
    ]
    table = {
        "01_data": Job("01_data", {"data": data, "labels": labels} if data else {}, []),
        "02_readability": Job("02_readability", {}, ["01_data"]),
    }
    for configuration, seed in runs:
        if configuration.extractor in paper.EXTRACTORS:  # the others are not trained
            values = {"extractor": configuration.extractor, "seed": seed}
            asking = _studies(lambda row: row.extractor == configuration.extractor)
            table[name("03_features", values)] = Job("03_features", values, ["01_data"], asking)
    if study == "all":
        table["00_start_here"] = Job("00_start_here", {}, [])
        table["04_diffusion"] = Job("04_diffusion", {}, ["01_data"])
        table["05_vae"] = Job("05_vae", {}, ["01_data"])
    for configuration, seed in runs:
        headline = (configuration, seed) == (studies.RETINAREGEN, 0)
        values = {**configuration.values, "seed": seed, "draw": headline}
        needs = ["01_data", "02_readability"]
        if (extractor := name("03_features", values)) in table:
            needs.append(extractor)
        asking = _studies(lambda row: row == configuration)
        table[_restoration(configuration, seed)] = Job("06_restoration", values, needs, asking)

    def restorations(configurations):
        return [_restoration(row, seed) for row in configurations for seed in range(seeds)]

    for key in selected:
        stem, needs = NOTEBOOKS[key], restorations(studies.STUDIES[key])
        table[stem] = Job(stem, {"seeds": seeds}, needs)
    if study == "all":
        needs = ["02_readability", NOTEBOOKS["matters"]]
        needs += restorations(studies.distinct(studies.VARIES))
        table[SUMMARY] = Job(SUMMARY, {"seeds": seeds}, needs)
        evaluated = dict.fromkeys([*studies.EVALUATED.values(), *studies.STUDIES["backbones"]])
        needs = ["01_data", "02_readability", *restorations(evaluated)]
        table[EVALUATION] = Job(EVALUATION, {"seeds": seeds}, needs)
    return table


def groups(table, size):
    """The names of a table of jobs in lists of at most `size`, each for one kernel.

    The jobs of a list have the same notebook and the same seed, and the same studies need them.
    Therefore a study needs all or none of them, and its lists are those of `all`.
    """
    together = {}
    for name, job in table.items():
        key = (job.notebook, job.values["seed"], job.studies) if job.studies else name
        together.setdefault(key, []).append(name)
    lists = []
    for names in together.values():
        n = math.ceil(len(names) / size)
        ends = [len(names) * i // n for i in range(n + 1)]
        lists += [names[start:end] for start, end in pairwise(ends)]
    return lists


def _studies(needs):
    """The names of the studies that have a configuration for which `needs` is true."""
    return tuple(key for key, rows in studies.STUDIES.items() if any(map(needs, rows)))


def _restoration(configuration, seed):
    return name("06_restoration", {**configuration.values, "seed": seed})


def name(stem, values):
    """Name of the job that runs a notebook with these values, and of its executed notebook."""
    if stem == "03_features":
        return f"{stem}_{values['extractor']}_{values['seed']}"
    if stem == "06_restoration":
        words = {word: values[word] for word in studies.Configuration._fields if word in values}
        return f"{stem}_{studies.Configuration(**words)}_{values['seed']}"
    if stem == EVALUATION and values.get("photos"):
        return f"{stem}_photographs"
    return stem


def outputs(job):
    """Files that a job writes, by its name, relative to the results; the first is its result."""
    for stem, files in OUTPUTS.items():
        if job.startswith(stem):
            return [file.format(run=job.removeprefix(f"{stem}_")) for file in files]
    return [f"{job}.json"]


def result(results_dir, job):
    """The result file of a job, by its name."""
    return results_dir / outputs(job)[0]


def gpus():
    """Ids of the GPUs of this machine that we may use, as text. Needs no torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    command = ["nvidia-smi", "-L"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU (\d+):", listed, re.M)


@contextmanager
def lease():
    """Within the block this process and its children use one GPU of those in RR_GPUS, alone."""
    ids = os.environ.get(GPUS, "").split(",")
    if len(ids) < 2:
        yield
        return
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        for gpu in cycle(ids):
            lock = FileLock(Path(tempfile.gettempdir()) / f"rr-{os.getuid()}-gpu-{gpu}")
            with suppress(Timeout):
                stack.enter_context(lock.acquire(timeout=1))
                break
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        yield

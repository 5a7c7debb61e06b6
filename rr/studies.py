"""The paper's three studies (3.2) as lists of configurations, and the runs of these as tables.

A configuration is what one run of notebook 06_restoration trains and evaluates; with a seed it names that run's folder,
results/<preset>/runs/<configuration>_<seed>/:

    result.json      numbers and provenance, written last; it holds the hashes of the next two
    per_image.csv    image, method, and the columns of metrics.score: "do nothing", "population mean", "RetinaRegen"
    eyes.png         EYES test images, the same in every run, side by side; below each other: input, restored, reference

Everything here reads files and needs no torch.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from rr import paper
from rr.io import InputError, read_result, results

EYES = 4  # test images in eyes.png
METHODS = ("do nothing", "population mean", "RetinaRegen")  # of per_image.csv; the first two are the same in every run


class Configuration(NamedTuple):
    """One row of a study; the words are the parameters of notebook 06_restoration and the keys of the models' tables."""

    protocol: str
    backbone: str
    extractor: str
    fusion: str

    def __str__(self):
        return "_".join(self)


RETINAREGEN = Configuration("paired", "vae", "resnet34", "bilinear-static")  # what the paper recommends

# study: its configurations in the paper's order (Fig. 5, Table 1, 3.2); RETINAREGEN is in all three
STUDIES = {
    "backbones": [RETINAREGEN._replace(backbone=name) for name in ("unet", "unet++", "resnet", "densenet", "vae")],
    "extractors": [RETINAREGEN._replace(extractor=name) for name in paper.EXTRACTORS],
    "fusion": [RETINAREGEN._replace(fusion=name) for name in paper.FUSIONS],
}
VARIES = {"backbones": "backbone", "extractors": "extractor", "fusion": "fusion"}  # the word that differs within a study


def distinct(studies=STUDIES):
    """The configurations of some studies, each once, in order."""
    return list(dict.fromkeys(each for study in studies for each in STUDIES[study]))


def folder(home, configuration, seed):
    """Where a run's files lie; home: the results of a preset (io.results)."""
    return home / "runs" / f"{configuration}_{seed}"


def extractor_folder(home, extractor, seed):
    """Where a trained extractor and its static condition lie."""
    return home / "extractors" / f"{extractor}_{seed}"


class Run(NamedTuple):
    """What a run left: numbers and provenance of its result file, scores per image, and its eyes."""

    configuration: Configuration
    seed: int
    numbers: dict
    provenance: dict
    scores: pd.DataFrame
    eyes: np.ndarray          # (3, EYES, size, size, 3) uint8: input, restored, reference


def _out(home):
    return "" if home == results(home.name) else f" --out {home.parent}"


def read(home, configuration, seed):
    """A finished run. Raises InputError if it is missing, or its files are not those that its result names."""
    path = folder(home, configuration, seed)
    if not (path / "result.json").is_file():
        raise InputError(f"{path}: not run yet; make it: rr reproduce --preset {home.name}{_out(home)}")
    found = read_result(path / "result.json")
    scores = pd.read_csv(path / "per_image.csv")
    size = found["numbers"]["size"]
    with Image.open(path / "eyes.png") as strip:
        eyes = np.asarray(strip.convert("RGB")).reshape(3, size, -1, size, 3).swapaxes(1, 2)
    return Run(configuration, seed, found["numbers"], found["provenance"], scores, eyes)


def read_study(home, study, seeds):
    """All runs of a study, {configuration: [Run of seed 0, 1, ...]}.

    Raises InputError if one is missing, or if they were not measured on the same images, or not with the same metrics.
    """
    runs = {each: [read(home, each, seed) for seed in range(seeds)] for each in STUDIES[study]}
    every = [run for group in runs.values() for run in group]
    for what, value in (("data set", lambda run: run.provenance["data"]),
                        ("test images", lambda run: tuple(run.scores["image"])),
                        ("preset", lambda run: {**run.provenance["preset"], "seed": 0}),
                        ("LPIPS trunk", lambda run: run.numbers["lpips"])):
        for run in every:
            if value(run) != value(every[0]):
                raise InputError(f"{folder(home, run.configuration, run.seed)}: another {what} than in "
                                 f"{folder(home, every[0].configuration, every[0].seed).name}; delete the one that is not wanted "
                                 "and run `rr reproduce` again")
    return runs

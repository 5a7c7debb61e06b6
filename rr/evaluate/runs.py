"""Read the finished runs of a study, and say what they are and what they took. Nothing here needs
torch.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from rr.errors import InputError
from rr.files import results
from rr.presets import preset as choose_preset
from rr.provenance import read_result
from rr.studies import STUDIES, Configuration, folder


class Run(NamedTuple):
    """The result of a run: numbers and provenance, scores per image, and a few images."""

    configuration: Configuration
    seed: int
    numbers: dict
    provenance: dict
    scores: pd.DataFrame
    eyes: np.ndarray  # (3, EYES, size, size, 3) uint8: input, restored, reference


def read(results_dir, configuration, seed):
    """A finished run. Raises InputError if it is missing or older than `variation`, or if its files
    are not those that its result names.
    """
    path = folder(results_dir, configuration, seed)
    if not (path / "result.json").is_file():
        default = results_dir == results(results_dir.name)
        command = f"rr reproduce --preset {results_dir.name}"
        out = "" if default else f" --out {results_dir.parent}"
        raise InputError(f"{path}: this run does not exist; make it with: {command}{out}")
    result = read_result(path / "result.json")
    if "variation" not in result["numbers"]:
        raise InputError(
            f"{path / 'result.json'}: an older version wrote it, without `variation`; delete it "
            "and run `rr reproduce` again"
        )
    scores = pd.read_csv(path / "per_image.csv")
    size = result["numbers"]["size"]
    with Image.open(path / "eyes.png") as strip:
        eyes = np.asarray(strip.convert("RGB")).reshape(3, size, -1, size, 3).swapaxes(1, 2)
    return Run(configuration, seed, result["numbers"], result["provenance"], scores, eyes)


def read_study(results_dir, study, seeds):
    """All runs of a study, {configuration: [Run of seed 0, 1, ...]}.

    Raises InputError if a run is missing, or if the runs were not measured on the same images with
    the same metrics.
    """
    if seeds < 1:
        raise InputError(f"seeds {seeds}: must be 1 or more")
    runs = {
        configuration: [read(results_dir, configuration, seed) for seed in range(seeds)]
        for configuration in STUDIES[study]
    }
    first, *rest = [run for group in runs.values() for run in group]
    for what, value in (
        ("data set", lambda run: run.provenance["data"]),
        ("test images", lambda run: tuple(run.scores["image"])),
        ("preset", lambda run: {**run.provenance["preset"], "seed": 0}),
        ("LPIPS trunk", lambda run: run.numbers["lpips"]),
    ):
        for run in rest:
            if value(run) != value(first):
                raise InputError(
                    f"{folder(results_dir, run.configuration, run.seed)}: another {what} than in "
                    f"{folder(results_dir, first.configuration, first.seed).name}; delete the one "
                    "that you do not want and run `rr reproduce` again"
                )
    return runs


def metadata(runs, preset):
    """What all runs of {name: [Run, ...]} have in common, for captions and result files."""
    first, *rest = next(iter(runs.values()))
    return {
        **{key: first.numbers[key] for key in ("data", "size", "n", "lpips")},
        "protocol": first.configuration.protocol,
        "preset": preset,
        "seeds": 1 + len(rest),
        "configurations": {name: str(group[0].configuration) for name, group in runs.items()},
    }


def sources(runs):
    """Which runs were read, for the provenance: name, commit, data, seconds."""
    return [
        {"run": f"{run.configuration}_{run.seed}"}
        | {key: run.provenance[key] for key in ("commit", "data", "seconds")}
        for group in runs.values()
        for run in group
    ]


def study_provenance(runs, preset):
    """The provenance of what is computed from {name: [Run, ...]}: preset, data, the runs."""
    first = next(iter(runs.values()))[0]
    return {
        "preset": choose_preset(preset),
        "data": first.provenance["data"],
        "runs": sources(runs),
    }


def cost(runs):
    """What each configuration is and took. Times are means over its seeds.

    The memory is that of the process, in which other runs may have come before (rr run --each).
    """
    rows = {}
    for name, group in runs.items():
        numbers, provenance = group[0].numbers, [run.provenance for run in group]
        peaks = [p["peak_gpu_memory_mib"] or p["peak_memory_mib"] for p in provenance]
        training = np.mean([run.numbers["training_seconds"] for run in group])
        rows[name] = {
            "predicts": numbers["objective"],
            "images seen": f"{numbers['images_seen']:,}",
            "parameters": f"{numbers['parameters']:,}",
            "training / s": f"{training:.0f}",
            "whole run / s": f"{np.mean([p['seconds'] for p in provenance]):.0f}",
            "device": provenance[0]["device"],
            "peak memory of the process / MiB": str(max(peaks)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")

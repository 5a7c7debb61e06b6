"""Results of notebooks 02, 06 and 10 without training: the files that the other notebooks read.

Scores come from seeded generators, with known differences between configurations.
"""

import time
from itertools import product

import numpy as np
import pandas as pd
from PIL import Image

from rr import files, studies
from rr.evaluate.classification import share
from rr.paper import LABELS
from rr.provenance import write_result

PER_SEED = 0.5  # dB: standard deviation of what all configurations of a seed have in common
CLASSIFIERS = {"classifier": "classifier", "heldout": "held-out classifier"}  # short: name
REGIONS = {"": 0, "_fov": 1, "_disc": 2}  # suffix: how much lower the scores are there, in dB
METRICS = [f"{metric}{region}" for region in REGIONS for metric in ("psnr", "ssim", "lpips")]
PRESET, DATA = {"name": "smoke"}, "0123456789ab"


def scores(rng, psnr):
    """All columns of metrics.score for images of this PSNR. The disc of the first is unknown."""
    table = pd.DataFrame({"psnr": psnr, "ssim": 0.5 + psnr / 100, "lpips": 0.5 - psnr / 100})
    for region in ("_fov", "_disc"):
        for metric, unit in (("psnr", 1), ("ssim", 0.01), ("lpips", 0.01)):
            lower = REGIONS[region] * unit * rng.random(len(psnr))
            table[metric + region] = table[metric] - lower
    table.loc[0, ["psnr_disc", "ssim_disc", "lpips_disc"]] = np.nan
    return table[METRICS]


def report(auc=(0.9, 0.8, 0.97), gain=(0.1, 0.05, 0.15)):
    """Rows of classification.report, the same for all labels.

    auc, gain: value, low and high of the area and of the accuracy above the majority class.
    """
    names = ["roc_auc", "roc_auc_low", "roc_auc_high"]
    names += ["above_majority", "above_majority_low", "above_majority_high"]
    return [{"label": label, **dict(zip(names, auc + gain, strict=True))} for label in LABELS]


def fooled(n=40, **hits):
    """Rows of notebook 02's table of tricks.

    hits: how many of n images pass with both classifiers, by the first word of the trick.
    """
    tricks = ["do nothing", "CLAHE", "unsharp", "unsharp, three times"]
    tricks += ["population mean", "another eye"]
    rows = []
    for trick, classifier in product(tricks, CLASSIFIERS.values()):
        passed = share(np.arange(n) < hits.get(trick.split()[0].strip(","), 0))
        columns = {"passed": "share", "passed_low": "low", "passed_high": "high"}
        values = {column: passed[name] for column, name in columns.items()}
        rows.append({"classifier": classifier, "method": trick, "n": n, **values})
    return rows


def rechecked(n=40, mean=0, **hits):
    """What notebook 06 says of n inputs: how many pass restored, and how many mean eyes pass.

    hits: restored inputs that pass, by the short name of a classifier; all inputs by default.
    """
    return {
        name: {
            "do nothing": share([False] * n),
            "population mean": share(np.arange(n) < mean),
            "RetinaRegen": share(np.arange(n) < hits.get(short, n)),
        }
        for short, name in CLASSIFIERS.items()
    }


def write(
    results_dir, seeds=1, n=12, size=8, effects=None, noise=0.1, lpips=True, configurations=None,
    collapsed=None, **changes,
):  # fmt: skip
    """Write a run of every configuration and seed, and the results of notebooks 02 and 10.

    In notebook 10, a cell has the effect of its backbone if it starts at the noised input, and the
    opposite effect if it starts from pure noise.

    effects: {word of a configuration: dB added to its PSNR}; a list holds one effect per seed,
    noise: standard deviation over seeds in dB, besides PER_SEED.
    lpips: whether its trunk was available. collapsed: word of configurations and cells whose last
    seed restores nearly the same picture for every eye. changes: to the numbers of all runs.
    """
    effects = effects or {}
    images = [f"eye{i:02}.png" for i in range(n)]
    base = np.random.default_rng(0).normal(20, 2, n)
    baselines = {
        "do nothing": scores(np.random.default_rng(1), base),
        "population mean": scores(np.random.default_rng(2), base + 2),
    }
    for number, configuration in enumerate(configurations or studies.distinct()):
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed])
            gains = [effects.get(word, 0) for word in configuration]
            gains = [gain[seed] if isinstance(gain, list) else gain for gain in gains]
            shift = PER_SEED * np.random.default_rng([99, seed]).normal() + noise * rng.normal()
            psnr = base + 5 + shift + rng.normal(0, 0.3, n) + sum(gains)
            table = scores(rng, psnr)
            methods = {**baselines, "RetinaRegen": table}
            per_image = pd.concat(
                scored.assign(image=images, method=name) for name, scored in methods.items()
            )[["image", "method", *METRICS]]
            if not lpips:
                per_image[[name for name in METRICS if name.startswith("lpips")]] = np.nan
            folder = studies.folder(results_dir, configuration, seed)
            files.write_table(folder / "per_image.csv", per_image)
            eyes = rng.integers(0, 255, (3 * size, studies.EYES * size, 3), dtype=np.uint8)
            Image.fromarray(eyes).save(folder / "eyes.png")
            constant = collapsed in configuration and seed == seeds - 1
            numbers = run_numbers(configuration, seed, size, n, lpips, constant) | changes
            metadata = {"preset": PRESET, "seed": seed, "data": DATA, "started": time.time() - 54}
            write_result(
                folder / "result.json", numbers, files=("per_image.csv", "eyes.png"), **metadata
            )
    numbers = {"classifier": report(), "fooled": fooled(another=40)}
    write_result(results_dir / "02_readability.json", numbers, preset=PRESET, seed=0, data=DATA)
    write_factorial(results_dir, seeds, images, base, effects, collapsed)


def run_numbers(configuration, seed, size, n, lpips, constant):
    vae = configuration.backbone == "vae"
    return {
        "configuration": configuration._asdict(), "seed": seed, "data": "embedded", "size": size,
        "n": n, "objective": "image" if vae else "noise", "images_seen": 4500 if vae else 500,
        "parameters": 123456, "training_images": 240, "training_seconds": 31.2, "scores": {},
        "variation": {
            "do nothing": 1.1, "population mean": 0.0, "RetinaRegen": 0.1 if constant else 0.8
        },
        "unreadable_before": n, "passed": 1.0, "rechecked": rechecked(n),
        "lpips": "LPIPS v0.1 alex, trunk imagenet" if lpips else "n/a",
    }  # fmt: skip


def write_factorial(results_dir, seeds, images, base, effects, collapsed):
    cells = []
    for backbone, objective, start in product(*studies.FACTORS.values()):
        effect = effects.get(backbone, 0) * (1 if start == "noised input" else -1)
        for seed in range(seeds):
            rng = np.random.default_rng([len(cells), seed])
            psnr = base + effect + rng.normal(0, 0.1, len(images))
            factors = dict(zip(studies.FACTORS, (backbone, objective, start)))
            table = scores(rng, psnr)[["psnr", "ssim"]]
            variation = 0.1 if backbone == collapsed and seed == seeds - 1 else 0.8
            table = table.assign(variation=variation)
            cells.append(table.assign(image=images, seed=seed, **factors))
    name = "10_what_matters_per_image.csv"
    files.write_table(results_dir / name, pd.concat(cells))
    write_result(results_dir / "10_what_matters.json", {}, files=(name,), preset=PRESET, data=DATA)

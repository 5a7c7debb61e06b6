"""Runs of notebooks 02, 06 and 10 that nobody trained: files as rr.studies and 11 read them, scores from a seeded generator."""

import time
from itertools import product

import numpy as np
import pandas as pd
from PIL import Image

from rr import files as io
from rr import studies
from rr.evaluate.classification import share
from rr.paper import LABELS
from rr.provenance import write_result

TOGETHER = 0.5  # dB: standard deviation of what all configurations of a seed have in common
CLASSIFIERS = {"classifier": "classifier", "heldout": "held-out classifier"}  # short: name
METRICS = [
    f"{metric}{where}" for where in ("", "_fov", "_disc") for metric in ("psnr", "ssim", "lpips")
]


def scores(rng, psnr):
    """All columns of metrics.score for images of these PSNR; the first image's disc is unknown."""
    table = pd.DataFrame({"psnr": psnr, "ssim": 0.5 + psnr / 100, "lpips": 0.5 - psnr / 100})
    for where, shift in (("_fov", 1), ("_disc", 2)):
        for metric in ("psnr", "ssim", "lpips"):
            table[metric + where] = table[metric] - shift * (
                1 if metric == "psnr" else 0.01
            ) * rng.random(len(psnr))
    table.loc[0, ["psnr_disc", "ssim_disc", "lpips_disc"]] = np.nan
    return table[METRICS]


def report(auc=(0.9, 0.8, 0.97), gain=(0.1, 0.05, 0.15)):
    """Rows of classification.report, every label alike; value, low, high of the area and of accuracy minus majority."""
    return [{"label": label, "roc_auc": auc[0], "roc_auc_low": auc[1], "roc_auc_high": auc[2], "above_majority": gain[0],
             "above_majority_low": gain[1], "above_majority_high": gain[2]} for label in LABELS]  # fmt: skip


def fooled(n=40, **hits):
    """Rows of notebook 02's table of tricks: of n images so many pass with both classifiers; hits: by the trick's first word."""
    rows = []
    for trick in (
        "do nothing",
        "CLAHE",
        "unsharp",
        "unsharp, three times",
        "population mean",
        "another eye",
    ):
        found = share(np.arange(n) < hits.get(trick.split()[0].strip(","), 0))
        facts = {"passed": found["share"], "passed_low": found["low"], "passed_high": found["high"]}
        rows += [
            {"classifier": classifier, "method": trick, "n": n, **facts}
            for classifier in CLASSIFIERS.values()
        ]
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
    home, seeds=1, n=12, size=8, effects=None, noise=0.1, lpips=True, configurations=None, **changes
):
    """Write a run of every configuration and seed under `home`, and the results of notebooks 02 and 10.

    Notebook 10's cells have the effect of their backbone if they start at the noised input, and the contrary from pure noise.

    effects: {word of a configuration: dB added to its PSNR}, a list for one effect per seed, `inf` for one perfect image.
    noise: standard deviation over seeds in dB, besides TOGETHER. lpips: whether its trunk was there. changes: to the numbers
    of all runs.
    """
    images = [f"eye{i:02}.png" for i in range(n)]
    base = np.random.default_rng(0).normal(20, 2, n)
    rungs = {
        "do nothing": scores(np.random.default_rng(1), base),
        "population mean": scores(np.random.default_rng(2), base + 2),
    }
    for place, configuration in enumerate(configurations or studies.distinct()):
        for seed in range(seeds):
            rng = np.random.default_rng([place, seed])
            effect = [(effects or {}).get(word, 0) for word in configuration]
            effect = [each[seed] if isinstance(each, list) else each for each in effect]
            together = TOGETHER * np.random.default_rng([99, seed]).normal()
            psnr = (
                base
                + 5
                + together
                + noise * rng.normal()
                + rng.normal(0, 0.3, n)
                + sum(np.array(effect)[np.isfinite(effect)])
            )
            table = scores(rng, psnr)
            if np.inf in effect:
                table.loc[1, "psnr"] = np.inf
            folder = studies.folder(home, configuration, seed)
            parts = [
                each.assign(image=images, method=name)
                for name, each in {**rungs, "RetinaRegen": table}.items()
            ]
            per_image = pd.concat(parts)[["image", "method", *METRICS]]
            if not lpips:
                per_image[[name for name in METRICS if name.startswith("lpips")]] = np.nan
            io.write_table(folder / "per_image.csv", per_image)
            eyes = rng.integers(0, 255, (3 * size, studies.EYES * size, 3), dtype=np.uint8)
            Image.fromarray(eyes).save(folder / "eyes.png")
            vae = configuration.backbone == "vae"
            numbers = {
                "configuration": configuration._asdict(), "seed": seed, "data": "embedded", "size": size, "n": n,
                "objective": "image" if vae else "noise", "epochs": 45 if vae else 5, "parameters": 123456,
                "training_images": 240, "training_seconds": 31.2, "scores": {}, "unreadable_before": n, "passed": 1.0,
                "rechecked": rechecked(n), "lpips": "LPIPS v0.1 alex, trunk imagenet" if lpips else "n/a", **changes,
            }  # fmt: skip
            facts = {
                "preset": {"name": "smoke"},
                "seed": seed,
                "data": "0123456789ab",
                "started": time.time() - 54,
            }
            write_result(
                folder / "result.json", numbers, files=("per_image.csv", "eyes.png"), **facts
            )
    numbers = {"classifier": report(), "fooled": fooled(another=40)}
    write_result(
        home / "02_readability.json", numbers, preset={"name": "smoke"}, seed=0, data="0123456789ab"
    )
    cells = []
    for backbone, objective, start in product(*studies.FACTORS.values()):
        effect = (effects or {}).get(backbone, 0) * (1 if start == "noised input" else -1)
        for seed in range(seeds):
            rng = np.random.default_rng([len(cells), seed])
            table = scores(rng, base + effect + rng.normal(0, 0.1, n))[["psnr", "ssim"]].assign(
                image=images, seed=seed
            )
            cells.append(table.assign(**dict(zip(studies.FACTORS, (backbone, objective, start)))))
    io.write_table(home / "10_what_matters_per_image.csv", pd.concat(cells))
    facts = {"preset": {"name": "smoke"}, "data": "0123456789ab"}
    write_result(
        home / "10_what_matters.json", {}, files=("10_what_matters_per_image.csv",), **facts
    )

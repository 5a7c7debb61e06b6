"""Training of the recommended restorer."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rr import checkpoint
from rr.data import dataset as data
from rr.data import packing, sources
from rr.data.pairs import randomised
from rr.files import read_json
from rr.models.corrector import FINE, Corrector
from rr.train import loop

SEED = 2026  # of the embedded eyes it is trained on: other eyes than those of any preset


STAGES = ("near", "wide")


REAL = 1 / 3  # share of a training's images that are real photographs, where there are any


def prepare(batch, generator, training=True, wide=False):
    """(y, x, fov) for Corrector.loss, at SIZE px, from images of FINE px."""
    fov = F.avg_pool2d(batch.fov.float(), 2) == 1
    small = batch._replace(x=F.avg_pool2d(batch.x, 2), fov=fov)
    return randomised(small, generator, wide)[:3]


def make(
    out,
    photos=None,
    eyes=3000,
    epochs=(35, 20),
    batch=16,
    lr=(1e-3, 4e-4),
    ema=0.998,
    blurred=6000,
    seed=0,
    workers=1,
    fabric=None,
):
    """Train a Corrector on clean embedded eyes and the good photographs of a folder; returns the folder of its checkpoint.

    Three stages, of which the first two resume where they were interrupted: the U-Net with the cameras at hand, the U-Net with
    other cameras (`wide`), both for `epochs` passes with rates `lr`; then the estimate of blur, on as many degraded images as
    `blurred` says. eyes: embedded images drawn, of which those are used that nothing was done to. Raises InputError for a folder
    without photographs.
    """
    out = Path(out)
    source = sources.embedded(eyes, SEED)
    source = sources.joined(source, sources.good(photos)) if photos else source
    with fabric.rank_zero_first():  # the other processes find it packed
        packed = packing.pack(source, FINE, out / "data", workers=workers)
    rows, held, facts = training_rows(packed)
    torch.manual_seed(seed)
    model = Corrector()
    model.blur.requires_grad_(False)  # has its own training, in `finish`
    for stage in range(2):
        config = loop.Config(
            STAGES[stage], model, packed, rows, held, partial(prepare, wide=stage == 1),
            out / STAGES[stage], epochs[stage], batch, lr[stage], ema, seed, metadata=facts,
        )  # fmt: skip
        loop.run(config, fabric)
        facts = facts | {"after": read_json(out / STAGES[stage] / "config.json")["sha256"]}
    if fabric.is_global_zero:
        finish(out, packed, rows, blurred, seed)
    fabric.barrier()
    return out / "restorer"


def training_rows(packed):
    """(rows to train on, rows to validate on, facts): embedded eyes, and photographs repeated until they make up REAL."""
    rows = {split: packed.references(split) for split in data.SPLITS}
    drawn = packed.table["name"].str.startswith("embedded-").to_numpy()
    fit = np.concatenate(
        [rows["train"], rows["test"]]
    )  # presets test on other eyes, and 12_evaluation on other photographs
    eyes, real = fit[drawn[fit]], fit[~drawn[fit]]
    repeated = (
        np.tile(real, round(REAL / (1 - REAL) * len(eyes) / len(real))) if len(real) else real
    )
    val = rows["val"]
    held = np.concatenate([val[~drawn[val]], val[drawn[val]][:50]])
    facts = {"eyes": len(eyes), "photographs": len(real), "held_out": len(held)}
    return np.concatenate([eyes, repeated]), held, facts


def finish(out, packed, rows, blurred, seed):
    """Train the blur's estimate of the U-Net of the last stage and save the whole as out/restorer, with that stage's provenance.

    Of the last epoch, not of the best: on eyes like those at hand the loss is flat by then, on other cameras it still falls.
    """
    last = Path(out) / STAGES[-1] / "last"
    model = checkpoint.load(last, Corrector)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    features, sigmas = [], []
    while sum(map(len, sigmas)) < blurred:
        chosen = rng.choice(rows, 16)
        y, _, fov, sigma = randomised(
            data.Batch(packed.batch(chosen), None, packed.fov(chosen)), generator
        )
        features.append(model.blur.features(y, fov))
        sigmas.append(sigma)
    torch.manual_seed(seed)
    left = model.blur.fit(torch.cat(features), torch.cat(sigmas), generator)
    config = read_json(last / "config.json")
    stages = {
        name: read_json(Path(out) / name / "last" / "config.json")["provenance"] for name in STAGES
    }
    known = ("commit", "dirty", "code", "epochs", "epoch", "lr", "seconds")
    facts = {"stages": {name: {key: made[key] for key in known} for name, made in stages.items()}}
    facts["blur"] = {"images": blurred, "mean deviation of log(512 sigma + 1/2) in training": left}
    checkpoint.save(Path(out) / "restorer", model.eval(), config["provenance"], **facts)
    return Path(out) / "restorer"

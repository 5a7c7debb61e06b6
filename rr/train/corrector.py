"""Training of the recommended restorer, in three stages.

    near   the U-Net, with cameras like those of the training images
    wide   the U-Net, with cameras that differ more
    blur   the estimate of the blur width

The images are clean embedded eyes and, if a folder is given, clean photographs.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from rr import checkpoint
from rr.data import packing, sources
from rr.data.corrector_pairs import augment_and_degrade, half_size
from rr.data.dataset import Batch
from rr.files import read_json
from rr.models.corrector import Corrector
from rr.models.deconvolution import FINE
from rr.train import loop

SEED = 2026  # of the embedded eyes; no preset uses this seed
STAGES = ("near", "wide")
EPOCHS, LR = (35, 20), (1e-3, 4e-4)  # per stage
EMA = 0.998
PHOTOGRAPHS = 1 / 3  # share of the training images that are photographs, if there are any


def make(
    out, photos=None, eyes=3000, epochs=EPOCHS, batch=16, blurred=6000, seed=0, fabric=None
):  # fmt: skip
    """Train a Corrector and return the folder of its checkpoint, out/restorer.

    eyes: number of embedded eyes, of which the clean ones are used. blurred: number of images for
    the blur estimate. The first two stages resume if they were interrupted.
    Raises InputError for a folder without photographs.
    """
    out = Path(out)
    source = sources.embedded(eyes, SEED)
    source = sources.joined(source, sources.assume_readable(photos)) if photos else source
    with fabric.rank_zero_first():  # the other processes find the data packed
        packed = packing.pack(source, FINE, out / "data")
    rows, val_rows, metadata = split(packed)
    torch.manual_seed(seed)
    model = Corrector()
    model.blur.requires_grad_(False)
    for stage, wide in enumerate((False, True)):
        folder = out / STAGES[stage]
        config = loop.Config(
            STAGES[stage], model, packed, rows, val_rows, partial(half_size, wide=wide),
            folder, epochs[stage], batch, LR[stage], EMA, seed, metadata=metadata,
        )  # fmt: skip
        loop.run(config, fabric)
        metadata = metadata | {"after": checkpoint.read_config(folder)["sha256"]}
    if fabric.is_global_zero:
        add_blur_estimate(out, packed, rows, blurred, seed)
    fabric.barrier()
    return out / "restorer"


def split(packed):
    """Rows to train on, rows to validate on, and their numbers. Photographs are repeated."""
    # the test split is trained on, because all tests use other eyes and other photographs
    train = np.concatenate([packed.clean_rows("train"), packed.clean_rows("test")])
    val = packed.clean_rows("val")
    embedded = packed.table["name"].str.startswith("embedded-").to_numpy()
    eyes, photographs = train[embedded[train]], train[~embedded[train]]
    val = np.concatenate([val[~embedded[val]], val[embedded[val]][:50]])
    numbers = {"eyes": len(eyes), "photographs": len(photographs), "held_out": len(val)}
    if len(photographs):
        wanted = PHOTOGRAPHS / (1 - PHOTOGRAPHS) * len(eyes)
        photographs = np.tile(photographs, round(wanted / len(photographs)))
    return np.concatenate([eyes, photographs]), val, numbers


def add_blur_estimate(out, packed, rows, blurred, seed):
    """Train the blur estimate of the last stage's U-Net and save the model as out/restorer.

    The last epoch is used instead of the best one: the validation loss is flat by then, but the
    loss on other cameras still falls.
    """
    folders = {stage: out / stage / "last" for stage in STAGES}
    model = checkpoint.load(folders["wide"], Corrector)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    features, sigmas = [], []
    while sum(map(len, sigmas)) < blurred:
        chosen = rng.choice(rows, 16)
        batch = Batch(packed.batch(chosen), None, packed.fov(chosen))
        y, _, fov, sigma = augment_and_degrade(batch, generator)
        features.append(model.blur.features(y, fov))
        sigmas.append(sigma)
    torch.manual_seed(seed)
    deviation = fit_blur(model.blur, torch.cat(features), torch.cat(sigmas), generator)

    provenance = {
        stage: read_json(path / "config.json")["provenance"] for stage, path in folders.items()
    }
    keys = ("commit", "dirty", "code", "epochs", "epoch", "lr", "seconds")
    stages = {stage: {key: made[key] for key in keys} for stage, made in provenance.items()}
    blur = {
        "images": blurred,
        "mean deviation of log(512 sigma + 1/2) in training": deviation,
    }
    checkpoint.save(out / "restorer", model.eval(), provenance["wide"], stages=stages, blur=blur)


def fit_blur(estimate, features, sigma, generator, steps=3000, batch=128):
    """Fit a BlurEstimate to features (M, K) and sigma (M,); returns the final mean deviation.

    The network learns log(512 sigma + 1/2) by least absolute deviations.
    """
    target = (512 * sigma + 0.5).log()
    optimizer = torch.optim.AdamW(estimate.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    losses = []
    estimate.train()
    for _ in range(steps):
        rows = torch.randint(len(features), (batch,), generator=generator)
        loss = (estimate.head(features[rows])[:, 0] - target[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    estimate.eval()
    return sum(losses[-100:]) / 100

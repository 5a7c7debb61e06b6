"""Two parts of workflow/gpu: the GPU against the CPU, and the speed of every component.

    python workflow/gpu_parts.py check     preset mini on the GPU against the CPU
    python workflow/gpu_parts.py rates     images/s of every component in training

A call keeps what an earlier call with the same code has written to results/gpu.
"""

import copy
import sys
import tempfile
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import typer
from gpu import mean, sampled_load

from rr import files as io
from rr import restore, studies
from rr.data import degrade, packing, sources, synthetic
from rr.data.dataset import Packed, batches
from rr.data.photo import to_photograph, to_tensor
from rr.errors import InputError
from rr.models import bridge, diffusion, restorer, vae
from rr.presets import preset as choose_preset
from rr.provenance import code
from rr.train import configs, distributed, loop

COMPONENTS = {  # name: (key of configs.config, choices)
    "readability": ("readability", {}),
    "heldout": ("heldout", {}),
    "extractor": ("extractor", {}),
    "diffusion": ("diffusion", {}),
    "vae": ("vae", {}),
    **{
        f"restorer {row.backbone}": ("restorer", {"backbone": row.backbone, "extractor": "off"})
        for row in studies.STUDIES["backbones"]
    },
    "bridge": ("restorer", studies.BRIDGE._asdict()),
}
BATCH = 16  # images of a compared step
# Largest difference of a value on the GPU from the one on the CPU: relative for losses and gradient
# (its norm over all parameters), absolute for pixels in [0, 1]. "exact" is float32 without TF32,
# and float64 if a network has batch normalisation, which enlarges rounding errors of an untrained
# network ten-thousandfold. "as used" is bf16 in training, TF32 elsewhere. On a CPU, bf16 changes
# the loss by 0.04 at most and the validation by 0.009. Weights that are rounded like TF32 change
# them by 0.01 and 0.03, and a pixel by 0.04.
TOLERANCES = {
    "exact": {"loss": 1e-4, "gradient": 5e-3, "input": 1e-4, "restored": 1e-3},
    "as used": {"loss": 1e-1, "validation": 1e-1, "input": 1e-4, "restored": 1e-1,
                "photograph": 3e-2},
}  # fmt: skip

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# -------------------------------------------------------------------------------------------- check


@app.command()
def check(results: str = "results"):
    """Preset mini on this machine's device against its CPU; fails if a row does not agree."""
    p, folder = choose_preset("mini"), io.results("gpu", results)
    fabric, path, rows = distributed.fabric("auto"), folder / "check.csv", []
    made = {"code": code(), "device": str(fabric.device)}
    if path.is_file():
        table = pd.read_csv(path, dtype={"code": str})  # some consist of digits
        if (table[list(made)] == pd.Series(made)).all(axis=None) and table["agrees"].all():
            print(f"{path}: everything agrees already")
            return
    data = packing.pack(sources.embedded(p.n, 0), p.size, folder / "mini")
    for name, (component, choices) in COMPONENTS.items():
        if component == "restorer":
            choices = choices | {"extractor": "random"}  # c is not zero
        config = configs.config(component, p, data, folder, **choices)
        for precision, differences in compare(config, fabric).items():
            rows += [(name, precision, key, value) for key, value in differences.items()]
        print(f"{name}: compared", flush=True)
    rows.append(("recommended", "as used", "photograph", compare_recommended(fabric.device)))
    table = pd.DataFrame(rows, columns=["component", "precision", "value", "difference"])
    table["tolerance"] = [TOLERANCES[row.precision][row.value] for row in table.itertuples()]
    table["agrees"] = table["difference"] <= table["tolerance"]
    io.write_table(path, table.assign(**made))
    print(table.to_string(index=False))
    if not table["agrees"].all():
        raise typer.Exit(1)


def compare(config, fabric):
    """{precision: {value: its difference on the device of `fabric` from the CPU}}."""
    cpu, differences = distributed.fabric("cpu"), {}
    for precision, tolerances in TOLERANCES.items():
        torch.backends.cudnn.allow_tf32 = precision != "exact"
        expected, values = (step(config, f, precision == "exact") for f in (cpu, fabric))
        differences[precision] = row = {}
        for name in tolerances.keys() & values.keys():
            row[name] = (values[name] - expected[name]).abs().max().item()
            if name in ("loss", "gradient", "validation"):
                row[name] = ((values[name] - expected[name]).norm() / expected[name].norm()).item()
    return differences


def step(config, fabric, exact):
    """Loss, gradient and input of a training step; "restored": images that a restorer restores;
    unless exact, "validation": the loss after the whole training.

    The input of a paired restorer is a degraded image. Dropout is off and all noise is drawn on the
    CPU, so that two devices compute the same.
    """

    def noise(like, generator=None):
        return torch.randn(like.shape, generator=generator).to(like)

    model = copy.deepcopy(config.model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    training = replace(config, model=copy.deepcopy(model))
    model.to(fabric.device, memory_format=torch.channels_last)
    (batch,) = batches(config.data, [config.rows[:BATCH]], fabric.device)
    with ExitStack() as patches:
        for module in (diffusion, vae, bridge, restorer):
            patches.enter_context(mock.patch.object(module, "noise", noise))
        generator = distributed.seeded_generator(0)
        x, *others = config.prepare(batch, generator, True)
        if exact and any(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules()):
            model, x = model.double(), x.double()
        with nullcontext() if exact else fabric.autocast():
            loss = model.loss(x, *others, generator=generator)["loss"]
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        values = {"loss": loss, "gradient": torch.cat(gradients), "input": x}
        if isinstance(model, restorer.Restorer):
            generator = distributed.seeded_generator(1)
            values["restored"] = model.eval().restore(x, batch.fov, generator)
        if not exact:
            with tempfile.TemporaryDirectory() as folder:
                training.folder = Path(folder) / "training"
                *_, row = loop.train(training, fabric)
            values["validation"] = torch.tensor(row["val_loss"])
    return {name: value.detach().double().cpu() for name, value in values.items()}


def compare_recommended(device):
    """The largest difference of a pixel that `rr restore` makes on `device` and on the CPU."""
    eye = synthetic.fundus(0, 0, 384)
    parameters = degrade.sample(1, torch.Generator().manual_seed(0), severity=0.7)
    fov = torch.from_numpy(eye.fov)[None, None]
    photograph = to_photograph(degrade.apply(to_tensor(eye.image), parameters, fov))
    one, other = (
        restore.restore_photograph(restore.load(io.RECOMMENDED, place), photograph)[0]
        for place in (torch.device("cpu"), device)
    )
    return abs(one.astype(float) - other).max() / 255


# -------------------------------------------------------------------------------------------- rates


@app.command()
def rates(preset: str = "course", results: str = "results", seconds: float = 3):
    """Images/s of every component in training, in float32 and as used, for `seconds` each."""
    p, folder = choose_preset(preset), io.results(preset, results)
    path = io.results("gpu", results) / "rates.csv"
    data = Packed(folder / "data", p.size)
    before = pd.read_csv(path, dtype={"code": str}) if path.is_file() else pd.DataFrame()
    rows = before.to_dict("records")
    rows = [row for row in rows if (row["code"], row["preset"]) == (code(), preset)]
    for name, (component, choices) in COMPONENTS.items():
        if name in [row["component"] for row in rows]:
            continue
        row = {"component": name, "preset": preset}
        for column, autocast in (("float32", nullcontext), ("as_used", None)):
            fabric = distributed.fabric("auto")
            config = configs.config(component, p, data, folder, **choices)
            speed, in_steps, load = measure(config, fabric, seconds, autocast)
            row[f"images_per_s_{column}"] = round(speed, 1)
        row |= {"gpu_busy_percent": round(mean(load), 1), "in_steps_percent": round(100 * in_steps)}
        rows.append(row | {"device": str(fabric.device), "code": code()})
        io.write_table(path, pd.DataFrame(rows))
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def measure(config, fabric, seconds, autocast):
    """(images/s, share of the time in steps, load of the GPU) of a training, without its start.

    autocast: in place of the one of `fabric`.
    """
    images = len(config.rows) / config.steps
    with tempfile.TemporaryDirectory() as folder:
        config.folder, rates = Path(folder) / "training", []
        if autocast:
            fabric.autocast = autocast
        with closing(loop.train(config, fabric)) as training:
            next(training)
            started = time.perf_counter()
            with sampled_load(0.3) as load:
                for row in training:
                    rates.append(row["images_per_s"])
                    if time.perf_counter() - started > seconds:
                        break
        spent = time.perf_counter() - started
    counted = pd.Series(rates)[len(rates) // 2 :]
    return counted.median(), images * (1 / pd.Series(rates)).sum() / spent, load[len(load) // 3 :]


if __name__ == "__main__":
    try:
        app()
    except InputError as error:
        sys.exit(f"error: {error}")

"""The training loop, the same for every model: a generator that yields every step.

    config = configs.config("vae", preset, data, results_dir)    what is trained, and how
    for row in train(config, fabric):                            or `run`, with a progress bar
        print(row["step"], row["loss"])

An interrupted training continues after its last finished epoch. It ends with the same parameters
as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rr import checkpoint
from rr.data.dataset import Packed, batches
from rr.errors import InputError
from rr.files import read_json
from rr.train import distributed, state
from rr.train.distributed import slots


def adamw(parameters, lr):
    # a short memory of squared gradients (torch: 0.999) suits trainings of a few hundred steps
    return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)


def adamw_by_layer(parameters, lr):
    """AdamW whose rate is `lr` for biases, and lr / sqrt(n) for weights with n inputs.

    AdamW moves every weight by about its rate, whatever the gradient. Weights with n inputs start
    with a spread of about 1 / sqrt(n). At the rate of the biases, a few steps would replace them.
    A transposed convolution has the number of outputs of one input value as its n.
    """
    groups = {}  # scale of the rate: weights
    for weight in parameters:
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 1.0
        groups.setdefault(scale, []).append(weight)
    return adamw([{"params": weights, "scale": scale} for scale, weights in groups.items()], lr)


OPTIMIZERS = {
    "rmsprop": torch.optim.RMSprop,  # the classifier (2.2), with a constant rate
    "adamw": adamw,  # the recommended restorer
    "adamw-by-layer": adamw_by_layer,  # all others: not stated in the paper
}
WARM_UP = 50  # steps
DECAY = 0.4  # share of the training in which the rate falls

# Compiling a model takes 36 s to more than 100 s, measured on an H200 in presets mini and course. A
# gain of 10 ms per step, which has not been measured yet, repays 100 s after as many steps.
COMPILE_STEPS = 10_000


@dataclass(repr=False)
class Config:
    """What is trained, and how: everything that decides the result of one training."""

    component: str  # name of this training
    model: nn.Module  # has `arguments`, of its constructor, and `loss(*inputs, generator)`
    data: Packed
    rows: np.ndarray  # images of `data` to train on
    val_rows: np.ndarray  # images to validate on
    prepare: Callable  # (batch, generator, training) -> inputs of `loss`, see rr.data.pairs
    folder: Path  # of the checkpoint, see state.py
    epochs: float  # passes over the rows; 1.5 ends in the middle of the second
    batch: int  # images per step at most, over all processes
    lr: float
    ema: float  # decay of the averaged weights, which are validated and saved
    seed: int = 0
    optimizer: str = "adamw"  # a key of OPTIMIZERS
    metadata: dict = field(default_factory=dict)  # what else decides: pretrained weights, ...

    @property
    def steps(self):
        """Steps per epoch. They have the same number of images, give or take one."""
        return math.ceil(len(self.rows) / self.batch)

    @property
    def total(self):
        """Steps of the whole training."""
        return math.ceil(self.epochs * self.steps)

    def rate(self, step):
        """The learning rate at a step from 1. With AdamW it rises for WARM_UP steps, or a tenth of
        the training if that is shorter, and in the last DECAY of the training it falls to 0.
        """
        if self.optimizer == "rmsprop":
            return self.lr
        rise = min(1, step / min(WARM_UP, self.total / 10))
        return self.lr * rise * min(1, (1 - step / self.total) / DECAY)

    def entries(self):
        """{name: value} of what decides the result: recorded, and compared at a resume."""
        prepare = getattr(self.prepare, "func", self.prepare)  # of a functools.partial
        keywords = getattr(self.prepare, "keywords", {})
        names = ("epochs", "batch", "optimizer", "lr", "ema", "seed")
        return {
            "model": type(self.model).__name__,
            **{f"model.{name}": value for name, value in self.model.arguments.items()},
            "data": self.data.hash,
            "rows": len(self.rows),
            "val_rows": len(self.val_rows),
            "prepare": prepare.__name__,
            **{f"prepare.{name}": value for name, value in keywords.items()},
            **{name: getattr(self, name) for name in names},
            **self.metadata,
        }

    def __repr__(self):
        entries = {"training": self.component, **self.entries(), "folder": self.folder}
        return "\n".join(f"{name:17} {value}" for name, value in entries.items())


def train(config, fabric, micro=1, fresh=False):
    """Train config.model in place; yields a dict per step: epoch, step, loss, images_per_s.

    The dict of an epoch's last step has val_loss, too. In the end the model has the averaged
    weights of the epoch with the lowest val_loss. fabric: of distributed.fabric, launched. micro:
    micro-batches per step and process, to save memory. fresh: do not continue what was begun.
    """
    model, world, rank = config.model, fabric.world_size, fabric.global_rank
    distributed.check_images(config, fabric, micro)
    if fabric.device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # of fast convolutions
    trainable = [p for p in model.parameters() if p.requires_grad]
    module, optimizer = fabric.setup(model, OPTIMIZERS[config.optimizer](trainable, config.lr))
    module.mark_forward_method("loss")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer}
    progress = state.resume(config, parts, fabric, fresh)
    if compiled := compiles(config, fabric.device):
        compile_model(model)

    for epoch in range(progress.epochs, math.ceil(config.epochs)):
        model.train()
        order = np.random.default_rng([config.seed, epoch]).permutation(config.rows)
        step_rows = np.array_split(order, config.steps)[: config.total - progress.step]
        last_step = progress.step + len(step_rows)
        own_rows = [np.array_split(rows, world)[rank] for rows in step_rows]
        tick = time.perf_counter()
        for rows, share in zip(step_rows, batches(config.data, own_rows, fabric.device)):
            progress.step += 1
            losses, numbers = {}, (config.seed, progress.step)
            for batch, weight, generator, last in slots(share, len(rows), numbers, micro, fabric):
                inputs = config.prepare(batch, generator, True)
                with fabric.no_backward_sync(module, enabled=not last):
                    with fabric.autocast():  # Fabric applies it by itself only to `forward`
                        values = module.loss(*inputs, generator=generator)
                    fabric.backward(weight * values["loss"])
                for name, value in values.items():
                    losses[name] = losses.get(name, 0) + weight * value.detach()
            for group in optimizer.param_groups:
                group["lr"] = config.rate(progress.step) * group.get("scale", 1)
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
            row = {"epoch": epoch, "step": progress.step}
            row |= distributed.mean_over_processes(losses, fabric)
            row["images_per_s"] = len(rows) / (time.perf_counter() - tick)
            check_finite(row, config.lr)
            progress.log.append(row)
            if progress.step < last_step:
                yield row
            tick = time.perf_counter()
        distributed.average_buffers([*model.buffers(), *averaged.buffers()], fabric)
        row["val_loss"] = validate(averaged.module, config, fabric)
        if fabric.is_global_zero:
            state.save(config, parts, progress, fabric, micro)
        fabric.barrier()
        yield row

    best = checkpoint.load(config.folder, type(model), fabric.device)
    model.load_state_dict(best.state_dict())
    model.eval()
    if compiled:
        torch.compiler.set_stance("force_eager")  # no compilation for batches of other sizes


@torch.no_grad()
def validate(model, config, fabric):
    """The mean loss over config.val_rows, in evaluation mode, with the same noise at every call."""
    model.eval()
    rows, batch = config.val_rows, config.batch
    starts = range(fabric.global_rank * batch, len(rows), fabric.world_size * batch)
    shares = [rows[start : start + batch] for start in starts]
    total = torch.zeros((), dtype=torch.float64, device=fabric.device)
    for start, part in zip(starts, batches(config.data, shares, fabric.device)):
        generator = distributed.seeded_generator(0, start // batch, 0)
        inputs = config.prepare(part, generator, False)
        with fabric.autocast():
            total += len(part.x) * model.loss(*inputs, generator=generator)["loss"]
    return fabric.all_reduce(total, reduce_op="sum").item() / len(rows)


def check_finite(row, lr):
    """Raise InputError if the loss of a step is not a number."""
    if not math.isfinite(row["loss"]):
        raise InputError(
            f"loss is {row['loss']} at step {row['step']}; use a lower learning rate than {lr:g}"
        )


def compiles(config, device):
    """Whether a training is long enough to compile its model. A resumed call decides the same."""
    return device.type == "cuda" and config.total >= COMPILE_STEPS


def compile_model(model):
    """Compile the parts of a model that take most of the time, in place."""
    torch.compiler.set_stance("default")
    torch.compiler.reset()  # the compiler stops after eight graphs in one process
    for part in model.compile_targets:
        part.compile(dynamic=False)


def run(config, fabric, micro=1, fresh=False):
    """`train` to its end, with a progress bar; returns the log, see `history`.

    log.attrs["seconds"]: time of the whole training; log.attrs["before"]: the part of it in
    earlier, interrupted calls. Raises InputError if another process trains in the same folder, or
    if the memory of a GPU is too small.
    """
    started, folder = time.time(), config.folder
    hidden = not fabric.is_global_zero
    bar = tqdm(total=config.total, desc=config.component, unit="step", disable=hidden)
    with state.exclusive_folder(folder, fabric), bar:
        try:
            for row in train(config, fabric, micro, fresh):
                bar.update(row["step"] - bar.n)
                shown = {"epoch": f"{row['epoch'] + 1}/{config.epochs:.3g}"}
                shown |= {"loss": f"{row['loss']:.4g}", "images/s": f"{row['images_per_s']:.0f}"}
                bar.set_postfix(shown, refresh=False)
        except torch.OutOfMemoryError:
            raise InputError(
                f"out of memory with batches of {config.batch} images of {config.data.size} px; "
                f"use a smaller batch, or more than {micro} micro-batches (rr train --micro)"
            ) from None
    log = state.history(folder)
    log.attrs["seconds"] = read_json(folder / "last" / "config.json")["provenance"]["seconds"]
    log.attrs["before"] = max(0.0, log.attrs["seconds"] - (time.time() - started))
    return log

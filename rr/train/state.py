"""What a training keeps in its folder, and how it is continued from there.

    config.json, weights-*    the checkpoint of the epoch with the lowest validation loss
    history.csv               one row per step
    last/                     the checkpoint of the last epoch, and state.pt to resume from

The configuration decides whether a training is continued. The hash of the code is recorded in
config.json and decides nothing.
"""

import math
import pickle
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from rr import checkpoint
from rr import files as io
from rr.errors import InputError
from rr.files import remove_partial_files, write_table, writing
from rr.provenance import provenance


@dataclass
class Progress:
    """How far a training has come."""

    epochs: int = 0  # finished epochs
    step: int = 0
    best: float = math.inf  # the lowest val_loss
    seconds: float = 0.0  # spent in earlier calls
    started: float = field(default_factory=time.time)  # start of this call
    log: list = field(default_factory=list)  # one dict per step


def save(config, parts, progress, fabric, micro):
    """Write checkpoints, log and, at last, the state, after which the epoch counts as finished."""
    row, model = progress.log[-1], parts["averaged"].module
    started = progress.started - progress.seconds
    record = provenance(
        started=started, device=fabric.device, epoch=row["epoch"], processes=fabric.world_size,
        micro_batches=micro, **config.entries(),
    )  # fmt: skip
    numbers = {"epoch": row["epoch"], "val_loss": row["val_loss"]}
    if row["val_loss"] <= progress.best:
        progress.best = row["val_loss"]
        checkpoint.save(config.folder, model, record, **numbers)
    write_table(config.folder / "history.csv", pd.DataFrame(progress.log))
    checkpoint.save(config.folder / "last", model, record, **numbers)
    state = {}
    if row["step"] < config.total:  # nothing continues a finished training
        state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"epochs": row["epoch"] + 1, "step": progress.step, "best": progress.best}
    state |= {"seconds": time.time() - started, "config": config.entries()}
    save_state(config.folder, state)


def save_state(folder, state):
    """Write last/state.pt atomically."""
    with writing(folder / "last" / "state.pt") as temporary:
        torch.save(state, temporary)


def resume(config, parts, fabric, fresh=False):
    """Load the state in config.folder into `parts`; returns the Progress of this training.

    If the folder holds another training, or one that cannot be continued, it becomes
    <folder>.previous, and a line says why.
    """
    folder, progress = config.folder, Progress()
    if fabric.is_global_zero:
        remove_partial_files(folder)
        remove_partial_files(folder / "last")
        if reason := not_resumable(config, fresh):
            previous = folder.with_name(f"{folder.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
            tqdm.write(
                f"{folder}: {reason}; it is kept as {previous.name}, and a new training starts"
            )  # unlike print, it leaves a progress bar whole
    fabric.barrier()
    if (folder / "last" / "state.pt").is_file():
        state = load_state(folder)
        for name in parts.keys() & state.keys():
            parts[name].load_state_dict(state[name])
        for name in ("epochs", "step", "best", "seconds"):
            setattr(progress, name, state[name])
        progress.log = history(folder).query("step <= @progress.step").to_dict("records")
    step = torch.tensor(float(progress.step), device=fabric.device)
    if fabric.all_reduce(step.clone(), reduce_op="mean") != step:
        raise InputError(f"{folder}: the machines find different states; use a folder they share")
    return progress


def not_resumable(config, fresh):
    """Why config.folder holds something else than this training, in a few words; "" otherwise."""
    folder = config.folder
    if not any((folder / name).exists() for name in ("config.json", "last/state.pt")):
        return ""
    if fresh:
        return "a fresh training was asked for"
    try:
        before, now = load_state(folder)["config"], config.entries()
        checkpoint.load(folder, type(config.model))
        history(folder)
    except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines() or [repr(error)]
        return f"the training there cannot be continued ({reason[0]})"
    changes = [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]
    return f"holds a training with another configuration ({', '.join(changes)})" if changes else ""


def load_state(folder):
    """What `save_state` wrote, on the CPU."""
    return torch.load(folder / "last" / "state.pt", map_location="cpu", weights_only=True)


def history(folder):
    """The log of a training: one row per step; val_loss is NaN except at the end of an epoch."""
    return pd.read_csv(Path(folder) / "history.csv")


@contextmanager
def exclusive_folder(folder, fabric):
    """Within the block no other training writes into `folder`. The lock lies beside it."""
    lock, reason = io.folder(folder.parent) / f".{folder.name}.lock", ""
    with ExitStack() as stack:
        if fabric.is_global_zero:
            try:
                busy = f"{folder}: another process trains there"
                stack.enter_context(io.exclusive_lock(lock, busy, wait=False))
            except InputError as error:
                reason = str(error)
        if reason := fabric.broadcast(reason):
            raise InputError(reason)
        yield

"""One training loop for every component, on Lightning Fabric: a generator that yields every step.

A component is an nn.Module with `arguments` (those of its constructor) and `loss(batch, generator) -> {"loss": ...}`;
it augments, degrades or noises the batch by itself, with the generator it is given. All randomness of a step comes
from (seed, step), so a resumed run takes the same steps as an uninterrupted one; on a CPU with the same number of
threads it ends with the same parameters.
"""

import pickle
import sys
import time
from pathlib import Path
from typing import NamedTuple

import lightning
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rr import checkpoint
from rr.io import InputError, code, provenance, read_json, sweep, write_table, writing
from rr.presets import choose

OPTIMIZERS = {
    "rmsprop": torch.optim.RMSprop,  # the classifier (2.2)
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=1e-4, fused=True),  # elsewhere not stated
}


class Batch(NamedTuple):
    """x (B, 3, H, W) in [0, 1], labels (B, 4) of 0/1 (NaN: unknown), fov (B, 1, H, W) bool."""

    x: Tensor
    labels: Tensor
    fov: Tensor


def fabric(device="auto"):
    """Lightning Fabric on one device: bf16 autocast on a GPU, float32 on a CPU.

    device: "auto" | "cpu" | "cuda". Raises InputError for another name, and for a GPU that is not there.
    """
    choose("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda': torch sees no GPU here; use cpu or auto")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return lightning.Fabric(
        accelerator="cuda" if on_gpu else "cpu", devices=1, precision="bf16-mixed" if on_gpu else "32-true"
    )


def train(
    model,
    data,                    # data.Packed
    rows,                    # rows of `data` to train on
    val_rows,                # rows to validate on
    *,
    folder,                  # becomes the best checkpoint; folder/last holds the last one and the state to resume
    epochs,
    batch,                   # images per step, over all ranks
    lr,
    ema,                     # decay of the averaged weights; these are validated and saved
    seed=0,
    optimizer="adamw",       # a key of OPTIMIZERS
    fabric,                  # Fabric, already launched if it spans several processes
    facts=None,              # what else decides the result (weights used, ...): recorded, and compared at a resume
):
    """Train `model` in place; yields a dict per step (epoch, step, loss, images_per_s), at an epoch's end with val_loss.

    Ends with the averaged weights of the best epoch (lowest val_loss) in `model`. Continues after the last finished
    epoch if `folder` holds the state of a run with the same configuration, else starts afresh. The log lies in
    folder/history.csv. Raises InputError if there are fewer images than one batch, or the loss is not finite.
    """
    rows, val_rows, folder = np.asarray(rows), np.asarray(val_rows), Path(folder)
    if len(rows) < batch or len(val_rows) == 0:
        raise InputError(f"{len(rows)} training and {len(val_rows)} validation images for batches of {batch}: too few; "
                         "use more images or a smaller batch")
    if batch % fabric.world_size:
        raise InputError(f"batch of {batch}: cannot be shared by {fabric.world_size} processes; use a multiple of them")
    config = {"code": _code(type(model)), "component": type(model).__name__, "arguments": model.arguments,
              "epochs": epochs, "batch": batch, "lr": lr, "ema": ema, "seed": seed,
              "optimizer": optimizer, "data": data.hash, "rows": len(rows), **(facts or {})}
    started = time.time()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
    averaged = averaged.to(fabric.device)
    opt = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    module, opt = fabric.setup(model, opt)
    module.mark_forward_method("loss")

    step, first, best, history, spent = 0, 0, float("inf"), [], 0.0
    state, log = _resume(folder, config, type(model))
    if state is not None:
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        opt.load_state_dict(state["optimizer"])
        step, first, best, spent = (state[key] for key in ("step", "epoch", "best", "seconds"))
        history = log.query("step <= @step").to_dict("records")

    for epoch in range(first, epochs):
        model.train()
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        share = batch // fabric.world_size
        for start in range(0, len(order) - batch + 1, batch):  # a last partial batch is left out: equal weights
            tick = time.perf_counter()
            step += 1
            generator = _generator(seed, step, fabric.global_rank)
            here = order[start + fabric.global_rank * share :][:share]
            parts = module.loss(_batch(data, here, fabric.device), generator)
            values = {key: value.item() for key, value in parts.items()}
            if not np.isfinite(values["loss"]):
                raise InputError(f"loss is {values['loss']} at step {step}; lower the learning rate ({lr}) and run again")
            opt.zero_grad(set_to_none=True)
            fabric.backward(parts["loss"])
            opt.step()
            averaged.update_parameters(model)
            row = {"epoch": epoch, "step": step, **values, "images_per_s": batch / (time.perf_counter() - tick)}
            if start + 2 * batch > len(order):  # the epoch's last step
                row["val_loss"] = validate(averaged.module, data, val_rows, batch, fabric)
            history.append(row)
            if "val_loss" not in row:
                yield row
        if fabric.is_global_zero:
            kept = provenance(started=started - spent, device=fabric.device, epoch=epoch, **config)
            if row["val_loss"] <= best:
                checkpoint.save(folder, averaged.module, kept, epoch=epoch, val_loss=row["val_loss"])
            best = min(best, row["val_loss"])
            write_table(folder / "history.csv", pd.DataFrame(history))
            checkpoint.save(folder / "last", averaged.module, kept, epoch=epoch, val_loss=row["val_loss"])
            _save_state(folder, config, model=model.state_dict(), averaged=averaged.state_dict(),
                        optimizer=opt.state_dict(), step=step, epoch=epoch + 1, best=best,
                        seconds=time.time() - started + spent)
        fabric.barrier()
        yield row
    model.load_state_dict(checkpoint.load(folder, type(model)).state_dict())
    model.eval()


def run(title, model, data, rows, val_rows, *, folder, epochs, batch, **options):
    """`train` to its end, behind a progress bar with loss and images/s; returns the log, see `history`.

    log.attrs["seconds"]: what the training took in all; log.attrs["before"]: how much of it in earlier, interrupted runs.
    """
    from tqdm import tqdm

    started = time.time()
    steps = train(model, data, rows, val_rows, folder=folder, epochs=epochs, batch=batch, **options)
    with tqdm(total=epochs * (len(rows) // batch), desc=title, unit="step", mininterval=1) as bar:
        for row in steps:
            bar.update(row["step"] - bar.n)
            bar.set_postfix({"epoch": f"{row['epoch'] + 1}/{epochs}", "loss": f"{row['loss']:.4g}",
                             "images/s": f"{row['images_per_s']:.0f}"}, refresh=False)
    log = history(folder)
    log.attrs["seconds"] = read_json(Path(folder) / "last" / "config.json")["provenance"]["seconds"]
    log.attrs["before"] = max(0.0, log.attrs["seconds"] - (time.time() - started))
    return log


@torch.no_grad()
def validate(model, data, rows, batch, fabric):
    """Mean loss over `rows` in evaluation mode; the same noise and degradations at every call."""
    model.eval()
    total = 0.0
    for number, start in enumerate(range(0, len(rows), batch)):
        part = rows[start : start + batch]
        with fabric.autocast():
            loss = model.loss(_batch(data, part, fabric.device), _generator(0, number, 0))["loss"]
        total += loss.item() * len(part)
    return total / len(rows)


def history(folder):
    """The log of a training: one row per step; val_loss is NaN but at the end of an epoch."""
    return pd.read_csv(Path(folder) / "history.csv")


def _code(component):
    """Hash of the code that a training of `component` runs, see io.code; a class typed into a notebook has no file."""
    file = getattr(sys.modules[component.__module__], "__file__", None)
    return code("train", *([file] if file else []))


def _batch(data, rows, device):
    return Batch(data.batch(rows, device), data.labels[rows].to(device), data.fov(rows, device))


def _generator(*numbers):
    """A CPU generator of its own for these numbers; the global one (dropout) is set alike."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def _save_state(folder, config, **state):
    with writing(folder / "last" / "state.pt") as part:
        torch.save({"config": repr(config), **state}, part)


def _resume(folder, config, component):
    """(state, log) of a run with the same configuration; (None, None), and a line that says why, if there is none."""
    for place in (folder, folder / "last"):
        sweep(place)
    path = folder / "last" / "state.pt"
    if not path.is_file():
        return None, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != repr(config):
            print(f"{folder}: made with another configuration or code; training afresh")
            return None, None
        checkpoint.load(folder, component)
        return state, history(folder)
    except (InputError, OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        print(f"{folder}: cannot be continued ({str(error).splitlines()[0] if str(error) else error!r}); training afresh")
        return None, None

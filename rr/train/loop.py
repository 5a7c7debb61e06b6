"""One training loop for every component, on Lightning Fabric: a generator that yields every step.

A component is an nn.Module with `arguments` (those of its constructor) and `loss(batch, generator) -> {"loss": ...}`, a mean
over the batch; it augments, degrades or noises the batch by itself, with the generator it is given. A step's images are
divided into slots, one per process and micro-batch, and all randomness of a slot comes from (seed, step, slot): a resumed
run takes the same steps as an uninterrupted one, and two processes take those of one process with two micro-batches. On a
CPU with the same number of threads it ends with the same parameters. (Batch normalisation uses the statistics of its slot.)

Several processes share a step's images (DDP), and if asked also parameters, gradients and the optimizer's state (FSDP):

    rr train COMPONENT --devices 8                                                               one machine
    torchrun --nnodes 2 --nproc-per-node 8 ... -m rr train COMPONENT --devices 8 --nodes 2       torchrun, on each machine
    srun --nodes 2 --ntasks-per-node 8 rr train COMPONENT --devices 8 --nodes 2                  SLURM
"""

import copy
import math
import os
import pickle
import time
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rr import checkpoint
from rr import files as io
from rr.data.dataset import Batch, batches
from rr.errors import InputError, choose
from rr.files import read_json, remove_partial_files, write_table, writing
from rr.provenance import provenance

OPTIMIZERS = {
    "rmsprop": torch.optim.RMSprop,  # the classifier (2.2)
    "adamw": lambda parameters, lr: torch.optim.AdamW(
        parameters, lr, weight_decay=1e-4, fused=True
    ),  # elsewhere not stated
}
STRATEGIES = {
    "ddp": lambda world: DDPStrategy(gradient_as_bucket_view=True),
    "fsdp": lambda world: ModelParallelStrategy(
        _sharded, data_parallel_size=world, tensor_parallel_size=1
    ),
}
BATCH_NORM = nn.BatchNorm1d, nn.BatchNorm2d
EVERY = 20  # steps between two looks at a GPU's losses: each look waits for the GPU
WHOLE = StateDictOptions(full_state_dict=True)  # of sharded tensors: gathered from all processes


def fabric(device="auto", devices=1, nodes=1, strategy="ddp"):
    """Lightning Fabric on `devices` devices of each of `nodes` machines: bf16 autocast on GPUs, float32 on a CPU.

    device: "auto" | "cpu" | "cuda". strategy, of several devices: "ddp", every process holds the whole component, or "fsdp"
    (PyTorch's fully_shard), each a share of it. Several have to be launched: `fabric.launch()`. Raises InputError for other
    names, for GPUs that are not there, and for other numbers than those that torchrun or srun have started.
    """
    choose("device", device, ("auto", "cpu", "cuda"))
    shared = choose("strategy", strategy, STRATEGIES)
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda': torch sees no GPU here; use cpu or auto")
    if devices < 1 or nodes < 1:
        raise InputError(f"{devices} devices on {nodes} nodes: at least one of each")
    started = os.environ.get(
        "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_STEP_NUM_TASKS"
    )
    if not started and (
        nodes > 1 or devices > 1 and "SLURM_JOB_ID" in os.environ
    ):  # Lightning would wait for those of srun
        raise InputError(
            f"{devices} devices on {nodes} nodes: start the command with torchrun or srun"
        )
    if started and int(started) != devices * nodes:
        raise InputError(
            f"{devices} devices on {nodes} nodes, and {started} processes from torchrun or srun; start as many"
        )
    if strategy == "fsdp" and devices * nodes == 1:
        raise InputError(
            "fsdp: divides a component among several devices; ask for more, or for ddp"
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu and devices > torch.cuda.device_count():
        raise InputError(
            f"{devices} devices: torch sees {torch.cuda.device_count()} GPUs here; ask for as many, or for cpu"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*srun. command is available.*")  # nobody has to use it
        return lightning.Fabric(
            accelerator="cuda" if on_gpu else "cpu", devices=devices, num_nodes=nodes,
            precision="bf16-mixed" if on_gpu else "32-true", strategy=shared(devices * nodes) if devices * nodes > 1 else "auto",
        )  # fmt: skip


def _sharded(module, mesh):
    module.to(
        memory_format=torch.contiguous_format
    )  # parameters: it shares no others. Images stay as they are
    fully_shard(module, mesh=mesh["data_parallel"])
    register_fsdp_forward_method(module, "loss")
    return module


def train(
    model,
    data,  # data.Packed
    rows,  # rows of `data` to train on
    val_rows,  # rows to validate on
    *,
    prepare,  # a function of rr.data.pairs: (batch, generator, training) => what `loss` takes
    folder,  # becomes the best checkpoint; folder/last holds the last one and the state to resume
    epochs,
    batch,  # images per step at most, over all processes
    lr,
    ema,  # decay of the averaged weights; these are validated and saved
    seed=0,
    optimizer="adamw",  # a key of OPTIMIZERS
    fabric,  # Fabric, already launched if it spans several processes
    facts=None,  # what else decides the result (weights used, ...): recorded, and compared at a resume
    micro=1,  # micro-batches per step and process; doubled until a step fits into memory
):
    """Train `model` in place; yields a dict per step (epoch, step, loss, images_per_s), at an epoch's end with val_loss.

    An epoch sees every row once, in ceil(rows / batch) steps of equal size, give or take one image. On a GPU the component's
    `hot` modules are compiled, and steps are yielded EVERY few. A step that does not fit into memory is divided into twice
    as many micro-batches, whose gradients add up to the same mean, and a line says so.

    Ends with the averaged weights of the best epoch (lowest val_loss) in `model`. Continues after the last finished
    epoch if `folder` holds the state of a run with the same configuration, else starts afresh. The log lies in
    folder/history.csv. Raises InputError if there are fewer images than one batch, the loss is not finite, or not even
    the smallest micro-batches fit into memory.
    """
    rows, val_rows, folder = np.asarray(rows), np.asarray(val_rows), Path(folder)
    if len(rows) < batch or len(val_rows) == 0:
        raise InputError(
            f"{len(rows)} training and {len(val_rows)} validation images for batches of {batch}: too few; "
            "use more images or a smaller batch"
        )
    world, rank, device, component = (
        fabric.world_size,
        fabric.global_rank,
        fabric.device,
        type(model),
    )
    steps = math.ceil(len(rows) / batch)  # per epoch
    least = len(rows) // steps // world  # images that a process has of a step
    normalised = any(
        isinstance(part, BATCH_NORM) for part in model.modules()
    )  # by the variance of a slot's images, two at least
    needed, most = (2, least // 2) if normalised else (1, math.ceil(batch / world))
    if least < needed:
        raise InputError(
            f"batch of {batch}: cannot be shared by {world} processes; use at least {needed * world} images"
        )
    micro = min(micro, most)
    config = {
        "component": component.__name__,
        "arguments": model.arguments,
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "ema": ema,
        "seed": seed,
        "optimizer": optimizer,
        "data": data.hash,
        "rows": len(rows),
        **(facts or {}),
    }
    started = time.time()
    averaged = whole = copy.deepcopy(model).to(
        device
    )  # `whole` has all of the averaged weights at an epoch's end
    module = fabric.setup_module(model)
    module.mark_forward_method("loss")
    if isinstance(next(model.parameters()), DTensor):
        averaged = _sharded(copy.deepcopy(whole), fabric.strategy.device_mesh)
    probe = model if whole is averaged else whole
    average = averaging(averaged, model, ema)
    if device.type == "cuda":
        compiled(model)
    opt = fabric.setup_optimizers(
        OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad], lr=lr)
    )

    step, first, best, history, spent = 0, 0, float("inf"), [], 0.0
    state, log = _resume(folder, config, component)
    if state is not None:
        set_model_state_dict(model, state["model"], options=WHOLE)
        set_model_state_dict(averaged, state["averaged"], options=WHOLE)
        set_optimizer_state_dict(model, opt.optimizer, state["optimizer"], options=WHOLE)
        step, first, best, spent = (state[key] for key in ("step", "epoch", "best", "seconds"))
        history = log.query("step <= @step").to_dict("records")
    if fabric.all_reduce(torch.tensor(float(step), device=device), reduce_op="mean").item() != step:
        raise InputError(
            f"{folder}: does not hold the same state on all machines; use a folder that all of them see"
        )

    at_once, trials = (
        batch,
        2,
    )  # images in validation; before the second step the optimizer has its state
    for epoch in range(first, epochs):
        model.train()
        parts = np.array_split(np.random.default_rng([seed, epoch]).permutation(rows), steps)
        mine = [np.array_split(part, world)[rank] for part in parts]
        pending, images, tick = [], 0, time.perf_counter()  # since the last look at the losses
        for part, share in zip(parts, batches(data, mine, device)):
            step += 1
            if trials:
                micro, trials = (
                    _fitting(probe, prepare, share, len(part), (seed, step), micro, most, fabric),
                    trials - 1,
                )
            losses = _gradients(module, prepare, share, len(part), (seed, step), micro, fabric)
            opt.step()
            opt.zero_grad()
            average(first=step == 1)
            pending.append(torch.stack(list(losses.values())).float())
            images += len(part)
            if device.type == "cuda" and len(pending) < EVERY and step % steps:
                continue
            found = fabric.all_reduce(torch.stack(pending), reduce_op="mean").tolist()
            speed = images / (time.perf_counter() - tick)
            for number, values in enumerate(found, step + 1 - len(found)):
                row = {
                    "epoch": epoch,
                    "step": number,
                    **dict(zip(losses, values)),
                    "images_per_s": speed,
                }
                if not np.isfinite(row["loss"]):
                    raise InputError(
                        f"loss is {row['loss']} at step {number}; lower the learning rate ({lr}) and run again"
                    )
                history.append(row)
                if number % steps:
                    yield row
            pending, images, tick = [], 0, time.perf_counter()
        _share_statistics([*model.buffers(), *averaged.buffers()], fabric)
        if whole is not averaged:
            whole.load_state_dict(get_model_state_dict(averaged, options=WHOLE))
        row["val_loss"], at_once = validate(whole, prepare, data, val_rows, at_once, fabric)
        state = {"model": get_model_state_dict(model, options=WHOLE), "averaged": whole.state_dict(),
                 "optimizer": get_optimizer_state_dict(model, opt.optimizer, options=WHOLE)}  # fmt: skip
        if rank == 0:
            kept = provenance(
                started=started - spent,
                device=device,
                epoch=epoch,
                processes=world,
                micro_batches=micro,
                **config,
            )
            if row["val_loss"] <= best:
                checkpoint.save(folder, whole, kept, epoch=epoch, val_loss=row["val_loss"])
            write_table(folder / "history.csv", pd.DataFrame(history))
            checkpoint.save(folder / "last", whole, kept, epoch=epoch, val_loss=row["val_loss"])
            _save_state(
                folder,
                config,
                **state,
                step=step,
                epoch=epoch + 1,
                best=min(best, row["val_loss"]),
                seconds=time.time() - started + spent,
            )
        best = min(best, row["val_loss"])
        fabric.barrier()
        yield row
    set_model_state_dict(
        model, checkpoint.load(folder, component, device).state_dict(), options=WHOLE
    )
    model.eval()
    if device.type == "cuda":
        torch.compiler.set_stance(
            "force_eager"
        )  # what follows has batches of all sizes, each of which would be compiled


def _share_statistics(buffers, fabric):
    """Give every process the mean of all (batch normalisation's statistics), so that all validate, and resume, one model."""
    if fabric.world_size > 1:
        for buffer in buffers:
            if buffer.is_floating_point():
                buffer.copy_(fabric.all_reduce(buffer.clone(), reduce_op="mean"))


def _slots(share, numbers, micro, fabric):
    """Yield the micro-batches of this process's share of a step, each with its number of images and its generator.

    One without images, where the share has fewer than `micro`, yields an image that counts 0: all processes go in step.
    """
    for k, part in enumerate(zip(*(values.tensor_split(micro) for values in share))):
        n, generator = len(part[0]), _generator(*numbers, fabric.global_rank * micro + k)
        yield n, Batch(*part) if n else Batch(*(values[:1] for values in share)), generator


def _gradients(module, prepare, share, n, numbers, micro, fabric):
    """Add up the gradients of the mean loss of a step of n images, of which `share` are this process's.

    Returns {name: loss}, which averaged over the processes are the step's losses.
    """
    world, losses = fabric.world_size, {}
    for k, (size, part, generator) in enumerate(_slots(share, numbers, micro, fabric)):
        weight = size * world / n  # processes are averaged, wanted is the mean over images
        inputs = prepare(part, generator, True)
        with fabric.no_backward_sync(module, enabled=world > 1 and k < micro - 1):
            with fabric.autocast():  # Fabric's wrapper does so for `forward` alone
                values = module.loss(*inputs, generator=generator)
            fabric.backward(weight * values["loss"])
        losses = {
            name: losses.get(name, 0) + weight * value.detach() for name, value in values.items()
        }
    return losses


def _fitting(probe, prepare, share, n, numbers, micro, most, fabric):
    """How many micro-batches, from `micro` to `most`, a step of n images needs to fit into every process's memory.

    Tried on `probe`, a module that waits for no other process, which may have run out of memory; it is left as it was.
    """
    parameters = [p for p in probe.parameters() if p.requires_grad]

    def attempt():
        for _, part, generator in _slots(share, numbers, micro, fabric):
            inputs = prepare(part, generator, True)
            with fabric.autocast():
                loss = probe.loss(*inputs, generator=generator)["loss"]
            torch.autograd.grad(loss, parameters, allow_unused=True)

    probe.train()
    before = [buffer.clone() for buffer in probe.buffers()]
    while not _fits(attempt, fabric):
        if micro == most:
            raise InputError(f"out of memory with {most} micro-batches per process, the most that a step of {n} images has; "
                             "train a smaller component or on smaller images")  # fmt: skip
        micro = min(2 * micro, most)
        if fabric.is_global_zero:
            print(
                f"out of memory: the step's {n} images are taken in {micro} micro-batches per process"
            )
    for buffer, value in zip(probe.buffers(), before):
        buffer.copy_(value)
    return micro


def _fits(call, fabric):
    """Whether call() finds enough memory in every process; none goes on before all of them know."""
    try:
        call()
        failed = 0.0
    except torch.OutOfMemoryError:
        failed = 1.0
    if failed:
        torch.cuda.empty_cache()
    return (
        fabric.all_reduce(torch.tensor(failed, device=fabric.device), reduce_op="sum").item() == 0
    )


def run(title, model, data, rows, val_rows, *, prepare, folder, epochs, batch, **options):
    """`train` to its end, behind a progress bar with loss and images/s; returns the log, see `history`.

    log.attrs["seconds"]: what the training took in all; log.attrs["before"]: how much of it in earlier, interrupted runs.
    Raises InputError while another process trains in `folder`.
    """
    from tqdm import tqdm

    started, fabric = time.time(), options["fabric"]
    steps = train(
        model,
        data,
        rows,
        val_rows,
        prepare=prepare,
        folder=folder,
        epochs=epochs,
        batch=batch,
        **options,
    )
    silent, total = not fabric.is_global_zero, epochs * math.ceil(len(rows) / batch)
    bar = tqdm(total=total, desc=title, unit="step", mininterval=1, disable=silent)
    with _alone(folder, fabric), bar:
        for row in steps:
            bar.update(row["step"] - bar.n)
            bar.set_postfix(
                {
                    "epoch": f"{row['epoch'] + 1}/{epochs}",
                    "loss": f"{row['loss']:.4g}",
                    "images/s": f"{row['images_per_s']:.0f}",
                },
                refresh=False,
            )
    log = history(folder)
    log.attrs["seconds"] = read_json(Path(folder) / "last" / "config.json")["provenance"]["seconds"]
    log.attrs["before"] = max(0.0, log.attrs["seconds"] - (time.time() - started))
    return log


@contextmanager
def _alone(folder, fabric):
    """Within the block no other training writes into `folder`."""
    with ExitStack() as stack:
        reason = ""
        if fabric.is_global_zero:
            try:
                stack.enter_context(
                    io.exclusive_lock(
                        io.folder(folder) / ".lock",
                        f"{folder}: another process trains there",
                        wait=False,
                    )
                )
            except InputError as error:
                reason = str(error)
        if reason := fabric.broadcast(reason):
            raise InputError(reason)
        yield


@torch.no_grad()
def validate(model, prepare, data, rows, batch, fabric):
    """(mean loss over `rows`, batch): in evaluation mode, shared by the processes; the same noise at every call.

    The batch, images that a process takes at once, is halved until it fits into memory.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=fabric.device)

    def add_up():
        total.zero_()
        starts = range(fabric.global_rank * batch, len(rows), fabric.world_size * batch)
        for start, share in zip(
            starts, batches(data, [rows[start : start + batch] for start in starts], fabric.device)
        ):
            generator = _generator(0, start // batch, 0)
            inputs = prepare(share, generator, False)
            with fabric.autocast():
                total.add_(len(share.x) * model.loss(*inputs, generator=generator)["loss"])

    while not _fits(add_up, fabric):
        if batch == 1:
            raise InputError(
                "out of memory with single images in validation; train a smaller component or on smaller images"
            )
        batch = math.ceil(batch / 2)
        if fabric.is_global_zero:
            print(f"out of memory: validation takes {batch} images at once")
    return fabric.all_reduce(total, reduce_op="sum").item() / len(rows), batch


def history(folder):
    """The log of a training: one row per step; val_loss is NaN but at the end of an epoch."""
    return pd.read_csv(Path(folder) / "history.csv")


def compiled(model):
    """Have the `hot` parts of a component on a GPU compiled, in place: their weights keep their names."""
    torch.compiler.set_stance("default")
    torch.compiler.reset()  # the compiler counts the graphs of a process, and gives up at eight
    for part in model.hot:
        part.compile(dynamic=False)  # steps of two sizes, that differ by one image


def averaging(averaged, model, decay):
    """A function that moves the weights and buffers of `averaged` towards those of `model`; the first time it copies them.

    The arithmetic is torch's. Its AveragedModel does the same, but makes the GPU wait in every step and mixes sharded tensors
    with others.
    """
    towards, groups = get_ema_multi_avg_fn(decay), {}
    for mine, current in zip(
        [*averaged.parameters(), *averaged.buffers()],
        [*model.parameters(), *model.buffers()],
        strict=True,
    ):
        mine, current = mine.detach(), current.detach()
        group = groups.setdefault((type(mine), mine.dtype), ([], []))
        group[0].append(mine)
        group[1].append(current)

    @torch.no_grad()
    def average(first=False):
        for mine, current in groups.values():
            if not first and mine[0].is_floating_point():
                towards(mine, current, None)
            else:
                for one, other in zip(mine, current):
                    one.copy_(other)

    return average


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
        remove_partial_files(place)
    path = folder / "last" / "state.pt"
    if not path.is_file():
        return None, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != repr(config):
            print(f"{folder}: made with another configuration; training afresh")
            return None, None
        checkpoint.load(folder, component)
        return state, history(folder)
    except (
        InputError,
        OSError,
        EOFError,
        RuntimeError,
        KeyError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        print(
            f"{folder}: cannot be continued ({str(error).splitlines()[0] if str(error) else error!r}); training afresh"
        )
        return None, None

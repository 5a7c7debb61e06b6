"""Several processes train one model (DDP): launch, division of the images, means over processes.

The images of a step are divided into slots: one slot per process and micro-batch. All random
numbers of a slot come from (seed, step, slot). So two processes compute the same as one process
with two micro-batches, and a resumed training computes the same as an uninterrupted one. Batch
normalisation uses the statistics of its slot.

    one machine               rr train COMPONENT --devices 8
    torchrun, each machine    torchrun --nnodes 2 --nproc-per-node 8 ... \\
                                  -m rr train COMPONENT --devices 8 --nodes 2
    SLURM                     srun --nodes 2 --ntasks-per-node 8 \\
                                  rr train COMPONENT --devices 8 --nodes 2
"""

import os
import warnings

import numpy as np
import torch
from torch import nn

from rr.data.dataset import Batch
from rr.errors import InputError, choose


def fabric(device="auto", devices=1, nodes=1):
    """Lightning Fabric on `devices` devices of each of `nodes` machines.

    It computes in bf16 on GPUs and in float32 on a CPU. device: "auto" | "cpu" | "cuda". If there
    are several devices, call `.launch()`. Raises InputError for devices that do not exist, and if
    torchrun or srun have started another number of processes.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    choose("device", device, ("auto", "cpu", "cuda"))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    asked, world = f"{devices} devices on {nodes} nodes", devices * nodes
    if device == "cuda" and not on_gpu:
        raise InputError("device 'cuda': torch finds no GPU on this machine; use cpu or auto")
    if world < 1:
        raise InputError(f"{asked}: use at least one of each")
    if on_gpu and devices > torch.cuda.device_count():
        raise InputError(f"{asked}: this machine has {torch.cuda.device_count()} GPUs; use fewer")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    started = os.environ.get("WORLD_SIZE" if by_torchrun else "SLURM_STEP_NUM_TASKS")
    in_slurm = "SLURM_JOB_ID" in os.environ  # there Lightning would wait for the processes of srun
    if not started and (nodes > 1 or devices > 1 and in_slurm):
        raise InputError(f"{asked}: start the command with torchrun or srun")
    if started and int(started) != world:
        raise InputError(f"{asked}: torchrun or srun started {started} processes; start {world}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*srun. command is available.*")
        return Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            devices=devices,
            num_nodes=nodes,
            precision="bf16-mixed" if on_gpu else "32-true",
            strategy=DDPStrategy(gradient_as_bucket_view=True) if world > 1 else "auto",
        )


def check_images(config, fabric, micro):
    """Raise InputError if there are too few images for a step, or for its division into slots.

    A slot needs one image, or two for the variance if the model has batch normalisation.
    """
    rows, val_rows = len(config.rows), len(config.val_rows)
    if rows < config.batch or val_rows == 0:
        raise InputError(
            f"{rows} training and {val_rows} validation images are too few for batches of "
            f"{config.batch}; use more images or a smaller batch"
        )
    batch_norm = nn.BatchNorm1d, nn.BatchNorm2d
    normalised = any(isinstance(part, batch_norm) for part in config.model.modules())
    needed, slots, n = 1 + normalised, fabric.world_size * micro, rows // config.steps
    if n < needed * slots:
        raise InputError(
            f"{n} images of a step cannot be divided into {slots} parts (processes x "
            f"micro-batches) of at least {needed}; use a batch of {needed * slots} or more"
        )


def seeded_generator(*numbers):
    """A CPU generator that is seeded from `numbers`; so is the global generator, for dropout."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def slots(share, n, numbers, micro, fabric):
    """Yield (Batch, weight, generator, last) for each micro-batch of this process's share.

    n: images of the step in all processes. The sum of weight * loss, averaged over the processes,
    is the mean loss of the n images. numbers: (seed, step).
    """
    for k, parts in enumerate(zip(*(values.tensor_split(micro) for values in share))):
        generator = seeded_generator(*numbers, fabric.global_rank * micro + k)
        yield Batch(*parts), len(parts[0]) * fabric.world_size / n, generator, k == micro - 1


def mean_over_processes(losses, fabric):
    """{name: mean over the processes as a float} of a dict of losses, scalar tensors."""
    values = fabric.all_reduce(torch.stack(list(losses.values())).float(), reduce_op="mean")
    return dict(zip(losses, values.tolist()))


def average_buffers(buffers, fabric):
    """Replace the statistics of batch normalisation by their mean over the processes."""
    for buffer in buffers:
        if fabric.world_size > 1 and buffer.is_floating_point():
            buffer.copy_(fabric.all_reduce(buffer.clone(), reduce_op="mean"))

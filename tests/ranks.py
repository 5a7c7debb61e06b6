"""A training in one or several processes: `python tests/ranks.py '{"out": ..., ...}'`.

tests/test_distributed.py runs it. Fabric starts this script once more for every further process;
torchrun and srun start all of them.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rr import checkpoint
from rr.data.dataset import Packed
from rr.presets import preset
from rr.train import configs, distributed, loop


class Plain(nn.Module):
    """Draws nothing and mixes no images: the gradients do not depend on the division of a step."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1)
        )
        self.net(torch.zeros(1, 3, 80, 80))
        self.register_buffer("unused", torch.zeros(3))  # DDP sends buffers to all processes

    def loss(self, x, labels, generator):
        return {"loss": (self.net(x)[:, 0] - labels[:, 0]).square().mean()}


def prepare(batch, generator, training):
    return batch.x, batch.labels


def main(out, data, component, devices=1, micro=1, epochs=2, batch=8, die=0, **choices):
    """Train into `out`; write the first weights, and the rows that every process saw.

    die: the last process kills itself after so many steps. choices: see configs.config.
    """
    fabric = distributed.fabric("cpu", devices)
    fabric.launch()
    torch.set_num_threads(1)  # sums depend on the number of threads
    out, data = Path(out), Packed(data)
    if component == "plain":
        torch.manual_seed(0)
        rows = data.labelled("train")[:45], data.labelled("val")  # steps of 7 and of 8 images
        config = loop.Config(
            component, Plain(), data, *rows, prepare, out, epochs, batch, lr=1e-2, ema=0.9
        )
    else:
        config = configs.config(component, preset("mini", batch=batch), data, out, **choices)
        config.folder, config.epochs = out, epochs
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        weights = config.model.state_dict().items()
        save_file({name: value.contiguous() for name, value in weights}, out / "start.safetensors")
    seen, batches = [], loop.batches

    def watched(data, shares, device):
        shares = list(shares)
        seen.append([int(row) for share in shares for row in share])
        return batches(data, shares, device)

    loop.batches = watched
    for row in loop.train(config, fabric, micro):
        if row["step"] == die and fabric.global_rank == fabric.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    loop.batches = batches
    if fabric.is_global_zero:  # the validation loss of the saved weights in one process
        saved = checkpoint.load(out / "last", type(config.model))
        for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
            os.environ.pop(name, None)
        loss = loop.validate(saved, config, distributed.fabric("cpu"))
        (out / "validated.json").write_text(json.dumps(loss))
    (out / f"seen-{fabric.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

"""A training in one or several processes, for tests/test_ranks.py: `python tests/ranks.py '{"out": ..., "devices": 2, ...}'`.

Fabric starts this script once more for every further process; torchrun and srun start all of them.
"""

import json
import os
import signal
import sys
from pathlib import Path

import lightning
import torch
from safetensors.torch import save_file
from torch import nn

from rr import checkpoint
from rr.data.dataset import Packed
from rr.train import configs as recipes
from rr.train import loop as train


class Plain(nn.Module):
    """Draws nothing and mixes no images, so that one process may take all images at once and find the same gradients."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1)
        )
        self.net(torch.zeros(1, 3, 80, 80))
        self.register_buffer("unused", torch.zeros(3))  # DDP sends buffers round before a step

    def loss(self, batch, generator):
        return {"loss": (self.net(batch.x)[:, 0] - batch.labels[:, 0]).square().mean()}


class Hungry(Plain):
    """Runs out of memory, in the last process only."""

    largest = last = None  # images in a batch, more "do not fit"; the last process's number

    def loss(self, batch, generator):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if rank == self.last and len(batch.x) > self.largest[not self.training]:
            raise torch.OutOfMemoryError("a test's")
        return super().loss(batch, generator)


def main(
    out,
    data,
    component,
    devices=1,
    strategy="ddp",
    micro=1,
    epochs=2,
    batch=8,
    die=0,
    largest=(3, 8),
    layout="",
    **words,
):
    """Train into `out`; write the first weights, and the rows that every process saw.

    die: the last process kills itself after so many steps. largest: images in training and in validation that Hungry can hold.
    """
    fabric = train.fabric("cpu", devices, strategy=strategy)
    fabric.launch()
    torch.set_num_threads(1)  # sums depend on the number of threads
    out, data = Path(out), Packed(data)
    if component in recipes.COMPONENTS:
        words |= {"preset": "mini", "data": str(data.path), "out": str(out)}
        plan = recipes.plan(component, recipes.parameters(component, words))
    else:
        torch.manual_seed(0)
        rows = data.labelled("train")[:45]  # 45 images in batches of 8: not all alike
        plan = {"model": {"plain": Plain, "hungry": Hungry}[component](), "data": data, "rows": rows, "seed": 0,
                "val_rows": data.labelled("val"), "lr": 1e-2, "ema": 0.9}  # fmt: skip
    plan |= {"folder": out, "epochs": epochs, "batch": batch}
    if layout == "contiguous":
        plan["model"].to(memory_format=torch.contiguous_format)
    kind = type(plan["model"])
    Hungry.largest, Hungry.last = largest, devices - 1
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in plan["model"].state_dict().items()},
            out / "start.safetensors",
        )
    seen, batches = [], train.batches

    def watched(data, shares, device):
        shares = list(shares)
        seen.append([int(row) for share in shares for row in share])
        return batches(data, shares, device)

    train.batches = watched
    for row in train.train(fabric=fabric, micro=micro, **plan):
        if row["step"] == die and fabric.global_rank == fabric.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if fabric.is_global_zero:  # what one process says of the weights that were saved
        train.batches = batches
        saved = checkpoint.load(out / "last", kind)
        loss, _ = train.validate(
            saved,
            plan["data"],
            plan["val_rows"],
            batch,
            lightning.Fabric(accelerator="cpu", devices=1),
        )
        (out / "validated.json").write_text(json.dumps(loss))
    (out / f"seen-{fabric.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

"""Weak scaling of training: the same number of images per device, on more and more devices.

Ideally the images/s per device stay the same. On one machine:

    for n in 1 2 4 8; do python workflow/weak_scaling.py restorer --devices $n; done

One point on four machines, with or without SLURM:

    srun --nodes 4 --ntasks-per-node 8 --gpus-per-task 1 \\
        python workflow/weak_scaling.py restorer --nodes 4 --devices 8
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        workflow/weak_scaling.py restorer --nodes 4 --devices 8

All machines must see the data set of the preset (`rr run 01_data -p preset=course`). Each point is
written to results/bench/weak_scaling.csv, in place of an earlier one of the same kind. The printed
efficiency is the images/s per device, divided by those of the fewest devices.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from rr.cli import TRAINED_IN, training_config
from rr.errors import InputError
from rr.files import ROOT, write_table
from rr.provenance import provenance
from rr.train import distributed, loop

TABLE = ROOT / "results" / "bench" / "weak_scaling.csv"
KIND = ["component", "preset", "device", "per_device"]  # only points of one kind are compared
POINT = [*KIND, "nodes", "devices"]


def main(
    component: Annotated[str, typer.Argument(help=" | ".join(TRAINED_IN))],
    devices: Annotated[int, typer.Option(min=1, help="Devices of every machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    preset: Annotated[str, typer.Option(help="Whose data set and sizes.")] = "smoke",
    per_device: Annotated[int, typer.Option(help="Images per step and device.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Counted steps, after as many others.")] = 40,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
):
    fabric = distributed.fabric(device, devices, nodes)
    with tempfile.TemporaryDirectory() as folder:
        config = training_config(component, {"preset": preset}, per_device * devices * nodes)
        config.folder, config.epochs = Path(folder), 10**6
        fabric.launch()  # after all checks: other processes would repeat their messages
        speeds = []
        for row in loop.train(config, fabric):
            speeds.append(row["images_per_s"])
            if len(speeds) == 2 * steps:
                break
    if not fabric.is_global_zero:
        return
    name = torch.cuda.get_device_name() if fabric.device.type == "cuda" else "CPU process"
    point = dict(zip(POINT, (component, preset, name, per_device, nodes, devices)))
    point["images_per_s"] = statistics.median(speeds[steps:])
    point["per_device_images_per_s"] = point["images_per_s"] / fabric.world_size
    point["commit"] = provenance()["commit"]
    tables = [pd.read_csv(TABLE)] if TABLE.exists() else []
    table = pd.concat([*tables, pd.DataFrame([point])])
    table = table.drop_duplicates(POINT, keep="last").sort_values(POINT)
    write_table(TABLE, table)
    same_kind = table[(table[KIND] == pd.Series(point)[KIND]).all(axis=1)]
    speed = same_kind["per_device_images_per_s"]
    print(same_kind.assign(efficiency=speed / speed.iloc[0]).to_string(index=False))


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(f"error: {error}")

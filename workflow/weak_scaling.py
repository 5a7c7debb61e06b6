"""Weak scaling of training: the same number of images per device on more and more devices.

Ideally, images/s per device stay the same.

    one machine              for n in 1 2 4 8; do
                                 python workflow/weak_scaling.py restorer --devices $n
                             done
    one point on four        srun --nodes 4 --ntasks-per-node 8 --gpus-per-task 1 \\
                                 python workflow/weak_scaling.py restorer --nodes 4 --devices 8
    the same without SLURM   torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d \\
                                 --rdzv-endpoint HOST:29500 \\
                                 workflow/weak_scaling.py restorer --nodes 4 --devices 8

The data set is the one of 01_data with the given preset (`rr run 01_data -p preset=course`), on a
file system that all machines see. The component is trained for some steps, of which the second half
counts. Every point is added to results/bench/weak_scaling.csv, where it replaces an earlier one of
the same kind. The efficiency is images/s per device over that of the fewest devices.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from rr import files as io
from rr.cli import TRAINED_IN, training_config
from rr.errors import InputError
from rr.provenance import provenance
from rr.train import distributed, loop
from rr.workflow import notebook

TABLE = io.ROOT / "results" / "bench" / "weak_scaling.csv"
# two points with the same values of these are of the same kind
KIND = ["component", "preset", "device", "per_device", "nodes", "devices"]


def main(
    component: Annotated[str, typer.Argument(help=" | ".join(TRAINED_IN))],
    devices: Annotated[int, typer.Option(min=1, help="Devices of every machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    preset: Annotated[str, typer.Option(help="Whose data set and sizes.")] = "smoke",
    per_device: Annotated[int, typer.Option(help="Images per step and device.")] = 8,
    steps: Annotated[
        int, typer.Option(min=2, help="Steps that are counted; as many come before them.")
    ] = 40,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    values: Annotated[
        list[str], typer.Option("-p", help="NAME=VALUE, a parameter of the component's notebook.")
    ] = [],
):
    fabric = distributed.fabric(device, devices, nodes)
    given = dict(map(notebook.assignment, values))
    with tempfile.TemporaryDirectory() as folder:
        config = training_config(
            component, given | {"preset": preset}, per_device * devices * nodes
        )
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
    speed = statistics.median(speeds[steps:])
    point = {
        "component": component,
        "preset": preset,
        "device": name,
        "per_device": per_device,
        "nodes": nodes,
        "devices": devices,
        "images_per_s": speed,
        "per_device_images_per_s": speed / fabric.world_size,
        "commit": provenance()["commit"],
    }
    rows = pd.DataFrame([point])
    if TABLE.exists():
        rows = (
            pd.concat([pd.read_csv(TABLE), rows])
            .drop_duplicates(KIND, keep="last")
            .sort_values(KIND)
        )
    io.write_table(TABLE, rows)
    alike = rows[(rows[KIND[:4]] == pd.Series(point)[KIND[:4]]).all(axis=1)]
    base = alike["per_device_images_per_s"].iloc[0]
    print(alike.assign(efficiency=alike["per_device_images_per_s"] / base).to_string(index=False))


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(f"error: {error}")

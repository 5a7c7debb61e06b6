"""Write every kind of file to an 8 MB disk that is full. tests/test_full_disk.py runs this.

python tests/full_disk.py DISK: for each kind a small version is written, the disk is filled, and a
larger version must fail with InputError and leave the first as it was. The output is JSON:
{kind: {"error", "intact", "left"}}.
"""

import hashlib
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from rr import checkpoint
from rr import files as io
from rr.data import packing, sources
from rr.errors import InputError
from rr.evaluate import figures
from rr.provenance import write_result
from rr.train import conditions, state
from rr.workflow import notebook

DISK = Path(sys.argv[1])
ELSEWHERE = DISK.parent / "elsewhere"  # on another disk: what is only read
ELSEWHERE.mkdir()
BALLAST = DISK / "ballast"
BIG = 3 * 2**20  # bytes of a second version


class Net(nn.Module):
    def __init__(self, n=10):
        super().__init__()
        self.arguments = {"n": n}
        self.weight = nn.Parameter(torch.zeros(n))


def figure(folder, big):
    side = 1200 if big else 4
    plot = plt.figure(figsize=(6, 6))
    plot.add_axes([0, 0, 1, 1]).imshow(np.random.default_rng(0).random((side, side, 3)))
    figures.save(plot, folder, "figure")


def executed(folder, big):
    path = ELSEWHERE / "toy.py"
    code = f"print('x' * {BIG if big else 1})"
    path.write_text(f'# %% tags=["parameters"]\nseed: int = 0  # any\n\n# %%\n{code}\n')
    notebook.execute(path, ({}, folder / "toy.ipynb"))


def strip(folder, big):
    side = 1000 if big else 4
    with io.writing(folder / "eyes.png") as part:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(
            part
        )


KINDS = {
    "text": lambda folder, big: io.write_text(folder / "a.md", "x" * (BIG if big else 1)),
    "json": lambda folder, big: write_result(folder / "a.json", ["x" * (BIG if big else 1)]),
    "table": lambda folder, big: io.write_table(
        folder / "a.csv", pd.DataFrame({"x": np.arange(BIG // 6 if big else 1)})
    ),
    "figure": figure,
    "picture": strip,
    "condition": lambda folder, big: conditions.save_condition(
        folder, torch.zeros(BIG // 4 if big else 1)
    ),
    "checkpoint": lambda folder, big: checkpoint.save(folder, Net(BIG // 4 if big else 1), {}),
    "training state": lambda folder, big: state.save_state(
        folder, {"weight": torch.zeros(BIG // 4 if big else 1)}
    ),
    "packed data": lambda folder, big: packing.pack(
        sources.embedded(200 if big else 12), 80, folder
    ),
    "executed notebook": executed,
}


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.name.endswith(".lock")
    }


def fill(leave):
    """Leave so many bytes free."""
    with open(BALLAST, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))


outcomes = {}
for kind, write in KINDS.items():
    folder = DISK / kind.replace(" ", "-") / "folder"
    folder.mkdir(parents=True)
    write(folder, False)
    before = contents(folder)
    fill(256 * 1024)
    try:
        write(folder, True)
        error = None
    except (InputError, notebook.NotebookError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    BALLAST.unlink()
    after = contents(folder)
    outcomes[kind] = {
        "error": error,
        "intact": {name: after.get(name) for name in before} == before,
        "left": [name for name in after if io.PART in name],
    }
print(json.dumps(outcomes))

"""Commands in fresh processes: one notebook (row T1), one restored photograph (T9)."""

import os
import subprocess
import sys
from functools import partial

import jupytext
import nbformat
import pytest
import torch
from bench_data import framed
from PIL import Image

from rr.data import degrade
from rr.data.photo import to_photograph, to_tensor
from rr.data.synthetic import fundus
from rr.files import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NOTEBOOK = """# %% tags=["parameters"]
number: int = 1  # printed

# %%
import torch, torchvision
import rr.models.restorer

print(number, torch.ones(2).sum())
"""


def command(*words, cwd):
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("who", ["rr run", "papermill"])
def test_notebook(who, timed, tmp_path):
    (tmp_path / "tiny.py").write_text(NOTEBOOK)
    jupytext.write(jupytext.reads(NOTEBOOK, fmt="py:percent"), tmp_path / "tiny.ipynb")
    words = {
        "rr run": ["rr", "run", "tiny.py", "--executed", "executed.ipynb"],
        "papermill": ["papermill", "tiny.ipynb", "executed.ipynb", "-k", "python3"],
    }
    call = partial(command, "-m", *words[who], cwd=tmp_path)
    timed("T1: a notebook that imports torch", call, 1, "notebooks")
    cells = nbformat.read(tmp_path / "executed.ipynb", 4).cells
    assert cells[-1].outputs[0].text == "1 tensor(2.)\n"


PEAK = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""  # a small process in between, because a child's peak includes that of its parent at the fork


def test_restore(timed, tmp_path, benchmark):
    eye = fundus(0, 0, 512)
    params = degrade.sample(1, torch.Generator().manual_seed(0), severity=1.0)
    fov = torch.from_numpy(eye.fov)[None, None]
    degraded = to_photograph(degrade.apply(to_tensor(eye.image), params, fov))
    Image.fromarray(framed(degraded, 2000, 1500)).save(tmp_path / "photo.jpg", quality=92)
    words = [sys.executable, "-m", "rr", "restore", "photo.jpg", "--out", "restored"]
    call = partial(command, "-c", PEAK, *words, cwd=tmp_path)
    printed = timed("T9: rr restore, 2000 px, fresh process", call, 1, "photographs")
    gib = int(printed.splitlines()[-1]) / 2**20  # ru_maxrss is in KiB on Linux
    benchmark.extra_info["peak GiB"] = gib
    assert gib < 2

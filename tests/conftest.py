"""Settings of all tests, and what several test files share."""

import os
import signal
import subprocess
import sys

os.environ["OMP_NUM_THREADS"] = (
    "1"  # before torch is imported: sums depend on the number of threads
)

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from rr.files import ROOT

# A shell that is not interactive starts background jobs with Ctrl-C ignored. All processes of the
# tests would inherit that, and the tests of Ctrl-C would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


TOY = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
preset: str = "mini"  # mini | smoke: the values of the run
seed: int = 0  # from 0: of everything random
out: str = "results"  # folder of the results
rate: float = 1e-3  # from 0 to 1: learning rate
fast: bool = False  # or not
backbone: str = ""  # vae | unet++ | unet: replaces the preset's

# %% [markdown]
# ## The work

# %%
"""


@pytest.fixture
def toy(tmp_path):
    """toy(code) writes a notebook with TOY's parameters and `code` in its last cell.

    It returns the path of the notebook.
    """

    def write(code="seed"):
        path = tmp_path / "toy.py"
        path.write_text(TOY + code + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def rr():
    """rr("run", "01_data", ...) runs a command in the project's root.

    It returns the CompletedProcess.
    """

    def run(*words, timeout=600, cwd=ROOT, **environment):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            **environment,
        }
        command = [sys.executable, "-m", "rr", *map(str, words)]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder of six different photographs in subfolders: one eye, rotated and mirrored."""
    eye = np.array(Image.fromarray(skimage.data.retina()).resize((200, 200)))
    for i, name in enumerate(
        ["a.jpg", "b.png", "part1/c.jpg", "part1/d.JPG", "part2/e.tif", "part2/f.jpeg"]
    ):
        image = np.pad(np.rot90(eye if i < 4 else eye[:, ::-1], i), ((0, i), (40, 60), (0, 0)))
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def eyes80(tmp_path_factory):
    """72 embedded eyes of 80 px, packed once per session. Tests must not write to their folder."""
    from rr.data import packing, sources

    return packing.pack(sources.embedded(72, 0), 80, tmp_path_factory.mktemp("eyes80") / "data")

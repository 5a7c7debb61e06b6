"""Several processes train what one trains: gradients of the same images, every image once, the same end after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from rr.data import packing, sources
from rr.files import ROOT, read_json

SCRIPT = Path(__file__).parent / "ranks.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
PYTHON = [sys.executable, str(SCRIPT)]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    str(SCRIPT),
]
ROUNDING = 2e-6  # of parameters of order 1, after two epochs: sums in another order


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return packing.pack(sources.embedded(72, 0), 80, tmp_path_factory.mktemp("ranks") / "data")


def start(packed, out, component="plain", command=PYTHON, **more):
    words = json.dumps({"out": str(out), "data": str(packed.path), "component": component, **more})
    return subprocess.run(
        [*command, words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def trained(packed, out, *arguments, **more):
    """The averaged weights of the last epoch."""
    done = start(packed, out, *arguments, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return weights(out)


def weights(out):
    return load_file(out / "last" / read_json(out / "last" / "config.json")["weights"])


def furthest(a, b):
    return max(abs(a[name].astype(float) - b[name]).max() for name in a)


@pytest.fixture(scope="module")
def alone(packed, tmp_path_factory):
    """One process takes every step's images at once."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return trained(packed, out), out


@pytest.mark.parametrize("how", ["ddp", "fsdp", "torchrun", "micro-batches"])
def test_two_processes_train_what_one_trains_with_the_doubled_batch(packed, alone, tmp_path, how):
    more = (
        {"micro": 2}
        if how == "micro-batches"
        else {"devices": 2, "strategy": "fsdp" if how == "fsdp" else "ddp"}
    )
    together = trained(packed, tmp_path, command=TORCHRUN if how == "torchrun" else PYTHON, **more)
    assert 0 < furthest(alone[0], together) < ROUNDING  # not one computation twice
    processes = more.get("devices", 1)
    assert read_json(tmp_path / "config.json")["provenance"]["processes"] == processes
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    rows = sorted(json.loads((alone[1] / "seen-0.json").read_text())[0])
    for epoch in (0, 2):  # between them validation
        shares = [process[epoch] for process in seen]
        assert sorted(sum(shares, [])) == rows  # each image once, in one process
        assert max(map(len, shares)) - min(map(len, shares)) <= 6  # one image per step at most
    assert len(rows) == len(set(rows)) == 45


@pytest.mark.parametrize(
    "component, words",
    [
        ("vae", {}),
        ("readability", {}),
        ("extractor", {"extractor": "resnet18"}),
        ("diffusion", {}),
        ("restorer", {"extractor": "random", "condition": "image", "backbone": "unet"}),
    ],
)  # fmt: skip
def test_every_component_draws_the_same_in_two_processes_as_in_two_micro_batches(
    packed, tmp_path, component, words
):
    words |= {"epochs": 1, "batch": 16}
    for strategy, layout in {
        "ddp": "",
        "fsdp": "contiguous",
    }.items():  # the latter takes weights in no other one
        one = trained(
            packed, tmp_path / f"one-{strategy}", component, micro=2, layout=layout, **words
        )
        two = trained(packed, tmp_path / strategy, component, devices=2, strategy=strategy, **words)
        # statistics of batch normalisation: one process has seen all images, of two each its own
        parameters = {
            name: one[name] for name in one if "running_" not in name and "num_batches" not in name
        }
        moved = furthest(parameters, load_file(tmp_path / strategy / "start.safetensors"))
        logs = [
            pd.read_csv(tmp_path / name / "history.csv") for name in (f"one-{strategy}", strategy)
        ]
        np.testing.assert_allclose(*(log["loss"] for log in logs), rtol=1e-4)
        assert furthest(parameters, two) < min(1e-4, moved / 10)
        assert logs[1]["val_loss"].iloc[-1] == pytest.approx(
            read_json(tmp_path / strategy / "validated.json"), rel=1e-6
        )


def test_a_process_killed_in_the_middle_leaves_a_run_that_continues_to_the_same_end(
    packed, alone, tmp_path
):
    whole = trained(packed, tmp_path / "whole", devices=2, epochs=3)
    killed = start(
        packed, tmp_path / "cut", devices=2, epochs=3, die=9
    )  # in the second epoch of six steps
    assert killed.returncode != 0
    assert not (tmp_path / "cut" / "seen-0.json").exists()
    assert read_json(tmp_path / "cut" / "last" / "config.json")["epoch"] == 0
    again = trained(packed, tmp_path / "cut", devices=2, epochs=3)
    assert furthest(whole, again) == 0
    assert (
        len(json.loads((tmp_path / "cut" / "seen-0.json").read_text())) == 2 * 2
    )  # two epochs and their validation
    assert (tmp_path / "whole" / "history.csv").read_text().count("\n") == 19


@pytest.mark.parametrize(
    "micro, more",
    [
        (2, {"devices": 2}),
        (2, {"devices": 2, "strategy": "fsdp"}),
        (8, {"largest": (1, 8)}),  # some steps have 7 images
        (2, {"devices": 2, "largest": (3, 2)}),
    ],
)
def test_a_process_that_runs_out_of_memory_makes_all_take_smaller_bites_of_the_same_batch(
    packed, alone, tmp_path, micro, more
):
    done = start(packed, tmp_path, "hungry", **more)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        f"out of memory: the step's 8 images are taken in {micro} micro-batches per process"
        in done.stdout
    )
    assert ("out of memory: validation takes 2 images at once" in done.stdout) == (
        more.get("largest") == (3, 2)
    )
    assert read_json(tmp_path / "config.json")["provenance"]["micro_batches"] == micro
    assert furthest(alone[0], weights(tmp_path)) < ROUNDING


@pytest.mark.parametrize(
    "largest, where",
    [((0, 8), "with 4 micro-batches"), ((3, 0), "with single images in validation")],
)
def test_images_that_do_not_fit_one_by_one_are_said_in_one_line(packed, tmp_path, largest, where):
    done = start(packed, tmp_path, "hungry", devices=2, largest=largest)
    assert done.returncode != 0 and where in done.stderr


def test_batch_normalisation_is_not_left_with_a_single_image(packed, tmp_path):
    done = start(packed, tmp_path, "readability", devices=2, batch=3)
    assert (
        done.returncode != 0
        and "batch of 3: cannot be shared by 2 processes; use at least 4 images" in done.stderr
    )

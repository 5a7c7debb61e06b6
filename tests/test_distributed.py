"""Several processes train what one trains: same gradients, every image once, exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from rr.files import ROOT, read_json

SCRIPT = str(Path(__file__).parent / "ranks.py")
PYTHON = [sys.executable, SCRIPT]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ROUNDING = 2e-6  # of parameters of order 1, after two epochs: sums in another order


def start(eyes80, out, component="plain", command=PYTHON, **more):
    words = json.dumps({"out": str(out), "data": str(eyes80.path), "component": component, **more})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [*command, words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def trained(eyes80, out, *arguments, **more):
    """The averaged weights of the last epoch."""
    done = start(eyes80, out, *arguments, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out / "last" / read_json(out / "last" / "config.json")["weights"])


def largest_difference(a, b):
    return max(abs(a[name].astype(float) - b[name]).max() for name in a)


@pytest.fixture(scope="module")
def alone(eyes80, tmp_path_factory):
    """One process that takes all images of a step at once: (weights, folder)."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return trained(eyes80, out), out


@pytest.mark.parametrize(
    "more",
    [
        {"devices": 2},
        {"micro": 2},
        pytest.param({"devices": 2, "command": [*TORCHRUN, SCRIPT]}, marks=pytest.mark.slow),
    ],
    ids=["ddp", "micro-batches", "torchrun"],
)
def test_two_processes_train_what_one_trains_with_the_whole_batch(eyes80, alone, tmp_path, more):
    """Fails if images have other weights or are seen twice, or if gradients are not averaged."""
    together = trained(eyes80, tmp_path, **more)
    assert 0 < largest_difference(alone[0], together) < ROUNDING  # not the same computation twice
    processes = more.get("devices", 1)
    assert read_json(tmp_path / "config.json")["provenance"]["processes"] == processes
    seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(processes)]
    rows = sorted(json.loads((alone[1] / "seen-0.json").read_text())[0])
    for epoch in (0, 2):  # between them lies the validation
        shares = [process[epoch] for process in seen]
        assert sorted(sum(shares, [])) == rows  # each image once, in one process
        assert max(map(len, shares)) - min(map(len, shares)) <= 6  # one image per step at most
    assert len(rows) == len(set(rows)) == 45


@pytest.mark.slow
@pytest.mark.parametrize(
    "component, choices",
    [
        ("vae", {}),
        ("readability", {}),
        ("extractor", {"extractor": "resnet18"}),
        ("diffusion", {}),
        ("restorer", {"extractor": "random", "condition": "image", "backbone": "unet"}),
    ],
)
def test_every_component_draws_the_same_in_two_processes_as_in_two_micro_batches(
    eyes80, tmp_path, component, choices
):
    choices |= {"epochs": 1, "batch": 16}
    one = trained(eyes80, tmp_path / "one", component, micro=2, **choices)
    two = trained(eyes80, tmp_path / "two", component, devices=2, **choices)
    # one process has seen all images in its batch normalisation, each of two only its own
    statistics = ("running_", "num_batches")
    weights = {name: one[name] for name in one if not any(word in name for word in statistics)}
    moved = largest_difference(weights, load_file(tmp_path / "two" / "start.safetensors"))
    assert largest_difference(weights, two) < min(1e-4, moved / 10)
    logs = [pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two")]
    np.testing.assert_allclose(*(log["loss"] for log in logs), rtol=1e-4)
    validated = read_json(tmp_path / "two" / "validated.json")
    assert logs[1]["val_loss"].iloc[-1] == pytest.approx(validated, rel=1e-6)


def test_a_killed_process_leaves_a_run_that_continues_to_the_same_end(eyes80, tmp_path):
    whole = trained(eyes80, tmp_path / "whole", devices=2, epochs=3)
    killed = start(eyes80, tmp_path / "cut", devices=2, epochs=3, die=9)  # in the second epoch
    assert killed.returncode != 0
    assert not (tmp_path / "cut" / "seen-0.json").exists()
    assert read_json(tmp_path / "cut" / "last" / "config.json")["epoch"] == 0
    again = trained(eyes80, tmp_path / "cut", devices=2, epochs=3)
    assert largest_difference(whole, again) == 0
    passes = json.loads((tmp_path / "cut" / "seen-0.json").read_text())
    assert len(passes) == 2 * 2  # two epochs, each with its validation
    assert (tmp_path / "whole" / "history.csv").read_text().count("\n") == 19

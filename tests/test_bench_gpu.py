"""rr.bench_gpu on a CPU, every row at its smallest: what is counted, that gates see what is wrong, that peers are called."""

import copy
import re
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rr.benchmarks import bench, bench_gpu
from rr.benchmarks.bench import NotMeasured
from rr.models import pretrained as weights
from rr.models.features import EXTRACTORS
from rr.models.readability import Readability

TINY = {"device": "cpu", "side": 64}


def lines(row, **sizes):
    """The lines of a row, every call of it made; each Task with its reason asked for once."""
    found = []
    for task in row(**sizes):
        found += bench.measure(task, pairs=1)
        assert task.why().count("%") >= 3
    return found


@pytest.fixture
def small(monkeypatch):
    """ResNet18 in place of InceptionV3."""
    monkeypatch.setattr(bench_gpu, "Readability", partial(Readability, "resnet18"))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, groups=3)
        self.upwards = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.compile_targets = [self.grouped]

    def loss(self, batch, generator):
        return {"loss": (self.upwards(self.grouped(batch.x)) ** 2).mean()}


def test_work_counts_multiplications_and_what_convolutions_return():
    mac, outputs = bench_gpu.work(Toy(), 64)
    small, large = 62 * 62, 124 * 124
    assert outputs == 6 * small + 2 * large
    assert (
        mac == 6 * small * 9 + 2 * large * 6
    )  # 9 a value from its group of one; 6 from the one place below it


def test_the_yardstick_does_the_work_of_the_formula(monkeypatch):
    copied, multiplied = [], []
    copy, mm = torch.Tensor.copy_, torch.mm
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, other: copied.append(self.nbytes) or copy(self, other)
    )
    monkeypatch.setattr(
        torch,
        "mm",
        lambda a, b, out: multiplied.append((*a.shape, b.shape[1])) or mm(a, b, out=out),
    )
    monkeypatch.setattr(bench_gpu, "GIB", 1000)
    call, words = bench_gpu.yardstick(mac=64**2 * 10, outputs=25, images=8, device="cpu", side=64)
    copied.clear(), multiplied.clear()
    call()
    assert 2 * sum(copied) == 28 * 25 * 8 and max(copied) == 1000
    assert (
        sum(2 * rows * inner * columns for rows, inner, columns in multiplied) == 6 * 64**2 * 10 * 8
    )
    assert "TFLOP/s" in words


def test_a_training_step_is_that_of_its_optimizer_and_lowers_the_loss():
    torch.manual_seed(0)
    toy, images = Toy(), bench_gpu.pictures(4, 32, "cpu")
    step = bench_gpu.training(toy, "cpu", lr=1e-2)
    losses = [step(images).item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2 and toy.training


def test_a_training_step_takes_its_optimizer_averages_and_is_compiled_unless_told_not_to(
    monkeypatch,
):
    called = []
    monkeypatch.setattr(bench_gpu, "compiled", lambda component, device: called.append("compiled"))
    monkeypatch.setattr(
        bench_gpu.train, "averaging", lambda *models: lambda: called.append("averaged")
    )
    toy, images = Toy(), bench_gpu.pictures(4, 32, "cpu")
    by_hand = copy.deepcopy(toy)
    bench_gpu.training(toy, "cpu", "rmsprop", lr=1e-2)(images)
    by_hand.loss(images, None)["loss"].backward()
    torch.optim.RMSprop(by_hand.parameters(), lr=1e-2).step()
    assert all(map(torch.equal, toy.parameters(), by_hand.parameters())) and called == [
        "compiled",
        "averaged",
    ]
    called.clear()
    bench_gpu.training(Toy(), "cpu", fast=False)(images)
    assert called == ["averaged"]


def test_pictures_repeat_a_few_eyes_and_begin_where_told():
    batch = bench_gpu.pictures(5, 32, "cpu", different=2)
    assert torch.equal(batch.x[0], batch.x[2]) and not torch.equal(batch.x[0], batch.x[1])
    assert torch.equal(bench_gpu.pictures(1, 32, "cpu", start=1).x[0], batch.x[1])
    assert (
        batch.labels.shape == (5, 4)
        and 0 < batch.labels.mean() < 1
        and batch.fov.dtype == torch.bool
    )


def test_g1_measures_against_s_and_a_plain_loop(small, monkeypatch):
    fast, honest = [], bench_gpu.training
    monkeypatch.setattr(
        bench_gpu,
        "training",
        lambda *of, **how: fast.append(how.get("fast", True)) or honest(*of, **how),
    )
    first, second = lines(bench_gpu.classifier, size=64, batch=2, steps=1, **TINY)
    assert (
        (first["peer"], first["target"]) == ("yardstick S", 0.5)
        and "GMAC" in first["note"]
        and first["ok"]
    )
    assert (second["peer"], second["target"]) == ("plain loop: NCHW", 2) and fast == [True, False]


def test_g2_has_a_target_for_every_extractor():
    (line,) = lines(bench_gpu.extractors, size=64, batch=2, steps=1, names=("mobilenet",), **TINY)
    assert line["target"] == 0.45 and line["task"].startswith("mobilenet and attention")
    assert set(bench_gpu.SHARES) <= set(EXTRACTORS)


def test_g3_sees_when_the_stored_images_are_others(small, monkeypatch):
    sizes = {"size": 64, "batch": 2, "n": 4, "device": "cpu", "workers": 1}
    kept, streamed = lines(bench_gpu.stored, **sizes)
    assert kept["ok"] and streamed["ok"] and kept["target"] == streamed["target"] == 0.97
    honest = bench_gpu.data.batches
    monkeypatch.setattr(
        bench_gpu.data,
        "batches",
        lambda *of: (each._replace(x=each.x * 0.99) for each in honest(*of)),
    )
    assert not next(bench_gpu.stored(**sizes)).gate.ok


@pytest.mark.skipif(not all(map(find_spec, bench_gpu.NETWORKS)), reason="peers are not installed")
def test_g4_peers_have_no_more_parameters_or_no_more_to_do():
    found = lines(bench_gpu.diffusion, size=32, batch=2, dim=8, steps=1, vae=(2, 8, 8), **TINY)
    found = [line for line in found if line["target"] == 2.5]
    assert (
        len(found) == 2 * 2 * 2
        and sum(line["peer"].endswith("bf16, channels_last, compiled") for line in found) == 4
    )
    assert {line["task"].split(", ")[-1] for line in found} == {
        "no fewer parameters",
        "no fewer MAC",
    }
    for line in found:
        unit = "M parameters" if "parameters" in line["task"] else "GMAC"
        ours, theirs = map(float, re.findall(rf"([0-9.]+) {unit}", line["note"]))
        assert ours >= theirs > 0


def test_g4_says_which_peer_is_missing_after_all_others(monkeypatch):
    monkeypatch.setattr(bench_gpu, "NETWORKS", {"no_such_peer": None})
    monkeypatch.setitem(bench.PEERS, "no_such_peer", "no-such-peer")
    row = bench_gpu.diffusion(size=32, batch=2, dim=8, steps=1, vae=(2, 8, 8), **TINY)
    assert [next(row).target for _ in range(2)] == [0.4, 0.4]
    with pytest.raises(NotMeasured, match="no-such-peer: not installed"):
        next(row)


RESTORATION = {
    "size": 64,
    "n": 2,
    "width": 8,
    "T": 20,
    "calls": 4,
    "drawn": 4,
    "updates": 2,
    "batch": 2,
    "device": "cpu",
}


def test_g5_compares_few_steps_with_the_whole_chain(monkeypatch):
    seen = []
    honest = bench_gpu.Denoiser.restore

    def counted(self, y, fov, generator, steps, batch):
        seen.append(steps)
        return honest(self, y, fov, generator, steps, batch=batch)

    monkeypatch.setattr(bench_gpu.Denoiser, "restore", counted)
    (line,) = lines(bench_gpu.restoration, **RESTORATION)
    assert (
        set(seen) == {4, None}
        and line["note"].startswith("4 network calls for 20; ")
        and line["target"] == 60
    )
    assert line["peer"] == "chain of 20 steps" and np.isfinite(line["value"])


def test_g5_sees_worse_images(monkeypatch):
    monkeypatch.setattr(bench_gpu.metrics, "load_lpips", lambda device: None)

    def restore(self, y, fov, generator, steps, batch):
        return y if steps is None else 0 * y

    monkeypatch.setattr(bench_gpu.Denoiser, "restore", restore)
    task = next(bench_gpu.restoration(**RESTORATION))
    assert not task.gate.ok and "LPIPS not measured" in task.note


@pytest.mark.skipif(find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
@pytest.mark.skipif(weights.available("alexnet") is None, reason="no weights of AlexNet here")
def test_g6_is_torchmetrics_within_the_rim(monkeypatch):
    sizes = {"size": 64, "n": 2, "batch": 2, "width": 8, "device": "cpu"}
    degradation, scores = lines(bench_gpu.scoring, **sizes)
    assert degradation["ok"] and degradation["target"] == pytest.approx(33.3, abs=0.1)
    assert scores["ok"] and scores["value"] > 0
    honest = bench_gpu.metrics.ssim
    monkeypatch.setattr(bench_gpu, "metrics", SimpleNamespace(
        ssim=lambda x, y: honest(x, y) * 1.01, psnr=bench_gpu.metrics.psnr, load_lpips=bench_gpu.metrics.load_lpips))  # fmt: skip
    row = bench_gpu.scoring(**sizes)
    next(row)
    assert not next(row).gate.ok


def test_g6_takes_no_random_trunk_for_lpips(monkeypatch):
    monkeypatch.setattr(weights, "available", lambda name: None)
    row = bench_gpu.scoring(size=32, n=2, batch=2, width=8, device="cpu")
    next(row)
    with pytest.raises(NotMeasured):
        next(row)

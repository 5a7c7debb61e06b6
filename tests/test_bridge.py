"""The bridge from y to x: its equations, its loss and sampling with oracles, mean and spread."""

import pytest
import torch
from torch import nn

from rr import checkpoint
from rr.models.backbones import BACKBONES
from rr.models.bridge import Bridge, interpolate, mean_and_spread, sample
from rr.models.vae import Output


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(n=4):
    """Random images y and x, and full fields of view."""
    y, x = torch.rand(2, n, 3, 32, 32, generator=generator())
    return y, x, torch.ones(n, 1, 32, 32).bool()


def bridge(**changes):
    torch.manual_seed(0)
    return Bridge(**{"size": 32, "width": 4, "latent": 4, **changes}).eval()


def test_the_bridge_ends_at_both_images():
    y, x, _ = pair(2)
    assert torch.equal(interpolate(x, y, 0), x) and torch.equal(interpolate(x, y, 1), y)
    x_t = interpolate(x, y, torch.tensor([0.5, 0.25]).view(2, 1, 1, 1))
    assert torch.allclose(x_t[1], 0.75 * x[1] + 0.25 * y[1])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_with_an_oracle_every_state_lies_on_the_bridge(steps):
    y, x, _ = pair(1)
    states = list(sample(lambda x_t, t: x, y, steps))
    assert [round(t * steps) for t, _, _ in states] == list(range(steps, -1, -1))
    for t, x_t, _ in states:
        assert torch.allclose(x_t, interpolate(x, y, t), atol=1e-6)


def test_one_step_calls_the_network_once_with_y():
    y, calls = pair(1)[0], []
    *_, (_, x_0, _) = sample(lambda x_t, t: calls.append((x_t, t)) or 0.5 * x_t, y, 1)
    [(x_t, t)] = calls
    assert torch.equal(x_t, y) and t == 1 and torch.equal(x_0, 0.5 * y)


class Difference(nn.Module):
    """A backbone that knows x - y, and records the times at which it is called."""

    def __init__(self, difference):
        super().__init__()
        self.difference, self.times = difference, []

    def forward(self, x_t, t, generator=None):
        self.times += (t / Bridge.TIMES).tolist()
        return Output(self.difference)


@pytest.mark.parametrize("one_step", [False, True])
def test_an_oracle_has_no_loss_and_sees_y_in_half_of_the_images_or_in_all(one_step):
    model, (y, x, fov) = bridge(sigma=0.0, one_step=one_step), pair(64)
    model.backbone = Difference(x - y)
    assert model.loss(y, x, generator(3))["loss"] < 1e-6
    at_y = sum(t == 1 for t in model.backbone.times) / 64
    assert at_y == 1 if one_step else 0.3 < at_y < 0.7
    assert torch.allclose(model.restore(y, fov, generator(), steps=3), x, atol=1e-5)
    assert model.backbone.times[64:] == pytest.approx([1] * 64 + [2 / 3] * 64 + [1 / 3] * 64)


@pytest.mark.parametrize("backbone", ["unet", "vae"])
def test_training_lowers_the_loss_and_a_checkpoint_restores_alike(backbone, tmp_path):
    model, (y, _, fov) = bridge(backbone=backbone).train(), pair()
    x = y.mean((2, 3), keepdim=True).sub(0.3).expand_as(y)  # flat and dark: quickly learned
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        losses.append(model.loss(y, x, generator())["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    checkpoint.save(tmp_path, model, {})
    fov[..., :5] = False
    models = model.eval(), checkpoint.load(tmp_path, Bridge)
    first, second = (model.restore(y, fov, generator(1)) for model in models)
    assert torch.equal(first, second) and (first[..., :5] == 0).all()
    assert 0 <= first.min() and first.max() <= 1


def test_the_number_of_steps_has_a_default_per_model():
    y = pair()[0]
    for one_step, default in ((False, Bridge.STEPS), (True, 1)):
        model = bridge(one_step=one_step)
        for steps, expected in ((None, default), (2, 2)):
            assert len(list(model.trajectory(y, generator(), steps))) == expected + 1


def test_mean_and_spread_are_those_of_the_restorations():
    class Noise:
        def restore(self, y, fov, generator, scale=1.0):
            return y + scale * torch.randn(y.shape, generator=generator)

    y = torch.zeros(1, 3, 40, 40)
    mean, spread = mean_and_spread(Noise(), y, None, generator(), 40, scale=0.2)
    assert mean.shape == y.shape and spread.shape == (1, 1, 40, 40)
    assert abs(mean.std() - 0.2 / 40**0.5) < 0.003 and abs((spread**2).mean() - 0.04) < 0.002
    single, no_spread = mean_and_spread(Noise(), y, None, generator(), 1)
    assert torch.equal(single, Noise().restore(y, None, generator())) and (no_spread == 0).all()
    y, _, fov = pair()
    assert (mean_and_spread(bridge(sigma=0.0), y, fov, generator(), 3)[1] < 1e-6).all()
    assert (mean_and_spread(bridge(), y, fov, generator(), 3)[1] > 0).any()


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "vae"])
def test_an_untrained_bridge_returns_its_input(backbone):
    y, _, fov = pair()
    restored = bridge(backbone=backbone, sigma=0.0).restore(y, fov, generator())
    assert torch.allclose(restored, y, atol=1e-6)

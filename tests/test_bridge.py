"""The bridge from y to x: its equations with oracles, its training, and the mean and spread of samples."""

import pytest
import torch
from torch import nn

from rr import checkpoint
from rr.data.pairs import paired
from rr.models.backbones import BACKBONES
from rr.models.bridge import Bridge, between, samples, walk
from rr.models.vae import Output
from rr.data.dataset import Batch


def batch(n=4):
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.ones(n, 4), torch.ones(n, 1, 32, 32, dtype=torch.bool))


def bridge(**changes):
    torch.manual_seed(0)
    return Bridge(**{"size": 32, "width": 4, "latent": 4, **changes}).eval()


def test_the_bridge_ends_at_both_images():
    x, y = torch.rand(2, 2, 3, 8, 8)
    assert torch.equal(between(x, y, 0), x) and torch.equal(between(x, y, 1), y)
    assert torch.allclose(
        between(x, y, torch.tensor([0.5, 0.25]).view(2, 1, 1, 1))[1], 0.75 * x[1] + 0.25 * y[1]
    )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_with_an_oracle_every_state_lies_on_the_bridge(steps):
    x, y = torch.rand(2, 1, 3, 8, 8)
    way = list(walk(lambda x_t, t: x, y, steps))
    assert [round(t * steps) for t, _, _ in way] == list(range(steps, -1, -1))
    for t, x_t, _ in way:
        assert torch.allclose(x_t, between(x, y, t), atol=1e-6)


def test_one_step_is_one_look_at_y():
    x, y = torch.rand(2, 1, 3, 8, 8)
    seen = []
    *_, (_, x_0, _) = walk(lambda x_t, t: seen.append((x_t, t)) or 0.5 * x_t, y, 1)
    assert (
        len(seen) == 1
        and torch.equal(seen[0][0], y)
        and seen[0][1] == 1
        and torch.equal(x_0, 0.5 * y)
    )


class Way(nn.Module):
    """A backbone that knows the way from the pair's y to its x, and notes the times it was asked for."""

    def __init__(self, way):
        super().__init__()
        self.way, self.times = way, []

    def forward(self, x_t, t, generator=None):
        self.times += (t / Bridge.TIMES).tolist()
        return Output(self.way)


@pytest.mark.parametrize("one_step", [False, True])
def test_the_loss_is_zero_for_who_knows_the_way_and_half_of_it_or_all_is_at_y(one_step):
    model, b = bridge(sigma=0.0, one_step=one_step), batch(64)
    y, x = paired(b, torch.Generator().manual_seed(3))
    model.backbone = Way(x - y)
    assert model.loss(b, torch.Generator().manual_seed(3))["loss"] < 1e-6
    at_y = sum(t == 1 for t in model.backbone.times) / 64
    assert at_y == 1 if one_step else 0.3 < at_y < 0.7
    assert torch.allclose(model.restore(y, b.fov, torch.Generator(), steps=3), x, atol=1e-5)
    assert model.backbone.times[64:] == pytest.approx([1] * 64 + [2 / 3] * 64 + [1 / 3] * 64)


@pytest.mark.parametrize("backbone", ["unet", "vae"])
def test_training_lowers_the_loss_and_a_checkpoint_restores_alike(backbone, tmp_path):
    model, b = bridge(backbone=backbone).train(), batch()
    b = b._replace(
        x=b.x.mean((2, 3), keepdim=True).sub(0.3).expand_as(b.x)
    )  # flat and dark: soon learned
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        losses.append(model.loss(b, torch.Generator().manual_seed(0))["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    checkpoint.save(tmp_path, model, {})
    again = checkpoint.load(tmp_path, Bridge)
    fov = b.fov.clone()
    fov[..., :5] = False
    first, second = (
        each.eval().restore(b.x, fov, torch.Generator().manual_seed(1)) for each in (model, again)
    )
    assert (
        torch.equal(first, second)
        and (first[..., :5] == 0).all()
        and 0 <= first.min()
        and first.max() <= 1
    )


def test_steps_are_those_of_the_model_or_those_asked_for():
    y = batch().x
    count = {(one_step, steps): sum(1 for _ in bridge(one_step=one_step).trajectory(y, torch.Generator(), steps)) - 1
             for one_step in (False, True) for steps in (None, 2)}  # fmt: skip
    assert count == {(False, None): Bridge.STEPS, (False, 2): 2, (True, None): 1, (True, 2): 2}


def test_samples_have_the_mean_and_spread_of_what_is_drawn():
    class Draws:
        def restore(self, y, fov, generator, scale=1.0):
            return y + scale * torch.randn(y.shape, generator=generator)

    y = torch.zeros(1, 3, 40, 40)
    mean, spread = samples(Draws(), y, None, torch.Generator().manual_seed(0), 40, scale=0.2)
    assert mean.shape == y.shape and spread.shape == (1, 1, 40, 40)
    assert abs(mean.std() - 0.2 / 40**0.5) < 0.003 and abs((spread**2).mean() - 0.04) < 0.002
    drawn = Draws().restore(y, None, torch.Generator().manual_seed(0))
    one, none = samples(Draws(), y, None, torch.Generator().manual_seed(0), 1)
    assert torch.equal(one, drawn) and (none == 0).all()
    b = batch()
    assert (samples(bridge(sigma=0.0), b.x, b.fov, torch.Generator(), 3)[1] < 1e-6).all()
    assert (samples(bridge(), b.x, b.fov, torch.Generator(), 3)[1] > 0).any()


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "vae"])
def test_untrained_it_leaves_images_as_they_are(backbone):
    b = batch()
    assert torch.allclose(
        bridge(backbone=backbone, sigma=0.0).restore(b.x, b.fov, torch.Generator()), b.x, atol=1e-6
    )

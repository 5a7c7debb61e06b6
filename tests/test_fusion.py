"""The six fusions against their definitions, written out."""

import pytest
import torch
import torch.nn.functional as F

from rr import paper
from rr.errors import InputError
from rr.models.fusion import FUSIONS, Fusion


@pytest.mark.parametrize("name", paper.FUSIONS)
def test_static_adds_with_fixed_weights_and_dynamic_with_learned_ones(name):
    torch.manual_seed(0)
    fusion, x_t, c = Fusion(name, 8), torch.rand(2, 3, 32, 32), torch.rand(8, 2, 2)
    mode = {"upsample": "nearest", "bilinear": "bilinear"}[name.split("-")[0]]
    projected = (
        torch.einsum("oc,chw->ohw", fusion.project.weight[:, :, 0, 0], c)
        + fusion.project.bias[:, None, None]
    )
    projected = 0.1 / c.shape[0] ** 0.5 * projected
    by_hand = x_t + F.interpolate(projected[None], (32, 32), mode=mode)
    assert torch.allclose(fusion(x_t, c), by_hand, atol=1e-5)
    learned = {key for key, _ in fusion.named_parameters()} - {"project.weight", "project.bias"}
    assert learned == ({"w_x", "w_c"} if name.endswith("dynamic") else set())


def test_upsample_repeats_features_and_bilinear_does_not():
    c = torch.rand(8, 2, 2)
    for name, repeats in (("upsample-static", True), ("bilinear-static", False)):
        term = Fusion(name, 8).condition(c, (32, 32))
        assert (len(term[0, 0].unique()) <= 4) == repeats


def test_the_state_is_not_touched():
    x_t = torch.rand(1, 3, 32, 32)
    before = x_t.clone()
    Fusion("bilinear-dynamic", 8)(x_t, torch.rand(8, 1, 1))
    assert torch.equal(x_t, before)


def test_every_image_can_have_its_own_condition():
    fusion, x_t, c = Fusion("bilinear-static", 8), torch.zeros(2, 3, 16, 16), torch.rand(2, 8, 2, 2)
    assert torch.allclose(fusion(x_t, c)[1], fusion(x_t[1:], c[1])[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 3, 3), (2, 8, 7, 7)])
@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_takes_conditions_of_any_resolution(name, shape):
    fusion, x_t, c = Fusion(name, 8), torch.rand(2, 3, 80, 80), torch.rand(shape)
    fused = fusion(x_t, c, torch.tensor([1, 90]), y=x_t)
    assert fused.shape == (2, fusion.channels, 80, 80)
    assert fusion.channels == (6 if name == "concat" else 3)


def test_unknown_fusion():
    with pytest.raises(InputError, match="bilinear-dynamic"):
        Fusion("cross-attention")


def test_film_starts_as_the_static_sum_and_then_depends_on_the_step():
    torch.manual_seed(0)
    film, x_t, c = Fusion("film", 8), torch.rand(2, 3, 16, 16), torch.rand(8, 2, 2)
    t = torch.tensor([1, 90])
    static = x_t + film.condition(c, (16, 16))
    assert torch.allclose(film(x_t, c, t), static, atol=1e-6)
    torch.nn.init.normal_(film.film[1].weight)
    gamma, delta = film.film(t)[:, :, None, None].chunk(2, 1)
    assert torch.allclose(film(x_t, c, t) - x_t, (1 + gamma) * (static - x_t) + delta, atol=1e-5)
    assert not torch.allclose(gamma[0], gamma[1])


def test_concat_is_the_sum_and_then_the_degraded_image():
    fusion, c = Fusion("concat", 8), torch.rand(8, 2, 2)
    x_t, y = torch.rand(2, 2, 3, 16, 16)
    fused = fusion(x_t, c, y=y)
    assert torch.equal(fused[:, 3:], y)
    assert torch.allclose(fused[:, :3], x_t + fusion.condition(c, (16, 16)))


def test_one_step_of_training_moves_the_condition_little():
    """Fails if the weights of c are not scaled: 256 channels that change together move the image by
    more than its range in one step, and the network no longer sees x_t."""
    fusion, c = Fusion("bilinear-static", 256), torch.ones(256, 2, 2)
    before = fusion.condition(c, (8, 8)).detach()
    assert before.abs().max() < 0.5
    optimizer = torch.optim.AdamW(fusion.parameters(), 1e-2)
    fusion.condition(c, (8, 8)).sum().backward()
    optimizer.step()
    change = (fusion.condition(c, (8, 8)) - before).abs()
    assert 1e-4 < change.min() and change.max() < 0.05

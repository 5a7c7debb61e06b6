"""The denoiser and the whole method, with parts whose answer is known."""

import pytest
import torch
from torch import nn

from rr.errors import InputError
from rr.models.restorer import Denoiser
from rr.models.retinaregen import RetinaRegen
from rr.models.vae import Output


class Brightness(nn.Module):
    """A classifier: bright images are readable, and black images are not fundus images."""

    def probabilities(self, x):
        brightness = x.mean((1, 2, 3))[:, None]
        return torch.cat([(brightness > 0.01).float(), (brightness > 0.4).float().expand(-1, 3)], 1)


class Oracle(nn.Module):
    """A backbone that always predicts the same bright image."""

    def forward(self, x, t, generator=None):
        return Output(torch.full_like(x, 0.8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def denoiser(**changes):
    torch.manual_seed(0)
    arguments = {"size": 32, "width": 4, "latent": 4, "T": 20, "schedule": "cosine"}
    return Denoiser(**arguments | {"condition": (8, 1, 1)} | changes).eval()


def images(n=4):
    """Random images x and full fields of view."""
    return torch.rand(n, 3, 32, 32, generator=generator()), torch.ones(n, 1, 32, 32).bool()


def states(model, y, seed=0, **options):
    return [x_t for _, x_t, _ in model.trajectory(y, generator(seed), **options)]


# ---------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("backbone", ["vae", "unet"])
@pytest.mark.parametrize("objective", ["noise", "image", "v"])
def test_the_loss_can_be_repeated_and_reaches_the_fusion(backbone, objective):
    model, (x, _) = denoiser(backbone=backbone, objective=objective).train(), images()
    model.c.normal_()
    first, second = (model.loss(0.5 * x, x, generator(3)) for _ in range(2))
    assert torch.isfinite(first["loss"]) and torch.equal(first["loss"], second["loss"])
    first["loss"].backward()
    assert model.fusion.project.weight.grad.abs().sum() > 0
    assert ("kl" in first) == (backbone == "vae")


def test_the_noise_loss_is_the_papers_where_input_and_target_agree():
    model, (x, _) = denoiser(backbone="unet", objective="noise", start=1.0).train(), images()
    rng = generator(5)
    t = torch.randint(1, 21, (4,), generator=rng)
    epsilon = torch.randn(x.shape, generator=rng)
    with torch.no_grad():
        predicted = model(model.diffusion.add_noise(x, t, epsilon), t).prediction
        loss = model.loss(x, x, generator(5))["loss"]
    assert torch.allclose(loss, ((predicted - epsilon) ** 2).mean(), rtol=1e-4)


@pytest.mark.parametrize("backbone, objective", [("vae", "noise"), ("vae", "v"), ("unet", "image")])
def test_a_backbone_that_predicts_its_target_restores_the_image(backbone, objective):
    """The target of the loss leads back to x, and the loss of its oracle is 0."""
    model, (x, fov) = denoiser(backbone=backbone, objective=objective), images()

    class Target(nn.Module):
        def forward(self, x_t, t, generator=None):
            x_t = x_t - model.fusion.condition(model.c, (32, 32))
            zero = torch.zeros(len(x_t), 1)
            target = model.diffusion.target(objective, x_t, t, x)
            return Output(target, zero, zero) if backbone == "vae" else Output(target)

    model.backbone = Target()
    assert model.loss(x, x, generator())["loss"] < 1e-8
    assert torch.allclose(model.restore(x, fov, generator()), x, atol=1e-4)


def test_only_images_are_predicted_through_a_sigmoid():
    for objective in ("image", "v", "noise"):
        prediction = denoiser(objective=objective)(images()[0], torch.ones(4)).prediction
        assert (prediction.min() > 0) == (objective == "image")


# --------------------------------------------------------------------- condition and state


def test_the_condition_enters_the_network_and_leaves_the_state_alone():
    model = denoiser()
    model.backbone = Oracle()
    nn.init.constant_(model.fusion.project.weight, 1.0)
    y = images(1)[0]
    without = states(model, y)
    epsilon = torch.randn(y.shape, generator=generator())
    assert torch.allclose(without[0], model.diffusion.add_noise(y, model.t_0, epsilon))
    model.c.fill_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(states(model, y), without))


def test_added_to_the_state_the_condition_accumulates():
    """The counterpart of the test above: all states but the last two contain c."""
    model = denoiser()
    model.backbone = Oracle()
    model.c.fill_(1.0)
    nn.init.constant_(model.fusion.project.weight, 8**0.5)  # 8 channels of 0.1
    y, fov = images(1)
    clean, broken = (states(model, y, condition_on_state=choice) for choice in (False, True))
    assert torch.allclose(broken[0], clean[0] + 0.8, atol=1e-5)
    assert all((a - b).abs().max() > 0.1 for a, b in zip(clean[:-2], broken[:-2]))
    with pytest.raises(InputError, match="not a plain sum"):
        denoiser(fusion="film").restore(y, fov, generator(), condition_on_state=True)


def test_a_condition_per_image_comes_from_a_frozen_extractor():
    extractor = {"name": "attention", "width": 16, "heads": 2}
    model, (x, _) = denoiser(condition=(16, 1, 1), extractor=extractor).train(), images()
    assert not model.extractor.training and torch.equal(model.condition(x), model.extractor(x))
    model.loss(x, x, generator())["loss"].backward()
    assert all(parameter.grad is None for parameter in model.extractor.parameters())
    assert model.fusion.project.weight.grad.abs().sum() > 0
    model, t = model.eval(), torch.ones(4)
    assert not torch.equal(model(x, t, y=x).prediction, model(x, t, y=1 - x).prediction)


@pytest.mark.parametrize("fusion", ["film", "concat"])
@pytest.mark.parametrize("backbone", ["vae", "unet++", "densenet"])
def test_extended_fusions_train_and_restore_with_every_backbone(fusion, backbone):
    model, (x, fov) = denoiser(backbone=backbone, fusion=fusion), images()
    model.loss(0.5 * x, x, generator())["loss"].backward()
    assert model.restore(x, fov, generator(), steps=2).shape == x.shape


# ------------------------------------------------------------------------ where it starts


def test_only_a_start_of_1_is_pure_noise():
    """With T = 20, round(0.98 T) is T. The restoration must still see its input (D15)."""
    model, (y, _) = denoiser(start=1.0), images()
    model.backbone = Oracle()
    epsilon = torch.randn(y.shape, generator=generator())
    first = {start: states(model, y, start=start)[0] for start in (0.25, 0.98, 1.0)}
    assert torch.equal(first[1.0], epsilon)
    assert torch.equal(first[0.98], model.diffusion.add_noise(y, 19, epsilon))
    assert torch.equal(first[0.25], model.diffusion.add_noise(y, 5, epsilon))
    assert not torch.equal(first[0.98], states(model, 1 - y, start=0.98)[0])
    assert [denoiser(start=start).t_0 for start in (0.01, 0.25, 0.98, 1.0)] == [1, 5, 19, 20]


def test_a_start_beyond_the_trained_one_is_refused():
    y, fov = images()
    with pytest.raises(InputError, match="trained up to 0.25 of T"):
        denoiser().restore(y, fov, generator(), start=0.5)
    for start in (-0.1, 1.5):
        with pytest.raises(InputError, match="fraction of T"):
            denoiser(start=start)


def test_restore_is_deterministic_masked_and_in_range():
    model, (y, fov) = denoiser(), images()
    fov[:, :, :8] = False
    first, second = (model.restore(y, fov, generator(1)) for _ in range(2))
    assert torch.equal(first, second) and (first[:, :, :8] == 0).all()
    assert 0 <= first.min() and first.max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "score"},
        {"backbone": "vit"},
        {"fusion": "cross-attention"},
        {"likelihood": "gauss"},
        {"schedule": "square"},
        {"extractor": {"name": "vit"}},
    ],
)
def test_choices_are_checked(wrong):
    with pytest.raises(InputError, match="choose one of"):
        denoiser(**wrong)


# ----------------------------------------------------------------------------- the method


def test_unreadable_images_are_restored_and_readable_ones_left_alone():
    model, (x, fov) = denoiser(), images(3)
    model.backbone = Oracle()
    regen = RetinaRegen(Brightness(), model)
    y = torch.stack([x[0] * 0.1, x[1] * 0.5 + 0.5, x[2] * 0.2])
    result = regen(y, fov, trajectory=True)
    assert result.readable.tolist() == [False, True, False] and result.passed.all()
    assert torch.equal(result.image[1], y[1])
    assert torch.allclose(result.image[[0, 2]], torch.tensor(0.8), atol=1e-4)
    assert result.before[0].tolist() == [1, 0, 0, 0] and result.after[0].tolist() == [1, 1, 1, 1]
    assert [t for t, _, _ in result.trajectory] == [5, 4, 3, 2, 1, 0]
    everything = regen(y, fov, screen=False)
    assert not everything.readable.any() and not torch.equal(everything.image[1], y[1])
    with pytest.raises(InputError, match="32x32"):
        regen(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))


def test_an_image_that_is_no_fundus_is_not_turned_into_an_eye():
    model, (x, fov) = denoiser(), images(1)
    model.backbone = Oracle()
    result = RetinaRegen(Brightness(), model)(0 * x, fov)
    assert result.no_fundus.all() and not result.passed.any() and (result.image == 0).all()

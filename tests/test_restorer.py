"""Screen, condition, noise, restore, verify: each with parts that make the answer known."""

import numpy as np
import pytest
import torch
from torch import nn

from rr import checkpoint
from rr.io import InputError
from rr.restorer import PROTOCOLS, Denoiser, RetinaRegen, assemble, literal, paired, restore_photograph
from rr.train import Batch
from rr.vae import Output


class Judge(nn.Module):
    """Readable is what is bright; what is black is no fundus."""

    def probabilities(self, x):
        brightness = x.mean((1, 2, 3))[:, None]
        return torch.cat([(brightness > 0.01).float(), (brightness > 0.4).float().expand(-1, 3)], 1)


class Oracle(nn.Module):
    """A backbone that knows the answer: a bright image."""

    def forward(self, x, t, generator=None):
        self.seen = x
        return Output(torch.full_like(x, 0.8))


def denoiser(**changes):
    torch.manual_seed(0)
    return Denoiser(
        **{"size": 32, "width": 4, "latent": 4, "T": 20, "schedule": "cosine", "condition": (8, 1, 1), **changes}
    ).eval()


def batch(n=4):
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(x, torch.ones(n, 4), torch.ones(n, 1, 32, 32, dtype=torch.bool))


def test_literal_pairs_an_image_with_itself_and_paired_degrades_it():
    b = batch()
    y, x = literal(b, torch.Generator())
    assert y is x is b.x
    y, x = paired(b, torch.Generator().manual_seed(0))
    assert torch.equal(x, b.x) and not torch.equal(y, x) and 0 <= y.min() and y.max() <= 1
    assert torch.equal(y, paired(b, torch.Generator().manual_seed(0))[0])
    assert set(PROTOCOLS) == {"paired", "literal"}


@pytest.mark.parametrize("backbone, objective", [("vae", "image"), ("unet", "noise"), ("unet", "v"), ("unet", "image")])
def test_loss_is_finite_replayable_and_reaches_backbone_and_fusion(backbone, objective):
    model = denoiser(backbone=backbone, objective=objective).train()
    model.c.normal_()
    first, second = (model.loss(batch(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.isfinite(first["loss"]) and torch.equal(first["loss"], second["loss"])
    first["loss"].backward()
    assert model.fusion.project.weight.grad.abs().sum() > 0
    assert ("kl" in first) == (backbone == "vae")


def test_the_condition_enters_the_network_and_leaves_the_state_alone():
    model = denoiser()
    model.backbone = Oracle()
    model.c.fill_(1.0)
    nn.init.constant_(model.fusion.project.weight, 1.0)
    y = torch.rand(1, 3, 32, 32)
    states = [x_t for _, x_t, _ in model.trajectory(y, torch.Generator().manual_seed(0))]
    epsilon = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(states[0], model.diffusion.add_noise(y, model.t_0, epsilon))
    model.c.zero_()
    without = [x_t for _, x_t, _ in model.trajectory(y, torch.Generator().manual_seed(0))]
    assert all(torch.equal(a, b) for a, b in zip(states, without))  # with an oracle the condition changes no state


def test_restore_is_deterministic_masked_and_in_range():
    model, b = denoiser(), batch()
    fov = b.fov.clone()
    fov[:, :, :8] = False
    first, second = (model.restore(b.x, fov, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and (first[:, :, :8] == 0).all() and 0 <= first.min() and first.max() <= 1


def test_unreadable_images_are_restored_and_readable_ones_left_alone():
    model = denoiser()
    model.backbone = Oracle()
    regen = RetinaRegen(Judge(), model)
    b = batch(3)
    y = torch.stack([b.x[0] * 0.1, b.x[1] * 0.5 + 0.5, b.x[2] * 0.2])
    done = regen(y, b.fov, trajectory=True)
    assert done.readable.tolist() == [False, True, False] and done.passed.all()
    assert torch.equal(done.image[1], y[1])
    assert torch.allclose(done.image[[0, 2]], torch.tensor(0.8), atol=1e-4)
    assert done.before[0].tolist() == [1, 0, 0, 0] and done.after[0].tolist() == [1, 1, 1, 1]
    assert [t for t, _, _ in done.trajectory] == [5, 4, 3, 2, 1, 0]
    assert regen(y, b.fov, screen=False).readable.sum() == 0
    with pytest.raises(InputError, match="32x32"):
        regen(torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64))


def test_what_is_no_fundus_is_not_turned_into_an_eye():
    model = denoiser()
    model.backbone = Oracle()
    done = RetinaRegen(Judge(), model)(torch.zeros(1, 3, 32, 32), batch(1).fov)
    assert done.no_fundus.all() and not done.passed.any() and (done.image == 0).all()


def test_references_are_masked_so_that_nothing_outside_of_the_eye_is_scored():
    b = batch()
    b.fov[:, :, :, :5] = False
    y, x = paired(b, torch.Generator().manual_seed(0))
    assert (x[..., :5] == 0).all() and (y[..., :5] == 0).all()


def test_a_photograph_comes_back_in_its_size_with_its_surround():
    model = denoiser()
    model.backbone = Oracle()
    yy, xx = np.mgrid[:300, :400]
    image = np.zeros((300, 400, 3), np.uint8)
    disc = (xx - 190) ** 2 + (yy - 150) ** 2 < 130**2
    image[disc] = (90, 40, 20)
    image[5:12, 5:60] = 200  # a caption in the surround
    result, report = restore_photograph(RetinaRegen(Judge(), model), image)
    assert result.shape == image.shape and result.dtype == np.uint8
    assert (result[5:12, 5:60] == 200).all() and (result[~disc][:, 0] < 205).all()
    assert abs(int(result[150, 190, 0]) - 204) <= 1  # 0.8
    assert report["status"] == "restored" and report["passed"] and set(report["before"]) == {"fundus", "macula", "disc", "retina"}
    bright = np.where(disc[..., None], np.uint8(250), image)
    result, report = restore_photograph(RetinaRegen(Judge(), model), bright)
    assert report["status"] == "readable already" and (result == bright).all()
    with pytest.raises(InputError, match="no field of view"):
        restore_photograph(RetinaRegen(Judge(), model), np.full((100, 100, 3), 99, np.uint8))


def test_a_restorer_folder_stands_alone(tmp_path):
    from rr.readability import Readability

    checkpoint.save(tmp_path / "readability", Readability(), {})
    checkpoint.save(tmp_path / "restorer" / "denoiser", denoiser(), {})
    assemble(tmp_path / "restorer", tmp_path / "readability")
    for path in (tmp_path / "readability").iterdir():
        path.unlink()
    assert RetinaRegen.load(tmp_path / "restorer").size == 32
    with pytest.raises(InputError, match="no checkpoint there"):
        RetinaRegen.load(tmp_path / "readability")


def test_choices_are_checked():
    for wrong in (
        {"objective": "score"},
        {"protocol": "both"},
        {"backbone": "vit"},
        {"fusion": "film"},
        {"backbone": "vae", "objective": "noise"},
    ):
        with pytest.raises(InputError):
            denoiser(**wrong)


def test_the_noise_loss_is_the_papers_where_input_and_target_agree():
    model = denoiser(backbone="unet", objective="noise", protocol="literal", start=1.0).train()
    b, generator = batch(), torch.Generator().manual_seed(5)
    t = torch.randint(1, 21, (4,), generator=generator)
    epsilon = torch.randn(b.x.shape, generator=generator)
    with torch.no_grad():
        predicted = model(model.diffusion.add_noise(b.x, t, epsilon), t).prediction
        loss = model.loss(b, torch.Generator().manual_seed(5))["loss"]
    assert torch.allclose(loss, ((predicted - epsilon) ** 2).mean(), rtol=1e-4)

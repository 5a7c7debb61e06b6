"""Screen, condition, noise, restore, verify: each with parts that make the answer known."""

import numpy as np
import pytest
import torch
from torch import nn

from rr import checkpoint
from rr.data.pairs import PROTOCOLS, literal, paired, training_rows
from rr.errors import InputError
from rr.models.restorer import Denoiser, RetinaRegen
from rr.models.vae import Output
from rr.restore import assemble, restore_photograph
from rr.data.dataset import Batch


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
        **{
            "size": 32,
            "width": 4,
            "latent": 4,
            "T": 20,
            "schedule": "cosine",
            "condition": (8, 1, 1),
            **changes,
        }
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


@pytest.mark.parametrize("backbone", ["vae", "unet"])
@pytest.mark.parametrize("objective", ["noise", "image", "v"])
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
    assert all(
        torch.equal(a, b) for a, b in zip(states, without)
    )  # with an oracle the condition changes no state


def test_restore_is_deterministic_masked_and_in_range():
    model, b = denoiser(), batch()
    fov = b.fov.clone()
    fov[:, :, :8] = False
    first, second = (model.restore(b.x, fov, torch.Generator().manual_seed(1)) for _ in range(2))
    assert (
        torch.equal(first, second)
        and (first[:, :, :8] == 0).all()
        and 0 <= first.min()
        and first.max() <= 1
    )


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
    assert (
        report["status"] == "restored"
        and report["passed"]
        and set(report["before"]) == {"fundus", "macula", "disc", "retina"}
    )
    bright = np.where(disc[..., None], np.uint8(250), image)
    result, report = restore_photograph(RetinaRegen(Judge(), model), bright)
    assert report["status"] == "readable already" and (result == bright).all()
    with pytest.raises(InputError, match="no field of view"):
        restore_photograph(RetinaRegen(Judge(), model), np.full((100, 100, 3), 99, np.uint8))


def test_a_restorer_folder_stands_alone(tmp_path):
    from rr.models.readability import Readability

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
        {"fusion": "cross-attention"},
        {"likelihood": "gauss"},
        {"extractor": {"name": "vit"}},
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


# ------------------------------------------------------------------------------------- what the paper leaves open


@pytest.mark.parametrize("backbone, objective", [("vae", "noise"), ("vae", "v"), ("unet", "image")])
def test_a_restorer_that_knows_its_target_returns_the_image(backbone, objective):
    """Whatever a backbone predicts, the target of its loss leads back to x; its oracle's loss is 0 but for the KL."""
    model, b = denoiser(backbone=backbone, objective=objective, protocol="literal"), batch()

    class Knows(nn.Module):
        def forward(self, x_t, t, generator=None):
            target = model.diffusion.target(
                objective, x_t - model.fusion.condition(model.c, (32, 32)), t, b.x
            )
            zero = torch.zeros(len(x_t), 1)
            return (
                Output(target, zero, zero)
                if backbone == "vae" and objective != "image"
                else Output(target)
            )

    model.backbone = Knows()
    assert model.loss(b, torch.Generator().manual_seed(0))["loss"] < 1e-8
    assert torch.allclose(model.restore(b.x, b.fov, torch.Generator()), b.x, atol=1e-4)


def test_noise_and_v_are_no_images():
    images = [
        denoiser(objective=objective)(batch().x, torch.ones(4)).prediction
        for objective in ("image", "v", "noise")
    ]
    assert images[0].min() > 0 and all(each.min() < 0 for each in images[1:])


def test_from_pure_noise_nothing_of_the_input_is_left():
    model, b = denoiser(start=1.0), batch()
    model.backbone, model.seen = Oracle(), []
    first, second = (
        next(iter(model.trajectory(y, torch.Generator().manual_seed(0))))[1] for y in (b.x, 1 - b.x)
    )
    assert torch.equal(first, second)
    noised = [
        next(iter(model.trajectory(y, torch.Generator().manual_seed(0), start=0.25)))[1]
        for y in (b.x, 1 - b.x)
    ]
    assert not torch.equal(*noised)
    epsilon = torch.randn(b.x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, epsilon) and torch.equal(
        noised[0], model.diffusion.add_noise(b.x, 5, epsilon)
    )
    with pytest.raises(InputError, match="trained up to 0.25 of T"):
        denoiser().restore(b.x, b.fov, torch.Generator(), start=0.5)


def test_added_to_the_state_the_condition_piles_up():
    """The control to the test above: with an oracle the last state is the answer, all others carry c."""
    model = denoiser()
    model.backbone = Oracle()
    model.c.fill_(1.0)
    nn.init.constant_(model.fusion.project.weight, 0.1)
    y = torch.rand(1, 3, 32, 32)
    clean, broken = ([x_t for _, x_t, _ in model.trajectory(y, torch.Generator().manual_seed(0), state=state)]
                     for state in (False, True))  # fmt: skip
    assert torch.allclose(broken[0], clean[0] + 0.8, atol=1e-5)  # 8 channels of 0.1
    assert all((a - b).abs().max() > 0.1 for a, b in zip(clean[:-2], broken[:-2]))
    with pytest.raises(InputError, match="no plain sum"):
        denoiser(fusion="film").restore(y, torch.ones(1, 1, 32, 32), torch.Generator(), state=True)


def test_a_condition_per_image_is_the_features_of_that_image_from_a_frozen_extractor():
    model = denoiser(
        condition=(16, 1, 1), extractor={"name": "attention", "width": 16, "heads": 2}
    ).train()
    b = batch()
    assert not model.extractor.training and torch.equal(model.condition(b.x), model.extractor(b.x))
    model.loss(b, torch.Generator())["loss"].backward()
    assert all(each.grad is None for each in model.extractor.parameters())
    assert model.fusion.project.weight.grad.abs().sum() > 0
    t = torch.ones(4)
    assert not torch.equal(
        model.eval()(b.x, t, y=b.x).prediction, model(b.x, t, y=1 - b.x).prediction
    )


@pytest.mark.parametrize("fusion", ["film", "concat"])
@pytest.mark.parametrize("backbone", ["vae", "unet++", "densenet"])
def test_extended_fusions_train_and_restore_with_every_backbone(fusion, backbone):
    model, b = denoiser(backbone=backbone, fusion=fusion), batch()
    model.loss(b, torch.Generator())["loss"].backward()
    assert model.restore(b.x, b.fov, torch.Generator(), steps=2).shape == b.x.shape


def test_the_region_chooses_what_the_literal_protocol_trains_on():
    class Rows:
        def rows(self, split, **labels):
            return labels

        def references(self, split):
            return "references"

    assert training_rows(Rows(), "train", "literal") == {"fundus": 1, "disc": 0}
    assert training_rows(Rows(), "train", "literal", "macula") == {"fundus": 1, "macula": 0}
    assert training_rows(Rows(), "train", "paired", "retina") == "references"
    with pytest.raises(InputError, match="macula, disc, retina"):
        training_rows(Rows(), "train", "literal", "fovea")

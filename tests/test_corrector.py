"""The recommended restorer: its algebra, its loss, its weights on a photograph, its training."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from torch.nn.functional import avg_pool2d, interpolate

from rr import restore
from rr.checkpoint import read_config
from rr.data import degrade
from rr.data.corrector_pairs import half_size
from rr.data.dataset import Batch
from rr.data.fov import fov_mask
from rr.data.photo import crop_fov, to_photograph, to_tensor
from rr.evaluate import metrics
from rr.files import RECOMMENDED
from rr.models import corrector
from rr.models.corrector import GRID, SIZE, Corrector, corrected, resized
from rr.models.deconvolution import FINE, blur
from rr.train import corrector as training
from rr.train.distributed import fabric


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def retina(size):
    """scikit-image's photograph of a retina and its field of view, (1, 3, size, size)."""
    crop, circle, _ = crop_fov(skimage.data.retina(), size)
    fov = fov_mask([circle], size)
    return to_tensor(crop) * fov, fov


@pytest.fixture(scope="module")
def eyes():
    """The photograph at FINE px, and the same mirrored."""
    x, fov = (torch.cat([image, image.flip(-1)]) for image in retina(FINE))
    return Batch(x, torch.ones(2, 4), fov)


@pytest.fixture(scope="module")
def recommended():
    return restore.load_recommended()


def gain(metric, x, y, z):
    """The mean gain of z over y in a metric with the reference x."""
    return (metric(x, z) - metric(x, y)).mean().item()


# ------------------------------------------------------------------------------- algebra


def test_an_untrained_corrector_returns_its_input(eyes):
    x, fov = eyes.x[:1], eyes.fov[:1]
    assert torch.allclose(Corrector().eval().restore(x, fov, steps=3), x, atol=1e-6)


def test_corrected_is_an_affine_map_of_colours_inside_the_field_of_view():
    x, fov = torch.rand(2, 3, 300, 300, generator=generator()), torch.ones(2, 1, 300, 300).bool()
    fov[:, :, :10] = False
    A = torch.tensor([[0.1, 0.02, 0.0], [0.0, -0.1, 0.05], [0.03, 0.0, 0.2]])
    b = torch.tensor([0.05, -0.02, 0.01])
    affine = torch.cat([A.flatten(), b])[None, :, None, None].expand(2, 12, GRID, GRID)
    expected = (x + torch.einsum("ij,njhw->nihw", A, x) + b[:, None, None]).clamp(0, 1)
    result = corrected(x, fov, affine)
    assert torch.allclose(result[:, :, 10:], expected[:, :, 10:], atol=1e-5)
    assert torch.equal(result[:, :, :10], x[:, :, :10])


@pytest.mark.parametrize("side", [40, 700])
def test_resized_is_torchs_bicubic_with_antialiasing(side):
    x = torch.rand(1, 2, 128, 128, generator=generator())
    expected = interpolate(x, (side, side), mode="bicubic", antialias=True)
    assert torch.allclose(resized(x, (side, side)), expected, atol=1e-5)


def test_turned_back_inverts_eight_different_orientations():
    x = torch.rand(1, 2, 6, 6, generator=generator())
    turned = [corrector.turned(x, k) for k in range(8)]
    assert all(torch.equal(corrector.turned_back(image, k), x) for k, image in enumerate(turned))
    assert len({image.numpy().tobytes() for image in turned}) == 8


def test_the_loss_falls_on_one_batch_and_its_estimates_are_errors(eyes):
    """An untrained model estimates 30 dB and an error of e^-3, and x_hat is x_t itself."""
    torch.manual_seed(0)
    model = Corrector(width=8)
    y, x, fov = half_size(eyes, generator(1))
    before = model.loss(y, x, fov, generator(1))
    t = torch.rand(2, generator=generator(1))
    t = torch.where(t < 0.3, t / 0.3, 1.0).view(2, 1, 1, 1)
    error = (1 - t) * x + t * y - x
    rmse = (error.square().mean((1, 2, 3)) + 1e-5).sqrt()
    local = avg_pool2d(error.abs().mean(1, keepdim=True), SIZE // GRID) + 1e-3
    expected = {
        "rmse": rmse.mean(),
        "quality": (30 + 20 * rmse.log10()).abs().mean(),
        "error": (-3 - local.log()).abs().mean(),
    }
    for name, value in expected.items():
        assert torch.allclose(before[name], value, rtol=1e-4), name
    total = 10 * expected["rmse"] + expected["quality"] / 20 + expected["error"] / 20
    assert torch.allclose(before["loss"], total, rtol=1e-4)

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        model.loss(y, x, fov, generator(1))["loss"].backward()
        optimizer.step()
    after = model.loss(y, x, fov, generator(1))
    assert after["loss"] < before["loss"] and after["rmse"] < before["rmse"]


# ---------------------------------------------------------- the weights in the repository


def test_the_model_card_and_the_weights_are_complete():
    files = list(RECOMMENDED.glob("*.safetensors"))
    assert len(files) == 1 and files[0].stat().st_size < 15e6
    card = (RECOMMENDED / "README.md").read_text(encoding="utf-8")
    for needed in ("not a medical device", "seed", "commit", "rr train", "Limits"):
        assert needed in card


def test_blur_is_estimated_within_a_third_and_undone(recommended, eyes):
    x, fov = eyes.x, eyes.fov
    for sigma in (3 / 512, 10 / 512):  # a blur narrower than 2 / 512 is not always seen
        y = blur(x, torch.full((2,), sigma)) * fov
        assert ((recommended.blur(y, fov) / sigma).log().abs() < math.log(4 / 3)).all()
        assert gain(metrics.psnr, x, y, recommended.restore(y, fov)) > 1
    assert (recommended.blur(x, fov) == 0).all()


def test_a_decision_is_random_with_a_generator_only(recommended, eyes):
    y, fov = eyes.x[:1], eyes.fov[:1]
    assert torch.equal(recommended.restore(y, fov), recommended.restore(y, fov))
    first, second = (recommended.restore(y, fov, generator(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, recommended.restore(y, fov, generator(1)))


@pytest.mark.parametrize(
    "families, psnr",
    [(("illumination",), 5), (("blur",), 1), (("spots",), -1), (degrade.FAMILIES, 5)],
)
def test_it_gains_on_a_photograph_that_it_was_not_trained_on(recommended, families, psnr):
    x, fov = (image.expand(2, -1, -1, -1) for image in retina(256))
    y = degrade.apply(x, degrade.sample(2, generator(5), families, 1.0), fov)
    y = (y * 255).round() / 255
    z = recommended.restore(y, fov)
    assert gain(metrics.psnr, x, y, z) > psnr
    if families == degrade.FAMILIES:
        assert gain(metrics.ssim, x, y, z) > 0.08


def test_a_good_photograph_keeps_its_pixels(recommended):
    image = skimage.data.retina()
    restored, report = restore.restore_photograph(recommended, image)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    x, z = to_tensor(image), to_tensor(restored)
    assert metrics.psnr(x, z) > 38
    before, after = (x.diff(dim=-1).square().mean() for x in (x, z))
    assert abs(after / before - 1) < 0.05
    assert 0 <= report["estimates"]["correction"] <= 1


def test_the_surround_is_returned_unchanged(recommended):
    x, fov = retina(400)
    y = degrade.apply(x, degrade.sample(1, generator(2), severity=1.0), fov)
    image = to_photograph(y)
    restored, report = restore.restore_photograph(recommended, image)
    outside = ~fov_mask([crop_fov(image)[1]], 400)[0, 0].numpy()
    assert report["status"] == "restored" and not np.array_equal(restored, image)
    assert np.array_equal(restored[outside], image[outside])
    assert restored[~fov[0, 0].numpy()].max() <= 8


def test_a_turned_photograph_gets_the_same_estimates_and_a_grey_one_stays_grey(recommended):
    """The frame cuts the eye above and below. After a quarter turn it cuts it left and right."""
    x, fov = retina(600)
    y = degrade.apply(x, degrade.sample(1, generator(2), ("blur", "illumination"), 0.6), fov)
    image = to_photograph(y)[60:540]
    sigma, turned_sigma = (
        restore.restore_photograph(recommended, photograph)[1]["estimates"]["blur"]
        for photograph in (image, np.rot90(image).copy())
    )
    assert sigma > 1 and abs(math.log(turned_sigma / sigma)) < math.log(1.25)
    grey = np.repeat(image[..., 1:2], 3, axis=2)
    restored, _ = restore.restore_photograph(recommended, grey)
    assert (restored == restored[..., :1]).all()


# ------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_the_training_makes_one_checkpoint_and_can_be_repeated(tmp_path, photos):
    """In miniature, with embedded eyes and photographs: both stages and the blur estimate."""
    options = dict(photos=photos, eyes=30, epochs=(1, 1), batch=4, blurred=32, fabric=fabric("cpu"))
    folder = training.make(tmp_path, **options)
    config = read_config(folder)
    assert set(config["stages"]) == {"near", "wide"} and config["provenance"]["photographs"] > 0
    first = (folder / config["weights"]).read_bytes()
    assert training.make(tmp_path, **options) == folder  # finds both stages and fits the blur again
    assert (folder / read_config(folder)["weights"]).read_bytes() == first
    eye, fov = torch.rand(1, 3, 64, 64, generator=generator()), torch.ones(1, 1, 64, 64).bool()
    assert restore.load(folder).restore(eye, fov).shape == eye.shape

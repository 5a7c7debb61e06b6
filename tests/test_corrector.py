"""The recommended restorer: its algebra, what its training pairs are, and what its weights do to a photograph."""

import math

import numpy as np
import pytest
import skimage.data
import torch

from rr import files as io
from rr import restore
from rr.data import degrade
from rr.data.pairs import randomised
from rr.data.photo import crop_fov, fov_mask, to_photograph, to_tensor
from rr.errors import InputError
from rr.evaluate import metrics
from rr.models import corrector
from rr.models.corrector import FINE, GRID, SIGMAS, SIZE, Blur, Corrector, corrected, resized
from rr.train import corrector as corrector_training
from rr.data.dataset import Batch
from rr.train.distributed import fabric

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def eyes():
    """Three views of a photograph, clean, at FINE px."""
    crop, circle, _ = crop_fov(skimage.data.retina(), FINE)
    x, fov = to_tensor(crop), fov_mask([circle], FINE)
    x = x * fov
    four = [torch.cat([each, each.flip(-1), each.mT, each.flip(-2)]) for each in (x, fov)]
    return Batch(four[0], torch.ones(4, 4), four[1])


@pytest.fixture(scope="module")
def recommended():
    return restore.load_recommended()


def test_untrained_changes_nothing(eyes):
    model = Corrector().eval()
    assert torch.allclose(model.restore(eyes.x, eyes.fov), eyes.x, atol=1e-6)
    assert torch.allclose(model.restore(eyes.x, eyes.fov, steps=4), eyes.x, atol=1e-6)


def test_corrected_is_an_affine_map_of_colours_at_every_place():
    x, fov = (
        torch.rand(2, 3, 300, 300, generator=generator()),
        torch.ones(2, 1, 300, 300, dtype=torch.bool),
    )
    fov[:, :, :10] = False
    A, b = (
        torch.tensor([[0.1, 0.02, 0.0], [0.0, -0.1, 0.05], [0.03, 0.0, 0.2]]),
        torch.tensor([0.05, -0.02, 0.01]),
    )
    affine = torch.cat([A.flatten(), b])[None, :, None, None].expand(2, 12, GRID, GRID)
    expected = (x + torch.einsum("ij,njhw->nihw", A, x) + b[:, None, None]).clamp(0, 1)
    found = corrected(x, fov, affine)
    assert torch.allclose(found[:, :, 10:], expected[:, :, 10:], atol=1e-5)
    assert torch.equal(found[:, :, :10], x[:, :, :10])  # outside of the field of view


@pytest.mark.parametrize("side", [40, 700])
def test_resized_is_torchs_bicubic_with_antialiasing(side):
    x = torch.rand(1, 2, 128, 128, generator=generator())
    expected = torch.nn.functional.interpolate(x, (side, side), mode="bicubic", antialias=True)
    assert torch.allclose(resized(x, (side, side)), expected, atol=1e-5)


def test_orientations_come_back():
    x = torch.rand(1, 2, 6, 6, generator=generator())
    turned = [corrector._turned(x, k) for k in range(8)]
    assert all(torch.equal(corrector._back(each, k), x) for k, each in enumerate(turned))
    assert len({each.numpy().tobytes() for each in turned}) == 8


def test_blur_is_estimated_and_undone(recommended, eyes):
    """The bundled photograph, blurred: sigma is found within a third, and the deconvolution gains at every sigma."""
    for sigma in (3 / 512, 5 / 512, 10 / 512):  # narrower than 2 / 512 is not always seen
        y = degrade.blur(eyes.x, torch.full((4,), sigma)) * eyes.fov
        found = recommended.blur(y, eyes.fov)
        assert ((found / sigma).log().abs() < math.log(4 / 3)).all(), (sigma, found)
        z = recommended.restore(y, eyes.fov)
        assert (metrics.psnr(eyes.x, z) > metrics.psnr(eyes.x, y) + 1).all()
    assert (recommended.blur(eyes.x, eyes.fov) == 0).all()


def test_blur_learns_sigma_from_features():
    """Features in which log(512 sigma + 1/2) stands plainly: the head must find it."""
    sigma = torch.rand(800, generator=generator()) * 15 / 512
    features = torch.randn(800, 2 * len(SIGMAS) + 1, generator=generator(1))
    features[:, 3] = (512 * sigma + 0.5).log()
    torch.manual_seed(0)
    assert Blur().fit(features, sigma, generator(2), steps=300) < 0.15


def test_training_pairs_are_seeded_and_some_are_left_as_they_are(eyes):
    many = Batch(
        *(each.repeat(16, 1, 1, 1) if each.dim() == 4 else each.repeat(16, 1) for each in eyes)
    )
    small = many._replace(
        x=many.x[..., ::4, ::4].contiguous(), fov=many.fov[..., ::4, ::4].contiguous()
    )
    y, x, fov, sigma = randomised(small, generator(3))
    again = randomised(small, generator(3))
    assert all(torch.equal(a, b) for a, b in zip((y, x, fov, sigma), again))
    assert not torch.equal(y, randomised(small, generator(4))[0])
    for image in (y, x):
        assert (
            image.shape == small.x.shape
            and image.min() >= 0
            and image.max() <= 1
            and (image * ~fov).max() == 0
        )
    assert sigma.min() == 0 and 4 / 512 < sigma.max() <= 15 / 512
    psnr = metrics.psnr(x, y)
    assert 0.05 < (psnr > 45).float().mean() < 0.5 and (psnr < 25).float().mean() > 0.3


def test_loss_falls_on_one_batch(eyes):
    torch.manual_seed(0)
    model = Corrector(width=8)
    before = model.loss(eyes, generator(1))
    assert set(before) == {"loss", "rmse", "quality", "error"}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        model.loss(eyes, generator(1))["loss"].backward()
        optimizer.step()
    after = model.loss(eyes, generator(1))
    assert after["loss"] < before["loss"] and after["rmse"] < before["rmse"]


def test_one_decision_is_random_with_a_generator_only(recommended, eyes):
    y, fov = eyes.x[:1], eyes.fov[:1]
    assert torch.equal(recommended.restore(y, fov), recommended.restore(y, fov))
    one, two = (recommended.restore(y, fov, generator(seed)) for seed in (1, 2))
    assert not torch.equal(one, two) and torch.equal(one, recommended.restore(y, fov, generator(1)))


# ------------------------------------------------------------------------------------------- the weights in the repository


def test_weights_are_small_and_named_by_their_hash():
    files = list(io.RECOMMENDED.glob("*.safetensors"))
    assert len(files) == 1 and files[0].stat().st_size < 15e6
    card = (io.RECOMMENDED / "README.md").read_text(encoding="utf-8")
    for needed in ("not a medical device", "seed", "commit", "rr train", "Limits"):
        assert needed in card


def test_it_gains_on_the_bundled_photograph(recommended):
    """The bundled photograph was never trained on (but seen when LEAVE was chosen). Means over draws at severity 1, 256 px."""
    crop, circle, _ = crop_fov(skimage.data.retina(), 256)
    fov = fov_mask([circle], 256)
    x = to_tensor(crop) * fov
    gain, like, after = {}, {}, {}
    for families in (("illumination",), ("blur",), ("spots",), degrade.FAMILIES):
        params = degrade.sample(8, generator(5), families, 1.0)
        y = (
            degrade.apply(x.expand(8, -1, -1, -1), params, fov.expand(8, -1, -1, -1)) * 255
        ).round() / 255
        z, name = recommended.restore(y, fov.expand(8, -1, -1, -1)), "+".join(families)
        after[name] = metrics.psnr(x.expand_as(z), z).mean().item()
        gain[name] = (
            (metrics.psnr(x.expand_as(z), z) - metrics.psnr(x.expand_as(y), y)).mean().item()
        )
        like[name] = (
            (metrics.ssim(x.expand_as(z), z) - metrics.ssim(x.expand_as(y), y)).mean().item()
        )
    every = "illumination+spots+blur"
    assert (
        gain["illumination"] > 5 and gain[every] > 5 and like[every] > 0.08 and gain["blur"] > 1
    ), (gain, like)
    assert after["spots"] > 36 and gain["spots"] > -0.5, (gain, after)


def test_a_good_photograph_keeps_its_pixels(recommended):
    image = skimage.data.retina()
    restored, report = restore.restore_photograph(recommended, image)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    x, z = to_tensor(image), to_tensor(restored)
    assert metrics.psnr(x, z) > 38
    edges = [
        sum(np.square(np.diff(each[0].numpy(), axis=axis)).mean() for axis in (1, 2))
        for each in (x, z)
    ]
    assert abs(edges[1] / edges[0] - 1) < 0.05
    assert 0 <= report["correction"] <= 1


def test_surround_is_returned_as_it_came(recommended):
    crop, circle, _ = crop_fov(skimage.data.retina(), 400)
    fov = fov_mask([circle], 400)
    y = to_photograph(
        degrade.apply(to_tensor(crop), degrade.sample(1, generator(2), severity=1.0), fov)
    )
    restored, report = restore.restore_photograph(recommended, y)
    found = fov_mask([crop_fov(y)[1]], 400)[0, 0].numpy()
    assert report["status"] == "restored" and not np.array_equal(restored, y)
    assert np.array_equal(restored[~found], y[~found])
    assert restored[~fov[0, 0].numpy()].max() <= 8


def test_a_turned_photograph_is_judged_alike_and_a_grey_one_stays_grey(recommended):
    """An eye that the frame cuts above and below, blurred: turned by a quarter, the frame cuts it left and right."""
    crop, circle, _ = crop_fov(skimage.data.retina(), 600)
    fov = fov_mask([circle], 600)
    y = degrade.apply(
        to_tensor(crop), degrade.sample(1, generator(2), ("blur", "illumination"), 0.6), fov
    )
    image = to_photograph(y)[60:540]
    one, two = (
        restore.restore_photograph(recommended, each) for each in (image, np.rot90(image).copy())
    )
    assert one[1]["blur"] > 1 and abs(math.log(two[1]["blur"] / one[1]["blur"])) < math.log(1.25), (
        one[1],
        two[1],
    )
    grey = np.repeat(image[..., 1:2], 3, axis=2)
    restored, _ = restore.restore_photograph(recommended, grey)
    assert (restored == restored[..., :1]).all()


def test_no_field_of_view_is_said():
    with pytest.raises(InputError, match="no field of view"):
        restore.restore_photograph(Corrector().eval(), np.full((200, 300, 3), 128, np.uint8))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint there"):
        restore.load_recommended(folder=tmp_path)


def test_sizes_fit():
    assert SIZE % GRID == 0 and FINE == 2 * SIZE


def test_the_weights_are_made_by_one_call_that_can_be_repeated(tmp_path, photos):
    """A training in miniature: embedded eyes and a folder of photographs; both stages and the blur end in one checkpoint."""
    words = dict(photos=photos, eyes=30, epochs=(1, 1), batch=4, blurred=32, fabric=fabric("cpu"))
    folder = corrector_training.make(tmp_path, **words)
    config = io.read_json(folder / "config.json")
    assert set(config["stages"]) == {"near", "wide"} and config["provenance"]["photographs"] > 0
    model = restore.load_recommended(folder=folder)
    first = (folder / config["weights"]).read_bytes()
    assert (
        corrector_training.make(tmp_path, **words) == folder
    )  # trained stages are found, the blur is fitted again
    again = io.read_json(folder / "config.json")
    assert (folder / again["weights"]).read_bytes() == first
    eye = torch.rand(1, 3, 64, 64, generator=generator())
    assert model.restore(eye, torch.ones(1, 1, 64, 64, dtype=torch.bool)).shape == eye.shape

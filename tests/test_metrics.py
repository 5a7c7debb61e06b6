"""Metrics against scikit-image, closed forms and LPIPS's published values."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.models import alexnet

from rr.errors import InputError
from rr.evaluate import metrics
from rr.files import ROOT

SHARED = ROOT.parent / "shared/weights"
TRUNK = pytest.mark.skipif(
    not (SHARED / "alexnet_features.safetensors").is_file(), reason="no trunk weights here"
)


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A machine without any weights file."""
    monkeypatch.delenv("RR_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))


def pairs(n=3, height=48, width=40, noise=0.1):
    rng = np.random.default_rng(0)
    x = torch.nn.functional.interpolate(
        torch.from_numpy(rng.random((n, 3, 6, 5))), (height, width), mode="bicubic"
    )
    x = x.clamp(0, 1)
    y = (x * 0.9 + noise * torch.from_numpy(rng.standard_normal(x.shape))).clamp(0, 1)
    return x.float(), y.float()


def wang(a, b, **options):
    settings = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
    }
    return structural_similarity(
        a.double().numpy(), b.double().numpy(), channel_axis=0, **settings, **options
    )


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_and_psnr_equal_scikit_image(noise):
    x, y = pairs(noise=noise)
    for i in range(3):
        assert metrics.ssim(x, y)[i].item() == pytest.approx(wang(x[i], y[i]), abs=1e-9)
        expected = peak_signal_noise_ratio(
            x[i].double().numpy(), y[i].double().numpy(), data_range=1
        )
        assert metrics.psnr(x, y)[i].item() == pytest.approx(expected, abs=1e-9)


def test_masked_ssim_is_the_mean_of_scikit_images_map():
    x, y = pairs(2)
    mask = torch.zeros(2, 1, 48, 40, dtype=torch.bool)
    mask[0, :, 10:30, 8:20] = True
    mask[1, :, :12, :] = True  # touches the border, whose 5 pixels do not count
    for i in range(2):
        _, ssim_map = wang(x[i], y[i], full=True)
        inner = np.zeros((48, 40), bool)
        inner[5:-5, 5:-5] = mask[i, 0, 5:-5, 5:-5]
        assert metrics.ssim(x, y, mask)[i].item() == pytest.approx(
            ssim_map[:, inner].mean(), abs=1e-9
        )


def test_masked_psnr_sees_only_the_mask():
    x = torch.zeros(1, 3, 20, 20)
    y, mask = x.clone(), torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    y[..., :10] = 0.5
    mask[..., 8:12] = True  # half of it differs by 0.5: MSE 1/8
    assert metrics.psnr(x, y, mask).item() == pytest.approx(10 * math.log10(8))
    assert metrics.psnr(x, y, torch.ones_like(mask)).item() == pytest.approx(
        metrics.psnr(x, y).item()
    )
    assert metrics.psnr(x, y, torch.zeros_like(mask)).isnan().all()


def test_identical_images_have_ssim_1_and_the_psnr_of_an_image_stored_with_8_bits():
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stored = (x * 255).round() / 255
    assert metrics.psnr(x, stored).tolist() == pytest.approx([metrics.PSNR_MAX] * 3, abs=0.1)
    assert metrics.psnr(x, x).tolist() == [metrics.PSNR_MAX] * 3
    assert metrics.ssim(x, x).tolist() == [1.0] * 3


def eyes(n=5, size=12):
    """Different pictures with different fields of view; the right half is in none of them."""
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(n, 1, size, size, dtype=torch.bool)
    mask[..., 2:-2, : size // 2] = True
    mask[0, :, :4], mask[1, :, :, 4:] = False, False
    return x * mask, mask


def test_variation_is_the_spread_of_the_outputs_over_that_of_the_references():
    x, mask = eyes()
    assert metrics.variation(x, x, mask) == pytest.approx(1)
    assert metrics.variation(0.5 * x + 0.25, x, mask) == pytest.approx(0.5)
    same = x[:1].expand_as(x) * mask  # one picture; only the fields of view differ
    assert metrics.variation(same, x, mask) == 0
    assert metrics.variation(x.mean((2, 3), keepdim=True) + 0 * x, x, mask) > 0
    outside = torch.where(mask.all(0), same, torch.rand(x.shape))
    assert metrics.variation(outside, x, mask) == 0  # seen by some of the images only, or by none
    assert math.isnan(metrics.variation(x[:1], x[:1], mask[:1]))


def test_variation_is_the_root_of_the_mean_variance():
    """Two images of two pixels: standard deviations 0.1 and 0.3 in x, twice 0.2 in x_hat."""
    x = torch.tensor([[0.1, 0.1], [0.3, 0.7]]).reshape(2, 1, 1, 2).expand(-1, 3, -1, -1)
    x_hat = torch.tensor([[0.2, 0.9], [0.6, 0.5]]).reshape(2, 1, 1, 2).expand(-1, 3, -1, -1)
    everywhere = torch.ones(2, 1, 1, 2, dtype=torch.bool)
    expected = math.sqrt((0.2**2 + 0.2**2) / (0.1**2 + 0.3**2))
    assert metrics.variation(x_hat, x, everywhere) == pytest.approx(expected)
    left = torch.tensor([True, False]).expand(2, 1, 1, 2)
    assert metrics.variation(x_hat, x, left) == pytest.approx(2)


def test_metrics_are_per_image():
    x, y = pairs()
    for metric in (metrics.psnr, metrics.ssim):
        whole = metric(x, y)
        assert whole.shape == (3,) and len(set(whole.tolist())) == 3
        assert [metric(x[i : i + 1], y[i : i + 1]).item() for i in range(3)] == pytest.approx(
            whole.tolist(), abs=1e-12
        )


@pytest.mark.parametrize("call", [metrics.psnr, metrics.ssim])
def test_bad_shapes_are_one_clear_line(call):
    with pytest.raises(InputError, match="shapes"):
        call(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21))
    with pytest.raises(InputError, match="mask"):
        call(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), torch.ones(20, 20))


def test_ssim_needs_its_window():
    with pytest.raises(InputError, match="11x11"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_psnr_and_ssim_are_computed_in_float64():
    """A tiny error on a bright image: in float32 the variances of SSIM would cancel."""
    x = 0.9 + 1e-3 * pairs(1)[0]
    y = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert metrics.ssim(x, y).dtype == metrics.psnr(x, y).dtype == torch.float64
    assert metrics.ssim(x, y).item() == pytest.approx(wang(x[0], y[0]), abs=1e-9)


def example(name):
    image = np.asarray(Image.open(SHARED / "lpips_examples" / f"{name}.png").convert("RGB"))
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


@TRUNK
@pytest.mark.parametrize("net, far, near", [("alex", 0.722, 0.138), ("squeeze", 0.711, 0.148)])
def test_lpips_gives_its_published_values(net, far, near):
    distance = metrics.load_lpips(net, folder=SHARED)
    reference, p0, p1 = (example(name) for name in ("ex_ref", "ex_p0", "ex_p1"))
    batch = distance(reference.expand(2, -1, -1, -1), torch.cat([p0, p1]))
    assert [round(value, 3) for value in batch.tolist()] == [far, near]
    assert distance(reference, reference).item() < 1e-12
    assert "sha256" in distance.note and net in distance.note


@TRUNK
def test_lpips_refuses_small_images_and_other_ranges():
    distance = metrics.load_lpips(folder=SHARED)
    x = torch.rand(1, 3, 64, 64)
    for bad in (2 * x - 1, 255 * x, x * torch.nan):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            distance(x, bad)
    with pytest.raises(InputError, match="at least 64"):
        distance(x[..., :63], x[..., :63])


def test_without_a_trunk_there_is_no_lpips(no_weights, tmp_path, monkeypatch):
    assert metrics.load_lpips() is None
    assert metrics.load_lpips(folder=tmp_path) is None

    def offline(name):
        raise InputError(f"{name}: could not be downloaded")

    monkeypatch.setattr(metrics.pretrained, "_download", offline)
    with pytest.raises(InputError, match="alexnet: could not be downloaded"):
        metrics.load_lpips(weights="imagenet")  # asked for, so its absence is an error
    with pytest.raises(InputError, match="unknown"):
        metrics.load_lpips("resnet")


def test_a_trunk_that_is_not_complete_is_refused(no_weights, tmp_path):
    features = {
        key: v
        for key, v in alexnet(weights=None).state_dict().items()
        if key.startswith("features.")
    }
    features.pop("features.10.bias")
    save_file(features, tmp_path / "alexnet_features.safetensors")
    with pytest.raises(InputError, match="features.10.bias"):
        metrics.load_lpips(folder=tmp_path)


def test_score_has_every_column_and_crops_the_disc():
    x, y = pairs(3, 80, 80)
    fov = torch.zeros(3, 1, 80, 80, dtype=torch.bool)
    fov[..., 10:70, 10:70] = True
    calls = []

    def lpips(a, b):
        calls.append((tuple(a.shape), a[..., 0, 0].abs().amax(1).tolist()))
        return torch.full((len(a),), 0.25)

    disc = torch.tensor([[0.5, 0.5, 0.05], [torch.nan] * 3, [0.9, 0.5, 0.3]])
    table = metrics.score(x, y, fov, disc, lpips)
    assert list(table) == [
        f"{metric}{region}"
        for region in ("", "_fov", "_disc")
        for metric in ("psnr", "ssim", "lpips")
    ]
    np.testing.assert_allclose(table["psnr"], metrics.psnr(x, y))
    np.testing.assert_allclose(table["psnr_fov"], metrics.psnr(x, y, fov))
    np.testing.assert_allclose(table["ssim_fov"], metrics.ssim(x, y, fov))
    # Disc 0: the half-width is 3 x 4 = 12 pixels around (40, 40), which is too small for LPIPS.
    # Disc 1 is unknown. Disc 2 is cut at the border of the image.
    crop = slice(28, 52)
    np.testing.assert_allclose(
        table["psnr_disc"][0], metrics.psnr(x[:1, :, crop, crop], y[:1, :, crop, crop])[0]
    )
    assert table["lpips_disc"].isna().tolist() == [True, True, False]
    assert table["ssim_disc"].isna().tolist() == [False, True, False]
    (frame, corners), (of_fov, black), (crop, _) = calls
    assert frame == of_fov == (3, 3, 80, 80) and crop == (1, 3, 80, 80)
    assert min(corners) > 0 and max(black) == 0  # black outside the field of view


def test_score_of_many_images_keeps_a_disc_of_any_kind():
    """Before, a numpy disc of more than 64 images was dropped without a message."""
    x, y = (image.expand(65, -1, -1, -1) for image in pairs(1, 24, 24))
    disc = np.tile([[0.5, 0.5, 0.2]], (65, 1))
    disc[64] = np.nan
    table = metrics.score(x, y, disc=disc)
    assert table.equals(metrics.score(x, y, disc=torch.from_numpy(disc)))
    assert table["psnr_disc"].notna().tolist() == [True] * 64 + [False]
    assert table["psnr_fov"].isna().all() and len(metrics.score(x[:0], y[:0])) == 0

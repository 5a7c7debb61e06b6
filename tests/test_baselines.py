"""Classical restorers: exact cases, numpy as an oracle, and properties of CLAHE."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.transform import downscale_local_mean

from rr.data import degrade, synthetic
from rr.errors import InputError
from rr.evaluate import baselines
from rr.evaluate.metrics import psnr


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def eyes(indices, size=96):
    drawn = [synthetic.fundus(0, i, size) for i in indices]
    x = torch.stack([torch.from_numpy(eye.image).permute(2, 0, 1) / 255 for eye in drawn])
    return x, torch.stack([torch.from_numpy(eye.fov)[None] for eye in drawn])


@pytest.fixture(scope="module")
def methods():
    return baselines.baselines(baselines.population([eyes(range(20, 26)), eyes(range(26, 32))]))


def nothing(n):
    return degrade.sample(n, generator(), severity=0.0)


def test_names_and_order(methods):
    names = "do nothing", "population mean", "low-pass swap", "mean/std match", "CLAHE", "unsharp"
    assert list(methods) == [*names, "Wiener (known blur)"]


def test_every_method_keeps_shape_and_range_and_a_black_surround_and_repeats_itself(methods):
    x, fov = eyes(range(4))
    params = degrade.sample(4, generator(), severity=1.0)
    y = degrade.apply(x, params, fov)
    kept = y.clone()
    for name, method in methods.items():
        x_hat = method(y, fov, params)
        assert x_hat.shape == y.shape and x_hat.dtype == torch.float32, name
        assert 0 <= x_hat.min() and x_hat.max() <= 1 and (x_hat * ~fov).abs().max() == 0, name
        assert torch.equal(method(y, fov, params), x_hat) and torch.equal(y, kept), name
        alone = method(y[2:3], fov[2:3], {key: value[2:3] for key, value in params.items()})
        assert (alone - x_hat[2:3]).abs().max() < 1e-3, name


def test_only_wiener_looks_at_the_parameters(methods):
    x, fov = eyes(range(2))
    for name, method in methods.items():
        if "known" in name:
            with pytest.raises(TypeError):
                method(x, fov, None)
        else:
            method(x, fov, None)


def test_population_does_not_depend_on_the_batches_and_equals_numpy():
    x, fov = eyes(range(5))
    one = baselines.population([(x, fov)])
    parts = baselines.population((x[i : i + 2], fov[i : i + 2]) for i in (0, 2, 4))
    for a, b in zip(one, parts):
        assert torch.allclose(a, b, atol=1e-6)
    inside = [image.numpy()[:, mask[0].numpy()] for image, mask in zip(x, fov)]  # (3, pixels) each
    np.testing.assert_allclose(
        one.mean, np.mean([values.mean(1) for values in inside], axis=0), atol=1e-5
    )
    np.testing.assert_allclose(
        one.std, np.mean([values.std(1) for values in inside], axis=0), atol=1e-5
    )
    np.testing.assert_allclose(one.image[0], x.numpy().mean(0), atol=1e-6)
    with pytest.raises(InputError, match="no images"):
        baselines.population([])


def test_low_pass_swap_undoes_a_change_of_light_that_is_smooth():
    """The same eye in two lights has the same result, in the light of the mean image."""
    x, fov = eyes([3])
    x = 0.3 + 0.3 * x  # away from the clamps
    population = baselines.population([(x, fov)])
    axis = (torch.arange(96) + 0.5) / 96
    light = 0.08 * torch.cos(2 * np.pi * 0.5 * (axis - 0.2)) * torch.ones(96, 1)
    before, after = (
        baselines.low_pass_swap(population, x, fov, None),
        baselines.low_pass_swap(population, x + light, fov, None),
    )
    assert torch.allclose(before, x * fov, atol=1e-5)  # its own low-pass replaced by its own
    assert psnr(x * fov, after).item() > psnr(x * fov, (x + light) * fov).item() + 5


def test_match_inverts_any_gain_and_offset_per_channel():
    x, fov = eyes([5])
    x = 0.2 + 0.5 * x
    population = baselines.population([(x, fov)])
    gain, offset = (
        torch.tensor(values).view(1, 3, 1, 1) for values in ([0.5, 0.8, 1.1], [0.1, 0.05, -0.1])
    )
    assert torch.allclose(
        baselines.match(population, x * gain + offset, fov, None), x * fov, atol=1e-4
    )


def test_population_mean_is_enlarged_to_the_images(methods):
    x, fov = eyes([1], size=160)
    mean = baselines.population([eyes(range(20, 26)), eyes(range(26, 32))]).image
    x_hat = methods["population mean"](x, fov, None)
    smaller = downscale_local_mean(
        methods["population mean"](x, torch.ones_like(fov), None).numpy(), (1, 1, 5, 5)
    )
    assert x_hat.shape == x.shape
    np.testing.assert_allclose(smaller, downscale_local_mean(mean.numpy(), (1, 1, 3, 3)), atol=0.03)


def test_clahe_raises_local_contrast_in_lightness_alone():
    x, fov = eyes([2], size=128)
    faint = (0.35 + 0.25 * x) * fov
    x_hat = baselines.clahe(faint, fov, None)
    before, after = (rgb2lab(image[0].permute(1, 2, 0).numpy()) for image in (faint, x_hat))
    inside = fov[0, 0].numpy()
    assert after[inside][:, 0].std() > 1.2 * before[inside][:, 0].std()
    assert (
        abs(after - before)[inside][:, 1:].mean() < 0.2 * abs(after - before)[inside][:, 0].mean()
    )
    assert after[..., 0].max() <= before[..., 0].max() + 0.5  # it keeps the range
    black = torch.zeros_like(x)
    assert torch.equal(baselines.clahe(black, fov, None), black)


def test_clahe_clips_at_twice_the_mean_bin():
    """The slope of the map is bounded: 26 grey levels become twice as many, not all 256."""
    grey = 0.45 + 0.1 * torch.rand(1, 1, 256, 256, generator=generator())
    grey[..., 0, 0], grey[..., -1, -1] = 0, 1  # fix the range
    x_hat = baselines.clahe(
        grey.expand(1, 3, 256, 256), torch.ones_like(grey, dtype=torch.bool), None
    )
    spread = x_hat[..., 32:-32, 32:-32].std() / grey[..., 32:-32, 32:-32].std()
    assert 1.6 < spread < 2.4


def test_unsharp_adds_the_detail_once_more():
    x, fov = eyes([4])
    x = 0.3 + 0.3 * x
    whole = torch.ones_like(fov)
    blurred = degrade.blur(x, torch.tensor([baselines.UNSHARP_SIGMA]))
    assert torch.allclose(
        baselines.unsharp(x, whole, None), (2 * x - blurred).clamp(0, 1), atol=1e-5
    )


@pytest.mark.parametrize("mild", [False, True])
def test_wiener_undoes_a_known_blur(methods, mild):
    x, fov = eyes(range(4), size=128)
    params = degrade.sample(4, generator(1), ("blur",), severity=1.0)
    params = degrade.mild_blur(params, generator(2)) if mild else params
    y = degrade.apply(x, params, fov)
    x_hat = methods["Wiener (known blur)"](y, fov, params)
    assert psnr(x, x_hat).mean() > psnr(x, y).mean() + 1  # dB
    deep = (
        degrade.blur(fov.float(), torch.full((4,), 0.03)) > 0.999
    )  # off the rim, which fades out in these eyes
    assert (psnr(x, x_hat, deep) > psnr(x, y, deep) + 1).all()
    wrong = methods["Wiener (known blur)"](
        y, fov, params | {"blur_sigma": 2.5 * params["blur_sigma"]}
    )
    assert (psnr(x, wrong) < psnr(x, x_hat) - 5).all()


def test_wiener_leaves_unblurred_images_and_constants_alone(methods):
    x, fov = eyes(range(3))
    wiener = methods["Wiener (known blur)"]
    assert (wiener(x, fov, nothing(3)) - x).abs().max() < 1e-4
    params = degrade.sample(3, generator(), ("illumination", "spots"), severity=1.0)
    y = degrade.apply(x, params, fov)
    assert (wiener(y, fov, params) - y).abs().max() < 1e-4
    flat = torch.full((3, 3, 96, 96), 0.6) * fov
    params = degrade.sample(3, generator(), ("blur",), severity=1.0)
    assert (wiener(degrade.apply(flat, params, fov), fov, params) - flat).abs().max() < 1e-3


@pytest.mark.parametrize("surround", [0.0, 0.5])
def test_wiener_does_not_ring_at_the_rim_whatever_the_surround_was_before_the_blur(
    methods, surround
):
    _, fov = eyes(range(3))
    scene = torch.where(fov, 0.6, surround).expand(3, 3, 96, 96)
    params = degrade.sample(3, generator(), ("blur",), severity=1.0)
    y = degrade.apply(scene, params, fov)
    x_hat = methods["Wiener (known blur)"](y, fov, params)
    assert (x_hat - 0.6 * fov).abs().max() < 1e-3 and (y - 0.6 * fov).abs().max() > 0.04


@pytest.mark.parametrize(
    "name", ["population mean", "low-pass swap", "mean/std match", "unsharp", "Wiener (known blur)"]
)
def test_lengths_are_relative_to_the_width(methods, name):
    def smaller(image):
        return torch.from_numpy(downscale_local_mean(image.numpy(), (1, 1, 2, 2)))

    x, fov = eyes(range(2), size=192)
    params = degrade.mild_blur(degrade.sample(2, generator(), severity=0.5), generator(1))
    y = degrade.apply(x, params, fov)
    fine, coarse = (
        smaller(methods[name](y, fov, params)),
        methods[name](smaller(y), smaller(fov.float()) == 1, params),
    )
    inner = degrade.blur((smaller(fov.float()) == 1).float(), torch.full((2,), 0.01)) > 0.999
    assert psnr(fine, coarse, inner).min() > 33

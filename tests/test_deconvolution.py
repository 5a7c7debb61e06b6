"""Blur and its deconvolution against closed forms, and the fit of the blur estimate."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from rr.models import deconvolution
from rr.models.deconvolution import SIGMAS, BlurEstimate, blur
from rr.train.corrector import fit_blur


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def eye(side=96, n=2):
    """A round field of view, and coordinates u, v of the pixels in widths."""
    axis = (torch.arange(side) + 0.5) / side
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    fov = ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.45**2).expand(n, 1, side, side)
    return fov, u, v


def test_blur_is_a_gaussian_with_weights_that_sum_to_one():
    x = torch.rand(2, 3, 40, 56, generator=generator())
    sigma = torch.tensor([0.0, 2.5 / 56])
    blurred = blur(x, sigma)
    assert torch.equal(blurred[0], x[0])

    def smooth(image):
        return gaussian_filter(image, (0, 2.5, 2.5), mode="constant", truncate=6)

    image = x[1].double().numpy()
    np.testing.assert_allclose(blurred[1], smooth(image) / smooth(np.ones_like(image)), atol=1e-5)


def test_a_constant_stays_constant_inside_and_is_continued_outside():
    fov, *_ = eye()
    y = torch.full((2, 3, 96, 96), 0.4) * fov
    assert ((deconvolution.low_pass(y, fov, 0.1) - 0.4) * fov).abs().max() < 1e-5
    z = deconvolution.inpaint_outside(y, fov)
    assert torch.equal(z * fov, y)
    assert (z - 0.4).abs().max() < 1e-5


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_the_surround_that_a_blur_mixed_into_the_rim_is_found_and_removed(level):
    fov, u, v = eye()
    scene = (0.5 + 0.1 * u + 0.1 * v).expand(2, 3, 96, 96)
    sigma = torch.tensor([0.02, 0.03])
    B = blur(fov.float(), sigma)
    y = torch.where(fov, B * scene + (1 - B) * level, 0)
    a = deconvolution.estimate_surround(y, fov, sigma)
    assert (a - level).abs().max() < 0.06
    z = deconvolution.remove_surround(y, fov, sigma, torch.full_like(a, level))
    assert ((z - scene) * fov).abs().max() < 1e-5 and torch.equal(z * ~fov, y * ~fov)


def test_wiener_multiplies_a_cosine_by_its_transfer_function():
    _, u, _ = eye()
    sigma, frequency, K = torch.tensor([0.0, 0.01]), 8, deconvolution.NOISE_TO_SIGNAL
    wave = torch.cos(2 * torch.pi * frequency * u).expand(2, 3, 96, 96)
    result = deconvolution.wiener(0.5 + 0.1 * wave, sigma)
    H = torch.exp(-2 * (torch.pi * sigma * frequency) ** 2)
    gain = ((1 + K) * H / (H**2 + K)).view(2, 1, 1, 1)
    inner = (..., slice(30, 66))  # away from the frame, where the mirrored wave has a kink
    assert torch.allclose(result[inner], (0.5 + 0.1 * gain * wave)[inner], atol=5e-4)


def test_wiener_brings_back_a_blurred_image():
    _, u, v = eye()
    x = (0.5 + 0.2 * torch.cos(2 * torch.pi * (7 * u + 4 * v))).expand(1, 3, 96, 96)
    sigma = torch.tensor([0.02])
    y = blur(x, sigma)
    inner = (..., slice(20, 76), slice(20, 76))
    error, before = (
        (z[inner] - x[inner]).abs().mean() for z in (deconvolution.wiener(y, sigma), y)
    )
    assert error < 0.4 * before


def test_the_blur_estimate_learns_sigma_from_its_features():
    """One of the features is log(512 sigma + 1/2) itself: the network must find it."""
    sigma = torch.rand(800, generator=generator()) * 15 / 512
    features = torch.randn(800, 2 * len(SIGMAS) + 1, generator=generator(1))
    features[:, 3] = (512 * sigma + 0.5).log()
    torch.manual_seed(0)
    assert fit_blur(BlurEstimate(), features, sigma, generator(2), steps=300) < 0.15

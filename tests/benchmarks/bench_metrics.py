"""SSIM against scikit-image (row T4). LPIPS has no row: rr uses the package lpips itself."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from rr.evaluate import metrics

OPTIONS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}


def by_image(x, y):
    pairs = zip(x.numpy(), y.numpy())
    return np.array([structural_similarity(a, b, channel_axis=0, **OPTIONS) for a, b in pairs])


def by_channel(x, y):
    """What `channel_axis` does inside, without its copies."""
    planes = zip(x.flatten(0, 1).numpy(), y.flatten(0, 1).numpy())
    values = np.array([structural_similarity(a, b, **OPTIONS) for a, b in planes])
    return values.reshape(len(x), 3).mean(1)


SSIM = {
    "rr": lambda x, y: metrics.ssim(x, y).numpy(),
    "scikit-image": by_image,
    "scikit-image, channel by channel": by_channel,
}


@pytest.mark.parametrize("who", SSIM)
def test_ssim(who, timed, noisy_pairs):
    x, y = noisy_pairs(64, 224)
    scores = timed("T4: SSIM of 64 images of 224 px", lambda: SSIM[who](x, y), 64, "images")
    np.testing.assert_allclose(scores, by_image(x, y), atol=1e-5)

"""SSIM against scikit-image (row T4), LPIPS against the package lpips (row T5)."""

import copy

import lpips
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from rr import studies
from rr.evaluate import metrics
from rr.models import pretrained

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


@pytest.fixture(scope="module")
def peer():
    """The network of the package lpips with AlexNet's ImageNet weights."""
    if pretrained.available("alexnet") is None:
        pytest.skip(f"no ImageNet weights of AlexNet; set {pretrained.FOLDER}")
    tensors, _ = pretrained.state("alexnet")
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # no download of its own
    names = {key: f"features.{key.split('.', 1)[1]}" for key in network.net.state_dict()}
    network.net.load_state_dict({key: tensors[name] for key, name in names.items()})
    return network.requires_grad_(False)


@pytest.mark.parametrize("who", ["rr", "lpips", "lpips, channels_last"])
def test_lpips(who, timed, noisy_pairs, peer):
    x, _ = noisy_pairs(8, 224)
    generator = torch.Generator().manual_seed(0)
    methods = len(studies.STUDIES["extractors"])
    noise = [0.02 * k * torch.randn(x.shape, generator=generator) for k in range(1, methods + 1)]
    outputs = [(x + epsilon).clamp(0, 1) for epsilon in noise]
    ours = metrics.load_lpips()
    layout = torch.channels_last if who.endswith("channels_last") else torch.contiguous_format
    network = copy.deepcopy(peer).to(memory_format=layout)

    def call_ours():
        ours.known.clear()  # the metric remembers the features of the references
        return torch.stack([ours(x, y) for y in outputs])

    @torch.inference_mode()
    def call_peer():
        a, batches = x.to(memory_format=layout), (y.to(memory_format=layout) for y in outputs)
        return torch.stack([network(a, b, normalize=True).flatten() for b in batches])

    call, group = call_ours if who == "rr" else call_peer, "T5: LPIPS of 8 images by 8 methods"
    distances = timed(group, call, methods * len(x), "images")
    torch.testing.assert_close(distances, call_peer(), rtol=0, atol=1e-5)

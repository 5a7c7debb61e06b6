"""The rows of `rr bench cpu`: each function prepares one comparison, and yields it as rr.bench.Task."""

import numpy as np
import torch

from rr import metrics
from rr.bench import Gate, Task, need


def ssim(size=224, n=64):
    """T4: SSIM of a batch against scikit-image's, image by image, with its Gaussian window."""
    need("skimage")
    from skimage.metrics import structural_similarity

    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    pairs = list(zip(x.numpy(), y.numpy()))

    def theirs():
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
        return [structural_similarity(a, b, **options) for a, b in pairs]

    gate = Gate("largest difference", float(np.abs(metrics.ssim(x, y).numpy() - theirs()).max()), 1e-5)
    peers = {"scikit-image": theirs}
    yield Task(f"SSIM, {n} images of {size} px", "images", n, lambda: metrics.ssim(x, y), 5, gate, peers)


ROWS = {"T4": ssim}

"""Training pairs of the recommended restorer (rr.models.corrector), made from clean images.

An image x first gets another framing and another camera. A single image does not show the camera's
brightness, tint and sharpness, so the target x keeps them and the network does not learn to undo
them. Then x is degraded to y. About a tenth of the images are not degraded at all.
"""

import torch
import torch.nn.functional as F

from rr.data import degrade
from rr.models.deconvolution import blur
from rr.models.diffusion import noise


class Draw:
    """Random numbers for n images, from a CPU generator, on a device."""

    def __init__(self, n, device, generator):
        self.n, self.device, self.generator = n, device, generator

    def uniform(self, *shape, low=0.0, high=1.0):
        """(n, *shape), from low to high."""
        values = torch.rand(self.n, *shape, generator=self.generator)
        return (low + (high - low) * values).to(self.device)

    def normal(self, *shape):
        """(n, *shape), with mean 0 and standard deviation 1."""
        return torch.randn(self.n, *shape, generator=self.generator).to(self.device)

    def yes(self, probability, *shape):
        """(n, *shape), bool."""
        return self.uniform(*shape) < probability

    def smooth_field(self, side):
        """(n, 3, *side), interpolated from 3 x 3 numbers, partly common to the channels."""
        field = 0.4 * self.normal(3, 3, 3) + self.normal(1, 3, 3)
        return F.interpolate(field, side, mode="bilinear", align_corners=True)


def half_size(batch, generator, training=True, wide=False):
    """(y, x, fov) for Corrector.loss, at half the size of the batch."""
    fov = F.avg_pool2d(batch.fov.float(), 2) == 1
    batch = batch._replace(x=F.avg_pool2d(batch.x, 2), fov=fov)
    return augment_and_degrade(batch, generator, wide)[:3]


def augment_and_degrade(batch, generator, wide=False):
    """(y, x, fov, sigma (N,) of the blur in y) from a batch of clean images.

    wide: the cameras differ up to 2.2 times as much, and each has its own shading.
    """
    draw = Draw(len(batch.x), batch.x.device, generator)
    x, fov = reframe(batch.x, batch.fov, draw)
    x = change_camera(x, draw, wide) * fov

    families = draw.yes(0.6, 3).float() * (draw.uniform(1) > 0.12)
    severity = draw.uniform().sqrt()  # severe degradations are more frequent
    params = degrade.sample(len(x), generator, families.cpu(), severity.cpu())
    params = {name: value.to(x.device) for name, value in params.items()}
    mild = draw.yes(0.5)
    mild_sigma = degrade.mild_blur(params, generator)["blur_sigma"]
    params["blur_sigma"] = torch.where(mild, mild_sigma, params["blur_sigma"])
    y = degrade.apply(x, params, fov)

    # one image in seven gets uneven light of another shape than rings and discs; a third gets noise
    light = 0.25 * draw.uniform(1, 1, 1) * draw.yes(0.15, 1, 1, 1)
    y = y * (light * draw.smooth_field(x.shape[-2:])).exp()
    level = torch.where(draw.yes(0.3, 1, 1, 1), draw.uniform(1, 1, 1, high=0.012), 0)
    y = (y + level * noise(x, generator)).clamp(0, 1) * fov
    return (y * 255).round() / 255, x, fov, degrade.blur_width(params)


def reframe(x, fov, draw):
    """Mirror and turn the images; also rotate, scale and shift half of them.

    A quarter of the latter is enlarged so much that the frame lies inside the eye.
    """
    layers = torch.cat([x, fov.to(x)], 1)
    layers = torch.where(draw.yes(0.5, 1, 1, 1), layers, layers.transpose(-1, -2))
    layers = torch.where(draw.yes(0.5, 1, 1, 1), layers, layers.flip(-1))
    layers = torch.where(draw.yes(0.5, 1, 1, 1), layers, layers.flip(-2))

    angle, scale, shift = 0.2 * draw.normal(), (0.05 * draw.normal()).exp(), 0.03 * draw.normal(2)
    inside = draw.yes(0.25)
    scale = torch.where(inside, draw.uniform(low=0.5, high=0.85), scale)
    shift = torch.where(inside[:, None], 0.3 * (2 * draw.uniform(2) - 1), shift)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first = torch.stack([cos, -sin, shift[:, 0]], 1)
    second = torch.stack([sin, cos, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), layers.shape, align_corners=False)
    warped = F.grid_sample(layers, grid, align_corners=False)
    layers = torch.where(draw.yes(0.5, 1, 1, 1), layers, warped)
    fov = layers[:, 3:] > 0.999
    return layers[:, :3] * fov, fov


def change_camera(x, draw, wide):
    """Change gamma, exposure, tint, saturation and, for 30 % of the images, sharpness."""
    strength = draw.uniform(1, 1, 1, low=0.3, high=2.2) if wide else 1.0
    gamma = (0.12 * strength * draw.normal(1, 1, 1)).exp()
    exposure = 0.1 * strength * draw.normal(1, 1, 1)
    tint = 0.06 * strength * draw.normal(3, 1, 1)
    x = x.clamp_min(1e-4) ** gamma * (exposure + tint).exp()
    if wide:
        x = x * (0.06 * strength * draw.smooth_field(x.shape[-2:])).exp()
    grey = x.mean(1, keepdim=True)
    x = (grey + (1 + 0.15 * strength * draw.normal(1, 1, 1)) * (x - grey)).clamp(0, 1)
    return blur(x, torch.where(draw.yes(0.3), draw.uniform(high=1 / 256), 0))

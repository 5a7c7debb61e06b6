"""Layers that several networks share: the output of a backbone, the time embedding, blocks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME = 128  # length of the time embedding that a block takes


class Output(NamedTuple):
    """What every backbone returns. Only the VAE has mu, logvar and logits."""

    prediction: Tensor  # (N, 3, H, W)
    mu: Tensor | None = None  # (N, latent), mean of q(z | x)
    logvar: Tensor | None = None  # (N, latent), log sigma^2 of q(z | x)
    logits: Tensor | None = None  # (N, 3, H, W), the prediction before the last nonlinearity


class TimeEmbedding(nn.Sequential):
    """t (N,) => (N, width): sines and cosines at 32 frequencies, then a linear layer."""

    def __init__(self, width):
        super().__init__(nn.Linear(64, width), nn.SiLU())
        self.register_buffer("frequencies", torch.logspace(0, -3, 32), persistent=False)

    def forward(self, t):
        angles = t.float()[:, None] * self.frequencies  # N, 32
        return super().forward(torch.cat([angles.sin(), angles.cos()], 1))


def norm(channels):
    """Group normalisation. Batch normalisation would mix images of different time steps t."""
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


class DoubleConv(nn.Module):
    """The block of the U-Net (Ronneberger et al. 2015): two 3x3 convolutions.

    All blocks map x (N, c_in, H, W) and the time embedding t (N, TIME) to (N, c_out, H, W).
    """

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm1 = norm(c_out)
        self.time = nn.Linear(TIME, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.norm2 = norm(c_out)

    def forward(self, x, t):
        h = F.silu(self.norm1(self.conv1(x)) + self.time(t)[:, :, None, None])
        return F.silu(self.norm2(self.conv2(h)))


class Residual(DoubleConv):
    """The block of the ResNet (He et al. 2016): two 3x3 convolutions and a skip connection."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, t):
        h = F.silu(self.norm1(self.conv1(x)) + self.time(t)[:, :, None, None])
        return F.silu(self.skip(x) + self.norm2(self.conv2(h)))


class Dense(nn.Module):
    """The block of the DenseNet (Huang et al. 2017): every layer sees all earlier layers."""

    def __init__(self, c_in, c_out, layers=4):
        super().__init__()
        growth = c_out // layers
        widths = [c_in + i * growth for i in range(layers)]
        self.norms = nn.ModuleList(norm(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, growth, 3, padding=1) for width in widths)
        self.time = nn.Linear(TIME, growth)
        self.transition = nn.Conv2d(c_in + layers * growth, c_out, 1)

    def forward(self, x, t):
        bias = self.time(t)[:, :, None, None]
        for normalise, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.silu(normalise(x))) + bias], 1)
        return self.transition(x)

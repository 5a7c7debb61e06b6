"""The five base networks of section 3.2 behind one signature: backbone(x, t, generator) -> Output.

U-Net, U-Net++, the U-Net with ResNet blocks, the U-Net with DenseNet blocks, and the VAE. As the paper says, ResNet
and DenseNet keep the U-Net's encoder and decoder and change the block only; so U-Net and its two relatives are one
class with another block, and U-Net++ (Zhou et al. 2018) is the same blocks on a denser grid. Time enters every block
as a bias after its first convolution.

Shapes: x (N, channels, H, W), 3 channels or, with another image beside it, 6; level i has width * 2^i channels (three levels
below the first) and side H / 2^i.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rr.errors import InputError, choose
from rr.models.vae import VAE, Output, TimeEmbedding

TIME = 128  # length of the time embedding
LEVELS = 4  # resolutions: H, H/2, H/4, H/8


def norm(channels):
    """Group normalisation: unlike batch normalisation it does not mix images that are at different t."""
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)


class DoubleConv(nn.Module):
    """U-Net's block (Ronneberger et al. 2015): two 3x3 convolutions."""

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
    """ResNet's block (He et al. 2016): the same two convolutions beside an identity (or 1x1) path."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, t):
        h = F.silu(self.norm1(self.conv1(x)) + self.time(t)[:, :, None, None])
        return F.silu(self.skip(x) + self.norm2(self.conv2(h)))


class Dense(nn.Module):
    """DenseNet's block (Huang et al. 2017): each of four layers sees all the earlier ones; a 1x1 transition ends it."""

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


class UNet(nn.Module):
    """Encoder, decoder, and skips between equal resolutions, out of any block."""

    def __init__(self, width=32, block=DoubleConv, channels=3):
        super().__init__()
        c = [width * 2**i for i in range(LEVELS)]
        self.time = TimeEmbedding(TIME)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(block(c[max(i - 1, 0)], c[i]) for i in range(LEVELS))
        self.up = nn.ModuleList(block(c[i] + c[i + 1], c[i]) for i in range(LEVELS - 1))
        self.head = nn.Conv2d(width, 3, 1)

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile: all of it."""
        return [self]

    def forward(self, x, t, generator=None):
        x = _checked(x)
        t = self.time(t)
        h, skips = self.stem(x), []
        for i, block in enumerate(self.down):
            h = block(F.max_pool2d(h, 2) if i else h, t)  # N, width 2^i, H / 2^i
            skips.append(h)
        for i in reversed(range(LEVELS - 1)):
            h = self.up[i](torch.cat([skips[i], _double(h)], 1), t)  # N, width 2^i, H / 2^i
        return Output(self.head(h))


class UNetPlusPlus(nn.Module):
    """U-Net++: node (i, j) sees all nodes (i, 0..j-1) of its level and the enlarged node (i + 1, j - 1) below.

    Output of node (0, 3), without deep supervision.
    """

    def __init__(self, width=32, channels=3):
        super().__init__()
        c = [width * 2**i for i in range(LEVELS)]
        self.time = TimeEmbedding(TIME)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.nodes = nn.ModuleDict(
            {f"{i}{0}": DoubleConv(c[max(i - 1, 0)], c[i]) for i in range(LEVELS)}
        )
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                self.nodes[f"{i}{j}"] = DoubleConv(j * c[i] + c[i + 1], c[i])
        self.head = nn.Conv2d(width, 3, 1)

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile: all of it."""
        return [self]

    def forward(self, x, t, generator=None):
        x = _checked(x)
        t = self.time(t)
        grid = [[self.nodes["00"](self.stem(x), t)]]
        for i in range(1, LEVELS):
            grid.append([self.nodes[f"{i}0"](F.max_pool2d(grid[i - 1][0], 2), t)])
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                grid[i].append(
                    self.nodes[f"{i}{j}"](torch.cat([*grid[i], _double(grid[i + 1][j - 1])], 1), t)
                )
        return Output(self.head(grid[0][-1]))


def _checked(x):
    """x with its channels last: a tenth faster on a CPU (`rr bench`, T8), and what a GPU's convolutions take."""
    if x.shape[-1] % 2 ** (LEVELS - 1) or x.shape[-2] % 2 ** (LEVELS - 1):
        raise InputError(
            f"image {x.shape[-1]}x{x.shape[-2]}: this backbone needs sides that are multiples of 8"
        )
    return x.contiguous(memory_format=torch.channels_last)


def _double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


BACKBONES = {
    "unet": lambda size, width, latent, channels, likelihood: UNet(width, channels=channels),
    "unet++": lambda size, width, latent, channels, likelihood: UNetPlusPlus(width, channels),
    "resnet": lambda size, width, latent, channels, likelihood: UNet(width, Residual, channels),
    "densenet": lambda size, width, latent, channels, likelihood: UNet(width, Dense, channels),
    "vae": lambda size, width, latent, channels, likelihood: VAE(
        size, latent, width, likelihood=likelihood, channels=channels
    ),
}


def backbone(name, size, width=32, latent=128, channels=3, likelihood="bce"):
    """The base network `name` for images of side `size` and an input of so many channels; `latent` and `likelihood` concern
    the VAE alone.

    Raises InputError for an unknown name and, through the network, for a side that is no multiple of 8.
    """
    return choose("backbone", name, BACKBONES)(size, width, latent, channels, likelihood)

"""The five base networks of section 3.2 with one signature: backbone(x, t, generator) -> Output.

U-Net, U-Net++, the U-Net with ResNet blocks, the U-Net with DenseNet blocks, and the VAE. The paper
says that ResNet and DenseNet keep the encoder and decoder of the U-Net and change the block only.
Therefore these three are one class. U-Net++ (Zhou et al. 2018) puts the U-Net's blocks on a denser
grid. Every block adds the time t as a bias.

Shapes: the input x is (N, channels, H, W); channels is 3, or 6 if a second image is concatenated.
Level i = 0..3 has width * 2^i channels and the resolution (H / 2^i, W / 2^i).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from rr.errors import InputError, choose
from rr.models.layers import TIME, Dense, DoubleConv, Output, Residual, TimeEmbedding
from rr.models.vae import VAE

LEVELS = 4  # resolutions: H, H/2, H/4, H/8


class UNet(nn.Module):
    """Encoder, decoder, and skip connections between equal resolutions, built from any block."""

    def __init__(self, width=32, channels=3, block=DoubleConv):
        super().__init__()
        c = [width * 2**i for i in range(LEVELS)]
        self.time = TimeEmbedding(TIME)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(block(c[max(i - 1, 0)], c[i]) for i in range(LEVELS))
        self.up = nn.ModuleList(block(c[i] + c[i + 1], c[i]) for i in range(LEVELS - 1))
        self.head = nn.Conv2d(width, 3, 1)

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles: the whole network."""
        return [self]

    def forward(self, x, t, generator=None):
        t = self.time(t)  # N, TIME
        h, skips = self.stem(channels_last(x)), []
        for i, block in enumerate(self.down):
            h = block(F.max_pool2d(h, 2) if i else h, t)  # N, width 2^i, H / 2^i, W / 2^i
            skips.append(h)
        for i in reversed(range(LEVELS - 1)):
            h = self.up[i](torch.cat([skips[i], double(h)], 1), t)  # N, width 2^i, H / 2^i, W / 2^i
        return Output(self.head(h))


class UNetPlusPlus(nn.Module):
    """U-Net++, without deep supervision.

    Node (i, j) sees the nodes (i, 0..j-1) of its level and the enlarged node (i + 1, j - 1) of the
    level below.
    """

    def __init__(self, width=32, channels=3):
        super().__init__()
        c = [width * 2**i for i in range(LEVELS)]
        self.time = TimeEmbedding(TIME)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.nodes = nn.ModuleDict()
        for i in range(LEVELS):
            self.nodes[f"{i}0"] = DoubleConv(c[max(i - 1, 0)], c[i])
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                self.nodes[f"{i}{j}"] = DoubleConv(j * c[i] + c[i + 1], c[i])
        self.head = nn.Conv2d(width, 3, 1)

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles: the whole network."""
        return [self]

    def forward(self, x, t, generator=None):
        t = self.time(t)  # N, TIME
        grid = [[self.nodes["00"](self.stem(channels_last(x)), t)]]  # grid[i][j]: node (i, j)
        for i in range(1, LEVELS):
            grid.append([self.nodes[f"{i}0"](F.max_pool2d(grid[i - 1][0], 2), t)])
        for j in range(1, LEVELS):
            for i in range(LEVELS - j):
                seen = torch.cat([*grid[i], double(grid[i + 1][j - 1])], 1)
                grid[i].append(self.nodes[f"{i}{j}"](seen, t))  # N, width 2^i, H / 2^i, W / 2^i
        return Output(self.head(grid[0][-1]))


def channels_last(x):
    """x in the memory format of fast convolutions. Raises InputError unless 8 divides its sides."""
    if x.shape[-1] % 2 ** (LEVELS - 1) or x.shape[-2] % 2 ** (LEVELS - 1):
        raise InputError(
            f"image {x.shape[-1]}x{x.shape[-2]}: this backbone needs sides that are multiples of 8"
        )
    return x.contiguous(memory_format=torch.channels_last)


def double(x):
    """Bilinear enlargement by a factor of 2."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


UNETS = {
    "unet": UNet,
    "unet++": UNetPlusPlus,
    "resnet": partial(UNet, block=Residual),
    "densenet": partial(UNet, block=Dense),
}
BACKBONES = (*UNETS, "vae")


def backbone(
    name,  # one of BACKBONES
    size,  # side of the images, px (the VAE has a fixed size)
    width=32,  # channels of the first convolution
    latent=128,  # length of the VAE's z
    channels=3,  # of the input
    likelihood="bce",  # of the VAE, a key of vae.LIKELIHOODS
):
    """The base network `name`. Raises InputError for an unknown name or likelihood."""
    choose("backbone", name, BACKBONES)
    if name == "vae":
        return VAE(size, latent, width, likelihood=likelihood, channels=channels)
    return UNETS[name](width, channels)

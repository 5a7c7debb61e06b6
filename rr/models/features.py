"""Conditional feature extraction (section 2.3): x => features f (N, 256, ceil(H/32), ceil(W/32)).

A convolutional trunk, a 1x1 convolution to 256 channels, and multi-head self-attention. The static
condition c is the mean of f over all readable images. Table 1 compares eight extractors: seven
trunks of torchvision, and attention without a trunk.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from rr.errors import choose
from rr.models import pretrained
from rr.models.readability import IMAGENET_MEAN, IMAGENET_STD, LABELS

PATCH = 32  # one feature vector per 32x32 pixels


class Patches(nn.Conv2d):
    """A trunk of one layer: an embedding of 32x32 patches. Zeros complete patches at the border."""

    def __init__(self, width):
        super().__init__(3, width, PATCH, stride=PATCH)

    def forward(self, x):
        height, width = x.shape[-2:]
        return super().forward(F.pad(x, (0, -width % PATCH, 0, -height % PATCH)))


class Trunk(NamedTuple):
    """A network of torchvision, without its classifier."""

    build: Callable  # torchvision's builder
    convolutions: Callable  # network => the module that makes feature maps
    channels: int  # of the feature maps


def _resnet(network):
    return nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier


def _features(network):
    return network.features


def _without_last_pooling(network):
    return network.features[:-1]  # Extractor.maps pools to the common resolution instead


EXTRACTORS = {
    "attention": None,  # "Self-Attention" in Table 1: patches, no trunk
    "alexnet": Trunk(tv.alexnet, _without_last_pooling, 256),
    "resnet18": Trunk(tv.resnet18, _resnet, 512),
    "resnet34": Trunk(tv.resnet34, _resnet, 512),
    "resnet50": Trunk(tv.resnet50, _resnet, 2048),
    "vgg16": Trunk(tv.vgg16, _without_last_pooling, 512),
    "resnext50": Trunk(tv.resnext50_32x4d, _resnet, 2048),
    "mobilenet": Trunk(tv.mobilenet_v2, _features, 1280),
}


class Extractor(nn.Module):
    """Trunk, channel compression, self-attention: x (N, 3, H, W) in [0, 1] => f (N, width, h, w).

    All extractors have the same resolution, h = ceil(H/32) and w = ceil(W/32).
    """

    def __init__(
        self,
        name="resnet34",  # a key of EXTRACTORS
        width=256,  # channels after compression = embedding of the attention (2.3: 256)
        heads=8,  # attention heads (2.3: 8)
    ):
        super().__init__()
        self.arguments = {"name": name, "width": width, "heads": heads}
        self.source = choose("extractor", name, EXTRACTORS)
        if self.source is None:
            self.trunk, channels = Patches(width), width
        else:
            self.trunk = self.source.convolutions(self.source.build(weights=None))
            channels = self.source.channels
        self.compress = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.readable = nn.Linear(width, len(LABELS))  # for training; the restoration ignores it
        self.to(memory_format=torch.channels_last)  # 10 % faster on a CPU
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def start_from(self, weights, folder=None):
        """Load ImageNet weights into the trunk ("imagenet") or none ("none"); returns provenance.

        Raises InputError if the weights cannot be had, see `pretrained.load`.
        """
        if self.source is None:
            return "none: this extractor has no pretrained trunk"
        name = self.source.build.__name__
        if weights == "none":
            return pretrained.load(self.trunk, name, weights)
        network = self.source.build(weights=None)
        note = pretrained.load(network, name, weights, folder, skip=("fc.", "classifier."))
        self.trunk.load_state_dict(self.source.convolutions(network).state_dict())
        return note

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles."""
        return [self.trunk, self.compress]

    def maps(self, x):
        """Compressed feature maps (N, width, ceil(H/32), ceil(W/32)), before the attention.

        The feature maps of AlexNet and VGG16 are max-pooled to this resolution, in place of their
        last pooling layer. Those of the other trunks have it already.
        """
        resolution = [math.ceil(side / PATCH) for side in x.shape[-2:]]
        f = self.trunk((x - self.mean) / self.std)  # N, channels, about H/32 or H/16
        return self.compress(F.adaptive_max_pool2d(f, resolution))

    def attend(self, x):
        """Features (N, width, h, w) and attention weights (N, heads, h w, h w); rows sum to 1.

        The output of the attention is added to the feature maps, which keeps their local detail.
        """
        f = self.maps(x)  # N, width, h, w
        tokens = f.flatten(2).transpose(1, 2)  # N, h w, width
        mixed, A = self.attention(tokens, tokens, tokens, average_attn_weights=False)
        return f + mixed.transpose(1, 2).unflatten(2, f.shape[-2:]), A

    def forward(self, x):
        return self.attend(x)[0]

    def loss(self, x, labels, generator=None):
        """{"loss": binary cross-entropy of the four readability labels (N, 4)}.

        The paper does not say how the new layers are trained. Readability is the one supervision
        that SynFundus-1M offers for every image; it is predicted from the mean over positions.
        """
        logits = self.readable(self(x).mean((2, 3))).float()  # N, 4
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels)}

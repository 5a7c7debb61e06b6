"""Conditional feature extraction (section 2.3): a convolutional trunk, 1x1 compression, multi-head self-attention,
and the static condition c, the mean of these features over all readable images.

Eight extractors (Table 1): seven trunks of torchvision under the same attention, and attention without a trunk.
"""

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from rr.errors import choose
from rr.models import pretrained
from rr.paper import LABELS


def _resnet(model):
    return nn.Sequential(*list(model.children())[:-2])  # without pooling and classifier


# name => (torchvision's builder, the part that makes feature maps, its channels); stride 32 throughout
EXTRACTORS = {
    "attention": None,  # "Self-Attention" of Table 1: 32x32 patches, no trunk
    "alexnet": (tv.alexnet, lambda model: model.features, 256),
    "resnet18": (tv.resnet18, _resnet, 512),
    "resnet34": (tv.resnet34, _resnet, 512),
    "resnet50": (tv.resnet50, _resnet, 2048),
    "vgg16": (tv.vgg16, lambda model: model.features, 512),
    "resnext50": (tv.resnext50_32x4d, _resnet, 2048),
    "mobilenet": (tv.mobilenet_v2, lambda model: model.features, 1280),
}
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, which torchvision's trunks expect


class Extractor(nn.Module):
    """Trunk, channel compression and self-attention: x (N, 3, H, W) in [0, 1] => features (N, width, H/32, W/32)."""

    def __init__(
        self,
        name="resnet34",  # a key of EXTRACTORS
        width=256,  # channels after compression = embedding of the attention (2.3: 256)
        heads=8,  # attention heads (2.3: 8)
    ):
        super().__init__()
        self.arguments = {"name": name, "width": width, "heads": heads}
        chosen = choose("extractor", name, EXTRACTORS)
        if chosen is None:
            self.trunk, channels = nn.Conv2d(3, width, 32, stride=32), width
        else:
            build, part, channels = chosen
            self.trunk = part(build(weights=None))
        self.compress = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.readable = nn.Linear(width, len(LABELS))  # auxiliary task; not used by the restoration
        self.to(
            memory_format=torch.channels_last
        )  # a tenth faster with batch normalisation, on a CPU
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def start_from(self, weights, folder=None):
        """Load the trunk's ImageNet weights ("imagenet") or keep its random start ("none"); returns what was used.

        "attention" has no pretrained trunk and says so. Raises InputError if the weights cannot be had.
        """
        chosen = EXTRACTORS[self.arguments["name"]]
        if chosen is None:
            return "none: this extractor has no pretrained trunk"
        build, part, _ = chosen
        donor = build(weights=None)
        note = pretrained.load(donor, build.__name__, weights, folder, skip=("fc.", "classifier."))
        if weights != "none":
            self.trunk.load_state_dict(part(donor).state_dict())
        return note

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile."""
        return [self.trunk, self.compress]

    def attend(self, x):
        """Features (N, width, h, w) and attention weights (N, heads, h w, h w), rows summing to 1.

        The features are added to what the attention gathers for them, so that places keep their own detail.
        """
        f = self.compress(self.trunk((x - self.mean) / self.std))  # N, width, h, w
        tokens = f.flatten(2).transpose(1, 2)  # N, h w, width
        gathered, A = self.attention(tokens, tokens, tokens, average_attn_weights=False)
        return f + gathered.transpose(1, 2).unflatten(2, f.shape[-2:]), A

    def forward(self, x):
        return self.attend(x)[0]

    def loss(self, x, labels, generator=None):
        """{"loss": binary cross-entropy of the four readability labels from the pooled features}.

        The paper does not say how the convolution and the attention it adds are trained; readability is the one
        supervision that SynFundus-1M offers for every image.
        """
        logits = self.readable(self(x).mean((2, 3))).float()
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels)}

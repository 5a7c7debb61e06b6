"""The readability classifier of section 2.2: four independent labels, how it is reported, and a second judge beside it.

Labels, in the paper's order: is this a fundus image; are macula, optic disc, retinal region readable.

The paper's classifier is an InceptionV3. It steers the restoration, so it is no witness for it: a `Readability` of another
architecture, trained apart, judges and steers nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from rr.errors import InputError, choose
from rr.models import pretrained
from rr.paper import LABELS


class Architecture(NamedTuple):
    build: Callable  # torchvision's network, at random, with four outputs
    weights: str  # torchvision's name of it
    head: str  # its last layer: not taken from ImageNet
    side: int  # px; below it the last feature map vanishes
    mean: tuple  # of the images that torchvision trained it on, per channel
    std: tuple


def _inception():
    model = tv.inception_v3(
        weights=None, aux_logits=False, transform_input=False, init_weights=False
    )
    model.fc = nn.Linear(2048, len(LABELS))
    return model


def _resnet18():
    return tv.resnet18(num_classes=len(LABELS))


HALF, MEAN, STD = (0.5,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHITECTURES = {
    "inception": Architecture(
        _inception, "inception_v3", "fc.", 75, HALF, HALF
    ),  # the paper's classifier (2.2)
    "resnet18": Architecture(_resnet18, "resnet18", "fc.", 32, MEAN, STD),  # the second judge
}


class Readability(nn.Module):
    """A network with four sigmoid outputs: x (N, 3, H, W) in [0, 1], sides at least 75 px (inception) => logits (N, 4).

    Raises InputError for an unknown architecture.
    """

    def __init__(self, architecture="inception"):
        super().__init__()
        self.arguments = {"architecture": architecture}
        self.architecture = choose("architecture", architecture, ARCHITECTURES)
        self.add_module(
            architecture, self.architecture.build()
        )  # its weights are called by the architecture's name
        self.register_buffer("pos_weight", torch.ones(len(LABELS)))
        self.register_buffer(
            "mean", torch.tensor(self.architecture.mean).view(3, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(self.architecture.std).view(3, 1, 1), persistent=False
        )
        self.to(
            memory_format=torch.channels_last
        )  # a tenth faster with batch normalisation, on a CPU

    @property
    def network(self):
        return self.get_submodule(self.arguments["architecture"])

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile."""
        return [self.network]

    def start_from(self, weights, folder=None):
        """Load ImageNet weights ("imagenet") or keep the random start ("none"); returns what was used, one line.

        The layer of 1000 classes, and InceptionV3's auxiliary head, are dropped. Raises InputError if they cannot be had.
        """
        skip = (self.architecture.head, "AuxLogits.")
        return pretrained.load(self.network, self.architecture.weights, weights, folder, skip=skip)

    def weigh_classes(self, labels):
        """Class weights of the loss (2.2), per label: negatives / positives of labels (N, 4), within [1/20, 20]."""
        positive = labels.sum(0)
        self.pos_weight.copy_(((len(labels) - positive) / positive.clamp(min=1)).clamp(1 / 20, 20))

    def forward(self, x):
        side = min(x.shape[-2:])
        if side < self.architecture.side:
            raise InputError(
                f"image side {side}: {self.architecture.weights} needs at least {self.architecture.side} px"
            )
        return self.network((x - self.mean) / self.std)

    @torch.no_grad()
    def probabilities(self, x, batch=64):
        """Probability of each label, (N, 4), on the CPU; evaluation mode, whatever the mode before."""
        was_training = self.training
        self.eval()
        device = self.pos_weight.device
        p = torch.cat([self(part.to(device)).sigmoid().float().cpu() for part in x.split(batch)])
        self.train(was_training)
        return p

    def loss(self, x, labels, generator=None):
        """{"loss": weighted binary cross-entropy (2.2) of images x (N, 3, H, W) and labels (N, 4)}."""
        logits = self(x).float()
        return {
            "loss": F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight)
        }

"""The readability classifier of section 2.2: a network with four independent sigmoid outputs.

The paper's classifier is an InceptionV3. Because it selects the images to restore, a second
classifier evaluates the result: a ResNet18 that is trained separately and used for evaluation only.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from rr.errors import choose
from rr.models import pretrained

# the order of the outputs: is this a fundus image; are macula, optic disc, retinal region readable
LABELS = ("fundus", "macula", "disc", "retina")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def _inception():
    network = tv.inception_v3(
        weights=None, aux_logits=False, transform_input=False, init_weights=False
    )
    network.fc = nn.Linear(2048, len(LABELS))
    return network


def _resnet18():
    return tv.resnet18(num_classes=len(LABELS))


class Architecture(NamedTuple):
    """A network of torchvision with four outputs."""

    build: Callable  # the network at random initialisation
    weights: str  # torchvision's name of it
    side: int  # px; smaller images are enlarged, because the last feature map would vanish
    mean: tuple  # of the images that torchvision trained it on, per channel
    std: tuple


ARCHITECTURES = {
    "inception": Architecture(_inception, "inception_v3", 75, HALF, HALF),
    "resnet18": Architecture(_resnet18, "resnet18", 32, IMAGENET_MEAN, IMAGENET_STD),
}


class Readability(nn.Module):
    """x (N, 3, H, W) in [0, 1] => logits (N, 4), in the order of LABELS.

    Raises InputError for an unknown architecture.
    """

    def __init__(self, architecture="inception"):
        super().__init__()
        self.arguments = {"architecture": architecture}
        self.architecture = choose("architecture", architecture, ARCHITECTURES)
        self.add_module(architecture, self.architecture.build())  # the name is in the checkpoint
        self.register_buffer("pos_weight", torch.ones(len(LABELS)))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.architecture, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.to(memory_format=torch.channels_last)  # 10 % faster on a CPU

    @property
    def network(self):
        return self.get_submodule(self.arguments["architecture"])

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles."""
        return [self.network]

    def start_from(self, weights, folder=None):
        """Load ImageNet weights ("imagenet") or none ("none"); returns one line of provenance.

        The last layer and InceptionV3's auxiliary head are not loaded. Raises InputError if the
        weights cannot be had, see `pretrained.load`.
        """
        skip = ("fc.", "AuxLogits.")
        return pretrained.load(self.network, self.architecture.weights, weights, folder, skip)

    def weigh_classes(self, labels):
        """Set the class weights w of the loss (2.2): negatives / positives of labels (N, 4).

        They are limited to [1/20, 20].
        """
        positive = labels.sum(0)
        self.pos_weight.copy_(((len(labels) - positive) / positive.clamp(min=1)).clamp(1 / 20, 20))

    def forward(self, x):
        if min(x.shape[-2:]) < self.architecture.side:
            x = F.interpolate(x, size=self.architecture.side, mode="bilinear", align_corners=False)
        return self.network((x - self.mean) / self.std)

    @torch.no_grad()
    def probabilities(self, x, batch=64):
        """Probability of each label (N, 4), corrected for the class weights; on the CPU.

        The weighted cross-entropy is lowest at w times the true odds, so log w is subtracted from
        the logits. A label counts as readable at 0.5 or more. The network is evaluated in
        evaluation mode; its mode does not change.
        """
        was_training = self.training
        self.eval()
        shift = self.pos_weight.log()
        logits = [self(part.to(shift.device)).float() - shift for part in x.split(batch)]
        self.train(was_training)
        return torch.cat(logits).sigmoid().cpu()

    def loss(self, x, labels, generator=None):
        """{"loss": binary cross-entropy with class weights (2.2)}; labels (N, 4) of 0 and 1."""
        logits = self(x).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.pos_weight)
        return {"loss": loss}

"""The readability classifier of section 2.2: InceptionV3, four independent labels, and how it is reported.

Labels, in the paper's order: is this a fundus image; are macula, optic disc, retinal region readable.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import inception_v3

from rr import weights as pretrained
from rr.io import InputError
from rr.paper import LABELS

SMALLEST = 75  # px; below it InceptionV3's last grid vanishes


class Readability(nn.Module):
    """InceptionV3 with four sigmoid outputs: x (N, 3, H, W) in [0, 1], sides at least 75 px => logits (N, 4)."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        self.inception = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        self.inception.fc = nn.Linear(2048, len(LABELS))
        self.register_buffer("pos_weight", torch.ones(len(LABELS)))
        self.to(memory_format=torch.channels_last)  # a tenth faster with batch normalisation, on CPU and GPU

    def start_from(self, weights, folder=None):
        """Load ImageNet weights ("imagenet") or keep the random start ("none"); returns what was used, one line.

        The auxiliary head and the 1000-class layer are dropped. Raises InputError if the weights cannot be had.
        """
        return pretrained.load(self.inception, "inception_v3", weights, folder, skip=("fc.", "AuxLogits."))

    def weigh_classes(self, labels):
        """Class weights of the loss (2.2), per label: negatives / positives of labels (N, 4), within [1/20, 20]."""
        positive = labels.sum(0)
        self.pos_weight.copy_(((len(labels) - positive) / positive.clamp(min=1)).clamp(1 / 20, 20))

    def forward(self, x):
        if min(x.shape[-2:]) < SMALLEST:
            raise InputError(f"image side {min(x.shape[-2:])}: InceptionV3 needs at least {SMALLEST} px")
        return self.inception(2 * x - 1)  # torchvision's InceptionV3 was trained on [-1, 1]

    @torch.no_grad()
    def probabilities(self, x, batch=64):
        """Probability of each label, (N, 4), on the CPU; evaluation mode, whatever the mode before."""
        was_training = self.training
        self.eval()
        device = self.pos_weight.device
        p = torch.cat([self(part.to(device)).sigmoid().float().cpu() for part in x.split(batch)])
        self.train(was_training)
        return p

    def loss(self, batch, generator):
        """{"loss": weighted binary cross-entropy over the four labels}; in training on augmented images (2.2)."""
        x = augment(batch.x, generator) if self.training else batch.x
        logits = self(x).float()
        return {"loss": F.binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=self.pos_weight)}


def augment(x, generator, brightness=0.1, contrast=0.1):
    """Random horizontal flip, brightness and contrast (2.2; their ranges are not stated), each image its own.

    brightness: added, up to +-10 % of the range; contrast: factor 0.9 to 1.1 about the image mean. Values stay in [0, 1].
    """
    flip, b, c = torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x)
    x = torch.where(flip < 0.5, x.flip(-1), x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast * (2 * c - 1)) + mean + brightness * (2 * b - 1)).clamp(0, 1)


def report(labels, probabilities, threshold=0.5):
    """One row per label: counts of the 2x2 matrix, accuracy, precision, recall, F1, areas under ROC and PR curve.

    labels (N, 4) of 0/1, probabilities (N, 4). Beside accuracy stands the majority baseline, beside average precision
    the prevalence: what a classifier scores that looks at nothing. Where a label has one class only, ROC and PR are NaN.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    rows = []
    for name, y, p in zip(LABELS, np.asarray(labels, int).T, np.asarray(probabilities).T):
        guess = (p >= threshold).astype(int)
        tn, fp, fn, tp = confusion_matrix(y, guess, labels=[0, 1]).ravel()
        precision, recall, f1, _ = precision_recall_fscore_support(y, guess, average="binary", zero_division=np.nan)
        both = 0 < y.sum() < len(y)
        rows.append({
            "label": name, "n": len(y), "prevalence": y.mean(), "majority": max(y.mean(), 1 - y.mean()),
            "accuracy": (guess == y).mean(), "precision": precision, "recall": recall, "f1": f1,
            "roc_auc": roc_auc_score(y, p) if both else np.nan,
            "average_precision": average_precision_score(y, p) if both else np.nan,
            "tn": tn, "fp": fp, "fn": fn, "tp": tp,
        })  # fmt: skip
    return pd.DataFrame(rows)


def curves(labels, probabilities):
    """Points of the ROC and PR curves: a table with label, curve ("roc" | "pr"), x, y.

    ROC: x false, y true positive rate; PR: x recall, y precision. Labels with one class only have no curves.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    parts = []
    for name, y, p in zip(LABELS, np.asarray(labels, int).T, np.asarray(probabilities).T):
        if not 0 < y.sum() < len(y):
            continue
        fpr, tpr, _ = roc_curve(y, p)
        precision, recall, _ = precision_recall_curve(y, p)
        parts.append(pd.DataFrame({"label": name, "curve": "roc", "x": fpr, "y": tpr}))
        parts.append(pd.DataFrame({"label": name, "curve": "pr", "x": recall, "y": precision}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["label", "curve", "x", "y"])

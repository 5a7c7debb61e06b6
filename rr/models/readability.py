"""The readability classifier of section 2.2: four independent labels, how it is reported, and a second judge beside it.

Labels, in the paper's order: is this a fundus image; are macula, optic disc, retinal region readable.

The paper's classifier is an InceptionV3. It steers the restoration, so it is no witness for it: a `Readability` of another
architecture, trained apart, judges and steers nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from rr.errors import InputError, choose
from rr.models import pretrained
from rr.paper import LABELS

RESAMPLES = 2000  # of the bootstrap
BINS = 10  # of the reliability diagram, equally wide


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

    def loss(self, batch, generator):
        """{"loss": weighted binary cross-entropy over the four labels}; in training on augmented images (2.2)."""
        x = augment(batch.x, generator) if self.training else batch.x
        logits = self(x).float()
        return {
            "loss": F.binary_cross_entropy_with_logits(
                logits, batch.labels, pos_weight=self.pos_weight
            )
        }


def augment(x, generator, brightness=0.1, contrast=0.1):
    """Random horizontal flip, brightness and contrast (2.2; their ranges are not stated), each image its own.

    brightness: added, up to +-10 % of the range; contrast: factor 0.9 to 1.1 about the image mean. Values stay in [0, 1].
    """
    flip, b, c = torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x, non_blocking=True)
    x = torch.where(flip < 0.5, x.flip(-1), x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast * (2 * c - 1)) + mean + brightness * (2 * b - 1)).clamp(0, 1)


def report(labels, probabilities, threshold=0.5):
    """One row per label: counts of the 2x2 matrix, accuracy, precision, recall, F1, areas under ROC and PR curve, ECE.

    labels (N, 4) of 0/1, probabilities (N, 4). Beside accuracy stands the majority baseline, beside average precision
    the prevalence: what a classifier scores that looks at nothing. Columns *_low and *_high are 95 % bootstrap intervals over
    images, of the areas and of `above_majority`, accuracy minus majority. Where a label has one class only, the areas are NaN.
    `ece`: see there; `ece_calibrated`: what 95 % of perfectly calibrated classifiers with these probabilities stay below on so
    few images.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    rows = []
    for name, y, p in zip(LABELS, np.asarray(labels, int).T, np.asarray(probabilities, float).T):
        n, rng = len(y), np.random.default_rng(0)
        counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(
            float
        )  # how often each image is drawn
        guess = (p >= threshold).astype(int)
        tn, fp, fn, tp = confusion_matrix(y, guess, labels=[0, 1]).ravel()
        precision, recall, f1, _ = precision_recall_fscore_support(
            y, guess, average="binary", zero_division=np.nan
        )
        both = 0 < y.sum() < n
        usual = int(y.mean() >= 0.5)
        gain = (guess == y).astype(int) - (usual == y)  # per image: what looking at it was good for
        columns = ("roc_auc", "average_precision", "above_majority")
        ends = [_ends(*each) for each in zip(columns, (*areas(y, p, counts), counts @ gain / n))]
        drawn = rng.random((RESAMPLES, n)) < p  # labels as a calibrated classifier's would be
        rows.append({
            "label": name, "n": n, "prevalence": y.mean(), "majority": max(y.mean(), 1 - y.mean()),
            "accuracy": (guess == y).mean(), "precision": precision, "recall": recall, "f1": f1,
            "roc_auc": roc_auc_score(y, p) if both else np.nan,
            "average_precision": average_precision_score(y, p) if both else np.nan,
            "above_majority": gain.mean(), **ends[0], **ends[1], **ends[2],
            "ece": ece(y, p), "ece_calibrated": np.quantile(ece(drawn, p), 0.95),
            "tn": tn, "fp": fp, "fn": fn, "tp": tp,
        })  # fmt: skip
    return pd.DataFrame(rows)


def areas(y, p, counts):
    """Area under the ROC curve and average precision of N images drawn counts (B, N) times each: two vectors (B,).

    y (N,) of 0/1, p (N,). The former is the share of pairs (positive, negative) in the right order, ties half; the latter the
    sum over thresholds of precision times the gain in recall. NaN where a draw has one class only.
    """
    right = (p[y == 1][:, None] > p[y == 0]) + 0.5 * (
        p[y == 1][:, None] == p[y == 0]
    )  # positives, negatives
    positive, negative = counts[:, y == 1], counts[:, y == 0]
    both = (positive.sum(1) > 0) & (negative.sum(1) > 0)
    pairs = np.where(both, positive.sum(1) * negative.sum(1), np.nan)
    roc = ((positive @ right) * negative).sum(1) / pairs
    order = np.argsort(-p, kind="stable")
    last = np.append(
        np.diff(p[order]) != 0, True
    )  # of equal probabilities: one threshold takes them all
    true, drawn = (
        (counts * weight)[:, order].cumsum(1)[:, last] for weight in (y, np.ones_like(y))
    )
    precision = true / np.maximum(drawn, 1)
    return roc, (np.diff(true, prepend=0, axis=1) * precision).sum(1) / np.where(
        both, positive.sum(1), np.nan
    )


def _ends(name, values):
    """Ends of the 95 % percentile interval, under the names of a report's columns; draws without a value are left out."""
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return {f"{name}_low": low, f"{name}_high": high}


def ece(y, p, bins=BINS):
    """Expected calibration error: mean over images of |share of positives - mean probability| in the image's bin of p.

    y (..., N) of 0/1, p (N,); bins of equal width (Naeini et al. 2015, for a binary label). 0: of the images to which the
    classifier gives 80 %, 80 % are readable. Biased upwards where bins hold few images.
    """
    place = np.eye(bins)[np.minimum((np.asarray(p) * bins).astype(int), bins - 1)]  # N, bins
    return np.abs((np.asarray(y) - np.asarray(p)) @ place).sum(-1) / len(p)


def reliability(labels, probabilities, bins=BINS):
    """The reliability diagram: one row per label and bin that holds images: label, n, predicted, observed, low, high.

    predicted: mean probability; observed: share of positives, with its 95 % Wilson interval.
    """
    rows = []
    for name, y, p in zip(LABELS, np.asarray(labels, int).T, np.asarray(probabilities, float).T):
        place = np.minimum((p * bins).astype(int), bins - 1)
        for each in np.unique(place):
            here = place == each
            found = share(y[here] == 1)
            rows.append({"label": name, "n": found["n"], "predicted": p[here].mean(), "observed": found["share"],
                         "low": found["low"], "high": found["high"]})  # fmt: skip
    return pd.DataFrame(rows)


def unweighted(probabilities, pos_weight):
    """Probabilities (N, 4) of a classifier that was trained with class weights w (4,), as they would be without.

    The weighted cross-entropy is lowest at odds of w times the true ones, so the odds are divided by w.
    """
    p, w = np.asarray(probabilities, float), np.asarray(pos_weight, float)
    return p / (p + w * (1 - p))


def readable(probabilities, threshold=0.5):
    """Whether a judge calls an image readable, in all four labels: (N, 4) => bool (N,)."""
    return (np.asarray(probabilities) >= threshold).all(1)


def passed(probabilities, threshold=0.5):
    """How many images a judge passes as readable in all four labels: a dict as of `share`. probabilities (N, 4)."""
    return share(readable(probabilities, threshold))


def share(hits):
    """{"n", "hits", "share", "low", "high"} of N yes or no: their share with its 95 % Wilson interval; NaN if N is 0."""
    from scipy.stats import binomtest

    hits = np.asarray(hits, bool)
    n, k = len(hits), int(hits.sum())
    if n == 0:
        return {"n": 0, "hits": 0, "share": np.nan, "low": np.nan, "high": np.nan}
    ends = binomtest(k, n).proportion_ci(method="wilson")
    return {"n": n, "hits": k, "share": k / n, "low": float(ends.low), "high": float(ends.high)}


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
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["label", "curve", "x", "y"])
    )


def recipe(P, data, home, architecture="inception"):
    """What `train.run` needs to train a judge with preset P on `data`: the paper's classifier, or the second judge.

    The second judge starts from other weights, sees the images in another order, and has half of the epochs: it learns in fewer.
    """
    second, rows = architecture != "inception", data.labelled("train")
    seed = P.seed + second
    torch.manual_seed(seed)
    model = Readability(architecture)
    start = model.start_from(P.weights)
    model.weigh_classes(data.labels[rows])
    return {
        "model": model, "rows": rows, "val_rows": data.labelled("val"),
        "folder": home / "checkpoints" / ("judge" if second else "readability"),
        "epochs": max(1, P.classifier_epochs // 2) if second else P.classifier_epochs,
        "lr": P.classifier_lr, "optimizer": "rmsprop", "seed": seed, "facts": {"preset": P.name, "weights": start},
    }  # fmt: skip

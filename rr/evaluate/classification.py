"""How the readability classifiers are evaluated: counts, areas under curves, calibration, shares.

labels are (N, 4) of 0 and 1, probabilities (N, 4) in the order of paper.LABELS. Probabilities are
corrected for the class weights (see Readability.probabilities), so 0.5 is the threshold throughout.
"""

import numpy as np
import pandas as pd

from rr.evaluate.statistics import wilson
from rr.paper import LABELS

THRESHOLD = 0.5  # a label with this probability or more counts as readable
RESAMPLES = 2000  # of the bootstrap
BINS = 10  # of the reliability diagram, equally wide


def report(labels, probabilities):
    """One row per label: counts of the 2x2 matrix, accuracy, precision, recall, F1, areas, ECE.

    `majority` is the accuracy of always answering the more frequent class, and `above_majority` the
    accuracy minus it. `prevalence` is the average precision without any information. Columns *_low
    and *_high are 95 % bootstrap intervals over images. The areas under the ROC curve and the
    precision-recall curve are NaN for a label with one class only. `ece_calibrated` is the 95 %
    quantile of the ECE that a perfectly calibrated classifier has on as many images.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    rows = []
    for name, y, p in _per_label(labels, probabilities):
        n, rng = len(y), np.random.default_rng(0)
        counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)  # of each image
        answer = (p >= THRESHOLD).astype(int)
        tn, fp, fn, tp = confusion_matrix(y, answer, labels=[0, 1]).ravel()
        precision, recall, f1, _ = precision_recall_fscore_support(
            y, answer, average="binary", zero_division=np.nan
        )
        two_classes = 0 < y.sum() < n
        majority_class = int(y.mean() >= 0.5)
        gain = (answer == y).astype(int) - (majority_class == y)  # per image: -1, 0 or 1
        roc_draws, precision_draws = areas(y, p, counts)
        calibrated_labels = rng.random((RESAMPLES, n)) < p
        rows.append({
            "label": name, "n": n, "prevalence": y.mean(),
            "majority": max(y.mean(), 1 - y.mean()), "accuracy": (answer == y).mean(),
            "precision": precision, "recall": recall, "f1": f1,
            "roc_auc": roc_auc_score(y, p) if two_classes else np.nan,
            "average_precision": average_precision_score(y, p) if two_classes else np.nan,
            "above_majority": gain.mean(), **_interval("roc_auc", roc_draws),
            **_interval("average_precision", precision_draws),
            **_interval("above_majority", counts @ gain / n),
            "ece": ece(y, p), "ece_calibrated": np.quantile(ece(calibrated_labels, p), 0.95),
            "tn": tn, "fp": fp, "fn": fn, "tp": tp,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _per_label(labels, probabilities):
    """(name, y (N,), p (N,)) of each label."""
    return zip(LABELS, np.asarray(labels, int).T, np.asarray(probabilities, float).T)


def areas(y, p, counts):
    """Area under the ROC curve and average precision of B resamples: two vectors (B,).

    y (N,) of 0 and 1, p (N,); counts (B, N): how often each image occurs in a resample. NaN where a
    resample has one class only.
    """
    positive, negative = counts[:, y == 1], counts[:, y == 0]
    positives, negatives = positive.sum(1), negative.sum(1)
    two_classes = (positives > 0) & (negatives > 0)

    # the area is the share of pairs (positive, negative) in the right order; ties count half
    higher, equal = p[y == 1][:, None] > p[y == 0], p[y == 1][:, None] == p[y == 0]
    ordered_pairs = ((positive @ (higher + 0.5 * equal)) * negative).sum(1)
    roc = ordered_pairs / np.where(two_classes, positives * negatives, np.nan)

    # average precision: the sum over thresholds of the precision times the gain in recall
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)  # the last image at each threshold
    called = counts[:, order].cumsum(1)[:, last]  # images called positive
    hits = (counts * y)[:, order].cumsum(1)[:, last]  # positives among them
    gained = np.diff(hits, prepend=0, axis=1)
    precision = (hits / np.maximum(called, 1) * gained).sum(1)
    return roc, precision / np.where(two_classes, positives, np.nan)


def _interval(name, values):
    """The 95 % percentile interval as columns of a report; NaNs are left out."""
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return {f"{name}_low": low, f"{name}_high": high}


def ece(y, p):
    """Expected calibration error (Naeini et al. 2015): mean |share of positives - mean p| per bin.

    y (..., N) of 0 and 1, p (N,); bins of equal width, weighted by their images. It is 0 if 80 % of
    the images with probability 0.8 are positive, and biased upwards if bins hold few images.
    """
    in_bin = np.eye(BINS)[_bin(p)]  # N, BINS
    return np.abs((np.asarray(y) - np.asarray(p)) @ in_bin).sum(-1) / len(p)


def _bin(p):
    return np.minimum((np.asarray(p) * BINS).astype(int), BINS - 1)


def reliability(labels, probabilities):
    """The reliability diagram, one row per label and occupied bin.

    predicted: mean probability; observed, low, high: share of positives, 95 % Wilson interval.
    """
    rows = []
    for name, y, p in _per_label(labels, probabilities):
        index = _bin(p)
        for i in np.unique(index):
            positives = share(y[index == i] == 1)
            rows.append({
                "label": name, "n": positives["n"], "predicted": p[index == i].mean(),
                "observed": positives["share"], "low": positives["low"], "high": positives["high"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def readable(probabilities):
    """Whether all four labels of an image count as readable: (N, 4) => bool (N,)."""
    return (np.asarray(probabilities) >= THRESHOLD).all(1)


def passed(probabilities):
    """The share of images (N, 4) that are readable in all four labels, see `share`."""
    return share(readable(probabilities))


def share(hits):
    """{"n", "hits", "share", "low", "high"}: the share of hits (N,) and its Wilson interval."""
    hits = np.asarray(hits, bool)
    n, k = len(hits), int(hits.sum())
    if n == 0:
        return {"n": 0, "hits": 0, "share": np.nan, "low": np.nan, "high": np.nan}
    low, high = wilson(k / n, n)
    return {"n": n, "hits": k, "share": k / n, "low": float(low), "high": float(high)}


def curves(labels, probabilities):
    """Points of the ROC and precision-recall curves: label, curve ("roc" or "pr"), x, y.

    ROC: x is the false, y the true positive rate. PR: x is the recall, y the precision. Labels with
    one class only have no curves.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    parts = []
    for name, y, p in _per_label(labels, probabilities):
        if 0 < y.sum() < len(y):
            fpr, tpr, _ = roc_curve(y, p)
            precision, recall, _ = precision_recall_curve(y, p)
            parts.append(pd.DataFrame({"label": name, "curve": "roc", "x": fpr, "y": tpr}))
            parts.append(pd.DataFrame({"label": name, "curve": "pr", "x": recall, "y": precision}))
    empty = pd.DataFrame(columns=["label", "curve", "x", "y"])
    return pd.concat(parts or [empty], ignore_index=True)

"""How the readability classifier is reported: 2x2 matrices, areas, calibration, curves."""

import numpy as np
import pandas as pd

from rr.paper import LABELS

RESAMPLES = 2000  # of the bootstrap


BINS = 10  # of the reliability diagram, equally wide


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

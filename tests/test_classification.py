"""Reports of classifiers: counts made by hand, scikit-learn as oracle, coverage of intervals."""

import numpy as np
import pytest
import torch

from rr.evaluate.classification import (
    THRESHOLD,
    areas,
    curves,
    ece,
    passed,
    readable,
    reliability,
    report,
    share,
)
from rr.models.retinaregen import RetinaRegen
from rr.paper import LABELS


def test_report_against_counts_made_by_hand():
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]])
    p = np.array(
        [[0.9, 0.9, 0.6, 0.2], [0.9, 0.8, 0.1, 0.9], [0.9, 0.4, 0.7, 0.9], [0.9, 0.1, 0.9, 0.9]]
    )
    table = report(labels, p).set_index("label")
    assert list(table.index) == list(LABELS)
    macula = table.loc["macula"]
    assert (macula.tp, macula.fp, macula.fn, macula.tn) == (1, 1, 1, 1)
    assert macula.accuracy == macula.precision == macula.recall == macula.f1 == 0.5
    assert macula.roc_auc == 0.75  # of the four pairs, three are in order
    assert table.loc["disc"].roc_auc == 1 and table.loc["disc"].prevalence == 0.5
    assert np.isnan(table.loc["fundus"].roc_auc) and table.loc["fundus"].majority == 1
    assert set(curves(labels, p)["label"]) == {"macula", "disc"}


def test_roc_area_is_that_under_the_curve():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 4))
    p = np.clip(labels * 0.3 + rng.random((200, 4)) * 0.7, 0, 1)
    table, points = report(labels, p).set_index("label"), curves(labels, p)
    for name in LABELS:
        roc = points[(points.label == name) & (points.curve == "roc")]
        assert np.trapezoid(roc.y, roc.x) == pytest.approx(table.loc[name].roc_auc)


# ----------------------------------------------------------------------- intervals, calibration


def made(n=300, seed=0):
    """Labels and probabilities of a fair classifier with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 4))
    return labels, np.round(np.clip(labels * 0.3 + rng.random((n, 4)) * 0.7, 0, 1), 2)


def test_areas_of_resamples_are_scikit_learns_with_weights():
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, p = made(60)
    y, p = labels[:, 0], p[:, 0]
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 5)
    roc, precision = areas(y, p, counts)
    for i, weights in enumerate(counts):
        assert roc[i] == pytest.approx(roc_auc_score(y, p, sample_weight=weights))
        assert precision[i] == pytest.approx(average_precision_score(y, p, sample_weight=weights))
    assert np.isnan(areas(y, p, counts * y)).all()  # resamples of positives only


def test_intervals_of_the_report_hold_the_truth_as_often_as_they_say():
    """In about 95 % of 30 sets of 100 images the interval holds the area of all 3000 images."""
    from sklearn.metrics import roc_auc_score

    labels, p = made(3000, seed=5)
    truth, held = roc_auc_score(labels[:, 0], p[:, 0]), 0
    for part in np.split(np.arange(3000), 30):
        row = report(labels[part], p[part]).iloc[0]
        assert row.roc_auc_low < row.roc_auc < row.roc_auc_high
        assert row.above_majority_low < row.above_majority_high
        held += row.roc_auc_low < truth < row.roc_auc_high
    assert 26 <= held <= 30


def test_a_constant_classifier_is_not_above_the_majority():
    labels = np.random.default_rng(0).random((200, 4)) < 0.8
    table = report(labels, np.full((200, 4), 0.8))
    assert (table.above_majority == 0).all() and (table.above_majority_high == 0).all()
    assert (table.roc_auc == 0.5).all() and (table.roc_auc_low == 0.5).all()


def test_ece_by_hand_and_of_a_calibrated_classifier():
    y, p = np.array([1, 0, 1, 1]), np.array([0.62, 0.68, 0.1, 1.0])
    assert ece(y, p) == pytest.approx((abs(0.5 - 0.65) * 2 + abs(1 - 0.1) + 0) / 4)
    rng = np.random.default_rng(0)
    p = rng.random((20000, 4))
    calibrated = rng.random(p.shape) < p
    assert ece(calibrated[:, 0], p[:, 0]) < 0.02
    table = report(calibrated[:300], p[:300])
    assert (table.ece < table.ece_calibrated * 1.3).all()
    confident = np.where(p > 0.5, 0.99, 0.01)  # overconfident
    table = report(calibrated[:300], confident[:300])
    assert (table.ece > 3 * table.ece_calibrated).all()


def test_the_reliability_diagram_counts_every_image_once():
    labels, p = made()
    points = reliability(labels, p)
    assert (points.groupby("label").n.sum() == 300).all()
    last = points[points.label == "fundus"].iloc[-1]
    in_bin = p[:, 0] >= 0.9
    assert (last.n, last.observed) == (in_bin.sum(), labels[in_bin, 0].mean())
    assert last.low <= last.observed <= last.high


def test_passed_are_images_with_all_four_labels():
    assert THRESHOLD == RetinaRegen.THRESHOLD == 0.5
    p = np.array([[0.9, 0.9, 0.9, 0.5], [0.9, 0.9, 0.9, 0.49], [0.9, 0.9, 0.9, 0.9], [0, 0, 0, 0]])
    assert readable(p).tolist() == [True, False, True, False]
    result = passed(torch.tensor(p))
    assert (result["n"], result["hits"], result["share"]) == (4, 2, 0.5)


def test_shares_have_wilsons_interval():
    half, none = share([True, True, False, False]), share([False] * 20)
    assert (half["low"], half["high"]) == pytest.approx((0.150, 0.850), abs=1e-3)
    assert (none["low"], none["high"]) == pytest.approx((0, 0.161), abs=1e-3)
    assert np.isnan(share([])["share"])

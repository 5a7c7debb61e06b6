"""The classifier: weights, augmentation, and a report that is checked by hand."""

import numpy as np
import pytest
import torch

from rr.io import InputError
from rr.paper import LABELS
from rr.readability import Readability, augment, curves, report
from rr.train import Batch


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Readability()


def test_four_logits_for_any_side_from_75_px(model):
    model.eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 75, 75)).shape == (2, 4)
        assert model(torch.rand(1, 3, 224, 224)).shape == (1, 4)
    with pytest.raises(InputError, match="75 px"):
        model(torch.rand(1, 3, 64, 64))


def test_probabilities_are_those_of_evaluation_mode_and_leave_the_mode_alone(model):
    model.train()
    x = torch.rand(3, 3, 80, 80)
    p = model.probabilities(x, batch=2)
    assert model.training
    model.eval()
    with torch.no_grad():
        assert torch.allclose(p, model(x).sigmoid(), atol=1e-5)


def test_class_weights_are_negatives_over_positives(model):
    labels = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0.0]])
    model.weigh_classes(labels)
    assert torch.allclose(model.pos_weight, torch.tensor([1 / 3, 3, 3, 4]))  # no positive at all: counted as one
    x, y = torch.rand(4, 3, 80, 80), labels
    model.eval()
    with torch.no_grad():
        z = model(x)
        by_hand = -(model.pos_weight * y * torch.sigmoid(z).log() + (1 - y) * torch.sigmoid(-z).log()).mean()
        loss = model.loss(Batch(x, y, None), torch.Generator())["loss"]
    assert torch.allclose(loss, by_hand, rtol=1e-4)


def test_augmentation_flips_and_shifts_each_image_by_itself():
    x = torch.rand(64, 3, 8, 8) * 0.4 + 0.3
    y = augment(x, torch.Generator().manual_seed(0), brightness=0, contrast=0)
    flipped = [(torch.allclose(a, b.flip(-1), atol=1e-6)) for a, b in zip(y, x)]
    kept = [torch.allclose(a, b, atol=1e-6) for a, b in zip(y, x)]
    assert all(f != k for f, k in zip(flipped, kept)) and 16 < sum(flipped) < 48
    y = augment(x, torch.Generator().manual_seed(0))
    assert 0 <= y.min() and y.max() <= 1
    shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert shift.abs().max() <= 0.1 + 1e-5 and shift.std() > 0.03
    assert torch.equal(y, augment(x, torch.Generator().manual_seed(0)))


def test_report_against_counts_made_by_hand():
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]])
    p = np.array([[0.9, 0.9, 0.6, 0.2], [0.9, 0.8, 0.1, 0.9], [0.9, 0.4, 0.7, 0.9], [0.9, 0.1, 0.9, 0.9]])
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

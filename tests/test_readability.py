"""The classifier and the second judge: weights, augmentation, and a report checked by hand and against scikit-learn."""

import numpy as np
import pytest
import torch

from rr import checkpoint
from rr.data.pairs import augment
from rr.errors import InputError
from rr.evaluate.classification import (
    areas,
    curves,
    ece,
    passed,
    readable,
    reliability,
    report,
    share,
    unweighted,
)
from rr.models.readability import ARCHITECTURES, Readability
from rr.paper import LABELS
from rr.data.dataset import Batch


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
    assert torch.allclose(
        model.pos_weight, torch.tensor([1 / 3, 3, 3, 4])
    )  # no positive at all: counted as one
    x, y = torch.rand(4, 3, 80, 80), labels
    model.eval()
    with torch.no_grad():
        z = model(x)
        by_hand = -(
            model.pos_weight * y * torch.sigmoid(z).log() + (1 - y) * torch.sigmoid(-z).log()
        ).mean()
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


# ---------------------------------------------------------------------------------------------------- the second judge


def test_a_second_judge_has_the_same_interface_and_other_weights(model):
    torch.manual_seed(0)
    judge = Readability("resnet18")
    assert judge.start_from("none") == "none: random initialisation"
    assert judge.probabilities(torch.rand(2, 3, 40, 40)).shape == (2, 4)
    with pytest.raises(InputError, match="image side 20: resnet18 needs at least 32 px"):
        judge(torch.rand(1, 3, 20, 20))
    with pytest.raises(
        InputError, match="architecture 'vgg': unknown; choose one of inception, resnet18"
    ):
        Readability("vgg")
    assert not {name for name, _ in judge.named_parameters()} & {
        name for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_reach_the_network_in_the_range_that_torchvision_trained_it_on(architecture):
    judge = Readability(architecture)
    seen = []
    judge.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    judge.probabilities(torch.full((1, 3, 80, 80), 0.485))
    expected = {
        "inception": [-0.03] * 3,
        "resnet18": [0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225],
    }[architecture]
    assert seen[0].mean((0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


def test_checkpoints_name_their_architecture_and_old_ones_are_inception(model, tmp_path):
    judge = Readability("resnet18")
    checkpoint.save(tmp_path / "judge", judge, {})
    x = torch.rand(2, 3, 80, 80)
    assert torch.equal(
        checkpoint.load(tmp_path / "judge", Readability).probabilities(x), judge.probabilities(x)
    )
    old = Readability()
    old.load_state_dict(model.state_dict())
    old.arguments = {}  # as they were before there was a choice
    checkpoint.save(tmp_path / "old", old, {})
    assert torch.equal(
        checkpoint.load(tmp_path / "old", Readability).probabilities(x), model.probabilities(x)
    )
    assert all(name.startswith("inception.") or name == "pos_weight" for name in old.state_dict())


# --------------------------------------------------------------------------------------------- intervals, calibration


def made(n=300, seed=0):
    """Labels and probabilities of a fair classifier with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, 4))
    return labels, np.round(np.clip(labels * 0.3 + rng.random((n, 4)) * 0.7, 0, 1), 2)


def test_areas_of_draws_are_scikit_learns_with_weights():
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, p = made(60)
    y, p = labels[:, 0], p[:, 0]
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 5)
    roc, precision = areas(y, p, counts)
    assert roc == pytest.approx([roc_auc_score(y, p, sample_weight=each) for each in counts])
    assert precision == pytest.approx(
        [average_precision_score(y, p, sample_weight=each) for each in counts]
    )
    assert np.isnan(areas(y, p, (counts * y))[0]).all(), "draws of positives alone have no areas"


def test_intervals_of_the_report_hold_the_truth_as_often_as_they_say():
    """Sixty sets of 100 images: the area under the ROC curve of all 6000 lies within the interval in about 95 %."""
    from sklearn.metrics import roc_auc_score

    labels, p = made(6000, seed=5)
    truth, held = roc_auc_score(labels[:, 0], p[:, 0]), 0
    for part in np.split(np.arange(6000), 60):
        row = report(labels[part], p[part]).iloc[0]
        assert (
            row.roc_auc_low < row.roc_auc < row.roc_auc_high
            and row.above_majority_low < row.above_majority_high
        )
        held += row.roc_auc_low < truth < row.roc_auc_high
    assert 52 <= held <= 60


def test_a_classifier_that_looks_at_nothing_is_not_above_the_majority():
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
    sure = np.where(p > 0.5, 0.99, 0.01)  # the same order, much too sure
    table = report(calibrated[:300], sure[:300])
    assert (table.ece > 3 * table.ece_calibrated).all()


def test_the_reliability_diagram_counts_every_image_once():
    labels, p = made()
    points = reliability(labels, p)
    assert (points.groupby("label").n.sum() == 300).all()
    first = points[(points.label == "fundus")].iloc[-1]
    here = p[:, 0] >= 0.9
    assert (first.n, first.observed) == (
        here.sum(),
        labels[here, 0].mean(),
    ) and first.low <= first.observed <= first.high


def test_class_weights_are_taken_out_of_the_odds():
    """The best constant under the weighted loss, taken back, is the prevalence."""
    y, w = torch.tensor([1.0] * 9 + [0.0]), torch.tensor(1 / 9)
    z = torch.linspace(-6, 6, 24001)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        z[:, None].expand(-1, 10), y.expand(len(z), -1), pos_weight=w, reduction="none"
    ).mean(1)
    p = torch.sigmoid(z[loss.argmin()])
    assert p == pytest.approx(0.5, abs=1e-3) and unweighted(p, w) == pytest.approx(0.9, abs=1e-3)


def test_passed_are_images_with_all_four_labels():
    p = np.array([[0.9, 0.9, 0.9, 0.5], [0.9, 0.9, 0.9, 0.49], [0.9, 0.9, 0.9, 0.9], [0, 0, 0, 0]])
    assert readable(p).tolist() == [True, False, True, False]
    found = passed(torch.tensor(p))
    assert (found["n"], found["hits"], found["share"]) == (4, 2, 0.5)
    assert (found["low"], found["high"]) == pytest.approx(
        (0.150, 0.850), abs=1e-3
    )  # Wilson's interval of 2 of 4
    assert share([False] * 20)["low"] == 0 and share([False] * 20)["high"] == pytest.approx(
        0.161, abs=1e-3
    )
    assert np.isnan(share([])["share"])

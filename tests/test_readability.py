"""The readability classifiers: class weights, corrected probabilities, decisions, augmentation."""

import pytest
import torch

from rr import checkpoint, paper
from rr.data.pairs import augment
from rr.errors import InputError
from rr.evaluate.classification import readable, report
from rr.models.readability import ARCHITECTURES, LABELS, Readability
from rr.models.restorer import Denoiser
from rr.models.retinaregen import RetinaRegen


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Readability()


def test_four_logits_for_any_side(model):
    model.eval()
    with torch.no_grad():
        for side in (64, 75, 224):
            assert model(torch.rand(2, 3, side, side)).shape == (2, 4)


def test_the_outputs_are_in_the_order_of_the_paper():
    assert LABELS == paper.LABELS


def test_probabilities_are_those_of_evaluation_mode_and_leave_the_mode_alone(model):
    model.train()
    x = torch.rand(3, 3, 80, 80)
    p = model.probabilities(x, batch=2)
    assert model.training
    model.eval()
    with torch.no_grad():
        assert torch.allclose(p, model(x).sigmoid(), atol=1e-5)  # w = 1 before any training


def test_class_weights_are_negatives_over_positives():
    model = Readability("resnet18").eval()
    y = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0.0]])
    model.weigh_classes(y)
    # a label without positives is treated as if it had one
    assert torch.allclose(model.pos_weight, torch.tensor([1 / 3, 3, 3, 4]))
    x = torch.rand(4, 3, 80, 80)
    with torch.no_grad():
        z = model(x)
        positive = model.pos_weight * y * torch.sigmoid(z).log()
        by_hand = -(positive + (1 - y) * torch.sigmoid(-z).log()).mean()
        loss = model.loss(x, y)["loss"]
    assert torch.allclose(loss, by_hand, rtol=1e-4)
    model.weigh_classes(torch.ones(100, 4))
    assert torch.allclose(model.pos_weight, torch.tensor(1 / 20))


# ------------------------------------------------------------------- correction for class weights


class Logistic(torch.nn.Module):
    """Four logistic regressions on the mean of an image, in place of a network of torchvision."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(4))
        self.offset = torch.nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None] * self.slope + self.offset


def logistic(slope, offset, pos_weight):
    """A Readability whose raw logits are slope * (mean of the image, normalised) + offset."""
    model = Readability("resnet18")
    model.resnet18 = Logistic()
    with torch.no_grad():
        model.resnet18.slope.fill_(slope)
        model.resnet18.offset.copy_(torch.tensor(offset))
        model.pos_weight.copy_(torch.tensor(pos_weight))
    return model.eval()


def test_a_weighted_classifier_is_calibrated_after_the_correction_only():
    """Labels are drawn from logistic models of known prevalence, and fitted with the real loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2000, 1, 1, 1, generator=generator).expand(-1, 3, 32, 32)
    model = logistic(0.0, [0.0] * 4, [1.0] * 4)
    with torch.no_grad():
        u = ((x[:, :, :1, :1] - model.mean) / model.std).mean((1, 2, 3))
    truth = torch.sigmoid(2 * u[:, None] + torch.tensor([3.0, 2.0, 0.0, -2.5]))  # N, 4
    labels = (torch.rand(truth.shape, generator=generator) < truth).float()
    model.weigh_classes(labels)
    fit = torch.optim.LBFGS(model.resnet18.parameters(), line_search_fn="strong_wolfe", max_iter=30)

    def closure():
        fit.zero_grad()
        loss = model.loss(x, labels)["loss"]
        loss.backward()
        return loss

    fit.step(closure)
    with torch.no_grad():
        raw = model(x).sigmoid()
    corrected, prevalence = model.probabilities(x), labels.mean(0)
    unbalanced = (prevalence - 0.5).abs() > 0.2
    assert unbalanced.sum() == 3
    assert ((corrected.mean(0) - prevalence).abs() < 0.01).all()
    assert ((raw.mean(0) - prevalence).abs()[unbalanced] > 0.08).all()
    assert (corrected - truth).abs().max() < 0.1  # for every image, and not on average only
    good, bad = report(labels[:500], corrected[:500]), report(labels[:500], raw[:500])
    assert (good.ece < good.ece_calibrated).all() and (good.above_majority > 0).all()
    unbalanced = unbalanced.numpy()
    assert (bad.ece > bad.ece_calibrated)[unbalanced].all()
    # uncorrected, a good classifier of a frequent label is worse than the majority class
    assert bad.above_majority[0] < 0 < good.above_majority[0]


def test_screening_and_verification_decide_by_corrected_probabilities():
    """Raw odds e^-1 (p = 0.27) with w = 0.1 are true odds 10 e^-1 (p = 0.79): readable."""
    y, fov = torch.rand(2, 3, 80, 80), torch.ones(2, 1, 80, 80, dtype=torch.bool)
    denoiser = Denoiser(80, width=4, latent=4, T=4, schedule="cosine", condition=(256, 1, 1))
    cases = [
        ([-1.0] * 4, [0.1] * 4, "readable"),
        ([1.0] * 4, [10.0] * 4, "no_fundus"),
        ([3.0, 3.0, 1.0, 3.0], [1.0, 1.0, 10.0, 1.0], "restored"),
    ]
    for offset, pos_weight, outcome in cases:
        classifier = logistic(0.0, offset, pos_weight)
        result = RetinaRegen(classifier, denoiser)(y, fov)
        odds = torch.tensor(offset).exp() / torch.tensor(pos_weight)
        assert torch.allclose(result.before, (odds / (1 + odds)).expand(2, 4), atol=1e-5)
        assert result.readable.all() == result.passed.all() == (outcome == "readable")
        assert result.no_fundus.all() == (outcome == "no_fundus")
        assert torch.equal(result.image, y) == (outcome != "restored")
        assert readable(result.after).all() == (outcome == "readable")


def test_augmentation_flips_and_shifts_each_image_by_itself():
    x = torch.rand(64, 3, 8, 8) * 0.4 + 0.3
    y = augment(x, torch.Generator().manual_seed(0), brightness=0, contrast=0)
    flipped = [torch.allclose(a, b.flip(-1), atol=1e-6) for a, b in zip(y, x)]
    kept = [torch.allclose(a, b, atol=1e-6) for a, b in zip(y, x)]
    assert all(f != k for f, k in zip(flipped, kept)) and 16 < sum(flipped) < 48
    y = augment(x, torch.Generator().manual_seed(0))
    assert 0 <= y.min() and y.max() <= 1
    shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert shift.abs().max() <= 0.1 + 1e-5 and shift.std() > 0.03
    assert torch.equal(y, augment(x, torch.Generator().manual_seed(0)))


# --------------------------------------------------------------------------- held-out classifier


def test_the_held_out_classifier_has_the_same_interface_and_its_own_weights(model):
    torch.manual_seed(0)
    heldout = Readability("resnet18")
    assert heldout.start_from("none") == "none: random initialisation"
    assert heldout.probabilities(torch.rand(2, 3, 40, 40)).shape == (2, 4)
    small, enlarged = torch.rand(1, 3, 20, 20), {"size": 32, "mode": "bilinear"}
    large = torch.nn.functional.interpolate(small, **enlarged)
    assert torch.allclose(heldout.probabilities(small), heldout.probabilities(large), atol=1e-6)
    with pytest.raises(InputError, match="architecture 'vgg': unknown; .* inception, resnet18"):
        Readability("vgg")
    names = [{name for name, _ in classifier.named_parameters()} for classifier in (heldout, model)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_reach_the_network_in_the_range_that_torchvision_trained_it_on(architecture):
    classifier = Readability(architecture)
    inputs = []
    classifier.network.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    classifier.probabilities(torch.full((1, 3, 80, 80), 0.485))
    expected = {
        "inception": [-0.03] * 3,
        "resnet18": [0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225],
    }[architecture]
    assert inputs[0].mean((0, 2, 3)).tolist() == pytest.approx(expected, abs=1e-5)


def test_checkpoints_name_their_architecture_and_hold_the_class_weights(tmp_path):
    classifier, x = Readability("resnet18"), torch.rand(2, 3, 80, 80)
    classifier.weigh_classes(torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]]))
    checkpoint.save(tmp_path / "heldout", classifier, {})
    loaded = checkpoint.load(tmp_path / "heldout", Readability)
    assert torch.equal(loaded.probabilities(x), classifier.probabilities(x))
    assert torch.equal(loaded.pos_weight, classifier.pos_weight)

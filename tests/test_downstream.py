"""Downstream metrics against hand-made examples, drawn eyes, published values and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.morphology import skeletonize

from rr.data import degrade, synthetic
from rr.errors import InputError
from rr.evaluate import downstream, metrics


def eyes(indices, size=80):
    drawn = [synthetic.fundus(0, i, size) for i in indices]
    x = torch.stack([torch.from_numpy(eye.image).permute(2, 0, 1) / 255 for eye in drawn])
    return x, torch.stack([torch.from_numpy(eye.fov)[None] for eye in drawn]), drawn


def mask(*rows):
    return torch.tensor([[[c == "#" for c in row] for row in rows]])


def shifted(image, right, down):
    return torch.roll(image, (down, right), dims=(-2, -1))


@pytest.fixture(scope="module")
def drawn():
    return eyes(range(8))


@pytest.fixture(scope="module")
def degraded(drawn):
    x, fov, _ = drawn
    params = degrade.sample(8, torch.Generator().manual_seed(0), severity=0.6)
    return degrade.apply(x, params, fov), lambda image: degrade.apply(image, params, fov)


def test_of_a_perfect_restoration_and_of_doing_nothing(drawn, degraded):
    (x, fov, eyes), (y, again) = drawn, degraded
    true = torch.tensor([eye.disc_circle for eye in eyes]) / 80
    perfect = downstream.measure(x, x, y, fov, true, again)
    assert len(perfect) == 8 and not perfect.isna().any(axis=None)
    assert (
        perfect[["vessel_dice", "vessel_cldice", "vessel_precision", "vessel_recall", "sharpness"]]
        == 1
    ).all(axis=None)
    assert (perfect[["disc_shift", "delta_e"]] == 0).all(axis=None)
    assert (perfect["consistency"] == metrics.PSNR_MAX).all()
    nothing = downstream.measure(x, y, y, fov, true, again)
    for name in ("vessel_dice", "vessel_cldice", "vessel_recall", "sharpness", "consistency"):
        assert nothing[name].mean() < 0.9 * perfect[name].mean(), name
    assert nothing["delta_e"].mean() > 2


def test_clean_structures_may_be_given_and_images_do_not_depend_on_each_other(drawn, degraded):
    (x, fov, _), (y, again) = drawn, degraded
    whole = downstream.measure(x, y, y, fov, None, again)
    assert whole.equals(
        downstream.measure(x, y, y, fov, None, again, downstream.structures(x, fov))
    )
    alone = downstream.measure(x[3:4], y[3:4], y[3:4], fov[3:4])
    np.testing.assert_allclose(
        alone.drop(columns="consistency"), whole.drop(columns="consistency")[3:4], rtol=1e-3
    )
    assert alone["consistency"].isna().all() and whole["disc_error"].isna().all()


@pytest.mark.parametrize("size, auc, overlap", [(80, 0.91, 0.5), (256, 0.94, 0.65)])
def test_the_detectors_are_as_accurate_as_documented(size, auc, overlap):
    result = downstream.detector_accuracy(size, n=8).mean()
    assert (
        result["vessel_auc"] > auc
        and result["vessel_dice"] > overlap
        and result["disc_error"] < 1.5
    )


def test_detector_accuracy_compares_with_the_exact_anatomy(monkeypatch):
    """A perfect vessel map has a Dice of 1; a disc 10 px of 100 off has an error of 10 %."""
    exact = [synthetic.fundus(1_000_003, i, 100) for i in range(3)]
    maps = torch.stack([torch.from_numpy(eye.vessels) for eye in exact])
    centres = torch.tensor([eye.disc_circle[:2] for eye in exact]) / 100
    monkeypatch.setattr(downstream, "vesselness", lambda x, fov: maps.float())
    monkeypatch.setattr(downstream, "disc", lambda x, fov: centres + torch.tensor([0.06, -0.08]))
    result = downstream.detector_accuracy(100, n=3)
    np.testing.assert_allclose(result, [[1, 1, 10]] * 3, atol=1e-4)


def test_vessels_do_not_depend_on_the_light_but_fade_with_contrast_and_blur(drawn):
    x, fov, _ = drawn
    clean = downstream.vessels(x, fov)
    axis = (torch.arange(80) + 0.5) / 80
    assert downstream.dice(clean, downstream.vessels(0.6 * x, fov)).min() > 0.99
    assert downstream.dice(clean, downstream.vessels(x * (0.6 + 0.3 * axis), fov)).min() > 0.9
    for weaker in (0.6 * x + 0.1 * fov, degrade.blur(x, torch.full((8,), 0.02))):
        assert (downstream.vessels(weaker, fov) & fov[:, 0]).sum() < 0.8 * clean.sum()
    assert not downstream.vessels(torch.full_like(x, 0.5) * fov, fov).any()  # the rim is no vessel


def test_a_line_of_known_depth_and_width_is_found_and_nothing_else():
    axis = (torch.arange(128) + 0.5) / 128
    line = torch.exp(-((axis - 0.4) ** 2) / (2 * 0.004**2))
    x = 0.5 * (1 - 0.2 * line).expand(1, 3, 128, 128)
    result = downstream.vessels(x, torch.ones(1, 1, 128, 128, dtype=torch.bool))[0]
    assert result.all(dim=0)[51] and not (result & ((axis - 0.4).abs() > 0.012)).any()
    bright = downstream.vessels(1 - x, torch.ones(1, 1, 128, 128, dtype=torch.bool))[0]
    assert not bright[:, 51].any()


def test_dice_by_hand():
    a, b = mask("##..", "##.."), mask("#...", "####")
    assert downstream.dice(a, b).item() == pytest.approx(2 * 3 / (4 + 5))
    assert downstream.dice(a, a).item() == 1 and downstream.dice(a, ~a).item() == 0
    assert downstream.dice(a & ~a, a & ~a).isnan()


def test_cldice_by_hand():
    """A vessel three pixels thick, its centre line, a part of that, and a line beside it."""
    thick = mask(".......", ".#####.", ".#####.", ".#####.", ".......")
    thin = mask(".......", ".......", ".#####.", ".......", ".......")
    half = mask(".......", ".......", ".###...", ".......", ".......")
    aside = mask(".......", ".......", ".......", ".......", ".#####.")
    none = thin & ~thin
    assert downstream.dice(thick, thin).item() == 0.5
    assert downstream.cldice(thick, thin, thin, thin).item() == 1  # width does not matter
    assert downstream.cldice(half, half, thick, thin).item() == pytest.approx(
        2 * 1 * 0.6 / 1.6
    )  # length does
    assert downstream.cldice(thick, thin, aside, aside).item() == 0
    assert (
        downstream.cldice(thick, thin, none, none).item() == 0
        and downstream.cldice(none, none, thick, thin).item() == 0
    )
    assert downstream.cldice(none, none, none, none).isnan()


def test_structures_take_the_skeleton_of_scikit_image(drawn):
    x, fov, _ = drawn
    seen = downstream.structures(x[:2], fov[:2])
    for vessels, skeleton in zip(seen.vessels, seen.skeleton):
        np.testing.assert_array_equal(skeleton, skeletonize(vessels.numpy()))
        assert 0 < skeleton.sum() < vessels.sum()


def test_hallucinated_and_lost_vessels_by_hand():
    clean, restored = torch.zeros(2, 1, 80, 80, dtype=torch.bool).unbind(0)
    clean[0, 20, 10:30] = True
    clean[0, 60, 10:30] = True  # lost
    restored[0, 21, 10:30] = True  # one pixel off: the same vessel
    restored[0, 40, 10:15] = True  # hallucinated
    precision, recall = downstream.precision_recall(clean, restored)
    assert precision.item() == pytest.approx(20 / 25) and recall.item() == pytest.approx(20 / 40)
    precision, recall = downstream.precision_recall(clean, restored & ~restored)
    assert precision.isnan() and recall.item() == 0


def test_a_shifted_image_has_a_shifted_disc(drawn):
    x, fov, eyes = drawn
    for i, eye in enumerate(eyes):
        right = (
            -8 if eye.disc_circle[0] > 40 else 8
        )  # towards the middle, so that no rim comes near
        a = downstream.disc(x[i : i + 1], fov[i : i + 1])
        b = downstream.disc(shifted(x[i : i + 1], right, 6), shifted(fov[i : i + 1], right, 6))
        assert downstream.displacement(a, b).item() == pytest.approx(
            10 / 80 * 100, abs=1.3
        )  # a pixel is 1.25 %


def test_displacement_is_in_percent_of_the_width():
    a, b = torch.tensor([[0.2, 0.3]]), torch.tensor([[0.5, 0.7]])
    assert downstream.displacement(a, b).item() == pytest.approx(50, rel=1e-6)


def test_colour_shift_of_published_pairs():
    """Three of the pairs by Sharma, Wu and Dalal (2005), and their mean."""
    a = np.array([[50.0, 2.6772, -79.7751], [50.0, 2.5, 0.0], [60.2574, -34.0099, 36.2677]])
    b = np.array([[50.0, 0.0, -82.7485], [73.0, 25.0, -18.0], [60.4626, -34.1751, 39.4387]])
    shift = downstream.colour_shift([a[:1], a[1:2], a[2:], a], [b[:1], b[1:2], b[2:], b])
    np.testing.assert_allclose(
        shift, [2.0425, 27.1492, 1.2644, (2.0425 + 27.1492 + 1.2644) / 3], atol=1e-4
    )


def test_sharpness_is_the_ratio_of_gradient_energies(drawn):
    x, fov, _ = drawn
    energy = downstream.structures(x, fov).energy
    half = downstream.structures(0.5 * x, fov).energy
    np.testing.assert_allclose(downstream.sharpness(energy, half), 0.25, rtol=1e-5)
    rows, columns = np.nonzero(fov[0, 0].numpy())
    grey, inside = x[0].double().numpy().mean(0), fov[0, 0].numpy()
    right = [
        (grey[r, c + 1] - grey[r, c]) ** 2
        for r, c in zip(rows, columns)
        if c < 79 and inside[r, c + 1]
    ]
    down = [
        (grey[r + 1, c] - grey[r, c]) ** 2
        for r, c in zip(rows, columns)
        if r < 79 and inside[r + 1, c]
    ]
    assert energy[0].item() == pytest.approx(np.mean(right) + np.mean(down))
    black = torch.zeros(1)
    assert downstream.sharpness(black, black).isnan()


def test_consistency_is_the_psnr_of_the_degraded_restoration(drawn, degraded):
    (x, fov, _), (y, again) = drawn, degraded
    x_hat = (0.9 * x + 0.05) * fov
    result = downstream.measure(x, x_hat, y, fov, degradation=again)["consistency"]
    for i in range(8):
        inside = fov[i, 0].numpy()
        a, b = (image[i].double().numpy()[:, inside] for image in (again(x_hat), y))
        assert result[i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), rel=1e-6)


def test_black_images_have_no_value_or_the_worst(drawn):
    x, fov, _ = drawn
    black = torch.zeros_like(x)
    table = downstream.measure(x, black, x, fov)
    assert (table[["vessel_dice", "vessel_cldice", "vessel_recall", "sharpness"]] == 0).all(
        axis=None
    )
    assert table["vessel_precision"].isna().all()
    empty = downstream.measure(x[:1], x[:1], x[:1], torch.zeros_like(fov[:1]))
    assert empty.drop(columns="disc_shift").isna().all(axis=None)


def test_bad_input_is_one_clear_line(drawn):
    x, fov, _ = drawn
    with pytest.raises(InputError, match="shapes") as caught:
        downstream.measure(x, x[:1], x, fov)
    assert "\n" not in str(caught.value)

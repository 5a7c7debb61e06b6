"""The harness and its inputs: the same degradations for all methods, errors, tables, failures."""

import drawn
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from rr import checkpoint, studies
from rr.data import synthetic
from rr.data.photo import to_tensor
from rr.errors import InputError
from rr.evaluate import harness, inputs, metrics
from rr.evaluate.classification import share
from rr.evaluate.harness import KEYS, REFERENCE
from rr.evaluate.inputs import CONDITIONS, FULL, UNDEGRADED, Condition
from rr.models.bridge import Bridge
from rr.models.restorer import Denoiser

BLUR = Condition("blur", 1.0)


def nothing(y, fov, params):
    return y


def average(value):
    return lambda y, fov, params: torch.full_like(y, value) * fov


@pytest.fixture(scope="module")
def images():
    """Four embedded eyes of 64 pixels."""
    eyes = [synthetic.fundus(0, i, 64) for i in range(4)]
    fov = torch.stack([torch.from_numpy(eye.fov)[None] for eye in eyes])
    disc = torch.tensor([[float(v) / 64 for v in eye.disc_circle] for eye in eyes])
    return inputs.Images(
        ["a", "b", "c", "d"], torch.cat([to_tensor(eye.image) for eye in eyes]) * fov, fov, disc
    )


def oracle(images):
    return lambda y, fov, params: images.x


# --------------------------------------------------------------------------------------- conditions


def test_every_family_at_three_severities_and_undegraded():
    families = ("illumination", "blur", "mild blur", "spots", "all", "haze")
    assert list(CONDITIONS) == [("undegraded", 0.0)] + [
        (f, s) for f in families for s in (1 / 3, 2 / 3, 1.0)
    ]


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_a_condition_is_replayed_and_does_what_its_name_says(images, condition):
    y, _, A = inputs.degraded(images, condition)
    assert torch.equal(y, inputs.degraded(images, condition)[0]) and torch.equal(y, A(images.x))
    assert (y[~images.fov.expand_as(y)] == 0).all()
    if condition == UNDEGRADED:
        assert torch.equal(y, images.x)
    elif condition.family != "mild blur" or condition.severity == 1:  # less is nothing at 64 pixels
        assert all(not torch.equal(a, b) for a, b in zip(y, images.x))
        assert not torch.equal(y, inputs.degraded(images, condition, seed=1)[0])


@pytest.mark.parametrize("family", [name for name in inputs.OPERATORS if name != "mild blur"])
def test_severities_are_the_same_degradation_made_stronger(images, family):
    weak, strong = (
        inputs.degraded(images, Condition(family, severity)) for severity in (1 / 3, 1.0)
    )
    for name in set(weak[1]) - {"severity"}:
        assert torch.equal(weak[1][name], strong[1][name]), name
    loss = [(y - images.x).abs().mean() for y, _, _ in (weak, strong)]
    assert 0 < 1.5 * loss[0] < loss[1]


def test_mild_blur_is_milder_than_blur(images):
    mild, full = (
        inputs.degraded(images, Condition(family, 1.0))[1]["blur_sigma"] * 512
        for family in ("mild blur", "blur")
    )
    assert (1.5 <= mild).all() and (mild <= 4).all() and (full >= 5).all()


def test_an_unknown_family_is_named(images):
    with pytest.raises(
        InputError, match="degradation 'fog': unknown; choose one of illumination, blur, mild blur"
    ):
        inputs.degraded(images, Condition("fog", 1.0))


# ------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def table(images):
    methods = {
        REFERENCE: [nothing],
        "oracle": [oracle(images)],
        "grey": [average(0.4), average(0.5)],
    }
    return harness.evaluate(methods, images, (UNDEGRADED, FULL, BLUR, Condition("blur", 1 / 3)))


def test_one_row_per_image_condition_method_and_seed(table):
    assert len(table) == 4 * 4 * (1 + 1 + 2) and not table.duplicated(KEYS).any()
    assert list(table.columns[:5]) == KEYS and table[table.method == "grey"].seed.nunique() == 2


def test_the_clean_image_has_the_highest_psnr_and_ssim_1(table):
    perfect = table[table.method == "oracle"]
    assert (perfect[["psnr", "psnr_fov"]] == metrics.PSNR_MAX).all(axis=None)
    assert np.allclose(perfect.ssim, 1)


def test_lpips_of_the_reference_is_zero_and_an_unknown_trunk_is_not_available(images, table):
    assert table.filter(like="lpips").isna().all(axis=None), "no trunk: n/a, not zero"

    def distance(a, b):
        return (a - b).abs().mean((1, 2, 3)).double()

    result = harness.evaluate(
        {REFERENCE: [nothing], "oracle": [oracle(images)]}, images, (FULL,), lpips=distance
    )
    assert (result[result.method == "oracle"].lpips == 0).all() and (
        result[result.method == REFERENCE].lpips > 0
    ).all()


def test_what_returns_one_picture_for_every_eye_is_collapsed(table):
    summary = harness.summarize(table)
    collapsed = summary.groupby("method")["collapsed"].unique().map(list)
    assert collapsed.to_dict() == {REFERENCE: [False], "grey": [True], "oracle": [False]}
    shown = harness.shown(summary[summary.family == "all"], {"psnr": ("PSNR", 1)})
    assert shown.variation["grey"] == "0.00 ± 0.00" and shown.variation["oracle"] == "1.00"
    assert harness.summarize(table, only=["psnr"]).metric.unique().tolist() == ["psnr"]


def test_do_nothing_differs_from_itself_by_exactly_nothing(table):
    summary = harness.summarize(table)
    mine = summary[(summary.method == REFERENCE) & summary["mean"].notna()]
    assert (mine[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert set(mine.family) == {"undegraded", "all", "blur"}


def test_a_summary_averages_over_severities_pairs_by_image_and_spreads_over_seeds(table):
    summary = harness.summarize(table, only=["psnr"]).set_index(["family", "method"])
    blur = table[table.family == "blur"]
    blur = blur.pivot_table(
        index="image", columns=["method", "seed"], values="psnr", aggfunc="mean"
    )
    means = blur["grey"].mean()
    assert summary.loc[("blur", "grey"), "mean"] == pytest.approx(means.mean())
    assert summary.loc[("blur", "grey"), "sd"] == pytest.approx(means.std(ddof=1))
    paired = blur["grey"].mean(axis=1) - blur[REFERENCE][0]
    row = summary.loc[("blur", "grey")]
    assert row.difference == pytest.approx(paired.mean()) and row.n == 4
    assert (
        paired.min() <= row.difference_low <= row.difference <= row.difference_high <= paired.max()
    )
    summary = harness.summarize(table, by=("family", "severity"), only=["psnr"])
    assert len(summary[summary.family == "blur"]) == 2 * 3


def test_a_summary_needs_something_to_compare_with(table):
    with pytest.raises(InputError, match="no method 'do nothing' to compare with"):
        harness.summarize(table[table.method != REFERENCE])


def test_gains_are_absolute_for_doing_nothing_and_differences_for_the_others(table):
    shown = harness.gains(harness.summarize(table), "psnr")
    assert list(shown.columns) == ["undegraded", "all", "blur"] and list(shown.index) == [
        REFERENCE,
        "oracle",
        "grey",
    ]
    assert float(shown.loc[REFERENCE, "all"]) > 0 and shown.loc["oracle", "undegraded"].startswith(
        "+0.00"
    )
    assert "[" in shown.loc["grey", "blur"] and " ± " in shown.loc["grey", "blur"]


class Bright(nn.Module):
    """A classifier that calls bright images readable and remembers their side."""

    def probabilities(self, x):
        self.side = x.shape[-1]
        return (x.mean((1, 2, 3)) > 0.3).float()[:, None].expand(-1, 4)


def test_classifiers_see_images_of_their_own_size_before_and_after(images):
    model, column = Bright(), "passed: held-out classifier"
    methods = {REFERENCE: [average(0.0)], "grey": [average(0.5)]}
    classifiers = {"held-out classifier": (model, 32)}
    table = harness.evaluate(methods, images, (FULL,), classifiers=classifiers)
    rows = table.set_index("method")
    assert model.side == 32
    assert (rows[column][REFERENCE] == 0).all() and (rows[column]["grey"] == 1).all()


def test_shares_have_wilson_intervals_also_if_no_image_passes():
    """The percentile bootstrap would give [0, 0] for 0 of 12."""
    rows = [
        {"image": f"{i:02}", "family": "all", "severity": 1.0, "method": method, "seed": 0,
         "psnr": 20.0, "passed: c": float(i < hits), "variation": 1.0}
        for method, hits in ((REFERENCE, 0), ("mine", 5)) for i in range(12)
    ]  # fmt: skip
    summary = harness.summarize(pd.DataFrame(rows)).set_index(["metric", "method"])
    for method, hits in ((REFERENCE, 0), ("mine", 5)):
        expected = share(np.arange(12) < hits)
        row = summary.loc[("passed: c", method)]
        assert [row["mean"], row.low, row.high] == pytest.approx(
            [expected[key] for key in ("share", "low", "high")], abs=1e-3
        )
    assert summary.loc[("passed: c", REFERENCE), "high"] == pytest.approx(0.24, abs=0.005)


# ------------------------------------------------------------------------------------------ methods


def test_every_method_gets_the_same_images_and_only_who_says_so_the_parameters(images):
    seen = {}

    def spy(name):
        def method(y, fov, params):
            seen.setdefault(name, []).append((y.clone(), params))
            return y.mul_(0.5)  # also a method that spoils its input harms nobody else

        return [method]

    harness.evaluate(
        {name: spy(name) for name in ("a", "b", "Wiener (known blur)")}, images, (FULL, BLUR)
    )
    for (ya, pa), (yb, pb), (yc, pc) in zip(seen["a"], seen["b"], seen["Wiener (known blur)"]):
        assert (
            torch.equal(ya, yb)
            and torch.equal(ya, yc)
            and pa is None
            and pb is None
            and "blur_sigma" in pc
        )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda y: y[..., ::2, ::2],
            r"method 'mine': images \(4, 3, 64, 64\) came back as \(4, 3, 32, 32\)",
        ),
        (lambda y: y[:1], r"came back as \(1, 3, 64, 64\); return the same shape"),
        (lambda y: y / 0 * 0, r"method 'mine': values from nan to nan; return finite"),
        (lambda y: y + 1, r"method 'mine': values from 1 to \S+; return finite images in \[0, 1\]"),
        (lambda y: y - 0.1, r"values from -0.1 to"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images, wrong, message):
    with pytest.raises(InputError, match=message) as error:
        harness.evaluate({"mine": [lambda y, fov, params: wrong(y)]}, images, (FULL,))
    drawn.line(error)


class Noisy(nn.Module):
    """A restorer that adds noise, of one size only."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def restore(self, y, fov, generator, steps=None):
        assert y.shape[-1] == 16 and fov.dtype == torch.bool
        return (y + 0.1 * torch.rand(y.shape, generator=generator)).clamp(0, 1) * fov


def test_a_trained_method_is_deterministic_and_works_at_its_own_size(images):
    method = inputs.at_size(inputs.trained(Noisy()), 16)
    once, twice = method(images.x, images.fov, None), method(images.x, images.fov, None)
    assert (
        torch.equal(once, twice)
        and once.shape == images.x.shape
        and (once[~images.fov.expand_as(once)] == 0).all()
    )
    other = inputs.at_size(inputs.trained(Noisy(), seed=1), 16)(images.x, images.fov, None)
    assert not torch.equal(once, other)


def test_resizing_keeps_a_flat_eye_flat_up_to_its_rim(images):
    flat = 0.5 * images.fov.expand_as(images.x)
    back = inputs.at_size(nothing, 32)(flat, images.fov, None)
    assert (back - flat).abs().max() < 0.15 and (back - flat).abs().mean() < 0.005


def test_uninformed_methods_ignore_the_image(images):
    others = images.x.flip(0)
    for name, method in inputs.uninformed(others).items():
        assert torch.equal(
            method(images.x, images.fov, None), method(1 - images.x, images.fov, None)
        ), name
    methods = inputs.uninformed(others)
    assert (methods["mid-grey"](others, None, None) == 0.5).all() and (
        methods["black"](others, None, None) == 0
    ).all()
    pasted = methods["another eye"](images.x, None, None)
    assert all(any(torch.equal(summary, other) for other in others) for summary in pasted)


# ------------------------------------------------------------------------------ what is read off it


def long(losses, family="all"):
    """A table in which the method 'mine' loses so many dB of 20 on each image."""
    rows = [(f"{i:02}", family, 1.0, method, 0, 20 - loss * (method == "mine"))
            for i, loss in enumerate(losses) for method in (REFERENCE, "mine")]  # fmt: skip
    return pd.DataFrame(rows, columns=[*KEYS, "psnr"])


def test_the_gallery_shows_the_worst_five_percent_and_at_least_three():
    losses = np.random.default_rng(0).permutation(100.0 * np.arange(100) / 100)
    result = harness.worst(long(losses), "mine")
    assert result.difference.tolist() == [-99, -98, -97, -96, -95]
    assert [losses[int(name)] for name in result.image] == [99, 98, 97, 96, 95]
    assert (
        len(harness.worst(long(losses[:10]), "mine")) == 3
        and len(harness.worst(long(losses[:2]), "mine")) == 2
    )


def test_the_gallery_goes_by_the_difference_family_by_family_and_leaves_undegraded_out():
    table = pd.concat(
        [long(range(9), "haze"), long([50, 60, 70, 80], "blur"), long([99] * 4, UNDEGRADED.family)]
    )
    table.loc[(table.family == "blur") & (table.image == "00"), "psnr"] -= (
        15  # a poor image to begin with
    )
    result = harness.worst(table, "mine")
    assert result.family.tolist() == ["blur"] * 3 + ["haze"] * 3
    assert result.image.tolist() == ["03", "02", "01", "08", "07", "06"]


def test_the_gallery_shows_what_was_scored(images):
    def darker(y, fov, params):  # the second image worst of all
        return y * torch.tensor([0.9, 0.2, 0.8, 0.7])[:, None, None, None]

    kept = {"mine": {}}
    table = harness.evaluate(
        {REFERENCE: [nothing], "mine": [darker]},
        images,
        (FULL, Condition("all", 1 / 3)),
        downstream_conditions=(),
        kept=kept,
    )
    rows = harness.worst(table, "mine")
    shown = harness.gallery(rows, kept["mine"], images)
    assert (
        list(shown) == ["all"] and len(shown["all"]) == 3 * len(rows) == 9 and rows.image[0] == "b"
    )
    for (y, x_hat, x), row in zip(zip(*[iter(shown["all"])] * 3), rows.itertuples()):
        assert metrics.psnr(x[None], x_hat[None]).item() == pytest.approx(row.psnr)
        assert metrics.psnr(x[None], x_hat[None]).item() - metrics.psnr(
            x[None], y[None]
        ).item() == pytest.approx(row.difference)


def test_what_a_reader_sees_are_means_with_intervals(table):
    summary = harness.summarize(table[table.family == "all"])
    shown = harness.shown(summary, {"psnr": ("PSNR", 1), "lpips": ("LPIPS", 2)})
    mean, low, high, sd = summary[(summary.metric == "psnr") & (summary.method == "grey")][
        ["mean", "low", "high", "sd"]
    ].to_numpy()[0]
    assert (
        shown.loc["grey", "PSNR"] == f"{mean:.1f} [{low:.1f}, {high:.1f}] ± {sd:.1f}"
        and (shown.LPIPS == "n/a").all()
    )


def test_over_enhancement_counts_what_was_changed():
    table = long([0] * 12, UNDEGRADED.family)
    table["psnr"] = metrics.PSNR_MAX
    table.loc[table.method == "mine", "psnr"] = [50, 41, 36, 35.9] * 3
    rows = harness.over_enhancement(table)
    assert rows.loc[REFERENCE].tolist() == pytest.approx([metrics.PSNR_MAX, 0, 0, 0.24], abs=5e-3)
    assert rows.loc["mine", "psnr"] == 38.5 and rows.loc["mine", "changed"] == 0.25
    wilson = share(np.arange(12) < 3)
    assert rows.loc["mine", ["low", "high"]].tolist() == pytest.approx(
        [wilson["low"], wilson["high"]], abs=1e-3
    )


def test_a_map_that_knows_the_errors_has_rank_correlation_one():
    generator = torch.Generator().manual_seed(0)
    x, error = (
        torch.rand(2, 3, 16, 16, generator=generator),
        torch.rand(2, 1, 16, 16, generator=generator),
    )
    fov = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    fov[:, :, :4] = False
    sd = (error**2).expand(-1, 3, -1, -1).clone()
    sd[:, :, :4] = 9  # outside, where it does not count
    assert np.allclose(harness.error_uncertainty_correlation(sd, x + error, x, fov), 1)
    assert np.allclose(harness.error_uncertainty_correlation(-sd, x + error, x, fov), -1)
    assert (
        abs(
            harness.error_uncertainty_correlation(
                torch.rand(2, 3, 16, 16, generator=generator), x + error, x, fov
            )
        ).max()
        < 0.2
    )
    assert np.isnan(
        harness.error_uncertainty_correlation(torch.zeros_like(x), x + error, x, fov)
    ).all()


# -------------------------------------------------------------------------------------- photographs


def test_photographs_are_cropped_named_and_kept_apart_from_test_images(tmp_path):
    for i in range(4):
        photo = synthetic.fundus(3, i, 96).image
        Image.fromarray(np.pad(photo, ((0, 0), (20, 30), (0, 0)))).save(tmp_path / f"eye_{i}.png")
    test = inputs.photographs(tmp_path, 64, "eye_[12]*")
    assert (
        test.names == ["eye_1.png", "eye_2.png"]
        and test.x.shape == (2, 3, 64, 64)
        and test.disc.isnan().all()
    )
    assert 0.6 < test.fov.float().mean() < 0.8 and (test.x[~test.fov.expand_as(test.x)] == 0).all()
    Image.open(tmp_path / "eye_1.png").resize((292, 192)).save(tmp_path / "again.jpg")
    training = inputs.photographs(tmp_path, 64, exclude=test)
    assert training.names == ["eye_0.png", "eye_3.png"], (
        "also the resized copy of a test image is left out"
    )
    assert inputs.photographs(tmp_path, 64, "eye_0*, eye_3*").names == training.names
    with pytest.raises(InputError, match="no photograph matches 'x' that is not a test image"):
        inputs.photographs(tmp_path, 64, "x", exclude=test)
    with pytest.raises(InputError, match="no photograph matches 'x'$"):
        inputs.photographs(tmp_path, 64, "x")


def test_test_images_are_clean_references(eyes80):
    result = inputs.test_images(eyes80, 3)
    rows = eyes80.clean_rows("test")[:3]
    assert (
        result.names == eyes80.table["name"].iloc[rows].tolist() and len(result.x) == len(rows) <= 3
    )
    assert torch.equal(result.x, eyes80.batch(rows) * eyes80.fov(rows))


def test_test_pairs_are_scored_with_the_weights_of_a_run(eyes80, tmp_path):
    y, test = inputs.test_pairs(eyes80)
    made = {
        studies.BRIDGE: Bridge(80, width=4),
        studies.RETINAREGEN: Denoiser(80, width=4, latent=4, T=10, condition=(8, 3, 3)),
    }
    for configuration, model in made.items():
        folder = studies.folder(tmp_path, configuration, 3) / "denoiser"
        checkpoint.save(folder, model, {})
        loaded = inputs.load_restorer(tmp_path, configuration, 3, "cpu")
        assert type(loaded) is type(model)
        x_hat = inputs.trained(loaded, seed=5)(y, test.fov)
        expected = model.eval().restore(y, test.fov, torch.Generator().manual_seed(5))
        assert torch.allclose(x_hat, expected, atol=1e-6)
        table = test.score(x_hat)
        assert list(table.index) == test.names
        assert table.psnr.to_numpy() == pytest.approx(metrics.psnr(test.x, x_hat).numpy())
    with pytest.raises(InputError, match="no checkpoint there"):
        inputs.load_restorer(tmp_path, studies.ONE_STEP, 3, "cpu")


def test_in_the_literal_protocol_doing_nothing_is_perfect(eyes80):
    y, test = inputs.test_pairs(eyes80, "literal")
    assert (test.score(y).psnr == metrics.PSNR_MAX).all()

"""The harness: perfect and idle methods, the same degradation for everyone, what is refused, failures by rule."""

import drawn
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from rr.data import synthetic
from rr.data.photo import to_tensor
from rr.errors import InputError
from rr.evaluate import harness as evaluation
from rr.evaluate import metrics
from rr.evaluate.harness import CONDITIONS, FULL, KEYS, REFERENCE, UNDEGRADED, Condition

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
    return evaluation.Images(
        ["a", "b", "c", "d"], torch.cat([to_tensor(eye.image) for eye in eyes]) * fov, fov, disc
    )


def oracle(images):
    return lambda y, fov, params: images.x


# --------------------------------------------------------------------------------------------------------- conditions


def test_every_family_at_three_severities_and_undegraded():
    families = ("illumination", "blur", "mild blur", "spots", "all", "haze")
    assert list(CONDITIONS) == [("undegraded", 0.0)] + [
        (f, s) for f in families for s in (1 / 3, 2 / 3, 1.0)
    ]


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_a_condition_is_replayed_and_does_what_its_name_says(images, condition):
    y, _, A = evaluation.degraded(images, condition)
    assert torch.equal(y, evaluation.degraded(images, condition)[0]) and torch.equal(y, A(images.x))
    assert (y[~images.fov.expand_as(y)] == 0).all()
    if condition == UNDEGRADED:
        assert torch.equal(y, images.x)
    elif condition.family != "mild blur" or condition.severity == 1:  # less is nothing at 64 pixels
        assert all(not torch.equal(a, b) for a, b in zip(y, images.x))
        assert not torch.equal(y, evaluation.degraded(images, condition, seed=1)[0])


@pytest.mark.parametrize("family", [name for name in evaluation.OPERATORS if name != "mild blur"])
def test_severities_are_the_same_degradation_made_stronger(images, family):
    weak, strong = (
        evaluation.degraded(images, Condition(family, severity)) for severity in (1 / 3, 1.0)
    )
    for name in set(weak[1]) - {"severity"}:
        assert torch.equal(weak[1][name], strong[1][name]), name
    loss = [(y - images.x).abs().mean() for y, _, _ in (weak, strong)]
    assert 0 < 1.5 * loss[0] < loss[1]


def test_mild_blur_is_milder_than_blur(images):
    mild, full = (
        evaluation.degraded(images, Condition(family, 1.0))[1]["blur_sigma"] * 512
        for family in ("mild blur", "blur")
    )
    assert (1.5 <= mild).all() and (mild <= 4).all() and (full >= 5).all()


def test_an_unknown_family_is_named(images):
    with pytest.raises(
        InputError, match="degradation 'fog': unknown; choose one of illumination, blur, mild blur"
    ):
        evaluation.degraded(images, Condition("fog", 1.0))


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def table(images):
    methods = {
        REFERENCE: [nothing],
        "oracle": [oracle(images)],
        "grey": [average(0.4), average(0.5)],
    }
    return evaluation.evaluate(methods, images, (UNDEGRADED, FULL, BLUR, Condition("blur", 1 / 3)))


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

    found = evaluation.evaluate(
        {REFERENCE: [nothing], "oracle": [oracle(images)]}, images, (FULL,), lpips=distance
    )
    assert (found[found.method == "oracle"].lpips == 0).all() and (
        found[found.method == REFERENCE].lpips > 0
    ).all()


def test_do_nothing_differs_from_itself_by_exactly_nothing(table):
    summary = evaluation.summarize(table)
    mine = summary[(summary.method == REFERENCE) & summary["mean"].notna()]
    assert (mine[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert set(mine.family) == {"undegraded", "all", "blur"}


def test_a_summary_averages_over_severities_pairs_by_image_and_spreads_over_seeds(table):
    summary = evaluation.summarize(table, only=["psnr"]).set_index(["family", "method"])
    blur = table[table.family == "blur"].assign(psnr=table.psnr.clip(upper=evaluation.ROUNDING))
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
    each = evaluation.summarize(table, by=("family", "severity"), only=["psnr"])
    assert len(each[each.family == "blur"]) == 2 * 3


def test_means_count_no_psnr_above_that_of_rounding_to_eight_bits(table):
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert metrics.psnr(x, (x * 255).round() / 255).item() == pytest.approx(
        evaluation.ROUNDING, abs=0.1
    )
    rows = evaluation.summarize(table[table.family == "all"]).set_index(["method", "metric"])
    nothing = rows.loc[(REFERENCE, "psnr"), "mean"]
    assert (
        rows.loc[("oracle", "psnr"), ["mean", "low", "high"]].tolist() == [evaluation.ROUNDING] * 3
    )
    assert rows.loc[("oracle", "psnr"), "difference"] == pytest.approx(
        evaluation.ROUNDING - nothing
    )


def test_a_summary_needs_something_to_compare_with(table):
    with pytest.raises(InputError, match="no method 'do nothing' to compare with"):
        evaluation.summarize(table[table.method != REFERENCE])


def test_gains_are_absolute_for_doing_nothing_and_differences_for_the_others(table):
    shown = evaluation.gains(evaluation.summarize(table), "psnr")
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
    """A judge that passes bright images and remembers their side."""

    def probabilities(self, x):
        self.side = x.shape[-1]
        return (x.mean((1, 2, 3)) > 0.3).float()[:, None].expand(-1, 4)


def test_judges_see_images_of_their_own_size_before_and_after(images):
    judge = Bright()
    methods = {REFERENCE: [average(0.0)], "grey": [average(0.5)]}
    found = evaluation.evaluate(
        methods, images, (FULL,), judges={"second judge": (judge, 32)}
    ).set_index("method")
    assert judge.side == 32 and (found["passed: second judge"][REFERENCE] == 0).all()
    assert (found["passed: second judge"]["grey"] == 1).all()


# ------------------------------------------------------------------------------------------------------------ methods


def test_every_method_gets_the_same_images_and_only_who_says_so_the_parameters(images):
    seen = {}

    def spy(name):
        def method(y, fov, params):
            seen.setdefault(name, []).append((y.clone(), params))
            return y.mul_(0.5)  # also a method that spoils its input harms nobody else

        return [method]

    evaluation.evaluate(
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
        (lambda y: y / 0 * 0, r"method 'mine': returns NaN or infinite values"),
        (lambda y: y + 1, r"method 'mine': values from 1 to \S+; return images in \[0, 1\]"),
        (lambda y: y - 0.1, r"values from -0.1 to"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images, wrong, message):
    with pytest.raises(InputError, match=message) as error:
        evaluation.evaluate({"mine": [lambda y, fov, params: wrong(y)]}, images, (FULL,))
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
    method = evaluation.at_size(evaluation.trained(Noisy()), 16)
    once, twice = method(images.x, images.fov, None), method(images.x, images.fov, None)
    assert (
        torch.equal(once, twice)
        and once.shape == images.x.shape
        and (once[~images.fov.expand_as(once)] == 0).all()
    )
    other = evaluation.at_size(evaluation.trained(Noisy(), seed=1), 16)(images.x, images.fov, None)
    assert not torch.equal(once, other)


def test_resizing_keeps_a_flat_eye_flat_up_to_its_rim(images):
    flat = 0.5 * images.fov.expand_as(images.x)
    back = evaluation.at_size(nothing, 32)(flat, images.fov, None)
    assert (back - flat).abs().max() < 0.15 and (back - flat).abs().mean() < 0.005


def test_the_lowest_rungs_do_not_look_at_the_image(images):
    others = images.x.flip(0)
    for name, method in evaluation.know_nothing(others).items():
        assert torch.equal(
            method(images.x, images.fov, None), method(1 - images.x, images.fov, None)
        ), name
    rungs = evaluation.know_nothing(others)
    assert (rungs["mid-grey"](others, None, None) == 0.5).all() and (
        rungs["black"](others, None, None) == 0
    ).all()
    pasted = rungs["another eye"](images.x, None, None)
    assert all(any(torch.equal(each, other) for other in others) for each in pasted)


# ----------------------------------------------------------------------------------------------- what is read off it


def long(losses, family="all"):
    """A table in which the method 'mine' loses so many dB of 20 on each image."""
    rows = [(f"{i:02}", family, 1.0, method, 0, 20 - loss * (method == "mine"))
            for i, loss in enumerate(losses) for method in (REFERENCE, "mine")]  # fmt: skip
    return pd.DataFrame(rows, columns=[*KEYS, "psnr"])


def test_the_gallery_shows_the_worst_five_percent_and_at_least_three():
    losses = np.random.default_rng(0).permutation(100.0 * np.arange(100) / 100)
    found = evaluation.worst(long(losses), "mine")
    assert found.difference.tolist() == [-99, -98, -97, -96, -95]
    assert [losses[int(name)] for name in found.image] == [99, 98, 97, 96, 95]
    assert (
        len(evaluation.worst(long(losses[:10]), "mine")) == 3
        and len(evaluation.worst(long(losses[:2]), "mine")) == 2
    )


def test_the_gallery_goes_by_the_difference_family_by_family_and_leaves_undegraded_out():
    table = pd.concat(
        [long(range(9), "haze"), long([50, 60, 70, 80], "blur"), long([99] * 4, UNDEGRADED.family)]
    )
    table.loc[(table.family == "blur") & (table.image == "00"), "psnr"] -= (
        15  # a poor image to begin with
    )
    found = evaluation.worst(table, "mine")
    assert found.family.tolist() == ["blur"] * 3 + ["haze"] * 3
    assert found.image.tolist() == ["03", "02", "01", "08", "07", "06"]


def test_the_gallery_restores_again_what_was_scored(images):
    def darker(y, fov, params):  # the second image worst of all
        return y * torch.tensor([0.9, 0.2, 0.8, 0.7])[:, None, None, None]

    table = evaluation.evaluate(
        {REFERENCE: [nothing], "mine": [darker]},
        images,
        (FULL, Condition("all", 1 / 3)),
        closely=(),
    )
    rows = evaluation.worst(table, "mine")
    shown = evaluation.gallery(rows, darker, images)
    assert (
        list(shown) == ["all"] and len(shown["all"]) == 3 * len(rows) == 9 and rows.image[0] == "b"
    )
    for (y, x_hat, x), row in zip(zip(*[iter(shown["all"])] * 3), rows.itertuples()):
        assert metrics.psnr(x[None], x_hat[None]).item() == pytest.approx(row.psnr)
        assert metrics.psnr(x[None], x_hat[None]).item() - metrics.psnr(
            x[None], y[None]
        ).item() == pytest.approx(row.difference)


def test_what_a_reader_sees_are_means_with_intervals(table):
    summary = evaluation.summarize(table[table.family == "all"])
    shown = evaluation.shown(summary, {"psnr": ("PSNR", 1), "lpips": ("LPIPS", 2)})
    mean, low, high = summary[(summary.metric == "psnr") & (summary.method == "grey")][
        ["mean", "low", "high"]
    ].to_numpy()[0]
    assert (
        shown.loc["grey", "PSNR"] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        and (shown.LPIPS == "n/a").all()
    )


def test_over_enhancement_counts_what_was_changed():
    table = long([0, 0, 0, 0], UNDEGRADED.family)
    table["psnr"] = np.inf
    table.loc[table.method == "mine", "psnr"] = [50, 41, 36, 35.9]
    found = evaluation.over_enhancement(table)
    assert found.loc[REFERENCE].tolist() == [evaluation.ROUNDING, 0, 0, 0]
    assert found.loc["mine", "psnr"] == 38.5 and found.loc["mine", "changed"] == 0.25
    assert 0 <= found.loc["mine", "low"] < 0.25 < found.loc["mine", "high"]


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
    assert np.allclose(evaluation.certain_of(sd, x + error, x, fov), 1)
    assert np.allclose(evaluation.certain_of(-sd, x + error, x, fov), -1)
    assert (
        abs(
            evaluation.certain_of(torch.rand(2, 3, 16, 16, generator=generator), x + error, x, fov)
        ).max()
        < 0.2
    )
    assert np.isnan(evaluation.certain_of(torch.zeros_like(x), x + error, x, fov)).all()


# -------------------------------------------------------------------------------------------------------- photographs


def test_photographs_are_cropped_named_and_kept_apart_from_test_images(tmp_path):
    for i in range(4):
        photo = synthetic.fundus(3, i, 96).image
        Image.fromarray(np.pad(photo, ((0, 0), (20, 30), (0, 0)))).save(tmp_path / f"eye_{i}.png")
    test = evaluation.photographs(tmp_path, 64, "eye_[12]*")
    assert (
        test.names == ["eye_1.png", "eye_2.png"]
        and test.x.shape == (2, 3, 64, 64)
        and test.disc.isnan().all()
    )
    assert 0.6 < test.fov.float().mean() < 0.8 and (test.x[~test.fov.expand_as(test.x)] == 0).all()
    Image.open(tmp_path / "eye_1.png").resize((292, 192)).save(tmp_path / "again.jpg")
    training = evaluation.photographs(tmp_path, 64, apart_from=test)
    assert training.names == ["eye_0.png", "eye_3.png"], (
        "also the resized copy of a test image is left out"
    )
    assert evaluation.photographs(tmp_path, 64, "eye_0*, eye_3*").names == training.names
    with pytest.raises(InputError, match="no photograph matches 'x' that is not a test image"):
        evaluation.photographs(tmp_path, 64, "x", apart_from=test)
    with pytest.raises(InputError, match="no photograph matches 'x'$"):
        evaluation.photographs(tmp_path, 64, "x")


def test_test_images_are_clean_references(packed_eyes):
    found = evaluation.test_images(packed_eyes, 3)
    rows = packed_eyes.references("test")[:3]
    assert (
        found.names == packed_eyes.table["name"].iloc[rows].tolist()
        and len(found.x) == len(rows) <= 3
    )
    assert torch.equal(found.x, packed_eyes.batch(rows) * packed_eyes.fov(rows))


@pytest.fixture(scope="module")
def packed_eyes(tmp_path_factory):
    from rr.data import packing, sources

    return packing.pack(sources.embedded(40), 32, tmp_path_factory.mktemp("pack"))

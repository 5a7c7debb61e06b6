"""Statistics: values checked by hand, scipy as oracle, and what a few trainings must not say."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rr.errors import InputError
from rr.evaluate import statistics
from rr.evaluate.runs import Run
from rr.evaluate.statistics import (
    BASELINES,
    BETTER,
    NO_VARIATION,
    NOT_AVAILABLE,
    NOT_TESTED,
    UNCLEAR,
    WORSE,
    compare,
    compare_order,
)
from rr.studies import RETINAREGEN


def made(psnr, lpips=0.25, variation=0.75):
    """Scores of images with this PSNR. SSIM is 1/128 of it; the last disc is unknown."""
    psnr = np.array(psnr, float)
    columns = {"psnr": psnr, "ssim": psnr / 128, "lpips": lpips, "psnr_fov": psnr - 1}
    table = pd.DataFrame(columns | {"psnr_disc": psnr - 2, "variation": variation})
    table.loc[len(psnr) - 1, "psnr_disc"] = np.nan
    return table


def random(shift, seeds=3, n=40, noise=0.05, start=0):
    """Scores of some seeds on the same images; `start` chooses other noise."""
    base = np.random.default_rng(9).normal(20, 2, n)
    noises = [np.random.default_rng(start + seed).normal(0, noise, n) for seed in range(seeds)]
    return [made(base + shift + values) for values in noises]


def of_means(values):
    """Scores of two images for each of these means, equally far from it in every method."""
    return [pd.DataFrame({"psnr": [value - 1, value + 1], "variation": 0.75}) for value in values]


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(20, 2, 400)
    mean, low, high = statistics.bootstrap(values)
    assert mean == values.mean() and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)
    assert statistics.bootstrap([3.0, float("nan")]) == (3, 3, 3)
    assert all(math.isnan(value) for value in statistics.bootstrap([]))
    wide = statistics.bootstrap(values, 0.99)
    assert (wide[2] - wide[1]) / (high - low) == pytest.approx(2.576 / 1.96, rel=0.1)


def test_the_numbers_of_a_study_by_hand():
    """Means 21 and 23 of `a`, 22 and 24 of `b`: `b` is 1 dB better in both seeds."""
    scores = {
        "do nothing": [made([18, 20], 0.5)],
        "a": [made([20, 22]), made([22, 24])],
        "b": [made([21, 23]), made([23, 25], 0.375)],
    }
    rows = statistics.study(scores, "a").set_index(["method", "metric"])
    psnr = rows.xs("psnr", level="metric")
    assert psnr["mean"].tolist() == [19, 22, 23] and psnr.seeds.tolist() == [0, 2, 2]
    root = math.sqrt(2)
    assert psnr.sd.fillna(-1).tolist() == pytest.approx([-1, root, root])
    assert psnr.difference.tolist() == [-3, 0, 1] and psnr.loc["b", "difference_low"] == 1
    assert psnr.difference_sd.tolist() == pytest.approx([root, 0, 0])
    assert psnr.loc["a", ["low", "high"]].tolist() == [21, 23]
    assert rows.loc[("b", "lpips"), "mean"] == 0.3125 and rows.loc[("a", "psnr_disc"), "n"] == 1


def test_runs_of_other_degradations_are_refused():
    tables = [
        made([20, 22]).drop(columns="variation").assign(image=["x", "y"], method=name)
        for name in (*BASELINES, "RetinaRegen")
    ]
    table = pd.concat(tables)
    numbers = {"variation": {"RetinaRegen": 0.8}}
    runs = [Run(RETINAREGEN, seed, numbers, {}, table, None) for seed in range(2)]
    assert [len(group) for group in statistics.scores({"vae": runs}).values()] == [1, 1, 2]
    changed = table.assign(psnr=table.psnr + 0.1 * (table.method == "do nothing"))
    with pytest.raises(InputError, match="_1: do nothing has other scores than in .*_0"):
        statistics.scores({"vae": [runs[0], runs[1]._replace(scores=changed)]})


# ---------------------------------------------------------------------------------- one comparison


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_trainings_decide_nothing(seeds):
    """A difference between single trainings is published as a difference between methods (D1)."""
    a, b = random(5, seeds), random(0, seeds, start=10)
    assert compare(a, b, "psnr").verdict == NOT_TESTED and compare(a, b, "psnr").low > 4
    assert compare(a, b[:1], "psnr").verdict == NOT_TESTED
    scores = {"a": a, "b": b}
    assert compare_order(scores, [("a", "b")], "psnr")[1].verdict == NOT_TESTED


def test_copies_of_a_constant_are_not_compared():
    """A row that is the same picture for every eye is called better or worse (D2)."""
    a, b = random(5), random(0, start=10)
    flat = [*a[:2], a[2].assign(variation=statistics.COLLAPSED - 0.01)]
    for pair in ((flat, b), (b, flat), (flat[2:], b[:1])):  # also if too few trainings test nothing
        assert compare(*pair, "psnr").verdict == NO_VARIATION
    edge = [table.assign(variation=statistics.COLLAPSED) for table in a]
    assert compare(edge, b, "psnr").verdict == BETTER
    mean_eye = [b[0].assign(variation=np.nan)]  # a baseline, which is constant on purpose
    assert compare(a, mean_eye, "psnr").verdict == BETTER
    scores = {"a": flat, "b": b, "c": random(9, start=20)}
    assert compare_order(scores, [("c", "b"), ("a", "b")], "psnr")[1].verdict == NO_VARIATION
    study = statistics.study({"population mean": [b[0].assign(variation=0.0)]} | scores, "b")
    rows = study.drop_duplicates("method").set_index("method")
    assert rows["collapsed"].to_dict() == {
        "population mean": False, "a": True, "b": False, "c": False
    }  # fmt: skip
    sd, chance, p = statistics.spread(scores, "psnr")
    assert sd > 0 and chance > 0 and math.isnan(p)


def test_a_difference_must_hold_for_other_images_and_for_other_seeds():
    a, b, c = random(1), random(0, start=10), random(0.001, start=20)
    assert compare(a, b, "psnr").verdict == BETTER and compare(b, a, "psnr").verdict == WORSE
    assert compare(b, c, "psnr").verdict == UNCLEAR
    one_seed_is_worse = [*random(2, 1, start=30), *random(1.5, 1, start=40), *random(-0.1, 1)]
    comparison = compare(one_seed_is_worse, b, "psnr")
    assert comparison.low > 0.5 and comparison.verdict == UNCLEAR
    assert compare(a, a, "psnr") == (0, 0, 0, UNCLEAR)
    assert compare(a, b, "psnr", 7).low < compare(a, b, "psnr", 1).low
    every_other = [table.assign(psnr=table.psnr + np.arange(40) % 2 * 12 - 5.9) for table in b]
    assert compare(every_other, b, "psnr").verdict == UNCLEAR


def test_a_difference_that_no_reader_sees_is_none():
    a, b, c = (of_means([20 + shift, 21 + shift, 22 + shift]) for shift in (0, 1e-3, 0.2))
    assert compare(b, a, "psnr").verdict == UNCLEAR and compare(c, a, "psnr").verdict == BETTER


def test_seeds_are_compared_by_students_interval():
    rng, verdicts = np.random.default_rng(3), set()
    for shift in np.linspace(0, 0.3, 60):
        a, b = rng.normal(20, 0.1, 5) + shift, rng.normal(20, 0.1, 5)
        verdict = compare(of_means(a), of_means(b), "psnr", 7).verdict
        assert (verdict != UNCLEAR) == (stats.ttest_rel(a, b).pvalue < 0.05 / 7)
        verdicts.add(verdict)
    assert verdicts == {UNCLEAR, BETTER}


def test_a_common_effect_of_the_seeds_hides_nothing():
    """Five seeds that differ by decibels, and one configuration that is 0.3 dB better in each."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(20, 1, 5)
    a, b = (seeds + shift + rng.normal(0, 0.02, 5) for shift in (0.3, 0))
    assert a.std(ddof=1) > 0.3
    assert compare(of_means(a), of_means(b), "psnr", 7).verdict == BETTER
    not_paired = of_means(rng.permutation(b))
    assert compare(of_means(a), not_paired, "psnr", 7).verdict == UNCLEAR


def test_of_equal_rows_hardly_ever_one_is_significant():
    """Eight equal rows and three seeds with common effects, 300 studies: the level must hold."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        means = 20 + rng.normal(0, 0.5, 3) + rng.normal(0, 0.1, (8, 3))
        first, *rest = (of_means(row) for row in means)
        wrong += any(compare(row, first, "psnr", 7).verdict != UNCLEAR for row in rest)
    assert 4 <= wrong <= 23  # 5 % and two standard deviations; without correction it is 75


def test_less_is_better_in_lpips():
    low, high = ([t.assign(lpips=v + t.psnr / 1e3) for t in random(0)] for v in (0.1, 0.2))
    comparison = compare(low, high, "lpips")
    assert comparison.difference == pytest.approx(0.1) and comparison.verdict == BETTER


def test_what_is_not_available_is_not_compared():
    scores = {"a": random(1), "b": random(0, start=10), "c": random(2, start=20)}
    scores["b"] = [table.assign(lpips=np.nan) for table in scores["b"]]
    for pairs in ([("a", "b"), ("c", "a")], [("c", "a"), ("a", "b")]):
        pair, comparison = compare_order(scores, pairs, "lpips")
        assert pair == ("a", "b") and comparison.verdict == NOT_AVAILABLE
    assert all(math.isnan(value) for value in statistics.spread(scores, "lpips"))


def test_an_order_is_decided_by_its_weakest_pair():
    shifts = {"a": 3, "b": 2, "c": 0, "d": 0.001}
    scores = {name: random(shift, start=10 * i) for i, (name, shift) in enumerate(shifts.items())}
    scores["e"] = [random(shift, 1, start=60)[0] for shift in (-9, 1, -9)]  # far below, but unclear

    def decided(*pairs):
        pair, comparison = compare_order(scores, list(pairs), "psnr")
        return "".join(pair), comparison.verdict

    assert decided(("a", "b"), ("b", "c")) == ("ab", BETTER)
    assert decided(("a", "b"), ("c", "b")) == ("cb", WORSE)
    assert decided(("a", "b"), ("c", "d")) == decided(("c", "d"), ("a", "b")) == ("cd", UNCLEAR)
    assert decided(("c", "b"), ("e", "b"), ("a", "b")) == ("cb", WORSE)


# ---------------------------------------------------------------------------------------- all rows


def test_needed_is_students_table():
    assert statistics.needed(3, 1) == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert statistics.needed(5, 5) == pytest.approx(4.604 / math.sqrt(5), rel=1e-3)


def test_spread_is_the_analysis_of_variance_in_blocks():
    """Against least squares: what the rows explain beyond the seeds, and the residual."""
    rng = np.random.default_rng(0)
    groups = rng.normal(20, 0.1, (8, 4)) + rng.normal(0, 0.05, (8, 1)) + rng.normal(0, 1, (1, 4))
    row, seed = (index.ravel() for index in np.indices(groups.shape))
    y, rows, seeds = groups.ravel(), np.eye(8)[row], np.eye(4)[seed]
    left = [
        ((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2).sum()
        for X in (seeds, np.hstack([rows, seeds]))
    ]
    f = (left[0] - left[1]) / 7 / (left[1] / 21)
    scores = {str(i): [made([value, value]) for value in group] for i, group in enumerate(groups)}
    sd, chance, p = statistics.spread({"do nothing": [made([1, 2])]} | scores, "psnr")
    assert (sd / chance) ** 2 == pytest.approx(f) and p == pytest.approx(stats.f.sf(f, 7, 21))
    assert sd == pytest.approx(groups.mean(1).std(ddof=1))
    assert chance == pytest.approx(math.sqrt(left[1] / 21 / 4))
    once = {name: group[:1] for name, group in scores.items()}
    sd, chance, p = statistics.spread(once, "psnr")
    assert sd > 0 and math.isnan(chance) and math.isnan(p)
    assert math.isnan(statistics.spread({"a": scores["0"], "b": scores["0"]}, "psnr")[2])

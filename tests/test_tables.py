"""Tables: values that can be checked by hand, files that are known byte for byte, and what a reader must not be told."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from rr.errors import InputError
from rr.evaluate import metrics, tables
from rr.evaluate import statistics as comparisons
from rr.evaluate.statistics import ONCE, OTHER, SAME, UNCLEAR
from rr.files import ROOT
from rr.studies import RETINAREGEN, Run

GOLDEN = ROOT / "tests" / "golden"
FACTS = {"data": "embedded", "protocol": "paired", "preset": "mini", "size": 80, "n": 2, "seeds": 2}
COLUMNS = ["psnr", "ssim", "lpips", "psnr_fov", "psnr_disc"]


def made(psnr, lpips=0.25):
    """Scores per image with this PSNR; SSIM is 1/128 of it (no rounding), the disc of the last image is unknown."""
    psnr = np.array(psnr, float)
    table = pd.DataFrame(
        {
            "psnr": psnr,
            "ssim": psnr / 128,
            "lpips": lpips,
            "psnr_fov": psnr - 1,
            "psnr_disc": psnr - 2,
        }
    )
    table.loc[len(psnr) - 1, "psnr_disc"] = np.nan
    return table


def golden():
    """Two configurations, two seeds, two images: means 21 and 23 of `a`, 22 and 24 of `b`."""
    return {
        "do nothing": [made([18, 20], 0.5)], "population mean": [made([23, 25], 0.125)],
        "a": [made([20, 22], 0.25), made([22, 24], 0.25)], "b": [made([21, 23], 0.25), made([23, 25], 0.375)],
    }  # fmt: skip


def random(shift, seeds=3, n=40, noise=0.05, start=0):
    base = np.random.default_rng(9).normal(20, 2, n)
    return [
        made(base + shift + np.random.default_rng(start + seed).normal(0, noise, n))
        for seed in range(seeds)
    ]


# ------------------------------------------------------------------------------------------ any table of metrics.score


def test_what_cannot_be_had_is_shown_as_not_available():
    x = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    table = metrics.score(x, x * 0.9)
    shown = tables.text(table)
    assert set(shown["lpips"]) | set(shown["psnr_fov"]) | set(shown["ssim_disc"]) == {"n/a"}
    assert (
        shown["psnr"][0] == f"{table['psnr'][0]:.2f}"
        and shown["ssim"][1] == f"{table['ssim'][1]:.4f}"
    )


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(20, 2, 400)
    mean, low, high = tables.bootstrap(values)
    assert mean == values.mean() and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)
    assert tables.bootstrap(values) == (mean, low, high)
    assert tables.bootstrap([3.0, float("nan")]) == (3, 3, 3)
    assert tables.bootstrap([math.inf, math.inf]) == (math.inf,) * 3
    assert all(math.isnan(value) for value in tables.bootstrap([]))
    wide = tables.bootstrap(values, 0.99)
    assert (wide[2] - wide[1]) / (high - low) == pytest.approx(2.576 / 1.96, rel=0.1)


def test_summarize_is_one_row_per_method_and_metric():
    found = tables.summarize({"b": made([20, 22]), "a": made([30, 30])})
    assert list(found.columns) == ["method", "metric", "n", "mean", "low", "high"]
    assert found.method.tolist() == ["b"] * 5 + ["a"] * 5
    row = found[(found.method == "b") & (found.metric == "psnr_disc")].iloc[0]
    assert (row.n, row["mean"]) == (1, 18)


# --------------------------------------------------------------------------------------------------- a study's numbers


def test_golden_files_byte_for_byte(tmp_path):
    study = comparisons.study(golden(), "a")
    shown = tables.shown(study, "a")
    tables.write(
        tmp_path,
        "study",
        study,
        shown,
        tables.caption("Two 100 % made_up rows.", study, FACTS, "a"),
    )
    for suffix in ("csv", "md", "tex"):
        assert (tmp_path / f"study.{suffix}").read_bytes() == (
            GOLDEN / f"study.{suffix}"
        ).read_bytes(), suffix


def test_numbers_of_the_golden_study_by_hand():
    rows = comparisons.study(golden(), "a").set_index(["method", "metric"])
    psnr = rows.xs("psnr", level="metric")
    assert psnr["mean"].tolist() == [19, 24, 22, 23] and psnr.seeds.tolist() == [0, 0, 2, 2]
    assert psnr.sd.fillna(-1).tolist() == pytest.approx(
        [-1, -1, math.sqrt(2), math.sqrt(2)]
    )  # means 21, 23 and 22, 24
    assert (
        psnr.difference.tolist() == [-3, 2, 0, 1] and psnr.loc["b", "difference_low"] == 1
    )  # 1 dB in every image
    root = math.sqrt(
        2
    )  # -2 and -4, 3 and 1 to the seeds of `a`; b is 1 dB above it in both seeds, where both are better
    assert psnr.difference_sd.tolist() == pytest.approx([root, root, 0, 0])
    assert rows.loc[("b", "lpips"), "difference_sd"] == pytest.approx(root / 16)  # 0 and 0.125
    assert psnr.loc["a", ["low", "high"]].tolist() == [
        21,
        23,
    ]  # both images the worse, or the better one
    assert rows.loc[("b", "lpips"), "mean"] == 0.3125 and rows.loc[("a", "psnr_disc"), "n"] == 1


def test_bold_is_the_best_configuration_and_no_rung():
    study = comparisons.study(golden(), "a")
    shown = tables.shown(study, "a")
    assert tables.best(study, "psnr") == ["b"] and tables.best(study, "lpips") == [
        "a"
    ]  # less is better in LPIPS
    bold = shown.map(lambda cell: cell.startswith("**"))
    assert not bold.loc[["do nothing", "population mean"]].any(axis=None)
    assert bold["PSNR / dB"].tolist() == [False, False, False, True] and bold["LPIPS"].tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert (
        shown.loc["b", "PSNR / dB"] == "**23.00 ± 1.41**"
        and shown.loc["b", "PSNR − a"] == "+1.00 [+1.00, +1.00]"
    )
    said = tables.caption("Rows.", study, FACTS, "a")
    assert (
        "Better than every trained row: population mean in PSNR, SSIM, LPIPS, PSNR in FOV, PSNR at disc."
        in said
    )
    assert "do nothing" not in said and "(1 of them at the disc)" in said


def test_ties_in_the_shown_digits_are_all_bold():
    scores = golden() | {
        "a": [made([20, 22.001])],
        "b": [made([20, 22.004])],
        "c": [made([20, 21])],
    }
    study = comparisons.study(scores, "a")
    assert tables.best(study, "psnr") == ["a", "b"] and tables.above(study, "psnr") == [
        "population mean"
    ]
    assert (tables.shown(study, "a")["PSNR / dB"].tolist()[2:]) == [
        "**21.00**",
        "**21.00**",
        "20.50",
    ]


def test_not_available_is_never_bold():
    scores = {
        name: [table.assign(lpips=np.nan) for table in group] for name, group in golden().items()
    }
    study = comparisons.study(scores, "a")
    assert tables.best(study, "lpips") == tables.above(study, "lpips") == []
    assert set(tables.shown(study, "a")["LPIPS"]) == {"n/a"}
    assert comparisons.told(scores, "a", "lpips") == {} and "LPIPS: n/a" in comparisons.findings(
        scores, "a"
    )
    assert comparisons.verdict(scores, [("a", "b")], "lpips")[0] == "n/a"
    known = scores | {
        "a": golden()["a"],
        "c": golden()["b"],
    }  # b alone is unknown, whatever its place
    for pairs in ([("a", "b"), ("c", "a")], [("c", "a"), ("a", "b")]):
        assert comparisons.verdict(known, pairs, "lpips")[:2] == ("n/a", ("a", "b"))
    assert all(math.isnan(value) for value in comparisons.spread(scores, "lpips"))


def test_perfect_images_are_infinitely_good_and_equal_to_each_other():
    perfect = [made([math.inf, math.inf])]
    scores = {
        "do nothing": perfect,
        "population mean": [made([20, 21])],
        "a": [made([30, 31])],
        "b": perfect,
        "c": perfect,
    }
    study = comparisons.study(scores, "b").set_index(["method", "metric"])
    assert study.loc[("do nothing", "psnr"), ["mean", "difference", "difference_low"]].tolist() == [
        math.inf,
        0,
        0,
    ]
    assert study.loc[("a", "psnr"), "difference"] == -math.inf
    shown = tables.shown(study.reset_index(), "b")
    assert shown["PSNR / dB"].tolist() == ["∞", "20.50", "30.50", "**∞**", "**∞**"]
    assert r"\textbf{$\infty$}" in tables.latex(shown, "", "x")
    twice, once, other = perfect * 2, perfect + [made([30, 31])], [made([20, 21]), made([21, 23])]
    assert [comparisons.compare(each, other, "psnr")[3] for each in (twice, once)] == [
        1,
        0,
    ]  # perfect with one seed only


def test_other_degradations_are_refused():
    table = pd.concat(
        made([20, 22]).assign(image=["x", "y"], method=name)
        for name in (*tables.RUNGS, "RetinaRegen")
    )
    runs = [Run(RETINAREGEN, seed, {}, {}, table, None) for seed in range(2)]
    assert [len(group) for group in comparisons.scores({"vae": runs}).values()] == [1, 1, 2]
    changed = table.assign(psnr=table.psnr + 0.1 * (table.method == "do nothing"))
    with pytest.raises(
        InputError,
        match="_1: do nothing scores otherwise than in .*_0: not the same degraded images",
    ):
        comparisons.scores({"vae": [runs[0], runs[1]._replace(scores=changed)]})


# --------------------------------------------------------------------------------------------------------- told apart


def test_compare_wants_other_images_and_other_seeds_to_agree():
    a, b, c = random(1), random(0, start=10), random(0.01, start=20)
    assert comparisons.compare(a, b, "psnr")[3] == 1 and comparisons.compare(b, a, "psnr")[3] == -1
    assert comparisons.compare(b, c, "psnr")[3] == 0
    crossing = [
        random(2, 1, start=30)[0],
        random(1.5, 1, start=40)[0],
        random(-0.1, 1, start=50)[0],
    ]  # one seed is worse
    difference, low, _, sign = comparisons.compare(crossing, b, "psnr")
    assert low > 0.5 and sign == 0
    assert comparisons.compare(a, a, "psnr") == (0, 0, 0, 0)
    low, high = (comparisons.compare(a, b, "psnr", pairs)[1] for pairs in (7, 1))
    assert low < high  # seven intervals that hold together are wider
    every_other = [
        table + np.arange(40)[:, None] % 2 * 12 - 6 for table in b
    ]  # the same in all seeds, but not in all images
    assert comparisons.compare([table + 0.1 for table in every_other], b, "psnr")[3] == 0


def of_means(values):
    """Scores of two images for each of these means, equally far from it in every method."""
    return [pd.DataFrame({"psnr": [value - 1, value + 1]}) for value in values]


def test_seeds_are_compared_by_students_interval():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(3)
    signs = set()
    for shift in np.linspace(0, 0.3, 60):
        a, b = rng.normal(20, 0.1, 5) + shift, rng.normal(20, 0.1, 5)
        expected = ttest_rel(a, b).pvalue < 0.05 / 7
        found = comparisons.compare(of_means(a), of_means(b), "psnr", 7)
        assert abs(found[3]) == expected and (found[3] == 0 or found[3] == np.sign(np.mean(a - b)))
        signs.add(found[3])
    assert signs == {0, 1}


def test_a_common_effect_of_the_seeds_hides_nothing():
    """Five seeds that differ by decibels, and one configuration 0.3 dB better in each: less than the sd over seeds."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(20, 1, 5)
    a, b = (seeds + shift + rng.normal(0, 0.02, 5) for shift in (0.3, 0))
    assert min(a) < max(b) and a.std(ddof=1) > 0.3
    assert comparisons.compare(of_means(a), of_means(b), "psnr", 7)[3] == 1
    assert (
        comparisons.compare(of_means(a), of_means(rng.permutation(b)), "psnr", 7)[3] == 0
    )  # not paired, not seen


def test_of_equal_rows_hardly_ever_one_is_told_apart():
    """Eight equal rows, three seeds with common effects, 300 studies; images agree, so that the seeds alone decide."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        means = 20 + rng.normal(0, 0.5, 3) + rng.normal(0, 0.1, (8, 3))
        first, *others = (of_means(row) for row in means)
        wrong += any(comparisons.compare(other, first, "psnr", 7)[3] for other in others)
    assert (
        4 <= wrong <= 23
    )  # 5 % and two standard deviations; 95 % for a single pair give 75, unpaired seeds none


def test_less_is_better_in_lpips():
    a, b = (
        [table.assign(lpips=value + table.psnr / 1e3) for table in random(0)]
        for value in (0.1, 0.2)
    )
    difference, low, high, sign = comparisons.compare(a, b, "lpips")
    assert difference == pytest.approx(0.1) and low > 0 and sign == 1


def test_verdicts():
    scores = {
        "a": random(2),
        "b": random(1, start=10),
        "c": random(0, start=20),
        "d": random(0, start=30),
    }
    assert comparisons.verdict(scores, [("a", "b"), ("b", "c")], "psnr")[:2] == (SAME, ("b", "c"))
    assert comparisons.verdict(scores, [("a", "b"), ("c", "b")], "psnr")[:2] == (OTHER, ("c", "b"))
    assert comparisons.verdict(scores, [("a", "b"), ("c", "d")], "psnr")[:2] == (
        UNCLEAR,
        ("c", "d"),
    )
    once = {name: group[:1] for name, group in scores.items()}
    assert comparisons.verdict(once, [("a", "b")], "psnr")[0] == SAME + ONCE
    assert comparisons.told(scores, "b", "psnr") == {
        "better": ["a"],
        "worse": ["c", "d"],
        "not told apart": [],
    }


def test_the_verdict_shows_the_pair_that_decides():
    scores = {
        "a": random(3),
        "b": random(2, start=10),
        "c": random(0, start=20),
        "d": random(0.01, start=30),
    }
    uncertain = [
        random(shift, 1, start=40)[0] for shift in (-9, 1, -9)
    ]  # further from b than c is, and not told apart
    assert comparisons.verdict(
        scores | {"e": uncertain}, [("c", "b"), ("e", "b"), ("a", "b")], "psnr"
    )[:2] == (OTHER, ("c", "b"))
    pairs = [("a", "b"), ("c", "d")]
    assert (
        comparisons.verdict(scores, pairs, "psnr")[:2]
        == comparisons.verdict(scores, pairs[::-1], "psnr")[:2]
    )


def test_certainty_says_what_it_would_take():
    assert "cannot be said" in comparisons.certainty(1, 7)
    assert comparisons.needed(3, 1) == pytest.approx(
        4.303 / math.sqrt(3), rel=1e-3
    )  # Student's table, two degrees of freedom
    assert comparisons.needed(5, 5) == pytest.approx(
        4.604 / math.sqrt(5), rel=1e-3
    )  # four, 0.995 one-sided
    said = comparisons.certainty(3, 7)
    assert "which is rare" in said and f"with 5 seeds, {comparisons.needed(5, 7):.1f} times" in said
    assert "which is rare" not in comparisons.certainty(
        10, 7
    ) and "with 10 seeds" not in comparisons.certainty(10, 7)


def test_spread_is_the_analysis_of_variance_in_blocks():
    """Against least squares: what the rows explain beyond the seeds, and what is left after both."""
    from scipy.stats import f

    rng = np.random.default_rng(0)
    groups = rng.normal(20, 0.1, (8, 4)) + rng.normal(0, 0.05, (8, 1)) + rng.normal(0, 1, (1, 4))
    row, seed = (index.ravel() for index in np.indices(groups.shape))
    y, one, rows, seeds = groups.ravel(), np.ones((32, 1)), np.eye(8)[row], np.eye(4)[seed]
    left = [((y - X @ np.linalg.lstsq(X, y, rcond=None)[0]) ** 2).sum()
            for X in (np.hstack([one, seeds]), np.hstack([rows, seeds]))]  # fmt: skip
    statistic = (left[0] - left[1]) / 7 / (left[1] / 21)
    scores = {str(i): [made([value, value]) for value in group] for i, group in enumerate(groups)}
    found, noise, p = comparisons.spread({"do nothing": [made([1, 2])]} | scores, "psnr")
    assert (found / noise) ** 2 == pytest.approx(statistic) and p == pytest.approx(
        f.sf(statistic, 7, 21)
    )
    assert found == pytest.approx(groups.mean(1).std(ddof=1)) and noise == pytest.approx(
        math.sqrt(left[1] / 21 / 4)
    )
    found, noise, p = comparisons.spread(
        {name: group[:1] for name, group in scores.items()}, "psnr"
    )
    assert found > 0 and math.isnan(noise) and math.isnan(p)
    found, noise, p = comparisons.spread({"a": scores["0"], "b": scores["0"]}, "psnr")
    assert found == 0 and math.isnan(p)  # a tie


# ------------------------------------------------------------------------------------------------------------- LaTeX


def test_latex_is_escaped_and_balanced():
    table = pd.DataFrame(
        {"a_b & 100 %": ["**−1.0 ± 0.2**", "~#{}$"]}, index=["unet++", "\\x^2 <–>"]
    )
    text = tables.latex(table, "50 % of _all_", "08_x")
    assert r" & a\_b \& 100 \% \\" in text and r"unet++ & \textbf{$-$1.0 $\pm$ 0.2} \\" in text
    assert r"\textbackslash{}x\textasciicircum{}2 $<$--$>$ & \textasciitilde{}\#\{\}\$ \\" in text
    assert r"\caption{50 \% of \_all\_}" in text and r"\label{tab:08_x}" in text and text.isascii()
    assert re.findall(r"\\begin{(\w+\*?)}", text) == re.findall(r"\\end{(\w+\*?)}", text)[::-1]
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}") and bare.replace(r"\$", "").count("$") % 2 == 0

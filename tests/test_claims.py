"""Verdicts: made-up numbers for every claim and every word."""

from itertools import product

import fakes
import numpy as np
import pandas as pd
import pytest

from rr import paper, studies
from rr.errors import InputError
from rr.evaluate import claims, tables
from rr.evaluate.claims import NOT_SUPPORTED, NOT_TESTABLE, SUPPORTED
from rr.evaluate.classification import share


def made(psnr, seeds=3, lpips=True, n=40):
    """Scores per image of some seeds with this mean PSNR; SSIM and LPIPS follow it. A tenth of a decibel of chance."""
    base = np.random.default_rng(9).normal(0, 2, n)
    every = []
    for seed in range(seeds):
        values = psnr + base + np.random.default_rng([round(100 * psnr), seed]).normal(0, 0.1, n)
        every.append(
            pd.DataFrame(
                {"psnr": values, "ssim": values / 50, "lpips": 1 - values / 50 if lpips else np.nan}
            )
        )
    return every


def scores(ours, seeds=3, **others):
    rungs = {"do nothing": made(20, 1), "population mean": made(21, 1)}
    return (
        rungs
        | {"ours": made(ours, seeds)}
        | {name: made(psnr, seeds) for name, psnr in others.items()}
    )


# ------------------------------------------------------------------------------------------------------------ C1, C2


def test_c1_has_to_climb_both_rungs():
    assert claims.c1(scores(25), "ours").verdict == SUPPORTED
    between = claims.c1(scores(20.5), "ours")
    assert (
        between.verdict == NOT_SUPPORTED and "worse than population mean in PSNR" in between.because
    )
    assert "do nothing" not in between.because and "PSNR − do nothing: +0.4" in between.here
    equal = claims.c1(scores(21) | {"ours": made(21, 1)}, "ours")
    assert (
        equal.verdict == NOT_SUPPORTED
        and "not told apart from population mean in SSIM" in equal.because
    )
    assert (
        "one training each" in claims.c1(scores(25, seeds=1), "ours").because
        and "27.45 dB" in equal.paper
    )


def test_c2_wants_the_lead_at_the_same_objective_too():
    found, others = scores(25, unet=12, resnet=11), ["unet", "resnet"]
    alike = {"the image": (made(25), made(24)), "the noise": (made(13), made(12))}
    ahead = claims.c2(found, "ours", others, alike)
    assert ahead.verdict == SUPPORTED and "unet, the nearest: +13" in ahead.here
    assert "start, the noised input" in ahead.because and "both from the noised input" in ahead.here
    turned = claims.c2(found, "ours", others, alike | {"the image": (made(25), made(26))})
    assert (
        turned.verdict == NOT_SUPPORTED
        and "worse than the other where both predict the image, in PSNR" in turned.because
    )
    assert claims.c2(found | {"unet": made(25)}, "ours", others, alike).verdict == NOT_SUPPORTED


def test_alike_are_the_cells_that_start_at_the_noised_input():
    ours = [
        table.set_index(pd.Index([f"eye{i}" for i in range(40)], name="image"))
        for table in made(25, seeds=2)
    ]
    psnr = {
        cell: 20 + place for place, cell in enumerate(product(*studies.FACTORS.values()))
    }  # another one in every cell
    cells = pd.concat(
        table.assign(image=ours[0].index, **dict(zip(studies.FACTORS, cell)), seed=seed)
        for cell, value in psnr.items() for seed, table in enumerate(made(value, seeds=2))
    )  # fmt: skip
    found = claims.alike(cells, ours)
    assert list(found) == ["the image", "the v", "the noise"]
    for objective in studies.FACTORS["objective"]:
        for backbone, group in zip(("vae", "unet"), found[f"the {objective}"], strict=True):
            expected = made(psnr[backbone, objective, "noised input"], seeds=2)
            assert [each.psnr.tolist() for each in group] == [
                each.psnr.tolist() for each in expected
            ]
            assert all(each.index.equals(ours[0].index) for each in group)
    with pytest.raises(InputError, match="vae, image, noised input, seed 2: not the test images"):
        claims.alike(cells, [*ours, ours[0]])
    with pytest.raises(InputError, match="unet, v, noised input, seed 1"):
        other = (cells.backbone == "unet") & (cells.objective == "v") & (cells.seed == 1)
        claims.alike(cells.assign(image=cells.image.where(~other, "eye of another")), ours)


# ------------------------------------------------------------------------------------------------------------ C3, C4

NAMES = {word: f"our {word}" for word in (*paper.EXTRACTORS, *paper.FUSIONS)}


def like_the_paper(table, seeds=3, **changes):
    """Scores with all of the paper's values, whatever order they have in a metric."""
    found = {}
    for word, score in table.items():
        rows = made(score.psnr, seeds)
        found[NAMES[word]] = [each.assign(ssim=each.ssim * 0 + score.ssim + each.psnr / 1e5, lpips=score.lpips - each.psnr / 1e5)
                              for each in rows]  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    "claim, table", [(claims.c3, paper.EXTRACTORS), (claims.c4, paper.FUSIONS)]
)
def test_orders_need_three_seeds_and_every_pair(claim, table):
    same = like_the_paper(table)
    assert claim(same, NAMES).verdict == SUPPORTED
    few = claim({name: group[:2] for name, group in same.items()}, NAMES)
    assert few.verdict == NOT_TESTABLE and few.because.startswith("seeds: 2")
    worst = NAMES[claims.ranked(table, "psnr")[-1]]
    other = claim(same | {worst: [each.assign(psnr=each.psnr + 40) for each in same[worst]]}, NAMES)
    assert other.verdict == NOT_SUPPORTED and other.because == "not the paper's order in PSNR"
    best, second = (NAMES[word] for word in claims.ranked(table, "psnr")[:2])
    tied = claim(same | {second: same[best]}, NAMES)
    assert tied.verdict == NOT_SUPPORTED and "cannot be told apart" in tied.here
    first, second = claims.ranked(table, "psnr")[:2]
    assert f"({first} over {second} by +0.00" in tied.here and "our" not in tied.here, (
        "the paper's words, not our names"
    )
    unknown = {name: [each.assign(lpips=np.nan) for each in group] for name, group in same.items()}
    assert (
        claim(unknown, NAMES).verdict == NOT_TESTABLE
        and "LPIPS cannot be had" in claim(unknown, NAMES).because
    )


def test_the_pairs_are_the_papers():
    assert {pair[0] for pair in claims.best_and_rest(NAMES)["psnr"]} == {"our resnet34"}
    assert {pair[0] for pair in claims.best_and_rest(NAMES)["lpips"]} == {"our mobilenet"}
    psnr = claims.neighbours(NAMES)["psnr"]
    assert (
        psnr[0] == ("our bilinear-static", "our bilinear-dynamic")
        and psnr[-1][1] == "our upsample-static"
    )


# ------------------------------------------------------------------------------------------------------------ C5, C6


def test_c5_wants_every_label_above_chance_and_majority():
    assert claims.c5(fakes.report()).verdict == SUPPORTED
    one = [*fakes.report()[:3], fakes.report(auc=(0.7, 0.45, 0.9))[3]]
    assert claims.c5(one).verdict == NOT_SUPPORTED and claims.c5(one).because.endswith(
        "AUC of retina"
    )
    unsure = fakes.report(gain=(0.05, -0.01, 0.1))
    assert (
        claims.c5(unsure).verdict == NOT_SUPPORTED
        and "accuracy of fundus" in claims.c5(unsure).because
    )
    blind = [*fakes.report()[:3], fakes.report(auc=(None,) * 3)[3]]  # as JSON says it
    assert (
        claims.c5(blind).verdict == NOT_TESTABLE
        and "one class in retina" in claims.c5(blind).because
    )
    assert "AUC 0.90 [0.80, 0.97]" in claims.c5(one).here


def test_c6_wants_both_judges():
    honest = fakes.fooled(another=40)
    found = claims.c6([fakes.rechecked()], honest)
    assert (
        found.verdict == SUPPORTED
        and "no proof" in found.because
        and "another eye's photograph 100%" in found.here
    )
    divided = claims.c6([fakes.rechecked(second=15)], honest)
    assert divided.verdict == NOT_SUPPORTED and divided.because.endswith(
        "pass with the second judge"
    )
    assert (
        claims.c6([fakes.rechecked(), fakes.rechecked(classifier=20)], honest).verdict
        == NOT_SUPPORTED
    )  # the worst seed
    assert share(np.arange(40) < 26)["low"] < 0.5 < share(np.arange(40) < 27)["low"]
    assert [claims.c6([fakes.rechecked(classifier=k)], honest).verdict for k in (26, 27)] == [
        NOT_SUPPORTED,
        SUPPORTED,
    ]


def test_c6_cannot_be_tested_by_judges_that_pass_anything():
    found = claims.c6(
        [fakes.rechecked(classifier=35, second=35)], fakes.fooled(CLAHE=33, another=40)
    )
    assert found.verdict == NOT_TESTABLE and found.because.endswith("restores nothing: CLAHE")
    assert claims.c6([fakes.rechecked(mean=40)], fakes.fooled()).because.endswith("the mean eye")
    assert (
        claims.c6([fakes.rechecked(n=0)], fakes.fooled()).because
        == "the classifier called no input unreadable"
    )
    assert claims.c6([fakes.rechecked()], fakes.fooled(n=0)).verdict == NOT_TESTABLE
    one = [
        row | {"passed_high": 1.0} if row["judge"] == "classifier" else row
        for row in fakes.fooled()
    ]
    assert claims.c6([fakes.rechecked()], one).verdict == SUPPORTED, (
        "the second judge is not taken in"
    )


def test_the_table_has_a_row_per_claim():
    verdicts = [claims.c1(scores(25), "ours"), claims.c5(fakes.report())]
    shown = claims.table(verdicts)
    assert list(shown.index) == [
        "C1: RetinaRegen restores well",
        "C5: the readability classifier is good",
    ]
    assert shown["verdict"].tolist() == [
        "**supported**"
    ] * 2 and "| **supported** |" in tables.markdown(shown)

"""Verdicts: made-up numbers for every claim and every word."""

import fakes
import numpy as np
import pandas as pd
import pytest

from rr import paper
from rr.evaluate import claims, tables
from rr.evaluate.claims import NOT_SUPPORTED, NOT_TESTABLE, SUPPORTED
from rr.evaluate.classification import share
from rr.evaluate.statistics import NOT_TESTED


def made(psnr, seeds=3, lpips=True, n=40, variation=0.8):
    """Scores of some seeds with this mean PSNR and 0.1 dB of noise; SSIM and LPIPS follow it."""
    base = np.random.default_rng(9).normal(0, 2, n)
    every = []
    for seed in range(seeds):
        values = psnr + base + np.random.default_rng([round(100 * psnr), seed]).normal(0, 0.1, n)
        every.append(
            pd.DataFrame(
                {
                    "psnr": values,
                    "ssim": values / 50,
                    "lpips": 1 - values / 50 if lpips else np.nan,
                    "variation": variation,
                }
            )
        )
    return every


def scores(ours, seeds=3, **others):
    baselines = {
        "do nothing": made(20, 1, variation=np.nan),
        "population mean": made(21, 1, variation=np.nan),
    }
    return (
        baselines
        | {"ours": made(ours, seeds)}
        | {name: made(psnr, seeds) for name, psnr in others.items()}
    )


def c6(rechecked, shams, collapsed=False):
    return claims.c6(rechecked, shams, collapsed)


# ------------------------------------------------------------------------------------------ C1, C2


def test_c1_must_beat_both_baselines():
    assert claims.c1(scores(25), "ours").verdict == SUPPORTED
    between = claims.c1(scores(20.5), "ours")
    assert between.verdict == NOT_SUPPORTED
    assert between.because == "worse: population mean in PSNR; worse: population mean in SSIM"
    assert "PSNR − do nothing: +0.4" in between.here and "27.45 dB" in between.paper
    equal = claims.c1(scores(21) | {"ours": made(21, 1) * 3}, "ours")
    assert "not distinguishable: population mean in SSIM" in equal.because


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_trainings_are_no_verdict(seeds):
    """A single training decides a claim of the paper (D1)."""
    few = scores(25, seeds, unet=12)
    alike = {"the image": (made(25, seeds), made(24, seeds))}
    verdicts = [claims.c1(few, "ours"), claims.c2(few, "ours", ["unet"], alike)]
    verdicts.append(c6([fakes.rechecked()] * seeds, fakes.fooled(another=40)))
    for verdict in verdicts:
        assert verdict.verdict == NOT_TESTABLE and verdict.because == NOT_TESTED


@pytest.mark.parametrize("psnr", [25, 15], ids=["better", "worse"])
def test_a_collapsed_restorer_gets_no_verdict(psnr):
    """Copies of a constant are ranked (D2); a single training that collapsed is enough."""
    flat = [*made(psnr, 2), *made(psnr, 1, variation=0.2)]
    result, alike = scores(25, unet=12), {"the image": (made(25), made(24))}
    order = {name: made(20 - i) for i, name in enumerate(NAMES.values())}
    best, worst = NAMES["resnet34"], NAMES["upsample-static"]
    verdicts = [
        claims.c1(result | {"ours": flat}, "ours"),
        claims.c2(result | {"unet": flat}, "ours", ["unet"], alike),
        claims.c2(result, "ours", ["unet"], {"the image": (made(25), flat)}),
        claims.c3(order | {best: flat}, NAMES),
        claims.c4(order | {worst: flat}, NAMES),
        c6([fakes.rechecked()] * 3, fakes.fooled(another=40), collapsed=True),
        c6([fakes.rechecked(heldout=1)] * 3, fakes.fooled(another=40), collapsed=True),
    ]
    for verdict in verdicts:
        assert verdict.verdict == NOT_TESTABLE and verdict.because == claims.ALIKE, verdict.claim


def test_c2_wants_the_lead_at_the_same_objective_too():
    result, others = scores(25, unet=12, resnet=11), ["unet", "resnet"]
    alike = {"the image": (made(25), made(24)), "the noise": (made(13), made(12))}
    ahead = claims.c2(result, "ours", others, alike)
    assert ahead.verdict == SUPPORTED and "PSNR − unet (the nearest): +13" in ahead.here
    assert "both from the noised input" in ahead.here
    turned = claims.c2(result, "ours", others, alike | {"the image": (made(25), made(26))})
    assert (
        turned.verdict == NOT_SUPPORTED
        and "worse: a U-Net that predicts the image, in PSNR" in turned.because
    )
    assert claims.c2(result | {"unet": made(25)}, "ours", others, alike).verdict == NOT_SUPPORTED


# ------------------------------------------------------------------------------------------ C3, C4

NAMES = {word: f"our {word}" for word in (*paper.EXTRACTORS, *paper.FUSIONS)}


def like_the_paper(table, seeds=3, **changes):
    """Scores with all of the paper's values, whatever order they have in a metric."""
    result = {}
    for word, score in table.items():
        rows = made(score.psnr, seeds)
        result[NAMES[word]] = [table.assign(ssim=score.ssim + table.psnr / 1e5,
                                          lpips=score.lpips - table.psnr / 1e5)
                              for table in rows]  # fmt: skip
    return result | changes


@pytest.mark.parametrize(
    "claim, table", [(claims.c3, paper.EXTRACTORS), (claims.c4, paper.FUSIONS)]
)
def test_orders_need_three_seeds_and_every_pair(claim, table):
    same = like_the_paper(table)
    assert claim(same, NAMES).verdict == SUPPORTED
    few = claim({name: group[:2] for name, group in same.items()}, NAMES)
    assert few.verdict == NOT_TESTABLE and few.because == NOT_TESTED
    worst = NAMES[paper.ranked(table, "psnr")[-1]]
    other = claim(
        same | {worst: [table.assign(psnr=table.psnr + 40) for table in same[worst]]}, NAMES
    )
    assert other.verdict == NOT_SUPPORTED and other.because.startswith("worse: ")
    assert other.because.endswith(" in PSNR")
    best, second = (NAMES[word] for word in paper.ranked(table, "psnr")[:2])
    tied = claim(same | {second: same[best]}, NAMES)
    assert tied.verdict == NOT_SUPPORTED and "not distinguishable: " in tied.because
    unknown = {
        name: [table.assign(lpips=np.nan) for table in group] for name, group in same.items()
    }
    assert claim(unknown, NAMES).verdict == NOT_TESTABLE and claim(
        unknown, NAMES
    ).because.startswith("n/a: ")


def test_the_pairs_are_the_papers():
    assert {pair[0] for pair in claims.best_and_rest(NAMES)["psnr"]} == {"our resnet34"}
    assert {pair[0] for pair in claims.best_and_rest(NAMES)["lpips"]} == {"our mobilenet"}
    psnr = claims.neighbours(NAMES)["psnr"]
    assert (
        psnr[0] == ("our bilinear-static", "our bilinear-dynamic")
        and psnr[-1][1] == "our upsample-static"
    )


# ------------------------------------------------------------------------------------------ C5, C6


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


def test_c6_wants_both_classifiers():
    honest = fakes.fooled(another=40)
    result = c6([fakes.rechecked()] * 3, honest)
    assert (
        result.verdict == SUPPORTED
        and "proves no restoration" in result.because
        and "another eye 100%" in result.here
    )
    divided = c6([fakes.rechecked(heldout=15)] * 3, honest)
    assert divided.verdict == NOT_SUPPORTED and divided.because.endswith(
        "one half with the held-out classifier"
    )
    assert (
        c6([fakes.rechecked(), fakes.rechecked(), fakes.rechecked(classifier=20)], honest).verdict
        == NOT_SUPPORTED
    )  # the worst seed
    assert share(np.arange(40) < 26)["low"] < 0.5 < share(np.arange(40) < 27)["low"]
    assert [c6([fakes.rechecked(classifier=k)] * 3, honest).verdict for k in (26, 27)] == [
        NOT_SUPPORTED,
        SUPPORTED,
    ]


def test_c6_needs_enough_unreadable_inputs():
    """If all of three pass, the interval still reaches one half: nothing was refuted."""
    few = c6([fakes.rechecked(n=3)] * 3, fakes.fooled(another=40))
    assert few.verdict == NOT_TESTABLE and few.because.endswith("only 3 inputs unreadable")
    assert c6([fakes.rechecked(n=4)] * 3, fakes.fooled(another=40)).verdict != NOT_TESTABLE
    none = c6([fakes.rechecked(n=4, heldout=0)] * 3, fakes.fooled(another=40))
    assert none.verdict == NOT_SUPPORTED


def test_c6_cannot_be_tested_by_classifiers_that_pass_anything():
    result = c6(
        [fakes.rechecked(classifier=35, heldout=35)] * 3, fakes.fooled(CLAHE=33, another=40)
    )
    assert result.verdict == NOT_TESTABLE and result.because.endswith("as often: CLAHE")
    assert c6([fakes.rechecked(mean=40)] * 3, fakes.fooled()).because.endswith(
        "the population mean"
    )
    assert (
        c6([fakes.rechecked(n=0)] * 3, fakes.fooled()).because
        == "the classifier called no input unreadable"
    )
    assert c6([fakes.rechecked()] * 3, fakes.fooled(n=0)).verdict == NOT_TESTABLE
    one = [
        row | {"passed_high": 1.0} if row["classifier"] == "classifier" else row
        for row in fakes.fooled()
    ]
    assert c6([fakes.rechecked()] * 3, one).verdict == SUPPORTED, (
        "the held-out classifier is not taken in"
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

"""One verdict per claim of the paper, by a stated rule.

    C1  RetinaRegen restores well            better than both baselines in PSNR and SSIM
    C2  the VAE is far ahead of the others   better than each, and with equal objective and images
    C3  ResNet34 is the best extractor       every pair is in the paper's order
    C4  bilinear-static is the best fusion   every pair of neighbours is in the paper's order
    C5  the readability classifier is good   each label: better than chance and majority class
    C6  restored images pass the re-check    more than half pass, and sham restorations do not

A claim is *supported* if everything in its rule is seen, each with its 95 % interval on that side.
It is *not testable here* if the means are missing, and the verdict says which: C1 to C4 and C6 need
SEEDS trainings, and no row that they rest on may be collapsed. Otherwise it is *not supported*: it
was looked for and not seen. The numbers of preset smoke were known when the rules for C1 to C5 were
written. Nothing here needs torch.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from rr import paper
from rr.evaluate.factorial import COMPARED, START
from rr.evaluate.statistics import (
    BASELINES,
    BETTER,
    DIGITS,
    METRICS,
    NO_VARIATION,
    NOT_AVAILABLE,
    NOT_TESTED,
    SEEDS,
    compare,
    compare_order,
    wilson,
)
from rr.evaluate.tables import interval, short

SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable here"
ALIKE = "collapsed: nearly the same picture for every eye"
SHAMS = ("CLAHE", "unsharp", "unsharp, three times")  # of notebook 02: they restore nothing


class Verdict(NamedTuple):
    claim: str  # "C1"
    says: str  # the claim in words
    paper: str  # the paper's numbers
    verdict: str  # SUPPORTED, NOT_SUPPORTED or NOT_TESTABLE
    here: str  # our numbers, with intervals
    because: str  # what decides


def c1(scores, ours):
    """C1: method `ours` against the baselines. scores: see rr.evaluate.statistics."""
    pairs = {
        (metric, baseline): compare(scores[ours], scores[baseline], metric, len(BASELINES))
        for metric in COMPARED
        for baseline in BASELINES
    }
    here = "; ".join(
        f"{short(metric)} − {baseline}: {_difference(metric, comparison)}"
        for (metric, baseline), comparison in pairs.items()
    )
    outcomes = {f"{name} in {short(metric)}": pair for (metric, name), pair in pairs.items()}
    text = _score(paper.RETINAREGEN)
    return _verdict(
        "C1", "RetinaRegen restores well", text, here, outcomes, "better than both in both"
    )


def c2(scores, ours, others, alike):
    """C2: method `ours` against the methods `others` as they were trained, and the pairs `alike`
    (see `factorial.trained_alike`).

    As they were trained, the backbones also differ in what they predict. The pairs `alike` remove
    this difference.
    """
    trained = {
        (metric, name): compare(scores[ours], scores[name], metric, len(others))
        for metric in COMPARED
        for name in others
    }
    same_objective = {
        (metric, objective): compare(*pair, metric, len(alike))
        for metric in COMPARED
        for objective, pair in alike.items()
    }
    nearest = min(others, key=lambda name: trained["psnr", name].difference)
    lead = _difference("psnr", trained["psnr", nearest])
    here = f"as trained, PSNR − {nearest} (the nearest): {lead}"
    here += f"; VAE − U-Net, same number of images, both from the {START}: " + ", ".join(
        f"predicting {name} {_difference('psnr', same_objective['psnr', name])}" for name in alike
    )
    outcomes = {f"{name} in {short(metric)}": pair for (metric, name), pair in trained.items()}
    outcomes |= {
        f"a U-Net that predicts {name}, in {short(metric)}": pair
        for (metric, name), pair in same_objective.items()
    }
    lowest, highest = (f"{score.psnr:.2f}" for score in paper.OTHER_BACKBONES.values())
    text = f"{_score(paper.RETINAREGEN)}; the others {lowest} to {highest} dB"
    reason = "ahead as trained, and with the same objective, number of images and start"
    return _verdict(
        "C2", "the VAE is far ahead of four other backbones", text, here, outcomes, reason
    )


def c3(scores, names):
    """C3: the paper's best extractor of each metric against the others. names: {key of
    paper.EXTRACTORS: method}.
    """
    psnr, lpips = (
        paper.EXTRACTORS[paper.ranked(paper.EXTRACTORS, metric)[0]] for metric in ("psnr", "lpips")
    )
    text = f"{psnr.psnr:.2f} dB, {psnr.ssim:.3f}; {lpips.lpips:.3f}"
    says = "ResNet34 is the best extractor, MobileNet in LPIPS"
    return _order("C3", says, text, scores, best_and_rest(names))


def c4(scores, names):
    """C4: neighbours in the paper's order of the fusions. names: {key of paper.FUSIONS: method}."""
    order = paper.ranked(paper.FUSIONS, "psnr")
    text = ", ".join(f"{key} {paper.FUSIONS[key].psnr:.2f} dB" for key in order)
    says = "bilinear-static is the best fusion, then in order"
    return _order("C4", says, text, scores, neighbours(names))


def best_and_rest(names):
    """{metric: [(best, other), ...]} of the paper's extractors, as methods."""
    orders = {
        metric: [names[key] for key in paper.ranked(paper.EXTRACTORS, metric)] for metric in METRICS
    }
    return {metric: [(best, name) for name in rest] for metric, (best, *rest) in orders.items()}


def neighbours(names):
    """{metric: [(better, next), ...]} of the paper's fusions, as methods."""
    return {
        metric: list(pairwise(names[key] for key in paper.ranked(paper.FUSIONS, metric)))
        for metric in METRICS
    }


def _order(claim, says, text, scores, pairs):
    deciding = {metric: compare_order(scores, group, metric) for metric, group in pairs.items()}
    here = "; ".join(
        f"{short(metric)}: {comparison.verdict}"
        if comparison.verdict == NOT_AVAILABLE
        else f"{short(metric)}: {pair[0]} − {pair[1]} {_difference(metric, comparison)}"
        for metric, (pair, comparison) in deciding.items()
    )
    outcomes = {
        f"{' − '.join(pair)} in {short(metric)}": comparison
        for metric, (pair, comparison) in deciding.items()
    }
    return _verdict(claim, says, text, here, outcomes, "every pair is in the paper's order")


def c5(report):
    """C5 from the rows of classification.report."""
    rows = pd.DataFrame(report).set_index("label").astype(float)
    here = "; ".join(
        f"{row.Index}: AUC {interval(row.roc_auc, row.roc_auc_low, row.roc_auc_high, sign='')}, "
        "accuracy − majority "
        f"{interval(row.above_majority, row.above_majority_low, row.above_majority_high)}"
        for row in rows.itertuples()
    )
    start = "C5", "the readability classifier is good", "curves (Fig. 2), no numbers"
    unknown = list(rows.index[rows.roc_auc_low.isna()])
    if unknown:
        reason = f"the test images are of one class in {', '.join(unknown)}"
        return Verdict(*start, NOT_TESTABLE, here, reason)
    failed = [f"AUC of {label}" for label in rows.index[rows.roc_auc_low <= 0.5]]
    failed += [f"accuracy of {label}" for label in rows.index[rows.above_majority_low <= 0]]
    if failed:
        reason = f"the interval holds chance, or the majority class: {', '.join(failed)}"
        return Verdict(*start, NOT_SUPPORTED, here, reason)
    return Verdict(
        *start, SUPPORTED, here, "every label is above chance and above the majority class"
    )


def c6(rechecked, shams, collapsed):
    """C6 from notebook 06, for each seed {classifier: {output: classification.share}}, and notebook
    02's table of shams.

    collapsed: whether one of the restorers is. Of several trainings the one that passes least
    counts. A sham restoration passes as often as
    ours if, with every classifier, the upper end of its interval reaches the lower end of ours.
    """
    start = "C6", "restored images pass the re-check", "no numbers"
    classifiers = list(rechecked[0])
    ours = {
        name: min(
            (seed[name]["RetinaRegen"] for seed in rechecked), key=lambda share: share["hits"]
        )
        for name in classifiers
    }
    n = min(share["n"] for share in ours.values())
    if n == 0:
        return Verdict(*start, NOT_TESTABLE, "–", "the classifier called no input unreadable")
    rows = pd.DataFrame(shams).set_index(["method", "classifier"]).astype(float)
    here = "; ".join(
        f"{name}: {_share(share)} of {share['n']}, "
        f"before {_share(rechecked[0][name]['do nothing'])}, "
        f"another eye {_share(_passed(rows.loc[('another eye', name)]))}"
        for name, share in ours.items()
    )
    if collapsed:
        return Verdict(*start, NOT_TESTABLE, here, ALIKE)
    if len(rechecked) < SEEDS:
        return Verdict(*start, NOT_TESTABLE, here, NOT_TESTED)
    if wilson(1, n)[0] <= 0.5:  # also if all pass
        reason = f"the classifier called only {n} inputs unreadable"
        return Verdict(*start, NOT_TESTABLE, here, reason)
    failed = [name for name, share in ours.items() if share["low"] <= 0.5]
    if failed:
        reason = f"the interval reaches one half with the {' and the '.join(failed)}"
        return Verdict(*start, NOT_SUPPORTED, here, reason)
    highs = {sham: [rows.passed_high[sham, name] for name in classifiers] for sham in SHAMS}
    highs["the population mean"] = [
        rechecked[0][name]["population mean"]["high"] for name in classifiers
    ]
    if np.isnan(list(highs.values())).any():
        reason = "there are no unreadable test images to find out what else passes"
        return Verdict(*start, NOT_TESTABLE, here, reason)
    lows = [ours[name]["low"] for name in classifiers]
    equal = [sham for sham, ends in highs.items() if all(np.greater_equal(ends, lows))]
    if equal:
        reason = f"what restores nothing may pass as often: {', '.join(equal)}"
        return Verdict(*start, NOT_TESTABLE, here, reason)
    return Verdict(
        *start, SUPPORTED, here, "both classifiers pass them; this proves no restoration"
    )


def table(verdicts):
    """The verdicts as strings: one row per claim with verdict, the paper's numbers, ours, and what
    decides.
    """
    rows = [(f"**{row.verdict}**", row.paper, row.here, row.because) for row in verdicts]
    index = [f"{row.claim}: {row.says}" for row in verdicts]
    return pd.DataFrame(rows, columns=["verdict", "the paper", "here", "because"], index=index)


def _verdict(claim, says, text, here, outcomes, reason):
    """The verdict of {what is compared: Comparison}, which must all be BETTER."""
    verdicts = [comparison.verdict for comparison in outcomes.values()]
    for untestable, because in ((NO_VARIATION, ALIKE), (NOT_TESTED, NOT_TESTED)):
        if untestable in verdicts:
            return Verdict(claim, says, text, NOT_TESTABLE, here, because)
    failed = [
        f"{outcome.verdict}: {name}"
        for name, outcome in outcomes.items()
        if outcome.verdict not in (BETTER, NOT_AVAILABLE)
    ]
    if failed:
        return Verdict(claim, says, text, NOT_SUPPORTED, here, "; ".join(failed))
    if NOT_AVAILABLE in verdicts:
        names = [name for name, outcome in outcomes.items() if outcome.verdict == NOT_AVAILABLE]
        return Verdict(claim, says, text, NOT_TESTABLE, here, f"n/a: {', '.join(names)}")
    return Verdict(claim, says, text, SUPPORTED, here, reason)


def _difference(metric, comparison):
    return interval(*comparison[:3], DIGITS[metric])


def _score(score):
    return f"{score.psnr:.2f} dB, {score.ssim:.3f}, {score.lpips:.3f}"


def _passed(row):
    return {"n": row.n, "share": row.passed, "low": row.passed_low, "high": row.passed_high}


def _share(share):
    """A share of n images with its interval, in per cent."""
    return (
        f"{share['share']:.0%} [{share['low']:.0%}, {share['high']:.0%}]" if share["n"] else "n/a"
    )

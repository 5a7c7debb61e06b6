"""One verdict per claim of the paper, by a stated rule; the smoke numbers of C1 to C5 were known when the rules were written.

    C1  RetinaRegen restores well                       better than doing nothing and than the population mean, PSNR and SSIM
    C2  the VAE is far ahead of four other backbones    better than each as trained, and at the same objective, epochs and start
    C3  ResNet34 is the best extractor (MobileNet in LPIPS)         every pair in the paper's order, over seeds
    C4  bilinear-static is the best fusion, then the paper's order  every pair in the paper's order, over seeds
    C5  the readability classifier is good              every label: ROC area above 1/2, accuracy above the majority class
    C6  restored images pass the re-check               more than half with each judge, who do not pass what restores nothing

A claim is *supported* if all that its rule asks for is seen, each with its 95 % interval on that side; *not testable here* if
the means are missing, and the verdict says which; else *not supported*: looked for, and not seen. The contrary may then be
true, or nothing be told apart; `because` says which. Intervals of several pairs in a metric hold together, as everywhere
in rr.comparisons. Nothing here needs torch.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from rr import paper
from rr.errors import InputError
from rr.evaluate.statistics import METRICS, SAME, compare, verdict
from rr.evaluate.tables import RUNGS, SHOWN, interval
from rr.studies import FACTORS

SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable here"
SEEDS = 3  # trainings per row, at least, where rows differ by little (C3, C4)
JUDGED = ("psnr", "ssim")  # of C1 and C2: no restorer is made for LPIPS
START = FACTORS["start"][
    0
]  # the noised input, as RetinaRegen's: from pure noise no chain sees the image it should restore
RELATION = {1: "better than", 0: "not told apart from", -1: "worse than"}
TRICKS = ("CLAHE", "unsharp", "unsharp, three times")  # of notebook 02: they restore nothing


class Verdict(NamedTuple):
    claim: str  # "C1"
    says: str  # the paper, in words
    paper: str  # its numbers
    verdict: str  # SUPPORTED | NOT_SUPPORTED | NOT_TESTABLE
    here: str  # our numbers, with intervals
    because: str  # what decides


def c1(scores, ours):
    """C1: method `ours` against the rungs. scores: {method: [scores per image of each seed]}, as of comparisons.scores."""
    found = {
        (metric, rung): compare(scores[ours], scores[rung], metric, len(RUNGS))
        for metric in JUDGED
        for rung in RUNGS
    }
    failed = [
        f"{RELATION[each[3]]} {rung} in {_head(metric)}"
        for (metric, rung), each in found.items()
        if each[3] < 1
    ]
    here = "; ".join(
        f"{_head(metric)} − {rung}: {_difference(metric, each)}"
        for (metric, rung), each in found.items()
    )
    because = "; ".join(failed) or "better than both in both"
    word = NOT_SUPPORTED if failed else SUPPORTED
    return Verdict(
        "C1",
        "RetinaRegen restores well",
        _score(paper.RETINAREGEN),
        word,
        here,
        because + _once(scores[ours]),
    )


def c2(scores, ours, others, alike):
    """C2: method `ours` against the methods `others` as they were trained, and the pairs `alike` (see there).

    As they were trained, what the backbones predict differs, too, and nobody can say which of both it is: hence the pairs.
    """
    lowest, highest = (f"{score.psnr:.2f}" for score in paper.OTHER_BACKBONES.values())
    facts = (
        "the VAE is far ahead of four other backbones",
        f"{_score(paper.RETINAREGEN)}; the others {lowest} to {highest} dB",
    )
    trained = {(metric, other): compare(scores[ours], scores[other], metric, len(others))
               for metric in JUDGED for other in others}  # fmt: skip
    fair = {
        (metric, what): compare(*pair, metric, len(alike))
        for metric in JUDGED
        for what, pair in alike.items()
    }
    nearest = min(others, key=lambda other: trained["psnr", other][0])
    here = f"as trained, PSNR − that of {nearest}, the nearest: {_difference('psnr', trained['psnr', nearest])}"
    here += f"; against a U-Net, both from the {START} after as many epochs"
    here += "".join(
        f"; both predict {what}: {_difference('psnr', fair['psnr', what])}" for what in alike
    )
    failed = [
        f"{RELATION[each[3]]} {other} in {_head(metric)}"
        for (metric, other), each in trained.items()
        if each[3] < 1
    ]
    failed += [f"{RELATION[each[3]]} the other where both predict {what}, in {_head(metric)}"
               for (metric, what), each in fair.items() if each[3] < 1]  # fmt: skip
    because = (
        "; ".join(failed)
        or f"ahead as trained, and with the same objective, epochs and start, the {START}"
    )
    word = NOT_SUPPORTED if failed else SUPPORTED
    return Verdict(
        "C2",
        *facts,
        word,
        here,
        because + _once(*(tables for pair in alike.values() for tables in pair)),
    )


def alike(cells, ours):
    """{objective: (scores of the VAE, of the U-Net)}, each [scores per image of each seed]: trained alike, and started at START.

    cells: table of notebook 10, a row per image and cell of studies.FACTORS: image, backbone, objective, start, seed, JUDGED.
    ours: scores per image of each seed, to compare with. Raises InputError unless every cell has these images and seeds.
    """
    cells = cells[cells.start == START]

    def of(objective, backbone, seed, images):
        rows = cells[
            (cells.objective == objective) & (cells.backbone == backbone) & (cells.seed == seed)
        ]
        if rows.image.tolist() != list(images):
            raise InputError(f"10_what_matters_per_image.csv: {backbone}, {objective}, {START}, seed {seed}: not the test images "
                             "of notebook 06; run `rr reproduce` again")  # fmt: skip
        return rows.set_index("image")[list(JUDGED)]

    return {f"the {objective}": tuple([of(objective, backbone, seed, table.index) for seed, table in enumerate(ours)]
                                      for backbone in FACTORS["backbone"]) for objective in FACTORS["objective"]}  # fmt: skip


def c3(scores, names):
    """C3: the paper's best extractor of each metric against each of the rest. names: {word of paper.EXTRACTORS: method}."""
    best, lpips = (
        paper.EXTRACTORS[ranked(paper.EXTRACTORS, metric)[0]] for metric in ("psnr", "lpips")
    )
    theirs = f"{best.psnr:.2f} dB, {best.ssim:.3f}; {lpips.lpips:.3f}"
    return _order(
        "C3",
        "ResNet34 is the best extractor, MobileNet in LPIPS",
        theirs,
        scores,
        best_and_rest(names),
        names,
    )


def c4(scores, names):
    """C4: neighbours in the paper's order of the fusions. names: {word of paper.FUSIONS: method}."""
    theirs = ", ".join(
        f"{word} {paper.FUSIONS[word].psnr:.2f} dB" for word in ranked(paper.FUSIONS, "psnr")
    )
    return _order(
        "C4",
        "bilinear-static is the best fusion, then in order",
        theirs,
        scores,
        neighbours(names),
        names,
    )


def ranked(table, metric):
    """The words of one of the paper's tables, {word: paper.Score}, best first."""
    way = 1 if metric.startswith("lpips") else -1
    return sorted(table, key=lambda word: way * getattr(table[word], metric))


def best_and_rest(names):
    """{metric: [(best, other), ...]} of the paper's extractors, as methods; names: {word: method}."""
    orders = {
        metric: [names[word] for word in ranked(paper.EXTRACTORS, metric)] for metric in METRICS
    }
    return {metric: [(best, other) for other in rest] for metric, (best, *rest) in orders.items()}


def neighbours(names):
    """{metric: [(better, next), ...]} of the paper's fusions, as methods; names: {word: method}."""
    return {
        metric: list(pairwise(names[word] for word in ranked(paper.FUSIONS, metric)))
        for metric in METRICS
    }


def _order(claim, says, theirs, scores, pairs, names):
    words = {name: word for word, name in names.items()}
    found = {metric: verdict(scores, each, metric) for metric, each in pairs.items()}
    here = "; ".join(f"{_head(metric)}: {word}" if word == "n/a" else
                     f"{_head(metric)}: {word} ({words[better]} over {words[worse]} by {_difference(metric, each)})"
                     for metric, (word, (better, worse), each) in found.items())  # fmt: skip
    seeds = min(len(scores[name]) for each in pairs.values() for pair in each for name in pair)
    if seeds < SEEDS:
        because = f"seeds: {seeds}, and another training may turn small differences round; it takes {SEEDS}"
        return Verdict(claim, says, theirs, NOT_TESTABLE, here, because)
    failed = [_head(metric) for metric, (word, *_) in found.items() if word not in (SAME, "n/a")]
    if failed:
        return Verdict(
            claim,
            says,
            theirs,
            NOT_SUPPORTED,
            here,
            f"not the paper's order in {', '.join(failed)}",
        )
    unknown = [_head(metric) for metric, (word, *_) in found.items() if word == "n/a"]
    if unknown:
        return Verdict(
            claim,
            says,
            theirs,
            NOT_TESTABLE,
            here,
            f"{', '.join(unknown)} cannot be had on this machine",
        )
    return Verdict(claim, says, theirs, SUPPORTED, here, "every pair is told apart as in the paper")


def c5(report):
    """C5 from the rows of classification.report, [{label, roc_auc, roc_auc_low, ...}]."""
    rows = pd.DataFrame(report).set_index("label").astype(float)
    here = "; ".join(
        f"{row.Index}: AUC {interval(row.roc_auc, row.roc_auc_low, row.roc_auc_high, sign='')}, accuracy − majority "
        f"{interval(row.above_majority, row.above_majority_low, row.above_majority_high)}" for row in rows.itertuples()
    )  # fmt: skip
    facts = "C5", "the readability classifier is good", "curves (Fig. 2), no numbers"
    failed = [f"AUC of {label}" for label in rows.index[rows.roc_auc_low <= 0.5]]
    failed += [f"accuracy of {label}" for label in rows.index[rows.above_majority_low <= 0]]
    unknown = list(rows.index[rows.roc_auc_low.isna()])
    if unknown:
        return Verdict(
            *facts, NOT_TESTABLE, here, f"the test images are of one class in {', '.join(unknown)}"
        )
    if failed:
        return Verdict(
            *facts,
            NOT_SUPPORTED,
            here,
            f"the interval holds chance, or the majority class: {', '.join(failed)}",
        )
    return Verdict(
        *facts, SUPPORTED, here, "every label is above chance and above the majority class"
    )


def c6(rechecked, fooled):
    """C6 from notebook 06, for each seed {judge: {output: classification.share}}, and the rows of notebook 02's table of tricks.

    Of several trainings the one that passes least counts. What restores nothing passes "as often" if with every judge the
    upper end of its interval reaches the lower end of the restored images'.
    """
    facts = "C6", "restored images pass the re-check", "no numbers"
    judges = list(rechecked[0])
    ours = {
        judge: min(
            (each[judge]["RetinaRegen"] for each in rechecked), key=lambda found: found["hits"]
        )
        for judge in judges
    }
    if min(found["n"] for found in ours.values()) == 0:
        return Verdict(*facts, NOT_TESTABLE, "–", "the classifier called no input unreadable")
    rows = pd.DataFrame(fooled).set_index(["method", "judge"]).astype(float)
    tricks = {
        trick: {judge: rows.passed_high[trick, judge] for judge in judges} for trick in TRICKS
    }
    tricks |= {
        "the mean eye": {judge: rechecked[0][judge]["population mean"]["high"] for judge in judges}
    }
    here = "; ".join(f"{judge}: {_share(found)} of {found['n']}, before {_share(rechecked[0][judge]['do nothing'])}, "
                     f"another eye's photograph {_share(_row(rows.loc[('another eye', judge)]))}"
                     for judge, found in ours.items())  # fmt: skip
    failed = [judge for judge, found in ours.items() if found["low"] <= 0.5]
    if failed:
        return Verdict(
            *facts,
            NOT_SUPPORTED,
            here,
            f"not more than half pass with the {' and the '.join(failed)}",
        )
    if np.isnan([list(ends.values()) for ends in tricks.values()]).any():
        return Verdict(
            *facts, NOT_TESTABLE, here, "no unreadable test images to find out what else passes"
        )
    alike = [
        trick
        for trick, ends in tricks.items()
        if all(ends[judge] >= ours[judge]["low"] for judge in judges)
    ]
    if alike:
        return Verdict(
            *facts,
            NOT_TESTABLE,
            here,
            f"the judges may pass as often what restores nothing: {', '.join(alike)}",
        )
    return Verdict(
        *facts,
        SUPPORTED,
        here,
        "with both judges; as another eye's photograph shows, no proof of a restoration",
    )


def table(verdicts):
    """The verdicts for a reader: a row per claim; verdict, the paper's numbers, ours, what decides."""
    rows = [(f"**{each.verdict}**", each.paper, each.here, each.because) for each in verdicts]
    index = [f"{each.claim}: {each.says}" for each in verdicts]
    return pd.DataFrame(rows, columns=["verdict", "the paper", "here", "because"], index=index)


def _head(metric):
    return SHOWN[metric][0].removesuffix(" / dB")


def _difference(metric, found):
    return interval(*found[:3], SHOWN[metric][1])


def _score(score):
    return f"{score.psnr:.2f} dB, {score.ssim:.3f}, {score.lpips:.3f}"


def _row(row):
    return {"n": row.n, "share": row.passed, "low": row.passed_low, "high": row.passed_high}


def _share(found):
    """A share of n images with its interval, in per cent; n/a of none."""
    return (
        f"{found['share']:.0%} [{found['low']:.0%}, {found['high']:.0%}]" if found["n"] else "n/a"
    )


def _once(*groups):
    """What must be said where a method was trained once."""
    return (
        "; one training each, so other seeds may say otherwise"
        if min(map(len, groups)) == 1
        else ""
    )

"""Comparisons: what can be told apart in a study, and what cannot.

Defines `scores`, which reads {name: [Run, ...]} as {method: [scores per image of seed 0, 1, ...]}; `study`, all its numbers;
`compare`, `verdict` and `told`, who is better and whether an order is seen; `spread`, configurations against seeds; `findings`,
`spread_in_words` and `certainty` say so in words.

Two uncertainties stand side by side: the interval resamples the test images (other eyes, the same trained models), the
standard deviation is that over seeds (other trainings, the same eyes). Nothing here needs torch.
"""

from math import comb

import numpy as np
import pandas as pd
from scipy.special import fdtrc

from rr.io import InputError
from rr.studies import METHODS
from rr.tables import RUNGS, SHOWN, bootstrap

SAME, OTHER, UNCLEAR = "the same order", "another order", "cannot be told apart"  # verdicts
ONCE = ", in one training each"  # of a verdict that other seeds might change


def scores(runs):
    """{method: [scores per image of seed 0, 1, ...]} of {name: [Run, ...]}: the rungs (once), then the configurations.

    Raises InputError if doing nothing, or the population mean, does not score the same in every run: then these did not
    restore the same images.
    """
    every = [run for group in runs.values() for run in group]
    rungs = {rung: [_scores(run, rung) for run in every] for rung in RUNGS}
    for rung, (first, *others) in rungs.items():
        for run, other in zip(every[1:], others):
            if not np.allclose(first, other, rtol=1e-4, atol=1e-4, equal_nan=True):  # devices differ in the last digits
                raise InputError(
                    f"{run.configuration}_{run.seed}: {rung} scores otherwise than in {every[0].configuration}_{every[0].seed}: "
                    "not the same degraded images; run `rr reproduce` again"
                )
    return {rung: tables[:1] for rung, tables in rungs.items()} | {
        name: [_scores(run, METHODS[-1]) for run in group] for name, group in runs.items()
    }


def study(scores, reference):
    """Everything about {method: [scores per image of each seed]}, long: one row per method and metric.

    n images; seeds (0: not trained); mean over images and seeds; sd of the means of the seeds (NaN below two); low, high:
    interval of the mean; difference (of the method and `reference`, paired over images) with its interval.
    """
    means = per_seed(scores).set_index(["method", "metric"])["mean"]
    rows = []
    for method, tables in scores.items():
        table, base = _mean(tables), _mean(scores[reference])
        for metric in table:
            seeds = 0 if method in RUNGS else len(tables)
            facts = {"method": method, "metric": metric, "n": int(table[metric].notna().sum()), "seeds": seeds}
            with np.errstate(invalid="ignore"):  # inf - inf
                facts["sd"] = means[method, metric].std(ddof=1) if seeds > 1 else np.nan
                facts |= dict(zip(("mean", "low", "high"), bootstrap(table[metric])))
                ends = ("difference", "difference_low", "difference_high")
                facts |= dict(zip(ends, bootstrap(_minus(table[metric], base[metric]))))
            rows.append(facts)
    columns = ["method", "metric", "n", "seeds", "mean", "sd", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows)[columns]


def per_seed(scores):
    """Mean over images of every run, long: method, seed, metric, mean."""
    return pd.DataFrame(
        {"method": method, "seed": seed, "metric": metric, "mean": values.mean()}
        for method, tables in scores.items() for seed, table in enumerate(tables) for metric, values in table.items()
    )  # fmt: skip


def compare(a, b, metric, pairs=1):
    """How much better (also in LPIPS: positive) method a is than b: (difference, low, high, sign).

    a, b: scores per image of each seed. The interval over images is widened so that `pairs` of them hold together in
    95 %. sign: 1 or -1 where that interval leaves zero out and no seed of one reaches a seed of the other, else 0.
    """
    way = -1 if metric.startswith("lpips") else 1
    with np.errstate(invalid="ignore"):
        values = bootstrap(way * _minus(_mean(a)[metric], _mean(b)[metric]), 1 - 0.05 / pairs)
    one, two = (way * np.array([table[metric].mean() for table in tables]) for tables in (a, b))
    return *values, int(values[1] > 0 and min(one) > max(two)) - int(values[2] < 0 and max(one) < min(two))


def verdict(scores, pairs, metric):
    """Is an order seen, [(better, worse), ...]: (word, pair, (difference, low, high)) with the pair that speaks least for it.

    word: SAME if the first of every pair is better, OTHER if that of one is worse (with one seed + ONCE), else UNCLEAR;
    "n/a" without numbers.
    """
    found = {pair: compare(*(scores[name] for name in pair), metric, len(pairs)) for pair in pairs}
    pair = min(found, key=lambda each: found[each][0])
    signs = [each[-1] for each in found.values()]
    word = "n/a" if np.isnan(found[pair][0]) else OTHER if -1 in signs else SAME if all(signs) else UNCLEAR
    if word in (SAME, OTHER) and max(len(scores[name]) for name in pair) == 1:
        word += ONCE
    return word, pair, found[pair][:3]


def told(scores, reference, metric):
    """Which methods are better and worse than `reference`, which are not told apart: {"better": [...], ...}; {} if n/a."""
    others = [name for name in scores if name != reference]
    found = {name: compare(scores[name], scores[reference], metric, len(others)) for name in others}
    if any(np.isnan(each[0]) for each in found.values()):
        return {}
    words = {"better": 1, "worse": -1, "not told apart": 0}
    return {word: [name for name in others if found[name][-1] == sign] for word, sign in words.items()}


def findings(scores, reference, metrics=("psnr", "ssim", "lpips")):
    """What a study tells, as Markdown: per metric who is told apart from `reference`, and the rows' spread against seeds."""
    seeds, lines = len(scores[reference]), []
    for metric in metrics:
        groups = told(scores, reference, metric)
        if not groups:
            lines.append(f"* {SHOWN[metric][0]}: n/a.")
            continue
        words = "; ".join(f"{word}: {', '.join(names) or 'none'}" for word, names in groups.items())
        lines.append(f"* {SHOWN[metric][0]}, against {reference}: {words}. {spread_in_words(scores, metric)}")
    return "\n".join(lines) + f"\n\n{certainty(seeds)}"


def certainty(seeds):
    """How much the seeds can say, in a sentence."""
    if seeds == 1:
        return ("One seed per configuration: the intervals speak of other images for these very trainings. Whether another "
                "seed would change a row, or the order, cannot be said.")  # fmt: skip
    return (f"{seeds} seeds per configuration. Told apart means: the interval of the paired difference (95 % for all pairs "
            f"together) leaves zero out, and no seed of one reaches a seed of the other; seeds of two equally good "
            f"configurations fall apart like that by chance in {100 * chance(seeds):.1f} % of the cases.")  # fmt: skip


def chance(seeds):
    """How often the seeds of two equally good methods fall apart by chance: both orders, of all that are possible."""
    return 2 / comb(2 * seeds, seeds)


def spread(scores, metric):
    """Do configurations differ more than seeds do? (sd of their means, sd that seeds alone would give these, p of the F test).

    p is the chance of such a spread, or a larger one, if the configuration had no effect (one-way analysis of variance
    over seeds). NaN for what one seed, n/a or a perfect image cannot say.
    """
    values = np.array([[table[metric].mean() for table in tables] for name, tables in scores.items() if name not in RUNGS])
    k, seeds = values.shape
    if not np.isfinite(values).all():
        return (np.nan,) * 3
    found = values.mean(1).std(ddof=1)
    if seeds == 1:
        return found, np.nan, np.nan
    noise = np.sqrt(values.var(1, ddof=1).mean() / seeds)
    return found, noise, fdtrc(k - 1, k * (seeds - 1), (found / noise) ** 2) if noise else np.nan


def spread_in_words(scores, metric):
    """`spread` as a sentence."""
    found, noise, p = spread(scores, metric)
    if np.isnan(found):
        return ""
    unit, digits = (" dB", 3) if metric.startswith("psnr") else ("", 4)
    words = f"The means of the trained rows spread by {found:.{digits}f}{unit} (standard deviation)"
    if np.isnan(p):
        return f"{words}."
    judged = "more than seeds explain" if p < 0.05 else "no more than seeds explain"
    return f"{words}; seeds alone would spread them by {noise:.{digits}f}{unit} (F test: p = {p:.2g}): {judged}."


def _scores(run, method):
    return run.scores[run.scores.method == method].set_index("image").drop(columns="method")


def _mean(tables):
    return sum(tables) / len(tables)


def _minus(a, b):
    """a - b per image; 0 where both are equal, also if infinite (two perfect copies)."""
    return (a - b).mask(a == b, 0.0)

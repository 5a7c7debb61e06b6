"""Comparisons: what can be told apart in a study, and what cannot.

Defines `scores`, which reads {name: [Run, ...]} as {method: [scores per image of seed 0, 1, ...]}; `study`, all its numbers;
`compare`, `verdict` and `told`, who is better and whether an order is seen; `spread`, configurations against trainings;
`effects` and `attribution`, which factor of a factorial does it; `numbers`, what a result file keeps of these; `findings`,
`conclusion`, `spread_in_words` and `certainty` say so in words.

Seeds are blocks: seed s gives every configuration the same initial weights where shapes agree, the same batches and
degradations. So every difference is paired by seed, and what all configurations of a seed have in common drops out of it.
Two uncertainties stand side by side: over test images (other eyes, the same trained models), and over seeds (other
trainings, the same eyes). Nothing here needs torch.
"""

from itertools import permutations

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtrit

from rr.errors import InputError
from rr.evaluate.tables import RUNGS, SHOWN, best, bootstrap
from rr.studies import METHODS

METRICS = ("psnr", "ssim", "lpips")  # those that are judged
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
            if not np.allclose(
                first, other, rtol=1e-4, atol=1e-4, equal_nan=True
            ):  # devices differ in the last digits
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
    interval of the mean; difference (of the method and `reference`, paired over images) with its interval, and the sd of
    its means of the seeds, paired by seed. The intervals are plain 95 % ones over images.
    """
    means = per_seed(scores).set_index(["method", "metric"])["mean"]
    rows = []
    for method, tables in scores.items():
        table, base = _mean(tables), _mean(scores[reference])
        for metric in table:
            seeds = 0 if method in RUNGS else len(tables)
            facts = {
                "method": method,
                "metric": metric,
                "n": int(table[metric].notna().sum()),
                "seeds": seeds,
            }
            with np.errstate(invalid="ignore"):  # inf - inf
                facts["sd"] = means[method, metric].std(ddof=1) if seeds > 1 else np.nan
                facts |= dict(zip(("mean", "low", "high"), bootstrap(table[metric])))
                ends = ("difference", "difference_low", "difference_high")
                facts |= dict(zip(ends, bootstrap(_minus(table[metric], base[metric]))))
                by_seed = _by_seed(tables, scores[reference], metric)
                facts["difference_sd"] = by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan
            rows.append(facts)
    columns = [
        "mean",
        "sd",
        "low",
        "high",
        "difference",
        "difference_sd",
        "difference_low",
        "difference_high",
    ]
    return pd.DataFrame(rows)[["method", "metric", "n", "seeds", *columns]]


def per_seed(scores):
    """Mean over images of every run, long: method, seed, metric, mean."""
    return pd.DataFrame(
        {"method": method, "seed": seed, "metric": metric, "mean": values.mean()}
        for method, tables in scores.items() for seed, table in enumerate(tables) for metric, values in table.items()
    )  # fmt: skip


def compare(a, b, metric, pairs=1):
    """How much better (also in LPIPS: positive) method a is than b: (difference, low, high, sign).

    a, b: scores per image of each seed. low, high: interval over images of the difference, its mean over seeds. sign: 1 or -1
    where that interval leaves zero out and, with two seeds or more, so does Student's interval of the differences of the
    seeds; else 0. Both are widened so that `pairs` of them hold together in 95 %. A difference that is 0 in the digits a
    reader sees is none.
    """
    way, level = -1 if metric.startswith("lpips") else 1, 1 - 0.05 / pairs
    with np.errstate(invalid="ignore"):  # inf - inf
        difference, low, high = bootstrap(way * _minus(_mean(a)[metric], _mean(b)[metric]), level)
        least, most = _student(way * _by_seed(a, b, metric), level)
    seen = round(difference, SHOWN[metric][1] if metric in SHOWN else 3) != 0
    return difference, low, high, seen * (int(low > 0 and least > 0) - int(high < 0 and most < 0))


def verdict(scores, pairs, metric):
    """Is an order seen, [(better, worse), ...]: (word, pair, (difference, low, high)) with the pair that decides.

    word: SAME if the first of every pair is better, OTHER if that of one is worse (with one seed + ONCE), else UNCLEAR;
    "n/a" if a pair has no numbers. Of the pairs that make it so, the one with the smallest difference is given.
    """
    found = {pair: compare(*(scores[name] for name in pair), metric, len(pairs)) for pair in pairs}
    if unknown := [pair for pair in pairs if np.isnan(found[pair][0])]:
        return "n/a", unknown[0], found[unknown[0]][:3]
    sign = min(each[-1] for each in found.values())
    pair = min((pair for pair in pairs if found[pair][-1] == sign), key=lambda each: found[each][0])
    word = {1: SAME, 0: UNCLEAR, -1: OTHER}[sign]
    if sign and max(len(scores[name]) for name in pair) == 1:
        word += ONCE
    return word, pair, found[pair][:3]


def told(scores, reference, metric):
    """Which methods are better and worse than `reference`, which are not told apart: {"better": [...], ...}; {} if n/a."""
    others = [name for name in scores if name != reference]
    found = {name: compare(scores[name], scores[reference], metric, len(others)) for name in others}
    if any(np.isnan(each[0]) for each in found.values()):
        return {}
    words = {"better": 1, "worse": -1, "not told apart": 0}
    return {
        word: [name for name in others if found[name][-1] == sign] for word, sign in words.items()
    }


def spread(scores, metric):
    """Do configurations differ more than trainings do? (sd of their means, sd from chance alone, p of the F test).

    Randomized blocks (two-way analysis of variance without interaction): the seeds' common effect is taken off, chance is the
    residual. p is the chance of such a spread, or a larger one, if the configuration had no effect. NaN for what one seed,
    n/a or a perfect image cannot say.
    """
    values = np.array(
        [
            [table[metric].mean() for table in tables]
            for name, tables in scores.items()
            if name not in RUNGS
        ]
    )
    k, seeds = values.shape
    if not np.isfinite(values).all():
        return (np.nan,) * 3
    found = values.mean(1).std(ddof=1)
    if seeds == 1:
        return found, np.nan, np.nan
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (k - 1) * (seeds - 1)
    noise = np.sqrt((residual**2).sum() / freedom / seeds)
    return (
        found,
        noise,
        np.nan if np.allclose(residual, 0) else fdtrc(k - 1, freedom, (found / noise) ** 2),
    )


def numbers(scores, study, reference):
    """What a result file keeps of a study: the rows that are shown, who is told apart from `reference`, the spread."""
    return {
        "rows": study[study.metric.isin(SHOWN)].to_dict("records"),
        "told_apart": {metric: told(scores, reference, metric) for metric in METRICS},
        "spread": {metric: spread(scores, metric) for metric in METRICS},
    }


def findings(scores, reference):
    """What a study tells, as Markdown: per metric who is told apart from `reference`, and the rows' spread against chance."""
    lines = []
    for metric in METRICS:
        apart = told_in_words(scores, reference, metric)
        words = (
            f", against {reference}: {apart}. {spread_in_words(scores, metric)}"
            if apart
            else ": n/a."
        )
        lines.append(f"* {SHOWN[metric][0]}{words}")
    return "\n".join(lines) + f"\n\n{certainty(len(scores[reference]), len(scores) - 1)}"


def conclusion(scores, study, reference):
    """A study in short: the best rows, who is told apart from `reference` in PSNR, and how much the seeds can say."""
    first = "; ".join(f"in {SHOWN[metric][0].removesuffix(' / dB')}: {' and '.join(best(study, metric)) or 'n/a'}"
                      for metric in METRICS)  # fmt: skip
    return (f"Best {first}. Against {reference} in PSNR, {told_in_words(scores, reference, 'psnr')}. "
            f"{spread_in_words(scores, 'psnr')} {certainty(len(scores[reference]), len(scores) - 1)}")  # fmt: skip


def told_in_words(scores, reference, metric):
    """`told` as half a sentence, empty if n/a."""
    return "; ".join(
        f"{word}: {', '.join(names) or 'none'}"
        for word, names in told(scores, reference, metric).items()
    )


def certainty(seeds, pairs):
    """How much so many seeds can say about so many pairs, in a few sentences."""
    if seeds == 1:
        return ("One seed per configuration: the intervals speak of other images for these very trainings. Whether another "
                "seed would change a row, or the order, cannot be said.")  # fmt: skip
    more = [each for each in (5, 10) if each > seeds]
    return (
        f"{seeds} seeds per configuration, paired: a seed gives all configurations the same batches and degradations. Told apart "
        "means: two intervals of the paired difference, each 95 % for all pairs together, leave zero out, the one over images "
        f"and the one over seeds (Student's t). For the latter, with {pairs} pairs, the mean difference must exceed "
        f"{needed(seeds, pairs):.1f} times the standard deviation of the differences of the seeds"
        + (", which is rare: not told apart does not mean equal" if seeds < 4 else "")
        + "".join(f"; with {each} seeds, {needed(each, pairs):.1f} times" for each in more) + "."
    )  # fmt: skip


def needed(seeds, pairs):
    """How many standard deviations over seeds a paired difference must have for one of so many pairs to be told apart."""
    return stdtrit(seeds - 1, 1 - 0.025 / pairs) / np.sqrt(seeds)


def spread_in_words(scores, metric):
    """`spread` as a sentence."""
    found, noise, p = spread(scores, metric)
    if np.isnan(found):
        return ""
    unit, digits = (" dB", 3) if metric.startswith("psnr") else ("", 4)
    words = f"The means of the trained rows spread by {found:.{digits}f}{unit} (standard deviation)"
    if np.isnan(p):
        return f"{words}."
    judged = "more than chance explains" if p < 0.05 else "no more than chance explains"
    return (f"{words}; chance in the trainings alone would spread them by {noise:.{digits}f}{unit} (rows and seeds taken off; "
            f"F test: p = {p:.2g}): {judged}.")  # fmt: skip


def _scores(run, method):
    return run.scores[run.scores.method == method].set_index("image").drop(columns="method")


def _mean(tables):
    return sum(tables) / len(tables)


def _minus(a, b):
    """a - b per image; 0 where both are equal, also if infinite (two perfect copies)."""
    return (a - b).mask(a == b, 0.0)


def _by_seed(a, b, metric):
    """Mean over images of a - b for each seed, paired; what was not trained is the same in every seed."""
    seeds = max(len(a), len(b))
    a, b = (tables * seeds if len(tables) == 1 else tables for tables in (a, b))
    return np.array(
        [_minus(one[metric], two[metric]).mean() for one, two in zip(a, b, strict=True)]
    )


def _student(values, level):
    """Student's t interval of the mean of one value per seed: (low, high); NaN if some of them are infinite."""
    if len(values) == 1 or (values == values[0]).all():  # also all infinite
        return values[0], values[0]
    half = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


# -------------------------------------------------------------------------------------------------------- factorials


def effects(cells, factors, metric="psnr"):
    """Main effects of a full factorial, one row per factor and level beside its first: factor, better, worse, difference,
    low, high, sign.

    cells: {(level of each factor): [scores per image of each seed]}; factors: {name: levels}. The difference is that of the
    means over all cells with either level, paired over images and seeds; interval and sign as of `compare`, for all rows
    together.
    """
    rows = [
        (place, name, levels[0], other)
        for place, (name, levels) in enumerate(factors.items())
        for other in levels[1:]
    ]
    table = []
    for place, name, first, other in rows:
        a, b = (
            _together([each for key, each in cells.items() if key[place] == level])
            for level in (first, other)
        )
        found = zip(("difference", "low", "high", "sign"), compare(a, b, metric, len(rows)))
        table.append({"factor": name, "better": first, "worse": other, **dict(found)})
    return pd.DataFrame(table)


def attribution(cells, factors, worst, best, metric="psnr"):
    """Which factor makes the difference between two corners of a factorial: a row per factor, and their sum: factor,
    difference, low, high, sign.

    A factor's share is the gain of changing it from its level in `worst` to that in `best`, averaged over all orders in which
    the factors can be changed (Shapley 1953): shares add up to the difference whatever the interactions are.
    """
    names, orders = list(factors), list(permutations(range(len(factors))))
    shares = {name: [0.0] * len(cells[tuple(worst)]) for name in names}
    for order in orders:
        at = list(worst)
        for place in order:
            before, at[place] = cells[tuple(at)], best[place]
            gain = [
                _minus(new[metric], old[metric]) / len(orders)
                for new, old in zip(cells[tuple(at)], before, strict=True)
            ]
            shares[names[place]] = [share + more for share, more in zip(shares[names[place]], gain)]
    shares["all"] = [sum(parts) for parts in zip(*shares.values())]
    table = []
    for name, share in shares.items():
        gains = [pd.DataFrame({metric: each}) for each in share]
        found = compare(gains, [each * 0 for each in gains], metric, len(shares))
        table.append({"factor": name, **dict(zip(("difference", "low", "high", "sign"), found))})
    return pd.DataFrame(table)


def _together(cells):
    """Scores per image of each seed, averaged over cells."""
    return [_mean(tables) for tables in zip(*cells, strict=True)]

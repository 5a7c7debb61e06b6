"""Statistics of a study: means over images, paired differences, and which differences are
significant.

Scores are {method: [table of seed 0, 1, ...]}, each table with a row per image and a column per
metric. A seed is a block: it gives every configuration the same initial weights where shapes agree,
the same batches and the same degradations. Therefore differences are paired by image and by seed.
Two uncertainties are kept apart: other images with the same trained models, and other trainings on
the same images. With fewer than SEEDS trainings the second is unknown, and no difference is called
significant. The column `variation` (see metrics.variation) has one value per table, and NaN for the
baselines. A configuration is collapsed if it is below COLLAPSED in any of its trainings; then no
difference is tested either. Nothing here needs torch.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtrit

from rr.errors import InputError
from rr.studies import METHODS

METRICS = ("psnr", "ssim", "lpips")  # those that are compared
BASELINES = METHODS[:-1]  # methods that need no training
# Digits that a reader sees
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "psnr_fov": 2, "psnr_disc": 2, "variation": 2}
# The differences between restored eyes are less than half of those between the references: scores
# of such images mostly measure the picture that they have in common.
COLLAPSED = 0.5
SEEDS = 3  # trainings of a configuration that a comparison needs
BETTER, WORSE, UNCLEAR = "better", "worse", "not distinguishable"
NOT_TESTED, NOT_AVAILABLE = f"fewer than {SEEDS} trainings: not tested", "n/a"
NO_VARIATION = "not testable (collapsed)"


class Comparison(NamedTuple):
    """How much better method a is than method b. A positive difference is better, also in LPIPS."""

    difference: float
    low: float  # interval over images
    high: float
    verdict: str  # BETTER, WORSE, UNCLEAR, NOT_TESTED, NO_VARIATION or NOT_AVAILABLE


class Interval(NamedTuple):
    """A mean over images with its interval."""

    mean: float
    low: float
    high: float


def bootstrap(values, level=0.95, n=2000, seed=0):
    """Mean over images and its percentile-bootstrap interval, as an Interval.

    `values` holds one number per image. NaN is left out. Without any value all three are NaN.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    means = values[_draws(len(values), n, seed)].mean(axis=1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(values.mean()), float(low), float(high))


def wilson(share, n, z=1.96):
    """Wilson's 95 % interval (low, high) of a share of n images, which may be a mean over seeds."""
    centre = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


@lru_cache(maxsize=2)
def _draws(images, n, seed):
    """n samples of as many images, drawn with replacement: (n, images)."""
    return np.random.default_rng(seed).integers(images, size=(n, images))


def scores(runs):
    """Scores of {name: [Run, ...]}: the baselines once, then one entry per name.

    Raises InputError if a baseline does not score the same in every run, because then the runs
    restored different images.
    """
    all_runs = [run for group in runs.values() for run in group]
    tables = {method: [_of_method(run, method) for run in all_runs] for method in BASELINES}
    for method, (first, *rest) in tables.items():
        for run, table in zip(all_runs[1:], rest):
            if not np.allclose(first, table, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise InputError(
                    f"{run.configuration}_{run.seed}: {method} has other scores than in "
                    f"{all_runs[0].configuration}_{all_runs[0].seed}, so the degraded images "
                    "differ; run `rr reproduce` again"
                )
    baselines, ours = {method: group[:1] for method, group in tables.items()}, METHODS[-1]
    trained = {
        name: [_of_method(run, ours, run.numbers["variation"][ours]) for run in group]
        for name, group in runs.items()
    }
    return baselines | trained


def collapsed(tables):
    """Whether the restorations of one of these tables are nearly the same picture for every eye."""
    return any((table["variation"] < COLLAPSED).any() for table in tables)


def _of_method(run, method, variation=None):
    table = run.scores[run.scores.method == method].set_index("image").drop(columns="method")
    return table.assign(variation=np.float64(variation))  # NaN for None


def study(scores, reference):
    """All numbers of a study: one row per method and metric.

    Columns: n (images), seeds (0 for a baseline), mean, sd of the means of the seeds (NaN below two
    seeds), the interval low, high of the mean, and the same for the difference between the method
    and `reference`, paired by image and seed; collapsed (never a baseline).
    """
    rows = []
    for method, tables in scores.items():
        table, base = mean_over_seeds(tables), mean_over_seeds(scores[reference])
        for metric in table:
            mean, low, high = bootstrap(table[metric])
            difference = bootstrap(table[metric] - base[metric])
            row = {
                "method": method,
                "metric": metric,
                "n": int(table[metric].notna().sum()),
                "seeds": 0 if method in BASELINES else len(tables),
                "mean": mean,
                "sd": _sd(np.array([values[metric].mean() for values in tables])),
                "low": low,
                "high": high,
                "difference": difference[0],
                "difference_sd": _sd(_by_seed(tables, scores[reference], metric)),
                "difference_low": difference[1],
                "difference_high": difference[2],
                "collapsed": method not in BASELINES and collapsed(tables),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def per_seed(scores):
    """The mean over images of every run: one row per method, seed and metric."""
    return pd.DataFrame(
        {"method": method, "seed": seed, "metric": metric, "mean": values.mean()}
        for method, tables in scores.items()
        for seed, table in enumerate(tables)
        for metric, values in table.items()
    )


def compare(a, b, metric, pairs=1):
    """The Comparison of two methods, each a list of scores per image of every seed.

    It is BETTER or WORSE if two intervals of the paired difference exclude zero: the bootstrap
    interval over images, and Student's t interval over seeds. Both are widened so that `pairs`
    comparisons hold together with 95 % (Bonferroni). A difference that is zero in the digits of
    DIGITS is UNCLEAR.
    """
    way, level = -1 if metric.startswith("lpips") else 1, 1 - 0.05 / pairs
    difference, low, high = bootstrap(
        way * (mean_over_seeds(a)[metric] - mean_over_seeds(b)[metric]), level
    )
    if np.isnan(difference):
        return Comparison(difference, low, high, NOT_AVAILABLE)
    if collapsed([*a, *b]):
        return Comparison(difference, low, high, NO_VARIATION)
    if max(len(a), len(b)) < SEEDS:
        return Comparison(difference, low, high, NOT_TESTED)
    least, most = _student(way * _by_seed(a, b, metric), level)
    verdict = UNCLEAR
    if round(difference, DIGITS.get(metric, 3)) != 0:
        if low > 0 and least > 0:
            verdict = BETTER
        elif high < 0 and most < 0:
            verdict = WORSE
    return Comparison(difference, low, high, verdict)


def compare_order(scores, pairs, metric):
    """Whether methods stand in the order [(better, worse), ...]: (the pair that decides, its
    Comparison).

    The Comparison is BETTER only if it is BETTER for every pair. Otherwise it is the worst outcome
    of a pair. Among pairs with this outcome the one with the smallest difference is given.
    """
    outcomes = {
        pair: compare(*(scores[name] for name in pair), metric, len(pairs)) for pair in pairs
    }
    rank = (NOT_AVAILABLE, NO_VARIATION, NOT_TESTED, WORSE, UNCLEAR, BETTER)
    return min(
        outcomes.items(),
        key=lambda item: (rank.index(item[1].verdict), np.nan_to_num(item[1].difference)),
    )


def compare_all(scores, reference, metric):
    """{method: its Comparison with `reference`}, corrected for the number of methods."""
    names = [name for name in scores if name != reference]
    return {name: compare(scores[name], scores[reference], metric, len(names)) for name in names}


def spread(scores, metric):
    """Do configurations differ more than trainings do? (sd of their means, sd by chance alone, p of
    the F test).

    This is a two-way analysis of variance without interaction (randomized blocks): the common
    effect of a seed is removed, and chance is the residual. p is the probability of such a spread,
    or a larger one, if the configuration had no effect. A value is NaN where one seed, n/a or
    (p only) a collapsed configuration cannot give it.
    """
    trained = [tables for name, tables in scores.items() if name not in BASELINES]
    values = np.array([[table[metric].mean() for table in tables] for tables in trained])
    k, seeds = values.shape
    if np.isnan(values).any():
        return (np.nan,) * 3
    sd = values.mean(1).std(ddof=1)
    if seeds == 1:
        return sd, np.nan, np.nan
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (k - 1) * (seeds - 1)
    chance = np.sqrt((residual**2).sum() / freedom / seeds)
    untestable = np.allclose(residual, 0) or any(map(collapsed, trained))
    return sd, chance, np.nan if untestable else fdtrc(k - 1, freedom, (sd / chance) ** 2)


def needed(seeds, pairs):
    """How many standard deviations over seeds a paired difference must have to be significant among
    so many pairs.
    """
    return stdtrit(seeds - 1, 1 - 0.025 / pairs) / np.sqrt(seeds)


def numbers(scores, study, reference):
    """What a result file keeps of a study: rows, comparisons with `reference`, spread."""
    return {
        "rows": study[study.metric.isin(DIGITS)].to_dict("records"),
        "compared": {
            metric: {
                name: comparison._asdict()
                for name, comparison in compare_all(scores, reference, metric).items()
            }
            for metric in METRICS
        },
        "spread": {metric: spread(scores, metric) for metric in METRICS},
    }


def mean_over_seeds(tables):
    return sum(tables) / len(tables)


def _by_seed(a, b, metric):
    """The mean over images of a - b for each seed, paired. A method without training is the same
    for every seed.
    """
    seeds = max(len(a), len(b))
    a, b = (tables * seeds if len(tables) == 1 else tables for tables in (a, b))
    pairs = zip(a, b, strict=True)
    return np.array([(first[metric] - second[metric]).mean() for first, second in pairs])


def _sd(values):
    return values.std(ddof=1) if len(values) > 1 else np.nan


def _student(values, level):
    """Student's t interval of the mean of one value per seed: (low, high)."""
    half = stdtrit(len(values) - 1, (1 + level) / 2) * _sd(values) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half

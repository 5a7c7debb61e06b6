"""Sentences about a study: who is better, and what so many trainings can say. Nothing here needs
torch.
"""

import numpy as np

from rr.evaluate.statistics import (
    BETTER,
    METRICS,
    NO_VARIATION,
    SEEDS,
    UNCLEAR,
    WORSE,
    collapsed,
    compare_all,
    needed,
    spread,
)
from rr.evaluate.tables import best, interval, number, short, trainings, untested

ANSWERS = {BETTER: "yes", WORSE: "no, worse"}  # to a claim that one method is better


def findings(scores, reference):
    """Which configurations are better or worse than `reference`: one line per metric."""
    seeds = len(scores[reference])
    if seeds < SEEDS:
        return untested(seeds)
    lines = []
    for metric in METRICS:
        line = _compared(scores, reference, metric)
        lines.append(
            f"* {short(metric)}: {f'{line}. {spread_sentence(scores, metric)}' if line else 'n/a.'}"
        )
    return "\n".join(lines) + f"\n\n{certainty(seeds, len(scores) - 1)}"


def conclusion(scores, study, reference):
    """A study in three sentences: the range or the best rows, the comparison in PSNR, and what the
    seeds can say.
    """
    seeds = len(scores[reference])
    means = study[(study.metric == "psnr") & (study.seeds > 0)]["mean"]
    if seeds < SEEDS:
        low, high = (number(value, 2) for value in (means.min(), means.max()))
        return f"The trained rows lie between {low} and {high} dB. {trainings(study)}"
    winners = "; ".join(f"{short(m)}: {' and '.join(best(study, m)) or 'n/a'}" for m in METRICS)
    return (
        f"The best rows are, in {winners}. In PSNR, {_compared(scores, reference, 'psnr')}. "
        f"{spread_sentence(scores, 'psnr')} {trainings(study)} {certainty(seeds, len(scores) - 1)}"
    )


def _compared(scores, reference, metric):
    """Half a sentence that lists who is better, worse and not distinguishable from `reference`;
    empty if n/a.
    """
    outcomes = compare_all(scores, reference, metric)
    names = {
        verdict: [name for name, outcome in outcomes.items() if outcome.verdict == verdict]
        for verdict in (BETTER, WORSE, UNCLEAR, NO_VARIATION)
    }
    if sum(map(len, names.values())) < len(outcomes):
        return ""
    lists = "; ".join(f"{verdict}: {', '.join(group)}" for verdict, group in names.items() if group)
    return f"compared with {reference}, {lists}"


def certainty(seeds, pairs):
    """What so many seeds can say about so many pairs."""
    if seeds < SEEDS:
        return untested(seeds)
    more = [n for n in (5, 10) if n > seeds]
    return (
        f"There are {seeds} seeds per configuration. A difference is called better or worse if two "
        "intervals exclude zero: one over images and one over seeds. With "
        f"{pairs} pairs, the mean difference must exceed "
        f"{needed(seeds, pairs):.1f} standard deviations over seeds"
        + "".join(f" ({needed(n, pairs):.1f} with {n} seeds)" for n in more)
        + ". Rows that are not distinguishable may still differ."
    )


def spread_sentence(scores, metric):
    """`spread` as a sentence; empty if it is not known."""
    sd, chance, p = spread(scores, metric)
    if np.isnan(sd):
        return ""
    unit, digits = (" dB", 3) if metric.startswith("psnr") else ("", 4)
    sentence = f"The means of the trained rows have a standard deviation of {sd:.{digits}f}{unit}"
    if any(map(collapsed, scores.values())):
        return f"{sentence}: {NO_VARIATION}."
    if np.isnan(p):
        return f"{sentence}."
    relation = "more than" if p < 0.05 else "not more than"
    return (
        f"{sentence}, and {chance:.{digits}f}{unit} by chance alone (F test, p = {p:.2g}): the "
        f"configurations differ by {relation} chance explains."
    )


def answer(point, claim, comparison, words=ANSWERS):
    """One row of notebook 10's table: point, claim, answer, difference, low, high (dB).

    comparison: a Comparison, or a row with the same columns. words: {verdict: answer}; another
    verdict is its own answer.
    """
    verdict = comparison.verdict
    row = {"point": point, "claim": claim, "answer": words.get(verdict, verdict)}
    return row | {end: getattr(comparison, end) for end in ("difference", "low", "high")}


def answers(rows):
    """Rows of `answer` as sentences."""
    return " ".join(
        f"{row['claim']}: {row['answer']}, "
        f"{interval(row['difference'], row['low'], row['high'])} dB."
        for row in rows
    )

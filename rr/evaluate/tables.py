"""Tables for a reader: means with their uncertainty as strings, in CSV, Markdown and LaTeX, and
sentences about a study.

A study is the table of `rr.evaluate.statistics.study`. Nothing here needs torch.
"""

import re

import numpy as np
import pandas as pd

from rr.evaluate.statistics import BASELINES, COLLAPSED, DIGITS, METRICS, SEEDS
from rr.files import write_table, write_text

HEADS = {  # metric: the head of its column
    "psnr": "PSNR / dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "psnr_fov": "PSNR in FOV",
    "psnr_disc": "PSNR at disc",
}
MARK = {True: " (collapsed)", False: ""}  # behind the name of a row
SYMBOLS = {
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}  # in LaTeX


def text(table):
    """The same table as strings: dB with two digits, other numbers with four, NaN as "n/a"."""
    columns = {
        name: [number(value, 2 if name.startswith("psnr") else 4) for value in column]
        for name, column in table.items()
    }
    return pd.DataFrame(columns, index=table.index)


# ---------------------------------------------------------------------------------- a study


def labels(study):
    """{method: its name in tables and figures}, which says whether it is collapsed."""
    return dict(zip(study.method, study.method + study.collapsed.map(MARK)))


def variation(study):
    """The variation of each method as a string, "–" for the baselines of a study."""
    rows = study[study.metric == "variation"].set_index("method")
    cells = [mean_sd(row["mean"], row.sd, DIGITS["variation"]) for _, row in rows.iterrows()]
    return pd.Series(cells, rows.index, dtype=str).replace("n/a", "–")


def best(study, metric):
    """The configurations with the best mean in the digits that are shown. The list is empty if the
    metric is n/a. Collapsed rows are never the best.
    """
    means = _displayed(study[(study.seeds > 0) & ~study.collapsed], metric)
    return list(means.index[means == means.max()])


def above(study, metric):
    """The baselines that score better than every configuration, in the digits that are shown."""
    baselines = _displayed(study[study.seeds == 0], metric)
    return list(baselines.index[baselines > _displayed(study[study.seeds > 0], metric).max()])


def _displayed(rows, metric):
    """Means with the digits that are shown, by method; the sign is such that more is better."""
    means = rows[rows.metric == metric].set_index("method")["mean"].dropna()
    return means.round(DIGITS[metric]) * (-1 if metric.startswith("lpips") else 1)


def shown(study, reference):
    """A study as strings: mean ± sd over seeds, the difference to `reference` in PSNR, and the
    variation. Collapsed rows are marked.

    The best configuration is bold if there are at least SEEDS trainings of each.
    """
    methods = list(dict.fromkeys(study.method))
    bold = study.seeds.max() >= SEEDS
    table = pd.DataFrame(index=methods)
    for metric, head in HEADS.items():
        rows = study[study.metric == metric].set_index("method").loc[methods]
        winners = best(study, metric) if bold else []
        cells = [mean_sd(row["mean"], row.sd, DIGITS[metric]) for _, row in rows.iterrows()]
        table[head] = [
            f"**{cell}**" if method in winners else cell for method, cell in zip(methods, cells)
        ]
    rows = study[study.metric == "psnr"].set_index("method").loc[methods]
    table[f"PSNR − {reference}"] = [
        "–"
        if method == reference
        else interval(row.difference, row.difference_low, row.difference_high)
        for method, row in rows.iterrows()
    ]
    seeds = [str(n) if n else "–" for n in rows.seeds]
    table = table.assign(variation=variation(study), n=[str(n) for n in rows.n], seeds=seeds)
    return table.rename(index=labels(study))


def caption(title, study, metadata, reference):
    """The sentences under a table of `shown`: which data, what the numbers and the intervals mean,
    which baselines lead.
    """
    at_disc = study[study.metric == "psnr_disc"].n.min()
    discs = "" if at_disc == metadata["n"] else f" ({at_disc} of them with a known disc)"
    leaders = {method: [m for m in HEADS if method in above(study, m)] for method in BASELINES}
    leading = "; ".join(
        f"{method} in {', '.join(map(short, metrics))}"
        for method, metrics in leaders.items()
        if metrics
    )
    seeds = metadata["seeds"]
    parts = [
        title,
        f"Data: {metadata['data']}; protocol: {metadata['protocol']}; preset {metadata['preset']}, "
        f"{metadata['size']} px; {metadata['n']} test images{discs}.",
        f"Values are means over images{f' and {seeds} seeds' if seeds > 1 else ''}"
        f"{'; ± is the standard deviation over seeds' if seeds > 1 else ''}. "
        "Less is better in LPIPS.",
        "The last difference is paired; its 95 % bootstrap interval is over images.",
        "Variation is the spread of the restorations between images over that of the references.",
    ]
    if seeds >= SEEDS:
        parts.append("The best trained row is bold.")
    if leading:
        parts.append(f"In these trainings, every trained row has a worse mean than: {leading}.")
    return " ".join([*parts, trainings(study)])


def trainings(study):
    """The sentences under every table: the standard deviation from training to training, that
    nothing is tested if there are too few, and which rows are collapsed.
    """
    seeds, sd = study.seeds.max(), study[study.metric == "psnr"].sd
    spread = np.sqrt((sd**2).mean())
    parts = [f"From training to training, PSNR has a standard deviation of {spread:.2f} dB."]
    if seeds < SEEDS:
        parts = [*parts[: seeds - 1], untested(seeds)]
    if names := list(dict.fromkeys(study.method[study.collapsed])):
        parts.append(
            f"These rows are collapsed: {'; '.join(names)}. They show nearly the same picture for "
            f"every eye (variation below {COLLAPSED} in a training), so nothing follows from them."
        )
    return " ".join(parts)


def paper_and_ours(claims):
    """The paper's numbers and ours as strings.

    claims: claim, row, collapsed, and of each metric paper_*, ours_*, ours_*_sd; NaN where the
    paper has none.
    """
    paper, ours = {}, {}
    for metric in METRICS:
        head, digits = HEADS[metric], DIGITS[metric]
        values = claims[f"paper_{metric}"]
        paper[f"paper: {head}"] = ["–" if np.isnan(v) else number(v, digits) for v in values]
        pairs = zip(claims[f"ours_{metric}"], claims[f"ours_{metric}_sd"])
        ours[f"ours: {head}"] = [mean_sd(mean, sd, digits) for mean, sd in pairs]
    marks = claims.collapsed.map(MARK)
    return pd.DataFrame(paper | ours, index=claims.claim + ": " + claims.row + marks)


def untested(seeds):
    """The sentence that stands under every table of so few trainings."""
    trainings = "one training" if seeds == 1 else f"{seeds} trainings"
    return (
        f"There is {trainings} per configuration: not tested. With fewer than {SEEDS}, another "
        "training may reverse any order of rows."
    )


# --------------------------------------------------------------------------------- strings


def number(value, digits, sign=""):
    """A number as a string, with a real minus sign; NaN is "n/a"."""
    if np.isnan(value):
        return "n/a"
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def mean_sd(mean, sd, digits):
    """ "mean ± sd", or the mean alone where the sd is NaN."""
    return number(mean, digits) + plus_minus(sd, digits)


def plus_minus(sd, digits):
    """ " ± sd", or nothing where the sd is NaN."""
    return "" if np.isnan(sd) else f" ± {number(sd, digits)}"


def interval(mean, low, high, digits=2, sign="+"):
    """ "mean [low, high]". A difference is signed; pass sign="" for other numbers."""
    mean, low, high = (number(value, digits, sign) for value in (mean, low, high))
    return mean if mean == "n/a" else f"{mean} [{low}, {high}]"


def short(metric):
    """The name of a metric without its unit."""
    return HEADS[metric].removesuffix(" / dB")


def markdown(table, caption=""):
    """A table of strings as Markdown. The index is the first column."""
    body = table.to_markdown(disable_numparse=True)
    return f"{body}\n\n{caption}\n" if caption else f"{body}\n"


def latex(table, caption, label):
    """The same as a LaTeX table (package booktabs). `**bold**` becomes \\textbf{bold}."""
    styler = table.style.format(escape="latex").format_index(escape="latex")
    styler = styler.format_index(escape="latex", axis=1)
    body = styler.to_latex(
        environment="table*",
        position_float="centering",
        hrules=True,
        column_format="l" + "r" * table.shape[1],
        caption=re.sub(r"([&%$#_{}])", r"\\\1", caption),
        label=f"tab:{label}",
    )
    body = re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", body)
    return body.translate(str.maketrans(SYMBOLS))


def write(folder, stem, numbers, table, caption):
    """folder/stem.csv (`numbers`, full precision), .md and .tex (`table`, strings for a reader)."""
    write_table(folder / f"{stem}.csv", numbers)
    write_text(folder / f"{stem}.md", markdown(table, caption))
    write_text(folder / f"{stem}.tex", latex(table, caption, stem))

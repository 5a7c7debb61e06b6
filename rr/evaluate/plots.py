"""Plots of numbers: curves, bars, intervals and matrices, each drawn from a table.

Every function returns a matplotlib Figure in the style of `rr.evaluate.figures`, which also saves
it. No function computes a result. Functions import seaborn themselves, because it imports
scipy.stats and most notebooks need neither.
"""

import matplotlib
import numpy as np

from rr.evaluate.figures import plt  # sets the style
from rr.evaluate.tables import labels
from rr.paper import LABELS

PALETTE = matplotlib.color_sequences["petroff10"]  # for colour-blind readers, too
COLOURS = dict(zip(LABELS, PALETTE))
AXES = {"psnr": "PSNR / dB", "ssim": "SSIM", "lpips": "LPIPS (less is better)"}
POINTS = {"fmt": "o", "ms": 4, "elinewidth": 0.8}  # a value with its interval
DOTS = {"marker": "o", "ls": "", "ms": 2.5, "mfc": "w", "mec": "k", "mew": 0.5, "zorder": 4}


def _panels(n, width, height, **options):
    """A figure with n panels side by side: (figure, list of axes)."""
    size = (n * width, height)
    figure, axes = plt.subplots(1, n, figsize=size, squeeze=False, layout="tight", **options)
    return figure, list(axes[0])


def _ends(rows, column, low="low", high="high"):
    """Lengths of the two halves of an error bar, (2, n)."""
    return [rows[column] - rows[low], rows[high] - rows[column]]


def _legend_below(figure, axis):
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)


# --------------------------------------------------------------------------------- the classifier


def confusion(report):
    """Four 2x2 matrices, one per label; rows are true, columns are predicted."""
    import seaborn as sns

    figure, axes = _panels(len(report), 1.8, 1.9)
    ticks = {"xticklabels": ("no", "yes"), "yticklabels": ("no", "yes")}
    for axis, row in zip(axes, report.itertuples()):
        counts = np.array([[row.tn, row.fp], [row.fn, row.tp]])
        sns.heatmap(
            counts, annot=True, fmt="d", cmap="Blues", cbar=False, square=True, ax=axis, **ticks
        )
        title = f"{row.label}: accuracy {row.accuracy:.2f}\n(majority {row.majority:.2f})"
        axis.set(title=title, xlabel="predicted")
    axes[0].set_ylabel("true")
    return figure


def roc_pr(curves, report):
    """ROC and precision-recall curves per label; dotted: a classifier that ignores the image."""
    figure, (roc, pr) = _panels(2, 3.3, 3)
    roc.plot([0, 1], [0, 1], ":", color="grey")
    for row in report[report.roc_auc.notna()].itertuples():
        areas = {"roc": f"AUC {row.roc_auc:.2f}", "pr": f"AP {row.average_precision:.2f}"}
        for axis, (curve, area) in zip((roc, pr), areas.items()):
            points = curves[(curves.label == row.label) & (curves.curve == curve)]
            axis.plot(points.x, points.y, color=COLOURS[row.label], label=f"{row.label}: {area}")
        pr.axhline(row.prevalence, ls=":", color=COLOURS[row.label])
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", aspect="equal")
    pr.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    pr.set_title("precision-recall (dotted: prevalence)")
    roc.legend(loc="lower right")
    pr.legend(loc="lower left")
    return figure


def reliability(points):
    """Reliability diagrams, a panel per label; dotted: calibrated.

    points: {classifier: table of classification.reliability}.
    """
    labels = list(dict.fromkeys(label for table in points.values() for label in table.label))
    figure, axes = _panels(len(labels), 1.9, 2.2, sharey=True)
    limits = (-0.03, 1.03)
    for axis, label in zip(axes, labels):
        axis.plot([0, 1], [0, 1], ":", color="grey")
        for (name, table), colour in zip(points.items(), PALETTE):
            rows = table[table.label == label]
            ends, x = _ends(rows, "observed"), rows.predicted
            axis.errorbar(x, rows.observed, yerr=ends, color=colour, label=name, **POINTS)
        axis.set(xlabel="mean probability", title=label, aspect="equal", xlim=limits, ylim=limits)
    axes[0].set_ylabel("share readable")
    _legend_below(figure, axes[0])
    return figure


def shares(table, columns):
    """Shares with their intervals, a panel per column, a line per method.

    table: rows with classifier, method, and of each column its value, *_low and *_high.
    """
    methods, classifiers = (list(dict.fromkeys(table[name])) for name in ("method", "classifier"))
    figure, axes = _panels(len(columns), 3, 0.3 * len(methods) + 0.8, sharey=True)
    for axis, column in zip(axes, columns):
        for i, (classifier, colour) in enumerate(zip(classifiers, PALETTE)):
            rows = table[table.classifier == classifier].set_index("method").loc[methods]
            at = np.arange(len(methods)) + 0.25 * (i - (len(classifiers) - 1) / 2)
            ends = _ends(rows, column, f"{column}_low", f"{column}_high")
            axis.errorbar(rows[column], at, xerr=ends, color=colour, label=classifier, **POINTS)
        axis.set(xlabel=f"share {column}", xlim=(-0.03, 1.03))
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()  # the first method is on top, in all panels
    _legend_below(figure, axes[0])
    return figure


# ----------------------------------------------------------------------------------------- curves


def learning(history, columns=("loss",)):
    """Training loss per step (thin: each step, thick: mean over 10), validation loss per epoch."""
    figure, axes = _panels(len(columns), 3.3, 2.4)
    for axis, column in zip(axes, columns):
        smooth = history[column].rolling(10, min_periods=1).mean()
        axis.plot(history.step, history[column], lw=0.4, color="0.7")
        axis.plot(history.step, smooth, color="C0", label="training")
        if column == "loss":
            epochs = history.dropna(subset="val_loss")
            axis.plot(epochs.step, epochs.val_loss, "o-", ms=2, color="C1", label="validation")
            axis.legend()
        axis.set(xlabel="step", ylabel=column)
    return figure


def lines(table, x, y, hue, xlabel=None, ylabel=None):
    """One line per value of `hue` of a long table."""
    import seaborn as sns

    figure, (axis,) = _panels(1, 3.6, 2.5)
    sns.lineplot(table, x=x, y=y, hue=hue, ax=axis)
    axis.set(xlabel=xlabel or x, ylabel=ylabel or y)
    axis.legend(title=None)
    return figure


def curves(table, x, xlabel, ylabel="PSNR / dB", levels=None):
    """A line per method of a long table (method, `x`, mean, low, high), its interval as a band.

    The x axis is logarithmic. levels: {label: y} of dotted horizontal lines.
    """
    figure, (axis,) = _panels(1, 4.6, 2.8)
    for name, rows in table.groupby("method", sort=False):
        (line,) = axis.plot(rows[x], rows["mean"], "o-", ms=3, label=name)
        axis.fill_between(rows[x], rows.low, rows.high, color=line.get_color(), alpha=0.15, lw=0)
    right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 7}
    for label, level in (levels or {}).items():
        axis.axhline(level, ls=":", color="0.4", lw=0.8)
        axis.annotate(label, (1, level), **right)
    ticks = []
    for value in sorted(table[x].unique()):
        if not ticks or value >= 1.3 * ticks[-1]:  # closer labels would overlap
            ticks.append(value)
    axis.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# -------------------------------------------------------------------------------------- a study


def bars(table, metrics, baselines=(), seeds=None, reference=None):
    """Mean of each metric with its interval over images, one bar per method.

    table: long rows with method, metric, mean, low, high, collapsed; collapsed rows are hatched and
    marked. baselines: methods that are drawn in grey. seeds: long rows with method, seed, metric,
    mean; they give a dot for each run. reference: a method. With it, a last panel shows the paired
    differences to its PSNR (columns difference, difference_low, difference_high), and its dots
    compare runs of the same seed.
    """
    marked = labels(table)
    names = list(marked)
    panels = len(metrics) + (reference is not None)
    figure, axes = _panels(panels, 2.2, 0.25 * len(names) + 1, sharey=True)
    error = {"ecolor": "k", "elinewidth": 0.8}
    colours = ["0.75" if name in baselines else PALETTE[0] for name in names]
    style = {"color": colours, "hatch": ["" if marked[name] == name else "///" for name in names]}
    if seeds is not None:
        seeds = seeds[~seeds.method.isin(baselines)]
    for axis, metric in zip(axes, metrics):
        rows = table[table.metric == metric].set_index("method").loc[names]
        ends = _ends(rows, "mean")
        axis.barh(names, rows["mean"], xerr=ends, height=0.6, error_kw=error, **style)
        if seeds is not None:
            runs = seeds[seeds.metric == metric]
            axis.plot(runs["mean"], runs.method, **DOTS)
        if rows["mean"].isna().all():
            axis.text(0.5, 0.5, "n/a", transform=axis.transAxes, ha="center", color="0.4")
            axis.set_xticks([])
        name, _, region = metric.partition("_")
        axis.set_xlabel(AXES[name] + (region and f", {region}"))
    if reference is not None:
        axis = axes[-1]
        rows = table[(table.metric == "psnr") & ~table.method.isin([*baselines, reference])]
        ends = _ends(rows, "difference", "difference_low", "difference_high")
        axis.axvline(0, color="k", lw=0.8, ls=":")
        axis.errorbar(rows.difference, rows.method, xerr=ends, c=PALETTE[0], ecolor="k", **POINTS)
        if seeds is not None:
            runs = seeds[seeds.metric == "psnr"]
            base = runs[runs.method == reference].set_index("seed")["mean"]
            runs = runs[runs.method.isin(rows.method)]
            axis.plot(runs["mean"] - runs.seed.map(base), runs.method, **DOTS)
        low, high = axis.get_xlim()  # at least 0.1 dB, so that rounding does not fill the panel
        axis.set(xlabel=f"PSNR − {reference} / dB", xlim=(min(low, -0.05), max(high, 0.05)))
    axes[0].set_yticks(range(len(names)), marked.values())
    axes[0].invert_yaxis()  # the first method is on top, in all panels
    return figure


def heat(table, label, limit):
    """Numbers of methods (rows) under conditions (columns: pairs of family and severity).

    Colours range from -limit to limit. White lines separate the families.
    """
    import seaborn as sns

    families = table.columns.get_level_values(0)
    figure, axis = plt.subplots(figsize=(0.46 * table.shape[1] + 1.8, 0.24 * len(table) + 0.9))
    colours = {"cmap": "RdBu", "center": 0, "vmin": -limit, "vmax": limit}
    severities = [f"{severity:.2g}" for _, severity in table.columns]
    ticks = {"xticklabels": severities, "yticklabels": list(table.index)}
    text = {"annot": True, "fmt": "+.1f", "annot_kws": {"size": 6}}
    bar = {"label": label, "pad": 0.02}
    sns.heatmap(table, ax=axis, cbar_kws=bar, **colours, **ticks, **text)
    axis.set(xlabel="severity", ylabel="")
    axis.tick_params(length=0, axis="both", labelrotation=0)
    for family in dict.fromkeys(families):
        at = np.flatnonzero(families == family)
        axis.text(at.mean() + 0.5, -0.15, family, ha="center", va="bottom")
        axis.axvline(at[0], color="w", lw=3)
    return figure


def forest(panels, xlabel="difference in PSNR / dB"):
    """Differences with their intervals: {title: table of label, difference, low, high}."""
    counts = [len(table) for table in panels.values()]
    size = (5.2, 0.27 * sum(counts) + 0.6 * len(panels) + 0.3)
    options = {"height_ratios": counts, "sharex": True, "squeeze": False, "layout": "tight"}
    figure, axes = plt.subplots(len(panels), 1, figsize=size, **options)
    for axis, (title, table) in zip(axes[:, 0], panels.items()):
        at, ends = range(len(table)), _ends(table, "difference")
        axis.axvline(0, color="k", lw=0.8, ls=":")
        axis.errorbar(table.difference, at, xerr=ends, color="C0", ecolor="k", **POINTS)
        axis.set(title=title, ylim=(len(table) - 0.5, -0.5))
        axis.set_yticks(at, table.label)
    axes[-1, 0].set_xlabel(xlabel)
    return figure

"""Figures: one style, a few panels, one way to save. Nothing here computes a result.

Images are tensors (3, H, W) or (N, 3, H, W) in [0, 1], or lists of arrays (H, W, 3) of bytes, which need no torch. Every
panel returns a matplotlib Figure; `save` writes it as PNG and PDF, byte by byte the same on every run, and shows what was
saved.
"""

import matplotlib

matplotlib.rcParams.update({
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "figure.dpi": 100,
    "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42, "image.interpolation": "nearest",
})  # fmt: skip

import matplotlib.pyplot as plt  # noqa: E402 (the style comes first)
import numpy as np  # noqa: E402
import seaborn as sns  # noqa: E402

from rr.files import writing  # noqa: E402
from rr.paper import LABELS  # noqa: E402

COLOURS = dict(zip(LABELS, sns.color_palette("colorblind")))


def save(figure, folder, stem):
    """Write folder/stem.png (200 dpi) and folder/stem.pdf; returns the PNG for display in a notebook."""
    from IPython.display import Image

    for suffix in ("pdf", "png"):
        facts = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
        with writing(folder / f"{stem}.{suffix}") as part:
            figure.savefig(part, format=suffix, dpi=200, bbox_inches="tight", metadata=facts)
    plt.close(figure)
    return Image(str(folder / f"{stem}.png"), width=900)


def grid(rows, titles=None, side=1.1):
    """Images in rows: {label: images}; titles: a line over each column. Rows may differ in length."""
    columns = max(len(images) for images in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(side * columns + 0.6, side * len(rows) + 0.2), squeeze=False
    )
    for line, (label, images) in zip(axes, rows.items()):
        for axis, image in zip(line, images):
            _picture(axis, image)
        line[0].text(-0.06, 0.5, label, transform=line[0].transAxes, ha="right", va="center")
        for axis in line[len(images) :]:
            axis.axis("off")
    for axis, title in zip(axes[0], titles or []):
        axis.set_title(title)
    figure.subplots_adjust(wspace=0.04, hspace=0.06)
    return figure


def coloured(maps):
    """Maps (N, h, w) in [0, 1] as images (N, 3, h, w)."""
    import torch

    return torch.from_numpy(plt.get_cmap("viridis")(maps.numpy())[..., :3]).permute(0, 3, 1, 2)


def sheet(images, columns=10, side=1.0):
    """A contact sheet of images (N, 3, H, W), without frames or titles."""
    lines = -(-len(images) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(side * columns, side * lines), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images):
        _picture(axis, image)
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    return figure


def confusion(report):
    """Four 2x2 matrices, one per label (never one over a multi-label vector); rows are true, columns predicted."""
    figure, axes = plt.subplots(1, len(report), figsize=(1.8 * len(report), 1.9))
    for axis, row in zip(axes, report.itertuples()):
        counts = np.array([[row.tn, row.fp], [row.fn, row.tp]])
        sns.heatmap(
            counts,
            annot=True,
            fmt="d",
            cmap="Blues",
            cbar=False,
            square=True,
            ax=axis,
            xticklabels=("no", "yes"),
            yticklabels=("no", "yes"),
        )
        axis.set(
            title=f"{row.label}: accuracy {row.accuracy:.2f}\n(majority {row.majority:.2f})",
            xlabel="predicted",
            ylabel="true" if row.label == report.label.iloc[0] else "",
        )
    figure.tight_layout()
    return figure


def roc_pr(curves, report):
    """ROC and precision-recall curves per label; dotted: what a classifier scores that looks at nothing."""
    figure, (roc, pr) = plt.subplots(1, 2, figsize=(6.6, 3))
    roc.plot([0, 1], [0, 1], ":", color="grey")
    for row in report.itertuples():
        if np.isnan(row.roc_auc):
            continue
        colour, mine = COLOURS[row.label], curves[curves.label == row.label]
        roc.plot(
            *mine[mine.curve == "roc"][["x", "y"]].T.values,
            color=colour,
            label=f"{row.label}: AUC {row.roc_auc:.2f}",
        )
        pr.plot(
            *mine[mine.curve == "pr"][["x", "y"]].T.values,
            color=colour,
            label=f"{row.label}: AP {row.average_precision:.2f}",
        )
        pr.axhline(row.prevalence, ls=":", color=colour)
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", aspect="equal")
    pr.set(
        xlabel="recall",
        ylabel="precision",
        title="Precision-recall (dotted: prevalence)",
        ylim=(0, 1.02),
    )
    for axis in (roc, pr):
        axis.legend(loc="lower right" if axis is roc else "lower left", frameon=False)
    figure.tight_layout()
    return figure


def reliability(points):
    """Reliability diagrams, a panel per label: {judge: table of classification.reliability}; dotted: calibrated."""
    labels = list(dict.fromkeys(label for table in points.values() for label in table.label))
    figure, axes = plt.subplots(
        1, len(labels), figsize=(1.9 * len(labels), 2.2), sharey=True, squeeze=False
    )
    for axis, label in zip(axes[0], labels):
        axis.plot([0, 1], [0, 1], ":", color="grey")
        for (name, table), colour in zip(points.items(), sns.color_palette("colorblind")):
            rows = table[table.label == label]
            axis.errorbar(
                rows.predicted,
                rows.observed,
                yerr=[rows.observed - rows.low, rows.high - rows.observed],
                fmt="o",
                ms=3,
                elinewidth=0.5,
                color=colour,
                label=name,
            )
        axis.set(
            xlabel="mean probability",
            title=label,
            aspect="equal",
            xlim=(-0.03, 1.03),
            ylim=(-0.03, 1.03),
        )
    axes[0, 0].set_ylabel("share readable")
    figure.tight_layout()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
    )
    return figure


def shares(table, columns):
    """Shares with intervals, a panel per column: rows judge, method, and of each column its value, *_low and *_high."""
    methods, judges = (list(dict.fromkeys(table[name])) for name in ("method", "judge"))
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3 * len(columns), 0.3 * len(methods) + 0.8),
        sharey=True,
        squeeze=False,
    )
    for axis, column in zip(axes[0], columns):
        for place, (judge, colour) in enumerate(zip(judges, sns.color_palette("colorblind"))):
            rows = table[table.judge == judge].set_index("method").loc[methods]
            value, at = (
                rows[column],
                np.arange(len(methods)) + 0.25 * (place - (len(judges) - 1) / 2),
            )
            axis.errorbar(
                value,
                at,
                xerr=[value - rows[f"{column}_low"], rows[f"{column}_high"] - value],
                fmt="o",
                ms=4,
                elinewidth=0.8,
                color=colour,
                label=judge,
            )
        axis.set(xlabel=f"share {column}", xlim=(-0.03, 1.03))
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()  # shared: the first method on top
    figure.tight_layout()
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
    )
    return figure


def learning(history, columns=("loss",)):
    """Training loss per step (thin: each step, thick: mean over 10) and validation loss per epoch."""
    figure, axes = plt.subplots(1, len(columns), figsize=(3.3 * len(columns), 2.4), squeeze=False)
    for axis, column in zip(axes[0], columns):
        axis.plot(history.step, history[column], lw=0.4, color="0.7")
        axis.plot(
            history.step,
            history[column].rolling(10, min_periods=1).mean(),
            color="C0",
            label="training",
        )
        if column == "loss":
            ends = history.dropna(subset="val_loss")
            axis.plot(ends.step, ends.val_loss, "o-", ms=2, color="C1", label="validation")
            axis.legend(frameon=False)
        axis.set(xlabel="step", ylabel=column)
    figure.tight_layout()
    return figure


def attention(image, A, shape, tokens):
    """Attention of given tokens over the image, mean of the heads, in multiples of the uniform 1 / L.

    A (heads, L, L), rows summing to 1; shape (h, w) with h w = L. A circle marks the place that asks.
    """
    figure, axes = plt.subplots(
        1, len(tokens) + 1, figsize=(1.6 * (len(tokens) + 1), 1.8), layout="constrained"
    )
    _picture(axes[0], image)
    axes[0].set_title("image")
    height, width = image.shape[-2:]
    mean = A.mean(0).float().cpu().numpy() * A.shape[-1]
    for axis, token in zip(axes[1:], tokens):
        _picture(axis, image)
        drawn = axis.imshow(
            mean[token].reshape(shape),
            cmap="viridis",
            alpha=0.5,
            extent=(0, width, height, 0),
            vmin=mean[tokens].min(),
            vmax=mean[tokens].max(),
        )
        row, column = divmod(token, shape[1])
        axis.plot(
            (column + 0.5) * width / shape[1],
            (row + 0.5) * height / shape[0],
            "o",
            mfc="none",
            mec="w",
        )
        axis.set_title(f"asked from ({row + 1}, {column + 1})")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="times uniform")
    return figure


def lines(table, x, y, hue, xlabel=None, ylabel=None):
    """One line per value of `hue` of a long table."""
    figure, axis = plt.subplots(figsize=(3.6, 2.5))
    sns.lineplot(table, x=x, y=y, hue=hue, ax=axis)
    axis.set(xlabel=xlabel or x, ylabel=ylabel or y)
    axis.legend(frameon=False, title=None)
    figure.tight_layout()
    return figure


def growth(table):
    """What a data set costs against its images: a panel each for seconds (log-log, with the proportional line), memory, bytes."""
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7))
    images = table["images"].to_numpy()
    for column, label in (("prepare_seconds", "preparing"), ("epoch_seconds", "an epoch's data")):
        (line,) = axes[0].loglog(images, table[column], "o-", label=label)
        axes[0].loglog(
            images, table[column].iloc[0] * images / images[0], ":", color=line.get_color(), lw=1
        )
    axes[0].legend(frameon=False, title="dotted: proportional")
    axes[1].plot(images, table["peak_mib"], "o-", color="k")
    axes[2].plot(images, table["bytes"] / 1e9, "o-", color="k")
    for axis, label in zip(axes, ("seconds", "memory of all processes, MiB", "disk, GB")):
        axis.set(xlabel="images", ylabel=label)
    for axis in axes[1:]:
        axis.set(xlim=(0, None), ylim=(0, 1.1 * max(axis.lines[0].get_ydata())))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    figure.tight_layout()
    return figure


def bars(table, metrics, by="method", rungs=(), seeds=None, reference=None):
    """Mean and 95 % bootstrap interval over images of each metric, one bar per value of `by`; n/a where unknown.

    table: long rows with columns `by`, metric, mean, low, high. rungs: values of `by` that were not trained, in grey. seeds:
    long rows `by`, seed, metric, mean: a small dot for each run. reference: a value of `by`; a last panel shows what bars
    that begin at zero cannot, the paired difference in PSNR to its mean (columns difference, difference_low,
    difference_high), dots to its run of the same seed.
    """
    names = list(dict.fromkeys(table[by]))
    panels = len(metrics) + (reference is not None)
    figure, axes = plt.subplots(
        1, panels, figsize=(2.2 * panels, 0.25 * len(names) + 1), sharey=True, squeeze=False
    )
    colours = ["0.75" if name in rungs else sns.color_palette("colorblind")[0] for name in names]
    error = {"ecolor": "k", "elinewidth": 0.8}
    for axis, metric in zip(axes[0], metrics):
        rows = (
            table[table.metric == metric].set_index(by).loc[names].replace(np.inf, np.nan)
        )  # no bar reaches inf
        axis.barh(
            names,
            rows["mean"],
            xerr=[rows["mean"] - rows.low, rows.high - rows["mean"]],
            color=colours,
            height=0.6,
            error_kw=error,
        )
        if seeds is not None:
            dots = seeds[(seeds.metric == metric) & ~seeds[by].isin(rungs)].replace(np.inf, np.nan)
            axis.plot(dots["mean"], dots[by], "o", ms=2.5, mfc="w", mec="k", mew=0.5, zorder=4)
        if rows["mean"].isna().all():
            axis.text(0.5, 0.5, "n/a", transform=axis.transAxes, ha="center", color="0.4")
            axis.set_xticks([])
        name, _, where = metric.partition("_")
        axis.set_xlabel(
            {"psnr": "PSNR / dB", "ssim": "SSIM", "lpips": "LPIPS (less is better)"}[name]
            + (where and f", {where}")
        )
    if reference is not None:
        psnr = (
            table[(table.metric == "psnr") & ~table[by].isin(rungs)]
            .set_index(by)
            .replace([np.inf, -np.inf], np.nan)
        )
        rows, axis = psnr.drop(reference), axes[0, -1]
        axis.axvline(0, color="k", lw=0.8, ls=":")
        axis.errorbar(
            rows.difference,
            rows.index,
            fmt="o",
            ms=4,
            color=colours[-1],
            **error,
            xerr=[rows.difference - rows.difference_low, rows.difference_high - rows.difference],
        )
        if seeds is not None:
            dots = seeds[(seeds.metric == "psnr") & seeds[by].isin(psnr.index)].replace(
                np.inf, np.nan
            )
            base = dots[dots[by] == reference].set_index("seed")["mean"]
            dots = dots[dots[by] != reference]
            axis.plot(
                dots["mean"] - dots.seed.map(base),
                dots[by],
                "o",
                ms=2.5,
                mfc="w",
                mec="k",
                mew=0.5,
                zorder=4,
            )
        low, high = axis.get_xlim()
        axis.set(
            xlabel=f"PSNR − that of {reference} / dB", xlim=(min(low, -0.05), max(high, 0.05))
        )  # rounding is no difference
    axes[0, 0].invert_yaxis()  # shared: the first method on top
    figure.tight_layout()
    return figure


def heat(table, label, limit):
    """Numbers of methods (rows) under conditions (columns, pairs (family, severity)), coloured from -limit to limit.

    Families are set apart by white lines; beyond `limit` the colour says no more, the number does.
    """
    families = table.columns.get_level_values(0)
    figure, axis = plt.subplots(figsize=(0.46 * table.shape[1] + 1.8, 0.24 * len(table) + 0.9))
    sns.heatmap(
        table,
        annot=True,
        fmt="+.1f",
        annot_kws={"size": 6},
        cmap="RdBu",
        center=0,
        vmin=-limit,
        vmax=limit,
        xticklabels=[f"{severity:.2g}" for _, severity in table.columns],
        yticklabels=list(table.index),
        ax=axis,
        cbar_kws={"label": label, "pad": 0.02},
    )
    axis.set(xlabel="severity", ylabel="")
    axis.tick_params(length=0, axis="both", labelrotation=0)
    for family in dict.fromkeys(families):
        at = np.flatnonzero(families == family)
        axis.text(at.mean() + 0.5, -0.15, family, ha="center", va="bottom")
        axis.axvline(at[0], color="w", lw=3)
    return figure


def forest(panels, xlabel="difference in PSNR / dB"):
    """Differences with their intervals: {title: table with columns label, difference, low, high}, one panel each."""
    lines = [len(table) for table in panels.values()]
    figure, axes = plt.subplots(len(panels), 1, figsize=(5.2, 0.27 * sum(lines) + 0.6 * len(panels) + 0.3), squeeze=False,
                                height_ratios=lines, sharex=True)  # fmt: skip
    for axis, (title, table) in zip(axes[:, 0], panels.items()):
        axis.axvline(0, color="k", lw=0.8, ls=":")
        axis.errorbar(table.difference, range(len(table)), fmt="o", ms=4, color="C0", ecolor="k", elinewidth=0.8,
                      xerr=[table.difference - table.low, table.high - table.difference])  # fmt: skip
        axis.set(title=title, ylim=(len(table) - 0.5, -0.5))
        axis.set_yticks(range(len(table)), table.label)
    axes[-1, 0].set_xlabel(xlabel)
    figure.tight_layout()
    return figure


def curves(table, x, xlabel, ylabel="PSNR / dB", levels=None):
    """A line per method of a long table (method, `x`, mean, low, high) with its interval as a band; x logarithmic.

    levels: {label: y}, dotted lines across.
    """
    figure, axis = plt.subplots(figsize=(4.6, 2.8))
    for name, rows in table.groupby("method", sort=False):
        (line,) = axis.plot(rows[x], rows["mean"], "o-", ms=3, label=name)
        axis.fill_between(rows[x], rows.low, rows.high, color=line.get_color(), alpha=0.15, lw=0)
    for label, level in (levels or {}).items():
        axis.axhline(level, ls=":", color="0.4", lw=0.8)
        axis.annotate(
            label,
            (1, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7,
        )
    ticks = []
    for place in sorted(table[x].unique()):  # those whose numbers do not run into each other
        ticks += [place] if not ticks or place >= 1.3 * ticks[-1] else []
    axis.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def pipeline(before, trajectory, after, p_before, p_after, reference=None, shown=5):
    """RetinaRegen on one eye (paper, Fig. 1): input, noised, steps of the reverse process, restored, readability.

    before, after, reference (3, H, W); trajectory [(t, x_t, x_0_hat)] with tensors (1, 3, H, W); p_* (4,).
    """
    steps = trajectory[:-1]  # the last one is the result itself, which has its own place
    picks = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, shown).round().astype(int))]
    shown = len(picks)
    columns = shown + 3 + (reference is not None)
    figure = plt.figure(figsize=(1.25 * columns, 2.9))
    spec = figure.add_gridspec(
        2, columns, width_ratios=[1] * (columns - 1) + [1.7], wspace=0.08, hspace=0.12
    )

    def place(column, image, title, row=slice(0, 2)):
        axis = figure.add_subplot(spec[row, column])
        _picture(axis, image)
        axis.set_title(title)
        return axis

    place(0, before, "input y")
    for column, (t, x_t, x_0_hat) in enumerate(picks, 1):
        axis = place(column, x_t[0].clamp(0, 1), f"t = {t}", 0)
        second = place(column, x_0_hat[0], "", 1)
        if column == 1:
            axis.set_ylabel("$x_t$", rotation=0, labelpad=8, va="center")
            second.set_ylabel(r"$\hat{x}_0$", rotation=0, labelpad=8, va="center")
    place(shown + 1, after, "restored")
    if reference is not None:
        place(shown + 2, reference, "reference x")
    axis = figure.add_subplot(spec[:, -1])
    at = np.arange(len(LABELS))
    axis.barh(at - 0.2, p_before, 0.36, color="0.7", label="before")
    axis.barh(at + 0.2, p_after, 0.36, color="C0", label="after")
    axis.axvline(0.5, ls=":", color="k", lw=0.8)
    axis.set(xlim=(0, 1), title="readability")
    axis.set_yticks(at, LABELS)
    axis.yaxis.tick_right()
    axis.invert_yaxis()
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    axis.spines["left"].set_visible(False)
    return figure


def _picture(axis, image):
    if not isinstance(image, np.ndarray):
        image = image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    axis.imshow(image)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)

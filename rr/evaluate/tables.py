"""Tables for a reader: means over images with their uncertainty, as strings, Markdown, LaTeX and CSV.

Defines `bootstrap`, `summarize` and `text` for any table of metrics.score; for a study (see rr/comparisons.py) `shown`, the
table for a reader, its `caption` and `write`; for its runs `facts`, `sources` and `cost`. Nothing here needs torch.
"""

import re
from functools import lru_cache

import numpy as np
import pandas as pd

from rr.files import write_table, write_text
from rr.studies import METHODS

RUNGS = METHODS[:-1]  # what needs no training, and any configuration must beat
SHOWN = {"psnr": ("PSNR / dB", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3), "psnr_fov": ("PSNR in FOV", 2),
         "psnr_disc": ("PSNR at disc", 2)}  # metric: head of its column, digits  # fmt: skip
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$",
         "−": "$-$", "∞": r"$\infty$", "<": "$<$", ">": "$>$"} | {each: f"\\{each}" for each in "&%$#_{}"}  # fmt: skip


def text(table):
    """The same table as strings for a reader: dB with two digits, the others with four, NaN as "n/a"."""
    return pd.DataFrame(
        {
            name: [_number(v, 2 if name.startswith("psnr") else 4) for v in column]
            for name, column in table.items()
        },
        index=table.index,
    )


def bootstrap(values, level=0.95, n=2000, seed=0):
    """Mean over images and its percentile-bootstrap interval: (mean, low, high).

    values: one number per image; NaN (unknown) are left out, and without any value all three are NaN.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return (float("nan"),) * 3
    means = values[_picks(len(values), n, seed)].mean(axis=1)
    # percentiles that are values of the sample, so that an infinite PSNR gives inf and not inf - inf
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)], method="nearest")
    return float(values.mean()), float(low), float(high)


def summarize(scores):
    """{method: table of metrics.score} as a long table: method, metric, n images, mean, bootstrap interval low, high."""
    rows = [(method, metric, int(values.notna().sum()), *bootstrap(values))
            for method, table in scores.items() for metric, values in table.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "metric", "n", "mean", "low", "high"])


def best(study, metric):
    """Configurations with the best mean: several if they are equal in the digits that are shown, none if it is n/a."""
    means = _displayed(study[study.seeds > 0], metric)
    return list(means.index[means == means.max()])


def above(study, metric):
    """Rungs that score better than every configuration, in the digits that are shown."""
    rungs, means = (
        _displayed(study[study.seeds == 0], metric),
        _displayed(study[study.seeds > 0], metric),
    )
    return list(rungs.index[rungs > means.max()])


def shown(study, reference):
    """`study` for a reader, in Markdown: mean ± sd, best configuration bold, difference to `reference` in dB."""
    methods = list(dict.fromkeys(study.method))
    table = pd.DataFrame(index=methods)
    for metric, (head, digits) in SHOWN.items():
        rows = study[study.metric == metric].set_index("method")
        cells = [
            _mean_sd(mean, sd, digits) for mean, sd in rows.loc[methods, ["mean", "sd"]].to_numpy()
        ]
        table[head] = [
            f"**{cell}**" if method in best(study, metric) else cell
            for method, cell in zip(methods, cells)
        ]
    rows = study[study.metric == "psnr"].set_index("method").loc[methods]
    table[f"PSNR − {reference}"] = [
        "–"
        if method == reference
        else interval(row.difference, row.difference_low, row.difference_high)
        for method, row in rows.iterrows()
    ]
    return table.assign(
        n=[str(n) for n in rows.n], seeds=[str(n) if n else "–" for n in rows.seeds]
    )


def caption(title, study, facts, reference):
    """What must stand with a table: whose numbers these are, what ± and bold say, and where a rung beats every row."""
    heads = {rung: [head.removesuffix(" / dB") for metric, (head, _) in SHOWN.items() if rung in above(study, metric)]
             for rung in RUNGS}  # fmt: skip
    beaten = "; ".join(f"{rung} in {', '.join(found)}" for rung, found in heads.items() if found)
    fewer = (
        ""
        if (known := study[study.metric == "psnr_disc"].n.min()) == facts["n"]
        else f" ({known} of them at the disc)"
    )
    return (
        f"{title} Data: {facts['data']}; protocol: {facts['protocol']}; preset {facts['preset']}, {facts['size']} px, "
        f"n = {facts['n']} test images{fewer}. "
        + (
            f"Mean ± standard deviation over {facts['seeds']} seeds, for which data, split, classifier and test degradations are "
            "the same"
            if facts["seeds"] > 1
            else "Mean; one training each, seed 0"
        )
        + f"; bold: best trained row; less is better in LPIPS. Difference of the PSNR and that of {reference}, paired over "
        "images, with its 95 % bootstrap interval over images: a plain one, for a single difference. What is called told apart "
        "must hold for all pairs together."
        + (f" Better than every trained row: {beaten}." if beaten else "")
    )


def markdown(table, caption=""):
    """A table of strings as Markdown; the index is the first column."""
    lines = [
        ["", *table.columns],
        ["---"] * (table.shape[1] + 1),
        *table.reset_index().to_numpy().tolist(),
    ]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\n{caption}\n" if caption else f"{body}\n"


def latex(table, caption, label):
    """The same as a LaTeX table (package booktabs); `**bold**` becomes \\textbf{bold}."""
    lines = [["", *table.columns], *table.reset_index().to_numpy()]
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in lines]
    return "\n".join([
        r"\begin{table*}", r"\centering\scriptsize", rf"\caption{{{_latex(caption)}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{l{'r' * table.shape[1]}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
        r"\end{tabular}", r"\end{table*}", "",
    ])  # fmt: skip


def write(folder, stem, numbers, table, caption):
    """folder/stem.csv (`numbers`, full precision), .md and .tex (`table`, a reader's strings)."""
    write_table(folder / f"{stem}.csv", numbers)
    write_text(folder / f"{stem}.md", markdown(table, caption))
    write_text(folder / f"{stem}.tex", latex(table, caption, stem))


def facts(runs, preset):
    """What all runs of {name: [Run, ...]} have in common, for captions and result files."""
    first, *others = next(iter(runs.values()))
    common = {key: first.numbers[key] for key in ("data", "size", "n", "lpips")} | {
        "protocol": first.configuration.protocol
    }
    names = {name: str(group[0].configuration) for name, group in runs.items()}
    return common | {"preset": preset, "seeds": 1 + len(others), "configurations": names}


def sources(runs):
    """Which runs were read, for the provenance: name, commit, data, seconds."""
    return [{"run": f"{run.configuration}_{run.seed}"} | {key: run.provenance[key] for key in ("commit", "data", "seconds")}
            for group in runs.values() for run in group]  # fmt: skip


def cost(runs):
    """What each configuration is and took; times are means over its seeds. One row per name."""
    rows = {}
    for name, group in runs.items():
        numbers, facts = group[0].numbers, group[0].provenance
        memory = max(
            run.provenance["peak_gpu_memory_mib"] or run.provenance["peak_memory_mib"]
            for run in group
        )
        rows[name] = {
            "predicts": numbers["objective"], "epochs": str(numbers["epochs"]), "parameters": f"{numbers['parameters']:,}",
            "training / s": f"{np.mean([run.numbers['training_seconds'] for run in group]):.0f}",
            "whole run / s": f"{np.mean([run.provenance['seconds'] for run in group]):.0f}",
            "device": facts["device"], "its peak memory / MiB": str(memory),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def beside(claims):
    """The paper's numbers and ours for a reader; claims: claim, row, and of each metric paper_*, ours_*, ours_*_sd."""
    paper, ours = {}, {}
    for metric in ("psnr", "ssim", "lpips"):
        head, digits = SHOWN[metric]
        paper[f"paper: {head}"] = [
            "–" if np.isnan(value) else _number(value, digits)
            for value in claims[f"paper_{metric}"]
        ]
        values = zip(claims[f"ours_{metric}"], claims[f"ours_{metric}_sd"])
        ours[f"ours: {head}"] = [_mean_sd(mean, sd, digits) for mean, sd in values]
    return pd.DataFrame(paper | ours, index=claims.claim + ": " + claims.row)


def orders(found):
    """Verdicts for a reader; found: claim, metric, verdict, the pair better and worse, difference, low, high."""
    digits = [SHOWN[metric][1] for metric in found.metric]
    return pd.DataFrame(
        {
            "verdict": found.verdict,
            "pair that decides": found.better + " over " + found.worse,
            "better by": [
                interval(*each) for each in zip(found.difference, found.low, found.high, digits)
            ],
        }
    ).set_axis(
        [
            f"{claim} in {SHOWN[metric][0].removesuffix(' / dB')}"
            for claim, metric in zip(found.claim, found.metric)
        ]
    )


def interval(mean, low, high, digits=2, sign="+"):
    """A number with its interval, for a reader; a difference is signed, sign="" for what is none."""
    mean, low, high = (_number(value, digits, sign) for value in (mean, low, high))
    return mean if mean == "n/a" else f"{mean} [{low}, {high}]"


@lru_cache(maxsize=2)
def _picks(images, n, seed):
    """n samples of as many images, drawn with replacement: (n, images)."""
    return np.random.default_rng(seed).integers(images, size=(n, images))


def _number(value, digits, sign=""):
    return (
        "n/a"
        if np.isnan(value)
        else f"{value:{sign}.{digits}f}".replace("inf", "∞").replace("-", "−")
    )


def _mean_sd(mean, sd, digits):
    return _number(mean, digits) + ("" if np.isnan(sd) else f" ± {_number(sd, digits)}")


def _latex(cell):
    return re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", cell.translate(str.maketrans(LATEX)))


def _displayed(rows, metric):
    """Means as the reader sees them, signed so that more is better, by method; without n/a."""
    means = rows[rows.metric == metric].set_index("method")["mean"].dropna()
    return means.map(
        lambda value: (
            float(f"{value:.{SHOWN[metric][1]}f}") * (-1 if metric.startswith("lpips") else 1)
        )
    )

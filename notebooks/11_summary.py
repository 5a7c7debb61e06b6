# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Summary: the paper's claims beside our numbers
#
# **Question.** Which of the paper's claims are supported by data that anyone can make?
#
# There are six claims: **C1**, RetinaRegen restores well; **C2**, the autoencoder is far ahead of
# four other backbones; **C3**, ResNet34 is the best extractor in PSNR and SSIM, and MobileNet in
# LPIPS; **C4**, the order of the four fusions; **C5**, the readability classifier is good; **C6**,
# restored images pass the re-check.
#
# **What would be misleading.** The paper's numbers and ours cannot be ranked together, and their
# difference means nothing. They were measured on other photographs (SynFundus-1M), with references
# that the paper does not name, on an unknown number of images. Only *orders* within one of the two
# can be compared.
#
# | | |
# | --- | --- |
# | needs | 02_readability, 10_what_matters, and 06_restoration with all configurations of the paper's three studies |
# | writes | `tables/11_summary*.csv`, `.md`, `.tex`, figure `11_summary_ladder`, `11_summary.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per configuration, seeds 0, 1, ...
out: str = "results"  # folder of all results; a relative path starts at the project's root

# %%
import time

import pandas as pd
from IPython.display import Markdown

from rr import files as io
from rr import paper, studies
from rr.evaluate import claims, figures, plots, sentences, statistics, tables
from rr.evaluate.factorial import trained_alike
from rr.evaluate.runs import cost as cost_of
from rr.evaluate.runs import metadata, read_study, study_provenance
from rr.provenance import read_result, write_result

started = time.time()
home, pictures = io.results(preset, out), io.figures(preset, out)
ours = studies.METHODS[-1]
METRICS = statistics.METRICS
# {word of a configuration: its name here}; what the paper recommends is in all three studies and has one name
names = {study: {getattr(row, word): ours if row == studies.RETINAREGEN else f"{word} {getattr(row, word)}"
                 for row in studies.STUDIES[study]} for study, word in studies.VARIES.items()}  # fmt: skip
runs = {ours: []} | {
    names[study][getattr(row, word)]: group
    for study, word in studies.VARIES.items()
    for row, group in read_study(home, study, seeds).items()
}
scores, data = statistics.scores(runs), metadata(runs, preset)
study = statistics.study(scores, ours)
others = [name for name in names["backbones"].values() if name != ours]

# %% [markdown]
# ## The verdicts
#
# A claim is *supported* if everything in its rule is seen, each part with its 95 % interval. It is
# *not testable here* if the means are missing. It is *not supported* if it was looked for and not
# seen. The last column names the reason.
#
# * **C1**: RetinaRegen is better than both baselines (do nothing, population mean) in PSNR and in
#   SSIM.
# * **C2**: The VAE is better than each of the four as they were trained. It is also better than a
#   U-Net that predicts the same (image, v, noise) after the same number of images, when both start
#   from the *noised input*. These are cells of 10_what_matters.
# * **C3, C4**: Every pair of rows is in the paper's order. C3 compares the best extractor with
#   each other one. C4 compares neighbours in the paper's order.
# * **C5**: For every label, the area under the ROC curve is above 0.5, and the accuracy is above
#   that of the majority class.
# * **C6**: More than half of the images that the classifier calls unreadable pass after
#   restoration, with both classifiers. If sham restorations (CLAHE, sharpening, the population
#   mean) may pass as often, the claim cannot be tested.
#
# C1 to C4 and C6 need at least three trainings of restorers that are not collapsed, which means
# that they do not return nearly the same picture for every eye. No verdict says whether an order holds on the
# paper's photographs.

# %%
read_result(home / "10_what_matters.json")  # it vouches for its cells
cells = pd.read_csv(home / "10_what_matters_per_image.csv")
readability = read_result(home / "02_readability.json")["numbers"]
verdicts = [
    claims.c1(scores, ours),
    claims.c2(scores, ours, others, trained_alike(cells, scores[ours])),
    claims.c3(scores, names["extractors"]),
    claims.c4(scores, names["fusion"]),
    claims.c5(readability["classifier"]),
    claims.c6(
        [run.numbers["rechecked"] for run in runs[ours]],
        readability["fooled"],
        statistics.collapsed(scores[ours]),
    ),
]
shown = claims.table(verdicts)
caption = (
    f"The paper's claims on {data['data']} data, {data['protocol']} protocol, preset {preset}, {data['size']} px, n = "
    f"{data['n']} test images, seeds: {seeds}. Differences: more is better; with their 95 % intervals over images. The paper's "
    "numbers (PSNR, SSIM, LPIPS) are of other photographs and not to be compared in size. "
    + tables.trainings(study)
)
tables.write(home / "tables", "11_summary_verdicts", pd.DataFrame(verdicts), shown, caption)
Markdown(tables.markdown(shown, caption))

# %% [markdown]
# ## Side by side
#
# The paper's values are on the left, ours on the right. The paper has no baselines. It gives only
# the range of the other four backbones.

# %%
means, sds = (
    study.pivot(index="method", columns="metric", values=value) for value in ("mean", "sd")
)
lowest, highest = (f"{end} of the other four backbones" for end in paper.OTHER_BACKBONES)
means.loc[lowest], means.loc[highest] = means.loc[others].min(), means.loc[others].max()
lines = [("C1", baseline, None) for baseline in statistics.BASELINES] + [
    ("C1", ours, paper.RETINAREGEN)
]
lines += zip(
    ["C2"] * 3, (lowest, highest, ours), (*paper.OTHER_BACKBONES.values(), paper.RETINAREGEN)
)
lines += [("C3", names["extractors"][word], score) for word, score in paper.EXTRACTORS.items()]
lines += [("C4", names["fusion"][word], score) for word, score in paper.FUSIONS.items()]
collapsed = study[study.metric == "psnr"].set_index("method")["collapsed"]
collapsed[lowest] = collapsed[highest] = collapsed[others].any()
rows = pd.DataFrame(
    {"claim": claim, "row": row, "collapsed": collapsed[row]}
    | {f"paper_{metric}": getattr(score, metric, float("nan")) for metric in METRICS}
    | {f"ours_{metric}": means[metric][row] for metric in METRICS}
    | {f"ours_{metric}_sd": sds[metric].get(row, float("nan")) for metric in METRICS}
    for claim, row, score in lines
)
table = tables.paper_and_ours(rows)
caption = (
    "The paper's numbers and ours, not to be compared in size: paper: SynFundus-1M, protocol, reference and number of images not "
    f"stated; ours: {data['data']} data, {data['protocol']} protocol, preset {preset}, {data['size']} px, n = {data['n']} "
    f"test images, seeds: {seeds}"
    + (", mean ± standard deviation over seeds. " if seeds > 1 else ". ")
    + tables.trainings(study)
)
tables.write(home / "tables", "11_summary", rows, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# ## All configurations
#
# Each configuration appears once, beside the baselines. Small dots are single trainings.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = plots.bars(study, METRICS, baselines=statistics.BASELINES, seeds=dots, reference=ours)
figures.save(bars, pictures, "11_summary_ladder")

# %% [markdown]
# ## What it cost

# %%
cost = cost_of(runs)
shown = cost.rename(index=tables.labels(study))
caption = f"What each configuration cost. {tables.trainings(study)}"
tables.write(
    home / "tables",
    "11_summary_cost",
    shown.reset_index(names="configuration"),
    shown,
    caption,
)
Markdown(tables.markdown(shown, caption))

# %% [markdown]
# ## Conclusion

# %%
numbers = data | {
    "verdicts": [row._asdict() for row in verdicts],
    "claims": rows.to_dict("records"),
}
numbers |= {"cost": cost.to_dict("index")}
provenance = study_provenance(runs, preset)
write_result(home / "11_summary.json", numbers, started=started, **provenance)
eight = study[study.method.isin(names["extractors"].values())]
best = "\n\nAmong our extractors the best is: " + "; ".join(
    f"{tables.HEADS[metric]}: {' and '.join(tables.best(eight, metric))} (all: {values.min():.3f} to {values.max():.3f})"
    for metric in METRICS
    if (values := eight[eight.metric == metric]["mean"]).notna().all()
)
Markdown(
    "\n".join(
        f"* **{row.claim}**, {row.says}: **{row.verdict}** ({row.because})." for row in verdicts
    )
    + (f"{best}." if seeds >= statistics.SEEDS else "")
    + f"\n\nOn {data['n']} test images of {data['data']} data, {data['protocol']} protocol, preset {preset}; "
    + (
        "the backbones differ in objective too, see 07_backbones. "
        if cost["predicts"].nunique() > 1
        else ""
    )
    + sentences.certainty(seeds, max(len(others), len(paper.EXTRACTORS) - 1))
    + " An order that is not seen here may still hold on the paper's data, and one that is seen may not. "
    "**The paper leaves open** the reference image, the number of test images, the seeds and the variance."
)

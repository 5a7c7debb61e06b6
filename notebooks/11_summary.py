# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Summary: the paper's claims beside our numbers
#
# **Question.** Which of the orders that the paper reports are seen again on data that anyone can make?
#
# Four claims of section 3.2: **C1**, how well RetinaRegen restores; **C2**, that the autoencoder beats four other backbones;
# **C3**, that ResNet34 is the best extractor in PSNR and SSIM and MobileNet in LPIPS, with small differences; **C4**, the
# order of the four fusions.
#
# **What would be misleading.** To rank the paper's numbers among ours, or to take their difference. They were measured on
# other photographs (SynFundus-1M), against references that the paper does not name, on an unknown number of images. So both
# stand side by side, and only *orders within either* are compared.
#
# | | |
# | --- | --- |
# | needs | 06_restoration with all configurations of the three studies |
# | writes | `tables/11_summary*.csv`, `.md`, `.tex`, figure `11_summary_ladder`, `11_summary.json` |
# | time | smoke: 1 s on 1 thread(s) of a CPU |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per configuration, seeds 0, 1, ...
out: str = "results"  # folder of all results; a relative path starts at the project's root

# %%
import time
from itertools import pairwise

import pandas as pd
from IPython.display import Markdown

from rr import comparisons, figures, io, paper, studies, tables
from rr.presets import preset as choose_preset

started = time.time()
home, pictures = io.results(preset, out), io.figures(preset, out)
ours = studies.METHODS[-1]
METRICS = comparisons.METRICS
# {word of a configuration: its name here}; what the paper recommends is in all three studies and has one name
names = {study: {getattr(each, word): ours if each == studies.RETINAREGEN else f"{word} {getattr(each, word)}"
                 for each in studies.STUDIES[study]} for study, word in studies.VARIES.items()}  # fmt: skip
runs = {ours: []} | {
    names[study][getattr(each, word)]: group
    for study, word in studies.VARIES.items()
    for each, group in studies.read_study(home, study, seeds).items()
}
scores, facts = comparisons.scores(runs), tables.facts(runs, preset)
study = comparisons.study(scores, ours)

# %% [markdown]
# ## Side by side
#
# Left the paper's values, right ours; the rungs are ours alone. Of the other four backbones the paper gives the range only.

# %%
means, sds = (study.pivot(index="method", columns="metric", values=value) for value in ("mean", "sd"))
others = [name for name in names["backbones"].values() if name != ours]
lowest, highest = (f"{end} of the other four backbones" for end in paper.OTHER_BACKBONES)
means.loc[lowest], means.loc[highest] = means.loc[others].min(), means.loc[others].max()
beside = [("C1", rung, None) for rung in tables.RUNGS] + [("C1", ours, paper.RETINAREGEN)]
beside += zip(["C2"] * 3, (lowest, highest, ours), (*paper.OTHER_BACKBONES.values(), paper.RETINAREGEN))
beside += [("C3", names["extractors"][word], score) for word, score in paper.EXTRACTORS.items()]
beside += [("C4", names["fusion"][word], score) for word, score in paper.FUSIONS.items()]
claims = pd.DataFrame(
    {"claim": claim, "row": row}
    | {f"paper_{metric}": getattr(score, metric, float("nan")) for metric in METRICS}
    | {f"ours_{metric}": means[metric][row] for metric in METRICS}
    | {f"ours_{metric}_sd": sds[metric].get(row, float("nan")) for metric in METRICS}
    for claim, row, score in beside
)
table = tables.beside(claims)
caption = (
    "The paper's numbers and ours, not to be compared in size: paper: SynFundus-1M, protocol, reference and number of images not "
    f"stated; ours: {facts['data']} data, {facts['protocol']} protocol, preset {preset}, {facts['size']} px, n = {facts['n']} "
    f"test images, seeds: {seeds}" + (", mean ± standard deviation over seeds." if seeds > 1 else ".")
)
tables.write(home / "tables", "11_summary", claims, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# ## Is the same order seen?
#
# Every claim is a list of pairs *better, worse*, taken from the paper's numbers: C1 (our addition) RetinaRegen and the two
# rungs; C2 RetinaRegen and each other backbone; C3 the paper's best extractor in a metric and each of the rest; C4 neighbours
# in the paper's order. *The same order* is said if every pair is told apart that way, *another order* if one is told apart the
# other way, and otherwise that they *cannot be told apart*. Beside it stands the pair that decides, and by how much its first
# is better (in LPIPS: lower), with an interval over images that holds for all pairs of the claim together. With several seeds
# a second interval, over the differences within seeds, must agree.

# %%
lines = []
for metric in METRICS:
    way = -1 if metric == "lpips" else 1  # best first
    extractors, fusions = (sorted(table, key=lambda word: -way * getattr(table[word], metric))
                           for table in (paper.EXTRACTORS, paper.FUSIONS))  # fmt: skip
    extractors, fusions = [names["extractors"][word] for word in extractors], [names["fusion"][word] for word in fusions]
    pairs = {
        "C1": [(ours, rung) for rung in tables.RUNGS],
        "C2": [(ours, other) for other in others],
        "C3": [(extractors[0], other) for other in extractors[1:]],
        "C4": list(pairwise(fusions)),
    }
    for claim in pairs:
        word, pair, (difference, low, high) = comparisons.verdict(scores, pairs[claim], metric)
        lines.append((claim, metric, word, *pair, difference, low, high))
verdicts = pd.DataFrame(lines, columns=["claim", "metric", "verdict", "better", "worse", "difference", "low", "high"])
verdicts = verdicts.sort_values("claim", kind="stable", ignore_index=True)
shown = tables.orders(verdicts)
certainty = comparisons.certainty(seeds, max(map(len, pairs.values())))
note = f"Orders of the paper, looked for in ours. {certainty}"
tables.write(home / "tables", "11_summary_orders", verdicts, shown, note)
Markdown(tables.markdown(shown, note))

# %% [markdown]
# ## The ladder
#
# Our configurations alone, each once, below the rungs that cost nothing. Small dots are single trainings.

# %%
dots = comparisons.per_seed(scores) if seeds > 1 else None
bars = figures.bars(study, METRICS, rungs=tables.RUNGS, seeds=dots, reference=ours)
figures.save(bars, pictures, "11_summary_ladder")

# %% [markdown]
# ## What it cost

# %%
cost = tables.cost(runs)
tables.write(home / "tables", "11_summary_cost", cost.reset_index(names="configuration"), cost, "What each configuration cost.")
Markdown(tables.markdown(cost))

# %% [markdown]
# ## Conclusion

# %%
numbers = facts | {"claims": claims.to_dict("records"), "orders": verdicts.to_dict("records"), "cost": cost.to_dict("index")}
known = {"preset": choose_preset(preset), "data": runs[ours][0].provenance["data"], "runs": tables.sources(runs)}
io.write_result(home / "11_summary.json", numbers, started=started, **known)
said = {
    "C1": "RetinaRegen restores well; here: is it better than both rungs",
    "C2": "the autoencoder is better than the other four backbones",
    "C3": "ResNet34 is the best extractor in PSNR and SSIM, MobileNet in LPIPS",
    "C4": "bilinear-static, bilinear-dynamic, upsample-dynamic, upsample-static, in this order",
}
eight = study[study.method.isin(names["extractors"].values())]
Markdown(
    "\n".join(
        f"* **{claim}** ({words}): "
        + "; ".join(f"{tables.SHOWN[row.metric][0]}: {row.verdict}" for row in verdicts[verdicts.claim == claim].itertuples())
        + "."
        for claim, words in said.items()
    )
    + "\n\nAmong our extractors the best is: "
    + "; ".join(
        f"{tables.SHOWN[metric][0]}: {' and '.join(tables.best(eight, metric))} (all: {values.min():.3f} to {values.max():.3f})"
        for metric in METRICS
        if (values := eight[eight.metric == metric]["mean"]).notna().all()
    )
    + f".\n\nOn {facts['n']} test images of {facts['data']} data, {facts['protocol']} protocol, preset {preset}; "
    + ("the backbones differ in objective too, see 07_backbones. " if cost["predicts"].nunique() > 1 else "")
    + certainty
    + " An order that is not seen here may still hold on the paper's data, and one that is seen may not. "
    "**The paper leaves open** the reference image, the number of test images, the seeds and the variance."
)

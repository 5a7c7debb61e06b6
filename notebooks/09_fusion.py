# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Four fusions
#
# **Question.** The condition $c$ is added to $x_t$ after repeating its features (`upsample`) or
# after bilinear interpolation (`bilinear`), with fixed weights (`static`) or learned weights
# (`dynamic`). Does it matter which?
#
# This chapter follows section 3.2 (third study). Every row is one configuration of notebook 06.
# The backbone and the extractor are the paper's choice. The paper reports that bilinear-static is
# far better than the other three.
#
# **What would be misleading.** The four fusions are nearly the same function. `dynamic` starts
# with all weights at 1, which is `static`, and a learned projection precedes each fusion. A
# difference of many decibels would indicate a failed training rather than an effect of
# interpolation.
#
# | | |
# | --- | --- |
# | needs | 06_restoration with all four fusions |
# | writes | `tables/09_fusion.csv`, `.md`, `.tex`, figures `09_fusion_*`, `09_fusion.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per configuration, seeds 0, 1, ...
out: str = "results"  # folder of all results; a relative path starts at the project's root

# %%
import time

from IPython.display import Markdown

from rr import files as io
from rr import studies
from rr.evaluate import figures, plots, sentences, statistics, tables
from rr.evaluate.runs import cost, metadata, read_study, study_provenance
from rr.provenance import write_result

started = time.time()
home, pictures = io.results(preset, out), io.figures(preset, out)
runs = {
    configuration.fusion: group
    for configuration, group in read_study(home, "fusion", seeds).items()
}
reference = studies.RETINAREGEN.fusion
scores = statistics.scores(runs)
data = metadata(runs, preset)
Markdown(
    f"{len(runs)} configurations, {data['n']} test images, {data['data']} data, {data['protocol']} protocol."
)

# %% [markdown]
# ## The table
#
# The rows are in the order in which the paper names them.

# %%
study = statistics.study(scores, reference)
marked = tables.labels(study)
table = tables.shown(study, reference)
caption = tables.caption("Four fusions of condition and state.", study, data, reference)
tables.write(home / "tables", "09_fusion", study, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# If there are several trainings, each is a dot. The right panels show the paired differences to
# the paper's choice.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = plots.bars(
    study, statistics.METRICS, baselines=statistics.BASELINES, seeds=dots, reference=reference
)
figures.save(bars, pictures, "09_fusion_bars")

# %% [markdown]
# ## The same eyes
#
# From the most degraded to the least degraded test image, restored with seed 0. Are blocks of 32
# pixels visible, as repeated features could make?

# %%
y, _, x = runs[reference][0].eyes
titles = ["input", *(marked[name].replace(" ", "\n") for name in runs), "reference"]
rows = {
    f"eye {i + 1}": [y[i], *(group[0].eyes[1, i] for group in runs.values()), x[i]]
    for i in range(studies.EYES)
}
figures.save(figures.grid(rows, titles, side=1.4), pictures, "09_fusion_eyes")

# %% [markdown]
# ## What it costs
#
# How many parameters do the learned weights of `dynamic` add?

# %%
Markdown(tables.markdown(cost(runs).rename(index=marked), tables.trainings(study)))

# %% [markdown]
# ## Which differences are significant
#
# A difference must hold for other images and for other trainings. All rows of one seed share
# batches and degradations, so rows are compared within a seed. With fewer than three trainings per
# row nothing can be decided.

# %%
Markdown(sentences.findings(scores, reference))

# %% [markdown]
# ## Conclusion

# %%
numbers = (
    data | statistics.numbers(scores, study, reference) | {"cost": cost(runs).to_dict("index")}
)
provenance = study_provenance(runs, preset)
write_result(home / "09_fusion.json", numbers, started=started, **provenance)
Markdown(
    sentences.conclusion(scores, study, reference)
    + " **The paper leaves open** how 256 channels become 3, what the learned weights belong to, and the variance."
)

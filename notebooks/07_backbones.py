# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Five backbones
#
# **Question.** The paper finds its variational autoencoder "significantly" ahead of U-Net, U-Net++, ResNet and DenseNet. Is
# that so on data that can be checked, and what is it that is compared?
#
# Follows section 3.2 (first study, Fig. 5). Every row is one configuration of notebook 06: extractor and fusion are the
# paper's choice throughout, the backbone differs.
#
# **What would be misleading.** A backbone comes with what it predicts: the autoencoder gives the *image*, the other four the
# *noise*, from which the image is computed. Two things change at once, and a row cannot say which of them did it. Nor is the
# effort equal: see the epochs and seconds below before blaming an architecture. Training the others on the image too
# (`-p objective=image` in notebook 06) would part the two.
#
# | | |
# | --- | --- |
# | needs | 06_restoration with all five backbones |
# | writes | `tables/07_backbones.csv`, `.md`, `.tex`, figures `07_backbones_*`, `07_backbones.json` |
# | time | smoke: 2 s on 1 thread(s) of a CPU |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per configuration, seeds 0, 1, ...
out: str = "results"  # folder of all results; a relative path starts at the project's root

# %%
import time

from IPython.display import Markdown

from rr import files as io
from rr import studies
from rr.evaluate import figures, sentences, statistics, tables
from rr.evaluate.runs import cost, metadata, read_study, sources
from rr.presets import preset as choose_preset
from rr.provenance import write_result

started = time.time()
home, pictures = io.results(preset, out), io.figures(preset, out)
runs = {
    configuration.backbone: group
    for configuration, group in read_study(home, "backbones", seeds).items()
}
reference = studies.RETINAREGEN.backbone
scores = statistics.scores(runs)
data = metadata(runs, preset)
Markdown(
    f"{len(runs)} configurations, {data['n']} test images, {data['data']} data, {data['protocol']} protocol."
)

# %% [markdown]
# ## The table
#
# In the paper's order. *do nothing* and *population mean* train nothing; a backbone below them has made its input worse,
# or has not even learned the average eye.

# %%
study = statistics.study(scores, reference)
table = tables.shown(study, reference)
caption = tables.caption("Five backbones.", study, data, reference)
tables.write(home / "tables", "07_backbones", study, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# Bars with the interval over images; dots are single trainings, if there are several. On the right, what bars from zero
# hide: the paired difference to the paper's choice.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = figures.bars(
    study, statistics.METRICS, rungs=statistics.BASELINES, seeds=dots, reference=reference
)
figures.save(bars, pictures, "07_backbones_bars")

# %% [markdown]
# ## The same eyes
#
# From the test image that was hurt the most to the one hurt the least, restored by seed 0. A code of a few hundred numbers
# (vae) cannot hold vessels; the others have the room to keep what the input shows, also its faults and the noise.

# %%
y, _, x = runs[reference][0].eyes
rows = {
    f"eye {i + 1}": [y[i], *(group[0].eyes[1, i] for group in runs.values()), x[i]]
    for i in range(studies.EYES)
}
figures.save(
    figures.grid(rows, ["input", *runs, "reference"], side=1.4), pictures, "07_backbones_eyes"
)

# %% [markdown]
# ## What it costs
#
# The table shows what else differs between the rows: the objective, the epochs, the number of trained parameters, the time.

# %%
Markdown(tables.markdown(cost(runs)))

# %% [markdown]
# ## Which differences are significant
#
# Other images, other trainings: a difference must outlive both to be a property of the backbone. A seed is a block: all rows
# of it share batches and degradations, so rows are compared within a seed.

# %%
Markdown(sentences.findings(scores, reference))

# %% [markdown]
# ## Conclusion

# %%
numbers = (
    data | statistics.numbers(scores, study, reference) | {"cost": cost(runs).to_dict("index")}
)
provenance = {
    "preset": choose_preset(preset),
    "data": runs[reference][0].provenance["data"],
    "runs": sources(runs),
}
write_result(home / "07_backbones.json", numbers, started=started, **provenance)
objectives = cost(runs)["predicts"]
effort = cost(runs)["epochs"]
Markdown(
    sentences.conclusion(scores, study, reference)
    + (
        " The backbones differ in what they predict too ("
        + "; ".join(f"{name}: {each}" for name, each in objectives.items())
        + "), so that no difference is the architecture's alone."
        if objectives.nunique() > 1
        else ""
    )
    + (
        f" Their epochs differ ({', '.join(f'{name}: {n}' for name, n in effort.items())})."
        if effort.nunique() > 1
        else ""
    )
    + " **The paper leaves open** what its backbones predict, how long they were trained, and the variance."
)

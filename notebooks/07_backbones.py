# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Five backbones
#
# **Question.** The paper finds its variational autoencoder "significantly" better than U-Net,
# U-Net++, ResNet and DenseNet. Is this so on data that can be checked, and what is compared?
#
# This chapter follows section 3.2 (first study, Fig. 5). Every row is one configuration of
# notebook 06. The extractor and the fusion are the paper's choice, and the backbone differs.
#
# **What would be misleading.** The backbones also differ in what they predict: the autoencoder
# predicts the *image*, the other four predict the *noise*, from which the image is computed. So
# two things change at once. The training effort is not equal either: the table of cost shows
# images seen and seconds. Chapter 10 separates backbone and prediction.
#
# | | |
# | --- | --- |
# | needs | 06_restoration with all five backbones |
# | writes | `tables/07_backbones.csv`, `.md`, `.tex`, figures `07_backbones_*`, `07_backbones.json` |

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
# The rows are in the paper's order. *Do nothing* and *population mean* need no training. A
# backbone below *do nothing* makes its input worse.

# %%
study = statistics.study(scores, reference)
marked = tables.labels(study)
table = tables.shown(study, reference)
caption = tables.caption("Five backbones.", study, data, reference)
tables.write(home / "tables", "07_backbones", study, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# The bars have intervals over images. If there are several trainings, each is a dot. The right
# panels show the paired difference to the paper's choice.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = plots.bars(
    study, statistics.METRICS, baselines=statistics.BASELINES, seeds=dots, reference=reference
)
figures.save(bars, pictures, "07_backbones_bars")

# %% [markdown]
# ## The same eyes
#
# From the most degraded to the least degraded test image, restored with seed 0. The VAE passes the
# eye through a short code z, the other backbones through feature maps. Which
# columns show vessels? Which ones keep the faults of the input, or noise?

# %%
y, _, x = runs[reference][0].eyes
titles = ["input", *(marked[name].replace(" ", "\n") for name in runs), "reference"]
rows = {
    f"eye {i + 1}": [y[i], *(group[0].eyes[1, i] for group in runs.values()), x[i]]
    for i in range(studies.EYES)
}
figures.save(figures.grid(rows, titles, side=1.4), pictures, "07_backbones_eyes")

# %% [markdown]
# ## What it costs
#
# The rows also differ in what they predict, in the images seen, in the number of parameters and in time.

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
write_result(home / "07_backbones.json", numbers, started=started, **provenance)
objectives = cost(runs)["predicts"]
effort = cost(runs)["images seen"]
Markdown(
    sentences.conclusion(scores, study, reference)
    + (
        " The backbones differ in what they predict too ("
        + "; ".join(f"{name}: {objective}" for name, objective in objectives.items())
        + "), so that no difference is the architecture's alone."
        if objectives.nunique() > 1
        else ""
    )
    + (
        f" The numbers of images that they see in training differ ({', '.join(f'{name}: {n}' for name, n in effort.items())})."
        if effort.nunique() > 1
        else ""
    )
    + " **The paper leaves open** what its backbones predict, how long they were trained, and the variance."
)

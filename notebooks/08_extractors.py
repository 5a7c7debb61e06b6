# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Eight feature extractors
#
# **Question.** Eight networks can provide the condition $c$. The paper's Table 1 finds the
# differences "relatively small" and chooses ResNet34. Are there any differences?
#
# This chapter follows section 3.2 (second study) and remakes Table 1 in its order. Every row is
# one configuration of notebook 06. The backbone and the fusion are the paper's choice. All eight
# extractors give $c$ the same resolution, H/32 x W/32 positions rounded up: the feature maps of
# AlexNet and VGG16 are max-pooled to it, and zeros complete the last patches of *attention*.
#
# **What would be misleading.** The condition is *static*: it is the mean of the features over all
# readable images. For every extractor, the restorer gets one constant per position, the same for
# every eye, which it could also learn as a bias. Do rows differ more than two trainings of one row
# do? Among eight equal rows, one is always the best. Therefore the spread between the rows is
# compared with the spread between trainings.
#
# | | |
# | --- | --- |
# | needs | 03_features and 06_restoration with all eight extractors |
# | writes | `tables/08_extractors.csv`, `.md`, `.tex`, figures `08_extractors_*`, `08_extractors.json` |

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
    configuration.extractor: group
    for configuration, group in read_study(home, "extractors", seeds).items()
}
reference = studies.RETINAREGEN.extractor
scores = statistics.scores(runs)
data = metadata(runs, preset)
Markdown(
    f"{len(runs)} configurations, {data['n']} test images, {data['data']} data, {data['protocol']} protocol."
)

# %% [markdown]
# ## The table
#
# All extractors have the same grid of positions, because their feature maps are resized to it.

# %%
study = statistics.study(scores, reference)
marked = tables.labels(study)
table = tables.shown(study, reference)
caption = tables.caption("Eight extractors of the condition.", study, data, reference)
tables.write(home / "tables", "08_extractors", study, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# The right panels show the paired differences to ResNet34.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = plots.bars(
    study, statistics.METRICS, baselines=statistics.BASELINES, seeds=dots, reference=reference
)
figures.save(bars, pictures, "08_extractors_bars")

# %% [markdown]
# ## The same eyes
#
# From the most degraded to the least degraded test image, restored with seed 0. Can you tell the
# columns apart?

# %%
y, _, x = runs[reference][0].eyes
titles = ["input", *(marked[name].replace(" ", "\n") for name in runs), "reference"]
rows = {
    f"eye {i + 1}": [y[i], *(group[0].eyes[1, i] for group in runs.values()), x[i]]
    for i in range(studies.EYES)
}
figures.save(figures.grid(rows, titles), pictures, "08_extractors_eyes")

# %% [markdown]
# ## What it costs
#
# These are the costs of the restorer. The extractor was trained before (notebook 03) and is
# frozen.

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
write_result(home / "08_extractors.json", numbers, started=started, **provenance)
Markdown(
    sentences.conclusion(scores, study, reference)
    + " **The paper leaves open** how the added convolution and attention are trained, and the variance."
)

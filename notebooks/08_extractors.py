# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Eight feature extractors
#
# **Question.** Eight networks may deliver the condition $c$. The paper's Table 1 finds the differences "relatively small" and
# takes ResNet34. Are there differences at all?
#
# Follows section 3.2 (second study) and remakes Table 1, in its order. Every row is one configuration of notebook 06;
# backbone and fusion are the paper's choice throughout.
#
# **What would be misleading.** The condition is *static*: the mean of the features over all readable images. Whatever the
# extractor, the restorer is given one constant per place, the same for every eye, which it could as well have learned as a
# bias. Rows may then differ as two seeds of one row differ, and a table of single runs would still have a best row: of eight
# equal ones, one always wins. So the spread between the rows is held against the chance that is left within seeds.
#
# | | |
# | --- | --- |
# | needs | 03_features and 06_restoration with all eight extractors |
# | writes | `tables/08_extractors.csv`, `.md`, `.tex`, figures `08_extractors_*`, `08_extractors.json` |
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
# Look at the last digits that differ, and at ± before believing them.

# %%
study = statistics.study(scores, reference)
table = tables.shown(study, reference)
caption = tables.caption("Eight extractors of the condition.", study, data, reference)
tables.write(home / "tables", "08_extractors", study, table, caption)
Markdown(tables.markdown(table, caption))

# %% [markdown]
# Expect bars of the same length. On the right, the paired differences to ResNet34, and the line at zero.

# %%
dots = statistics.per_seed(scores) if seeds > 1 else None
bars = figures.bars(
    study, statistics.METRICS, rungs=statistics.BASELINES, seeds=dots, reference=reference
)
figures.save(bars, pictures, "08_extractors_bars")

# %% [markdown]
# ## The same eyes
#
# From the test image that was hurt the most to the one hurt the least, restored by seed 0. Is there any column that you would
# recognise?

# %%
y, _, x = runs[reference][0].eyes
rows = {
    f"eye {i + 1}": [y[i], *(group[0].eyes[1, i] for group in runs.values()), x[i]]
    for i in range(studies.EYES)
}
figures.save(figures.grid(rows, ["input", *runs, "reference"]), pictures, "08_extractors_eyes")

# %% [markdown]
# ## What it costs
#
# Of the restorer alone: the extractor was trained before (notebook 03) and is frozen.

# %%
Markdown(tables.markdown(cost(runs)))

# %% [markdown]
# ## Which differences are significant
#
# A seed is a block: all rows of it share batches and degradations, so rows are compared within a seed. If the chance that is
# left in the trainings spreads the rows as far as they are spread, the extractor explains nothing.

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
write_result(home / "08_extractors.json", numbers, started=started, **provenance)
Markdown(
    sentences.conclusion(scores, study, reference)
    + " **The paper leaves open** how the added convolution and attention are trained, and the variance."
)

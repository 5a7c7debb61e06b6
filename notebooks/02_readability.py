# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Can it be read? The classifier
#
# **Question.** Can a network tell whether an image is a fundus photograph and which of its regions are readable?
#
# Follows section 2.2 and remakes Fig. 2: InceptionV3, four sigmoid outputs, binary cross-entropy with class weights,
# RMSprop at $10^{-4}$, flips and changes of brightness and contrast, split 64/16/20.
#
# | | |
# | --- | --- |
# | needs | 01_data |
# | writes | `checkpoints/readability/`, `tables/02_readability_*.csv`, figures `02_readability_*`, `02_readability.json` |
# | time | smoke: 113 s on 1 thread(s) of a CPU |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to train
weights: str = ""  # imagenet | none: where InceptionV3 starts; empty: the preset's value

# %%
import time
from inspect import getsource

import torch
from IPython.display import Code, Markdown

from rr import figures, io, train
from rr.data import Packed
from rr.paper import LABELS
from rr.presets import preset as choose_preset
from rr.readability import Readability, augment, curves, report

started = time.time()
P = choose_preset(preset, seed=seed, weights=weights or None)
home, pictures = io.results(preset, out), io.figures(preset, out)
packed = Packed(data or home / "data", P.size)
fabric = train.fabric(device)

# %% [markdown]
# ## The loss
#
# With $p_k = \sigma(z_k)$ for label $k$ and the class weight $w_k$ = negatives / positives of the training images,
#
# $$ \mathcal{L} = -\frac{1}{4}\sum_{k=1}^{4} \bigl[ w_k \, y_k \log p_k + (1 - y_k) \log (1 - p_k) \bigr]. $$
#
# Four labels that exclude nothing: four separate decisions, not one choice among four.

# %%
Code(getsource(Readability.weigh_classes) + "\n" + getsource(Readability.loss), language="python")

# %% [markdown]
# What the network sees in training: the same image five times, augmented.

# %%
rows, val = packed.labelled("train"), packed.labelled("val")
one = packed.batch(rows[:1]).expand(5, -1, -1, -1)
figures.save(
    figures.grid({"augmented": augment(one, torch.Generator().manual_seed(seed))}), pictures, "02_readability_augmentation"
)

# %% [markdown]
# ## Training

# %%
torch.manual_seed(seed)
classifier = Readability()
start = classifier.start_from(P.weights)
classifier.weigh_classes(packed.labels[rows])
folder = home / "checkpoints" / "readability"
log = train.run(
    "readability",
    classifier,
    packed,
    rows,
    val,
    folder=folder,
    epochs=P.classifier_epochs,
    batch=P.batch,
    lr=P.classifier_lr,
    ema=P.ema,
    seed=seed,
    optimizer="rmsprop",
    fabric=fabric,
    facts={"preset": preset, "weights": start},
)
figures.save(figures.learning(log), pictures, "02_readability_training")

# %% [markdown]
# ## On the test images
#
# Expect four 2x2 matrices: one decision per label. Beside each accuracy stands what the majority class would score, and
# in the PR plot, dotted, the prevalence: the precision of a coin.

# %%
test = packed.labelled("test")
probabilities = classifier.probabilities(packed.batch(test, fabric.device))
scores = report(packed.labels[test], probabilities)
io.write_table(home / "tables" / "02_readability_report.csv", scores)
scores.round(3).set_index("label").T

# %%
figures.save(figures.confusion(scores), pictures, "02_readability_confusion")

# %%
points = curves(packed.labels[test], probabilities)
io.write_table(home / "tables" / "02_readability_curves.csv", points)
figures.save(figures.roc_pr(points, scores), pictures, "02_readability_roc_pr")

# %% [markdown]
# ## One eye
#
# Of the test images that are eyes, the one whose disc is judged best and the one whose disc is judged worst:

# %%
eyes = (packed.labels[test, LABELS.index("fundus")] == 1).nonzero()[:, 0]
order = eyes[probabilities[eyes, LABELS.index("disc")].argsort()]
picks = [int(order[-1]), int(order[0])]
captions = [", ".join(f"{label} {p:.2f}" for label, p in zip(LABELS, probabilities[i])) for i in picks]
figures.save(
    figures.grid({"best, worst": packed.batch(test[picks])}, ["\n".join(c.split(", ")) for c in captions], side=1.6),
    pictures,
    "02_readability_extremes",
)

# %% [markdown]
# ## Conclusion

# %%
auc = scores.set_index("label")["roc_auc"]
io.write_result(
    home / "02_readability.json",
    scores.to_dict("records"),
    started=started - log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
    weights=start,
)
better = [row.label for row in scores.itertuples() if row.accuracy > row.majority]
Markdown(
    f"Started from {start}. On {len(test)} test images the area under the ROC curve is "
    + ", ".join(f"{value:.2f} ({label})" for label, value in auc.dropna().items())
    + " (0.5 is chance). "
    + f"Accuracy beats the majority class for: {', '.join(better) or 'no label'}. "
    "**The paper leaves open** epochs, batch size, thresholds, and all numbers behind its Fig. 2."
)

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Can it be read? The classifier
#
# **Question.** Can a network tell whether an image is a fundus photograph and which of its regions
# are readable? Can the network be fooled?
#
# This chapter follows section 2.2 and remakes Fig. 2: InceptionV3 with four sigmoid outputs,
# binary cross-entropy with class weights, RMSprop at $10^{-4}$, random flips and changes of
# brightness and contrast, and a 64/16/20 split. The classifier selects the images to restore.
# Therefore a second classifier, a ResNet18 that is trained separately, also evaluates the results.
#
# **What would be misleading.** An accuracy needs the accuracy of the majority class beside it. An
# area under a curve needs its interval if a class has seven images. Near-duplicates of one eye
# must not be on both sides of the split. And the approval of a classifier does not prove a
# restoration: the last part shows what else the classifiers approve.
#
# | | |
# | --- | --- |
# | needs | 01_data |
# | writes | two checkpoints, tables and figures `02_readability_*`, `02_readability.json` |

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

import pandas as pd
import torch
from IPython.display import Code, Markdown, display

from rr import files as io
from rr.data.dataset import Packed
from rr.data.pairs import augment
from rr.evaluate import baselines, figures, plots
from rr.evaluate.classification import (
    curves,
    passed,
    readable,
    reliability,
    report,
    share,
)
from rr.models.readability import Readability
from rr.paper import LABELS
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import configs, distributed, loop

started = time.time()
P = choose_preset(preset, seed=seed, weights=weights or None)
home, pictures = io.results(preset, out), io.figures(preset, out)
packed = Packed(data or home / "data", P.size)
fabric = distributed.fabric(device)

# %% [markdown]
# ## The loss
#
# With $p_k = \sigma(z_k)$ for label $k$ and the class weight $w_k$ = negatives / positives of the
# training images,
#
# $$ \mathcal{L} = -\frac{1}{4}\sum_{k=1}^{4} \bigl[ w_k \, y_k \log p_k + (1 - y_k) \log (1 - p_k) \bigr]. $$
#
# The four labels do not exclude each other. They are four separate decisions and not one choice
# among four.

# %%
Code(getsource(Readability.weigh_classes) + "\n" + getsource(Readability.loss), language="python")

# %% [markdown]
# In training the network sees augmented images. This is the same image five times:

# %%
rows = packed.labelled("train")
one = packed.batch(rows[:1]).expand(5, -1, -1, -1)
figures.save(
    figures.grid({"augmented": augment(one, torch.Generator().manual_seed(seed))}),
    pictures,
    "02_readability_augmentation",
)

# %% [markdown]
# These are the class weights. A label that is mostly positive has $w < 1$, which gives its few
# negatives more weight.

# %%
groups = packed.table.groupby("group")["split"]
print(
    f"near-duplicates: {packed.manifest['near_duplicates']}, of which on two sides: {(groups.nunique() > 1).sum()}"
)
weight = Readability()
weight.weigh_classes(packed.labels[rows])
pd.DataFrame(
    {
        "positives": packed.labels[rows].sum(0).int(),
        "negatives": (1 - packed.labels[rows]).sum(0).int(),
        "weight w": weight.pos_weight,
    },
    index=LABELS,
).round(3)

# %% [markdown]
# ## Training

# %%
config = configs.config("readability", P, packed, home)
classifier, start = config.model, config.metadata["weights"]
config

# %%
log = loop.run(config, fabric)
figures.save(plots.learning(log), pictures, "02_readability_training")

# %% [markdown]
# ## A second classifier
#
# The second classifier has another architecture, other initial weights and another order of the
# images. It sees half as many images, and the same labels, so errors of the labels affect both
# classifiers.

# %%
config = configs.config("heldout", P, packed, home)
heldout = config.model
heldout_log = loop.run(config, fabric)

# %% [markdown]
# ## On the test images
#
# There are four 2x2 matrices, one per label. The accuracy of the majority class stands beside each
# accuracy. The dotted line of the PR plot is the prevalence, which is the precision of random
# guessing. Decisions use probabilities that are corrected for the class weights, with a threshold
# of 0.5. Intervals are 95 % bootstrap intervals over the test images.

# %%
test = packed.labelled("test")
classifiers = {"classifier": classifier, "held-out classifier": heldout}
predicted = {
    name: network.probabilities(packed.batch(test, fabric.device))
    for name, network in classifiers.items()
}
probabilities = predicted["classifier"]
scores = report(packed.labels[test], probabilities)
second = report(packed.labels[test], predicted["held-out classifier"])
io.write_table(home / "tables" / "02_readability_report.csv", scores)
io.write_table(home / "tables" / "02_readability_heldout.csv", second)
pd.concat({"classifier": scores, "held-out classifier": second}).droplevel(1).set_index(
    "label", append=True
).round(3).T

# %%
agree = share(readable(predicted["classifier"]) == readable(predicted["held-out classifier"]))
print(
    f"Both classifiers agree on {agree['share']:.0%} [{agree['low']:.0%}, {agree['high']:.0%}] of "
    f"{agree['n']} images whether all four labels are readable."
)

# %%
figures.save(plots.confusion(scores), pictures, "02_readability_confusion")

# %%
points = curves(packed.labels[test], probabilities)
io.write_table(home / "tables" / "02_readability_curves.csv", points)
figures.save(plots.roc_pr(points, scores), pictures, "02_readability_roc_pr")

# %% [markdown]
# ## Calibration
#
# A probability is calibrated if 80 % of the images with a probability of 0.8 are readable. Class
# weights destroy calibration: the weighted loss is smallest at odds that are $w$ times the true
# odds. `Readability.probabilities` divides the odds by $w$, so that the logit $z$ becomes
#
# $$ p = \sigma(z - \log w). $$
#
# Adding $\log w$ again gives the uncorrected $\sigma(z)$. The expected calibration error (ECE, ten
# bins) is given for both. With few images even a perfect classifier has an ECE above zero. The
# column *calibrated* is the value that 95 % of perfect classifiers would not exceed.

# %%
uncorrected = {
    name: (predicted[name].logit() + network.pos_weight.cpu().log()).sigmoid()
    for name, network in classifiers.items()
}
points = {name: reliability(packed.labels[test], p) for name, p in predicted.items()}
calibration = pd.DataFrame(
    {
        "classifier": name,
        "label": corrected.label,
        "weight": float(w),
        "ece": corrected.ece,
        "ece_uncorrected": raw.ece,
        "ece_calibrated": corrected.ece_calibrated,
    }
    for name, network in classifiers.items()
    for corrected, raw, w in zip(
        report(packed.labels[test], predicted[name]).itertuples(),
        report(packed.labels[test], uncorrected[name]).itertuples(),
        network.pos_weight,
    )
)
io.write_table(home / "tables" / "02_readability_calibration.csv", calibration)
calibration.round(3)

# %%
figures.save(plots.reliability(points), pictures, "02_readability_calibration")

# %% [markdown]
# ## One eye
#
# The test images with the highest and the lowest probability of a readable disc:

# %%
eyes = (packed.labels[test, LABELS.index("fundus")] == 1).nonzero()[:, 0]
order = eyes[probabilities[eyes, LABELS.index("disc")].argsort()]
picks = [int(order[-1]), int(order[0])]
captions = [
    ", ".join(f"{label} {p:.2f}" for label, p in zip(LABELS, probabilities[i])) for i in picks
]
figures.save(
    figures.grid(
        {"best, worst": packed.batch(test[picks])},
        ["\n".join(c.split(", ")) for c in captions],
        side=1.6,
    ),
    pictures,
    "02_readability_extremes",
)

# %% [markdown]
# ## What else is approved?
#
# We take test images that are unreadable by their label and for both classifiers, and we change
# them in ways that restore nothing. We equalise the contrast (CLAHE), sharpen once, sharpen three
# times, replace the image by the mean of the readable training images, or replace it by a readable
# photograph of *another eye*. A classifier that sees only the picture must accept the last one,
# because it is readable. But it does not show the patient. So the share of accepted restorations
# says little unless the other lines are low.

# %%
eyes = packed.rows("test", readable=False)
of_eyes = [
    network.probabilities(packed.batch(eyes, fabric.device)) for network in classifiers.values()
]
eyes = eyes[~readable(of_eyes[0]) & ~readable(of_eyes[1])]
clean = packed.clean_rows("test")
strangers = clean[
    torch.randint(len(clean), (len(eyes),), generator=torch.Generator().manual_seed(seed)).numpy()
]
population = baselines.population(
    (packed.batch([i]) * packed.fov([i]), packed.fov([i])) for i in packed.clean_rows("train")
)
methods = baselines.baselines(population)
y, fov = packed.batch(eyes) * packed.fov(eyes), packed.fov(eyes)
tricks = {name: methods[name](y, fov, None) for name in ("do nothing", "CLAHE", "unsharp")}
tricks["unsharp, three times"] = methods["unsharp"](
    methods["unsharp"](tricks["unsharp"], fov, None), fov, None
)
tricks["population mean"] = methods["population mean"](y, fov, None)
tricks["another eye"] = packed.batch(strangers) * fov

# %%
lines = []
for name, network in classifiers.items():
    base = network.probabilities(y.to(fabric.device))
    for trick, image in tricks.items():
        after = network.probabilities(image.to(fabric.device))
        passes, rises = passed(after), share(after.mean(1) > base.mean(1))
        lines.append(
            {"classifier": name, "method": trick, "n": passes["n"]}
            | {
                f"passed{end}": passes[key]
                for end, key in (("", "share"), ("_low", "low"), ("_high", "high"))
            }
            | {
                f"raised{end}": rises[key]
                for end, key in (("", "share"), ("_low", "low"), ("_high", "high"))
            }
        )
fooled = pd.DataFrame(lines)
io.write_table(home / "tables" / "02_readability_fooled.csv", fooled)
fooled.round(3)

# %% [markdown]
# *Passed* means that all four labels are readable. *Raised* means that the mean of the four
# probabilities is higher than before. The intervals are 95 % Wilson intervals over images.

# %%
figures.save(plots.shares(fooled, ("passed", "raised")), pictures, "02_readability_fooled")

# %%
if len(eyes):
    display(
        figures.save(
            figures.grid({name: image[:6] for name, image in tricks.items()}),
            pictures,
            "02_readability_tricks",
        )
    )

# %% [markdown]
# ## Conclusion

# %%
auc = scores.set_index("label")["roc_auc"]
write_result(
    home / "02_readability.json",
    {
        "classifier": scores.to_dict("records"),
        "held-out classifier": second.to_dict("records"),
        "calibration": calibration.to_dict("records"),
        "same_verdict": agree,
        "fooled": fooled.to_dict("records"),
    },
    started=started - log.attrs["before"] - heldout_log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
    weights=start,
)
better = [row.label for row in scores.itertuples() if row.above_majority_low > 0]
passes = fooled.pivot(index="method", columns="classifier", values="passed").loc[list(tricks)[1:]]
Markdown(
    f"The training started from {start}. On {len(test)} test images the area under the ROC curve is "
    + ", ".join(f"{value:.2f} ({label})" for label, value in auc.dropna().items())
    + " (0.5 is chance). "
    + "The accuracy is higher than that of the majority class, interval included, for: "
    + f"{', '.join(better) or 'no label'}. "
    + f"The held-out classifier gives the same verdict on {agree['share']:.0%} of them. "
    + (
        f"These shares of {len(eyes)} unreadable eyes are accepted by the classifier and by the "
        "held-out classifier after a change: "
        + "; ".join(
            f"{name} {row['classifier']:.0%} and {row['held-out classifier']:.0%}"
            for name, row in passes.iterrows()
        )
        + ". None of these changes restores anything. "
        if len(eyes)
        else "No test image is unreadable for both classifiers, so they could not be tested with changed images. "
    )
    + "**The paper leaves open** the length of the training, batch size, thresholds, and all numbers behind its Fig. 2."
)

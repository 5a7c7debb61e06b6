# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · The data: eyes, degradations, labels
#
# **Question.** What does the method see, and what does "unreadable" mean?
#
# This chapter follows sections 2.2 (labels, 64/16/20 split) and 3.1 (data) of the paper. The paper
# uses SynFundus-1M, which is available by application only. Therefore this notebook *draws* its
# photographs by default: artificial eyes with known anatomy, degraded by a known operator. A
# folder of photographs can replace them (parameter `data`).
#
# | | |
# | --- | --- |
# | needs | nothing |
# | writes | the packed data set `data/`, `tables/01_data_*.csv`, figures `01_data_*`, `01_data.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = "embedded"  # "embedded" draws eyes; else a folder of photographs
labels: str = ""  # CSV with the labels of that folder; empty: none
out: str = "results"  # folder of all results; a relative path starts at the project's root
workers: int = 0  # processes that read or draw images, 0: one per core; the result is the same

# %%
import time
from inspect import getsource

import pandas as pd
import torch
from IPython.display import Code, Markdown

from rr import files as io
from rr.data import degrade, readable, sources, synthetic
from rr.data.packing import pack
from rr.data.photo import to_tensor
from rr.evaluate import figures, metrics, tables
from rr.paper import LABELS
from rr.presets import preset as choose_preset
from rr.provenance import write_result

started = time.time()
P = choose_preset(preset, seed=seed)
source = sources.source(data, labels, P.n, seed)
home, pictures = io.results(preset, out), io.figures(preset, out)
P

# %% [markdown]
# ## One eye
#
# A number determines everything about a drawn eye: the field of view, the optic disc with its cup,
# the vessel tree, the fovea about 2.5 disc diameters from the disc, the pigment, and lesions in
# some eyes. The calibres of the vessels follow Murray's law $r_0^3 = r_1^3 + r_2^3$ at every
# branching. Because the eye is drawn, its anatomy is known exactly, and labels and metrics can be
# checked against it.

# %%
eye = synthetic.fundus(seed, 3, 384)
masks = torch.stack(
    [torch.from_numpy(mask).expand(3, -1, -1) for mask in (eye.fov, eye.disc, eye.cup, eye.vessels)]
)
x = to_tensor(eye.image)
figures.save(
    figures.grid(
        {f"{eye.side} eye": torch.cat([x, masks.float()])},
        ["photograph", "field of view", "disc", "cup", "vessels"],
        side=1.6,
    ),
    pictures,
    "01_data_anatomy",
)

# %% [markdown]
# ## Many eyes
#
# Look for left and right eyes, light and dark fundi, round and cut fields of view, and lesions.
# The variety of real cameras and patients is missing. Therefore numbers on these images say
# nothing about other images.

# %%
eyes = [to_tensor(synthetic.fundus(seed, i, 192).image) for i in range(40)]
figures.save(
    figures.sheet(torch.cat(eyes), columns=10, side=0.9), pictures, "01_data_contact_sheet"
)

# %% [markdown]
# ## The degradation $y = A(x)$
#
# There are three families, applied in this order: uneven **illumination**, bright **spots**, and
# **blur**. All lengths are fractions of the image width, so that images of 96 and 512 pixels are
# degraded in the same way. Severity 0 changes nothing.

# %%
fov = torch.from_numpy(eye.fov)[None, None]
severities = [0.0, 0.25, 0.5, 0.75, 1.0]
rows, quality = {}, []
for families in (("illumination",), ("spots",), ("blur",), degrade.FAMILIES):
    name = families[0] if len(families) == 1 else "all three"
    y = torch.cat(
        [
            degrade.apply(
                x, degrade.sample(1, torch.Generator().manual_seed(seed), families, s), fov
            )
            for s in severities
        ]
    )
    rows[name] = y
    values = metrics.score(x.expand_as(y), y, fov.expand(len(y), -1, -1, -1))
    quality.append(values.assign(family=name, severity=severities))
figures.save(
    figures.grid(rows, [f"severity {s:g}" for s in severities], side=1.3),
    pictures,
    "01_data_degradation",
)

# %% [markdown]
# The table shows the scores of the degraded image itself, for this eye. This is the baseline *do
# nothing* of the later chapters.

# %%
quality = pd.concat(quality)[["family", "severity", "psnr", "ssim", "psnr_fov", "ssim_fov"]]
io.write_table(home / "tables" / "01_data_degradation.csv", quality)
tables.text(quality.set_index(["family", "severity"]))

# %% [markdown]
# ## When is a region readable?
#
# The paper's four labels say whether an image is a fundus photograph, and whether macula, optic
# disc and retinal region are readable. We know what was done to our images, so a rule gives the
# labels. In each region, the *detail* $h$ after the degradation is compared with the detail before
# it:
#
# $$ g = \frac{\langle h_x, h_y \rangle}{\langle h_x, h_x \rangle}, \qquad
#    \rho = \frac{\langle h_x, h_y \rangle}{\lVert h_x \rVert \, \lVert h_y \rVert}. $$
#
# A region is readable if enough contrast is left ($g$) and if the visible detail is the original
# detail ($\rho$).

# %%
Code(getsource(readable.readable), language="python")

# %%
print(f"readable if g >= {readable.G_MIN} and rho >= {readable.RHO_MIN}")

# %% [markdown]
# ## Packing
#
# The images are prepared once: the field of view is found, cropped, padded to a square and
# resized. Near-duplicates stay on one side of the split. If the preparation is interrupted, it
# continues where it stopped. The packed images are memory-mapped, so that opening the data set
# reads no image.

# %%
packed = pack(source, P.size, home / "data", seed, workers)
table = packed.table
splits = (
    table.groupby("split")[list(LABELS)].agg("mean").assign(images=table["split"].value_counts())
)
io.write_table(home / "tables" / "01_data_splits.csv", splits.reset_index())
splits.round(3)

# %% [markdown]
# An image can have an unreadable disc and a readable macula. These are the label patterns that
# occur (fundus, macula, disc, retina), with at most six images of each:

# %%
patterns = table[list(LABELS)].value_counts().head(6).index
rows = {
    ", ".join(name for name, v in zip(LABELS, pattern) if v) or "no label": packed.batch(
        packed.rows(**dict(zip(LABELS, pattern)))[:6]
    )
    for pattern in patterns
}
figures.save(figures.grid(rows, side=1.1), pictures, "01_data_labels") if rows else Markdown(
    "no labels given"
)

# %% [markdown]
# ## Conclusion

# %%
numbers = {
    "images": len(packed),
    "size": packed.size,
    "splits": packed.manifest["splits"],
    "prevalence": packed.manifest["prevalence"],
    "readable": len(packed.rows(readable=True)),
    "near_duplicates": packed.manifest["near_duplicates"],
    "skipped": packed.manifest["skipped"],
    "missing": packed.manifest["missing"],
}
write_result(
    home / "01_data.json",
    numbers,
    started=started,
    device="cpu",
    preset=P,
    seed=seed,
    data=packed.hash,
    source=packed.manifest["recipe"]["source"],
)
Markdown(
    f"{numbers['images']} images of {P.size} px, {numbers['readable']} of them readable in all four labels "
    f"({numbers['readable'] / numbers['images']:.0%}). A classifier that always says yes is right on "
    + ", ".join(f"{p:.0%} ({label})" for label, p in numbers["prevalence"].items() if p is not None)
    + " of them: accuracies must be read against that. "
    "**The paper leaves open** how its labels were made and which reference an unreadable image has."
)

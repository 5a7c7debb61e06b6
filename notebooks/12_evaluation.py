# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 12 · One evaluation for every restorer
#
# **Question.** Which restorer helps against which degradation, by how much, and what does it
# break?
#
# Every method is a function from degraded images to restored images: doing nothing, classical
# image processing, the paper's method, a one-step U-Net, a bridge, and the restorer that this
# project recommends. The same code scores all of them on the same images with the same
# degradations, at three severities. No method was trained on one of the degradations, haze.
#
# **What would be misleading.** A method needs baselines beside it: how many decibels does a
# constant image reach, and how many the photograph of another eye? A mean over degradations can
# hide that a method improves one and worsens another, so nothing is averaged over families. A
# restorer may also change good images, so this is measured. Selected pictures prove nothing, so a
# rule selects the failures below. A classifier can be fooled, so there are two, and vessels, disc
# and colours are measured as well.
#
# | | |
# | --- | --- |
# | needs | 01_data, 02_readability, 06_restoration with all backbones, the literal protocol, the bridge, the one-step U-Net |
# | writes | `tables/12_evaluation*`, `12_evaluation_per_image.csv`, figures `12_evaluation_*`, `12_evaluation.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per trained method, seeds 0, 1, ...
seed: int = 0  # from 0: of the degradations
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where the models restore
limit: int = 12  # from 3: test images of the data set, the first ones
photos: str = ""  # folder of clean photographs to evaluate on instead, at 256 px
names: str = "*"  # photographs whose names match, like eye_1[1-5]*; several patterns with commas
train_photos: str = ""  # folder of photographs for training-free methods; empty: the data set's

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown

from rr import checkpoint, restore, studies
from rr import files as io
from rr.data.dataset import Packed
from rr.evaluate import (
    baselines,
    downstream,
    figures,
    harness,
    inputs,
    metrics,
    plots,
    statistics,
    tables,
)
from rr.evaluate.harness import REFERENCE
from rr.evaluate.inputs import FULL, UNDEGRADED
from rr.models import bridge
from rr.models.readability import Readability
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train.distributed import fabric

started = time.time()
P = choose_preset(preset)
home, pictures = io.results(preset, out), io.figures(preset, out)
stem = "12_evaluation_photographs" if photos else "12_evaluation"
packed = Packed(data or home / "data", P.size)
on = fabric(device).device

# %% [markdown]
# ## The images
#
# Clean images are degraded here, so that the truth is known. The methods may know the training
# images. None of them knows the test images.

# %%
train_rows = packed.clean_rows("train")
size = 256 if photos else P.size
images = inputs.photographs(photos, size, names) if photos else inputs.test_images(packed, limit)
others = (
    inputs.photographs(train_photos, size, exclude=images if photos else None)
    if train_photos
    else None
)
population = (
    baselines.population([(others.x, others.fov)])
    if others
    else baselines.population(
        (packed.batch([i]) * packed.fov([i]), packed.fov([i])) for i in train_rows
    )
)
strangers = (
    others.x
    if others
    else inputs.resize(packed.batch(train_rows[:100]) * packed.fov(train_rows[:100]), size)
)
source = (
    f"photographs ({Path(photos).name})"
    if photos
    else f"{packed.manifest['recipe']['source']['kind']} data"
)
Markdown(f"{len(images.names)} images of {size} px, {source}; {len(inputs.CONDITIONS)} conditions.")

# %% [markdown]
# ## The methods
#
# If a method was trained at another size, the images are resized to that size and the result is
# enlarged. Detail that is lost in this way counts against the method. "Known blur" is told the
# true width of the blur, which is unknown for a real photograph. *RetinaRegen* restores every
# image. *Screened* is the whole method, where the classifier leaves readable images alone.
# *Literal* is the paper's method, trained on unreadable images as their own targets. The four
# other backbones are slow, so they are scored in one condition only.

# %%
backbones = {
    f"RetinaRegen ({row.backbone})": row
    for row in studies.STUDIES["backbones"]
    if row != studies.RETINAREGEN
}
models = {
    name: [inputs.load_restorer(home, row, i, on) for i in range(seeds)]
    for name, row in (studies.EVALUATED | backbones).items()
}
trained = {
    name: [inputs.at_size(inputs.trained(model, i), P.size) for i, model in enumerate(group)]
    for name, group in models.items()
}

# %%
lowest = {name: [method] for name, method in inputs.uninformed(strangers).items()}
classical = {name: [method] for name, method in baselines.baselines(population).items()}
methods = classical | {name: trained[name] for name in studies.EVALUATED}
models["recommended"] = [restore.load_recommended(on)]
methods["recommended"] = [
    inputs.trained(models["recommended"][0], None)
]  # the mean of its decisions
classifiers = {
    name: (checkpoint.load(home / "checkpoints" / folder, Readability, on), P.size)
    for name, folder in {"classifier": "readability", "held-out classifier": "heldout"}.items()
}
whole = inputs.screened(classifiers["classifier"][0], models["RetinaRegen"][0])
methods["RetinaRegen, screened"] = [inputs.at_size(whole, P.size)]
lpips = metrics.load_lpips(weights=P.weights, device=on)
print(
    lpips.note
    if lpips
    else "LPIPS n/a: no ImageNet weights of its trunk on this machine (see `rr doctor`)"
)

# %% [markdown]
# ## Methods and baselines
#
# All three families are at full strength. A method below *do nothing* makes the image worse. For a
# method below *population mean* it would be better to ignore the photograph. *Another eye* is a
# readable photograph of the wrong patient.

# %%
kept = {name: {} for name in ("RetinaRegen", "bridge", "recommended")}  # shown below
table = pd.concat(
    [
        harness.evaluate(lowest, images, (FULL,), classifiers=classifiers, lpips=lpips, seed=seed),
        harness.evaluate(
            methods, images, classifiers=classifiers, lpips=lpips, seed=seed, kept=kept
        ),
        harness.evaluate(
            {name: trained[name] for name in backbones},
            images,
            (FULL,),
            classifiers=classifiers,
            lpips=lpips,
            seed=seed,
        ),
    ],
    ignore_index=True,
)
io.write_table(home / f"{stem}_per_image.csv", table.round(4))
everywhere = table[table.method.isin(methods)]
ladder = harness.summarize(table[(table.family == FULL.family) & (table.severity == FULL.severity)])
untrained = [*lowest, *classical]
ladder["collapsed"] &= ~ladder.method.isin(untrained)  # some of them are constant on purpose
marked = tables.labels(ladder)
shown = ["psnr", "ssim", "psnr_fov", "ssim_fov"] + (["lpips"] if lpips else [])
figures.save(plots.bars(ladder, shown, baselines=untrained), pictures, f"{stem}_ladder")

# %% [markdown]
# ## What was done to the images
#
# The same image under every family, from one third to full strength. Haze follows another physical
# model and was in no training. In small images the mild blur may be narrower than a pixel.

# %%
one = [inputs.degraded(images, condition, seed)[0][0] for condition in inputs.CONDITIONS[1:]]
rows = {family: one[3 * i : 3 * i + 3] for i, family in enumerate(inputs.OPERATORS)}
figures.save(
    figures.grid(rows, [f"severity {value:.2g}" for value in inputs.SEVERITIES]),
    pictures,
    f"{stem}_conditions",
)

# %% [markdown]
# ## Methods and families
#
# The table shows means over three severities with intervals over images. The first row is the PSNR
# of the degraded images. The other rows are gains over it, image by image. An interval holds for
# one difference and not for the best of many. PSNR is capped at 58.9 dB, the error of storing an
# image with 8 bits, because an unchanged image would make the mean infinite.

# %%
summary = harness.summarize(everywhere)
summary["collapsed"] = summary.method.map(marked) != summary.method
note = (
    f"Gain over doing nothing, whose own value is in the first row. Cells are means over {len(images.names)} images and three severities, "
    f"with 95 % bootstrap intervals over images{' and ± the standard deviation over seeds' if seeds > 1 else ', for one training'}. "
    f"The images are {source}, {size} px. No method was trained on haze. The method of the known blur is told the true width. "
    f"PSNR is capped at {metrics.PSNR_MAX} dB. {tables.trainings(ladder)}"
)
gains = harness.gains(summary, "psnr").rename(index=marked)
tables.write(home / "tables", stem, summary, gains, f"PSNR in dB. {note}")
Markdown(tables.markdown(gains, f"PSNR in dB. {note}"))

# %%
of_ssim = harness.gains(summary, "ssim").rename(index=marked)
tables.write(
    home / "tables", f"{stem}_ssim", summary[summary.metric == "ssim"], of_ssim, f"SSIM. {note}"
)
Markdown(tables.markdown(of_ssim, f"SSIM. {note}"))

# %% [markdown]
# The same by severity. A restorer that leaves good images alone is white, and not red, on the left
# of each block.

# %%
by_severity = harness.summarize(everywhere, ("family", "severity"), ["psnr", "ssim", "lpips"])
by_severity["collapsed"] = by_severity.method.map(marked) != by_severity.method
io.write_table(home / "tables" / f"{stem}_severities.csv", by_severity)
gain = by_severity[by_severity.metric == "psnr"]
gain = gain.pivot(index="method", columns=["family", "severity"], values="difference")
gain = gain.loc[[name for name in methods if name != REFERENCE], list(inputs.CONDITIONS[1:])]
gain = gain.rename(index=marked)
figures.save(
    plots.heat(gain, "gain in PSNR over doing nothing / dB", 10), pictures, f"{stem}_families"
)

# %% [markdown]
# ## What a reader uses
#
# The same instruments measure the clean and the restored image, with all three families at full
# strength. Vessel maps: Dice and clDice; *true*, the share of the restored map that is in the
# clean one (the rest is hallucinated); *kept*, the share of the clean map that is left. Further:
# how far the disc has moved, colour, edges (1 means as sharp as the clean image), and whether the
# restored image, degraded again, gives the input. The first table shows how good these instruments
# are on eyes whose vessels and disc are known exactly.

# %%
instruments = downstream.detector_accuracy(size, 12)
trust = {name: statistics.bootstrap(values)._asdict() for name, values in instruments.items()}
Markdown(
    "\n".join(
        f"* {name}: {tables.interval(*values.values(), sign='')}" for name, values in trust.items()
    )
)

# %%
passed = {harness.PASSED + name: (harness.PASSED + name, 2) for name in classifiers}
shown_downstream = harness.shown(ladder, harness.DOWNSTREAM | passed).rename(index=marked)
caption = (
    f"All three families at full strength, {len(images.names)} images, {source}: means with 95 % bootstrap intervals over "
    "images. *Passed* is the share of images whose four labels a classifier calls readable, with Wilson's interval. The row "
    "*do nothing* gives this share before restoration. The classifier selects the images that RetinaRegen, screened, restores. "
    "The held-out classifier only evaluates. *Variation* is the spread of the outputs between images over that of the clean "
    f"images; 0 is the same picture for every eye. {tables.trainings(ladder)}"
)
tables.write(home / "tables", f"{stem}_downstream", ladder, shown_downstream, caption)
Markdown(tables.markdown(shown_downstream, caption))

# %% [markdown]
# The classifiers are in the last columns. Compare them with *another eye*: what passes there is
# not a restoration.
#
# ## What it does to good images
#
# Nothing was done to these images. A restorer should return them nearly unchanged. The table
# counts the share with a PSNR below 36 dB, which is a visible change.

# %%
good = harness.over_enhancement(everywhere).rename(index=marked)
unasked = pd.DataFrame(
    {
        "median PSNR / dB": [f"{value:.1f}" for value in good.psnr],
        "changed visibly": [
            tables.interval(*row, 2, "") for row in good[["changed", "low", "high"]].to_numpy()
        ],
    },
    index=good.index,
)
caption = (
    f"Undegraded images given to each method ({len(images.names)}, {source}): median PSNR to the image itself (counted up to "
    f"{metrics.PSNR_MAX}), and the share that is changed visibly (below {harness.UNCHANGED:.0f} dB), with "
    f"Wilson's 95 % interval over images. {tables.trainings(ladder)}"
)
tables.write(
    home / "tables",
    f"{stem}_undegraded",
    good.rename_axis("method").reset_index(),
    unasked,
    caption,
)
Markdown(tables.markdown(unasked, caption))

# %% [markdown]
# ## Failures, selected by a rule
#
# For each family, these are the 5 % (at least 3) of all images and severities where a method loses
# most against *do nothing*: input, output and reference, the worst first.

# %%
failures = {name: harness.worst(everywhere, name) for name in kept}
galleries = {
    name: harness.gallery(rows, kept[name], images, seed) for name, rows in failures.items()
}
io.write_table(
    home / "tables" / f"{stem}_failures.csv",
    pd.concat(failures.values())[[*harness.KEYS, "psnr", "difference"]].replace({"method": marked}),
)
titles = {
    name: ["input", marked[name].replace(" ", "\n"), "reference"]
    * max(len(row) // 3 for row in rows.values())
    for name, rows in galleries.items()
}
figures.save(
    figures.grid(galleries["RetinaRegen"], titles["RetinaRegen"], side=0.8),
    pictures,
    f"{stem}_failures_retinaregen",
)

# %%
figures.save(
    figures.grid(galleries["bridge"], titles["bridge"], side=0.8),
    pictures,
    f"{stem}_failures_bridge",
)

# %%
figures.save(
    figures.grid(galleries["recommended"], titles["recommended"], side=0.8),
    pictures,
    f"{stem}_failures_recommended",
)

# %% [markdown]
# ## More steps
#
# A bridge can restore in one step, which is plain regression, or in several steps. In the
# literature more steps are sharper. What do they change in PSNR, which compares with one reference?

# %%
middle = inputs.Condition("all", 2 / 3)
y, params, _ = inputs.degraded(images, middle, seed)
counts, own_size = (1, 2, 4, 8), {"bridge": P.size, "recommended": size}
rows = []
for name, side in own_size.items():
    for steps in counts:
        again = inputs.at_size(
            inputs.trained(models[name][0], None if name == "recommended" else 0, steps=steps), side
        )
        rows.append(
            (name, steps, *statistics.bootstrap(metrics.psnr(images.x, again(y, images.fov, None))))
        )
curve = pd.DataFrame(rows, columns=["method", "steps", "mean", "low", "high"])
curve = curve.replace({"method": marked})
shown_curve = pd.DataFrame(
    {f"steps: {steps}": [tables.interval(*row, sign="") for row in rows[["mean", "low", "high"]].to_numpy()]
     for steps, rows in curve.groupby("steps")}, index=[marked[name] for name in own_size])  # fmt: skip
caption = f"PSNR in dB, all families at two thirds, {len(images.names)} images, {source}; plain 95 % intervals over images. {tables.untested(1)}"
tables.write(home / "tables", f"{stem}_steps", curve, shown_curve, caption)
figures.save(
    plots.lines(curve, "steps", "mean", "method", ylabel="PSNR / dB"), pictures, f"{stem}_steps"
)

# %% [markdown]
# ## Does it know where it is wrong?
#
# If a method draws random numbers, several restorations of one photograph differ, and their
# standard deviation per pixel is an uncertainty map. The recommended restorer predicts its error.
# A map is useful if it is large where the error is large. The table shows the rank correlation
# between map and true error per image, inside the field of view. A value of 0 means that the map
# is useless.

# %%
K = 8  # restorations
small = [inputs.resize(image, P.size) for image in (y, images.x)]
inside = inputs.resize(images.fov.float(), P.size) > 0.5
drawn = {
    name: bridge.mean_and_spread(
        models[name][0], small[0].to(on), inside.to(on), torch.Generator().manual_seed(seed), K
    )
    for name in ("RetinaRegen", "bridge")
}
certain = {
    name: harness.error_uncertainty_correlation(sd.cpu(), mean.cpu(), small[1], inside)
    for name, (mean, sd) in drawn.items()
}
own = models["recommended"][0].run(y.to(on), images.fov.to(on))
certain["recommended"] = harness.error_uncertainty_correlation(
    own.uncertainty.cpu(), own.image.cpu(), images.x, images.fov
)
correlation = {name: statistics.bootstrap(values)._asdict() for name, values in certain.items()}
Markdown(
    "\n".join(
        f"* {marked[name]}: {tables.interval(*values.values())}"
        for name, values in correlation.items()
    )
)

# %% [markdown]
# ## Ten images
#
# The images are evenly spaced in the order of their names, with all three families at two thirds
# of their strength. The second row is *do nothing*. The uncertainty is that of the recommended
# restorer, from dark (certain) to bright.

# %%
ten = torch.linspace(0, len(images.names) - 1, min(10, len(images.names))).round().int().tolist()
restored = {"CLAHE": classical["CLAHE"][0](y, images.fov, params)}
restored |= {marked[name]: restorations[middle] for name, restorations in kept.items()}
maps = own.uncertainty.cpu()[ten, 0]
rows = {"clean": images.x, "degraded =\ndo nothing": y} | restored
rows = {name: image[ten] for name, image in rows.items()} | {
    "uncertainty": figures.coloured(maps / maps.amax().clamp(min=1e-6))
}
figures.save(figures.grid(rows), pictures, f"{stem}_sheet")

# %% [markdown]
# ## Conclusion

# %%
psnr = summary[(summary.metric == "psnr") & (summary.family != UNDEGRADED.family)]
rivals = [name for name in classical if name != REFERENCE and "known" not in name]
best = (
    psnr[psnr.method.isin(rivals)]
    .sort_values("mean", kind="stable")
    .groupby("family", sort=False)
    .tail(1)
)
best = best.set_index("family")["method"]
against = harness.summarize(everywhere, only=["psnr"], reference="recommended").set_index(
    ["family", "method"]
)
numbers = {
    "images": images.names, "n": len(images.names), "size": size, "source": source, "seeds": seeds,
    "lpips": lpips.note if lpips else "n/a",
    "conditions": [condition._asdict() for condition in inputs.CONDITIONS],
    "ladder": ladder.to_dict("records"),
    "families": summary[summary.metric.isin(["psnr", "ssim", "lpips"])].to_dict("records"),
    "undegraded": good.to_dict("index"),
    "instruments": trust,
    "steps": curve.to_dict("records"), "uncertainty": correlation,
    "failures": {name: rows[["image", "family", "severity", "difference"]].to_dict("records") for name, rows in failures.items()},
}  # fmt: skip
write_result(
    home / f"{stem}.json",
    numbers,
    started=started,
    device=on,
    preset=P,
    seed=seed,
    data=packed.hash,
)
# The classical methods and the recommended weights are the same in every training.
testable = [
    name for name, group in methods.items()
    if marked[name] == name and (name in (*classical, "recommended") or len(group) >= statistics.SEEDS)
]  # fmt: skip
lines = []
for family, rows in psnr[psnr.method.isin(testable)].groupby("family", sort=False):
    helps, harms = rows[rows.difference_low > 0].method, rows[rows.difference_high < 0].method
    row = against.loc[(family, best[family])]
    lead = tables.interval(-row.difference, -row.difference_high, -row.difference_low)
    lines.append(f"* **{family}**: better than doing nothing: {', '.join(helps) or 'none'}; worse: {', '.join(harms) or 'none'}. "
                 f"The recommended restorer gains {lead} dB over {best[family]}, the best classical method that is not told the blur.")  # fmt: skip
lines.append(f"* **not testable** (fewer than {statistics.SEEDS} trainings, or collapsed): "
             f"{'; '.join(marked[name] for name in methods if name not in testable) or 'none'}.")  # fmt: skip
Markdown(
    "\n".join(lines)
    + "\n\nGood images changed visibly: " + ", ".join(f"{name} {row.changed:.0%}" for name, row in good.iterrows())
    + f".\n\nThese numbers are from {len(images.names)} images of {size} px, {source}, preset {preset}. A 95 % interval is over "
    "images and holds for one difference. **The paper leaves open** what its restorer is compared with. It contains none of these rows."
)  # fmt: skip

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · RetinaRegen: the whole method
#
# **Question.** Does an unreadable photograph become readable, and does it come closer to the true
# image?
#
# This chapter follows section 2.1 (Fig. 1): the classifier screens the images, the condition $c$
# is fused with the noised image, the reverse process restores it with the chosen backbone, and the
# classifier verifies the result. One execution trains and evaluates one configuration (protocol,
# backbone, extractor, fusion) with one seed. Chapters 07 to 09 compare configurations. The other
# parameters are not varied in the paper, and chapter 10 compares them.
#
# | | |
# | --- | --- |
# | needs | 01_data, 02_readability, 03_features with the same extractor and seed (not for random, off) |
# | writes | `runs/<configuration>_<seed>/`: `result.json`, `per_image.csv`, `eyes.png`, restorer; figures `06_restoration_*` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to train
protocol: str = "paired"  # paired | literal: what a training pair is
backbone: str = "vae"  # unet | unet++ | resnet | densenet | vae: the base network
extractor: str = "resnet34"  # a name in features.EXTRACTORS, or random, or off
fusion: str = "bilinear-static"  # a name in fusion.FUSIONS, or off
method: str = "diffusion"  # diffusion | bridge | one-step: see models/bridge.py
objective: str = ""  # noise | image | v: what the backbone predicts; empty: vae image, else noise
trained_for: str = "one-call"  # one-call | chain: which noised images training shows
start: float = 0.0  # share of T to which inputs are noised; 0: the preset's; 1: also pure noise
condition: str = "mean"  # mean | image | noise | unreadable: which features are the condition c
likelihood: str = "bce"  # bce | mse | continuous-bernoulli: of a vae that predicts images
region: str = "disc"  # macula | disc | retina: unreadable region of the literal protocol's images
budget: str = "full"  # full | equal: images seen, the preset's for this backbone or for all alike
draw: bool = True  # draw the figures of this text; rr reproduce: only for RetinaRegen, seed 0

# %%
import time
from inspect import getsource

import numpy as np
import pandas as pd
from IPython.display import Code, Markdown
from PIL import Image

from rr import checkpoint, restore, studies
from rr import files as io
from rr.data import pairs
from rr.data.dataset import Packed
from rr.data.photo import to_photograph
from rr.evaluate import metrics, statistics, tables
from rr.evaluate.classification import passed
from rr.models import restorer
from rr.models.readability import Readability
from rr.models.retinaregen import RetinaRegen
from rr.paper import LABELS
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import configs, distributed, loop

if draw:
    from rr.evaluate import figures, plots

started = time.time()
P = choose_preset(preset, seed=seed)
paper_choices = protocol, backbone, extractor, fusion
our_choices = method, objective, trained_for, start, condition, likelihood, region, budget
configuration = studies.Configuration(*paper_choices, *our_choices)
home = io.results(preset, out)
folder = studies.folder(home, configuration, seed)
first = (configuration, seed) == (studies.RETINAREGEN, 0)
pictures = io.figures(preset, out) if first else folder / "figures"
packed = Packed(data or home / "data", P.size)
fabric = distributed.fabric(device)

# %% [markdown]
# ## The pair $(y, x)$
#
# An unreadable photograph has no clean counterpart, and the paper does not say what its
# restorations are compared with. So there are two protocols, and their numbers must not share a
# table:
#
# * **paired**: a readable image $x$ is degraded by a known operator, $y = A(x)$, and the reference
#   is $x$;
# * **literal**: $y$ is an unreadable image and its own reference, as the text of the paper reads.
#   Then "do nothing" is perfect.

# %%
classifier = checkpoint.load(home / "checkpoints" / "readability", Readability, fabric.device)
rows, y, x, parameters = pairs.test_pairs(packed, protocol, region, P.held_out)
fov, disc = packed.fov(rows), packed.disc(rows)
io.write_table(folder / "degradations.csv", parameters)
figures.save(
    figures.grid({"input y": y[:7], "reference x": x[:7]}), pictures, "06_restoration_pairs"
) if draw else None

# %% [markdown]
# ## Condition and fusion
#
# $$ x_t^{\text{conditioned}} = c + x_t . $$
#
# Only the network sees this sum. The state $x_t$ of the diffusion is not changed. If $c$ were
# added to the state, it would accumulate with every step.

# %%
config = configs.config("restorer", P, packed, home, **configuration._asdict())
model = config.model
Code(
    getsource(restorer.Denoiser.forward) + "\n" + getsource(restorer.Denoiser.loss),
    language="python",
)

# %% [markdown]
# ## Training
#
# A restoration is one call of the network at $t_0$, or a chain of steps (`trained_for`). Training
# shows the states $x_t$ that such a restoration visits.

# %%
Code(getsource(restorer.Denoiser.training_states), language="python")

# %%
config

# %%
log = loop.run(config, fabric)
restore.assemble(folder, home / "checkpoints" / "readability")
figures.save(plots.learning(log), pictures, "06_restoration_training") if draw else None

# %% [markdown]
# ## One eye from input to output
#
# This is the test image with the lowest probability of a readable disc. It is noised to $t_0$,
# restored, and classified again. Between input and output of a VAE lies the short code z. Does it
# keep vessels?

# %%
regen = RetinaRegen(classifier, model.to(fabric.device))
steps = studies.STEPS if start else None  # None: what the restorer is trained for
done = regen(y.to(fabric.device), fov.to(fabric.device), seed, steps, screen=False)
if draw:
    worst = done.before[:, LABELS.index("disc")].argmin()
    one = slice(worst, worst + 1)
    inputs = y[one].to(fabric.device), fov[one].to(fabric.device)
    way = regen(*inputs, seed, steps, trajectory=True, screen=False)
    reference = x[worst] if protocol == "paired" else None
    drawn = figures.pipeline(
        y[worst], way.trajectory, way.image[0], way.before[0], way.after[0], reference
    )
figures.save(drawn, pictures, "06_restoration_pipeline") if draw else None

# %% [markdown]
# ## All test images
#
# Two baselines stand beside the method. They need no training: *do nothing* returns the input, and
# *population mean* returns the mean of the clean training images. A restorer must be better than
# both. The variation is the spread of the outputs between images over that of the references: a
# method that returns nearly the same picture for every eye has nearly 0 and is called collapsed.

# %%
mean = packed.mean(packed.clean_rows("train")).expand_as(x) * fov
lpips = metrics.load_lpips(weights=P.weights, device=fabric.device)
outputs = {"do nothing": y, "population mean": mean, "RetinaRegen": done.image.cpu()}
scores = {name: metrics.score(x, image, fov, disc, lpips) for name, image in outputs.items()}
variation = {name: metrics.variation(image, x, fov) for name, image in outputs.items()}
names = packed.table["name"].to_numpy()[rows]
per_image = pd.concat([table.assign(image=names, method=name) for name, table in scores.items()])
summary = statistics.study(
    {name: [table.assign(variation=variation[name])] for name, table in scores.items()},
    "do nothing",
)
marked = tables.labels(summary)
io.write_table(folder / "per_image.csv", per_image[["image", "method", *scores["do nothing"]]])
io.write_table(folder / "metrics.csv", summary)
tables.text(
    summary.pivot(index="method", columns="metric", values="mean").loc[
        list(outputs), [*scores["do nothing"], "variation"]
    ]
).rename(index=marked)

# %%
print(
    lpips.note
    if lpips
    else "LPIPS n/a: no ImageNet weights of its trunk on this machine (see `rr doctor`)"
)
shown = ["psnr", "ssim", "lpips", "psnr_fov", "ssim_fov"]
figures.save(
    plots.bars(summary, shown, baselines=statistics.BASELINES), pictures, "06_restoration_metrics"
) if draw else None

# %%
order = scores["RetinaRegen"]["psnr"].sub(scores["do nothing"]["psnr"]).argsort().to_numpy()
picks = order[[0, len(order) // 4, len(order) // 2, 3 * len(order) // 4, -1]]
figures.save(
    figures.grid(
        {marked[name]: image[picks] for name, image in outputs.items()} | {"reference": x[picks]},
        ["worst", "25 %", "median", "75 %", "best"],
        side=1.4,
    ),
    pictures,
    "06_restoration_before_after",
) if draw else None

# %% [markdown]
# ## Do the classifiers accept it?
#
# The classifier that screens the images also verifies them. Its approval is a claim of the paper
# (C6) and not a proof, because it may accept smooth images. The second classifier did not select
# any image. Both are asked about the images that the first one calls unreadable.

# %%
screened = (done.before < regen.THRESHOLD).any(1)
verdicts = pd.DataFrame(
    {
        "label": LABELS,
        "before": (done.before >= regen.THRESHOLD).float().mean(0),
        "after": (done.after >= regen.THRESHOLD).float().mean(0),
    }
)
io.write_table(folder / "readability.csv", verdicts)
verdicts.round(3)

# %%
heldout = checkpoint.load(home / "checkpoints" / "heldout", Readability, fabric.device)
answers = {
    "classifier": {
        "do nothing": done.before[screened],
        "population mean": classifier.probabilities(mean[screened]),
        "RetinaRegen": done.after[screened],
    },
    "held-out classifier": {
        output: heldout.probabilities(image[screened]) for output, image in outputs.items()
    },
}
rechecked = {
    name: {output: passed(values) for output, values in by_output.items()}
    for name, by_output in answers.items()
}
pd.DataFrame(
    {
        name: {output: f"{count['hits']} of {count['n']}" for output, count in counts.items()}
        for name, counts in rechecked.items()
    }
)

# %% [markdown]
# ## Images for the comparisons
#
# A few test images are kept, the same for every configuration. They go from the most degraded to
# the least degraded image.

# %%
hurt = scores["do nothing"]["psnr"].to_numpy().argsort(kind="stable")
eyes = hurt[np.linspace(0, len(hurt) - 1, studies.EYES).round().astype(int)]
strip = np.vstack(
    [
        np.hstack([to_photograph(image[i : i + 1]) for i in eyes])
        for image in (y, outputs["RetinaRegen"], x)
    ]
)
with io.writing(folder / "eyes.png") as part:
    Image.fromarray(strip).save(part)

# %% [markdown]
# ## Conclusion

# %%
means = {name: table.mean().to_dict() for name, table in scores.items()}
trained = io.read_json(folder / "denoiser" / "config.json")["provenance"]
numbers = {
    "configuration": configuration._asdict(),
    "seed": seed,
    "data": packed.manifest["recipe"]["source"]["kind"],
    "size": P.size,
    "n": len(rows),
    "objective": model.objective,
    "images_seen": config.total * config.batch,
    "parameters": sum(parameter.numel() for parameter in model.parameters()),
    "training_images": len(config.rows),
    "training_seconds": log.attrs["seconds"],
    "scores": means,
    "variation": variation,
    "unreadable_before": int(screened.sum()),
    "passed": rechecked["classifier"]["RetinaRegen"]["share"],
    "rechecked": rechecked,
    "lpips": lpips.note if lpips else "n/a",
}
write_result(
    folder / "result.json",
    numbers,
    files=("per_image.csv", "eyes.png"),
    started=started - log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
    models={"condition": config.metadata["condition"]}
    | {
        part: io.read_json(folder / part / "config.json")["sha256"][:12]
        for part in ("classifier", "denoiser")
    },
    training={
        key: trained[key]
        for key in ("commit", "code", "device", "threads", "seconds", "peak_memory_mib")
    },
)
beaten = {
    metric: [
        name
        for name in ("do nothing", "population mean")
        if means["RetinaRegen"][metric] > means[name][metric]
    ]
    for metric in ("psnr", "ssim", "psnr_disc", "ssim_disc")
}
Markdown(
    f"On {len(rows)} test images of {P.size} px, in the {protocol} protocol, the mean PSNR and SSIM are: "
    + "; ".join(
        f"{name} {means[name]['psnr']:.2f} dB and {means[name]['ssim']:.3f}" for name in outputs
    )
    + ". RetinaRegen has a higher mean than these baselines in "
    + "; ".join(f"{metric}: {' and '.join(names) or 'neither'}" for metric, names in beaten.items())
    + ". This is one training: not tested. The variation is "
    + "; ".join(f"{marked[name]} {value:.2f}" for name, value in variation.items())
    + f". The classifier called {screened.sum()} inputs unreadable. After restoration, "
    + " and ".join(
        f"the {name} accepts {counts['RetinaRegen']['hits']}" for name, counts in rechecked.items()
    )
    + " of them"
    + ". **The paper leaves open** the reference image, the start step, the number of test images, "
    "and the variance."
)

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here: one photograph, restored
#
# A fundus photograph may be unreadable: dim, hazy, out of focus. This page restores one, with the weights that come with the
# project: nothing is downloaded, nothing needs to be trained first.
#
# RetinaRegen (arXiv 2502.19153), the method this project reproduces, restores such photographs with four networks: a
# **classifier** that judges which regions can be read, an **extractor** of what readable eyes look like, a **diffusion
# model** that adds noise and takes it away, and a **variational autoencoder** that does the taking away. The chapters build
# them one by one, and then ask what they are worth:
#
# | chapter | question | paper |
# | --- | --- | --- |
# | 01_data | what are the images, and what does unreadable mean? | 2.2, 3.1 |
# | 02_readability | can a network tell? can it be fooled? | 2.2, Fig. 2 |
# | 03_features | what do readable eyes have in common? | 2.3, Fig. 3 |
# | 04_diffusion | how does an image become noise, and come back? | 2.4 |
# | 05_vae | what survives a bottleneck? | 2.5, Fig. 4 |
# | 06_restoration | does it all help? | 2.1, Fig. 1 |
# | 07_backbones | which base network? | 3.2, Fig. 5 |
# | 08_extractors | which extractor of features? | 3.2, Table 1 |
# | 09_fusion | how to join features and image? | 3.2 |
# | 10_what_matters | what of all this decides the result? | gaps of the paper |
# | 11_summary | what of the paper's claims is seen here? | 3.2 |
# | 12_evaluation | how good are the paper's method, classical ones and this page's? | 3.1, 4 |
#
# The restorer on this page is not the paper's but the one that chapter 12 recommends: a bridge from the degraded to the clean
# image (`rr/corrector.py`). Its network looks at the photograph at 128 pixels and says, for every place, how to change
# brightness and colour; the change is made to the photograph's own pixels, so that nothing is drawn that the camera did not see.
#
# | | |
# | --- | --- |
# | needs | nothing |
# | writes | `restored/`, figures `00_start_here_*`, `00_start_here.json` |
# | time | smoke: 13 s on 1 thread(s) of a CPU |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to run
photo: str = ""  # a photograph of yours; empty: the retina that comes with scikit-image
severity: float = (
    0.7  # from 0 to 1: of the degradation laid over the photograph; at 0 it is restored as it is
)

# %%
import time

import skimage.data
import torch
from IPython.display import Markdown
from PIL import Image
from scipy.stats import spearmanr

from rr import files as io
from rr import restore
from rr.data import degrade
from rr.data.photo import crop_fov, fov_mask, read_photograph, to_photograph, to_tensor
from rr.evaluate import figures, metrics
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import loop as train

started = time.time()
P = choose_preset(preset, seed=seed)
home, pictures = io.results(preset, out), io.figures(preset, out)
fabric = train.fabric(device)
model = restore.load_recommended(fabric.device)

# %% [markdown]
# ## The photograph
#
# To see what restoration is worth we need to know the truth: the photograph is a good one, and we degrade it ourselves
# with the operator of chapter 01. (With `severity` 0 it is left as it is.)

# %%
original = read_photograph(photo) if photo else skimage.data.retina()
name = photo.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0] if photo else "retina"
crop, circle, box = crop_fov(original)
x = to_tensor(crop)
fov = fov_mask([circle], box.side)
y = degrade.apply(x, degrade.sample(1, torch.Generator().manual_seed(seed), severity=severity), fov)
degraded = to_photograph(y)
restored, report = restore.restore_photograph(model, degraded)
print(report)

# %%
z = to_tensor(restored)
for stage, image in (("reference", x), ("input", y), ("restored", z)):
    with io.writing(home / "restored" / f"{name}_{stage}.png") as part:
        Image.fromarray(to_photograph(image)).save(part)
figures.save(
    figures.grid(
        {name: torch.cat([x, y, z])}, ["photograph", "degraded (input)", "restored"], side=2.6
    ),
    pictures,
    "00_start_here_photograph",
)

# %% [markdown]
# ## At its own resolution
#
# A piece of it, pixel by pixel. Much of the detail that blur has taken stays away; what is left is not painted over.

# %%
side = min(256, box.side)
at = slice((box.side - side) // 2, (box.side + side) // 2)
pieces = [image[0, :, at, at] for image in (x, y, z)]
figures.save(
    figures.grid({f"{side} px": pieces}, ["photograph", "degraded (input)", "restored"], side=2.6),
    pictures,
    "00_start_here_detail",
)

# %% [markdown]
# ## What was decided
#
# The networks propose $\hat x = d + g\,(A d + b)$: $d$ is the photograph, deconvolved if it is blurred; $A$ and $b$ mix and
# shift the colours of every place; $g$ follows from how bad light and colour are estimated to be: 0 for a good photograph. The
# decision is taken eight times, for the photograph turned and mirrored, and averaged. The network also says how large it
# expects the error of its result to be, place by place.

# %%
done = model.run(to_tensor(degraded).to(fabric.device), fov.to(fabric.device))
change = (done.image.cpu() - y).mean(1)
unsure, wrong = done.uncertainty[0].cpu(), (done.image.cpu() - x).abs().mean(1)
maps = {
    "change of brightness": (0.5 + change / 2 / change.abs().max().clamp_min(1e-6)),
    "expected error": unsure / unsure.max().clamp_min(1e-6),
    "error": wrong / wrong.max().clamp_min(1e-6),
}
figures.save(
    figures.grid(
        {name: [figures.coloured(each)[0] for each in maps.values()]}, list(maps), side=2.6
    ),
    pictures,
    "00_start_here_decision",
)
seen = fov[0, 0].numpy()
alike = (
    spearmanr(unsure[0].numpy()[seen], wrong[0].numpy()[seen]).statistic
    if severity
    else float("nan")
)

# %% [markdown]
# ## What to make of it

# %%
scores = {
    stage: metrics.score(x, image, fov).iloc[0].dropna().to_dict()
    for stage, image in (("input", y), ("restored", z))
}
write_result(
    home / "00_start_here.json",
    {
        "photograph": name,
        "width": box.side,
        "report": report,
        "uncertainty_error_correlation": alike,
        **scores,
    },
    started=started,
    device=fabric.device,
    preset=P,
    seed=seed,
    severity=severity,
    restorer=io.read_json(io.RECOMMENDED / "config.json")["sha256"][:12],
)
before, after = scores["input"]["psnr_fov"], scores["restored"]["psnr_fov"]
if severity == 0:
    verdict = f"The photograph was not degraded; {report['status']}. "
    verdict += (
        "" if report["status"] == "left alone" else f"The result stands {after:.1f} dB from it. "
    )
else:
    verdict = f"Inside the field of view the input stands {before:.1f} dB from the photograph, the result {after:.1f} dB. "
    verdict += "" if after > before else "**The result is further away than the input was.** "
    verdict += f"Expected and true error, rank correlation: {alike:.2f}. "
Markdown(
    verdict
    + f"The photograph keeps its {box.side} x {box.side} pixels. One photograph says little: chapter 12 has the numbers "
    "on many, and the model card (`rr/recommended/README.md`) the limits. This is no medical device."
)

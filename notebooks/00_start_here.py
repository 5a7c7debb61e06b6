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
# A fundus photograph may be unreadable: dim, hazy, out of focus. RetinaRegen (arXiv 2502.19153) restores such
# photographs with four networks: a **classifier** that judges which regions can be read, an **extractor** of what
# readable eyes look like, a **diffusion model** that adds noise and takes it away, and a **variational autoencoder** that
# does the taking away. The chapters build them one by one:
#
# | chapter | question | paper |
# | --- | --- | --- |
# | 01_data | what are the images, and what does unreadable mean? | 2.2, 3.1 |
# | 02_readability | can a network tell? | 2.2, Fig. 2 |
# | 03_features | what do readable eyes have in common? | 2.3, Fig. 3 |
# | 04_diffusion | how does an image become noise, and come back? | 2.4 |
# | 05_vae | what survives a bottleneck? | 2.5, Fig. 4 |
# | 06_restoration | does it all help? | 2.1, Fig. 1 |
# | 07_backbones | which base network? | 3.2, Fig. 5 |
# | 08_extractors | which extractor of features? | 3.2, Table 1 |
# | 09_fusion | how to join features and image? | 3.2 |
# | 11_summary | what of the paper's claims is seen here? | 3.2 |
#
# This page shows the whole on one real photograph, which no model here was trained on. It is the only chapter that is
# *executed* last: it needs the restorer that 06_restoration trains.
#
# | | |
# | --- | --- |
# | needs | 06_restoration |
# | writes | `restored/`, figure `00_start_here_pipeline`, `00_start_here.json` |
# | time | smoke: 8 s on 1 thread(s) of a CPU |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to run
photo: str = ""  # a photograph of yours; empty: the retina that comes with scikit-image
severity: float = 0.7  # from 0 to 1: of the degradation laid over the photograph; at 0 it is restored as it is

# %%
import time

import skimage.data
import torch
from IPython.display import Markdown
from PIL import Image

from rr import degrade, figures, io, metrics, studies, train
from rr.photo import crop_fov, fov_mask, read_photograph, to_photograph, to_tensor
from rr.presets import preset as choose_preset
from rr.restorer import RetinaRegen, restore_photograph

started = time.time()
P = choose_preset(preset, seed=seed)
home, pictures = io.results(preset, out), io.figures(preset, out)
fabric = train.fabric(device)
regen = RetinaRegen.load(studies.folder(home, studies.RETINAREGEN, seed), fabric.device)

# %% [markdown]
# ## The photograph
#
# To see what restoration is worth we need to know the truth: the photograph is a good one, and we degrade it ourselves
# with the operator of chapter 01. (With `severity` 0 it is left as it is.)

# %%
original = read_photograph(photo) if photo else skimage.data.retina()
name = photo.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0] if photo else "retina"
crop, circle, box = crop_fov(original, min(1024, max(original.shape)))
x = to_tensor(crop)
fov = fov_mask([circle], x.shape[-1])
y = degrade.apply(x, degrade.sample(1, torch.Generator().manual_seed(seed), severity=severity), fov)
degraded = to_photograph(y)
restored, report = restore_photograph(regen, degraded, seed)
print(
    report["status"],
    {label: round(p, 2) for label, p in report["before"].items()},
    "=>",
    {label: round(p, 2) for label, p in report["after"].items()},
)

# %%
z = to_tensor(restored)
for stage, image in (("reference", x), ("input", y), ("restored", z)):
    with io.writing(home / "restored" / f"{name}_{stage}.png") as part:
        Image.fromarray(to_photograph(image)).save(part)
figures.save(
    figures.grid({name: torch.cat([x, y, z])}, ["photograph", "degraded (input)", "restored"], side=2.6),
    pictures,
    "00_start_here_photograph",
)

# %% [markdown]
# ## How it got there
#
# The input is noised to step $t_0$ and walked back; above, what the chain holds, below, the image the network sees in it.

# %%
small, small_circle, _ = crop_fov(degraded, regen.size)
inputs = to_tensor(small).to(fabric.device)
way = regen(inputs, fov_mask([small_circle], regen.size).to(fabric.device), seed, trajectory=True, screen=False)
truth = torch.nn.functional.interpolate(x, (regen.size, regen.size), mode="area")
figures.save(
    figures.pipeline(inputs[0], way.trajectory, way.image[0], way.before[0], way.after[0], truth[0]),
    pictures,
    "00_start_here_pipeline",
)

# %% [markdown]
# ## What to make of it

# %%
scores = {stage: metrics.score(x, image, fov).iloc[0].dropna().to_dict() for stage, image in (("input", y), ("restored", z))}
io.write_result(
    home / "00_start_here.json",
    {"photograph": name, "report": report, **scores},
    started=started,
    device=fabric.device,
    preset=P,
    seed=seed,
    severity=severity,
)
before, after = scores["input"]["psnr_fov"], scores["restored"]["psnr_fov"]
if report["status"] != "restored":
    verdict = f"The classifier says: {report['status']}. The photograph was left as it is. "
elif severity == 0:
    verdict = "The photograph was not degraded, so its distance to the result says only how much was changed. "
else:
    verdict = f"Inside the field of view the input stands {before:.1f} dB from the photograph, the result {after:.1f} dB. "
    verdict += "" if after > before else "**The result is further away than the input was.** "
Markdown(
    verdict + f"The model works on {regen.size} x {regen.size} pixels and through a code of {P.latent} numbers: finer vessels "
    f"cannot be in its result. The preset `{preset}` decides how long it was trained; chapter 06 has the numbers on many images."
)

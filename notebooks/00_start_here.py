# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here: one photograph, restored
#
# A fundus photograph shows the back of the eye. It may be unreadable because it is too dark, hazy
# or out of focus. This page restores one photograph with weights that come with the project. It
# downloads nothing and trains nothing.
#
# The project reproduces the method RetinaRegen (arXiv 2502.19153), which has four networks. A
# **classifier** decides which regions of an image can be read. An **extractor** computes features
# of readable images. A **diffusion model** adds noise and removes it. A **variational
# autoencoder** does the removing. The chapters build these networks one by one and then measure
# them:
#
# | chapter | question | paper |
# | --- | --- | --- |
# | 01_data | What are the images, and what does unreadable mean? | 2.2, 3.1 |
# | 02_readability | Can a network tell what is readable? Can it be fooled? | 2.2, Fig. 2 |
# | 03_features | What do readable eyes have in common? | 2.3, Fig. 3 |
# | 04_diffusion | How does an image become noise, and how does it come back? | 2.4 |
# | 05_vae | What survives a bottleneck? | 2.5, Fig. 4 |
# | 06_restoration | Does the whole method help? | 2.1, Fig. 1 |
# | 07_backbones | Which base network is best? | 3.2, Fig. 5 |
# | 08_extractors | Which feature extractor is best? | 3.2, Table 1 |
# | 09_fusion | How should features and image be joined? | 3.2 |
# | 10_what_matters | Which choices decide the result? | gaps of the paper |
# | 11_summary | Which claims of the paper are supported here? | 3.2 |
# | 12_evaluation | How good are all restorers, on all degradations? | 3.1, 4 |
#
# This page does not use the paper's restorer. It uses the one that chapter 12 recommends, a bridge
# from the degraded to the clean image (`rr/models/corrector.py`). Its network sees the photograph
# at 128 pixels and predicts how brightness and colour must change at every place. The change is
# applied to the pixels of the photograph, so nothing new is drawn.
#
# | | |
# | --- | --- |
# | needs | nothing |
# | writes | `restored/`, figures `00_start_here_*`, `00_start_here.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to run
photo: str = ""  # a photograph of yours; empty: the retina that comes with scikit-image
severity: float = 0.7  # 0 to 1: strength of the added degradation; 0 restores the photo as it is

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
from rr.data.fov import fov_mask
from rr.data.photo import crop_fov, read_photograph, to_photograph, to_tensor
from rr.evaluate import figures, metrics
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import distributed

started = time.time()
P = choose_preset(preset, seed=seed)
home, pictures = io.results(preset, out), io.figures(preset, out)
fabric = distributed.fabric(device)
model = restore.load_recommended(fabric.device)

# %% [markdown]
# ## The photograph
#
# To measure a restoration, we must know the truth. Therefore we take a good photograph and degrade
# it with the operator of chapter 01. With `severity` 0 the photograph is restored as it is.

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
# ## At full resolution
#
# This is a part of the photograph at its own resolution. How much of the detail that the blur
# removed comes back? Nothing is painted in its place.

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
# The network computes $\hat x = d + g\,(A d + b)$. Here $d$ is the photograph, deconvolved if it
# is blurred. $A$ and $b$ mix and shift the colours at every place. The gate $g$ follows from the
# estimated quality of light and colour, and it is 0 for a good photograph. The decision is
# averaged over eight rotations and mirror images. The network also predicts the error of its
# result at every place.

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
        {name: [figures.coloured(values)[0] for values in maps.values()]}, list(maps), side=2.6
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
# ## Conclusion

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
        ""
        if report["status"] == "left alone"
        else f"The PSNR of the result against it is {after:.1f} dB. "
    )
else:
    verdict = (
        f"Inside the field of view, the PSNR of the input is {before:.1f} dB and that of the result "
        f"{after:.1f} dB. "
    )
    verdict += "" if after > before else "**The result is worse than the input.** "
    verdict += f"The rank correlation between expected and true error is {alike:.2f}. "
Markdown(
    verdict
    + f"The photograph keeps its {box.side} x {box.side} pixels. One photograph says little: chapter 12 has the numbers "
    "on many, and the model card (`rr/recommended/README.md`) the limits. This is no medical device."
)

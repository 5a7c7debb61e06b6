# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · What a readable eye looks like: conditional features
#
# **Question.** What information do the features contain that guide the restoration, and how much
# of it is about *this* eye?
#
# This chapter follows section 2.3 (Fig. 3): ResNet34, a 1x1 convolution to 256 channels with
# normalisation and ReLU, and multi-head self-attention (width 256, 8 heads). The static condition
# $c$ is the mean over all readable images.
#
# | | |
# | --- | --- |
# | needs | 01_data |
# | writes | `extractors/<extractor>_<seed>/`: checkpoint, `condition.safetensors`, `result.json`; figures `03_features_*` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to train
weights: str = ""  # imagenet | none: where the trunk starts; empty: the preset's value
extractor: str = "resnet34"  # a name in features.EXTRACTORS, like attention or vgg16: the trunk

# %%
import time
from inspect import getsource

import torch
from IPython.display import Code, Markdown

from rr import files as io
from rr import studies
from rr.data.dataset import Packed
from rr.evaluate import figures, plots
from rr.models.features import Extractor
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import configs, distributed, loop
from rr.train.conditions import save_condition, static_condition

started = time.time()
P = choose_preset(preset, seed=seed, weights=weights or None)
home = io.results(preset, out)
folder = io.extractor_folder(home, extractor, seed)
first = (extractor, seed) == (studies.RETINAREGEN.extractor, 0)
pictures = io.figures(preset, out) if first else folder / "figures"
packed = Packed(data or home / "data", P.size)
fabric = distributed.fabric(device)

# %% [markdown]
# ## From image to tokens to features
#
# The trunk maps $x$ (3, H, W) to a grid of H/32 x W/32 positions, rounded up. Each position becomes a
# token $f_i$ of 256 numbers. In each of the 8 heads every token attends to all tokens, where $Q_k,
# K_k, V_k$ are linear in $f$, and $W_O$ mixes the heads:
#
# $$ A_k = \mathrm{softmax}\!\left( \frac{Q_k K_k^\top}{\sqrt{256 / 8}} \right), \qquad
#    f \leftarrow f + W_O \, [A_1 V_1, \dots, A_8 V_8] . $$

# %%
Code(getsource(Extractor.attend), language="python")

# %% [markdown]
# ## Training
#
# The paper does not say how the new convolution and the attention are trained. We train them on
# the four readability labels and then freeze them. These labels are the only supervision that
# every image of SynFundus-1M has.

# %%
config = configs.config("extractor", P, packed, home, extractor=extractor)
model, folder, start = config.model, config.folder, config.metadata["weights"]
config

# %%
log = loop.run(config, fabric)
figures.save(plots.learning(log), pictures, "03_features_training")

# %% [markdown]
# ## Attention over one eye
#
# Which positions do the tokens attend to? The circle marks the token that asks. The value 1 is
# what every position would get from uniform attention. A small image has few positions, and one of
# them contains both the disc and vessels.

# %%
test = packed.rows("test", readable=True)[:64]
with torch.no_grad():
    f, A = model.attend(packed.batch(test[:1], fabric.device))
shape = f.shape[-2:]
tokens = [0, (shape[0] // 2) * shape[1] + shape[1] // 2, shape[0] * shape[1] - 1]
figures.save(
    figures.attention(packed.batch(test[:1])[0], A[0], shape, tokens),
    pictures,
    "03_features_attention",
)

# %% [markdown]
# ## The static condition
#
# $$ c = \frac{1}{N} \sum_{n=1}^{N} f(x_n), \qquad x_n \text{ readable.} $$
#
# This is one constant for all patients. How much does the mean say about one eye? We compare the
# features of each readable test image with $c$, and with the features of another eye.

# %%
Code(getsource(static_condition), language="python")

# %%
readable = packed.rows("train", readable=True)[: P.pooled]
c = static_condition(model, packed, limit=P.pooled)
save_condition(folder, c)
with torch.no_grad():
    f = model(packed.batch(test, fabric.device))
to_mean = torch.cosine_similarity(f.flatten(1), c.flatten()[None]).mean().item()
to_other = torch.cosine_similarity(f.flatten(1), f.roll(1, 0).flatten(1)).mean().item()
explained = 1 - ((f - c) ** 2).mean().item() / (f**2).mean().item()

# %%
strength = torch.cat([c[None], f[:4]]).pow(2).mean(1).sqrt().cpu()
maps = figures.coloured(strength / strength.max())
figures.save(
    figures.grid(
        {"image": torch.cat([packed.mean(readable), packed.batch(test[:4])]), "strength": maps},
        ["c", *["one eye"] * 4],
    ),
    pictures,
    "03_features_condition",
)

# %% [markdown]
# ## Conclusion

# %%
best = log["val_loss"].min()
numbers = {
    "extractor": extractor,
    "readable_images": len(readable),
    "places": list(shape),
    "val_loss": best,
    "cosine_to_c": to_mean,
    "cosine_to_another_eye": to_other,
    "energy_explained_by_c": explained,
    "strongest_attention": A.mean(1).max().item() * A.shape[-1],
}
write_result(
    folder / "result.json",
    numbers,
    files=("condition.safetensors",),
    started=started - log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
    weights=start,
)
Markdown(
    f"$c$ is the mean over {len(readable)} readable images on {shape[0]} x {shape[1]} places. The features of a single "
    f"test eye resemble $c$ with a cosine of {to_mean:.2f}, and those of another eye with {to_other:.2f}; $c$ alone explains "
    f"{explained:.0%} of their energy. The strongest attention between two places is {numbers['strongest_attention']:.2f} times "
    f"the uniform one"
    + (": it hardly chooses. " if numbers["strongest_attention"] < 1.5 else ". ")
    + "Whatever it adds to the restoration, it adds to every eye alike. "
    "**The paper leaves open** how the added layers are trained and how features are pooled."
)

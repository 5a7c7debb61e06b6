# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Adding noise and removing it
#
# **Question.** How does an image become noise, and how can a network reverse this?
#
# This chapter follows section 2.4: forward process, noise prediction and reverse step. It uses a
# plain U-Net without a condition, on readable images.
#
# | | |
# | --- | --- |
# | needs | 01_data |
# | writes | `checkpoints/diffusion/`, `tables/04_diffusion_*.csv`, figures `04_diffusion_*`, `04_diffusion.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to train
schedule: str = ""  # linear | cosine: of the noise; empty: the preset's value

# %%
import time
from inspect import getsource

import pandas as pd
import torch
from IPython.display import Code, Markdown

from rr import files as io
from rr.data.dataset import Packed
from rr.evaluate import figures, plots
from rr.evaluate.metrics import psnr
from rr.models.diffusion import SCHEDULES, Diffusion
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import configs, distributed, loop

started = time.time()
P = choose_preset(preset, seed=seed, schedule=schedule or None)
home, pictures = io.results(preset, out), io.figures(preset, out)
packed = Packed(data or home / "data", P.size)
fabric = distributed.fabric(device)

# %% [markdown]
# ## The forward process
#
# $$ x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim \mathcal{N}(0, 1),
#    \qquad \bar\alpha_t = \prod_{s \le t} (1 - \beta_s) . $$

# %%
Code(getsource(Diffusion.add_noise), language="python")

# %% [markdown]
# The schedule says how fast the image disappears. Where does it end, also if linear betas are not
# rescaled to $T$? The paper gives neither $T$ nor the betas.

# %%
values = [
    pd.DataFrame(
        {"t": range(P.T + 1), "alpha_bar": Diffusion(P.T, name).alpha_bar, "schedule": name}
    )
    for name in SCHEDULES
]
unscaled = torch.cumprod(1 - torch.linspace(1e-4, 0.02, P.T), 0)
values.append(
    pd.DataFrame(
        {"t": range(1, P.T + 1), "alpha_bar": unscaled, "schedule": "linear, not rescaled"}
    )
)
curves = pd.concat(values)
io.write_table(home / "tables" / "04_diffusion_schedules.csv", curves)
figures.save(
    plots.lines(curves, "t", "alpha_bar", "schedule", "step t", r"$\bar\alpha_t$"),
    pictures,
    "04_diffusion_schedules",
)

# %%
diffusion = Diffusion(P.T, P.schedule)
x = packed.batch(packed.clean_rows("test")[:1])
epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
times = [0, *(max(1, round(P.T * share)) for share in (0.05, 0.15, 0.3, 0.5, 0.75, 1))]
noised = torch.cat([diffusion.add_noise(x, t, epsilon) for t in times])
figures.save(
    figures.grid({"$x_t$": noised}, [f"t = {t}" for t in times], side=1.2),
    pictures,
    "04_diffusion_forward",
)

# %% [markdown]
# ## The reverse step, with an oracle
#
# $$ x_{t-1} = \frac{1}{\sqrt{\alpha_t}} \left( x_t - \frac{1 - \alpha_t}{\sqrt{1 - \bar\alpha_t}}\,
#    \epsilon_\theta(x_t, t) \right) + \sqrt{\beta_t}\, z, \qquad z = 0 \text{ at the last step,} \qquad \alpha_t = 1 - \beta_t. $$
#
# We test the sampler before we train a network. With the true $\epsilon$, DDIM (which adds no
# noise) must pass exactly through the $x_t$ of the forward process and end at $x_0$, for any
# number of steps. The paper's step adds fresh noise $z$. There the oracle gives the new true noise
# at every step, and only the end can be checked. A sampler that fails this test cannot restore an
# image.

# %%
Code(getsource(Diffusion.ddpm_step), language="python")

# %%
rows = []
for steps in (50, 10, 1):
    chain = diffusion.reverse(lambda x_t, t: epsilon, noised[-1:], P.T, "noise", steps=steps)
    errors = [(x_t - diffusion.add_noise(x, t, epsilon)).abs().max().item() for t, x_t, _ in chain]
    rows.append(
        {
            "sampler": f"DDIM, {steps} steps",
            "largest error on the way": max(errors),
            "at the end": errors[-1],
        }
    )
generator = torch.Generator().manual_seed(seed)
chain = diffusion.reverse(
    lambda x_t, t: diffusion.noise_between(x_t, t, x), noised[-1:], P.T, "noise", generator
)
*_, (_, end, _) = chain
rows.append({"sampler": "every step (2.4)", "at the end": (end - x).abs().max().item()})
oracle = pd.DataFrame(rows)
oracle

# %% [markdown]
# ## Learning the noise
#
# The network sees $x_t$ and $t$ and predicts $\epsilon$. The loss is the mean squared error. In
# this chapter the training pair is $(x, x)$ with a clean image $x$.

# %%
config = configs.config("diffusion", P, packed, home)
model, clean = config.model, [packed.clean_rows(split) for split in ("train", "val", "test")]
config

# %%
log = loop.run(config, fabric)
figures.save(plots.learning(log), pictures, "04_diffusion_training")

# %% [markdown]
# ## From which step can it come back?
#
# We add noise to test images up to step $t$, run the reverse process and compare the result with
# the image. How much is lost near $t = 0$, and what comes back from pure noise? The start step
# $t_0$ of the restoration must be chosen with this in mind.

# %%
model.to(fabric.device)
x = packed.batch(clean[2][:4], fabric.device)
rows, pictured = [], []
for t in times[1:]:
    generator = torch.Generator().manual_seed(seed)
    x_t = model.diffusion.add_noise(x, t, torch.randn(x.shape, generator=generator).to(x))
    with torch.no_grad():
        *_, (_, end, _) = model.diffusion.reverse(
            lambda x, t: model(x, t).prediction.float(), x_t, t, "noise", generator
        )
    pictured.append((x_t[:1].clamp(0, 1).cpu(), end[:1].cpu()))
    rows.append(
        {
            "t": t,
            "PSNR of x_t": psnr(x_t.clamp(0, 1), x).mean().item(),
            "PSNR after the chain": psnr(end, x).mean().item(),
        }
    )
back = pd.DataFrame(rows)
io.write_table(home / "tables" / "04_diffusion_back.csv", back)
figures.save(
    figures.grid(
        {
            "$x_t$": torch.cat([a for a, _ in pictured]),
            "restored": torch.cat([b for _, b in pictured]),
        },
        [f"t = {t}" for t in times[1:]],
        side=1.3,
    ),
    pictures,
    "04_diffusion_back",
)

# %%
back.round(2)

# %% [markdown]
# ## Conclusion

# %%
mean_image = psnr(packed.mean(clean[0]).to(x).expand_as(x), x).mean().item()
ends = curves.groupby("schedule", sort=False)["alpha_bar"].last()
useful = back[back["PSNR after the chain"] > mean_image]["t"]
numbers = {
    "T": P.T,
    "schedule": P.schedule,
    "alpha_bar_T": diffusion.alpha_bar[-1].item(),
    "oracle_error": oracle["at the end"].max(),
    "back": back.to_dict("records"),
    "mean_image": mean_image,
}
write_result(
    home / "04_diffusion.json",
    numbers,
    started=started - log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
)
Markdown(
    f"At T = {P.T}, alpha_bar ends at: {'; '.join(f'{name} {end:.2g}' for name, end in ends.items())}. "
    f"With the true noise every sampler returns the image to {numbers['oracle_error']:.0e}. The trained network brings back "
    f"more than the mean image ({mean_image:.1f} dB), which looks at nothing, from t in {useful.tolist()} of "
    f"{times[1:]}; from pure noise it ends {back['PSNR after the chain'].iloc[-1]:.1f} dB from an image it was never told. "
    "**The paper leaves open** $T$, the betas, and how far an unreadable image is noised before it is restored."
)

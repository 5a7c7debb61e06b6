# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The variational autoencoder
#
# **Question.** What survives the bottleneck, and what do the two terms of its loss measure?
#
# This chapter follows section 2.5 (Fig. 4): three convolutions, $\mu$ and $\log\sigma^2$, a fully
# connected layer, three transposed convolutions and a sigmoid. The loss is the binary
# cross-entropy plus the Kullback-Leibler divergence. Here the VAE is trained alone on readable
# images. In notebook 06 it is the backbone of the diffusion.
#
# | | |
# | --- | --- |
# | needs | 01_data |
# | writes | `checkpoints/vae/`, figures `05_vae_*`, `05_vae.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the run
seed: int = 0  # from 0: of everything that is drawn at random
data: str = ""  # folder of a packed data set; empty: the one that 01_data made
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to train
latent: int = 0  # from 0 to 65536: length of z; 0: the preset's value

# %%
import time
from inspect import getsource

import torch
from IPython.display import Code, Markdown

from rr import files as io
from rr.data.dataset import Packed
from rr.evaluate import figures, plots
from rr.evaluate.metrics import psnr, ssim, variation
from rr.models import vae
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import configs, distributed, loop

started = time.time()
P = choose_preset(preset, seed=seed, latent=latent or None)
home, pictures = io.results(preset, out), io.figures(preset, out)
packed = Packed(data or home / "data", P.size)
fabric = distributed.fabric(device)

# %% [markdown]
# ## Encoder, latent variable, decoder
#
# $$ q(z \mid x) = \mathcal{N}(\mu(x), \sigma^2(x)), \qquad z = \mu + \epsilon \cdot \sigma,
#    \qquad \hat x = \mathrm{decoder}(z) . $$

# %%
Code(
    getsource(vae.VAE.encode)
    + "\n"
    + getsource(vae.reparameterize)
    + "\n"
    + getsource(vae.VAE.decode_logits),
    language="python",
)

# %%
config = configs.config("vae", P, packed, home)
model = config.model
print(model)
print(
    f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters; "
    f"{3 * P.size**2} values of an image pass through {P.latent} numbers"
)

# %% [markdown]
# ## The loss
#
# $$ \mathcal{L}_{BCE} = -\sum_i \bigl[ x_i \log \hat x_i + (1 - x_i) \log (1 - \hat x_i) \bigr], \qquad
#    \mathcal{L}_{KL} = \tfrac{1}{2} \sum_j \bigl( \sigma_j^2 + \mu_j^2 - 1 - \log \sigma_j^2 \bigr) . $$
#
# The paper prints the first sum without its minus, but the negative sum is minimized. Pixels have
# values between 0 and 1. Therefore the smallest possible BCE is the entropy of the image itself,
# even for a perfect reconstruction. We measure this floor and compare it with the KL term.

# %%
clean = [packed.clean_rows(split) for split in ("train", "val", "test")]
x = packed.batch(clean[2][:256])
floor = vae.bce(x, x).mean().item()
print(
    f"floor of the BCE on the test images: {floor:,.0f} nats per image, {floor / x[0].numel():.3f} per value"
)

# %% [markdown]
# ## Training
#
# First the configuration of this training, then the loop, which is the same for every model of
# this project. It saves the averaged weights of the epoch with the lowest validation loss.

# %%
config

# %%
Code(getsource(loop.train), language="python")

# %%
log = loop.run(config, fabric)
figures.save(plots.learning(log, ("loss", "bce", "kl")), pictures, "05_vae_training")

# %% [markdown]
# ## What survives
#
# All that the decoder knows about an eye is its code. The colours and the field of view cover many
# pixels, and the vessels few. Which of them survive, and do the reconstructions differ from eye to
# eye as much as the images do?

# %%
model.to(fabric.device).eval()
with torch.no_grad():
    output = model(x.to(fabric.device))
x_hat = output.prediction.float().cpu()
figures.save(figures.grid({"x": x[:7], r"$\hat x$": x_hat[:7]}), pictures, "05_vae_reconstructions")

# %% [markdown]
# ## What the latent space holds
#
# The first row shows images decoded from $z \sim \mathcal{N}(0, 1)$. If they are not eyes, the
# codes of real images do not follow the prior. The rows below show one eye, moved along the four
# directions of $z$ that vary most over the test images.

# %%
with torch.no_grad():
    z = torch.randn(7, P.latent, generator=torch.Generator().manual_seed(seed)).to(fabric.device)
    rows = {"z ~ N(0, 1)": model.decode(z).float().cpu()}
    for j in output.mu.std(0).topk(4).indices.tolist():
        moved = output.mu[:1].repeat(7, 1)
        moved[:, j] = output.mu[:, j].mean() + output.mu[:, j].std() * torch.linspace(-3, 3, 7).to(
            moved
        )
        rows[f"$z_{{{j}}}$: $\\pm$3 sd"] = model.decode(moved).float().cpu()
figures.save(figures.grid(rows), pictures, "05_vae_latent")

# %% [markdown]
# ## Conclusion

# %%
bce, kl = vae.bce(x_hat, x).mean().item(), vae.kl(output.mu, output.logvar).mean().item()
mean_image = packed.mean(clean[0]).expand_as(x)
numbers = {
    "latent": P.latent,
    "bce": bce,
    "bce_floor": floor,
    "kl": kl,
    "psnr": psnr(x_hat, x).mean().item(),
    "ssim": ssim(x_hat, x).mean().item(),
    "variation": variation(x_hat, x, packed.fov(clean[2][:256])),
    "psnr_of_the_mean_image": psnr(mean_image, x).mean().item(),
    "mean_sigma": (output.logvar / 2).exp().mean().item(),
    "spread_of_mu": output.mu.std(0).mean().item(),
}
write_result(
    home / "05_vae.json",
    numbers,
    started=started - log.attrs["before"],
    device=fabric.device,
    preset=P,
    seed=seed,
    data=packed.hash,
)
Markdown(
    f"Of the {bce:,.0f} nats of reconstruction loss, {floor:,.0f} are the floor that no model can leave: {bce - floor:,.0f} nats "
    f"are left for the model to work on, beside {kl:,.0f} nats of KL. Reconstructions reach {numbers['psnr']:.1f} dB; the mean "
    f"of the training images, which looks at nothing, has {numbers['psnr_of_the_mean_image']:.1f} dB. "
    f"Between images they differ {numbers['variation']:.2f} times as much as the images. The prior expects codes of spread 1; those of test images have {numbers['spread_of_mu']:.2f} between images and a sigma "
    f"of {numbers['mean_sigma']:.2f} within one, so a draw from the prior need not decode to an eye. "
    "**The paper leaves open** the size of $z$, all widths, and which loss trains the VAE inside the diffusion."
)

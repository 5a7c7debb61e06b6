# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · What matters: experiments on the gaps of the paper
#
# **Question.** The paper leaves choices open. Which of them decide the result?
#
# Each section has one experiment, one figure and one sentence: what makes the 17 dB between the
# backbones, what the constant condition contributes, where it must be added, what the reverse step
# needs, what a missing reference hides, what the loss of the VAE measures, whether extractors and
# fusions differ more than trainings do, and what pooled attention knows about positions. The last
# section covers the paper's Discussion: concatenation of the degraded image, a bridge that starts
# from it, and uncertainty.
#
# **What would be misleading.** The trainings are small. In preset `smoke` all cells of the
# factorial see the same few images equally often, and the order of the cells may be reversed after
# a longer training. An interval is over *test images* for these trainings. Two things are called
# different only if at least three trainings agree.
#
# | | |
# | --- | --- |
# | needs | 06_restoration with all configurations of the study `matters` (rr/studies.py), 01_data, 03_features |
# | writes | `tables/10_what_matters.*`, `10_what_matters_per_image.csv`, figures `10_what_matters_*`, `10_what_matters.json` |

# %% tags=["parameters"]
preset: str = "smoke"  # mini | smoke | course | paper: the values of the runs
seeds: int = 1  # from 1: runs per configuration, seeds 0, 1, ...
out: str = "results"  # folder of all results; a relative path starts at the project's root
device: str = "auto"  # auto | cpu | cuda: where to restore

# %%
import time

import pandas as pd
import torch
from IPython.display import Markdown

from rr import checkpoint, studies
from rr import files as io
from rr.data import pairs
from rr.data.dataset import Packed
from rr.evaluate import factorial as factors
from rr.evaluate import figures, harness, inputs, metrics, plots, runs, statistics, tables
from rr.evaluate import sentences as words
from rr.models import features, vae
from rr.models.bridge import mean_and_spread
from rr.models.diffusion import Diffusion
from rr.presets import preset as choose_preset
from rr.provenance import write_result
from rr.train import conditions, distributed

started = time.time()
P = choose_preset(preset)
home, pictures = io.results(preset, out), io.figures(preset, out)
packed = Packed(home / "data", P.size)
on = distributed.fabric(device).device
y, test = inputs.test_pairs(packed, limit=P.held_out)
x, fov = test.x, test.fov
every = {
    row: [runs.read(home, row, seed) for seed in range(seeds)] for row in studies.STUDIES["matters"]
}
ours, shown = studies.RETINAREGEN, ("psnr", "ssim")
answers, sentences = [], []
scores_of = statistics.scores(
    {row: group for row, group in every.items() if row.protocol == "paired"}
)
nothing, mean_eye = (scores_of[name] for name in statistics.BASELINES)
print(f"{len(every)} configurations, {seeds} seed(s), {len(x)} test images of {P.size} px")

# %% [markdown]
# ## 1 · Backbone, objective or start: what makes the 17 dB?
#
# The paper's autoencoder reaches 27 dB, its U-Nets 10 dB. But the autoencoder predicts the *image*
# and the U-Nets predict the *noise*, and the paper does not say where the chains start. We cross
# the three factors: backbone (VAE, U-Net), objective (image, v, noise) and start (the noised input
# at $t_0$, pure noise). Here $v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,x_0$.
# The six trainings see equally many images and degradations and cover all steps, so that both
# starts use the *same weights* with 15 network calls. Pure noise contains no information about the
# eye. A chain that starts there can produce an eye, but not this one.
#
# The objective does not change the weighting: every squared error is weighted so that the error of
# $x_0$ counts min(SNR, 5), whatever the network predicts (min-SNR). One cell has another loss. The
# VAE that predicts the image is trained with the paper's BCE + KL (2.5), without a weight. For the
# VAE, the effect of the objective therefore includes the effect of this loss.

# %%
cells = {}
for backbone in studies.FACTORS["backbone"]:
    for objective in studies.FACTORS["objective"]:
        row = studies.cell(backbone, objective)
        cells[backbone, objective, "pure noise"] = scores_of[row]
        cells[backbone, objective, "noised input"] = []
        for seed in range(seeds):
            model = inputs.load_restorer(home, row, seed, on)
            method = inputs.trained(model, seed, steps=studies.STEPS, start=P.start)
            cells[backbone, objective, "noised input"].append(test.score(method(y, fov)))
cells = {
    (b, o, s): cells[b, o, s]
    for b, o, s in sorted(cells, key=lambda key: (key[0] != "vae", *key[1:]))
}
factorial = statistics.study({"do nothing": nothing, "population mean": mean_eye}
                              | {", ".join(key): group for key, group in cells.items()}, "do nothing")  # fmt: skip
bars = plots.bars(factorial, shown, baselines=statistics.BASELINES, seeds=None)
figures.save(bars, pictures, "10_what_matters_factorial")
per_image = pd.concat(
    table[[*shown, "variation"]]
    .rename_axis("image")
    .reset_index()
    .assign(**dict(zip(studies.FACTORS, key)), seed=seed)
    for key, group in cells.items()
    for seed, table in enumerate(group)
)
io.write_table(
    home / "10_what_matters_per_image.csv",
    per_image[["image", *studies.FACTORS, "seed", *shown, "variation"]],
)

# %% [markdown]
# The left panel shows main effects: one level against another, averaged over all other factors.
# The right panel explains the difference between the paper's two corners, (U-Net, noise, pure
# noise) and (VAE, image, noised input). A factor's share is averaged over all orders in which the
# factors can be changed, and the shares add up to the difference.

# %%
worst, best = ("unet", "noise", "pure noise"), ("vae", "image", "noised input")
main = factors.effects(cells, studies.FACTORS)
shares = factors.attribution(cells, studies.FACTORS, worst, best)
panels = {
    "main effects": main.assign(label=main.factor + ": " + main.better + " − " + main.worse),
    f"shares of ({', '.join(best)}) − ({', '.join(worst)})": shares.assign(label=shares.factor),
}
for table in panels.values():
    table["label"] += table.verdict.eq(statistics.NO_VARIATION).map(tables.MARK)
figures.save(plots.forest(panels), pictures, "10_what_matters_effects")

# %%
answers += [
    words.answer(4, f"{row.factor}: {row.better} better than {row.worse}", row)
    for row in main.itertuples()
]
gain_or_loss = {statistics.BETTER: "a gain", statistics.WORSE: "a loss"}
answers += [
    words.answer(4, f"share of {row.factor} in the difference of the corners", row, gain_or_loss)
    for row in shares.itertuples()
]
largest = shares.iloc[:-1].sort_values("difference").iloc[-1]
sentences.append(
    "The difference between the corners is "
    f"{tables.interval(*shares.iloc[-1][['difference', 'low', 'high']])} dB. The shares of the factors are "
    + ", ".join(
        f"{row.factor}: {tables.interval(row.difference, row.low, row.high)}"
        for row in shares.iloc[:-1].itertuples()
    )
    + (
        f". The {largest.factor} has the largest share"
        if largest.verdict == statistics.BETTER
        else ""
    )
    + ". For the VAE, the objective *image* comes with the BCE, "
    "and the other two with a weighted squared error."
)
Markdown(sentences[-1])

# %% [markdown]
# ## 2 · Does the constant condition contribute anything?
#
# $c$ is one constant, the mean over all readable images. It can say what an eye is, but not which
# eye this is. There are two tests. First, the *same weights* get another $c$: zeros, noise of the
# same mean and spread, or the mean over the *unreadable* images. How far does the output move?
# Second, networks are *trained* without a condition, with the features of each image (of the
# smallest extractor), and with a condition that depends on the step.

# %%
swaps = {"do nothing": nothing, "c": []}
moved, outputs = {}, {}
for seed in range(seeds):
    model = inputs.load_restorer(home, ours, seed, on)
    method, folder = inputs.trained(model, seed), io.extractor_folder(home, ours.extractor, seed)
    eye = checkpoint.load(folder, features.Extractor, on)
    c = model.c.clone()
    as_is = method(y, fov)
    swaps["c"].append(test.score(as_is))
    for name in conditions.CONTROLS:
        model.c.copy_(conditions.control_condition(name, c, eye, packed, seed, P.pooled))
        output = method(y, fov)
        swaps.setdefault(name, []).append(test.score(output))
        moved.setdefault(name, []).append(255 * ((output - as_is) ** 2).mean().sqrt().item())
        outputs.setdefault(name, output)
    outputs.setdefault("c", as_is)
swapped = statistics.study(swaps, "c")
figures.save(
    plots.bars(swapped, shown, baselines=statistics.BASELINES, reference="c"),
    pictures,
    "10_what_matters_swaps",
)

# %%
anew = {"do nothing": nothing, "c": scores_of[ours]} | {
    name: scores_of[row] for name, row in studies.CONDITIONS.items()
}
twins = {
    name: row._replace(condition="mean") if row.condition == "image" else ours
    for name, row in studies.CONDITIONS.items()
}
anew |= {f"c of {row.extractor}": scores_of[row] for row in twins.values() if row != ours}
trained = statistics.study(anew, "c")
figures.save(
    plots.bars(trained, shown, baselines=statistics.BASELINES, reference="c"),
    pictures,
    "10_what_matters_conditions",
)

# %%
said = [
    words.answer(
        1,
        f"the same weights do better with c than with {name}",
        statistics.compare(swaps["c"], swaps[name], "psnr", 3),
    )
    for name in moved
]
said += [
    words.answer(
        1,
        f"trained with c better than with the condition: {name}",
        statistics.compare(scores_of[twins[name]], anew[name], "psnr", len(twins)),
    )
    for name in studies.CONDITIONS
]
answers += said
gap = "; ".join(f"{name}: {sum(values) / seeds:.1f}" for name, values in moved.items())
sentences.append(
    words.answers(said)
    + " If c is replaced, the output changes by this root mean square, in grey levels of 255: "
    f"{gap}."
)
Markdown(sentences[-1])

# %% [markdown]
# ## 3 · Added to the state or to the input of the network?
#
# The paper writes $x_t^{conditioned} = c + x_t$ and continues with it. Then $c$ is added to the
# state at every step, and $x_t$ is no longer $\sqrt{\bar\alpha_t}\,x_0 +
# \sqrt{1-\bar\alpha_t}\,\epsilon$. The figure compares both versions with the same weights, those that
# were trained for the chain. It shows the mean of the state minus the mean of the forward process.

# %%
state, drift = {"input only": [], "state": []}, []
for seed in range(seeds):
    model = inputs.load_restorer(home, studies.CHAIN, seed, on)
    for name, choice in (("input only", False), ("state", True)):
        method = inputs.trained(model, seed, condition_on_state=choice)
        state[name].append(test.score(method(y, fov)))
        way = model.trajectory(
            y[:16].to(on), torch.Generator().manual_seed(seed), condition_on_state=choice
        )
        for t, x_t, x_hat in way:
            if t:
                expected = model.diffusion.at(model.diffusion.alpha_bar, t).sqrt() * x_hat
                drift.append((name, t, seed, (x_t - expected).mean().item()))
drift = pd.DataFrame(drift, columns=["method", "t", "seed", "mean"])
drift = drift.groupby(["method", "t"], as_index=False, sort=False)["mean"].mean()
drift = drift.assign(low=drift["mean"], high=drift["mean"])
both = plots.curves(
    drift,
    "t",
    "step t (read from right to left)",
    r"mean of $x_t - \sqrt{\bar\alpha_t}\,\hat{x}_0$",
)
figures.save(both, pictures, "10_what_matters_state")

# %%
outcome = statistics.compare(state["input only"], state["state"], "psnr")
answers.append(words.answer(2, "c added to the input better than to the state", outcome))
sentences.append(words.answers(answers[-1:]))
Markdown(sentences[-1])

# %% [markdown]
# ## 4 · The reverse step, and the number of steps
#
# Section 2.1 can be read in two ways. Either one call of the network at $t_0$ restores the image,
# or a chain of reverse steps does. The two readings need two trainings. For *one call*, training
# shows the noised $y$ at $t_0$. For the *chain*, it shows what a chain visits on its way from $y$ to
# $x$ (`Denoiser.training_states`). Both networks are tried with several numbers of steps; *all* is
# the paper's step (2.4) at every $t$, with fresh noise.
#
# **Rule.** RetinaRegen uses the reading with the higher mean PSNR on the validation images: one
# call of the first network, or the second network with its best number of steps from 2. No test
# image is used for this choice.

# %%
readings, tried = {"one-call": ours, "chain": studies.CHAIN}, (1, 2, 4, 8, "all")
y_val, val = inputs.test_pairs(packed, limit=P.held_out, split="val")
validated = pd.DataFrame(index=list(readings), columns=list(tried), dtype=float)
for name, row in readings.items():
    models = [inputs.load_restorer(home, row, seed, on) for seed in range(seeds)]
    for steps in tried:
        restored = [inputs.trained(model, i, steps=steps) for i, model in enumerate(models)]
        psnr = [metrics.psnr(val.x, method(y_val, val.fov)).mean() for method in restored]
        validated.loc[name, steps] = torch.stack(psnr).mean().item()
used = {"one-call": validated.loc["one-call", [1]], "chain": validated.loc["chain", [*tried[1:]]]}
selected = max(used, key=lambda name: used[name].max())
validated.rename_axis("trained for, PSNR / dB with steps:").round(2)

# %% [markdown]
# With the true $\epsilon$ the deterministic chain must return to $x_0$ exactly. A chain that
# starts from pure noise needs a schedule that ends there (see 04_diffusion). The figure shows the
# quality against the number of steps, for the first 16 test images. A bridge starts from $y$
# itself.

# %%
chain = Diffusion(P.T, P.schedule)
epsilon = torch.randn(x[:4].shape, generator=torch.Generator().manual_seed(0))
x_t = chain.add_noise(x[:4], P.T // 2, epsilon)
for t in range(P.T // 2, 0, -1):
    x_t = chain.ddim_step(x_t, t, t - 1, epsilon)
error = (x_t - x[:4]).abs().max().item()
ends = {
    T: (1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64)).prod().item()
    for T in (100, 200, 300, 1000)
}

few, asked = min(16, len(x)), (1, 2, 4, 8, 15, 50, 1000)
curve = {  # name: configuration, most steps, options
    "RetinaRegen, one call": (ours, max(1, round(P.start * P.T)), {}),
    "RetinaRegen, chain": (studies.CHAIN, max(1, round(P.start * P.T)), {}),
    "U-Net, v, pure noise": (studies.cell("unet", "v"), P.T, {}),
    "the same, noised input": (
        studies.cell("unet", "v"),
        max(1, round(P.start * P.T)),
        {"start": P.start},
    ),
    "U-Net, v, y concatenated": (studies.CONCATENATED, P.T, {}),
    "bridge": (studies.BRIDGE, P.T, {}),
    "one-step U-Net": (studies.ONE_STEP, 1, {}),
}
points = []
for name, (row, most, options) in curve.items():
    for steps in [k for k in asked if k <= most]:
        values, variation = [], []
        for seed in range(seeds):
            model = inputs.load_restorer(home, row, seed, on)
            restored = inputs.trained(model, seed, steps=steps, **options)(y[:few], fov[:few])
            values.append(metrics.psnr(x[:few], restored))
            variation.append(metrics.variation(restored, x[:few], fov[:few]))
        points.append((name, steps, *statistics.bootstrap(sum(values) / seeds), min(variation)))
points = pd.DataFrame(points, columns=["method", "steps", "mean", "low", "high", "variation"])
collapsed = points.groupby("method")["variation"].min() < statistics.COLLAPSED
points["method"] += points.method.map(collapsed).map(tables.MARK)
level = {
    "do nothing": nothing[0]["psnr"][:few].mean(),
    "population mean": mean_eye[0]["psnr"][:few].mean(),
}
figures.save(
    plots.curves(points, "steps", "steps", levels=level), pictures, "10_what_matters_steps"
)

# %%
lines = [
    rows["mean"].idxmax() != rows.index[-1] for _, rows in points.groupby("method") if len(rows) > 1
]
tops = points.loc[points.groupby("method", sort=False)["mean"].idxmax()]
sentences.append(
    f"On {len(val.x)} validation images, "
    + " and ".join(
        f"the training for {'one call' if name == 'one-call' else 'the chain'} reaches "
        f"{row.max():.2f} dB (steps: {row.idxmax()})"
        for name, row in used.items()
    )
    + f". The rule selects {selected}. RetinaRegen is trained for {ours.trained_for}. "
    f"With the true noise the chain returns the image, with an error of at most {error:.1e}. "
    "Linear betas that are not scaled to T end at this alpha_bar: "
    + ", ".join(f"{value:.2g} (T = {T})" for T, value in ends.items())
    + ". The highest PSNR of each curve is reached with: "
    + "; ".join(
        f"{row.method}: {row.steps} step(s), {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}] dB"
        for row in tops.itertuples()
    )
    + f". {sum(lines)} of the {len(lines)} curves with several points fall again after their maximum."
    + (f" {tables.untested(seeds)}" if seeds < statistics.SEEDS else "")
)
Markdown(sentences[-1])

# %% [markdown]
# ## 5 · Without a reference
#
# Two trainings, paired and literal, are each evaluated with both protocols. *Paired* compares with
# the eye before the known degradation. *Literal* compares with the unreadable image itself. Under
# the literal protocol *do nothing* is perfect, so it is left out of the figure.

# %%
y_literal, test_literal = inputs.test_pairs(packed, "literal", P.held_out)
by_protocol = {"paired": {"do nothing": nothing}, "literal": {}}
for protocol, row in (("paired", ours), ("literal", studies.LITERAL)):
    for seed in range(seeds):
        method = inputs.trained(inputs.load_restorer(home, row, seed, on), seed)
        table = test.score(method(y, fov))
        by_protocol["paired"].setdefault(f"trained {protocol}", []).append(table)
        table = test_literal.score(method(y_literal, test_literal.fov))
        by_protocol["literal"].setdefault(f"trained {protocol}", []).append(table)
protocols = {name: statistics.study(group, "trained paired") for name, group in by_protocol.items()}
both = pd.concat(
    [table.assign(method=table.method + f", scored {name}") for name, table in protocols.items()]
)
figures.save(
    plots.bars(both, shown, baselines=["do nothing, scored paired"]),
    pictures,
    "10_what_matters_protocols",
)

# %%
means = {name: {method: sum(table["psnr"].mean() for table in group) / len(group) for method, group in methods.items()}
         for name, methods in by_protocol.items()}  # fmt: skip
paired, literal = (
    {name: group[f"trained {name}"] for name in pairs.PROTOCOLS} for group in by_protocol.values()
)
questions = {
    "literal training better than doing nothing": (paired["literal"], nothing),
    "paired training better than literal, scored paired": (paired["paired"], paired["literal"]),
    "paired training better than literal, scored literal": (literal["paired"], literal["literal"]),
}
said = [
    words.answer(5, claim, statistics.compare(*pair, "psnr", len(questions)))
    for claim, pair in questions.items()
]
answers += said
sentences.append(
    words.answers(said)
    + f" The same weights (trained paired) reach {means['paired']['trained paired']:.2f} dB in the paired protocol and "
    f"{means['literal']['trained paired']:.2f} dB in the literal protocol, whose test images differ. Therefore no table "
    "compares numbers of two protocols."
)
Markdown(sentences[-1])

# %% [markdown]
# ## 6 · What the loss of the VAE measures
#
# The summed BCE of pixels between 0 and 1 cannot be smaller than the entropy of the image. Three
# likelihoods are trained in the same way: BCE, squared error (a beta-VAE), and continuous
# Bernoulli. The last one adds the constant that makes the BCE a density, so it has no such floor
# and can be negative. Reconstruction and KL are shown separately, at $t_0$.

# %%
fits, terms = (
    {"do nothing": nothing} | {name: scores_of[row] for name, row in studies.LIKELIHOODS.items()},
    [],
)
with torch.no_grad():
    for name, row in studies.LIKELIHOODS.items():
        for seed in range(seeds):
            model = inputs.load_restorer(home, row, seed, on)
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
            t = torch.full((len(y),), model.t_0, device=on)
            output = model(model.diffusion.add_noise(y.to(on), t, noise.to(on)), t)
            reconstruction = model.backbone.nll(output, x.to(on)).mean().item() / x[0].numel()
            terms.append((name, seed, reconstruction, vae.bce(output.prediction, x.to(on)).mean().item() / x[0].numel(),
                          vae.kl(output.mu, output.logvar).mean().item() / x[0].numel()))  # fmt: skip
terms = pd.DataFrame(
    terms, columns=["likelihood", "seed", "own reconstruction", "its BCE", "KL"]
).drop(columns="seed")
terms = terms.groupby("likelihood", sort=False).mean()
entropy = vae.bce(x, x).mean().item() / x[0].numel()
likelihoods = statistics.study(fits, "bce")
figures.save(
    plots.bars(likelihoods, shown, baselines=statistics.BASELINES, reference="bce"),
    pictures,
    "10_what_matters_likelihoods",
)
Markdown(
    tables.markdown(
        terms.rename(index=tables.labels(likelihoods)).map(lambda value: f"{value:.4f}"),
        f"Nats per value of an image, test images. {tables.trainings(likelihoods)}",
    )
)

# %%
bce = terms.loc["bce"]
said = [
    words.answer(
        6, f"bce better than {name}", statistics.compare(fits["bce"], fits[name], "psnr", 2)
    )
    for name in ("mse", "continuous-bernoulli")
]
answers += said
sentences.append(
    f"The BCE is {bce['its BCE']:.4f} nats per value. No model can go below {entropy:.4f}, the entropy of the image. "
    f"This is {entropy / (bce['its BCE'] + bce['KL']):.1%} of the loss. Another {bce['its BCE'] - entropy:.4f} are "
    f"error, and {bce['KL']:.4f} are KL. " + words.answers(said)
)
Markdown(sentences[-1])

# %% [markdown]
# ## 7 · Extractors and fusions, or seeds?
#
# With a constant $c$, Table 1 compares eight constants. Two controls stand beside its rows:
# features of an untrained network (*random*), and no features (*none*). The spread of the rows is
# compared with the spread of trainings, which needs several seeds.

# %%
table1 = {row.extractor: scores_of[row] for row in studies.STUDIES["extractors"]}
controls = {
    "random": scores_of[studies.CONDITIONS["random extractor"]],
    "none": scores_of[studies.CONDITIONS["none"]],
}
fusions = {row.fusion: scores_of[row] for row in studies.STUDIES["fusion"] if row != ours}
constant = statistics.study({"do nothing": nothing} | table1 | controls | fusions, "resnet34")
dots = statistics.per_seed(table1 | controls | fusions) if seeds > 1 else None
figures.save(
    plots.bars(constant, shown, baselines=statistics.BASELINES, seeds=dots, reference="resnet34"),
    pictures,
    "10_what_matters_constants",
)

# %%
said = [
    words.answer(
        7, f"resnet34 better than {name}", statistics.compare(table1["resnet34"], scores, "psnr", 2)
    )
    for name, scores in controls.items()
]
answers += said
sentences.append(
    words.answers(said)
    + f" Extractors: {words.spread_sentence(table1, 'psnr')}"
    + f" Fusions: {words.spread_sentence(fusions | {ours.fusion: scores_of[ours]}, 'psnr')}"
    + (" One seed cannot show how much of this is chance." if seeds == 1 else "")
)
Markdown(sentences[-1])

# %% [markdown]
# ## 8 · Attention and pooling
#
# Self-attention without a position code does not know where a token comes from. If the tokens are
# shuffled, the outputs are the same, but shuffled. After pooling over positions nothing about the
# position is left. (Our $c$ keeps positions, because it is averaged over images only.)

# %%
eye = checkpoint.load(io.extractor_folder(home, ours.extractor, 0), features.Extractor, on)
with torch.no_grad():
    f = eye.maps(y[:few].to(on)).flatten(2).transpose(1, 2)  # N, h w, width
    order = torch.randperm(f.shape[1], generator=torch.Generator().manual_seed(0)).to(on)
    pooled = [
        (tokens + eye.attention(tokens, tokens, tokens)[0]).mean(1) for tokens in (f, f[:, order])
    ]
distance = {
    "tokens shuffled, pooled": (pooled[0] - pooled[1]).norm(dim=1),
    "another eye, pooled": (pooled[0] - pooled[0].roll(1, 0)).norm(dim=1),
}
size = pooled[0].norm(dim=1).mean().item()
panel = pd.DataFrame(
    {
        "label": name,
        **dict(zip(("difference", "low", "high"), statistics.bootstrap(value.cpu() / size))),
    }
    for name, value in distance.items()
)
figures.save(
    plots.forest(
        {"distance of the pooled features": panel}, "distance / mean length of the features"
    ),
    pictures,
    "10_what_matters_place",
)

# %%
lengths = [value.mean().item() for value in distance.values()]
ratio = lengths[0] / lengths[1]
sentences.append(
    f"If all {f.shape[1]} tokens are shuffled, the pooled features change by {ratio:.1e} times the distance to another eye."
)
Markdown(sentences[-1])

# %% [markdown]
# ## 9 · Beyond the paper
#
# The degraded image is *concatenated* (SR3, Palette), so that a chain from pure noise gets
# information about the eye. A *bridge* goes from $y$ to $x$ (InDI), and *one step* of the same
# U-Net is its control. The mean of eight samples is a restoration, and their spread is an
# uncertainty map. All U-Nets see equally many images in training.

# %%
beyond = {"do nothing": nothing, "population mean": mean_eye, "RetinaRegen": scores_of[ours]}
beyond |= {
    "U-Net, v, pure noise": scores_of[studies.cell("unet", "v")],
    "y concatenated": scores_of[studies.CONCATENATED],
}
beyond |= {"one-step U-Net": scores_of[studies.ONE_STEP], "bridge": scores_of[studies.BRIDGE]}
drawn = []
for seed in range(seeds):
    model = inputs.load_restorer(home, studies.BRIDGE, seed, on)
    generator = torch.Generator().manual_seed(seed)
    drawn.append(mean_and_spread(model, y.to(on), fov.to(on), generator, 8))
beyond["bridge, mean of 8"] = [test.score(mean) for mean, _ in drawn]
extended = statistics.study(beyond, "one-step U-Net")
figures.save(
    plots.bars(extended, shown, baselines=statistics.BASELINES, reference="one-step U-Net"),
    pictures,
    "10_what_matters_beyond",
)

# %% [markdown]
# From the most degraded to the least degraded test image. In the last two rows, bright means
# uncertain and wrong. Each map is scaled to its own largest value, which the label gives.

# %%
picks = nothing[0]["psnr"].to_numpy().argsort()[[0, len(x) // 4, len(x) // 2, 3 * len(x) // 4, -1]]
spread = drawn[0][1].cpu()
wrong = (drawn[0][0].cpu() - x).abs().mean(1, keepdim=True)
marked = tables.labels(extended)
images = {"input": y[picks], marked["RetinaRegen"]: outputs["c"][picks]}
images |= {
    marked[name]: inputs.trained(inputs.load_restorer(home, row, 0, on), 0, **options)(
        y[picks], fov[picks]
    )
    for name, row, options in (
        ("y concatenated", studies.CONCATENATED, {"steps": studies.STEPS}),
        ("one-step U-Net", studies.ONE_STEP, {}),
        ("bridge", studies.BRIDGE, {}),
    )
}
images |= {
    f"spread of 8 (to {spread[picks].max():.2f})": figures.coloured(
        spread[picks, 0] / spread[picks].max()
    )
}
images |= {
    f"error of their mean (to {wrong[picks].max():.2f})": figures.coloured(
        wrong[picks, 0] / wrong[picks].max()
    )
}
figures.save(
    figures.grid(images | {"reference": x[picks]}, side=1.2), pictures, "10_what_matters_eyes"
)

# %%
agree = statistics.bootstrap(
    harness.error_uncertainty_correlation(spread, drawn[0][0].cpu(), x, fov)
)
questions = {
    "y concatenated better than without": ("y concatenated", "U-Net, v, pure noise"),
    "one-step U-Net better than doing nothing": ("one-step U-Net", "do nothing"),
    "one-step U-Net better than RetinaRegen": ("one-step U-Net", "RetinaRegen"),
    "bridge better than one-step U-Net": ("bridge", "one-step U-Net"),
    "mean of eight samples of the bridge better than one": ("bridge, mean of 8", "bridge"),
}
said = [
    words.answer(0, claim, statistics.compare(beyond[a], beyond[b], "psnr", len(questions)))
    for claim, (a, b) in questions.items()
]
answers += said
sentences.append(
    words.answers(said)
    + " The rank correlation between the spread and the error of the pixels of an image is "
    f"{agree.mean:.2f} [{agree.low:.2f}, {agree.high:.2f}]."
)
Markdown(sentences[-1])

# %% [markdown]
# Notebook 06 with `-p protocol=literal -p region=macula` (or retina) trains on images whose macula
# is unreadable. `--data FOLDER --labels CSV` takes other data. Chapter 02 treats the report of a
# classifier and the second classifier, and chapter 12 treats photographs and the regions of the
# metrics.

# %% [markdown]
# ## Conclusion

# %%
heads = ("backbone, objective, start", "the condition", "state or input", "the reverse step", "no reference", "the VAE's loss",
         "extractors and fusions", "attention and place", "beyond the paper")  # fmt: skip
verdicts = pd.DataFrame(answers)
reader = pd.DataFrame(
    {
        "point": verdicts.point.map(lambda point: str(point or "beyond")).to_numpy(),
        "answer": verdicts.answer.to_numpy(),
        "difference / dB": [
            tables.interval(*row) for row in verdicts[["difference", "low", "high"]].to_numpy()
        ],
    },
    index=verdicts.claim,
)
caption = (
    f"What matters. Points: 1 condition, 2 state, 4 factorial, 5 protocols, 6 loss, 7 constants. Embedded data, preset {preset}, "
    f"{P.size} px, n = {len(x)} test images, seeds: {seeds}. Difference in PSNR, paired over images; the interval holds for all "
    f"comparisons of a kind together. {tables.trainings(factorial)}"
)
tables.write(home / "tables", "10_what_matters", verdicts, reader, caption)
factorial_cells = {
    ", ".join(key): sum(table["psnr"].mean() for table in group) / seeds
    for key, group in cells.items()
}
numbers = {
    "n": len(x),
    "seeds": seeds,
    "verdicts": answers,
    "sentences": dict(zip(heads, sentences, strict=True)),
    "cells": factorial_cells,
    "steps": points.to_dict("records"),
    "readings": {name: dict(zip(map(str, tried), row)) for name, row in validated.T.items()},
    "selected": selected,
    "moved": moved,
    "loss": terms.to_dict("index") | {"entropy": entropy},
    "uncertainty": agree._asdict(),
}
sources = runs.sources({str(row): group for row, group in every.items()})
write_result(
    home / "10_what_matters.json",
    numbers,
    files=("10_what_matters_per_image.csv",),
    started=started,
    device=on,
    preset=P,
    data=packed.hash,
    runs=sources,
)
Markdown(
    "\n".join(f"* **{head}**: {sentence}" for head, sentence in zip(heads, sentences, strict=True))
    + f"\n\n{len(x)} test images of embedded data, preset {preset}, {P.factorial_images} images seen per cell of the factorial. "
    + words.certainty(seeds, len(questions))
)

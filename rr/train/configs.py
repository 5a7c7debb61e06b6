"""What is trained, and how: COMPONENTS, one recipe per component, the same for its notebook and for `rr train`.

A recipe(P, data, home, **parameters) of the preset P, the packed `data` and the folder of the results is a dict of arguments of
`train.run`: the model as it starts, rows, folder, epochs, rate. Whoever trains first, the other one finds the checkpoint.
Here is the restorer's; the others stand with their models.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from rr import checkpoint, presets, studies
from rr import files as io
from rr.data import pairs
from rr.data.dataset import Packed
from rr.errors import choose
from rr.files import extractor_folder
from rr.models import bridge, features, restorer
from rr.models.features import Extractor
from rr.models.readability import Readability
from rr.models.restorer import Denoiser
from rr.models.vae import VAE
from rr.provenance import digest
from rr.train import conditions
from rr.workflow import notebook


def restorer_recipe(P, data, home, **words):
    """The restorer of a studies.Configuration, with c from its trained extractor; words: the configuration's.

    "random" features are a control that nobody trained. What notebook 10 compares across backbones has the same epochs for all.
    Raises InputError if the extractor is not trained yet.
    """
    chosen = studies.Configuration(**words)
    torch.manual_seed(P.seed)
    trained = io.extractor_folder(home, chosen.extractor, P.seed)
    if chosen.extractor == "off":
        eye, c = None, torch.zeros(P.attention, 1, 1)
    elif chosen.extractor == "random":
        eye = features.Extractor(width=P.attention, heads=P.heads)
        c = conditions.static_condition(eye, data, data.references("train"))
    else:
        eye, c = checkpoint.load(trained, features.Extractor), conditions.load_condition(trained)
    if chosen.condition not in ("mean", "image"):
        c = conditions.other(chosen.condition, c, eye, data, P.seed)

    torch.manual_seed(P.seed)
    if chosen.method == "diffusion":
        of = eye.arguments if chosen.condition == "image" else None
        model = restorer.Denoiser(
            P.size, chosen.backbone, chosen.fusion, chosen.objective, P.width, P.latent, P.T, P.schedule,
            chosen.start or P.start, c.shape, chosen.likelihood, of,
        )  # fmt: skip
        model.c.copy_(c)
        if of:
            model.extractor.load_state_dict(eye.state_dict())
    else:
        once = chosen.method == "one-step"
        model = bridge.Bridge(
            P.size, chosen.backbone, P.width, P.latent, one_step=once, sigma=0.0 if once else 0.02
        )
    rows, val_rows = (
        pairs.training_rows(data, split, chosen.protocol, chosen.region)
        for split in ("train", "val")
    )
    epochs = P.restorer_epochs if chosen.backbone == "vae" else P.unet_epochs
    if chosen.start or chosen.method != "diffusion":
        epochs = P.factorial_epochs
    return {
        "model": model, "prepare": pairs.PROTOCOLS[chosen.protocol], "rows": rows, "val_rows": val_rows, "folder": studies.folder(home, chosen, P.seed) / "denoiser",
        "epochs": epochs, "lr": P.lr, "seed": P.seed, "facts": {"preset": P.name, "condition": digest(c)},
    }  # fmt: skip


def readability_recipe(P, data, home, architecture="inception"):
    """What `train.run` needs to train a judge with preset P on `data`: the paper's classifier, or the second judge.

    The second judge starts from other weights, sees the images in another order, and has half of the epochs: it learns in fewer.
    """
    second, rows = architecture != "inception", data.labelled("train")
    seed = P.seed + second
    torch.manual_seed(seed)
    model = Readability(architecture)
    start = model.start_from(P.weights)
    model.weigh_classes(data.labels[rows])
    return {
        "model": model, "prepare": pairs.labelled, "rows": rows, "val_rows": data.labelled("val"),
        "folder": home / "checkpoints" / ("judge" if second else "readability"),
        "epochs": max(1, P.classifier_epochs // 2) if second else P.classifier_epochs,
        "lr": P.classifier_lr, "optimizer": "rmsprop", "seed": seed, "facts": {"preset": P.name, "weights": start},
    }  # fmt: skip


def extractor_recipe(P, data, home, extractor="resnet34"):
    """What `train.run` needs to train an extractor with preset P on `data`; a tenth of the other components' rate."""
    torch.manual_seed(P.seed)
    model = Extractor(extractor, P.attention, P.heads)
    start = model.start_from(P.weights)
    return {
        "model": model, "prepare": pairs.labelled, "rows": data.labelled("train"), "val_rows": data.labelled("val"),
        "folder": extractor_folder(home, extractor, P.seed), "epochs": P.extractor_epochs, "lr": P.lr / 10, "seed": P.seed,
        "facts": {"preset": P.name, "weights": start},
    }  # fmt: skip


def vae_recipe(P, data, home):
    """What `train.run` needs to train the VAE alone with preset P on the clean images of `data`."""
    torch.manual_seed(P.seed)
    return {
        "model": VAE(P.size, P.latent, P.width, timed=False), "prepare": pairs.clean,
        "rows": data.references("train"), "val_rows": data.references("val"),
        "folder": home / "checkpoints" / "vae", "epochs": P.vae_epochs, "lr": P.lr, "seed": P.seed, "facts": {"preset": P.name},
    }  # fmt: skip


def noise_recipe(P, data, home):
    """What `train.run` needs to train the noise model alone with preset P on the clean images of `data`: pairs (x, x), any t."""
    torch.manual_seed(P.seed)
    model = Denoiser(
        P.size,
        "unet",
        objective="noise",
        width=P.width,
        T=P.T,
        schedule=P.schedule,
        start=1.0,
    )
    return {
        "model": model, "prepare": pairs.literal, "rows": data.references("train"), "val_rows": data.references("val"),
        "folder": home / "checkpoints" / "diffusion", "epochs": P.diffusion_epochs, "lr": P.lr, "seed": P.seed,
        "facts": {"preset": P.name},
    }  # fmt: skip


class Component(NamedTuple):
    recipe: Callable
    notebook: str  # that explains it and knows its parameters
    words: tuple[
        str, ...
    ]  # those of them that are the recipe's; the others replace values of the preset


COMPONENTS = {
    "readability": Component(readability_recipe, "02_readability", ()),
    "judge": Component(partial(readability_recipe, architecture="resnet18"), "02_readability", ()),
    "extractor": Component(extractor_recipe, "03_features", ("extractor",)),
    "diffusion": Component(noise_recipe, "04_diffusion", ()),
    "vae": Component(vae_recipe, "05_vae", ()),
    "restorer": Component(restorer_recipe, "06_restoration", studies.Configuration._fields),
}


def parameters(component, given):
    """All parameters of a component's notebook, {name: value}, with the given ones in place; InputError as notebook.check."""
    return notebook.check(notebook.find(choose("component", component, COMPONENTS).notebook), given)


def plan(component, parameters, batch=None):
    """The arguments of `train.run` for a component, but the fabric; parameters: those of its notebook, see `parameters`.

    batch: images per step in place of the preset's. Raises InputError if the data set is not packed.
    """
    recipe, _, words = COMPONENTS[component]
    fields = [
        name
        for name in presets.Preset.__dataclass_fields__
        if name in parameters and name not in words
    ]
    P = presets.preset(
        parameters["preset"], batch=batch, **{name: parameters[name] or None for name in fields}
    )
    home = io.results(P.name, parameters["out"])
    data = Packed(parameters["data"] or home / "data", P.size)
    return {
        "data": data,
        "batch": P.batch,
        "ema": P.ema,
        **recipe(P, data, home, **{word: parameters[word] for word in words}),
    }

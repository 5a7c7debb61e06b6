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
from rr.data.dataset import Packed
from rr.errors import choose
from rr.models import bridge, features, readability, restorer, vae
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
        c = features.static_condition(eye, data, data.references("train"))
    else:
        eye, c = checkpoint.load(trained, features.Extractor), features.load_condition(trained)
    if chosen.condition not in ("mean", "image"):
        c = features.other(chosen.condition, c, eye, data, P.seed)

    torch.manual_seed(P.seed)
    if chosen.method == "diffusion":
        of = eye.arguments if chosen.condition == "image" else None
        model = restorer.Denoiser(
            P.size, chosen.backbone, chosen.fusion, chosen.objective, chosen.protocol, P.width, P.latent, P.T, P.schedule,
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
        restorer.training_rows(data, split, chosen.protocol, chosen.region)
        for split in ("train", "val")
    )
    epochs = P.restorer_epochs if chosen.backbone == "vae" else P.unet_epochs
    if chosen.start or chosen.method != "diffusion":
        epochs = P.factorial_epochs
    return {
        "model": model, "rows": rows, "val_rows": val_rows, "folder": studies.folder(home, chosen, P.seed) / "denoiser",
        "epochs": epochs, "lr": P.lr, "seed": P.seed, "facts": {"preset": P.name, "condition": io.digest(c)},
    }  # fmt: skip


class Component(NamedTuple):
    recipe: Callable
    notebook: str  # that explains it and knows its parameters
    words: tuple[
        str, ...
    ]  # those of them that are the recipe's; the others replace values of the preset


COMPONENTS = {
    "readability": Component(readability.recipe, "02_readability", ()),
    "judge": Component(partial(readability.recipe, architecture="resnet18"), "02_readability", ()),
    "extractor": Component(features.recipe, "03_features", ("extractor",)),
    "diffusion": Component(restorer.noise_recipe, "04_diffusion", ()),
    "vae": Component(vae.recipe, "05_vae", ()),
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

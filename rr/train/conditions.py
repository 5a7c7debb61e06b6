"""The static condition c (section 4) and its controls."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rr.errors import InputError, choose
from rr.files import writing


@torch.no_grad()
def static_condition(extractor, data, rows, batch=64):
    """c (width, h, w): the mean of the features over the images `rows` of `data`, on the extractor's device.

    Section 4: "pooling features extracted from all readable images". Pooled over images; the place is kept.
    """
    if len(rows) == 0:
        raise InputError(
            "no readable image to take the static condition from; the data need images with all four labels 1"
        )
    was_training = extractor.training
    extractor.eval()
    total = sum(
        extractor(data.batch(part, extractor.mean.device)).double().sum(0)
        for part in torch.as_tensor(rows).split(batch)
    )
    extractor.train(was_training)
    return (total / len(rows)).float()


def other(name, c, extractor, data, seed=0):
    """A static condition in place of c (width, h, w), of its shape, on its device; what could be told from c goes with it.

    "zeros"; "noise", independent values of the same mean and standard deviation; "unreadable", the mean of the features over
    the *unreadable* fundus images of the training split of `data`. Raises InputError for an unknown name.
    """
    return choose("condition", name, OTHERS)(c, extractor, data, seed).to(c)


def _noise(c, extractor, data, seed):
    return c.mean() + c.std() * torch.randn(
        c.shape, generator=torch.Generator().manual_seed(seed)
    ).to(c)


OTHERS = {
    "zeros": lambda c, extractor, data, seed: torch.zeros_like(c),
    "noise": _noise,
    "unreadable": lambda c, extractor, data, seed: static_condition(
        extractor, data, data.rows("train", readable=False)
    ),
}


def save_condition(folder, c):
    """Write c (width, h, w) beside the extractor in `folder`, atomically."""
    with writing(Path(folder) / "condition.safetensors") as part:
        save_file({"c": c.cpu().contiguous()}, part)


def load_condition(folder):
    """The static condition c (width, h, w) in `folder`. Raises InputError if there is none, or a damaged one."""
    path = Path(folder) / "condition.safetensors"
    try:
        return load_file(path)["c"]
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no static condition there; run 03_features with this extractor and seed first"
        ) from None
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: damaged ({error}); run 03_features with this extractor and seed again"
        ) from error

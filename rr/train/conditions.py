"""The static condition c (section 4) and its controls."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rr.errors import InputError, choose
from rr.files import writing

CONTROLS = ("zeros", "noise", "unreadable")


@torch.no_grad()
def static_condition(extractor, data, readable=True, limit=None, batch=64):
    """c (width, h, w): the mean of the features over the (first `limit`) readable training images.

    Section 4: "pooling features extracted from all readable images". The mean is over images, and
    each place of the map has its own. readable=False: over the unreadable fundus images.
    """
    rows = torch.as_tensor(data.rows("train", readable=readable)[:limit])
    if len(rows) == 0:
        raise InputError(
            f"{data.path}: no {'' if readable else 'un'}readable image for the static condition; "
            "use more images with labels"
        )
    was_training, device = extractor.training, next(extractor.parameters()).device
    extractor.eval()
    total = sum(extractor(data.batch(part, device)).double().sum(0) for part in rows.split(batch))
    extractor.train(was_training)
    return (total / len(rows)).float()


def control_condition(name, c, extractor, data, seed=0, limit=None):
    """A control in place of c (width, h, w), of the same shape and on the same device.

    "zeros"; "noise" with the mean and the standard deviation of c; "unreadable", the mean of the
    features over the unreadable training images.
    """
    choose("condition", name, CONTROLS)
    if name == "zeros":
        return torch.zeros_like(c)
    if name == "noise":
        noise = torch.randn(c.shape, generator=torch.Generator().manual_seed(seed))
        return c.mean() + c.std() * noise.to(c)
    return static_condition(extractor, data, readable=False, limit=limit).to(c)


def save_condition(folder, c):
    """Write c (width, h, w) beside the extractor in `folder`, atomically."""
    with writing(Path(folder) / "condition.safetensors") as part:
        save_file({"c": c.cpu().contiguous()}, part)


def load_condition(folder):
    """The static condition c (width, h, w) in `folder`."""
    path = Path(folder) / "condition.safetensors"
    again = "run 03_features with this extractor and seed"
    try:
        return load_file(path)["c"]
    except FileNotFoundError:
        raise InputError(f"{folder}: no static condition there; {again} first") from None
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error}); {again} again") from error

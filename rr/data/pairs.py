"""Training pairs: what a component receives from a batch of images.

Each function (batch, generator, training=True) returns the first arguments of a component's `loss`.
A batch has images x (N, 3, H, W) in [0, 1], labels (N, 4) and fields of view fov (N, 1, H, W).

The restorers have two protocols, which are never mixed. "paired" degrades a readable image with a
known operator A, and the target is that image. "literal" takes an unreadable image as its own
target, as the paper's text does, because no clean reference exists.
"""

import pandas as pd
import torch

from rr.data import degrade
from rr.errors import InputError, choose
from rr.paper import LABELS


def augment(x, generator, brightness=0.1, contrast=0.1):
    """Random horizontal flip, brightness and contrast (2.2, which does not state their ranges).

    brightness: at most +-10 % of the range is added. contrast: a factor of 0.9 to 1.1 about the
    mean of the image. Each image has its own values. The result is clipped to [0, 1].
    """
    flip, b, c = torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x, non_blocking=True)
    x = torch.where(flip < 0.5, x.flip(-1), x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast * (2 * c - 1)) + mean + brightness * (2 * b - 1)).clamp(0, 1)


def labelled(batch, generator, training=True):
    """(x, labels): the images, augmented in training (2.2), and their four readability labels."""
    return augment(batch.x, generator) if training else batch.x, batch.labels


def mirrored(batch, generator, training):
    """(x, fov) of a batch; in training, half of the eyes are mirrored, so a right eye becomes a
    left one."""
    if not training:
        return batch.x, batch.fov
    flip = torch.rand(len(batch.x), 1, 1, 1, generator=generator) < 0.5
    flip = flip.to(batch.x.device, non_blocking=True)
    return (torch.where(flip, values.flip(-1), values) for values in (batch.x, batch.fov))


def clean(batch, generator, training=True):
    """(x,): the images, for a component that reconstructs its own input."""
    x, _ = mirrored(batch, generator, training)
    return (x,)


def literal(batch, generator, training=True):
    """(x, x): the image inside the field of view is its own target."""
    x, fov = mirrored(batch, generator, training)
    x = x * fov
    return x, x


def paired(batch, generator, training=True):
    """(A(x), x) inside the field of view, with new families and a new severity (0 to 1) of A."""
    x, fov = mirrored(batch, generator, training)
    x = x * fov
    families = (torch.rand(len(x), len(degrade.FAMILIES), generator=generator) < 0.7).float()
    parameters = degrade.sample(len(x), generator, families=families)
    parameters = {name: value.to(x.device, non_blocking=True) for name, value in parameters.items()}
    return degrade.apply(x, parameters, fov), x


PROTOCOLS = {"paired": paired, "literal": literal}
REGIONS = LABELS[1:]  # macula, disc, retina: the regions of a fundus image that may be unreadable


def training_rows(data, split, protocol, region="disc"):
    """The rows of a packed data set on which a protocol trains.

    paired: clean images. literal: fundus images with an unreadable `region`, the paper's: disc.
    Raises InputError for an unknown protocol or region.
    """
    choose("protocol", protocol, PROTOCOLS)
    choose("region", region, REGIONS)
    if protocol == "paired":
        return data.clean_rows(split)
    return data.rows(split, fundus=1, **{region: 0})


def test_pairs(data, protocol, region="disc", limit=None, split="test"):
    """The (first `limit`) test images of a protocol: (rows, y, x, a table of the parameters of A).

    paired: clean images under all three families with severity 0.5 to 1; `degrade.from_table` reads
    the parameters back. literal: y = x, and the table has names only. The pairs are the same in
    every run and for every seed, so that results can be compared image by image.
    Raises InputError if there are no test images.
    """
    rows = training_rows(data, split, protocol, region)[:limit]
    if len(rows) == 0:
        raise InputError(
            f"{data.path}: no {split} image for the {protocol} protocol; use more images"
        )
    fov, table = data.fov(rows), pd.DataFrame({"name": data.table["name"].to_numpy()[rows]})
    x = data.batch(rows) * fov
    if protocol == "literal":
        return rows, x, x, table
    generator = torch.Generator().manual_seed(0)
    severity = 0.5 + 0.5 * torch.rand(len(rows), generator=generator)
    parameters = degrade.sample(len(rows), generator, severity=severity)
    table = table.join(degrade.to_table(parameters))
    return rows, degrade.apply(x, parameters, fov), x, table

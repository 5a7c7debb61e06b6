"""Training pairs: what a component sees of a batch, and what it shall answer."""

import pandas as pd
import torch
import torch.nn.functional as F

from rr.data import degrade
from rr.errors import InputError, choose
from rr.models.diffusion import noise
from rr.paper import LABELS


def augment(x, generator, brightness=0.1, contrast=0.1):
    """Random horizontal flip, brightness and contrast (2.2; their ranges are not stated), each image its own.

    brightness: added, up to +-10 % of the range; contrast: factor 0.9 to 1.1 about the image mean. Values stay in [0, 1].
    """
    flip, b, c = torch.rand(3, len(x), 1, 1, 1, generator=generator).to(x, non_blocking=True)
    x = torch.where(flip < 0.5, x.flip(-1), x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + contrast * (2 * c - 1)) + mean + brightness * (2 * b - 1)).clamp(0, 1)


def clean(batch, generator, training=True):
    """(x,): the images as they are, for a component that is trained on its own input."""
    return (batch.x,)


def labelled(batch, generator, training=True):
    """(x, labels): the images, augmented in training (2.2), and their four readability labels."""
    return augment(batch.x, generator) if training else batch.x, batch.labels


def literal(batch, generator, training=True):
    """(x, x): the paper read literally."""
    return batch.x, batch.x


def paired(batch, generator, training=True):
    """(A(x), x): the images degraded, and as they are. A is drawn anew for every image: families and severity from 0 (identity) to 1."""
    x = batch.x * batch.fov
    families = (torch.rand(len(batch.x), len(degrade.FAMILIES), generator=generator) < 0.7).float()
    parameters = degrade.sample(len(batch.x), generator, families=families)
    parameters = {
        name: value.to(batch.x.device, non_blocking=True) for name, value in parameters.items()
    }
    return degrade.apply(x, parameters, batch.fov), x


PROTOCOLS = {"paired": paired, "literal": literal}


REGIONS = LABELS[1:]  # macula, disc, retina: what may be unreadable in a fundus image


def training_rows(data, split, protocol, region="disc"):
    """The images a protocol trains on: references (paired), or fundus images with an unreadable `region` (literal).

    region: "disc", as in the paper, or another label. Raises InputError for an unknown one.
    """
    choose("protocol", protocol, PROTOCOLS)
    choose("region", region, REGIONS)
    return (
        data.references(split)
        if protocol == "paired"
        else data.rows(split, fundus=1, **{region: 0})
    )


def test_pairs(data, protocol, region="disc"):
    """The test images of a protocol, the same in every run: (rows, y, x, parameters of A as a table; literal: an empty one).

    paired: reference images of the test split under all three families at severity .5 to 1, from which A can be replayed
    (`degrade.from_table`). literal: fundus images with an unreadable `region`, x = y. Raises InputError if there are none.
    """
    rows = training_rows(data, "test", protocol, region)
    if len(rows) == 0:
        raise InputError(f"{data.path}: no test image for the {protocol} protocol; use more images")
    x = data.batch(rows) * data.fov(rows)
    if protocol == "literal":
        return rows, x, x, pd.DataFrame({"name": data.table["name"][rows]})
    generator = torch.Generator().manual_seed(
        0
    )  # whatever the seed of a run: scores are compared image by image
    severity = 0.5 + 0.5 * torch.rand(len(rows), generator=generator)
    parameters = degrade.sample(len(rows), generator, severity=severity)
    table = degrade.to_table(parameters)
    table.insert(0, "name", data.table["name"].to_numpy()[rows])
    return rows, degrade.apply(x, parameters, data.fov(rows)), x, table


def randomised(batch, generator, wide=False):
    """A training pair from clean images: (y, x, fov, sigma of the blur in y (N,)); another framing, camera and pigment, then a
    degradation, or none.

    What changes x before it is degraded is what cannot be known from one image, the camera's brightness, tint and sharpness:
    x keeps it, so that the network does not learn to undo it. wide: up to 2.2 times as far, and with shading of its own.
    """

    def u(*shape, low=0.0, high=1.0):
        return (low + (high - low) * torch.rand(len(batch.x), *shape, generator=generator)).to(
            batch.x.device
        )

    def n(*shape):
        return torch.randn(len(batch.x), *shape, generator=generator).to(batch.x.device)

    def smooth(side):
        return F.interpolate(
            0.4 * n(3, 3, 3) + n(1, 3, 3), side, mode="bilinear", align_corners=True
        )

    x, fov = _framed(batch.x, batch.fov, u, n)
    k = u(1, 1, 1, low=0.3, high=2.2) if wide else 1.0
    x = (
        x.clamp_min(1e-4) ** (0.12 * k * n(1, 1, 1)).exp()
        * (0.1 * k * n(1, 1, 1) + 0.06 * k * n(3, 1, 1)).exp()
    )
    if wide:
        x = x * (0.06 * k * smooth(x.shape[-2:])).exp()
    grey = x.mean(1, keepdim=True)
    x = (grey + (1 + 0.15 * k * n(1, 1, 1)) * (x - grey)).clamp(0, 1)
    x = degrade.blur(x, torch.where(u() < 0.3, u(high=1 / 256), 0)) * fov

    families = (u(3) < 0.6).float() * (u(1) > 0.12)
    params = degrade.sample(len(x), generator, families.cpu(), severity=u().cpu().sqrt())
    params = {name: value.to(x.device) for name, value in params.items()}
    mild = u() < 0.5
    params["blur_sigma"] = torch.where(
        mild, degrade.mild_blur(params, generator)["blur_sigma"], params["blur_sigma"]
    )
    y = degrade.apply(x, params, fov)
    # uneven light of other shapes than the family's rings and discs, for one image in seven, and noise
    light = (0.25 * u(1, 1, 1) * (u(1, 1, 1) < 0.15) * smooth(x.shape[-2:])).exp()
    y = (
        y * light + torch.where(u(1, 1, 1) < 0.3, u(1, 1, 1, high=0.012), 0) * noise(x, generator)
    ).clamp(0, 1) * fov
    return (y * 255).round() / 255, x, fov, degrade.blur_width(params)


def _framed(x, fov, u, n):
    """Mirrored, turned by quarters; every second one also turned, enlarged and shifted a little, some cut far inside the rim."""
    layers = torch.cat([x, fov.to(x)], 1)
    layers = torch.where(u(1, 1, 1) < 0.5, layers, layers.transpose(-1, -2))
    layers = torch.where(u(1, 1, 1) < 0.5, layers, layers.flip(-1))
    layers = torch.where(u(1, 1, 1) < 0.5, layers, layers.flip(-2))
    angle, scale, shift = 0.2 * n(), (0.05 * n()).exp(), 0.03 * n(2)
    inside = u() < 0.25
    scale = torch.where(inside, u(low=0.5, high=0.85), scale)
    shift = torch.where(inside[:, None], 0.3 * (2 * u(2) - 1), shift)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    warped = F.grid_sample(
        layers, F.affine_grid(matrix, layers.shape, align_corners=False), align_corners=False
    )
    layers = torch.where(u(1, 1, 1) < 0.5, layers, warped)
    fov = layers[:, 3:] > 0.999
    return layers[:, :3] * fov, fov

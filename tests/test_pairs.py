"""Training pairs of the two protocols and of the corrector."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rr.data import degrade, pairs
from rr.data.corrector_pairs import augment_and_degrade, half_size
from rr.data.dataset import Batch
from rr.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=4, size=32):
    """Random images, with a field of view that leaves out the first five columns."""
    fov = torch.ones(n, 1, size, size).bool()
    fov[..., :5] = False
    return Batch(torch.rand(n, 3, size, size, generator=generator()), torch.ones(n, 4), fov)


def test_literal_takes_the_image_as_its_own_target_and_paired_degrades_it():
    b = batch()
    y, x = pairs.literal(b, generator(), False)
    assert y is x and torch.equal(x, b.x * b.fov)
    y, x = pairs.paired(b, generator(), False)
    assert torch.equal(x, b.x * b.fov) and not torch.equal(y, x)
    assert 0 <= y.min() and y.max() <= 1
    assert torch.equal(y, pairs.paired(b, generator(), False)[0])
    assert not torch.equal(y, pairs.paired(b, generator(1), False)[0])


@pytest.mark.parametrize("prepare", [pairs.clean, pairs.literal, pairs.paired])
def test_half_of_the_eyes_are_mirrored_in_training(prepare):
    """Fails if nothing is mirrored, if all is, if an image is mirrored without its field of view,
    or if something is mirrored in validation."""
    b = batch(200, 8)
    b = b._replace(x=b.x * b.fov)
    *_, x = prepare(b, generator(), True)
    same, flipped = ((x == image).flatten(1).all(1) for image in (b.x, b.x.flip(-1)))
    assert (same ^ flipped).all() and 70 < flipped.sum() < 130
    assert torch.equal(prepare(b, generator(), False)[-1], b.x)


@pytest.mark.parametrize("protocol", pairs.PROTOCOLS)
def test_both_protocols_mask_the_field_of_view_in_training_and_in_the_test(protocol):
    """A caption outside the field of view must not be learned (D11)."""
    b, rows = batch(), np.arange(4)
    data = SimpleNamespace(
        path="data", table=pd.DataFrame({"name": list("abcd")}),
        clean_rows=lambda split: rows, rows=lambda split, **labels: rows,
        batch=lambda rows: b.x[rows], fov=lambda rows: b.fov[rows],
    )  # fmt: skip
    validation = pairs.PROTOCOLS[protocol](b, generator(), False)
    for y, x in (validation, pairs.test_pairs(data, protocol)[1:3]):
        assert torch.equal(x, b.x * b.fov) and (y[..., :5] == 0).all()
    for image in pairs.PROTOCOLS[protocol](b, generator(), True):
        left, right = (image[..., at] == 0 for at in (slice(5), slice(-5, None)))
        assert (left.flatten(1).all(1) ^ right.flatten(1).all(1)).all()


def test_test_pairs_can_be_replayed_from_their_table():
    b, rows = batch(), np.array([2, 0])
    data = SimpleNamespace(
        path="data", table=pd.DataFrame({"name": list("abcd")}), clean_rows=lambda split: rows,
        batch=lambda rows: b.x[rows], fov=lambda rows: b.fov[rows],
    )  # fmt: skip
    found_rows, y, x, table = pairs.test_pairs(data, "paired")
    assert list(found_rows) == [2, 0] and list(table["name"]) == ["c", "a"]
    assert table["severity"].between(0.5, 1).all()
    assert torch.equal(degrade.apply(x, degrade.from_table(table), b.fov[rows]), y)
    data.clean_rows = lambda split: rows[:0]
    with pytest.raises(InputError, match="no test image"):
        pairs.test_pairs(data, "paired")


def test_the_region_selects_the_training_images_of_the_literal_protocol():
    data = SimpleNamespace(rows=lambda split, **labels: labels, clean_rows=lambda split: "clean")
    assert pairs.training_rows(data, "train", "literal") == {"fundus": 1, "disc": 0}
    assert pairs.training_rows(data, "train", "literal", "macula") == {"fundus": 1, "macula": 0}
    assert pairs.training_rows(data, "train", "paired", "retina") == "clean"
    with pytest.raises(InputError, match="macula, disc, retina"):
        pairs.training_rows(data, "train", "literal", "fovea")
    with pytest.raises(InputError, match="protocol 'both'"):
        pairs.training_rows(data, "train", "both")


@pytest.mark.parametrize("wide", [False, True])
def test_the_pairs_of_the_corrector_are_seeded_and_some_are_not_degraded(wide):
    b = batch(64, 64)
    b = b._replace(x=0.3 + 0.2 * b.x.mean((2, 3), keepdim=True).expand_as(b.x))  # flat images
    y, x, fov, sigma = augment_and_degrade(b, generator(3), wide)
    again = augment_and_degrade(b, generator(3), wide)
    assert all(torch.equal(a, b) for a, b in zip((y, x, fov, sigma), again))
    assert not torch.equal(y, augment_and_degrade(b, generator(4), wide)[0])
    for image in (y, x):
        assert image.min() >= 0 and image.max() <= 1 and (image * ~fov).max() == 0
    assert sigma.min() == 0 and 4 / 512 < sigma.max() <= 15 / 512
    error = ((y - x) ** 2).mean((1, 2, 3)).sqrt()
    assert 0.05 < (error < 0.006).float().mean() < 0.5 and (error > 0.05).float().mean() > 0.3
    assert torch.allclose(y * 255, (y * 255).round(), atol=1e-3)  # stored with 8 bits


def test_half_size_makes_the_pair_at_half_the_size_with_a_strict_field_of_view():
    b = batch(8, 64)
    y, x, fov = half_size(b, generator())
    assert y.shape == x.shape == (8, 3, 32, 32) and fov.shape == (8, 1, 32, 32)
    small = b._replace(
        x=torch.nn.functional.avg_pool2d(b.x, 2), fov=b.fov[..., ::2, ::2] & b.fov[..., 1::2, 1::2]
    )
    assert torch.equal(x, augment_and_degrade(small, generator())[1])

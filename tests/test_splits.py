"""rr.data.splits: near-duplicates against brute force, shares of the splits."""

import io

import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image

from rr.data import photo, sources, splits


def test_near_duplicates_equal_brute_force():
    rng = np.random.default_rng(0)
    bits = np.unpackbits(rng.integers(0, 256, (400, 32), dtype=np.uint8), axis=1)
    for i in range(100):  # copies with 0 to 20 flipped bits
        bits[300 + i] = bits[200 + i]
        bits[300 + i, rng.choice(256, i % 21, replace=False)] ^= 1
    groups = splits.near_duplicates(np.packbits(bits, axis=1))
    distance = (bits[:, None] != bits[None]).sum(-1)
    assert np.array_equal(groups[:, None] == groups[None], distance <= splits.NEAR_BITS)
    assert len(np.unique(groups)) == 400 - sum(i % 21 <= splits.NEAR_BITS for i in range(100))


def test_chains_of_near_duplicates_are_one_group(monkeypatch):
    monkeypatch.setattr(splits, "MAX_PAIRS", 10)  # merged in many turns
    bits = np.tril(np.ones((256, 256), np.uint8))  # neighbours differ in one bit
    hashes = np.packbits(bits[np.random.default_rng(0).permutation(256)], axis=1)
    assert len(np.unique(splits.near_duplicates(hashes))) == 1


def test_many_black_images_are_one_group():
    rng = np.random.default_rng(0)
    bits = np.zeros((3000, 256), np.uint8)
    for row in bits[:2900]:  # a few random bits: every pair differs in at most 8
        row[rng.choice(256, 4, replace=False)] = 1
    bits[2900:] = rng.integers(0, 2, (100, 256))
    hashes = np.packbits(bits, axis=1)
    group = splits.near_duplicates(hashes)
    assert len(np.unique(group[:2900])) == 1 and len(np.unique(group)) == 101


def test_hash_survives_a_second_compression_and_separates_eyes():
    image = skimage.data.retina()
    buffer = io.BytesIO()
    Image.fromarray(image).resize((900, 900)).save(buffer, "jpeg", quality=70)
    again = photo.crop_fov(photo.read_photograph(buffer), 224)[0]
    first = splits.dhash(photo.crop_fov(image, 224)[0])
    assert np.bitwise_count(first ^ splits.dhash(again)).sum() <= splits.NEAR_BITS
    eyes = np.array([splits.dhash(sources.embedded(9).image(i, 96)[0]) for i in range(9)])
    distance = np.bitwise_count(eyes[:, None] ^ eyes[None]).sum(-1)[np.triu_indices(9, 1)]
    assert distance.min() > 2 * splits.NEAR_BITS


def test_rounding_does_not_change_the_groups_of_drawn_eyes(eyes80):
    """Pixels of drawn eyes may differ by rounding between CPUs; the split must not."""
    pixels = eyes80.pixels(range(len(eyes80))).permute(0, 2, 3, 1).numpy()
    rng = np.random.default_rng(0)
    noise = rng.integers(-1, 2, pixels.shape) * (rng.random(pixels.shape) < 0.05)
    rounded = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    assert (rounded != pixels).any()
    before, after = (
        splits.near_duplicates(np.stack([splits.dhash(image) for image in images]))
        for images in (pixels, rounded)
    )
    assert np.array_equal(before[:, None] == before, after[:, None] == after)


def test_split_is_stratified_and_keeps_groups():
    rng = np.random.default_rng(0)
    labels = (rng.random((5000, 4)) < (0.94, 0.7, 0.8, 0.9)).astype(float)
    groups = np.concatenate([np.arange(4800), rng.integers(0, 4800, 200)])
    names = splits.split(labels, groups, seed=3)
    assert np.array_equal(names, splits.split(labels, groups, seed=3))
    assert (names != splits.split(labels, groups, seed=4)).mean() > 0.3
    assert pd.Series(names).groupby(groups).nunique().max() == 1
    patterns = pd.Series([str(row) for row in labels])
    for pattern, count in patterns.value_counts().items():
        for name, share in splits.SPLITS.items():
            own_share = (names[patterns == pattern] == name).mean()
            assert abs(own_share - share) < max(0.02, 3 / count), (pattern, count, name)
    for name, share in splits.SPLITS.items():
        assert abs((names == name).mean() - share) < 0.005


@pytest.mark.parametrize(
    "n, counts", [(1, (1, 0, 0)), (3, (2, 0, 1)), (5, (3, 1, 1)), (25, (16, 4, 5))]
)
def test_split_of_few(n, counts):
    names = splits.split(np.full((n, 4), np.nan), np.arange(n))
    assert tuple((names == name).sum() for name in splits.SPLITS) == counts

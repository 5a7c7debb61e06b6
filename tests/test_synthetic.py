"""rr.data.synthetic: deterministic, anatomically right, the same eye at every size."""

import numpy as np
import pytest
from PIL import Image

from rr.data.synthetic import fundus, not_fundus

SEED, N, SIZE = 3, 40, 224


@pytest.fixture(scope="module")
def eyes():
    return [fundus(SEED, i, SIZE) for i in range(N)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_depends_on_seed_and_index_alone(eyes):
    np.random.seed(0)  # the global state must not matter, nor the order of the calls
    for i in (17, 2, 30):
        assert same(fundus(SEED, i, SIZE), eyes[i])
        assert np.array_equal(not_fundus(SEED, i), not_fundus(SEED, i))
    assert not same(fundus(SEED + 1, 2, SIZE), eyes[2])


def test_indices_differ(eyes):
    assert len({e.image.tobytes() for e in eyes}) == N
    assert len({not_fundus(SEED, i).tobytes() for i in range(N)}) == N


def test_shapes_and_types(eyes):
    e = eyes[0]
    assert (
        e.image.shape == (SIZE, SIZE, 3) and e.image.dtype == np.uint8 and e.image.flags.writeable
    )
    for mask in (e.fov, e.disc, e.cup, e.vessels):
        assert mask.shape == (SIZE, SIZE) and mask.dtype == bool


def test_masks_nest_and_outside_is_black(eyes):
    for e in eyes:
        x, y = (int(v) for v in e.fovea)
        assert e.cup.any() and not (e.cup & ~e.disc).any()
        assert not (e.disc & ~e.fov).any() and not (e.vessels & ~e.fov).any()
        assert e.fov[y, x] and not e.vessels[y, x] and not e.disc[y, x]
        assert not e.image[~e.fov].any()
        assert e.image[e.fov].mean() > 30


def test_field_of_view_is_a_centred_circle_sometimes_cut_flat(eyes):
    flat = 0
    for e in eyes:
        rows, columns = np.flatnonzero(e.fov.any(1)), np.flatnonzero(e.fov.any(0))
        assert 0.96 * SIZE <= len(columns) <= SIZE
        assert abs(columns.mean() + 0.5 - SIZE / 2) <= 0.02 * SIZE
        flat += len(rows) < 0.9 * len(columns)
    assert 0.1 * N <= flat <= 0.5 * N


def test_disc_circle_agrees_with_the_mask(eyes):
    for e in eyes:
        x, y, r = e.disc_circle
        rows, columns = np.nonzero(e.disc)
        assert np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) < 0.5
        assert np.sqrt(e.disc.sum() / np.pi) == pytest.approx(r, rel=0.02)


def test_fovea_lies_temporal_of_the_disc_and_slightly_below(eyes):
    dip = []
    for e in eyes:
        (fx, fy), (dx, dy, r) = e.fovea, e.disc_circle
        assert 2.2 <= np.hypot(fx - dx, fy - dy) / (2 * r) <= 2.8
        assert (dx > fx) == (
            e.side == "right"
        )  # seen from the front, the nose is right of a right eye's macula
        dip.append((fy - dy) / (2 * r))
    assert 0.15 < np.mean(dip) < 0.45 and min(dip) > -0.05
    assert {e.side for e in eyes} == {"right", "left"}


def test_colours_are_those_of_a_fundus(eyes):
    for e in eyes:
        red, green, blue = e.image[e.fov].mean(0)
        assert red > 1.5 * green > 1.5 * blue
    disc = np.array([np.median(e.image[e.disc & ~e.vessels, 1]) for e in eyes])
    assert (disc > [1.3 * np.median(e.image[e.fov, 1]) for e in eyes]).mean() > 0.9


def test_macula_is_darker_than_its_surroundings(eyes):
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    darker = []
    for e in eyes:
        d = np.hypot(x - e.fovea[0], y - e.fovea[1]) / (2 * e.disc_circle[2])  # in disc diameters
        ring = (d > 1.2) & (d < 1.6) & ~e.vessels & e.fov
        darker.append(np.median(e.image[d < 0.3, 1]) / np.median(e.image[ring, 1]))
    assert np.median(darker) < 0.85


def test_vessels_are_darker_than_the_tissue_beside_them(eyes):
    ratio = []
    for e in eyes:
        beside = np.zeros_like(e.vessels)
        for shift in (-4, 4):
            beside |= np.roll(e.vessels, shift, 0) | np.roll(e.vessels, shift, 1)
        beside &= e.fov & ~e.vessels & ~e.disc
        ratio.append(np.median(e.image[e.vessels & ~e.disc, 1]) / np.median(e.image[beside, 1]))
    assert 0.5 < np.median(ratio) < 0.85 and max(ratio) < 0.97


def test_vessel_density(eyes):
    density = [e.vessels.sum() / e.fov.sum() for e in eyes]
    assert 0.05 < min(density) and max(density) < 0.16 and 0.07 < np.median(density) < 0.13


@pytest.mark.parametrize(
    ("size", "agreement"), [(64, 0.4), (512, 0.5)]
)  # thin vessels fill half a pixel only when large
def test_another_size_shows_the_same_eye(size, agreement, eyes):
    small = min(size, SIZE)

    def fit(mask):
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(image.resize((small, small), Image.Resampling.BOX)) >= 128

    for i in range(3):
        a, b = eyes[i], fundus(SEED, i, size)
        assert iou(fit(a.fov), fit(b.fov)) > 0.98
        assert iou(fit(a.disc), fit(b.disc)) > 0.90
        assert (
            iou(fit(a.vessels), fit(b.vessels))
            > agreement
            > 0.2
            > iou(fit(eyes[i + 3].vessels), fit(b.vessels))
        )
        np.testing.assert_allclose(np.divide(b.fovea, size), np.divide(a.fovea, SIZE), rtol=1e-9)
        colours = [
            np.asarray(Image.fromarray(e.image).resize((32, 32), Image.Resampling.BOX), float)
            for e in (a, b)
        ]
        assert abs(colours[0] - colours[1]).mean() < 4  # of 255


def test_not_fundus_is_no_eye(eyes):
    others = [not_fundus(SEED, i) for i in range(N)]
    assert all(o.shape == (SIZE, SIZE, 3) and o.dtype == np.uint8 for o in others)
    looks = 0
    for o in others:  # a red disc on black corners would be a fundus
        corners = o[:8, :8].mean() < 5
        red, green, blue = o[60:-60, 60:-60].reshape(-1, 3).mean(0)
        looks += corners and red > 1.5 * green > 1.5 * blue > 0
    assert looks <= 2
    assert not any(np.array_equal(o, e.image) for o, e in zip(others, eyes, strict=True))

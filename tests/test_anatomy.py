"""rr.data.anatomy: Murray's law where vessels branch, a free fovea, plausible positions."""

import numpy as np
import pytest

from rr.data.anatomy import CAPILLARY, POINTS, anatomy, branch, murray, trunks, vessel_tree


def test_murrays_law():
    r0, ratio = np.meshgrid(np.linspace(0.001, 0.01, 7), np.linspace(0.1, 1, 9))
    r1, r2 = murray(r0, ratio)
    np.testing.assert_allclose(r1**3 + r2**3, r0**3, rtol=1e-12)
    np.testing.assert_allclose(r2 / r1, ratio, rtol=1e-12)


def test_murrays_law_holds_where_vessels_branch():
    rng = np.random.default_rng(0)
    path, radius, artery = trunks(rng)
    along, branches, r2, kind = branch(rng, path, radius, artery, 1, 1.0)
    matched = 0
    for line, r, is_artery in zip(branches, r2, kind, strict=True):
        parent, at = np.argwhere(path == line[0])[0]  # a branch starts on its parent
        r0, r1 = along[parent, at], along[parent, at + 1]
        assert r1**3 + r**3 == pytest.approx(r0**3, rel=1e-12)
        assert is_artery == artery[parent]
        matched += 1
    assert matched == len(branches) >= 5


def test_vessel_tree_is_one_of_a_retina():
    for seed in range(5):
        path, radius, artery = vessel_tree(np.random.default_rng(seed))
        assert path.shape == radius.shape == (len(artery), POINTS)
        assert (abs(path) > 0.17).all()  # F: the foveal avascular zone is free
        assert (np.diff(radius, axis=1) <= 1e-12).all()  # vessels only become thinner
        assert radius[:, 0].min() >= CAPILLARY
        trunk, is_artery = radius[:16, 0], artery[:16]
        assert 0.6 < trunk[is_artery].mean() / trunk[~is_artery].mean() < 0.8  # about 2 to 3


def test_positions_and_sizes_are_those_of_an_eye():
    eyes = [anatomy(np.random.default_rng(seed)) for seed in range(300)]
    diameter = np.array([eye.disc[1] + eye.disc[2] for eye in eyes])
    to_fovea = np.array([eye.fovea - eye.disc[0] for eye in eyes])
    assert ((abs(to_fovea) / diameter > 2.1) & (abs(to_fovea) / diameter < 2.9)).all()
    assert (to_fovea.imag > 0).all()  # below the disc: y points down
    temporal = np.array([-1 if eye.side == "right" else 1 for eye in eyes])
    assert (to_fovea.real * temporal > 0).all() and 0.4 < (temporal > 0).mean() < 0.6

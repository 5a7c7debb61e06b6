"""The anatomy of an eye as geometry: where disc, cup and fovea lie, and the tree of vessels.

Defines `anatomy` and `vessel_tree`, which rr.data.synthetic paints. A point or a vector of the
plane is one complex number x + iy, so that sums and lengths (abs) are those of vectors. `rotated`
and `perpendicular` are products with complex numbers.

Vessels are laid out in the retinal frame: its origin is the fovea, its real axis points temporally
(away from the nose), its imaginary axis upwards, and its unit is F, the distance from disc to
fovea. Lengths in "widths" are fractions of the image width: an eye looks alike at every size.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import comb

POINTS = 23  # per vessel
ALONG = np.linspace(0, 1, POINTS)  # position along a vessel, from start to end
DEGREE = np.arange(4)[:, None]
BERNSTEIN = comb(3, DEGREE) * ALONG**DEGREE * (1 - ALONG) ** (3 - DEGREE)
HALF_WAVES = np.arange(2, 11)[:, None]  # along a vessel
WAVES = np.sin(np.pi * HALF_WAVES * ALONG) / HALF_WAVES**0.8
DISC = -1.0  # disc centre in the retinal frame
FAZ = 0.18  # F; radius of the foveal avascular zone, which holds no vessel
VEIN, ARTERY = 0.0066, 0.0046  # widths; radius of a trunk at the disc (arteries to veins: 2 to 3)
CAPILLARY = 0.0008  # widths; thinner branches are not drawn
RAPHE = 0.05  # F; a branch ends at this distance from the horizontal line through the fovea

# The four kinds of trunks: points from the disc centre (start, two control points, end), their
# spread, and the radius relative to the first kind.
TRUNKS = np.array([
    [-0.04, -0.04, -0.04, -0.04],
    [0.08 + 0.48j, 0.02 + 0.45j, -0.08 + 0.36j, 0.20 + 0.10j],
    [0.85 + 1.25j, 0.35 + 1.00j, -0.35 + 0.70j, 0.45 + 0.30j],
    [3.10 + 0.45j, 1.20 + 2.10j, -0.90 + 1.50j, 0.78 + 0.10j],
])  # fmt: skip
SPREAD = np.array([[0.012] * 4, [0.06] * 4, [0.10] * 4, [0.30, 0.28, 0.28, 0.06]])
SIZE = np.array([1.0, 0.62, 0.68, 0.36])


class Anatomy(NamedTuple):
    """Positions and lengths in widths, in the image: x to the right, y downwards."""

    side: str  # "right" | "left"
    fovea: complex
    t: complex  # the axes of the retinal frame: temporal, of length F ...
    s: complex  # ... and superior
    disc: tuple  # centre, horizontal radius, vertical radius
    cup: tuple  # centre, horizontal radius, vertical radius
    view: tuple  # field of view: centre, radius, half height at which it is cut off


def rotated(vector, angle):
    return vector * np.exp(1j * angle)


def perpendicular(vector):
    return 1j * vector


def jitter(rng, sd, n):
    """n random vectors with independent normal coordinates."""
    x, y = rng.standard_normal((2, n))
    return sd * (x + 1j * y)


def anatomy(rng):
    """Draw the positions and sizes of one eye.

    The fovea lies 2.3 to 2.7 disc diameters temporal of the disc and slightly below it.
    """
    side = ("right", "left")[rng.integers(2)]
    nasal = 1 if side == "right" else -1  # a right eye has its disc on the right of the photograph
    diameter = rng.uniform(0.100, 0.140)
    F = diameter * np.clip(rng.normal(2.5, 0.08), 2.3, 2.7)
    dip = np.deg2rad(np.clip(rng.normal(7, 3), 1, 14))
    t = F * complex(-nasal * np.cos(dip), np.sin(dip))
    s = F * complex(-nasal * np.sin(dip), -np.cos(dip))
    off_centre = complex(*rng.normal(0, (0.022, 0.018)).clip(-0.045, 0.045))
    fovea = complex(0.5 - nasal * 0.45 * (F - 0.27), 0.5) + off_centre

    rx, ry = diameter / 2 * rng.uniform([0.90, 1.0], [0.98, 1.06])
    cup_to_disc = np.clip(rng.gamma(8, 0.055), 0.2, 0.78)
    shift = (1 - cup_to_disc) * complex(-0.25 * nasal * rx, rng.normal(0, 0.1) * ry)
    cup_rx, cup_ry = cup_to_disc * rng.uniform(0.95, 1.05, 2) * (rx, ry)
    disc = (fovea - t, rx, ry)
    cup = (fovea - t + shift, cup_rx, cup_ry)

    half_height = rng.uniform(0.35, 0.43) if rng.random() < 0.3 else 1.0
    view = (complex(*rng.uniform(0.495, 0.505, 2)), rng.uniform(0.485, 0.495), half_height)
    return Anatomy(side, fovea, t, s, disc, cup, view)


# ------------------------------------------------------------------------------------ vessel tree
def murray(r0, ratio):
    """Radii r1 and r2 = ratio r1 of the two daughters of a vessel: r0^3 = r1^3 + r2^3 (Murray)."""
    r1 = r0 * (1 + ratio**3) ** (-1 / 3)
    return r1, ratio * r1


def curves(rng, start, c1, c2, end, tortuosity):
    """Cubic Bezier curves (n, P), bent sideways by waves: `tortuosity` is their size in lengths."""
    amplitudes = tortuosity * rng.normal(0, 1, (len(start), len(WAVES)))
    smooth = np.stack([start, c1, c2, end], 1) @ BERNSTEIN
    return smooth + amplitudes @ WAVES * perpendicular(end - start)[:, None]


def trunks(rng):
    """The 16 vessels that leave the disc: path (n, P), radius at the disc (n,), artery (n,).

    An artery and a vein of each of four kinds, above and below: the temporal arcade, its outer
    companion, the nasal arcade and a twig, which may run to the nasal side instead.
    """
    n = 16
    kind, superior, artery = np.arange(n) % 4, np.arange(n) < 8, np.arange(n) % 8 >= 4
    points = TRUNKS[:, kind] + np.stack([jitter(rng, sd, n) for sd in SPREAD[:, kind]])
    nasal = (kind == 3) & (rng.random(n) < 0.6)
    points[1:].real[:, nasal] = [[-0.2], [-0.5], [-1.0]]
    points = DISC + np.where(superior, points, points.conj())
    path = curves(rng, *points, tortuosity=0.022)
    radius = np.where(artery, ARTERY, VEIN) * SIZE[kind] * rng.uniform(0.85, 1.12, n)
    return path, radius, artery


def branch(rng, path, radius, artery, sites, length):
    """Let `sites` branches, about `length` F long, grow out of each of n vessels.

    A vessel bends away from every branch; `path` is changed in place. Returns the radius along the
    vessels (n, P), then path (m, P), radius at the start (m,) and artery (m,) of the m branches.
    """
    n = len(path)
    position = 0.08 + 0.87 * (np.arange(sites) + rng.random((n, sites))) / sites
    at = (position * (POINTS - 1)).astype(int)  # n, sites: index of the point that branches
    vessel = np.arange(n)[:, None]
    odd = (np.arange(sites) + rng.integers(2, size=(n, 1))) % 2
    turn = np.where(odd, 1.0, -1.0)  # to the left and to the right in turn
    ratio = rng.uniform(0.3, 0.9, (n, sites))

    main = np.cumprod(np.column_stack([radius, murray(1, ratio)[0]]), 1)
    side = ratio * main[:, 1:]
    beyond = np.maximum(ALONG - ALONG[at][..., None], 0)  # n, sites, P: distance from a branching
    along = main[vessel, (beyond > 0).sum(1)]  # narrower after every branching
    bend = np.einsum("ns,nsp->np", -0.45 * turn * ratio**2, beyond)
    path += (bend - ALONG * bend[:, -1:]) * perpendicular(path[:, -1:] - path[:, :1])

    start = path[vessel, at]
    keep = (side > CAPILLARY) & (abs(start) < 1.75) & (abs(start - DISC) > 0.35)
    heading = (path[vessel, at + 1] - start)[keep]
    heading /= abs(heading)
    start, turn, ratio, m = start[keep], turn[keep], ratio[keep], keep.sum()
    steepness = 85 - 42 * ratio + rng.normal(0, 8, m)  # degrees; a thin branch leaves more steeply
    angle = turn * np.deg2rad(steepness)
    reach = length * rng.uniform(0.6, 1.3, m) * (0.5 + 0.6 * ratio)
    way = rotated(reach * heading, 0.8 * angle)  # from start to end
    approach = -np.sign(start.imag) * way.imag  # how far it comes closer to the raphe
    share = np.clip((abs(start.imag) - RAPHE) / np.maximum(approach, 1e-3), 0.2, 1)
    way *= np.where(approach > 0, share, 1)
    c1 = start + rotated(way / 3, 0.2 * angle)
    c2 = start + way - rotated(way / 3, -0.25 * angle)
    branches = curves(rng, start, c1, c2, start + way, tortuosity=0.035)
    return along, branches, side[keep], artery[np.nonzero(keep)[0]]


def vessel_tree(rng):
    """Trunks and three generations of branches, which are thinner after every branching.

    Returns path (n, P) in the retinal frame, radius (n, P) in widths, and artery (n,), which is
    False for veins.
    """
    path, radius, artery = trunks(rng)
    n_trunks, tree = len(path), []
    for sites, length in ((5, 1.05), (3, 0.55), (2, 0.30)):
        along, *branches = branch(rng, path, radius, artery, sites, length)
        tree.append((path, along, artery))
        path, radius, artery = branches
    tree.append((path, np.repeat(radius[:, None], POINTS, 1), artery))
    path, radius, artery = (np.concatenate(parts) for parts in zip(*tree, strict=True))

    pushed_out = np.sqrt(1 + (FAZ / np.maximum(abs(path), 1e-3)) ** 2)  # distances become >= FAZ
    # branches that are too thin to draw also narrow a vessel
    taper = np.where(np.arange(len(path)) < n_trunks, 0.2, 0.7)[:, None]
    return path * pushed_out, radius * (1 - taper * ALONG**2), artery

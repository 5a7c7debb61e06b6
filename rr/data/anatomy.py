"""Anatomy of an eye, as geometry: where disc, cup and fovea lie, and the tree of vessels.

Defines `anatomy` and `vessel_tree`, which rr.synthetic paints. The tree is laid out in the *retinal frame*: origin at the
fovea, t temporal, s superior, unit F = distance from disc to fovea. Lengths in *widths* are fractions of the image width,
so that one eye looks the same at every size. Points of the plane are complex numbers.
"""

from typing import NamedTuple

import numpy as np

POINTS = 23  # per vessel
DISC = -1.0  # disc centre in the retinal frame
FAZ = 0.18  # F; every vessel is pushed out of the foveal avascular zone
VEIN, ARTERY = 0.0066, 0.0046  # widths; radius of a trunk at the disc (A:V about 2:3)
CAPILLARY = 0.0008  # widths; thinner branches are not drawn


class Anatomy(NamedTuple):  # in widths; points and vectors are complex numbers x + iy
    side: str
    fovea: complex
    t: complex  # unit vectors of the retinal frame
    s: complex
    disc: tuple  # centre, horizontal radius, vertical radius
    cup: tuple  # centre, horizontal radius, vertical radius
    view: tuple  # of the field of view: centre, radius, half height at which it is cut off


def anatomy(rng):
    """Positions and sizes of one eye: fovea 2.3 to 2.7 disc diameters temporal of the disc, slightly below it."""
    side = ("right", "left")[rng.integers(2)]
    nasal = 1 if side == "right" else -1  # a right eye has its disc on the right of the photograph
    diameter = rng.uniform(0.100, 0.140)
    F = diameter * np.clip(rng.normal(2.5, 0.08), 2.3, 2.7)
    dip = np.deg2rad(np.clip(rng.normal(7, 3), 1, 14))
    t, s = (
        F * complex(-nasal * np.cos(dip), np.sin(dip)),
        F * complex(-nasal * np.sin(dip), -np.cos(dip)),
    )
    fovea = complex(0.5 - nasal * 0.45 * (F - 0.27), 0.5) + complex(
        *rng.normal(0, (0.022, 0.018)).clip(-0.045, 0.045)
    )
    rx, ry = diameter / 2 * rng.uniform([0.90, 1.0], [0.98, 1.06])
    ratio = np.clip(rng.gamma(8, 0.055), 0.2, 0.78)  # cup to disc
    shift = (1 - ratio) * complex(-0.25 * nasal * rx, rng.normal(0, 0.1) * ry)
    cup = fovea - t + shift, *(ratio * rng.uniform(0.95, 1.05, 2) * (rx, ry))
    flat = rng.uniform(0.35, 0.43) if rng.random() < 0.3 else 1.0
    view = complex(*rng.uniform(0.495, 0.505, 2)), rng.uniform(0.485, 0.495), flat
    return Anatomy(side, fovea, t, s, (fovea - t, rx, ry), cup, view)


# -------------------------------------------------------------------------------------------------------- vessel tree
def murray(r0, ratio):
    """Radii (r1, r2) of the two daughters of a vessel of radius r0, r2 = ratio r1: r0^3 = r1^3 + r2^3 (Murray)."""
    r1 = r0 * (1 + ratio**3) ** (-1 / 3)
    return r1, ratio * r1


def jitter(rng, sd, n):
    return rng.normal(0, sd, n) + 1j * rng.normal(0, sd, n)


def curves(rng, start, c1, c2, end, tortuosity):
    """Cubic Bezier curves (n,P), bent sideways by waves of about `tortuosity` times their length."""
    u, k = np.linspace(0, 1, POINTS), np.arange(2, 11)
    bernstein = np.stack([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3])
    waves = tortuosity * rng.normal(0, 1, (len(start), 9)) / k**0.8 @ np.sin(np.pi * k[:, None] * u)
    return np.stack([start, c1, c2, end], 1) @ bernstein + waves * (1j * (end - start))[:, None]


def trunks(rng):
    """The vessels that leave the disc, an artery and a vein of each: path, radius at the disc, artery."""
    kind = np.tile([0, 1, 2, 3], 4)  # temporal arcade, its outer companion, nasal arcade, twig
    n = len(kind)
    artery, superior = np.arange(n) % 8 >= 4, np.arange(n) < 8
    start = jitter(rng, 0.012, n) - 0.04
    c1 = np.array([0.08 + 0.48j, 0.02 + 0.45j, -0.08 + 0.36j, 0.20 + 0.10j])[kind] + jitter(
        rng, 0.06, n
    )
    c2 = np.array([0.85 + 1.25j, 0.35 + 1.00j, -0.35 + 0.70j, 0.45 + 0.30j])[kind] + jitter(
        rng, 0.10, n
    )
    end = np.array([3.10 + 0.45j, 1.20 + 2.10j, -0.90 + 1.50j, 0.78 + 0.10j])[kind]
    end = end + jitter(rng, np.array([0.30, 0.28, 0.28, 0.06])[kind], n)
    nasal = (kind == 3) & (rng.random(n) < 0.6)
    c1.real[nasal], c2.real[nasal], end.real[nasal] = -0.2, -0.5, -1.0
    path = curves(
        rng, *(DISC + np.where(superior, p, p.conj()) for p in (start, c1, c2, end)), 0.022
    )
    radius = (
        np.where(artery, ARTERY, VEIN)
        * np.array([1.0, 0.62, 0.68, 0.36])[kind]
        * rng.uniform(0.85, 1.12, n)
    )
    return path, radius, artery


def branch(rng, path, radius, artery, sites, length):
    """`sites` branchings along each vessel, which bends away from every branch (`path` is changed in place).

    Returns the radius along the vessels (n,P) and the branches, about `length` F long: path, starting radius, artery.
    """
    n, u = len(path), np.linspace(0, 1, POINTS)
    at = (
        (0.08 + 0.87 * (np.arange(sites) + rng.random((n, sites))) / sites) * (POINTS - 1)
    ).astype(int)  # (n,sites)
    hand = np.where(
        (np.arange(sites) + rng.integers(2, size=(n, 1))) % 2, 1.0, -1.0
    )  # left and right in turn
    ratio = rng.uniform(0.3, 0.9, (n, sites))
    main, side = np.empty((n, sites + 1)), np.empty((n, sites))
    main[:, 0] = radius
    for j in range(sites):
        main[:, j + 1], side[:, j] = murray(main[:, j], ratio[:, j])
    along = np.take_along_axis(
        main, (np.arange(POINTS)[:, None] > at[:, None]).sum(2), 1
    )  # branchings upstream
    bend = ((-0.45 * hand * ratio**2)[:, None] * np.maximum(u[:, None] - u[at][:, None], 0)).sum(
        2
    )  # (n,P)
    path += (bend - u * bend[:, -1:]) * (1j * (path[:, -1:] - path[:, :1]))

    start = np.take_along_axis(path, at, 1)
    keep = (side > CAPILLARY) & (abs(start) < 1.75) & (abs(start - DISC) > 0.35)
    heading = (np.take_along_axis(path, at + 1, 1) - start)[keep]
    heading /= abs(heading)
    start, hand, ratio, m = start[keep], hand[keep], ratio[keep], keep.sum()
    angle = (
        1j * hand * np.deg2rad(85 - 42 * ratio + rng.normal(0, 8, m))
    )  # a thin branch leaves more steeply
    way = length * rng.uniform(0.6, 1.3, m) * (0.5 + 0.6 * ratio) * heading * np.exp(0.8 * angle)
    fall = -np.sign(start.imag) * way.imag  # a branch ends before it crosses the horizontal raphe
    way *= np.where(fall > 0, np.clip((abs(start.imag) - 0.05) / np.maximum(fall, 1e-3), 0.2, 1), 1)
    c1, c2 = start + way / 3 * np.exp(0.2 * angle), start + way - way / 3 * np.exp(-0.25 * angle)
    return (
        along,
        curves(rng, start, c1, c2, start + way, 0.035),
        side[keep],
        artery[np.nonzero(keep)[0]],
    )


def vessel_tree(rng):
    """Trunks and three generations of branches, thinner after every branching (Murray's law).

    Returns path (n,P), complex t + is in the retinal frame; radius (n,P) in widths; artery (n,), False for veins.
    """
    path, radius, artery = trunks(rng)
    tree, n = [], len(path)
    for sites, length in ((5, 1.05), (3, 0.55), (2, 0.30)):
        along, *branches = branch(rng, path, radius, artery, sites, length)
        tree.append((path, along, artery))
        path, radius, artery = branches
    tree.append((path, np.repeat(radius[:, None], POINTS, 1), artery))
    path, radius, artery = (np.concatenate(a) for a in zip(*tree, strict=True))
    path = path * np.sqrt(1 + (FAZ / np.maximum(abs(path), 1e-3)) ** 2)
    taper = np.where(np.arange(len(path)) < n, 0.2, 0.7)[:, None]  # by branches too thin to draw
    return path, radius * (1 - taper * np.linspace(0, 1, POINTS) ** 2), artery

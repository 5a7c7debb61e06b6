"""Procedural colour fundus photographs with exact anatomy masks: the embedded data set.

Defines `fundus` (a photograph of an eye with its masks) and `not_fundus` (an image of something else), both a function
of (seed, index, size) alone. From top to bottom: vessels, painting, lesions, camera, not a fundus. What is painted, and
in which frame it is laid out, is rr.anatomy's.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rr.data.anatomy import DISC, anatomy, curves, jitter, vessel_tree

COARSE = 96  # pixels; smooth fields are computed on this grid and enlarged


def rgb(*values):
    """Column (3,1,1) that turns a field (S,S) into three channels (3,S,S)."""
    return np.array(values, np.float32).reshape(3, 1, 1)


# Change of the logarithm of red, green and blue light per unit of each substance.
VENOUS_BLOOD = rgb(-0.28, -0.92, -0.60)
ARTERIAL_BLOOD = rgb(-0.08, -0.66, -0.50)
MELANIN = rgb(-0.75, -1.00, -0.90)
MACULAR_PIGMENT = rgb(-0.50, -0.75, -1.00)
NERVE_FIBRE = rgb(0.10, 1.00, 0.80)
CHOROID = rgb(0.30, 0.90, 0.60)
ILLUMINATION = rgb(0.70, 1.00, 1.00)  # red is near saturation, so it follows the illumination less

# Gain of a lesion over the colour around it.
YELLOW, BLOOD, SCAR = rgb(1.08, 2.1, 1.7), rgb(0.62, 0.38, 0.50), rgb(0.35, 0.70, 0.90)

# Mean colours between which eyes (light to heavy pigmentation) and cameras vary.
PALETTE = (
    np.array(
        [[214, 82, 58], [226, 62, 26], [212, 52, 34], [208, 98, 52], [142, 55, 28], [140, 40, 32]]
    )
    / 255
)


class Eye(NamedTuple):
    image: np.ndarray  # uint8 (S,S,3), RGB, exactly 0 outside the field of view
    fov: np.ndarray  # bool (S,S)
    disc: np.ndarray  # bool (S,S)
    cup: np.ndarray  # bool (S,S), inside the disc
    vessels: np.ndarray  # bool (S,S), at least half of the pixel is vessel
    fovea: tuple[float, float]  # x, y in pixels
    disc_circle: tuple[float, float, float]  # x, y and mean radius in pixels
    side: str  # "right" | "left"
    view: tuple[
        float, float, float, float, float
    ]  # the field of view, in pixels: x, y, radius, cut above and below y


# ------------------------------------------------------------------------------------------------------------ vessels
def corners(eye, points, scale):
    """Rows of points t + is in the retinal frame as lists [x0, y0, x1, y1, ...] in pixels, for drawing."""
    return (
        (scale * (eye.fovea + points.real * eye.t + points.imag * eye.s))
        .copy()
        .view(float)
        .tolist()
    )


def draw_vessels(eye, path, radius, artery, size):
    """Anti-aliased (3,S,S) in [0,1]: part of the pixel covered, density of arterial blood, density of venous blood."""
    over = max(2, round(672 / size))  # supersampling: a line is at least 1/672 of the width
    scale = size * over
    side = 1j * np.diff(path, axis=1, append=2 * path[:, -1:] - path[:, -2:-1])
    side *= (
        (radius - 0.5 / scale).clip(0) / (abs(side) + 1e-9) / abs(eye.t)
    )  # a polygon also covers its outline
    start = radius[:, 0]
    wide, shiny = 2 * scale * start >= 2.5, (start > 0.0022) & (2 * scale * start > 4)
    outlines = np.concatenate([path + side, (path - side)[:, ::-1]], 1)
    outline = dict(zip(np.flatnonzero(wide).tolist(), corners(eye, outlines[wide], scale)))
    line = corners(eye, path[:, ::2], scale)
    centre_line = dict(zip(np.flatnonzero(shiny).tolist(), corners(eye, path[shiny], scale)))
    density = (
        255 * (start / 0.004).clip(0, 1) ** 0.6
    )  # less blood on the line of sight of a thin vessel
    reflex = (density * np.where(artery, 0.5, 0.75)).astype(int).tolist()
    density, width = density.astype(int).tolist(), (2 * scale * start).tolist()
    canvas = Image.new("RGB", (scale, scale))
    draw = ImageDraw.Draw(canvas)
    for i in np.argsort(start).tolist():  # the widest on top
        fill = (255, density[i], 0) if artery[i] else (255, 0, density[i])
        if i in outline:
            draw.polygon(outline[i], fill=fill)
        else:
            draw.line(line[i], fill=fill, width=max(1, round(0.9 * width[i])))
        if i in centre_line:  # central light reflex
            fill = (255, reflex[i], 0) if artery[i] else (255, 0, reflex[i])
            draw.line(centre_line[i], fill=fill, width=round(0.28 * width[i]))
    return np.asarray(canvas.reduce(over)).transpose(2, 0, 1).astype(
        np.float32, order="C"
    ) / np.float32(255)


# ----------------------------------------------------------------------------------------------------------- painting
@lru_cache(maxsize=8)
def grid(size):
    """Pixel centres in widths: x (1,S), y (S,1)."""
    x = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return x[None], x[:, None]


def distance(size, centre, rx, ry, part=np.s_[:, :]):
    """Elliptic distance (S,S) from `centre`, 1 on the ellipse with the radii `rx`, `ry`; or a part of it, rows and columns."""
    (x, y), (cx, cy, rx, ry) = grid(size), np.float32([centre.real, centre.imag, rx, ry])
    return np.sqrt(((x[:, part[1]] - cx) / rx) ** 2 + ((y[part[0]] - cy) / ry) ** 2)


def hill(distance, radius):
    return np.exp(-((distance / np.float32(radius)) ** 2))


def uniform(rng, low, high):
    return np.float32(rng.uniform(low, high))  # float32 keeps whole images in float32


def enlarge(field, size):
    return np.asarray(
        Image.fromarray(np.asarray(field, np.float32)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
    )


def noise(rng, amplitudes, size):
    """Sum of smooth random fields: {number of cells across: amplitude}."""
    return sum(
        enlarge(rng.standard_normal((k, k), np.float32) * np.float32(a), size)
        for k, a in amplitudes.items()
    )


def draw_lines(eye, path, width, level):
    """Lines (C,C) of `width` (in widths) and brightness `level` (0..1) on the coarse grid: enlarging softens them."""
    canvas = Image.new("L", (2 * COARSE, 2 * COARSE))
    draw, width = ImageDraw.Draw(canvas), (2 * COARSE * width).round().astype(int).tolist()
    for line, w, v in zip(
        corners(eye, path, 2 * COARSE), width, (255 * level).astype(int).tolist(), strict=True
    ):
        draw.line(line, fill=v, width=max(1, w))
    return np.asarray(canvas.reduce(2), np.float32) / 255


def nerve_fibres(rng, eye, n=70):
    """Striae (C,C) that fan out of the disc, densest along the temporal arcades."""
    aside = rng.random(n)
    way = rng.uniform(0.4, 1.2, n) * (
        -0.2 + aside + 1j * np.where(np.arange(n) % 2, 1, -1) * (0.45 + 0.5 * aside)
    )
    c1, c2 = 0.1 * way.real + 0.5j * way.imag, 0.5 * way.real + 0.95j * way.imag
    path = curves(rng, 0 * way + DISC, c1 + DISC, c2 + DISC, way + DISC, 0.01)
    return draw_lines(eye, path[:, 4::2], np.full(n, 0.005), rng.uniform(0.2, 1, n))


def choroid(rng, eye, n=300):
    """Choroidal vessels (C,C): broad wavy bands that run outwards from the posterior pole."""
    start = rng.uniform(-2.2, 2.0, n) + 1j * rng.uniform(-2.1, 2.1, n)
    way = 0.7 * (start / (abs(start) + 0.3) + jitter(rng, 0.45, n))
    path = curves(rng, start, start + 0.4 * way, start + 0.6 * way, start + way, 0.06)
    return draw_lines(eye, path[:, ::3], rng.uniform(0.008, 0.018, n), rng.uniform(0.4, 1, n))


def background(rng, eye, size):
    """Fundus without disc and vessels (3,S,S) in [0,1]: choroid, pigment, macula, nerve fibres, illumination."""
    x, y = grid(COARSE)
    fovea, disc = (
        distance(COARSE, centre, abs(eye.t), abs(eye.t)) for centre in (eye.fovea, eye.disc[0])
    )  # in F
    melanin = noise(rng, {3: 0.10, 6: 0.06, 14: 0.03, 40: 0.03, COARSE: 0.022}, COARSE)
    pigment = uniform(rng, 0.2, 0.55) * hill(fovea, rng.uniform(0.32, 0.5))
    pigment += uniform(rng, 0.1, 0.45) * hill(fovea, rng.uniform(0.10, 0.16))
    light = uniform(rng, 0.1, 0.4) * hill(disc, 0.8)
    light += uniform(rng, -0.4, 0.4) * (x - 0.5) + uniform(rng, -0.4, 0.4) * (y - 0.5)
    light -= (
        uniform(rng, 0.15, 0.6)
        * distance(COARSE, complex(*rng.normal(0.5, 0.05, 2)), 0.5, 0.5) ** 3
    )  # vignetting
    if rng.random() < 0.2:  # foveal reflex
        light += uniform(rng, 0.1, 0.5) * hill(fovea, 0.025)
    log = np.log(rgb(*rng.dirichlet(np.full(len(PALETTE), 0.35)) @ PALETTE)) + light * ILLUMINATION
    log += melanin * MELANIN + pigment * MACULAR_PIGMENT
    log += uniform(rng, 0.03, 0.22) * nerve_fibres(rng, eye) * NERVE_FIBRE
    if rng.random() < 0.3:  # tessellated: the choroid shows through outside the macula
        log += (
            uniform(rng, 0.15, 0.4)
            * (choroid(rng, eye) - 0.5)
            * np.clip(0.8 * fovea - 0.1, 0, 1)
            * CHOROID
        )
    return np.exp(np.stack([enlarge(channel, size) for channel in log]))


def paint_disc(rng, eye, image, size):
    """Optic disc with rim and cup, peripapillary halo and crescent, painted into `image`. Returns (disc, cup) masks."""
    centre, rx, ry = eye.disc
    temporal = np.sign(eye.t.real)
    reach = 2.5 * max(rx, ry)  # its halo has faded by then
    rows, columns = (
        slice(max(0, int((at - reach) * size)), int((at + reach) * size) + 1)
        for at in (centre.imag, centre.real)
    )
    part = rows, columns
    around = rgb(
        *image[:, int(centre.imag * size), int(centre.real * size)]
    )  # the disc is lit like its surroundings
    image = image[:, rows, columns]  # a view
    q, cup = distance(size, *eye.disc, part), distance(size, *eye.cup, part)
    rim = np.minimum(around * rgb(0.9, 1.65, 1.4) + rgb(0.30, 0.10, 0.04), rgb(1.0, 0.72, 0.44))
    pale = np.minimum(around * rgb(0.9, 2.2, 2.5) + rgb(0.40, 0.20, 0.13), rgb(1.0, 0.92, 0.72))
    image += (rim - image) * (uniform(rng, 0.05, 0.3) * hill(np.maximum(q - 1, 0), 0.3))
    if rng.random() < 0.3:  # temporal crescent, pale or pigmented
        crescent = distance(size, centre + temporal * rng.uniform(0.06, 0.16) * rx, rx, ry, part)
        crescent = np.clip((1.12 - crescent) / np.float32(0.12), 0, 1) * uniform(rng, 0.2, 0.6)
        image += (
            ((rim + pale) / 2 - image) * crescent if rng.random() < 0.7 else -0.5 * image * crescent
        )
    depth = np.clip((1.45 - cup) / np.float32(0.75), 0, 1) * uniform(rng, 0.7, 1)
    depth += (grid(size)[0][:, columns] - np.float32(centre.real)) * np.float32(
        0.22 * temporal / rx
    )  # temporally paler
    inside = np.clip((1.10 - q) / np.float32(0.2), 0, 1) * uniform(rng, 0.85, 1)
    image += (rim + (pale - rim) * np.clip(depth, 0, 1) - image) * inside
    masks = np.zeros((2, size, size), bool)
    masks[:, rows, columns] = q < 1, (cup < 1) & (q < 1)
    return masks


# ------------------------------------------------------------------------------------------------------------ lesions
def spots(rng, eye, image, where, radius, gain, strength):
    """Multiply `image` by `gain` in irregular spots at `where` (retinal frame) with `radius` (widths)."""
    size = image.shape[1]
    ring = np.exp(2j * np.pi * np.arange(8) / 8) * (1 + 0.25 * rng.standard_normal((len(where), 8)))
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    for polygon in corners(eye, where[:, None] + radius[:, None] / abs(eye.t) * ring, 2 * size):
        draw.polygon(polygon, fill=255)
    cover = np.asarray(canvas.reduce(2).filter(ImageFilter.BoxBlur(0.003 * size)), np.float32) / 255
    image *= 1 + (gain - 1) * (cover * np.float32(strength))


def lesions(rng, eye, image):
    """Paint drusen, diabetic lesions or laser scars into `image`, in about half of the eyes."""
    disease = rng.choice(["none", "drusen", "diabetes", "laser"], p=[0.5, 0.18, 0.27, 0.05])
    if disease == "drusen":
        n = rng.integers(20, 90)
        spots(
            rng,
            eye,
            image,
            jitter(rng, 0.35, n),
            rng.uniform(0.002, 0.006, n),
            YELLOW,
            rng.uniform(0.25, 0.6),
        )
    elif disease == "diabetes":
        n = rng.integers(6, 40)  # many microaneurysms, few haemorrhages
        spots(
            rng,
            eye,
            image,
            jitter(rng, 0.75, n),
            0.0018 + 0.010 * rng.beta(0.6, 2.5, n),
            BLOOD,
            0.9,
        )
        n = rng.integers(1, 70)  # hard exudates in up to three clusters
        where = jitter(rng, 0.45, 3)[rng.integers(rng.integers(1, 4), size=n)] + jitter(
            rng, 0.09, n
        )
        spots(rng, eye, image, where, 0.0012 + 0.005 * rng.beta(0.8, 2, n), YELLOW, 0.95)
    elif disease == "laser":
        where = jitter(rng, 1.0, 160)
        where = where[(abs(where) > 0.5) & (abs(where - DISC) > 0.4)]
        spots(rng, eye, image, where, rng.uniform(0.006, 0.011, len(where)), YELLOW, 0.4)
        spots(rng, eye, image, where[::4], rng.uniform(0.003, 0.008, len(where[::4])), SCAR, 0.8)


# ------------------------------------------------------------------------------------------------------------- camera
def photograph(rng, eye, image, fov):
    """Camera: exposure and colour cast, soft edge of the field of view, sensor noise, softness; uint8 (S,S,3)."""
    size = len(fov)
    image *= 255 * rgb(*(rng.uniform(0.88, 1.18) * rng.uniform(0.95, 1.05, 3)))
    image += (rng.random((size, size), np.float32) - 0.5) * uniform(rng, 2, 8)
    image *= np.clip(
        (1 - distance(size, eye.view[0], eye.view[1], eye.view[1])) / np.float32(0.025), 0, 1
    )
    photo = Image.merge(
        "RGB", [Image.fromarray(channel) for channel in image.clip(0, 255).astype(np.uint8)]
    )
    photo = photo.filter(ImageFilter.BoxBlur(max(0, rng.uniform(-0.0006, 0.0024)) * size))
    photo.paste(0, mask=Image.fromarray(np.where(fov, np.uint8(0), np.uint8(255))))
    return np.array(photo)


def fundus(seed: int, index: int, size: int = 224) -> Eye:
    """Photograph number `index` of the data set `seed`, `size` pixels wide (64 to 1024), with its exact masks.

    The field of view is a circle at the image centre, nearly as wide as the image; in about 30 % it is cut off flat at
    the top and the bottom. Deterministic in (seed, index); another size shows the same eye.
    """
    rng = np.random.default_rng([seed, index, 0])
    eye = anatomy(rng)
    tree = vessel_tree(rng)
    image = background(rng, eye, size)
    disc, cup = paint_disc(rng, eye, image, size)
    covered, arterial, venous = draw_vessels(eye, *tree, size)
    strength = uniform(rng, 0.45, 0.8) * (
        1 + np.float32(0.6) * disc
    )  # no choroid shines through it on the disc
    image *= np.exp((strength * arterial) * ARTERIAL_BLOOD + (strength * venous) * VENOUS_BLOOD)
    lesions(rng, eye, image)
    centre, radius, flat = eye.view
    fov = (distance(size, centre, radius, radius) < 1) & (abs(grid(size)[1] - 0.5) < flat)
    image = photograph(rng, eye, image, fov)
    x, y, r = (
        float(v) * size
        for v in (eye.disc[0].real, eye.disc[0].imag, (eye.disc[1] + eye.disc[2]) / 2)
    )
    return Eye(
        image,
        fov,
        disc & fov,
        cup & fov,
        (covered >= 0.5) & fov,
        (eye.fovea.real * size, eye.fovea.imag * size),
        (x, y, r),
        eye.side,
        tuple(float(v) * size for v in (centre.real, centre.imag, radius, 0.5 - flat, 0.5 + flat)),
    )


# ------------------------------------------------------------------------------------------------------- not a fundus
def not_fundus(seed: int, index: int, size: int = 224) -> np.ndarray:
    """An image of something else, uint8 (S,S,3): scenery, text, external eye, B-scan, blobs, failed exposure, noise."""
    rng = np.random.default_rng([seed, index, 1])
    x, y = (a[..., None] for a in grid(size))  # (1,S,1), (S,1,1)
    cloud = noise(rng, {4: 0.25, 8: 0.12, 16: 0.06, 64: 0.03}, size)[..., None]
    c = rng.random((4, 3), np.float32)  # colours
    match rng.choice(["scene", "text", "eye", "b-scan", "blobs", "blank", "static", "colours"]):
        case "scene":  # sky above ground
            sky = 0.5 + 0.5 * c[1] * (0.5 + y)
            image = np.where(y + 0.4 * cloud > rng.uniform(0.3, 0.7), c[0] * (0.6 + cloud), sky)
        case "text":
            rows, columns = rng.integers(10, 30), rng.integers(30, 70)
            ink = enlarge(rng.random((rows, columns)) < 0.6, size)[..., None] * (
                np.sin(2 * np.pi * rows * y) > 0
            )
            image = rng.uniform(0.8, 1) - 0.8 * ink * ((abs(x - 0.5) < 0.4) & (abs(y - 0.5) < 0.43))
        case "eye":  # skin, sclera between the lids, iris, pupil
            lids = distance(size, 0.5 + 0.5j, 0.45, rng.uniform(0.15, 0.25))[..., None] < 1
            iris = distance(size, complex(*rng.uniform(0.42, 0.58, 2)), 0.15, 0.15)[..., None]
            ball = np.where(iris < 0.4, 0.03, np.where(iris < 1, 0.6 * c[0], 0.85 + 0.2 * cloud))
            image = np.where(
                lids, ball, np.array([0.8, 0.6, 0.5]) * (rng.uniform(0.4, 1.1) + 0.5 * cloud)
            )
        case "b-scan":  # optical coherence tomography: bright layers, speckle
            depth = y - 0.5 - 0.4 * cloud[:1] + 0.1 * hill(x - 0.5, 0.1)
            layers = (
                0.6 * hill(depth + 0.1, 0.02)
                + 0.3 * hill(depth, 0.05)
                + 0.9 * hill(depth - 0.1, 0.015)
            )
            image = (0.1 + layers) * rng.random((size, size, 1))
        case "blobs":  # a coloured circle on black that is no retina
            image = c[0] + 0 * cloud
            for blob in c:
                image[distance(size, complex(*rng.random(2)), *rng.uniform(0.05, 0.3, 2)) < 1] = (
                    blob
                )
            image *= distance(size, 0.5 + 0.5j, 0.49, 0.49)[..., None] < 1
        case "blank":  # shutter closed, overexposed, or evenly lit
            image = rng.choice([0.0, 0.02, 0.5, 3.0]) * c[0] + 0 * cloud
        case "static":
            image = rng.random((size, size, 3)) * c[0]
        case "colours":
            image = c[0] + (c[1] - 0.5) * x + (c[2] - 0.5) * y + cloud * c[3]
    image = image + rng.normal(0, 0.01, (size, size, 1)) + np.zeros(3)
    return (255 * image.clip(0, 1)).astype(np.uint8)

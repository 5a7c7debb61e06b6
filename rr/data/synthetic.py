"""Drawn colour fundus photographs with exact anatomy masks: the embedded data set.

Defines `fundus` (a photograph of an eye with its masks) and `not_fundus` (an image of something
else). Both depend on (seed, index, size) alone. From top to bottom: background, disc, lesions,
camera, not a fundus. rr.data.anatomy says what lies where, rr.data.drawing draws the lines.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rr.data.anatomy import DISC, anatomy, jitter, vessel_tree
from rr.data.drawing import (
    COARSE,
    choroid,
    distance,
    draw_vessels,
    edge,
    enlarge,
    grid,
    hill,
    nerve_fibres,
    noise,
    pixels,
    uniform,
)


def rgb(*values):
    """Column (3, 1, 1) that turns a field (S, S) into three channels (3, S, S)."""
    return np.array(values, np.float32).reshape(3, 1, 1)


# Change of the logarithm of red, green and blue light per unit of each substance.
VENOUS_BLOOD = rgb(-0.28, -0.92, -0.60)
ARTERIAL_BLOOD = rgb(-0.08, -0.66, -0.50)
MELANIN = rgb(-0.75, -1.00, -0.90)
MACULAR_PIGMENT = rgb(-0.50, -0.75, -1.00)
NERVE_FIBRE = rgb(0.10, 1.00, 0.80)
CHOROID = rgb(0.30, 0.90, 0.60)
ILLUMINATION = rgb(0.70, 1.00, 1.00)  # red is near saturation, so it follows the light less

# Gain of a lesion over the colour around it.
YELLOW, BLOOD, SCAR = rgb(1.08, 2.1, 1.7), rgb(0.62, 0.38, 0.50), rgb(0.35, 0.70, 0.90)

# Mean colours between which eyes (light to heavy pigmentation) and cameras vary.
PALETTE = np.array([
    [214, 82, 58], [226, 62, 26], [212, 52, 34], [208, 98, 52], [142, 55, 28], [140, 40, 32]
]) / 255  # fmt: skip


class Eye(NamedTuple):
    image: np.ndarray  # uint8 (S, S, 3), RGB, exactly 0 outside the field of view
    fov: np.ndarray  # bool (S, S)
    disc: np.ndarray  # bool (S, S)
    cup: np.ndarray  # bool (S, S), inside the disc
    vessels: np.ndarray  # bool (S, S), at least half of the pixel is vessel
    fovea: tuple[float, float]  # x, y in pixels
    disc_circle: tuple[float, float, float]  # x, y and mean radius in pixels
    side: str  # "right" | "left"
    view: tuple[float, ...]  # field of view in pixels: x, y, radius, rows where it is cut off


# ------------------------------------------------------------------------------------ background
def background(rng, eye, size):
    """Fundus without disc and vessels (3, S, S) in [0, 1]: the logarithms of all layers add up."""
    coarse = min(size, COARSE)
    x, y = grid(coarse)
    F = abs(eye.t)
    fovea, disc = (distance(coarse, centre, F, F) for centre in (eye.fovea, eye.disc[0]))
    melanin = noise(rng, {3: 0.10, 6: 0.06, 14: 0.03, 40: 0.03, COARSE: 0.022}, coarse)
    pigment = uniform(rng, 0.2, 0.55) * hill(fovea, rng.uniform(0.32, 0.5))
    pigment += uniform(rng, 0.1, 0.45) * hill(fovea, rng.uniform(0.10, 0.16))
    light = uniform(rng, 0.1, 0.4) * hill(disc, 0.8)
    light += uniform(rng, -0.4, 0.4) * (x - 0.5) + uniform(rng, -0.4, 0.4) * (y - 0.5)
    vignetting = uniform(rng, 0.15, 0.6)
    away = distance(coarse, complex(*rng.normal(0.5, 0.05, 2)), 0.5, 0.5)
    light -= vignetting * (away * away * away)  # faster than away**3
    if rng.random() < 0.2:  # foveal reflex
        light += uniform(rng, 0.1, 0.5) * hill(fovea, 0.025)
    colour = rng.dirichlet(np.full(len(PALETTE), 0.35)) @ PALETTE
    log = np.log(rgb(*colour)) + light * ILLUMINATION
    log += melanin * MELANIN + pigment * MACULAR_PIGMENT
    log += uniform(rng, 0.03, 0.22) * nerve_fibres(rng, eye, coarse) * NERVE_FIBRE
    if rng.random() < 0.3:  # tessellated: the choroid shows through outside the macula
        strength, outside = uniform(rng, 0.15, 0.4), np.clip(0.8 * fovea - 0.1, 0, 1)
        log += strength * (choroid(rng, eye, coarse) - 0.5) * outside * CHOROID
    return np.exp(np.stack([enlarge(channel, size) for channel in log]))


# ------------------------------------------------------------------------------------ disc
def paint_disc(rng, eye, image, size):
    """Paint the optic disc with rim, cup, halo and crescent into `image`: masks (disc, cup)."""
    centre, rx, ry = eye.disc
    temporal = np.sign(eye.t.real)
    reach = 2.5 * max(rx, ry)  # the halo has faded at this distance
    ends = [
        (int((at - reach) * size), int((at + reach) * size) + 1)
        for at in (centre.imag, centre.real)
    ]
    rows, columns = part = tuple(slice(max(0, first), last) for first, last in ends)
    # the disc is lit like its surroundings
    around = rgb(*image[:, int(centre.imag * size), int(centre.real * size)])
    rim = np.minimum(around * rgb(0.9, 1.65, 1.4) + rgb(0.30, 0.10, 0.04), rgb(1.0, 0.72, 0.44))
    pale = np.minimum(around * rgb(0.9, 2.2, 2.5) + rgb(0.40, 0.20, 0.13), rgb(1.0, 0.92, 0.72))

    image = image[:, rows, columns]  # a view: the painting goes into the caller's image
    disc, cup = distance(size, *eye.disc, part), distance(size, *eye.cup, part)
    image += (rim - image) * (uniform(rng, 0.05, 0.3) * hill(np.maximum(disc - 1, 0), 0.3))
    if rng.random() < 0.3:  # temporal crescent, pale or pigmented
        crescent = distance(size, centre + temporal * rng.uniform(0.06, 0.16) * rx, rx, ry, part)
        crescent = edge(crescent, 1.12, 0.12) * uniform(rng, 0.2, 0.6)
        is_pale = rng.random() < 0.7
        image += ((rim + pale) / 2 - image) * crescent if is_pale else -0.5 * image * crescent
    depth = edge(cup, 1.45, 0.75) * uniform(rng, 0.7, 1)
    paler = np.float32(0.22 * temporal / rx)  # towards the temporal side
    depth += (grid(size)[0][:, columns] - np.float32(centre.real)) * paler
    inside = edge(disc, 1.10, 0.2) * uniform(rng, 0.85, 1)
    image += (rim + (pale - rim) * np.clip(depth, 0, 1) - image) * inside
    masks = np.zeros((2, size, size), bool)
    masks[:, rows, columns] = disc < 1, (cup < 1) & (disc < 1)
    return masks


# ------------------------------------------------------------------------------------ lesions
def spots(rng, eye, image, centres, radius, gain, strength):
    """Multiply `image` by `gain` in irregular spots; centres (retinal frame), radius (widths)."""
    size, n = image.shape[1], len(centres)
    ring = np.exp(2j * np.pi * np.arange(8) / 8) * (1 + 0.25 * rng.standard_normal((n, 8)))
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    outlines = centres[:, None] + np.broadcast_to(radius, n)[:, None] / abs(eye.t) * ring
    for polygon in pixels(eye, outlines, 2 * size):
        draw.polygon(polygon, fill=255)
    soft = canvas.reduce(2).filter(ImageFilter.BoxBlur(0.003 * size))
    cover = np.asarray(soft, np.float32) / 255
    image *= 1 + (gain - 1) * (cover * np.float32(strength))


def lesions(rng, eye, image):
    """Paint drusen, diabetic lesions or laser scars into `image`, in about half of the eyes."""
    disease = rng.random()  # 50 % have none, 18 % drusen, 27 % diabetes, 5 % laser scars
    if 0.5 <= disease < 0.68:
        n = rng.integers(20, 90)
        centres, radius = jitter(rng, 0.35, n), rng.uniform(0.002, 0.006, n)
        spots(rng, eye, image, centres, radius, YELLOW, rng.uniform(0.25, 0.6))
    elif 0.68 <= disease < 0.95:
        n = rng.integers(6, 40)  # many microaneurysms, few haemorrhages
        centres, radius = jitter(rng, 0.75, n), 0.0018 + 0.010 * rng.beta(0.6, 2.5, n)
        spots(rng, eye, image, centres, radius, BLOOD, 0.9)
        n = rng.integers(1, 70)  # hard exudates in up to three clusters
        clusters = jitter(rng, 0.45, 3)[rng.integers(rng.integers(1, 4), size=n)]
        centres, radius = clusters + jitter(rng, 0.09, n), 0.0012 + 0.005 * rng.beta(0.8, 2, n)
        spots(rng, eye, image, centres, radius, YELLOW, 0.95)
    elif disease >= 0.95:
        centres = jitter(rng, 1.0, 160)
        centres = centres[(abs(centres) > 0.5) & (abs(centres - DISC) > 0.4)]
        radius = rng.uniform(0.006, 0.011, len(centres))
        spots(rng, eye, image, centres, radius, YELLOW, 0.4)
        centres = centres[::4]
        spots(rng, eye, image, centres, rng.uniform(0.003, 0.008, len(centres)), SCAR, 0.8)


# ------------------------------------------------------------------------------------ camera
def photograph(rng, image, rim, fov):
    """Exposure, colour cast, soft edge, sensor noise and softness of a camera; uint8 (S, S, 3)."""
    image *= 255 * rgb(*(rng.uniform(0.88, 1.18) * rng.uniform(0.95, 1.05, 3)))
    image += (rng.random(fov.shape, np.float32) - 0.5) * uniform(rng, 2, 8)
    image *= edge(rim, 1, 0.025)
    channels = [Image.fromarray(channel) for channel in image.clip(0, 255).astype(np.uint8)]
    softness = max(0, rng.uniform(-0.0006, 0.0024)) * len(fov)
    photo = Image.merge("RGB", channels).filter(ImageFilter.BoxBlur(softness))
    return np.asarray(photo) * fov[..., None]


def fundus(seed: int, index: int, size: int = 224) -> Eye:
    """Photograph number `index` of the data set `seed` with its masks, 64 to 1024 pixels wide.

    The field of view is a circle at the image centre, nearly as wide as the image; in about 30 % of
    the images it is cut off flat at the top and at the bottom. Another size shows the same eye.
    """
    rng = np.random.default_rng([seed, index, 0])
    eye = anatomy(rng)
    tree = vessel_tree(rng)
    image = background(rng, eye, size)
    disc, cup = paint_disc(rng, eye, image, size)
    covered, arterial, venous = draw_vessels(eye, *tree, size)
    # vessels are darker on the disc, where no choroid shines through them
    strength = uniform(rng, 0.45, 0.8) * (1 + np.float32(0.6) * disc)
    image *= np.exp((strength * arterial) * ARTERIAL_BLOOD + (strength * venous) * VENOUS_BLOOD)
    lesions(rng, eye, image)
    centre, radius, flat = eye.view
    rim = distance(size, centre, radius, radius)
    fov = (rim < 1) & (abs(grid(size)[1] - 0.5) < flat)
    image = photograph(rng, image, rim, fov)

    def in_pixels(*lengths):
        return tuple(float(length) * size for length in lengths)

    place, rx, ry = eye.disc
    return Eye(
        image, fov, disc & fov, cup & fov, (covered >= 0.5) & fov,
        fovea=in_pixels(eye.fovea.real, eye.fovea.imag),
        disc_circle=in_pixels(place.real, place.imag, (rx + ry) / 2),
        side=eye.side,
        view=in_pixels(centre.real, centre.imag, radius, 0.5 - flat, 0.5 + flat),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ not a fundus
def not_fundus(seed: int, index: int, size: int = 224) -> np.ndarray:
    """An image of something else, uint8 (S, S, 3).

    It is a page of text, an eye from outside, a coloured circle on black or a failed exposure.
    """
    rng = np.random.default_rng([seed, index, 1])
    x, y = (a[..., None] for a in grid(size))  # (1, S, 1), (S, 1, 1)
    cloud = noise(rng, {4: 0.25, 8: 0.12, 16: 0.06, 64: 0.03}, size)[..., None]
    colours = rng.random((4, 3), np.float32)
    match rng.choice(["text", "eye", "circle", "blank"]):
        case "text":
            lines, letters = rng.integers(10, 30), rng.integers(30, 70)
            ink = enlarge(rng.random((lines, letters)) < 0.6, size)[..., None]
            ink = ink * (np.sin(2 * np.pi * lines * y) > 0)  # white between the lines
            page = (abs(x - 0.5) < 0.4) & (abs(y - 0.5) < 0.43)
            image = rng.uniform(0.8, 1) - 0.8 * ink * page
        case "eye":  # skin, sclera between the lids, iris, pupil
            open_lids = distance(size, 0.5 + 0.5j, 0.45, rng.uniform(0.15, 0.25))[..., None] < 1
            iris = distance(size, complex(*rng.uniform(0.42, 0.58, 2)), 0.15, 0.15)[..., None]
            ball = np.where(iris < 1, 0.6 * colours[0], 0.85 + 0.2 * cloud)
            ball = np.where(iris < 0.4, 0.03, ball)
            skin = np.array([0.8, 0.6, 0.5]) * (rng.uniform(0.4, 1.1) + 0.5 * cloud)
            image = np.where(open_lids, ball, skin)
        case "circle":  # shaped like a fundus photograph, with coloured blobs for anatomy
            image = colours[0] + 0 * cloud
            for colour in colours:
                blob = distance(size, complex(*rng.random(2)), *rng.uniform(0.05, 0.3, 2))
                image[blob < 1] = colour
            image *= distance(size, 0.5 + 0.5j, 0.49, 0.49)[..., None] < 1
        case "blank":  # shutter closed, evenly lit, or overexposed
            image = rng.choice([0.0, 0.02, 0.5, 2.0]) * colours[0] + 0 * cloud
    image = image + rng.normal(0, 0.01, (size, size, 1)) + np.zeros(3)
    return (255 * image.clip(0, 1)).astype(np.uint8)

"""The degradation y = A(x): illumination, spots and blur; batched, seeded, replayable, from severity 0 to 1.

Defines `sample` (parameters of A, drawn at random), `mild_blur` (the same with a weaker blur), `apply` (A itself),
`sample_haze` and `haze` (a fourth family, for evaluation alone: no training draws it), `to_table` and `from_table`
(parameters as a CSV and back, bit by bit) and `readable` (the rule that derives readability labels from what A did to a
region).

The three families and their ranges are those of cofe-Net (Shen et al. 2020, arXiv 2005.05594), with these differences:
Every length is a fraction of the image width, so that 64 and 512 pixels show the same degradation. The blur is a true
Gaussian of the nominal sigma (5 to 15 pixels at 512), which the published code cuts to kernels of 7 pixels at most. The
large smooth shapes (halo, hole, spots) are closed forms instead of discs blurred with large kernels; centre and width of
the halo, the ramp (not a step) above which a hole is drawn, and the narrower edge of the spots are our choices, made so
that PSNR and SSIM of degraded photographs come out as published ones do.
Coordinates: u to the right, v downwards, both in image widths, the pixel in row i and column j at ((j, i) + 1/2) / W.
"""

import math

import pandas as pd
import torch
from torch import Tensor

from rr.errors import InputError, choose

Params = dict[str, Tensor]  # name => (N,) or (N, K), float32, all on one device

FAMILIES = ("illumination", "spots", "blur")
SPOTS = 10  # room in the parameters; 5 to 10 of them are used

RANGES = {  # parameter: how many, uniform from, to; at severity 1
    "brightness": (1, 0.7, 1.2),  # factors
    "contrast": (1, 0.6, 1.4),
    "saturation": (1, 0.6, 1.4),
    "halo_u": (
        1,
        0.375,
        0.625,
    ),  # bright ring, tinted; its centre is our choice: off the middle by 1/8 at most
    "halo_v": (1, 0.375, 0.625),
    "halo_inner": (1, 0.375, 0.5),  # inner radius: diameter 0.75 to 1
    "halo_width": (
        1,
        0.05,
        0.25,
    ),  # outer minus inner radius: cofe-Net says "larger", the range is our choice
    "halo_tint": (1, 0, 3),  # its integer part is a row of TINTS
    "hole_u": (1, 1 / 4, 3 / 4),  # dark disc
    "hole_v": (1, 3 / 8, 5 / 8),
    "hole_radius": (1, 0.2, 0.35),
    "hole_soft": (1, 0.55, 0.75),  # its blur kernel over its diameter
    "spot_count": (1, 5, 11),  # its integer part
    "spot_u": (SPOTS, 0, 1),
    "spot_v": (SPOTS, 0, 1),
    "spot_radius": (SPOTS, 0.01, 0.05),
    "blur_sigma": (1, 5 / 512, 15 / 512),
}
MILD_BLUR = (
    1.5 / 512,
    4 / 512,
)  # sigma, at severity 1: a real photograph that is slightly out of focus
HAZE = {  # a clouded lens; depths are optical: depth 1 lets 37 % of the light through unscattered
    "haze_u": (1, 0.3, 0.7),  # where the lens is clearest
    "haze_v": (1, 0.3, 0.7),
    "haze_depth": (1, 0.2, 0.6),  # there
    "haze_more": (1, 0.3, 1.2),  # far from there, in addition
    "haze_reach": (1, 0.15, 0.35),  # standard deviation of the clear part
    "haze_level": (1, 0.45, 0.8),  # brightest channel of the veil
    "haze_white": (1, 0.3, 0.8),  # 0: a veil of the fundus' own colour, 1: white
    "blur_sigma": (1, 1.5 / 512, 6 / 512),
}
TINTS = ((251, 249, 246), (141, 238, 238), (177, 195, 147))  # of 255: white, cyan, olive
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, for contrast and saturation
REACH = 6.1  # sigmas; beyond it a Gaussian is below 1e-8 of its height
BLOCK = 32  # rows of a banded matrix that are multiplied at once
EVERYWHERE = 10.0  # an aim of ten image widths takes in the whole image

# The labelling rule (`readable`), chosen by looking at twelve regions of real photographs at 256 pixels. Where less than
# 0.45 of the fine contrast was left, or it agreed less than 0.65 with the original, the rim of the disc and its vessels had
# run together, the small vessels around the fovea were gone and of the retina's only the main arcades could be guessed.
# A sharp image at poor contrast and brightness stays above.
DETAIL_SIGMA = 0.02  # of the width: detail is what is finer, vessels (0.5 to 2 % wide) and the rims of disc and cup
G_MIN, RHO_MIN = 0.45, 0.65


def sample(
    n: int,  # images
    generator: torch.Generator,  # on the CPU, so that the values do not depend on the device; move them with `.to`
    families: tuple[str, ...] | Tensor = FAMILIES,  # names, or (N, 3) of 0/1 to choose per image
    severity: float | Tensor | None = None,  # (N,) or one number in [0, 1]; None: U(0, 1) per image
    centre: Tensor | None = None,  # (N, 2) u, v: aim at a region; needs `radius`
    radius: Tensor
    | None = None,  # (N,) in widths: full effect inside, none at all beyond 1.5 radii
) -> Params:
    """Parameters of A for n images, the ranges above. Image i's do not depend on how many follow it.

    An aimed degradation also draws its hole and its spots around the centre. Raises InputError for an unknown family, a
    severity outside [0, 1] or `centre` without `radius`.
    """
    if not isinstance(families, Tensor):
        for name in families:
            choose("degradation", name, FAMILIES)
        families = torch.tensor([[float(name in families) for name in FAMILIES]]).expand(n, 3)
    if (centre is None) != (radius is None):
        raise InputError("aimed degradation: give both centre and radius")

    # one row of uniform numbers per image: severity first, then RANGES in order
    draws = torch.rand(n, 1 + sum(k for k, _, _ in RANGES.values()), generator=generator)
    params = {
        "severity": _severity(severity, draws[:, 0]),
        "families": families.float().cpu().clone(),
    }
    column = 1
    for name, (k, low, high) in RANGES.items():
        values = low + (high - low) * draws[:, column : column + k]
        params[name] = values if k > 1 else values[:, 0]
        column += k

    aimed = centre is not None
    params["centre"] = (centre.float().cpu() if aimed else torch.full((n, 2), 0.5)).clone()
    params["radius"] = (radius.float().cpu() if aimed else torch.full((n,), EVERYWHERE)).clone()
    if aimed:
        for axis, coordinate in enumerate("uv"):
            params[f"hole_{coordinate}"] = params["centre"][:, axis].clone()
            offset = 2 * params[f"spot_{coordinate}"] - 1
            params[f"spot_{coordinate}"] = (
                params["centre"][:, axis, None] + params["radius"][:, None] * offset
            )
    return params


def mild_blur(params: Params, generator: torch.Generator) -> Params:
    """The same parameters with blur_sigma drawn again, from MILD_BLUR. The generator is on the CPU, as in `sample`.

    RANGES start where vessels are already gone; a restorer of photographs must also know blurs that leave something.
    """
    low, high = MILD_BLUR
    sigma = low + (high - low) * torch.rand(len(params["blur_sigma"]), generator=generator)
    return params | {"blur_sigma": sigma.to(params["blur_sigma"].device)}


def blur_width(params: Params) -> Tensor:
    """sigma (N,) of the blur in A, in image widths, at the severity of each image; 0 where blur is not among its families."""
    return params["severity"] * params["families"][:, 2] * params["blur_sigma"]


def apply(x: Tensor, params: Params, fov: Tensor | None = None) -> Tensor:
    """y = A(x), in [0, 1]: x + w (blur(spots(illumination(x))) - x), with w the aim (1 everywhere if not aimed).

    x (N, 3, H, W) in [0, 1]; `params` on x's device. Severity s scales the amplitude of every family: factors
    1 + s (f - 1), additive shapes times s, blur sigma times s; s = 0 returns x itself, bit by bit. fov (N, 1, H, W):
    what is outside becomes black, at every severity. Differentiable in x. Raises InputError if the numbers of images
    or the devices differ.
    """
    p = _matching(params, x)
    u, v = _grid(x)
    amount = p["severity"][:, None] * p["families"]  # (N, 3): illumination, spots, blur
    with torch.autocast(x.device.type, enabled=False):
        y = (_illuminate(x.float(), p, amount[:, 0], u, v) + _spots(p, amount[:, 1], u, v)).clamp(
            0, 1
        )
        y = blur(y, blur_width(p)).clamp(0, 1)
    r = _distance2(u, v, *p["centre"].unbind(1)).sqrt()
    w = (3 - 2 * r / _image(p["radius"])).clamp(0, 1)  # 1 up to the radius, 0 from 1.5 radii on
    w = w * w * (3 - 2 * w)  # smoothstep
    y = torch.lerp(
        x, y, w * _image(amount.amax(dim=1) > 0)
    )  # exactly x where the weight is 0, y where it is 1
    return y if fov is None else y * fov


def sample_haze(
    n: int, generator: torch.Generator, severity: float | Tensor | None = None
) -> Params:
    """Parameters of `haze` for n images, the ranges in HAZE; arguments, errors and order of the draws as in `sample`.

    `families` says what of FAMILIES a hazy image contains, its blur, so that whoever asks params for a blur finds it.
    """
    draws = torch.rand(n, 1 + len(HAZE), generator=generator)
    params = {
        "severity": _severity(severity, draws[:, 0]),
        "families": torch.tensor([[0.0, 0.0, 1.0]]).repeat(n, 1),
    }
    return params | {
        name: low + (high - low) * draws[:, k]
        for k, (name, (_, low, high)) in enumerate(HAZE.items(), start=1)
    }


def haze(x: Tensor, params: Params, fov: Tensor | None = None) -> Tensor:
    """A cataract-like haze in [0, 1]: y = t J + (1 - t) L, J the blurred image, t the transmission, L the veil.

    Light that the clouded lens scatters on its way back is lost to the image (transmission t = exp(-s depth), the law of
    Beer and Lambert; depth grows smoothly away from the clearest place) and comes back as an even veil L, in a colour
    between the fundus' own and white; scatter by small angles blurs, sigma times s. The form is that of Peli and Peli
    (1989, restoration of images obtained through cataracts), also used to simulate cataracts by Luo et al. (2020,
    "Dehaze of cataractous retinal images", IEEE JBHI) and, with a blur, by Li et al. (2022, ArcNet, IEEE TMI); the ranges
    are our choice. `params` from `sample_haze`; all else as in `apply`: s = 0 returns x itself, bit by bit.
    """
    p, s = _matching(params, x), params["severity"]
    u, v = _grid(x)
    with torch.autocast(x.device.type, enabled=False):
        J = blur(x.float(), s * p["blur_sigma"])
        away = 1 - torch.exp(
            -_distance2(u, v, p["haze_u"], p["haze_v"]) / (2 * _image(p["haze_reach"]) ** 2)
        )
        t = torch.exp(-_image(s) * (_image(p["haze_depth"]) + _image(p["haze_more"]) * away))
        own = x.float().mean(dim=(2, 3), keepdim=True)
        own = own / own.amax(dim=1, keepdim=True).clamp_min(
            1e-6
        )  # its brightest channel is 1: the surround cancels
        L = _image(p["haze_level"]) * torch.lerp(own, torch.ones_like(own), _image(p["haze_white"]))
        y = torch.where(_image(s) > 0, (t * J + (1 - t) * L).clamp(0, 1), x)
    return y if fov is None else y * fov


def _illuminate(x, p, s, u, v):
    """Brightness b, contrast c, saturation a, then halo (added) and hole (taken away), before the clamp to [0, 1].

    With l = LUMA, the first three are one affine map of colours, c b (a x + (1 - a) l.x) + (1 - c) b mean(l.x); the means of
    what follows are then known from those of x.
    """
    brightness, contrast, saturation = (
        1 + s * (p[name] - 1) for name in ("brightness", "contrast", "saturation")
    )
    luma = torch.tensor(LUMA).to(x.device, non_blocking=True)  # new_tensor would make a GPU wait
    factor = (contrast * brightness)[:, None, None]
    saturation = saturation[:, None, None]
    colours = factor * (
        saturation * torch.eye(3, device=x.device) + (1 - saturation) * luma
    )  # (N, 3, 3)
    means = x.mean(dim=(2, 3))  # (N, 3)
    offset = (1 - contrast) * brightness * (means @ luma)

    # cofe-Net blurs the ring with sigma 2/3 of its width, cut at +-1/2 of it: nearly a box, standard deviation 0.28
    inner, soft = p["halo_inner"], 0.28 * p["halo_width"]
    r2 = _distance2(u, v, p["halo_u"], p["halo_v"])
    ring = _blurred_disc(r2, inner + p["halo_width"], soft) - _blurred_disc(r2, inner, soft)
    tint = (
        torch.tensor(TINTS).to(x.device, non_blocking=True)[p["halo_tint"].long().clamp(0, 2)] / 255
    )
    halo = (s * means.mean(1))[:, None] * tint  # (N, 3)
    # the hole only darkens images that are bright enough: a ramp around cofe-Net's threshold (mean > 0.25), because a
    # step would make the same eye at two sizes differ
    mean = (
        (colours @ means[..., None])[..., 0] + offset[:, None] + halo * ring.mean(dim=(2, 3))
    ).mean(1)
    depth = s * (0.26 + 0.055 * mean) * ((mean - 0.2) / 0.1).clamp(0, 1)
    hole_soft = (
        0.15 * p["hole_soft"] * 2 * p["hole_radius"]
    )  # a Gaussian kernel of k pixels has sigma 0.15 k (OpenCV)
    hole = _blurred_disc(_distance2(u, v, p["hole_u"], p["hole_v"]), p["hole_radius"], hole_soft)
    # (N, 3, 5) x (N, 5, H W): the image and both fields at once
    mixing = torch.cat([colours, halo[..., None], -depth[:, None, None].expand(-1, 3, 1)], -1)
    y = torch.baddbmm(offset[:, None, None], mixing, torch.cat([x, ring, hole], 1).flatten(2))
    return y.view_as(x)


def _spots(p, s, u, v):
    """Sum of the bright spots, (N, 1, H, W). A spot of radius r is a disc blurred with sigma >= r, as good as the
    Gaussian of the disc's mass and variance (sigma^2 + r^2 / 4), which is separable: one product (H, K) x (K, W)."""
    r = 512 * p["spot_radius"] / 25  # cofe-Net's radii go up to 25 pixels at 512
    alpha = (14 / 25 + 1 - r) * (1 - torch.exp(-(0.5 + r) * 0.3 * r))
    # cofe-Net's sigma is twice this but its kernels are cut; half of it gives the PSNR measured on its spots (39 dB)
    sigma2 = ((5 + 20 * r) / 512) ** 2 + p["spot_radius"] ** 2 / 4
    alpha = alpha * p["spot_radius"] ** 2 / (2 * sigma2)  # height of a Gaussian of mass pi r^2
    used = torch.arange(SPOTS, device=r.device) < p["spot_count"].floor()[:, None]
    alpha = alpha * used * s[:, None]
    column, row = (
        torch.exp(
            -((axis[:, None] - p[name][:, None]) ** 2) / (2 * sigma2[:, None])
        )  # (N, W or H, K)
        for axis, name in ((u, "spot_u"), (v, "spot_v"))
    )
    return ((row * alpha[:, None]) @ column.mT)[:, None]


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of x (N, C, H, W) with one sigma (N,) per image, in image widths; sigma 0 changes nothing.

    Rows of weights sum to one, so nothing from beyond the border comes in. Two banded matrices per image, K_v x K_u^T:
    at these sizes faster than grouped convolutions with kernels of 90 pixels. Memory besides the result: N H^2 + N W^2.
    """
    sigma = (sigma * x.shape[-1]).clamp_min(1e-3)[
        :, None
    ]  # pixels; at 1e-3 the matrix is exactly the identity
    height, width = x.shape[-2:]
    K_u = _gaussians(width, sigma)
    K_v = K_u if height == width else _gaussians(height, sigma)
    if (
        x.device.type == "cpu" and not torch.compiler.is_compiling()
    ):  # elsewhere reading sigma would wait for the device
        reach = (REACH * sigma[:, 0]).ceil().int().tolist()
        return (
            torch.stack([_banded(*each) for each in zip(x, K_v, K_u, reach)])
            if reach
            else x.clone()
        )
    return K_v[:, None] @ (x @ K_u[:, None].mT)


def _gaussians(length, sigma):
    """Matrices (N, length, length) of Gaussian weights, rows summing to one; sigma (N, 1) in pixels."""
    away = torch.arange(1 - length, length, device=sigma.device, dtype=sigma.dtype)
    k = torch.exp(-((away / sigma) ** 2) / 2)
    k = torch.where(k > 1e-8, k, 0)  # denormal numbers would make the products several times slower
    K = k.unfold(-1, length, 1).flip(
        -2
    )  # unfolded, row i holds k from i - (length - 1) on: the last row comes first
    return K / K.sum(-1, keepdim=True)


def _banded(x, K_v, K_u, reach):
    """K_v x K_u^T of one image (C, H, W), without the products with zeros further than `reach` from the diagonal."""

    def parts(length):  # rows of K and the columns that they need
        return [
            (slice(i, i + BLOCK), slice(max(0, i - reach), i + BLOCK + reach))
            for i in range(0, length, BLOCK)
        ]

    x = torch.cat([x[..., near] @ K_u[some, near].mT for some, near in parts(x.shape[-1])], -1)
    return torch.cat([K_v[some, near] @ x[..., near, :] for some, near in parts(x.shape[-2])], -2)


def to_table(params: Params) -> pd.DataFrame:
    """One row per image, one column per number; written as CSV and read back, `from_table` gives the same bits."""
    columns = {}
    for name, value in params.items():
        value = value.detach().cpu().double()  # float64 holds every float32 exactly
        columns |= (
            {name: value}
            if value.ndim == 1
            else {f"{name}_{k}": value[:, k] for k in range(value.shape[1])}
        )
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})


def from_table(table: pd.DataFrame) -> Params:
    """Parameters (on the CPU) from `to_table`'s columns; other columns are ignored. InputError if one is missing.

    A table with columns of `haze` gives parameters of `haze`.
    """
    if "haze_depth" in table:
        sizes = {"severity": 1, "families": 3} | {name: k for name, (k, _, _) in HAZE.items()}
    else:
        drawn = {name: k for name, (k, _, _) in RANGES.items()}
        sizes = {"severity": 1, "families": 3} | drawn | {"centre": 2, "radius": 1}
    params = {}
    for name, k in sizes.items():
        columns = [name] if k == 1 else [f"{name}_{i}" for i in range(k)]
        missing = [column for column in columns if column not in table]
        if missing:
            raise InputError(
                f"degradation table: no column {missing[0]}; write the table with rr.degrade.to_table"
            )
        values = torch.from_numpy(table[columns].to_numpy(dtype="float32", copy=True))
        params[name] = values[:, 0].contiguous() if k == 1 else values
    return params


def readable(x: Tensor, y: Tensor, region: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether a region of x can still be read in y: (N,) bool, and the two numbers behind it, each (N,).

    h = green channel minus its Gaussian blur (sigma 2 % of the width), the detail. Inside `region` (N, 1, H, W)

        gain g = <h_x, h_y> / <h_x, h_x>          how much of the detail's contrast is left
        fidelity rho = <h_x, h_y> / (|h_x| |h_y|)  how much of what is seen is that detail

    and the region is readable iff g >= G_MIN and rho >= RHO_MIN. The blur is normalised to the region, so that the step
    at the rim of the field of view is no detail. An empty region is not readable; its numbers are NaN.
    """
    width, part = region.shape[-1], _around(region)
    x, y, region = x[..., *part], y[..., *part], region[..., *part].to(x.dtype)
    inside = torch.cat([x[:, 1:2], y[:, 1:2], torch.ones_like(region)], dim=1) * region
    means = blur(
        inside, torch.full((len(x),), DETAIL_SIGMA * width / x.shape[-1], device=x.device)
    )  # of the crop's width
    h = inside[:, :2] - region * means[:, :2] / means[:, 2:].clamp_min(1e-6)
    h_x, h_y = h.flatten(2).double().unbind(1)
    xx, xy, yy = (h_x * h_x).sum(1), (h_x * h_y).sum(1), (h_y * h_y).sum(1)
    gain = xy / xx
    fidelity = xy / (xx * yy).sqrt()
    return (gain >= G_MIN) & (fidelity >= RHO_MIN), {"gain": gain, "fidelity": fidelity}


def _around(region):
    """(slice of rows, slice of columns) round the pixels of masks (N, 1, H, W): beyond, `readable` has nothing to weigh."""
    ends = []
    for dim in (3, 2):
        used = region.any(dim=(0, 1, dim)).nonzero()
        ends.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1))
    return ends


def _severity(given, drawn):
    """Severities (N,): those given, else those drawn (N,)."""
    s = (
        drawn
        if given is None
        else torch.as_tensor(given, dtype=torch.float32).cpu().expand(len(drawn))
    )
    if not bool(((s >= 0) & (s <= 1)).all()):
        raise InputError(f"severity from {s.min():.3g} to {s.max():.3g}: give values from 0 to 1")
    return s.clone()


def _matching(p, x):
    """The parameters, if there is a row per image of x on its device."""
    if len(p["severity"]) != len(x) or p["severity"].device != x.device:
        given = f"{len(p['severity'])} parameters on {p['severity'].device}"
        raise InputError(
            f"degradation: {len(x)} images on {x.device} but {given}; give a row per image, on its device"
        )
    return p


def _grid(x):
    """Coordinates u (W,) and v (H,) of the pixels of x."""
    height, width = x.shape[-2:]
    return (torch.arange(width, device=x.device) + 0.5) / width, (
        torch.arange(height, device=x.device) + 0.5
    ) / width


def _image(value):
    """(N,) => (N, 1, 1, 1)."""
    return value[:, None, None, None]


def _distance2(u, v, centre_u, centre_v):
    """Squared distance of every pixel to a centre (N,) per image, (N, 1, H, W)."""
    return ((v - centre_v[:, None]) ** 2)[:, None, :, None] + ((u - centre_u[:, None]) ** 2)[
        :, None, None, :
    ]


def _blurred_disc(r2, radius, sigma):
    """A disc of height 1 after a Gaussian blur, at squared distances r2 (N, 1, H, W) from its centre.

    Exactly P(|r + sigma z| <= radius) with z normal in the plane; that length has a Rice distribution, nearly normal
    with mean sqrt(r^2 + sigma^2) and standard deviation sigma. Within 0.005 of the blurred disc where radius > 4 sigma.
    """
    sigma = _image(sigma)
    return 0.5 * torch.erfc(((r2 + sigma**2).sqrt() - _image(radius)) / (math.sqrt(2) * sigma))

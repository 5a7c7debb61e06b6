"""The degradation y = A(x): illumination, spots and blur, from severity 0 to 1.

`sample` draws the parameters of A, and `apply` is A itself. The parameters can be written to a CSV
and read back bit by bit.

The three families and their ranges are those of cofe-Net (Shen et al. 2020, arXiv 2005.05594), with
these differences. Every length is a fraction of the image width, so that 64 and 512 pixels show the
same degradation. The blur is a true Gaussian of the nominal sigma (5 to 15 pixels at 512), which
the published code cuts to kernels of 7 pixels. The large smooth shapes (halo, hole, spots) are
closed forms instead of discs that are blurred with large kernels. The centre and the width of the
halo, the ramp above which a hole is drawn, and the narrower edge of the spots are our choices. They
were made so that PSNR and SSIM of degraded photographs equal published ones.

Coordinates: u to the right, v downwards, both in image widths. The pixel in row i and column j lies
at ((j, i) + 1/2) / W.
"""

import pandas as pd
import torch
from torch import Tensor

from rr.data.shapes import blurred_disc, distance2, grid, per_image
from rr.errors import InputError, choose
from rr.models.deconvolution import blur

Params = dict[str, Tensor]  # name => (N,) or (N, K), float32, all on one device

FAMILIES = ("illumination", "spots", "blur")
SPOTS = 10  # columns of the spots' parameters; 5 to 10 spots are used

# fmt: off
RANGES = {  # parameter: (how many, uniform from, to) at severity 1
    "brightness": (1, 0.7, 1.2),            # a factor
    "contrast": (1, 0.6, 1.4),              # a factor
    "saturation": (1, 0.6, 1.4),            # a factor
    "halo_u": (1, 0.375, 0.625),            # bright tinted ring; its centre is our choice
    "halo_v": (1, 0.375, 0.625),
    "halo_inner": (1, 0.375, 0.5),          # inner radius: the diameter is 0.75 to 1
    "halo_width": (1, 0.05, 0.25),          # outer minus inner radius; the range is our choice
    "halo_tint": (1, 0, 3),                 # the integer part is a row of TINTS
    "hole_u": (1, 1 / 4, 3 / 4),            # dark disc
    "hole_v": (1, 3 / 8, 5 / 8),
    "hole_radius": (1, 0.2, 0.35),
    "hole_soft": (1, 0.55, 0.75),           # blur kernel over diameter
    "spot_count": (1, 5, 11),               # the integer part
    "spot_u": (SPOTS, 0, 1),
    "spot_v": (SPOTS, 0, 1),
    "spot_radius": (SPOTS, 0.01, 0.05),
    "blur_sigma": (1, 5 / 512, 15 / 512),
}
# fmt: on
MILD_BLUR = (1.5 / 512, 4 / 512)  # sigma of a real photograph that is slightly out of focus
TINTS = ((251, 249, 246), (141, 238, 238), (177, 195, 147))  # of 255: white, cyan, olive
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, for contrast and saturation


def sample(n, generator, families=FAMILIES, severity=None, centre=None, radius=None) -> Params:
    """Draw the parameters of A for n images from RANGES, with a generator on the CPU.

    families: names, or (N, 3) of 0/1 to choose per image. severity: (N,) or one number in [0, 1];
    None draws it from U(0, 1). centre (N, 2) and radius (N,) aim the degradation at a region: it
    has its full effect inside the radius and none beyond 1.5 radii, and its hole and spots are
    drawn there. The parameters of image i do not depend on n. Raises InputError for an unknown
    family, a severity outside [0, 1], or a centre without a radius.
    """
    if not isinstance(families, Tensor):
        for name in families:
            choose("degradation", name, FAMILIES)
        families = torch.tensor([[float(name in families) for name in FAMILIES]]).expand(n, 3)
    if (centre is None) != (radius is None):
        raise InputError("aimed degradation: give both centre and radius")
    params = draw(RANGES, n, generator, severity)
    params["families"] = families.float().cpu().clone()
    if centre is None:
        return params
    params["centre"], params["radius"] = centre.float().cpu().clone(), radius.float().cpu().clone()
    for axis, name in enumerate("uv"):
        params[f"hole_{name}"] = params["centre"][:, axis].clone()
        offset = params["radius"][:, None] * (2 * params[f"spot_{name}"] - 1)
        params[f"spot_{name}"] = params["centre"][:, axis, None] + offset
    return params


def draw(ranges, n, generator, severity=None) -> Params:
    """Uniform parameters from `ranges`, and the severity: one row of random numbers per image."""
    sizes = [k for k, _, _ in ranges.values()]
    numbers = torch.rand(n, 1 + sum(sizes), generator=generator)
    spans = [(low, high - low) for k, low, high in ranges.values() for _ in range(k)]
    low, span = torch.tensor(spans).T
    columns = (low + span * numbers[:, 1:]).split(sizes, dim=1)
    params = {"severity": _severity(severity, numbers[:, 0])}
    for name, values in zip(ranges, columns):
        params[name] = values if values.shape[1] > 1 else values[:, 0]
    return params


def _severity(given, drawn):
    s = drawn if given is None else torch.as_tensor(given, dtype=torch.float32).cpu()
    if not bool(((s >= 0) & (s <= 1)).all()):
        raise InputError(f"severity from {s.min():.3g} to {s.max():.3g}: give values from 0 to 1")
    return s.expand(len(drawn)).clone()


def mild_blur(params: Params, generator) -> Params:
    """The same parameters with blur_sigma drawn again from MILD_BLUR.

    With the sigmas of RANGES the vessels are already gone. A restorer of photographs must also know
    a blur that leaves something.
    """
    low, high = MILD_BLUR
    sigma = low + (high - low) * torch.rand(len(params["blur_sigma"]), generator=generator)
    return params | {"blur_sigma": sigma.to(params["blur_sigma"].device)}


def blur_width(params: Params) -> Tensor:
    """The sigma (N,) of the blur in A, in image widths; 0 where blur is not among the families."""
    return params["severity"] * params["families"][:, 2] * params["blur_sigma"]


def apply(x: Tensor, params: Params, fov: Tensor | None = None) -> Tensor:
    """y = A(x) in [0, 1]: x + w (blur(spots(illumination(x))) - x), where w is the aim, or 1.

    x (N, 3, H, W) in [0, 1], with `params` on its device. The severity s scales every family:
    factors are 1 + s (f - 1), additive shapes and the blur's sigma are multiplied by s. s = 0
    returns x itself, bit by bit. fov (N, 1, H, W): what is outside becomes black at every severity.
    A is differentiable in x. Raises InputError if the numbers of images or the devices differ.
    """
    check(params, x)
    u, v = grid(x)
    amount = params["severity"][:, None] * params["families"]  # N, 3: illumination, spots, blur
    with torch.autocast(x.device.type, enabled=False):
        y = _illuminate(x.float(), params, amount[:, 0], u, v)
        y = (y + _spots(params, amount[:, 1], u, v)).clamp(0, 1)
        y = blur(y, blur_width(params)).clamp(0, 1)
    w = per_image((amount.amax(dim=1) > 0).float())
    if "centre" in params:
        r = distance2(u, v, *params["centre"].unbind(1)).sqrt()
        aim = (3 - 2 * r / per_image(params["radius"])).clamp(0, 1)  # 1 inside, 0 beyond 1.5 radii
        w = w * aim * aim * (3 - 2 * aim)  # smoothstep
    y = torch.lerp(x, y, w)  # exactly x where the weight is 0
    return y if fov is None else y * fov


def _illuminate(x, p, s, u, v):
    """Brightness, contrast and saturation, then a halo is added and a hole is subtracted."""
    factors = (1 + s * (p[name] - 1) for name in ("brightness", "contrast", "saturation"))
    brightness, contrast, saturation = map(per_image, factors)
    weights = torch.tensor(LUMA).to(x.device, non_blocking=True).view(1, 3, 1, 1)
    y = brightness * x
    mean_luma = (weights * y).sum(1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    y = contrast * y + (1 - contrast) * mean_luma
    y = saturation * y + (1 - saturation) * (weights * y).sum(1, keepdim=True)

    # cofe-Net blurs the ring with sigma 2/3 of its width and cuts the kernel at +-1/2 of it. This
    # is nearly a box filter with standard deviation 0.28.
    inner, soft = p["halo_inner"], 0.28 * p["halo_width"]
    r2 = distance2(u, v, p["halo_u"], p["halo_v"])
    ring = blurred_disc(r2, inner + p["halo_width"], soft) - blurred_disc(r2, inner, soft)
    tints = torch.tensor(TINTS).to(x.device, non_blocking=True)[p["halo_tint"].long().clamp(0, 2)]
    brightness_of_x = s[:, None] * x.mean(dim=(1, 2, 3))[:, None]
    y = y + (brightness_of_x * tints / 255)[..., None, None] * ring

    # The hole only darkens images that are bright enough. cofe-Net uses a step at a mean of 0.25.
    # We use a ramp, because a step would make the same eye at two sizes differ.
    mean = y.mean(dim=(1, 2, 3))
    depth = s * (0.26 + 0.055 * mean) * ((mean - 0.2) / 0.1).clamp(0, 1)
    sigma = 0.15 * p["hole_soft"] * 2 * p["hole_radius"]  # OpenCV: k pixels have sigma 0.15 k
    r2 = distance2(u, v, p["hole_u"], p["hole_v"])
    return y - per_image(depth) * blurred_disc(r2, p["hole_radius"], sigma)


def _spots(p, s, u, v):
    """The sum of the bright spots, (N, 1, H, W).

    A spot of radius r is a disc that is blurred with sigma >= r. The Gaussian of the disc's mass
    and variance (sigma^2 + r^2 / 4) is nearly equal and separable: one product (H, K) x (K, W).
    """
    r = 512 * p["spot_radius"] / 25  # cofe-Net's radii go up to 25 pixels at 512
    alpha = (14 / 25 + 1 - r) * (1 - torch.exp(-(0.5 + r) * 0.3 * r))
    # cofe-Net's sigma is twice this, but its kernels are cut. Half of it gives the PSNR of its
    # spots (39 dB).
    sigma2 = ((5 + 20 * r) / 512) ** 2 + p["spot_radius"] ** 2 / 4
    alpha = alpha * p["spot_radius"] ** 2 / (2 * sigma2)  # height of a Gaussian of mass pi r^2
    used = torch.arange(SPOTS, device=r.device) < p["spot_count"].floor()[:, None]
    alpha = alpha * used * s[:, None]
    column, row = (  # N, W or H, K
        torch.exp(-((axis[:, None] - p[name][:, None]) ** 2) / (2 * sigma2[:, None]))
        for axis, name in ((u, "spot_u"), (v, "spot_v"))
    )
    return ((row * alpha[:, None]) @ column.mT)[:, None]


def check(params, x):
    """Raise InputError unless there is one row of parameters per image of x, on its device."""
    n, device = len(params["severity"]), params["severity"].device
    if n != len(x) or device != x.device:
        raise InputError(
            f"degradation: {len(x)} images on {x.device}, but {n} parameters on {device}; give one "
            "row per image, on its device"
        )


def to_table(params: Params) -> pd.DataFrame:
    """One row per image and one column per number, which `from_table` reads back bit by bit."""
    columns = {}
    for name, value in params.items():
        value = value.detach().cpu().double().numpy()  # float64 holds every float32 exactly
        parts = {name: value}
        if value.ndim > 1:
            parts = {f"{name}_{k}": value[:, k] for k in range(value.shape[1])}
        columns |= parts
    return pd.DataFrame(columns)


def from_table(table: pd.DataFrame) -> Params:
    """Parameters (on the CPU) from the columns of `to_table`. Other columns are ignored.

    Raises InputError if a column is missing.
    """
    sizes = {"severity": 1, "families": 3} | {name: k for name, (k, _, _) in RANGES.items()}
    if "radius" in table:  # of an aimed degradation
        sizes |= {"centre": 2, "radius": 1}
    params = {}
    for name, k in sizes.items():
        columns = [name] if k == 1 else [f"{name}_{i}" for i in range(k)]
        missing = [column for column in columns if column not in table]
        if missing:
            raise InputError(
                f"degradation table: column {missing[0]} is missing; write the table with "
                "rr.data.degrade.to_table"
            )
        values = torch.from_numpy(table[columns].to_numpy(dtype="float32", copy=True))
        params[name] = values[:, 0].contiguous() if k == 1 else values
    return params

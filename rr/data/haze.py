"""A cataract-like haze: a fourth kind of degradation, for evaluation only. No training draws it."""

import torch
from torch import Tensor

from rr.data.degrade import Params, check, draw
from rr.data.shapes import distance2, grid, per_image
from rr.models.deconvolution import blur

# fmt: off
RANGES = {  # as in rr.data.degrade; depth 1 lets 37 % of the light through
    "haze_u": (1, 0.3, 0.7),                # where the lens is clearest
    "haze_v": (1, 0.3, 0.7),
    "haze_depth": (1, 0.2, 0.6),            # the optical depth there
    "haze_more": (1, 0.3, 1.2),             # the additional depth far from there
    "haze_reach": (1, 0.15, 0.35),          # standard deviation of the clear part
    "haze_level": (1, 0.45, 0.8),           # the brightest channel of the veil
    "haze_white": (1, 0.3, 0.8),            # 0: a veil of the colour of the fundus, 1: white
    "blur_sigma": (1, 1.5 / 512, 6 / 512),
}
# fmt: on


def sample(n, generator, severity=None) -> Params:
    """Draw the parameters of `apply` for n images from RANGES, as rr.data.degrade.sample does.

    `families` says that a hazy image contains a blur, for methods that are told the blur.
    """
    params = draw(RANGES, n, generator, severity)
    return params | {"families": torch.tensor([[0.0, 0.0, 1.0]]).repeat(n, 1)}


def apply(x: Tensor, params: Params, fov: Tensor | None = None) -> Tensor:
    """y = t J + (1 - t) L in [0, 1]: J is the blurred image, t the transmission, L the veil.

    The clouded lens scatters light. Lost light follows the law of Beer and Lambert, t = exp(-s
    depth), where the depth grows smoothly away from the clearest place. It comes back as an even
    veil L whose colour lies between that of the fundus and white. Scattering by small angles blurs
    the image. The form is that of Peli and Peli (1989), also used by Luo et al. (2020, IEEE JBHI)
    and Li et al. (2022, ArcNet, IEEE TMI). The ranges are our choice. Everything else is as in
    rr.data.degrade.apply.
    """
    check(params, x)
    p, s = params, params["severity"]
    u, v = grid(x)
    with torch.autocast(x.device.type, enabled=False):
        J = blur(x.float(), s * p["blur_sigma"])
        r2 = distance2(u, v, p["haze_u"], p["haze_v"])
        away = 1 - torch.exp(-r2 / (2 * per_image(p["haze_reach"]) ** 2))
        depth = per_image(p["haze_depth"]) + per_image(p["haze_more"]) * away
        t = torch.exp(-per_image(s) * depth)
        own = x.float().mean(dim=(2, 3), keepdim=True)
        own = own / own.amax(dim=1, keepdim=True).clamp_min(1e-6)  # the brightest channel is 1
        white = torch.ones_like(own)
        L = per_image(p["haze_level"]) * torch.lerp(own, white, per_image(p["haze_white"]))
        y = torch.where(per_image(s) > 0, (t * J + (1 - t) * L).clamp(0, 1), x)
    return y if fov is None else y * fov

"""Feature fusion (2.4, second equation, and 3.2): x_t^conditioned = c + x_t, four ways to make c fit x_t.

c has 256 channels and a 1/32 resolution, x_t has 3 channels and full resolution. A 1x1 convolution brings 256 to 3
channels; the resolution is met by repeating features (`upsample`: nearest neighbour) or by `bilinear` interpolation;
the sum is `static` (both weights are 1) or `dynamic` (one learned weight per channel for either term).

Two more, which the paper's Discussion asks for: `film`, where the step t scales and shifts the condition (Perez et al. 2018),
(1 + gamma(t)) c + delta(t) + x_t; and `concat`, where the degraded image y stands beside c + x_t as three more channels
(SR3, Saharia et al. 2021; Palette 2022).
"""

import torch
import torch.nn.functional as F
from torch import nn

from rr.errors import choose
from rr.models.vae import TimeEmbedding

FUSIONS = {
    "upsample-static": {"mode": "nearest", "learned": False},
    "upsample-dynamic": {"mode": "nearest", "learned": True},
    "bilinear-static": {"mode": "bilinear", "learned": False},
    "bilinear-dynamic": {"mode": "bilinear", "learned": True},
    "film": {"mode": "bilinear", "learned": False, "film": True},
    "concat": {"mode": "bilinear", "learned": False, "beside": True},
}


class Fusion(nn.Module):
    """(x_t, c) => x_t^conditioned (N, channels, H, W), to be fed to the backbone; channels: 3, or 6 with y beside it.

    The state x_t of the diffusion itself is not touched.
    """

    def __init__(self, name="bilinear-static", channels=256):
        super().__init__()
        kind = choose("fusion", name, FUSIONS)
        self.mode, self.beside = kind["mode"], kind.get("beside", False)
        self.channels = 6 if self.beside else 3
        self.project = nn.Conv2d(channels, 3, 1)
        nn.init.normal_(
            self.project.weight, std=0.1 / channels**0.5
        )  # starts small beside x_t in [0, 1]
        nn.init.zeros_(self.project.bias)
        self.register_parameter(
            "w_x", nn.Parameter(torch.ones(1, 3, 1, 1)) if kind["learned"] else None
        )
        self.register_parameter(
            "w_c", nn.Parameter(torch.ones(1, 3, 1, 1)) if kind["learned"] else None
        )
        self.film = None
        if kind.get("film"):
            self.film = nn.Sequential(TimeEmbedding(64), nn.Linear(64, 6))
            nn.init.zeros_(self.film[1].weight)  # gamma = delta = 0 at the start: the static sum
            nn.init.zeros_(self.film[1].bias)

    def condition(self, c, size):
        """c (256, h, w) for all images or (N, 256, h, w) => the added term (1 or N, 3, H, W); size = (H, W)."""
        c = self.project(c if c.dim() == 4 else c[None])
        return F.interpolate(
            c, size, mode=self.mode, align_corners=False if self.mode == "bilinear" else None
        )

    def forward(self, x_t, c, t=None, y=None):
        """x_t (N, 3, H, W), c as in `condition`; t (N,) for "film", y (N, 3, H, W) for "concat"."""
        c = self.condition(c, x_t.shape[-2:])
        if self.film is not None:
            gamma, delta = self.film(t)[:, :, None, None].chunk(2, 1)  # N, 3, 1, 1
            c = (1 + gamma) * c + delta
        fused = x_t + c if self.w_x is None else self.w_x * x_t + self.w_c * c
        return torch.cat([fused, y], 1) if self.beside else fused

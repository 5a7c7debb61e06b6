"""Feature fusion (2.4, second equation, and 3.2): x_t^conditioned = c + x_t.

c has 256 channels at 1/32 of the resolution, x_t has 3 channels at full resolution. A 1x1
convolution maps 256 to 3 channels. Repetition (`upsample`: nearest neighbour) or `bilinear`
interpolation gives c the resolution of x_t. The sum is `static` (both weights are 1) or `dynamic`
(one learned weight per channel and term).

Two more fusions answer the paper's Discussion. In `film` the step t scales and shifts the condition
(Perez et al. 2018): (1 + gamma(t)) c + delta(t) + x_t. In `concat` the degraded image y is
concatenated to c + x_t as three more channels (SR3, Saharia et al. 2021; Palette 2022).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rr.errors import choose
from rr.models.layers import TimeEmbedding


class Kind(NamedTuple):
    """One row of FUSIONS."""

    mode: str  # of the interpolation
    learned: bool = False  # weights of the sum
    film: bool = False  # t scales and shifts c
    concat: bool = False  # y is concatenated


FUSIONS = {
    "upsample-static": Kind("nearest"),
    "upsample-dynamic": Kind("nearest", learned=True),
    "bilinear-static": Kind("bilinear"),
    "bilinear-dynamic": Kind("bilinear", learned=True),
    "film": Kind("bilinear", film=True),
    "concat": Kind("bilinear", concat=True),
}


class Fusion(nn.Module):
    """(x_t, c) => x_t^conditioned (N, channels, H, W), the input of the backbone.

    channels is 3, or 6 if y is concatenated. The state x_t of the diffusion itself is not changed.
    """

    def __init__(self, name="bilinear-static", channels=256):
        super().__init__()
        self.kind = choose("fusion", name, FUSIONS)
        self.channels = 6 if self.kind.concat else 3
        # c starts small, and it grows slowly: all channels of this constant input change together,
        # so a step of AdamW would otherwise move it by the whole range of an image.
        self.scale = 0.1 / channels**0.5
        self.project = nn.Conv2d(channels, 3, 1)
        nn.init.normal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        if self.kind.learned:
            self.w_x = nn.Parameter(torch.ones(1, 3, 1, 1))
            self.w_c = nn.Parameter(torch.ones(1, 3, 1, 1))
        if self.kind.film:
            self.film = nn.Sequential(TimeEmbedding(64), nn.Linear(64, 6))
            nn.init.zeros_(self.film[1].weight)  # gamma = delta = 0 at the start
            nn.init.zeros_(self.film[1].bias)

    def condition(self, c, size):
        """c (256, h, w) or (N, 256, h, w) => the added term (1 or N, 3, H, W); size = (H, W)."""
        c = self.scale * self.project(c if c.dim() == 4 else c[None])
        return F.interpolate(c, size, mode=self.kind.mode)

    def forward(self, x_t, c, t=None, y=None):
        """x_t (N, 3, H, W), c as in `condition`; t (N,) for "film", y (N, 3, H, W) for "concat"."""
        c = self.condition(c, x_t.shape[-2:])
        if self.kind.film:
            gamma, delta = self.film(t)[:, :, None, None].chunk(2, 1)  # N, 3, 1, 1
            c = (1 + gamma) * c + delta
        fused = self.w_x * x_t + self.w_c * c if self.kind.learned else x_t + c
        return torch.cat([fused, y], 1) if self.kind.concat else fused

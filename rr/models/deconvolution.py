"""Estimate of a Gaussian blur, and its deconvolution inside a field of view.

The blur of a photograph mixes its surround into the rim of the eye. `estimate_surround` and
`remove_surround` undo this. `inpaint_outside` continues the image beyond the field of view, so that
no jump rings through the whole image. `wiener` sharpens the result. `BlurEstimate` is a small
network that estimates the width of the blur.

Images are (N, C, H, W) and fields of view (N, 1, H, W), bool. Lengths are fractions of the width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

NOISE_TO_SIGNAL = 1e-2  # K of Wiener's filter: frequencies with H below 10 % are damped
RIM = 0.99  # where the blurred field of view exceeds this, the surround has no visible effect
FILL_SIGMA = 1 / 64  # of the finest low-pass of `inpaint_outside`
FINE = 256  # px: the side of the images whose blur is estimated
SIGMAS = (0.6, 1.0, 1.6, 2.6, 4.2, 7.0)  # px of FINE: the scales at which detail is measured
SHARP = 0.5 / 512  # a smaller estimate counts as no blur


def blur(x, sigma):
    """Gaussian blur of x (N, C, H, W) with sigma (N,), or (1,) for all images, in image widths.

    Sigma 0 returns x.

    The weights of a row sum to one, so that nothing from beyond the border comes in: K_v x K_u^T.
    """
    height, width = x.shape[-2:]
    sigma = (sigma * width).clamp_min(1e-3)  # pixels; at 1e-3 the matrix is the identity
    position = torch.arange(max(height, width), device=sigma.device)
    d2 = (position / sigma[:, None]) ** 2
    k = torch.where(d2 < 36, torch.exp(-d2.clamp(max=36) / 2), 0)  # denormal numbers are slow
    k = k[:, None, (position - position[:, None]).abs()]
    K_v, K_u = (k[..., :n, :n] / k[..., :n, :n].sum(-1, keepdim=True) for n in (height, width))
    return K_v @ x @ K_u.mT


def low_pass(x, fov, sigma):
    """Gaussian low-pass of the field of view alone, blur(x fov) / blur(fov); sigma is a number.

    The black surround has no effect. The result reaches beyond fov as far as the Gaussian does.
    """
    inside, sigma = fov.to(x), torch.full((1,), sigma, device=x.device)
    return blur(x * inside, sigma) / blur(inside, sigma).clamp_min(1e-6)


def inpaint_outside(y, inside):
    """y, continued smoothly outside the mask `inside` by the finest low-pass that reaches there."""
    sigma, z, missing = FILL_SIGMA, y * inside, ~inside
    while missing.any() and sigma <= 1:
        cover = blur(inside.to(y), torch.full((1,), sigma, device=y.device))
        reached = missing & (cover > 0.05)
        z = torch.where(reached, low_pass(y, inside, sigma), z)
        missing, sigma = missing & ~reached, 2 * sigma
    return z


def estimate_surround(y, fov, sigma):
    """The level a (N, C, 1, 1) of the surround in y = B z + (1 - B) a, with B = blur(fov).

    Where B is nearly 1, y equals z. z is continued from there, and a follows by least squares.
    """
    B, a = blur(fov.to(y), sigma).clamp_min(0.01), 0
    rim = (1 - B) * fov
    for _ in range(2):  # the second pass removes the little of a that is in y where B is nearly 1
        z = inpaint_outside((y - (1 - B) * a) / B, fov & (B > RIM))
        excess = (rim * (y - B * z)).sum((2, 3), keepdim=True)
        a = (excess / (rim**2).sum((2, 3), keepdim=True).clamp_min(1e-9)).clamp(0, 1)
    return a


def remove_surround(y, fov, sigma, a):
    """z = (y - (1 - B) a) / B inside the field of view, see `estimate_surround`; y outside."""
    B = blur(fov.to(y), sigma).clamp_min(0.01)
    return torch.where(fov, (y - (1 - B) * a) / B, y)


def wiener(z, sigma):
    """Wiener's filter F^-1[ F[z] (1 + K) H / (H^2 + K) ] for a blur H(f) = exp(-2 (pi sigma f)^2).

    The factor 1 + K keeps constant areas and unblurred images (sigma 0) unchanged.
    """
    *_, height, width = z.shape
    margin = min(width // 4, height - 1)  # of the mirrored frame; no blur reaches further
    z = F.pad(z, (margin,) * 4, mode="reflect")
    fy = torch.fft.fftfreq(z.shape[-2], device=z.device)[:, None] * width  # cycles per width
    fx = torch.fft.rfftfreq(z.shape[-1], device=z.device) * width
    H = torch.exp(-2 * (torch.pi * sigma[:, None, None, None]) ** 2 * (fx**2 + fy**2))
    K = NOISE_TO_SIGNAL
    z = torch.fft.irfft2(torch.fft.rfft2(z) * (1 + K) * H / (H**2 + K), s=z.shape[-2:])
    return z[..., margin : margin + height, margin : margin + width]


class BlurEstimate(nn.Module):
    """x (N, 3, FINE, FINE) => sigma (N,) of its Gaussian blur; 0 if it is sharp."""

    def __init__(self):
        super().__init__()
        n = 2 * len(SIGMAS) + 1
        self.head = nn.Sequential(
            nn.BatchNorm1d(n, affine=False), nn.Linear(n, 64), nn.SiLU(),
            nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1),
        )  # fmt: skip
        nn.init.zeros_(self.head[-1].weight)  # untrained: sigma = 0
        nn.init.constant_(self.head[-1].bias, math.log(0.5))

    @torch.no_grad()
    def features(self, x, fov):
        """(N, 13): log detail and loss of light at each of SIGMAS, and the mean, of green.

        Detail is the mean square of x - blur(x) in the core, well inside the field of view. The
        loss of light is relative, at the rim, where a blur mixes in the black surround.
        """
        green, mask = x[:, 1:2], fov.to(x)
        scales = [x.new_full((1,), s / FINE) for s in SIGMAS]
        core = fov & (blur(mask, scales[-1]) > 0.9)
        rim, area = fov & ~core, core.sum((1, 2, 3)).clamp_min(1)
        features = []
        for sigma in scales:
            blurred, cover = blur(torch.cat([green * mask, mask], 1), sigma).split(1, 1)
            detail = (green - blurred / cover.clamp_min(1e-3)) * core
            loss = ((green - blurred) * rim).sum((1, 2, 3)) / ((green * rim).sum((1, 2, 3)) + 1e-6)
            features.append(((detail**2).sum((1, 2, 3)) / area + 1e-9).log())
            features.append(torch.where(rim.sum((1, 2, 3)) > 50, loss, 0))
        return torch.stack([*features, (green * core).sum((1, 2, 3)) / area], 1)

    def forward(self, x, fov):
        # the head is trained to predict log(512 sigma + 1/2), see train/corrector.py
        sigma = (self.head(self.features(x, fov))[:, 0].exp() - 0.5) / 512
        return torch.where(sigma > SHARP, sigma, 0)

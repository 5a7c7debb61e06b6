"""The recommended restorer: a bridge that corrects a photograph at its own resolution.

    x_hat = d + g (A d + b),   d = z + up(W_sigma z - z)

    z        x without the surround that the blur has mixed into its rim
    W_sigma  Wiener's deconvolution at 256 pixels, tapered towards the rim, of a Gaussian blur. A
             small network estimates sigma, one per image, from the amount of detail at several
             scales. For sigma = 0, W_sigma is the identity and z is x
    A, b     (3 x 3) and (3) at each place of a 32 x 32 grid, from a U-Net that sees 128 pixels:
             they mix and shift the colours, which undoes brightness, contrast, saturation, haloes,
             dark holes and spots
    g        in (0, 1), one per image, from the estimated quality; 0 leaves a good photograph alone

The networks predict smooth colour corrections and a blur width. The edges come from the photograph.
If the blur width is overestimated, the deconvolution rings. The bridge is that of rr.models.bridge;
its default of one step is plain regression.

Shapes: images are (N, 3, H, H) in [0, 1], fields of view (N, 1, H, H), bool. Sigma is a fraction of
the image width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rr.models import deconvolution
from rr.models.bridge import interpolate, sample
from rr.models.deconvolution import FINE, BlurEstimate, blur
from rr.models.diffusion import noise

SIZE, GRID = 128, 32  # px: input and output of the U-Net
ROWS = 256  # of a large photograph that are corrected at a time, to save memory
LEARN = 38  # dB: an image of a better estimated quality does not train the correction
# An image of 28 dB estimated quality is corrected by half, one of 32 dB or more not at all. This is
# far below LEARN because the estimate can be too low by that much for an unknown camera.
LEAVE = 28


class Decision(NamedTuple):
    """How N images are corrected."""

    affine: Tensor  # (N, 12, GRID, GRID): g A and g b
    sigma: Tensor  # (N,): estimated blur; 0: none
    surround: Tensor  # (N, 3, 1, 1): level of the surround that the blur mixed into the rim
    detail: Tensor  # (N, 3, FINE, FINE): what the deconvolution adds, W_sigma z - z
    gate: Tensor  # (N,): g
    quality: Tensor  # (N,): estimated PSNR of light and colour in dB; it does not include blur
    error: Tensor  # (N, 1, GRID, GRID): estimated absolute error of the result


class Restored(NamedTuple):
    """Restored images and the first decision about them."""

    image: Tensor  # (N, 3, H, H) in [0, 1], black outside the field of view
    quality: Tensor  # (N,), see Decision
    sigma: Tensor  # (N,), see Decision
    gate: Tensor  # (N,): share of the colour correction that was applied
    uncertainty: Tensor  # (N, 1, H, H): estimated absolute error of the image


class Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 path. The bridge's t is a bias between the two.

    layers.Residual is similar, but it has a second normalisation and a longer code of t. With it,
    the published weights (rr/recommended) would not load.
    """

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm = nn.GroupNorm(8, c_out)
        self.time = nn.Linear(1, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, t):
        h = F.silu(self.norm(self.conv1(x)) + self.time(t)[:, :, None, None])
        return F.silu(self.skip(x) + self.conv2(h))


class Corrector(nn.Module):
    """Degraded images of any size H => corrected images of the same size."""

    compile_targets = ()  # the modules that torch.compile compiles on a GPU

    def __init__(self, width=40):
        super().__init__()
        self.arguments = {"width": width}
        c = [width, 2 * width, 4 * width, 6 * width]
        channels = 3 * (SIZE // GRID) ** 2 + 3
        self.down = nn.ModuleList(Block(a, b) for a, b in zip([channels, *c], c))
        self.up = nn.ModuleList(Block(c[i] + c[i + 1], c[i]) for i in range(3))
        self.affine = nn.Conv2d(width, 12, 3, padding=1)  # A and b
        self.error = nn.Conv2d(width, 1, 3, padding=1)  # log of the absolute error
        self.quality = nn.Sequential(nn.Linear(c[3], 128), nn.SiLU(), nn.Linear(128, 1))
        self.blur = BlurEstimate()
        for layer in (self.affine, self.error, self.quality[-1]):  # untrained: the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def predict_affine(self, x, fov, t):
        """The U-Net: x (N, 3, SIZE, SIZE), t (N,) => affine, quality and error, see Decision."""
        scale, t = SIZE // GRID, t[:, None]
        axis = torch.linspace(-1, 1, GRID, device=x.device)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).expand(len(x), -1, -1, -1)
        pixels = 2 * F.pixel_unshuffle(x, scale) - 1  # N, 3 scale^2, GRID, GRID
        h = torch.cat([pixels, F.avg_pool2d(fov.to(x), scale), place], 1)
        skips = []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, t)  # N, c_i, GRID / 2^i
            skips.append(h)
        quality = 30 + 10 * self.quality(h.mean((2, 3)))[:, 0]
        for i in reversed(range(3)):
            h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
            h = self.up[i](torch.cat([skips[i], h], 1), t)
        return self.affine(h).float(), quality.float(), (self.error(h).float() - 3).exp()

    def loss(self, y, x, fov, generator):
        """The loss of pairs (y, x) of SIZE px: {"loss", "rmse", "quality", "error"}.

        x_hat is predicted from x_t, with t = 1 for 70 % of the images and a random t for the rest.
        "rmse": mean over images of the root mean squared error of x_hat; a mean of squares would
        let good images change a little for the sake of bad ones. "quality" (dB) and "error"
        (logarithm): mean absolute error of these estimates. The blur estimate is trained apart.
        """
        t = torch.rand(len(x), generator=generator).to(x.device)
        t = torch.where(t < 0.3, t / 0.3, 1.0)
        x_t = interpolate(x, y, t[:, None, None, None])
        affine, quality, error = self.predict_affine(x_t, fov, t)
        # images that are as good as the reference do not train the correction
        gate = ((LEARN - quality.detach()) / 2).sigmoid()
        x_hat = corrected(x_t, fov, gate[:, None, None, None] * affine)
        rmse = root_mean_square(x_hat - x).mean()
        quality_error = (quality + 20 * root_mean_square(x_t - x).log10()).abs().mean()
        true_error = F.avg_pool2d((x_hat - x).detach().abs().mean(1, keepdim=True), SIZE // GRID)
        error_error = (error.log() - (true_error + 1e-3).log()).abs().mean()
        loss = 10 * rmse + quality_error / 20 + error_error / 20
        return {"loss": loss, "rmse": rmse, "quality": quality_error, "error": error_error}

    def restore(self, y, fov, generator=None, steps=1, batch=8):
        """The restored images (N, 3, H, H), black outside the field of view.

        Without a generator the decision is the mean of eight, for y mirrored and turned. With a
        generator it is one decision, for a random orientation of y and a little noise, so that
        repeated calls differ as much as the decision is uncertain.
        """
        parts = zip(y.split(batch), fov.split(batch))
        return torch.cat([self.run(*part, generator, steps).image for part in parts])

    @torch.no_grad()
    def run(self, y, fov, generator=None, steps=1):
        """The same as `restore`, with the estimates: Restored."""
        decisions = []

        def predict(x_t, t):
            decision = self.decide(x_t, fov, t, generator)
            decisions.append(decision)
            d = x_t
            if (decision.sigma > 0).any():
                z = deconvolution.remove_surround(x_t, fov, decision.sigma, decision.surround)
                d = z + resized(decision.detail, y.shape[-2:]) * fov
            return corrected(d, fov, decision.affine)

        *_, (_, x, _) = sample(predict, y * fov, steps)
        first = decisions[0]
        uncertainty = resized(first.error, y.shape[-2:]).clamp_min(0) * fov
        return Restored(x * fov, first.quality, first.sigma, first.gate, uncertainty)

    def decide(self, x, fov, t, generator=None):
        """The Decision for images x (N, 3, H, H) at step t, a number."""
        sigma, surround, detail = self.decide_blur(x, fov)
        small, inside = resized(x, (SIZE, SIZE)), resized(fov.to(x), (SIZE, SIZE)) > 0.5
        orientations = range(8)
        if generator is not None:
            orientations = torch.randint(8, (1,), generator=generator).tolist()
            small = small + 0.01 * noise(small, generator)
        time = x.new_full((len(x),), float(t))
        affines, qualities, errors = [], [], []
        for k in orientations:
            x_k, fov_k = turned(small, k).contiguous(), turned(inside, k).contiguous()
            affine, quality, error = self.predict_affine(x_k, fov_k, time)
            affines.append(turned_back(affine, k))
            qualities.append(quality)
            errors.append(turned_back(error, k))
        affine, quality, error = (torch.stack(p).mean(0) for p in (affines, qualities, errors))
        gate = (LEAVE - quality).sigmoid()
        gate = torch.where(gate < 0.02, 0, gate)
        affine = gate[:, None, None, None] * affine
        return Decision(affine, sigma, surround, detail, gate, quality, error)

    def decide_blur(self, x, fov):
        """sigma, surround and detail of images x (N, 3, H, H), see Decision.

        The pixels of an image that is smaller than FINE look like a blur: then sigma is 0.
        """
        fine, inside = resized(x, (FINE, FINE)), resized(fov.to(x), (FINE, FINE)) > 0.5
        sigma = self.blur(fine, inside) if x.shape[-1] >= FINE else x.new_zeros(len(x))
        if not (sigma > 0).any():
            return sigma, x.new_zeros(len(x), 3, 1, 1), torch.zeros_like(fine)
        surround = deconvolution.estimate_surround(fine, inside, sigma)
        z = deconvolution.remove_surround(fine, inside, sigma, surround)
        z = deconvolution.inpaint_outside(z, inside)
        # 0 at the rim, where the blurred mask is 1/2: there z is uncertain and would ring
        taper = (2 * blur(inside.to(x), 4 * sigma) - 1).clamp(0, 1) ** 2
        return sigma, surround, (deconvolution.wiener(z, sigma) - z) * taper


def root_mean_square(difference):
    """Per image (N,). The 1e-5 under the root (50 dB) keeps its gradient finite."""
    return (difference.square().mean((1, 2, 3)) + 1e-5).sqrt()


@torch.autocast("cuda", enabled=False)  # bf16 has fewer than the eight bits of an image
def corrected(d, fov, affine):
    """d + A d + b inside the field of view, d outside; affine (N, 12, GRID, GRID)."""
    row, column = (_interpolation(GRID, side, d.device) for side in d.shape[-2:])
    affine, parts = affine @ column.mT, []  # N, 12, GRID, W
    for rows, part, inside in zip(row.split(ROWS), d.split(ROWS, -2), fov.split(ROWS, -2)):
        A, b = (rows @ affine).split([9, 3], 1)  # N, 9 and 3, ROWS, W
        shift = (A.unflatten(1, (3, 3)) * part[:, None]).sum(2) + b
        parts.append(torch.where(inside, (part + shift).clamp(0, 1), part))
    return torch.cat(parts, -2)


def resized(maps, side):
    """maps (N, C, h, w) => (N, C, *side): bicubic with antialiasing, as products of matrices."""
    if maps.shape[-2:] == tuple(side):
        return maps
    row, column = (_interpolation(n, m, maps.device) for n, m in zip(maps.shape[-2:], side))
    return row @ maps @ column.mT


def _interpolation(n, m, device):
    """The matrix (m, n) that interpolates n pixels to m."""
    identity = torch.eye(n, device=device)[None, None]
    return F.interpolate(identity, (m, n), mode="bicubic", antialias=True)[0, 0]


def turned(x, k):
    """Orientation k of 0..7 of x (N, C, H, H): k quarter turns, mirrored first from k = 4 on."""
    return torch.rot90(x.flip(-1) if k > 3 else x, k % 4, (-2, -1))


def turned_back(x, k):
    """The inverse of `turned`."""
    x = torch.rot90(x, -(k % 4), (-2, -1))
    return x.flip(-1) if k > 3 else x

"""The recommended restorer: a bridge whose network looks at 128 pixels and corrects a photograph at its own resolution.

    x_hat = d + g (A d + b),   d = z + up(W_sigma z - z)

    z        x without the surround that blur has mixed into its rim
    W_sigma  Wiener's deconvolution at 256 pixels, tapered towards the rim, of a Gaussian blur whose sigma, one per image, a small
             network estimates from how much detail there is at each scale; for sigma = 0 the identity, and z is x
    A, b     (3 x 3, 3) per place of a 32 x 32 grid, from a U-Net: mixing of colours and offset, which undo brightness,
             contrast, saturation, haloes, dark holes and spots
    g        in (0, 1), per image, from its estimated quality: how much to correct; 0 for a good photograph

The networks decide, they do not paint: colours change smoothly over the image, edges are those of the photograph, but where the
blur is taken for wider than it is they ring. Detail finer than the networks' pixels stays. All lengths are fractions of
the image width. The bridge's equations are those of rr.bridge; the default, one step, is plain regression.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rr.data import degrade
from rr.evaluate.baselines import continued, sharpened, surround, unmixed
from rr.models.bridge import between, walk
from rr.models.diffusion import noise

SIZE, GRID, FINE = (
    128,
    32,
    256,
)  # px: what the U-Net sees, its output, where blur is measured and undone
SIGMAS = (0.6, 1.0, 1.6, 2.6, 4.2, 7.0)  # of the scales at which detail is measured, px of FINE
SHARP = 0.5 / 512  # an estimated sigma below this is no blur
ROWS = 256  # of a large photograph that are corrected at once
LEARN = 38  # dB: up to about this estimated quality training asks for corrections
LEAVE = 28  # dB: an image of this estimated quality is corrected by half, one of 32 dB and more not at all; far below LEARN,
#             since of a camera that nobody trained on the estimate may be too low by as much


class Decision(NamedTuple):
    """How to correct N images, see Corrector."""

    affine: torch.Tensor  # (N, 12, GRID, GRID): g A and g b
    sigma: torch.Tensor  # (N,): estimated blur, in widths
    level: torch.Tensor  # (N, 3, 1, 1): of the surround that it has mixed into the rim
    detail: torch.Tensor  # (N, 3, FINE, FINE): what the deconvolution adds
    gate: torch.Tensor  # (N,): g
    quality: (
        torch.Tensor
    )  # (N,): estimated PSNR of x in dB, as far as light and colour go: it does not see blur
    error: torch.Tensor  # (N, 1, GRID, GRID): estimated absolute error of the result, of a photograph that is corrected


class Restored(NamedTuple):
    image: torch.Tensor  # (N, 3, H, H) in [0, 1]
    quality: torch.Tensor  # (N,): estimated PSNR of the input in dB, as far as light and colour go
    sigma: torch.Tensor  # (N,): estimated blur of the input, in widths; 0: none
    amount: torch.Tensor  # (N,): how much of the colours' correction was done, 0 to 1
    uncertainty: torch.Tensor  # (N, 1, H, H): see Decision.error


class Blur(nn.Module):
    """sigma (N,), in widths, of the Gaussian blur of x (N, 3, FINE, FINE); 0 where there is none.

    From detail, the root mean square of x - G_k x well inside the field of view, and from the rim, where blur mixes the black
    surround into the image; in green, at the scales SIGMAS.
    """

    def __init__(self):
        super().__init__()
        n = 2 * len(SIGMAS) + 1
        self.head = nn.Sequential(nn.BatchNorm1d(n, affine=False), nn.Linear(n, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                                  nn.Linear(64, 1))  # fmt: skip
        nn.init.zeros_(self.head[-1].weight)  # the start: no blur
        nn.init.constant_(self.head[-1].bias, math.log(0.5))

    @torch.no_grad()
    def features(self, x, fov):
        """(N, 2 K + 1): per scale the logarithm of the detail and the relative fall of light at the rim; the mean green."""
        green, mask = x[:, 1:2], fov.to(x)
        scales = [x.new_full((len(x),), s / FINE) for s in SIGMAS]
        core = fov & (degrade.blur(mask, scales[-1]) > 0.9)
        rim, inside = fov & ~core, core.sum((1, 2, 3)).clamp_min(1)
        found = []
        for sigma in scales:
            blurred, covered = degrade.blur(torch.cat([green * mask, mask], 1), sigma).split(1, 1)
            detail = (green - blurred / covered.clamp_min(1e-3)) * core
            fall = ((green - blurred) * rim).sum((1, 2, 3)) / ((green * rim).sum((1, 2, 3)) + 1e-6)
            found += [
                ((detail**2).sum((1, 2, 3)) / inside + 1e-9).log(),
                torch.where(rim.sum((1, 2, 3)) > 50, fall, 0),
            ]
        return torch.stack([*found, (green * core).sum((1, 2, 3)) / inside], 1)

    def forward(self, x, fov):
        sigma = (self.head(self.features(x, fov))[:, 0].exp() - 0.5) / 512  # see `fit`
        return torch.where(sigma > SHARP, sigma, 0)

    def fit(self, features, sigma, generator, steps=3000, batch=128):
        """Learn log(512 sigma + 1/2) from features (M, 2 K + 1) by least absolute deviations; returns the last ones' mean."""
        target = (512 * sigma + 0.5).log()
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
        losses = []
        self.train()
        for _ in range(steps):
            rows = torch.randint(len(features), (batch,), generator=generator)
            loss = (self.head(features[rows])[:, 0] - target[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        self.eval()
        return sum(losses[-100:]) / 100


class Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 path; the step t is a bias between them."""

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
    """Square images x (N, 3, H, H) in [0, 1] with fields of view (N, 1, H, H) => corrected images of the same size."""

    hot = ()  # modules that a GPU compiles, see train: none, for its U-Net is a method

    def __init__(self, width=40):
        super().__init__()
        self.arguments = {"width": width}
        c = [width, 2 * width, 4 * width, 6 * width]
        shuffle = SIZE // GRID
        self.down = nn.ModuleList(Block(a, b) for a, b in zip([3 * shuffle**2 + 3, *c], c))
        self.up = nn.ModuleList(Block(c[i] + c[i + 1], c[i]) for i in range(3))
        self.affine = nn.Conv2d(width, 12, 3, padding=1)  # A and b
        self.error = nn.Conv2d(width, 1, 3, padding=1)  # log of the absolute error that is left
        self.quality = nn.Sequential(nn.Linear(c[3], 128), nn.SiLU(), nn.Linear(128, 1))
        self.blur = Blur()
        for layer in (self.affine, self.error, self.quality[-1]):  # the start is the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def fields(self, x, fov, t):
        """x (N, 3, SIZE, SIZE), t (N,) => affine (N, 12, GRID, GRID), A and b; quality (N,), the PSNR of x as estimated, dB;
        error (N, 1, GRID, GRID), the absolute error of the result as estimated."""
        t, place = t[:, None], torch.linspace(-1, 1, GRID, device=x.device)
        place = torch.stack(torch.meshgrid(place, place, indexing="ij"))[None].expand(
            len(x), -1, -1, -1
        )
        h = torch.cat(
            [
                2 * F.pixel_unshuffle(x, SIZE // GRID) - 1,
                F.avg_pool2d(fov.to(x), SIZE // GRID),
                place,
            ],
            1,
        )
        skips = []
        for i, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if i else h, t)  # N, c_i, GRID / 2^i
            skips.append(h)
        quality = 30 + 10 * self.quality(h.mean((2, 3)))[:, 0]
        for i in reversed(range(3)):
            h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
            h = self.up[i](torch.cat([skips[i], h], 1), t)
        return self.affine(h).float(), quality.float(), (self.error(h).float() - 3).exp()

    def restore(self, y, fov, generator=None, steps=1, batch=8):
        """y (N, 3, H, H) in [0, 1], fov (N, 1, H, H) => the restored images, black outside of fov, see `walk`.

        Without a generator: the mean of eight decisions, for y mirrored and turned. With one: a single decision, for a
        random one of these and a little noise, so that repeated calls differ as the decision is uncertain.
        """
        return torch.cat(
            [
                self.run(*part, generator, steps).image
                for part in zip(y.split(batch), fov.split(batch))
            ]
        )

    @torch.no_grad()
    def run(self, y, fov, generator=None, steps=1):
        """The same as `restore`, with what was judged on the way: Restored."""
        said = []

        def predict(x_t, t):
            decision = self.decide(x_t, fov, t, generator)
            said.append(decision)
            if (decision.sigma > 0).any():
                x_t = (
                    unmixed(x_t, fov, decision.sigma, decision.level)
                    + resized(decision.detail, y.shape[-2:]) * fov
                )
            return corrected(x_t, fov, decision.affine)

        *_, (_, x, _) = walk(predict, y * fov, steps)
        first = said[0]
        return Restored(
            x * fov,
            first.quality,
            first.sigma,
            first.gate,
            resized(first.error, y.shape[-2:]).clamp_min(0) * fov,
        )

    def decide(self, x, fov, t, generator=None):
        """What to do with x (N, 3, H, H) of any resolution at step t (a number): a Decision.

        In fewer than FINE pixels blur cannot be told from the pixels' own: then sigma is 0.
        """
        fine, inside = resized(x, (FINE, FINE)), resized(fov.to(x), (FINE, FINE)) > 0.5
        sigma = self.blur(fine, inside) * (x.shape[-1] >= FINE)
        level, detail = x.new_zeros(len(x), 3, 1, 1), torch.zeros_like(fine)
        if (sigma > 0).any():
            level = surround(fine, inside, sigma)
            z = continued(unmixed(fine, inside, sigma, level), inside)
            covered = degrade.blur(
                inside.to(x), 4 * sigma
            )  # 1/2 at the rim: what is not known well there would ring
            detail = (sharpened(z, sigma) - z) * (2 * covered - 1).clamp(0, 1) ** 2
        small, inside = resized(x, (SIZE, SIZE)), resized(fov.to(x), (SIZE, SIZE)) > 0.5
        turns = range(8)
        if generator is not None:
            turns = torch.randint(8, (1,), generator=generator).tolist()
            small = small + 0.01 * noise(small, generator)
        time = x.new_full((len(x),), float(t))
        every = [
            self.fields(_turned(small, k).contiguous(), _turned(inside, k).contiguous(), time)
            for k in turns
        ]
        quality = sum(quality for _, quality, _ in every) / len(every)
        gate = (LEAVE - quality).sigmoid()
        gate = torch.where(gate < 0.02, 0, gate)  # left alone
        affines = (
            torch.stack([_back(affine, k) for (affine, *_), k in zip(every, turns)])
            * gate[:, None, None, None]
        )
        error = sum(_back(error, k) for (_, _, error), k in zip(every, turns)) / len(every)
        return Decision(affines.mean(0), sigma, level, detail, gate, quality, error)

    def loss(self, y, x, fov, generator):
        """{"loss", "rmse", "quality", "error"} on pairs that `randomised` makes of clean images of FINE px, at SIZE px.

        "rmse", of x_hat from x_t, t = 1 for most images and any step for the others: mean over images of the root of the mean
        squared error; squares would let images that need nothing be changed a little for the sake of those that need much.
        "quality" (dB) and "error" (natural logarithm): how far off these estimates are. Blur has its own training, see `make`.
        """
        t = torch.rand(len(x), generator=generator).to(x.device)
        t = torch.where(t < 0.3, t / 0.3, 1.0)
        x_t = between(x, y, t[:, None, None, None])
        affine, quality, error = self.fields(x_t, fov, t)
        learned = (
            (LEARN - quality.detach()) / 2
        ).sigmoid()  # images that are as good as the reference teach nothing
        x_hat = corrected(x_t, fov, learned[:, None, None, None] * affine)
        rmse = distance(x_hat, x).mean()
        guess = (quality + 20 * distance(x_t, x).log10()).abs().mean()
        left = F.avg_pool2d((x_hat - x).detach().abs().mean(1, keepdim=True), SIZE // GRID)
        off = (error.log() - (left + 1e-3).log()).abs().mean()
        return {
            "loss": 10 * rmse + guess / 20 + off / 20,
            "rmse": rmse,
            "quality": guess,
            "error": off,
        }


def distance(x_hat, x):
    """Root of the mean squared error, and of 1e-5 more (50 dB), per image (N,)."""
    return ((x_hat - x).square().mean((1, 2, 3)) + 1e-5).sqrt()


@torch.autocast(
    "cuda", enabled=False
)  # in bf16 an image would have eight bits, and lose some of them
def corrected(d, fov, affine):
    """d + A d + b inside the field of view, d as it was outside; d (N, 3, H, H) of any resolution."""
    row, column = (_interpolation(GRID, side, d.device) for side in d.shape[-2:])
    affine, done = affine @ column.mT, []
    for rows, part, inside in zip(
        row.split(ROWS), d.split(ROWS, -2), fov.split(ROWS, -2)
    ):  # twelve maps at full size are large
        maps = rows @ affine
        shift = maps[:, 9:] + torch.stack(
            [(maps[:, 3 * i : 3 * i + 3] * part).sum(1) for i in range(3)], 1
        )
        done.append(torch.where(inside, (part + shift).clamp(0, 1), part))
    return torch.cat(done, -2)


def resized(maps, side):
    """maps (N, C, h, w) at side (H, W), larger or smaller: bicubic with antialiasing, as products with its two matrices."""
    if maps.shape[-2:] == tuple(side):
        return maps
    row, column = (_interpolation(n, m, maps.device) for n, m in zip(maps.shape[-2:], side))
    return row @ maps @ column.mT


def _interpolation(n, m, device):
    """Matrix (m, n) that takes n pixels to m."""
    return F.interpolate(
        torch.eye(n, device=device)[None, None], (m, n), mode="bicubic", antialias=True
    )[0, 0]


def _turned(x, k):
    """x (N, C, H, H) in one of eight orientations: turned by k quarters, from k = 4 on mirrored first."""
    return torch.rot90(x.flip(-1) if k > 3 else x, k % 4, (-2, -1))


def _back(x, k):
    x = torch.rot90(x, -(k % 4), (-2, -1))
    return x.flip(-1) if k > 3 else x


# --------------------------------------------------------------------------------------------------------- training

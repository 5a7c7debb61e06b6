"""Image metrics: PSNR, SSIM and LPIPS. One range, one implementation, a batch in, a vector out.

Defines `psnr`, `ssim` and `load_lpips`; `score`, the table of all three over the full frame, inside the field of view
and in the disc crop. `rr.tables` makes of it means with their intervals, and what a reader sees.

x and y are (N, 3, H, W) in [0, 1]. Every number belongs to one image; nothing is pooled over images (pooled PSNR is
another quantity) and nothing is resized.
"""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor

from rr.errors import InputError, choose
from rr.models import pretrained

METRICS = ("psnr", "ssim", "lpips")
K1, K2 = 0.01, 0.03  # SSIM's constants, C = (K * data_range)^2 with data_range 1
WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian window
PIECE = 16  # means of SSIM's window that one product of matrices gives
CHUNK = 64  # images scored at once: squared errors in float64 of 64 images of 224 px take 77 MB
LPIPS_SIDE = 64  # pixels; below that the trunk's last layers see nothing but their own padding
LPIPS_BATCH = 8  # images in the trunk at once, on a CPU
KEPT = (
    2**30
)  # bytes of reference features that an Lpips keeps: 550 images of 224 px with trunk "alex"
LPIPS_TRUNKS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}
DISC_CROP = 3.0  # half-width of the disc crop in disc radii: disc, peripapillary vessels and rim of nerve fibres


def psnr(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / MSE), per image (N,), float64; inf where x equals y.

    mask (N, 1, H, W): the mean of the squared error is taken over its pixels only. NaN where the mask is empty.
    """
    x, y, mask = _checked(x, y, mask)
    return -10 * torch.log10(_mean((x.double() - y.double()) ** 2, mask))


def ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), per image (N,), float64.

    Gaussian window of 11 pixels, sigma 1.5, population covariance, mean over the three channels: scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)`, which leaves
    out the 5 pixels next to the border, where the window would stick out of the image. mask (N, 1, H, W): mean of the
    SSIM map over the mask's pixels (windows centred there may look beyond the mask). NaN where the mask is empty.
    """
    x, y, mask = _checked(x, y, mask)
    if min(x.shape[-2:]) < WINDOW:
        raise InputError(
            f"SSIM: images of {x.shape[-1]}x{x.shape[-2]} pixels; its window needs {WINDOW}x{WINDOW}"
        )
    return _ssim(x, y, [mask])[0]


def load_lpips(
    net: str = "alex",  # trunk: "alex" | "squeeze" | "vgg"
    weights: str = "none",  # "imagenet": get the trunk, by download if need be; "none": only if it lies here already
    folder: str | Path | None = None,  # of weight files; default: RR_WEIGHTS
    device: str | torch.device = "cpu",
) -> "Lpips | None":
    """LPIPS (Zhang et al. 2018) as a function of (x, y) in [0, 1] => (N,), or None where its trunk cannot be had.

    The `lpips` package with its own v0.1 heads on the trunk's ImageNet weights: never a random trunk. A run that starts
    its networks from "none" downloads nothing, so it gets None (n/a in the tables) unless the file is on this machine.
    Raises InputError for an unknown `net`, a trunk that "imagenet" cannot get, a damaged file or one that does not cover
    every parameter of the trunk.
    """
    name = choose("LPIPS trunk", net, LPIPS_TRUNKS)
    choose("weights", weights, pretrained.WEIGHTS)
    if weights == "none" and pretrained.available(name, folder) is None:
        return None
    import lpips

    trunk = getattr(torchvision.models, name)(weights=None)
    note = pretrained.load(trunk, name, "imagenet", folder, skip=("classifier.",))
    with (
        warnings.catch_warnings()
    ):  # lpips calls torchvision in a way of speaking that torchvision deprecates
        warnings.simplefilter("ignore")
        model = lpips.LPIPS(
            net=net, version="0.1", pnet_rand=True, verbose=False
        )  # pnet_rand: no download of its own
    # lpips sorts the layers of `features` into slices but keeps their numbers: sliceK.N.weight is features.N.weight
    loaded = trunk.features.state_dict()
    model.net.load_state_dict(
        {key: loaded[key.split(".", 1)[1]] for key in model.net.state_dict()}, strict=True
    )
    heads = torch.load(
        Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth",
        map_location="cpu",
        weights_only=True,
    )
    if not all(
        torch.equal(model.state_dict()[key], value) and value.min() >= 0
        for key, value in heads.items()
    ):
        raise InputError(
            "LPIPS: the package's own heads are not loaded; install lpips again (version 0.1.4)"
        )
    return Lpips(
        model.to(device, memory_format=torch.channels_last).requires_grad_(False),
        f"LPIPS v0.1 {net}, trunk {note}",
    )


class Lpips:
    """LPIPS of images x, y (N, 3, H, W) in [0, 1] => (N,), float64, on the CPU: sum over layers l of the mean over places of
    sum_c w_lc (f_lc(x) - f_lc(y))^2, with f the trunk's features, of length 1 at every place.

    On a CPU the features of references x are kept, so that a second method scored against the same images costs half; the
    oldest go when they take more than KEPT bytes. `.note`: its provenance. Raises InputError for values outside [0, 1] and
    for images below 64 pixels.
    """

    def __init__(self, model, note):
        self.trunk, self.note = model.net, note
        self.weights = [
            head.model[-1].weight.flatten() for head in model.lins
        ]  # of each layer (C,)
        # 2 x - 1, the package's range, then minus its mean, over its standard deviation: x * scale + shift, (1, 3, 1, 1)
        mean, std = model.scaling_layer.shift, model.scaling_layer.scale
        self.scale, self.shift, self.device = 2 / std, -(1 + mean) / std, mean.device
        self.known = OrderedDict()  # (shape, digest of the pixels) => features

    @torch.no_grad()
    def __call__(self, x, y):
        if min(x.shape[-2:]) < LPIPS_SIDE:
            raise InputError(
                f"LPIPS: images of {x.shape[-1]}x{x.shape[-2]} pixels; it needs at least {LPIPS_SIDE}"
            )
        for image in (x, y):
            if not (image.amin() >= 0 and image.amax() <= 1):
                raise InputError(
                    f"LPIPS: values from {image.amin():.3g} to {image.amax():.3g}; give images in [0, 1]"
                )
        x, y = x.to(self.device, torch.float32), y.to(self.device, torch.float32)
        step, references = (
            (LPIPS_BATCH, self._kept) if self.device.type == "cpu" else (len(x), self.features)
        )
        parts = [
            self._distance(references(a), self.features(b))
            for a, b in zip(x.split(step), y.split(step))
        ]
        return torch.cat(parts).double().cpu()

    @torch.autocast("cuda", enabled=False)
    def features(self, x):
        """Features (N, H_l, W_l, C_l) of each layer, of length 1, of images (N, 3, H, W)."""
        x = torch.addcmul(self.shift, x, self.scale).contiguous(memory_format=torch.channels_last)
        maps = [f.permute(0, 2, 3, 1) for f in self.trunk(x)]
        return [
            f.div_(torch.linalg.vector_norm(f, dim=3, keepdim=True) + 1e-10) for f in maps
        ]  # 1e-10: the package's

    @torch.autocast("cuda", enabled=False)
    def _distance(self, fx, fy):
        return sum(
            ((one - other).square_() @ w).mean((1, 2))
            for one, other, w in zip(fx, fy, self.weights)
        )

    def _kept(self, x):
        x = x.contiguous()
        key = x.shape, hashlib.sha1(x.numpy(), usedforsecurity=False).digest()
        if key not in self.known:
            self.known[key] = self.features(x)
        self.known.move_to_end(key)
        while (
            len(self.known) > 1
            and sum(f.nbytes for maps in self.known.values() for f in maps) > KEPT
        ):
            self.known.popitem(last=False)
        return self.known[key]


def score(
    x: Tensor,  # reference (N, 3, H, W)
    y: Tensor,  # what is scored
    fov: Tensor | None = None,  # (N, 1, H, W) field of view
    disc: Tensor
    | None = None,  # (N, 3): x, y, radius of the optic disc in fractions of the width; NaN where unknown
    lpips: Callable | None = None,  # from `load_lpips`
) -> pd.DataFrame:
    """One row per image: psnr, ssim and lpips over the full frame, and each with `_fov` and `_disc`.

    `_fov`: PSNR and SSIM average over the field of view; LPIPS compares both images with black outside. `_disc`: the
    square of half-width 3 disc radii around the disc, clipped at the image. NaN (shown as n/a) where a value
    cannot be had: no `fov`, disc unknown or outside, no LPIPS trunk, or fewer than 64 pixels for LPIPS (11 for SSIM).
    """
    if len(x) > CHUNK:
        parts = zip(
            *(
                values.split(CHUNK) if isinstance(values, Tensor) else [None] * len(x)
                for values in (x, y, fov, disc)
            )
        )
        return pd.concat([score(*part, lpips) for part in parts], ignore_index=True)
    x, y, fov = _checked(x, y, fov)
    n = len(x)
    table = {
        f"{metric}{where}": np.full(n, np.nan)
        for where in ("", "_fov", "_disc")
        for metric in METRICS
    }

    def fill(rows, a, b, masks):
        side = min(a.shape[-2:])
        similar = _ssim(a, b, masks.values()) if side >= WINDOW else [None] * len(masks)
        for (where, mask), of_mask in zip(masks.items(), similar):
            if side:
                table[f"psnr{where}"][rows] = psnr(a, b, mask).cpu().numpy()
            if of_mask is not None:
                table[f"ssim{where}"][rows] = of_mask.cpu().numpy()
            if side >= LPIPS_SIDE and lpips is not None:
                table[f"lpips{where}"][rows] = (
                    lpips(*((a, b) if mask is None else (a * mask, b * mask))).cpu().numpy()
                )

    fill(slice(None), x, y, {"": None} | ({} if fov is None else {"_fov": fov}))
    if disc is not None:
        for i, (left, right, top, bottom) in enumerate(_disc_boxes(disc, *x.shape[-2:])):
            crop = (slice(i, i + 1), slice(None), slice(top, bottom), slice(left, right))
            fill(slice(i, i + 1), x[crop], y[crop], {"_disc": None})
    return pd.DataFrame(table)


def _checked(x, y, mask):
    """Images and, in float64, a mask, on one device."""
    if x.shape != y.shape or x.ndim != 4:
        raise InputError(
            f"images of shapes {tuple(x.shape)} and {tuple(y.shape)}: give two of (N, 3, H, W)"
        )
    if mask is not None:
        if mask.shape != (len(x), 1, *x.shape[-2:]):
            raise InputError(
                f"mask of shape {tuple(mask.shape)}: give {(len(x), 1, *x.shape[-2:])}"
            )
        mask = mask.to(x.device).double()
    return x, y.to(x.device), mask


def _mean(values, mask):
    """Mean over channels and pixels, (N, C, H, W) => (N,), float64, weighted with the mask (N, 1, H, W)."""
    if mask is None:
        return values.mean(dim=(1, 2, 3)).double()
    return (values * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * values.shape[1])


@torch.autocast("cuda", enabled=False)
def _ssim(x, y, masks):
    """Mean SSIM of images (N, C, H, W) over the windows that fit, for each mask (N, 1, H, W) or None: as many vectors (N,).

    In terms of u = x + y and v = x - y, with windowed means mu and variances V of these, Wang's equation reads

    SSIM = (mu_u^2 - mu_v^2 + 2 C1) (V_u - V_v + 2 C2) / ((mu_u^2 + mu_v^2 + 2 C1) (V_u + V_v + 2 C2)),

    which is exactly 1 for v = 0 and in float32 equal to float64 within 1e-6 (tested). On a CPU channel by channel in the same
    memory, so that all maps stay in the cache; C1 and C2 are added before the means, which leave constants as they are.
    """
    C1, C2 = x.new_tensor((K1**2, K2**2), dtype=torch.float32)
    n, c, h, w = x.shape
    rows, columns, at_once = h - WINDOW + 1, w - WINDOW + 1, 1 if x.device.type == "cpu" else n * c
    shapes = (h, 4, at_once, w), (h, 4, at_once, columns), (rows, 4, at_once, columns)
    maps, half, means = (x.new_empty(shape, dtype=torch.float32) for shape in shapes)
    u, v, uu, vv = maps.unbind(
        1
    )  # rows first: all products below are then of matrices that lie as they are
    mu_u, mu_v, V_u, V_v = means.unbind(1)
    ssim, other, _, _ = half[:rows].unbind(1)  # free once all products are there
    passes = [
        (maps.view(-1, w)[:, reach], band.T, half.view(-1, columns)[:, at])
        for at, reach, band in _bands(w, x.device)
    ]
    passes += [
        (band, half.view(h, -1)[reach], means.view(rows, -1)[at])
        for at, reach, band in _bands(h, x.device)
    ]
    masks = [
        mask
        if mask is None
        else mask[..., WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)]
        for mask in masks
    ]
    x, y, image_of = (
        x.flatten(0, 1),
        y.flatten(0, 1),
        torch.arange(n, device=x.device).repeat_interleave(c),
    )
    found = [[] for _ in masks]
    for i in range(0, n * c, at_once):
        a, b = (image[i : i + at_once].float().transpose(0, 1) for image in (x, y))
        torch.add(a, b, out=u)
        torch.sub(a, b, out=v)
        torch.addcmul(2 * (C1 + C2), u, u, out=uu)
        torch.mul(v, v, out=vv)
        for a, b, product in passes:
            torch.mm(a, b, out=product)
        torch.addcmul(2 * C1, mu_u, mu_u, out=mu_u)
        mu_v.mul_(mu_v)
        V_u.sub_(mu_u)
        V_v.sub_(mu_v)
        torch.sub(mu_u, mu_v, out=ssim).mul_(torch.sub(V_u, V_v, out=other)).div_(
            mu_u.add_(mu_v).mul_(V_u.add_(V_v))
        )
        for each, mask in zip(found, masks):
            each.append(
                _mean(
                    ssim.transpose(0, 1)[:, None],
                    mask if mask is None else mask[image_of[i : i + at_once]],
                )
            )
    return [torch.cat(each).view(n, c).mean(1) for each in found]


@cache
def _bands(length, device):
    """The Gaussian window's means over `length` pixels in pieces: [(slice of the means, slice of the pixels, matrix)].

    Each piece of 16 means needs 26 pixels, so that half of the products count. Exact on every
    device: convolutions may run in TF32.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).float()
    window[[0, -1]] += (
        1 - window.double().sum()
    ).float() / 2  # rounding must not change the mean of a constant
    band = torch.zeros(PIECE, PIECE + WINDOW - 1)
    for k in range(PIECE):
        band[k, k : k + WINDOW] = window
    band, means = band.to(device), length - WINDOW + 1
    pieces = [(start, min(start + PIECE, means)) for start in range(0, means, PIECE)]
    return [
        (slice(a, b), slice(a, b + WINDOW - 1), band[: b - a, : b - a + WINDOW - 1])
        for a, b in pieces
    ]


def _disc_boxes(disc, height, width):
    """Pixel bounds (left, right, top, bottom) of each image's disc crop; an empty box where the disc is unknown."""
    disc = torch.as_tensor(disc).detach().cpu().double().numpy()
    for x, y, r in disc * width:
        if not np.isfinite([x, y, r]).all():
            yield 0, 0, 0, 0
            continue
        half = DISC_CROP * r
        left, right = (int(np.clip(round(edge), 0, width)) for edge in (x - half, x + half))
        top, bottom = (int(np.clip(round(edge), 0, height)) for edge in (y - half, y + half))
        yield left, right, top, bottom

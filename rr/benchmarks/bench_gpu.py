"""The rows of `rr bench gpu`: each function prepares one comparison, and yields it as rr.bench.Task.

Training is measured as rr.train does it: on a GPU bf16 autocast and the `hot` parts compiled, with optimizer and average of the
weights. Compiled without CUDA graphs: a step of these sizes takes longer than its launches, and a graph's outputs are
overwritten by its next replay, which gradients that add up over micro-batches do not survive.

Its yardstick is S, images a second, at the rates of this device (a yardstick, no bound: a chip may do both sums at once, and
a step moves more than its convolutions):

    1 / S = 6 MAC / (rate of a bf16 matrix product, FLOP/s) + 28 B * O / (bandwidth of a copy, read and written)

MAC: multiplications of one image's forward pass, 2 FLOP each, and twice as many backward. O: values that its convolutions
return; each is written, normalised and read again, forward and backward, in bf16: 14 times 2 B. The yardstick is a call like a
peer's: it does just this product and this copy, by turns with the step. Every size is an argument: a CPU can do small ones.
"""

import copy
import warnings
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rr.benchmarks.bench import (
    Gate,
    NotMeasured,
    Task,
    hotspots,
    need,
    parameters,
    seconds,
    with_trunk,
)
from rr.data import dataset as data
from rr.data import degrade, packing, sources, synthetic
from rr.data.photo import to_tensor
from rr.evaluate import metrics
from rr.models.diffusion import Diffusion, noise
from rr.models.features import Extractor
from rr.models.readability import Readability
from rr.models.restorer import Denoiser
from rr.models.vae import VAE
from rr.paper import LABELS
from rr.train import loop as train

GIB = 2**30
SIDE = 8192  # of the matrix product's square factor: as fast as products get
SHARES = {
    "resnet34": 0.60,
    "vgg16": 0.65,
    "resnet50": 0.55,
    "resnext50": 0.50,
    "mobilenet": 0.45,
}  # of S, per extractor


def training(component, device, optimizer="adamw", lr=1e-4, fast=True):
    """step(batch) => loss, as a tensor: a training step of the component, which is moved to `device`.

    fast: as rr.train takes it, else without its compiler.
    """
    component.train()
    component.to(device)
    average = train.averaging(copy.deepcopy(component), component, 0.99)
    if fast:
        compiled(component, device)
    opt, generator = (
        train.OPTIMIZERS[optimizer](component.parameters(), lr=lr),
        torch.Generator().manual_seed(0),
    )

    def step(batch):
        with precision(device):
            loss = component.loss(batch, generator)["loss"]
        loss.backward()
        opt.step()
        opt.zero_grad()
        average()
        return loss.detach()

    return step


def compiled(component, device):
    """Have the component's hot parts compiled, on a GPU."""
    if device == "cuda":
        train.compiled(component)


def precision(device):
    """As rr.train.fabric: bf16 autocast on a GPU, float32 on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def repeated(step, images, steps):
    """A call of so many steps on the same images: a GPU is given the next one before it has finished the last."""
    return lambda: [step(images) for _ in range(steps)]


def pictures(n, size, device, start=0, different=16):
    """A Batch of n clean eyes, repeated after `different` ones; a fourth of them is said to be unreadable."""
    eyes = [synthetic.fundus(0, start + i, size) for i in range(min(n, different))]
    x = torch.cat([to_tensor(eye.image) for eye in eyes])
    fov = torch.stack([torch.from_numpy(eye.fov)[None] for eye in eyes])
    labels = (torch.arange(len(eyes)) % 4 > 0).float()[:, None].expand(-1, len(LABELS))
    copies = torch.arange(n) % len(eyes)
    return data.Batch(*(part[copies].to(device) for part in (x, labels, fov)))


def work(component, size):
    """(MAC, O) of one image of this size: what its loss computes forward, on the CPU, and what its convolutions return."""
    returned, batch = [], pictures(1, size, "cpu")
    hooks = [module.register_forward_hook(lambda module, args, output: returned.append(output.numel()))
             for module in component.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]  # fmt: skip
    component.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # of attention: is not counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        component.loss(batch, torch.Generator().manual_seed(0))
    torch.backends.mha.set_fastpath_enabled(fast)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() / 2, sum(returned)


def yardstick(mac, outputs, images, device, side=SIDE):
    """(call, its rates in words): the product and the copy of a training step on so many images, see above."""
    rows, half = (
        8 * max(1, round(6 * mac * images / (2 * side**2) / 8)),
        round(14 * outputs * images),
    )
    a, b = (
        torch.empty(n, side, dtype=torch.bfloat16, device=device).uniform_()
        for n in (min(rows, 4 * side), side)
    )
    product = a @ b
    source = torch.randint(256, (min(half, GIB),), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def multiply():
        for start in range(0, rows, len(a)):
            n = min(len(a), rows - start)
            torch.mm(a[:n], b, out=product[:n])

    def copy():
        for start in range(0, half, len(source)):
            n = min(len(source), half - start)
            target[:n].copy_(source[:n])

    def call():
        multiply()
        copy()

    call()
    flops, bandwidth = 2 * rows * side**2 / seconds(multiply), 2 * half / seconds(copy)
    return call, (f"{mac / 1e9:.2f} GMAC and {outputs / 1e6:.1f} M convolution outputs an image; "
                  f"measured {flops / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s")  # fmt: skip


def share(name, component, size, batch, target, steps, device, side, **options):
    """(Task, step, images): a component's training against S.

    The gate: its first loss is the one that is computed in float32 without compiler, and the loss falls.
    """
    mac, outputs = work(component, size)
    images = pictures(batch, size, device)
    torch.manual_seed(0)
    with torch.no_grad():
        plain = (
            copy.deepcopy(component)
            .to(device)
            .train()
            .loss(images, torch.Generator().manual_seed(0))["loss"]
            .item()
        )
    step = training(component, device, **options)
    torch.manual_seed(0)
    losses = [step(images).item() for _ in range(20)]
    wrong = abs(losses[0] / plain - 1) if np.mean(losses[-5:]) < np.mean(losses[:5]) else np.inf
    call, words = yardstick(mac, outputs, batch * steps, device, side)
    ours = repeated(step, images, steps)
    gate = Gate(
        "first loss, relative to float32 uncompiled; infinite if it does not fall", wrong, 0.05
    )
    task = Task(
        f"{name}, training, {size} px, batch {batch}",
        "images",
        batch * steps,
        ours,
        target,
        gate,
        {"yardstick S": call},
        note=words,
        why=lambda: f"where its time goes: {hotspots(partial(step, images), 3)}",
    )
    return task, step, images  # fmt: skip


def classifier(size=224, batch=256, steps=10, device="cuda", side=SIDE):
    """G1: training of InceptionV3, against S, and against the plain loop: bf16 autocast, nothing else."""
    options = {"optimizer": "rmsprop"}
    torch.manual_seed(0)
    task, step, images = share(
        "InceptionV3", Readability(), size, batch, 0.50, steps, device, side, **options
    )
    yield task
    torch.manual_seed(0)
    plain = training(
        Readability().to(memory_format=torch.contiguous_format), device, fast=False, **options
    )
    yield Task(task.name, "images", task.amount, task.ours, 2, task.gate, {"plain loop: NCHW": repeated(plain, images, steps)},
               why=task.why)  # fmt: skip


def extractors(size=224, batch=128, steps=10, device="cuda", side=SIDE, names=tuple(SHARES)):
    """G2: training of the extractors, against S."""
    for name in names:
        torch.manual_seed(0)
        yield share(
            f"{name} and attention", Extractor(name), size, batch, SHARES[name], steps, device, side
        )[0]


def stored(size=224, batch=256, n=4096, device="cuda", workers=8):
    """G3: an epoch of G1's training from the stored set, against the same steps on images that lie on the device."""
    with TemporaryDirectory() as folder:
        pack = packing.pack(sources.embedded(n), size, Path(folder) / "packed", workers=workers)
        shares = np.random.default_rng(0).permutation(n // batch * batch).reshape(-1, batch)
        torch.manual_seed(0)
        step = training(Readability(), device, "rmsprop")
        images = data.Batch(*(part.clone() for part in next(data.batches(pack, shares, device))))

        def ours():
            for each in data.batches(pack, shares, device):
                step(each)

        for where in (
            "kept on the device",
            "read ahead from the disk",
        ):  # the latter: as sets that do not fit
            if where != "kept on the device":
                pack._on_gpu[torch.device(device)] = None
            wrong = max((each.x.cpu() - pack.batch(rows)).abs().max().item()
                        for rows, each in zip(shares[:4], data.batches(pack, shares[:4], device)))  # fmt: skip
            yield Task(f"InceptionV3, an epoch of {shares.size} images of {size} px, {where}", "images", shares.size, ours, 0.97,
                       Gate("largest difference of an image", wrong, 1e-6), {"one batch": repeated(step, images, len(shares))},
                       why=lambda: f"where its time goes: {hotspots(ours, 3)}")  # fmt: skip


class Noise(nn.Module):
    """A peer's network as our noise model: the same loss as Denoiser's with the objective "noise" and pairs (x, x)."""

    def __init__(self, network, T=1000):
        super().__init__()
        self.network, self.diffusion, self.hot = network, Diffusion(T), [network]

    def loss(self, batch, generator):
        t = torch.randint(1, self.diffusion.T + 1, (len(batch.x),), generator=generator).to(
            batch.x.device, non_blocking=True
        )
        epsilon = noise(batch.x, generator)
        output = self.network(self.diffusion.add_noise(batch.x, t, epsilon), t)
        return {
            "loss": F.mse_loss(getattr(output, "sample", output).float(), epsilon)
        }  # diffusers returns more than that


def noise_model(size, width, T=1000):
    """What `rr train diffusion` trains, of this width."""
    return Denoiser(
        size, "unet", objective="noise", protocol="literal", width=width, T=T, start=1.0
    )


def _ddpm(size, dim, best=False):
    from denoising_diffusion_pytorch import Unet

    return Unet(dim, flash_attn=best)


def _diffusers(size, dim, best=False):
    from diffusers import UNet2DModel

    down, up = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
    down[4], up[1] = (
        "AttnDownBlock2D",
        "AttnUpBlock2D",
    )  # as in its documentation's training example
    return UNet2DModel(size, 3, 3, layers_per_block=2, block_out_channels=[dim * k for k in (1, 1, 2, 2, 4, 4)],
                       norm_num_groups=min(32, dim), down_block_types=down, up_block_types=up)  # fmt: skip


def macs(component, size):
    """MAC of one image of this size, see `work`."""
    return work(component, size)[0]


NETWORKS = {"denoising_diffusion_pytorch": _ddpm, "diffusers": _diffusers}  # module => its U-Net
SIZES = {
    "parameters": lambda component, size: parameters(component),
    "MAC": macs,
}  # in which ours is no smaller than a peer


def diffusion(size=128, batch=32, dim=64, steps=5, device="cuda", side=SIDE, vae=(512, 32, 128)):
    """G4: training of the noise model's U-Net, against S and peers with no more parameters, or MAC; the VAE, against S."""
    images, width, latent = vae
    torch.manual_seed(0)
    yield share(
        "VAE",
        VAE(size, latent, width, timed=False),
        size,
        images,
        0.40,
        steps,
        device,
        side,
        lr=1e-3,
    )[0]

    missing, tasks = None, {}
    for module, build in NETWORKS.items():
        try:
            need(module)
        except NotMeasured as error:  # said in the end: the others go on
            missing = error
            continue
        peer, best = (
            Noise(build(size, dim)),
            Noise(build(size, dim, best=True).to(memory_format=torch.channels_last)),
        )
        eyes = pictures(batch, size, device)
        theirs = {f"{module}, bf16": repeated(training(peer, device, fast=False), eyes, steps),
                  f"{module}, bf16, channels_last, compiled": repeated(training(best, device), eyes, steps)}  # fmt: skip
        for what, of in SIZES.items():
            width = next(
                width
                for width in count(8, 8)
                if of(noise_model(size, width), size) >= of(peer, size)
            )
            if width not in tasks:
                name = f"U-Net of width {width}"
                tasks[width], _, _ = share(
                    name, noise_model(size, width), size, batch, 0.40, steps, device, side
                )
                yield tasks[width]
            note = ", ".join(f"{whose}: {parameters(each) / 1e6:.1f} M parameters, {macs(each, size) / 1e9:.3g} GMAC an image"
                             for whose, each in (("ours", noise_model(size, width)), (module, peer)))  # fmt: skip
            task = tasks[width]
            yield Task(f"{task.name}, no fewer {what}", "images", task.amount, task.ours, 2.5, task.gate, theirs,
                       note=note, why=task.why)  # fmt: skip
    if not tasks:
        yield share(
            f"U-Net of width {dim}", noise_model(size, dim), size, batch, 0.40, steps, device, side
        )[0]
    if missing:
        raise missing


def restoration(
    size=64, n=64, width=32, T=1000, calls=12, drawn=1024, updates=6000, batch=64, device="cuda"
):
    """G5: restoration in few DDIM steps, against the whole chain with the same weights, of a small model that is trained here."""
    torch.manual_seed(0)
    model = Denoiser(
        size,
        "unet",
        "concat",
        "v",
        width=width,
        T=T,
        schedule="cosine",
        start=1.0,
        condition=(1, 1, 1),
    )
    step, eyes = training(model, device, lr=5e-4), pictures(drawn, size, device, different=drawn)
    for rows in torch.randint(
        drawn, (updates, batch), generator=torch.Generator().manual_seed(0)
    ).to(device):
        step(data.Batch(*(part[rows] for part in eyes)))
    model.eval()
    test = pictures(n, size, device, start=drawn, different=n)
    x = test.x * test.fov
    params = degrade.sample(n, torch.Generator().manual_seed(1), severity=0.7)
    y = degrade.apply(x, {name: value.to(device) for name, value in params.items()}, test.fov)
    distance = metrics.load_lpips(device=device)

    def restored(steps):
        with precision(device):
            return model.restore(y, test.fov, torch.Generator().manual_seed(2), steps, batch=n)

    def scores(steps):
        image = restored(steps)
        return metrics.psnr(x, image).mean().item(), distance(
            x, image
        ).mean().item() if distance else 0.0

    ours, chain = scores(calls), scores(None)
    lost = max((chain[0] - ours[0]) / 0.1, (ours[1] - chain[1]) / 0.01)
    nothing = metrics.psnr(x, y).mean()
    note = f"{calls} network calls for {T}; {ours[0]:.2f} dB, the chain {chain[0]:.2f} dB, doing nothing {nothing:.2f} dB; "
    note += (
        f"LPIPS {ours[1]:.3f}, the chain {chain[1]:.3f}"
        if distance
        else "LPIPS not measured: no weights of its trunk here"
    )
    yield Task(f"restoration of {n} images of {size} px", "images", n, partial(restored, calls), 60,
               Gate("loss of PSNR over .1 dB, of LPIPS over .01", lost, 1), {f"chain of {T} steps": partial(restored, None)},
               note=note, why=lambda: f"where its time goes: {hotspots(partial(restored, calls), 3)}")  # fmt: skip


def scoring(size=224, n=256, batch=64, width=64, device="cuda"):
    """G6: degradation, against a training step on the same images; PSNR, SSIM and LPIPS, against torchmetrics."""
    torch.manual_seed(0)
    images, generator = pictures(batch, size, device), torch.Generator().manual_seed(0)
    step = training(noise_model(size, width), device)

    def degraded(seed=None):
        drawn = degrade.sample(
            batch, generator if seed is None else torch.Generator().manual_seed(seed)
        )
        drawn = {name: value.to(device, non_blocking=True) for name, value in drawn.items()}
        return degrade.apply(images.x, drawn, images.fov)

    there = degrade.apply(
        images.x.cpu(), degrade.sample(batch, torch.Generator().manual_seed(0)), images.fov.cpu()
    )
    yield Task(f"degradation of {batch} images of {size} px", "images", batch, degraded, 1 / 0.03,
               Gate("largest difference from a CPU's", (degraded(0).cpu() - there).abs().max().item(), 1e-4),
               {f"training step, U-Net of width {width}": partial(step, images)}, note="a step at this rate: 3 % of it",
               why=lambda: f"where its time goes: {hotspots(degraded, 3)}")  # fmt: skip

    need("torchmetrics")
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )
    from torchmetrics.functional.image.lpips import _LPIPS

    with warnings.catch_warnings():  # torchvision's, of how torchmetrics calls it
        warnings.simplefilter("ignore")
        peer = with_trunk(_LPIPS(net="alex", pnet_rand=True)).to(
            device
        )  # pnet_rand: no download of its own
    distance = metrics.load_lpips(device=device)
    x = pictures(n, size, device).x
    y = (x + 0.05 * noise(x, torch.Generator().manual_seed(0))).clamp(0, 1)

    def ours():
        distance.known.clear()  # on a CPU it would know the features of x from the call before
        return torch.stack([metrics.psnr(x, y).cpu(), metrics.ssim(x, y).cpu(), distance(x, y)])

    @torch.inference_mode()
    def theirs(rim=5):
        """It counts SSIM's windows at the rim too, where they see mirrored pixels: without them it is Wang's."""
        psnr = peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
        _, ssim = structural_similarity_index_measure(
            y, x, data_range=1.0, reduction="none", return_full_image=True
        )
        ssim = ssim[..., rim:-rim, rim:-rim].mean((1, 2, 3))
        return torch.stack([psnr.cpu(), ssim.cpu(), peer(y, x, normalize=True).flatten().cpu()])

    gate = Gate(
        "largest relative difference", ((ours() - theirs()) / ours()).abs().max().item(), 1e-3
    )
    yield Task(f"PSNR, SSIM and LPIPS of {n} images of {size} px", "images", n, ours, 3, gate, {"torchmetrics": theirs},
               why=lambda: f"where its time goes: {hotspots(ours, 3)}")  # fmt: skip


ROWS = {
    "G1": classifier,
    "G2": extractors,
    "G3": stored,
    "G4": diffusion,
    "G5": restoration,
    "G6": scoring,
}

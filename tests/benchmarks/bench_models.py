"""Training steps: InceptionV3 against one convolution (row T7), the U-Net against a peer (T8)."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from rr.data.photo import to_tensor
from rr.data.synthetic import fundus
from rr.evaluate.metrics import psnr
from rr.models.backbones import UNet
from rr.models.diffusion import Diffusion
from rr.models.readability import Readability
from rr.paper import LABELS


def gflop(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", [80, 224])
def test_classifier(size, timed, batch=8):
    torch.manual_seed(0)
    model = Readability().train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4)
    x, labels = torch.rand(batch, 3, size, size), torch.ones(batch, len(LABELS))

    def step():
        optimizer.zero_grad()
        loss = model.loss(x, labels)["loss"]
        loss.backward()
        optimizer.step()
        return loss.item()

    first = step()
    assert timed("T7: GFLOP/s, batch 8", step, gflop(step), "GFLOP") < first


def test_convolution(timed, batch=8, channels=256, side=28):
    """The yardstick of T7: one 3x3 convolution, forward and backward."""
    layout = torch.channels_last
    x = torch.rand(batch, channels, side, side).to(memory_format=layout).requires_grad_()
    weight = torch.rand(channels, channels, 3, 3).to(memory_format=layout).requires_grad_()
    gradient = torch.rand(batch, channels, side, side).to(memory_format=layout)

    def call():
        return torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), gradient)

    timed("T7: GFLOP/s, batch 8", call, gflop(call), "GFLOP")


class Noise:
    """A U-Net that learns to predict the noise, T = 100, on eyes in [-1, 1]."""

    def __init__(self, network):
        self.network, self.diffusion = network, Diffusion(T=100, schedule="cosine")
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def predict(self, x_t, t):
        output = self.network(x_t, t)
        return getattr(output, "prediction", output)  # ours returns more than the prediction

    def step(self, x, t, epsilon):
        loss = F.mse_loss(self.predict(self.diffusion.add_noise(x, t, epsilon), t), epsilon)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def train(self, eyes, steps, batch):
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            x = eyes[torch.randint(len(eyes), (batch,), generator=generator)]
            t = torch.randint(1, 101, (batch,), generator=generator)
            self.step(x, t, torch.randn(x.shape, generator=generator))

    @torch.no_grad()
    def psnr(self, x):
        """Mean PSNR in dB of the x_0 that follows from the predicted noise, for t from 1 to T."""
        t = torch.linspace(1, 100, len(x)).round().long()
        epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        x_t = self.diffusion.add_noise(x, t, epsilon)
        x_0 = self.diffusion.x_0("noise", self.predict(x_t, t), x_t, t).clamp(-1, 1)
        return psnr((x_0 + 1) / 2, (x + 1) / 2).mean().item()


@pytest.mark.parametrize("who", ["rr", "peer", "peer, flash_attn"])
@pytest.mark.parametrize("dim", [8, 16])
def test_unet(who, dim, timed, benchmark, size=64, batch=8):
    """Ours has at least as many parameters as denoising_diffusion_pytorch's Unet(dim)."""
    unet = pytest.importorskip("denoising_diffusion_pytorch").Unet
    torch.manual_seed(0)
    peer = unet(dim, flash_attn=who.endswith("flash_attn"))
    width = next(w for w in count(8, 4) if parameters(UNet(w)) >= parameters(peer))
    model = Noise(UNet(width) if who == "rr" else peer)
    eyes = 2 * torch.cat([to_tensor(fundus(0, i, size).image) for i in range(256)]) - 1
    x, t = eyes[:batch], torch.arange(1, batch + 1)
    epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    timed(
        f"T8: training step of Unet({dim}) or ours, 64 px",
        lambda: model.step(x, t, epsilon),
        batch,
        "images",
    )
    model.train(eyes[:224], steps=200, batch=batch // 2)
    benchmark.extra_info["parameters"] = parameters(model.network)
    benchmark.extra_info["dB after 200 steps"] = model.psnr(eyes[224:])

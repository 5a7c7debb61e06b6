"""A bridge from the degraded image y to the clean image x (InDI, Delbracio & Milanfar 2023, arXiv 2303.11435).

The paper's chain starts from y buried in noise. A bridge starts from y itself:

    x_t = (1 - t) x + t y,    t from 1 (the degraded image) to 0 (the clean one)

A network that is trained to predict x from x_t is walked back in a few steps, each of which goes a part of the way.
`Bridge` is such a restorer; trained at t = 1 only, it is plain regression, the one-step U-Net that any iterated method has to
beat. `samples` is the mean and the spread of several restorations of any restorer.
"""

import torch
from torch import nn

from rr.models import backbones
from rr.models.diffusion import noise
from rr.models.restorer import Restorer
from rr.models.vae import kl


def between(x, y, t):
    """x_t = (1 - t) x + t y; t in [0, 1], a number or (N, 1, 1, 1)."""
    return (1 - t) * x + t * y


def walk(predict, y, steps):
    """From x_1 = y to x_0 in `steps` equal steps; yields (t, x_t, x_hat) per step, at last (0, x_0, x_0).

    predict(x_t, t) -> x_hat, t a number. A step from t to s < t keeps s / t of the way that is left (InDI, equation 8):
    x_s = (s / t) x_t + (1 - s / t) x_hat. One step is plain regression, x_0 = predict(y, 1).
    """
    x_t = y
    for k in range(steps, 0, -1):
        t, s = k / steps, (k - 1) / steps
        x_hat = predict(x_t, t)
        yield t, x_t, x_hat
        x_t = s / t * x_t + (1 - s / t) * x_hat
    yield 0.0, x_t, x_t


class Bridge(Restorer):
    """A bridge from y to x, with any backbone. A U-Net gives the way that is left, x_hat = x_t + t U(x_t, t), which is x_t
    itself at t = 0 and, before any training, everywhere; the VAE gives x_hat."""

    STEPS = 4  # of a restoration, if not asked for otherwise
    TIMES = 1000  # t in [0, 1] becomes a step of so many, in which the backbones tell the time

    def __init__(
        self,
        size,  # side of the images, px
        backbone="unet",  # a key of backbones.BACKBONES
        width=32,  # channels of the backbone's first convolution
        latent=128,  # length of the VAE's z
        one_step=False,  # train at t = 1 only and restore in one step: the control
        sigma=0.02,  # noise added to y, standard deviation; without any, all samples are one
    ):
        super().__init__()
        self.arguments = {"size": size, "backbone": backbone, "width": width, "latent": latent, "one_step": one_step,
                          "sigma": sigma}  # fmt: skip
        self.one_step, self.sigma, self.objective = one_step, sigma, "image"
        self.backbone = backbones.backbone(backbone, size, width, latent)
        if backbone != "vae":
            nn.init.zeros_(self.backbone.head.weight)
            nn.init.zeros_(self.backbone.head.bias)

    @property
    def hot(self):
        """See UNet.hot."""
        return self.backbone.hot

    def forward(self, x_t, t, generator=None):
        """x_t (N, 3, H, W), t (N,) in [0, 1] => Output with x_hat (N, 3, H, W), not clipped."""
        output = self.backbone(x_t, self.TIMES * t, generator)
        if output.mu is not None:
            return output
        return output._replace(prediction=x_t + t[:, None, None, None] * output.prediction.float())

    def loss(self, y, x, generator):
        """{"loss": mean |x_hat - x|} at a random t, which is 1 in half of the images (one_step: in all), where restoration
        begins; of a VAE + KL over the number of values."""
        t = torch.rand(len(x), generator=generator)
        t = torch.where(
            torch.rand(len(x), generator=generator) < (1.0 if self.one_step else 0.5),
            torch.ones(()),
            t,
        )
        t, y = t.to(x.device, non_blocking=True), y + self.sigma * noise(y, generator)
        output = self(between(x, y, t[:, None, None, None]), t, generator)
        loss = (output.prediction.float() - x).abs().mean()
        if output.mu is None:
            return {"loss": loss}
        divergence = kl(output.mu, output.logvar).mean() / x[0].numel()
        return {"loss": loss + divergence, "l1": loss, "kl": divergence}

    @torch.no_grad()
    def trajectory(self, y, generator, steps=None):
        """From y, with its noise, to x in `steps` steps: yields (t, x_t, x_hat), x_hat in [0, 1], see `walk`."""
        y = y + self.sigma * noise(y, generator)

        def predict(x_t, t):
            return (
                self(x_t, torch.full((len(x_t),), t, device=x_t.device))
                .prediction.float()
                .clamp(0, 1)
            )

        yield from walk(predict, y, steps or (1 if self.one_step else self.STEPS))


def samples(model, y, fov, generator, k, **options):
    """k restorations by anything with `.restore`: their mean (N, 3, H, W), and the uncertainty map (N, 1, H, W), the standard
    deviation per pixel, root mean square over the channels.

    Each draws on from `generator`. The map is 0 everywhere for a restorer that draws nothing, and with k = 1. It is the spread
    of the method, which need not be the size of its error.
    """
    drawn = torch.stack([model.restore(y, fov, generator, **options) for _ in range(k)])
    variance = drawn.var(0, correction=min(1, k - 1))
    return drawn.mean(0), variance.mean(1, keepdim=True).sqrt()

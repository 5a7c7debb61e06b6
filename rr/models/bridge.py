"""A bridge from the degraded image y to the clean image x (InDI, Delbracio & Milanfar 2023,
arXiv 2303.11435).

The paper's chain starts from a noised y. A bridge starts from y itself:

    x_t = (1 - t) x + t y,    t from 1 (the degraded image) to 0 (the clean image)

The network is trained to predict x from x_t. A restoration takes a few steps, and each step goes a
part of the way to the prediction. A bridge that is trained at t = 1 only is plain regression: the
one-step U-Net that every iterative method has to beat.

Shapes: y, x, x_t, x_hat are (N, 3, H, W).
"""

import torch
from torch import nn

from rr.models import backbones
from rr.models.diffusion import noise
from rr.models.restorer import Restorer, with_kl


def interpolate(x, y, t):
    """x_t = (1 - t) x + t y. t in [0, 1] is a number or (N, 1, 1, 1)."""
    return (1 - t) * x + t * y


def sample(predict, y, steps):
    """Go from x_1 = y to x_0 in `steps` equal steps: yields (t, x_t, x_hat), finally (0, x_0, x_0).

    predict(x_t, t) -> x_hat, with t a number. A step from t to s < t (InDI, equation 8) is
    x_s = (s / t) x_t + (1 - s / t) x_hat. With one step this is regression, x_0 = predict(y, 1).
    """
    x_t = y
    for k in range(steps, 0, -1):
        t, s = k / steps, (k - 1) / steps
        x_hat = predict(x_t, t)
        yield t, x_t, x_hat
        x_t = s / t * x_t + (1 - s / t) * x_hat
    yield 0.0, x_t, x_t


class Bridge(Restorer):
    """A bridge from y to x with any backbone, without a condition.

    The VAE predicts x_hat. A U-Net predicts the remaining way, x_hat = x_t + t U(x_t, t). Its last
    layer starts at zero, so that an untrained bridge returns y.
    """

    STEPS = 4  # steps of a restoration, unless another number is given
    TIMES = 1000  # the backbone receives the step TIMES * t, because it expects large numbers

    def __init__(
        self,
        size,  # side of the images, px
        backbone="unet",  # a key of backbones.BACKBONES
        width=32,  # channels of the backbone's first convolution
        latent=128,  # length of the VAE's z
        one_step=False,  # train at t = 1 only and restore in one step: the control
        sigma=0.02,  # standard deviation of the noise on y; with 0 a restoration is deterministic
    ):
        super().__init__()
        self.arguments = {"size": size, "backbone": backbone, "width": width, "latent": latent,
                          "one_step": one_step, "sigma": sigma}  # fmt: skip
        self.one_step, self.sigma, self.objective = one_step, sigma, "image"
        self.backbone = backbones.backbone(backbone, size, width, latent)
        if backbone != "vae":
            nn.init.zeros_(self.backbone.head.weight)
            nn.init.zeros_(self.backbone.head.bias)

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles on a GPU."""
        return self.backbone.compile_targets

    def forward(self, x_t, t, generator=None):
        """x_t (N, 3, H, W) and t (N,) in [0, 1] => Output with x_hat (N, 3, H, W), not clipped."""
        output = self.backbone(x_t, self.TIMES * t, generator)
        if output.mu is not None:
            return output
        return output._replace(prediction=x_t + t[:, None, None, None] * output.prediction.float())

    def loss(self, y, x, generator):
        """{"loss": mean |x_hat - x|, for a VAE + KL} at a random t per image.

        t is 1, where a restoration begins, for half of the images (one_step: for all of them).
        """
        t = torch.rand(len(x), generator=generator)
        share = 1.0 if self.one_step else 0.5
        t = torch.where(torch.rand(len(x), generator=generator) < share, torch.ones(()), t)
        t, y = t.to(x.device, non_blocking=True), y + self.sigma * noise(y, generator)
        output = self(interpolate(x, y, t[:, None, None, None]), t, generator)
        return with_kl("l1", (output.prediction.float() - x).abs().mean(), output)

    @torch.no_grad()
    def trajectory(self, y, generator, steps=None):
        """From y + noise to x_0: yields (t, x_t, x_hat) with x_hat in [0, 1], see `sample`."""
        y = y + self.sigma * noise(y, generator)

        def predict(x_t, t):
            output = self(x_t, torch.full((len(x_t),), t, device=x_t.device))
            return output.prediction.float().clamp(0, 1)

        yield from sample(predict, y, steps or (1 if self.one_step else self.STEPS))


def mean_and_spread(model, y, fov, generator, k, **options):
    """Restore y k times: the mean (N, 3, H, W) and the uncertainty map (N, 1, H, W).

    The map is the standard deviation per pixel, root mean square over the channels. It is 0 for
    k = 1 and for a deterministic restorer. It measures the spread, not the error, of the method.
    """
    restored = torch.stack([model.restore(y, fov, generator, **options) for _ in range(k)])
    variance = restored.var(0, correction=min(1, k - 1))
    return restored.mean(0), variance.mean(1, keepdim=True).sqrt()

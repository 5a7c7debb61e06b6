"""The variational autoencoder of section 2.5: three convolutions, mu and log sigma^2, a fully connected layer back to
feature maps, three transposed convolutions, a sigmoid; and its two losses, of which the reconstruction has three likelihoods.

It serves alone (notebook 05) and as the backbone of the diffusion model (2.1: the fused noisy image enters the
encoder, the decoder returns the clear image), where the time step t enters as one more bias of the first convolution.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import ContinuousBernoulli

from rr.errors import InputError, choose
from rr.models.diffusion import noise


class Output(NamedTuple):
    """What every backbone returns: the prediction (N, 3, H, W) and, of a VAE, mu and log sigma^2 (N, latent), and what its
    decoder returned before the last nonlinearity (N, 3, H, W)."""

    prediction: Tensor
    mu: Tensor | None = None
    logvar: Tensor | None = None
    logits: Tensor | None = None


class TimeEmbedding(nn.Sequential):
    """t (N,) => (N, width): sines and cosines of t at 32 frequencies from 1 to 1/1000, then a linear layer."""

    def __init__(self, width):
        super().__init__(nn.Linear(64, width), nn.SiLU())
        self.register_buffer("frequencies", torch.logspace(0, -3, 32), persistent=False)

    def forward(self, t):
        angles = t.float()[:, None] * self.frequencies
        return super().forward(torch.cat([angles.sin(), angles.cos()], 1))


class Convolutions(nn.ModuleList):
    """The encoder's three convolutions, each with its ReLU."""

    def forward(self, x, bias=None):
        """x (N, channels, H, W), bias (N, width) on the first convolution or None => (N, 2 width, H/8, W/8)."""
        first, second, third = self
        h = first(x)  # N, width, H/2, W/2
        if bias is not None:
            h = h + bias[:, :, None, None]
        return F.relu(third(F.relu(second(F.relu(h)))))


class VAE(nn.Module):
    """VAE of section 2.5 for images of a fixed size."""

    def __init__(
        self,
        size,  # side of the image, px; a multiple of 8 (three halvings)
        latent=128,  # length of z
        width=32,  # channels of the first convolution; then 2 width, 2 width
        timed=True,  # whether it is told the step t, as the backbone of a diffusion is
        likelihood="bce",  # a key of LIKELIHOODS: p(x | z)
        channels=3,  # of the input
    ):
        super().__init__()
        if size % 8:
            raise InputError(
                f"image size {size}: the VAE halves it three times; use a multiple of 8"
            )
        self.arguments = {"size": size, "latent": latent, "width": width, "timed": timed, "likelihood": likelihood,
                          "channels": channels}  # fmt: skip
        self.mean, self.nll = choose("likelihood", likelihood, LIKELIHOODS)
        self.likelihood = likelihood
        self.shape = (2 * width, size // 8, size // 8)
        flat = 2 * width * (size // 8) ** 2
        self.convolutions = Convolutions(
            [
                nn.Conv2d(channels, width, 4, stride=2, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),
            ]
        )
        self.time = nn.Sequential(TimeEmbedding(64), nn.Linear(64, width)) if timed else None
        self.mu = nn.Linear(flat, latent)
        self.logvar = nn.Linear(flat, latent)
        nn.init.zeros_(
            self.logvar.weight
        )  # sigma = e^-2 at the start: no exploding first steps, and less noise than signal
        nn.init.constant_(self.logvar.bias, -4.0)
        self.fully_connected = nn.Linear(latent, flat)
        self.transposed = nn.Sequential(
            nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )  # fmt: skip

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile; between them small vectors, and noise."""
        return [self.convolutions, self.transposed]

    def encode(self, x, t=None):
        """x (N, channels, H, W), t (N,), None if not timed => mu, log sigma^2, each (N, latent), float32."""
        h = self.convolutions(x, None if self.time is None else self.time(t)).flatten(
            1
        )  # N, 2 width * H/8 * W/8
        return self.mu(h).float(), self.logvar(h).float().clamp(-20, 10)

    def decode_logits(self, z):
        """z (N, latent) => (N, 3, H, W), before the sigmoid."""
        return self.transposed(F.relu(self.fully_connected(z)).unflatten(1, self.shape))

    def decode(self, z):
        """z (N, latent) => x_hat (N, 3, H, W), the mean of p(x | z); in [0, 1] but for the likelihood "normal"."""
        return self.mean(
            self.decode_logits(z).float()
        )  # in bf16 every logit above 6 would be 1, and its log lost

    def forward(self, x, t=None, generator=None):
        """x_hat with its mu and log sigma^2. In training z is sampled; in evaluation z = mu, so the result is one."""
        mu, logvar = self.encode(x, t)
        z = reparameterize(mu, logvar, generator) if self.training else mu
        logits = self.decode_logits(z).float()
        return Output(self.mean(logits), mu, logvar, logits)

    def elbo(self, output, x):
        """{"loss": reconstruction + KL, likelihood: reconstruction, "kl"} (2.5): nats, mean over images, over the number of
        values of an image. The division changes no ratio between the two terms; it lets one learning rate serve all sizes."""
        values = x[0].numel()
        reconstruction, divergence = (
            self.nll(output, x).mean() / values,
            kl(output.mu, output.logvar).mean() / values,
        )
        return {
            "loss": reconstruction + divergence,
            self.likelihood: reconstruction,
            "kl": divergence,
        }

    def loss(self, x, generator=None):
        """The VAE alone (notebook 05): {"loss", "bce", "kl"} of reconstructing x, see `elbo`."""
        return self.elbo(self(x, generator=generator), x)


def reparameterize(mu, logvar, generator=None):
    """z = mu + epsilon * sigma (2.5, first equation), epsilon ~ N(0, 1) by a CPU generator, see diffusion.noise."""
    return mu + noise(mu, generator) * torch.exp(logvar / 2)


def bce(x_hat, x):
    """Reconstruction loss (2.5, second equation), nats per image (N,): summed over pixels and channels.

    The paper prints the sum without its minus sign; what is minimized is the negative log-likelihood. For pixels
    between 0 and 1 its minimum, at x_hat = x, is the entropy of x and not 0: see notebook 05.
    """
    with torch.autocast(x_hat.device.type, enabled=False):
        return F.binary_cross_entropy(x_hat.float(), x.float(), reduction="none").flatten(1).sum(1)


def kl(mu, logvar):
    """KL divergence from N(mu, sigma^2) to N(0, 1) (2.5, third equation), nats per image (N,)."""
    return 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1)


def squared(x_hat, x):
    """Squared error summed over pixels and channels, per image (N,): -log of N(x; x_hat, 1/2), up to a constant.

    Beside a KL term of weight 1 this is a beta-VAE (Higgins et al. 2017) with beta = 1 at that variance.
    """
    with torch.autocast(x_hat.device.type, enabled=False):
        return ((x_hat.float() - x.float()) ** 2).flatten(1).sum(1)


def continuous_bernoulli(logits, x):
    """-log of the continuous Bernoulli density (Loaiza-Ganem & Cunningham 2019), nats per image (N,), summed likewise.

    It is the BCE less log C(lambda), the logarithm of the constant by which the BCE's "density" misses an integral of 1
    over pixels in [0, 1]. A density: it may be negative, and it has no floor at the entropy of x.
    """
    with torch.autocast(logits.device.type, enabled=False):
        density = ContinuousBernoulli(
            logits=logits.float(), validate_args=False
        )  # whose checks would make a GPU wait
        return -density.log_prob(x.float()).flatten(1).sum(1)


class Likelihood(NamedTuple):
    """p(x | z) of a decoder."""

    mean: Callable  # logits (N, 3, H, W) => the mean of p(x | z), the restored image
    nll: Callable  # (Output, x) => -log p(x | z) (N,)


# the mean of a continuous Bernoulli is not its lambda = sigmoid(logits)
LIKELIHOODS = {
    "bce": Likelihood(torch.sigmoid, lambda output, x: bce(output.prediction, x)),
    "mse": Likelihood(torch.sigmoid, lambda output, x: squared(output.prediction, x)),
    "continuous-bernoulli": Likelihood(
        lambda logits: ContinuousBernoulli(logits=logits).mean,
        lambda output, x: continuous_bernoulli(output.logits, x),
    ),
    "normal": Likelihood(
        lambda logits: logits, lambda output, x: squared(output.prediction, x)
    ),  # noise, v: not in [0, 1]
}

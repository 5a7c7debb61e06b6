"""The variational autoencoder of section 2.5: network, losses, and the likelihoods of its decoder.

Three convolutions, mu and log sigma^2, a fully connected layer back to feature maps, three
transposed convolutions, a sigmoid. Notebook 05 trains it alone. In the diffusion model it is a
backbone (2.1): the encoder sees the fused noisy image, the decoder returns the clear image, and the
time step t is a bias of the first convolution.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import ContinuousBernoulli

from rr.errors import InputError, choose
from rr.models.diffusion import noise
from rr.models.layers import Output, TimeEmbedding


class VAE(nn.Module):
    """The VAE for images of a fixed size. Raises InputError for a size that is no multiple of 8."""

    def __init__(
        self,
        size,  # side of the image, px; a multiple of 8 (three halvings)
        latent=128,  # length of z
        width=32,  # channels of the first convolution; the other two have 2 width
        timed=True,  # whether the network takes the step t, as the backbone of a diffusion does
        likelihood="bce",  # p(x | z), a key of LIKELIHOODS
        channels=3,  # of the input
    ):
        super().__init__()
        if size % 8:
            raise InputError(
                f"image size {size}: the VAE halves it three times; use a multiple of 8"
            )
        self.arguments = {"size": size, "latent": latent, "width": width, "timed": timed,
                          "likelihood": likelihood, "channels": channels}  # fmt: skip
        self.likelihood = likelihood
        self.mean, self.nll = choose("likelihood", likelihood, LIKELIHOODS)
        self.shape = (2 * width, size // 8, size // 8)
        flat = 2 * width * (size // 8) ** 2
        self.first = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.convolutions = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.time = nn.Sequential(TimeEmbedding(64), nn.Linear(64, width)) if timed else None
        self.mu = nn.Linear(flat, latent)
        self.logvar = nn.Linear(flat, latent)
        self.fully_connected = nn.Linear(latent, flat)
        self.transposed = nn.Sequential(
            nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )  # fmt: skip
        self.initialise()

    def initialise(self):
        """Set weights with which the first outputs already depend on z.

        He et al. (2015) keep the size of the features from layer to layer. With torch's default the
        features shrink, and for thousands of images the decoder returns the same image for every z.
        """
        for layer in (self.first, *self.convolutions[1::2], self.fully_connected):
            nn.init.kaiming_normal_(layer.weight)
        for layer in self.transposed[::2]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            layer.weight.data *= 2  # with stride 2, a quarter of the 4x4 weights meet at a pixel
        self.transposed[-1].weight.data /= 16  # the first images are nearly grey
        nn.init.zeros_(self.logvar.weight)  # sigma = e^-2 at the start: less noise than signal,
        nn.init.constant_(self.logvar.bias, -4.0)  # and no exploding first steps

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles; small vectors and noise stay outside."""
        return [self.first, self.convolutions, self.transposed]

    def encode(self, x, t=None):
        """x (N, channels, H, W), t (N,) if timed => mu, log sigma^2, each (N, latent), float32."""
        h = self.first(x.contiguous(memory_format=torch.channels_last))  # N, width, H/2, W/2
        if self.time is not None:
            h = h + self.time(t)[:, :, None, None]
        h = self.convolutions(h).flatten(1)  # N, 2 width * H/8 * W/8
        return self.mu(h).float(), self.logvar(h).float().clamp(-20, 10)

    def decode_logits(self, z):
        """z (N, latent) => (N, 3, H, W), before the sigmoid."""
        h = F.relu(self.fully_connected(z)).unflatten(1, self.shape)  # N, 2 width, H/8, W/8
        return self.transposed(h.contiguous(memory_format=torch.channels_last))

    def decode(self, z):
        """z (N, latent) => x_hat (N, 3, H, W), the mean of p(x | z); in [0, 1] unless "normal"."""
        return self.mean(self.decode_logits(z).float())

    def forward(self, x, t=None, generator=None):
        """Output with x_hat, mu and log sigma^2. z is sampled in training; in evaluation z = mu."""
        mu, logvar = self.encode(x, t)
        z = reparameterize(mu, logvar, generator) if self.training else mu
        logits = self.decode_logits(z).float()  # the sigmoid of a bf16 logit above 6 would be 1
        return Output(self.mean(logits), mu, logvar, logits)

    def elbo(self, output, x):
        """The loss of section 2.5 and its two terms: {"loss", likelihood: reconstruction, "kl"}.

        Nats, mean over images, divided by the number of values of an image. The division changes no
        ratio between the terms; it makes one learning rate fit all image sizes.
        """
        values = x[0].numel()
        reconstruction = self.nll(output, x).mean() / values
        divergence = kl(output.mu, output.logvar).mean() / values
        loss = reconstruction + divergence
        return {"loss": loss, self.likelihood: reconstruction, "kl": divergence}

    def loss(self, x, generator=None):
        """The loss of the VAE alone (notebook 05), which reconstructs x: see `elbo`."""
        return self.elbo(self(x, generator=generator), x)


def reparameterize(mu, logvar, generator=None):
    """z = mu + epsilon * sigma (2.5, first equation), epsilon ~ N(0, 1), see diffusion.noise."""
    return mu + noise(mu, generator) * torch.exp(logvar / 2)


def bce(x_hat, x):
    """Reconstruction loss (2.5, second equation): nats per image (N,), summed over its values.

    The paper prints the sum without its minus sign; the negative log-likelihood is what is
    minimized. For pixels between 0 and 1 its minimum, at x_hat = x, is the entropy of x and not 0.
    """
    with torch.autocast(x_hat.device.type, enabled=False):
        return F.binary_cross_entropy(x_hat.float(), x.float(), reduction="none").flatten(1).sum(1)


def bce_of_logits(logits, x):
    """`bce` of x_hat = sigmoid(logits): faster, and exact where the sigmoid rounds to 0 or 1."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), x.float(), reduction="none")
    return bce.flatten(1).sum(1)


def kl(mu, logvar):
    """KL divergence from N(mu, sigma^2) to N(0, 1) (2.5, third equation), nats per image (N,)."""
    return 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1)


def squared(x_hat, x):
    """Squared error per image (N,), summed over its values: -log N(x; x_hat, 1/2) + constant.

    With a KL term of weight 1 this is a beta-VAE (Higgins et al. 2017) with beta = 1.
    """
    with torch.autocast(x_hat.device.type, enabled=False):
        return ((x_hat.float() - x.float()) ** 2).flatten(1).sum(1)


def continuous_bernoulli(logits, x):
    """-log of the continuous Bernoulli density (Loaiza-Ganem & Cunningham 2019): nats (N,).

    It is the BCE minus log C(lambda), where C makes the integral of the density over [0, 1] equal
    to 1. Therefore it can be negative, and the entropy of x is no lower bound.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # validate_args=False: the check of the arguments would make a GPU wait
        density = ContinuousBernoulli(logits=logits.float(), validate_args=False)
        return -density.log_prob(x.float()).flatten(1).sum(1)


class Likelihood(NamedTuple):
    """p(x | z) of a decoder."""

    mean: Callable  # logits (N, 3, H, W) => the mean of p(x | z), which is the restored image
    nll: Callable  # (Output, x) => -log p(x | z) (N,)


LIKELIHOODS = {
    "bce": Likelihood(torch.sigmoid, lambda output, x: bce_of_logits(output.logits, x)),
    "mse": Likelihood(torch.sigmoid, lambda output, x: squared(output.prediction, x)),
    # the mean of a continuous Bernoulli differs from its parameter lambda = sigmoid(logits)
    "continuous-bernoulli": Likelihood(
        lambda logits: ContinuousBernoulli(logits=logits).mean,
        lambda output, x: continuous_bernoulli(output.logits, x),
    ),
    # for noise and v, which are not restricted to [0, 1]
    "normal": Likelihood(lambda logits: logits, lambda output, x: squared(output.prediction, x)),
}

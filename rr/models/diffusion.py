"""The diffusion model of section 2.4: schedules, forward process, reverse steps, sampler.

Steps are t = 1..T. Step t = 0 is the image itself, so alpha_bar[0] = 1. Images keep the paper's
range [0, 1] (its decoder ends in a sigmoid), and unit Gaussian noise is added to them.
"""

import math

import torch

from rr.errors import choose


def linear(T):
    """Linear betas of DDPM (Ho et al. 2020), multiplied by 1000 / T so that alpha_bar_T is near 0.

    At T = 1000 these are the values of DDPM. With the same values at T = 100, alpha_bar_T would be
    0.36, and a chain that starts from pure noise would start where the forward process never ends.
    """
    scale = 1000 / T
    return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)


def cosine(T, s=0.008):
    """Cosine betas (Nichol & Dhariwal 2021, equation 17), each at most 0.999."""
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear, "cosine": cosine}
OBJECTIVES = ("noise", "image", "v")  # what the network predicts


def noise(like, generator=None):
    """epsilon ~ N(0, 1) with the shape, device and type of the tensor `like`.

    `generator` is a CPU generator, or None for torch's own. On a GPU the noise is drawn on the
    device by a generator that is seeded from it. Results are reproducible per type of device.
    """
    if like.device.type != "cpu":
        generator = seeded(generator, like.device)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like)


def seeded(generator, device):
    """A generator of `device` whose seed is one draw of the CPU generator `generator`."""
    return torch.Generator(device).manual_seed(torch.randint(2**62, (), generator=generator).item())


class Diffusion(torch.nn.Module):
    """beta_t, alpha_t = 1 - beta_t and alpha_bar_t = alpha_1 ... alpha_t for t = 0..T (float64)."""

    def __init__(self, T=1000, schedule="linear"):
        super().__init__()
        self.T = T
        betas = choose("schedule", schedule, SCHEDULES)(T)
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas])  # T + 1
        self.register_buffer("beta", beta, persistent=False)
        self.register_buffer("alpha", 1 - beta, persistent=False)
        self.register_buffer("alpha_bar", torch.cumprod(1 - beta, 0), persistent=False)

    @property
    def snr(self):
        """The signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t) for t = 0..T (float64)."""
        return self.alpha_bar / (1 - self.alpha_bar).clamp(min=1e-12)

    def at(self, values, t):
        """values[t] as float32 (N, 1, 1, 1); t is an int or a tensor (N,)."""
        return values[t].float().reshape(-1, 1, 1, 1)

    def add_noise(self, x_0, t, epsilon):
        """Forward process (2.4): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon."""
        alpha_bar = self.at(self.alpha_bar, t)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * epsilon

    def noise_between(self, x_t, t, x_0):
        """The epsilon with which the forward process leads from x_0 to x_t; needs t >= 1."""
        alpha_bar = self.at(self.alpha_bar, t)
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    def target(self, objective, x_t, t, x_0):
        """What the network must predict at x_t to lead to x_0: (N, 3, H, W).

        "noise": epsilon; "image": x_0; "v": sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0
        (Salimans & Ho 2022). x_0 need not be the noised image: restoration noises y and asks for x.
        """
        if objective == "image":
            return x_0
        epsilon = self.noise_between(x_t, t, x_0)
        if objective == "noise":
            return epsilon
        alpha_bar = self.at(self.alpha_bar, t)
        return alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x_0

    def x_0(self, objective, prediction, x_t, t):
        """The x_0 that a prediction implies, the inverse of `target`: (N, 3, H, W), not clipped."""
        alpha_bar = self.at(self.alpha_bar, t)
        if objective == "image":
            return prediction
        if objective == "noise":
            return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction

    def weight(self, objective, t, gamma=5.0):
        """Weight (N, 1, 1, 1) of the squared error, the same for x_0 whatever the network predicts.

        min-SNR (Hang et al. 2023) with SNR = alpha_bar / (1 - alpha_bar): every objective gives
        the squared error of x_0 the weight min(SNR, gamma). An error e of x_0 is an error
        sqrt(SNR) e of epsilon and sqrt(SNR + 1) e of v. Predictions that imply the same x_0 have
        the same loss, so the losses need no further normalisation.
        """
        snr = self.at(self.snr, t)
        implied = {"image": 1, "noise": snr, "v": snr + 1}[objective]
        return snr.clamp(max=gamma) / implied

    def ddpm_step(self, x_t, t, epsilon, z):
        """One reverse step (2.4, third equation), from t to t - 1; without z at t = 1.

        x_{t-1} = (x_t - (1 - alpha) / sqrt(1 - alpha_bar) epsilon) / sqrt(alpha) + sqrt(beta) z
        """
        alpha, alpha_bar = self.at(self.alpha, t), self.at(self.alpha_bar, t)
        mean = (x_t - (1 - alpha) / (1 - alpha_bar).sqrt() * epsilon) / alpha.sqrt()
        return mean if t == 1 else mean + self.at(self.beta, t).sqrt() * z

    def ddim_step(self, x_t, t, s, epsilon):
        """Deterministic step from t to s < t (Song et al. 2021, equation 12 with eta = 0)."""
        return self.add_noise(self.x_0("noise", epsilon, x_t, t), s, epsilon)

    def reverse(
        self,
        denoise,  # (x_t, t (N,)) -> prediction (N, 3, H, W)
        x_t,  # the state at t = start
        start,  # the first t
        objective,  # what `denoise` predicts, one of OBJECTIVES
        generator=None,  # CPU generator of the noise z, see `noise`
        steps="all",  # the paper's chain, every t with fresh noise; or k: DDIM in k equal steps
        condition_on_state=None,  # x_t -> x_t, changes the state before every step (notebook 10)
    ):
        """Yield (t, x_t, x_0_hat) per step, and (0, x_0, x_0) at the end.

        x_0_hat is clipped to [0, 1], and the step uses the clipped image.
        """
        if steps == "all":
            times = range(start, 0, -1)
        else:
            times = {max(1, round(start * k / steps)) for k in range(1, steps + 1)}
            times = sorted(times, reverse=True)
        for t, s in zip(times, [*times[1:], 0]):
            x_t = x_t if condition_on_state is None else condition_on_state(x_t)
            prediction = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
            x_0_hat = self.x_0(objective, prediction, x_t, t).clamp(0, 1)
            yield t, x_t, x_0_hat
            epsilon = self.noise_between(x_t, t, x_0_hat)
            if steps == "all":
                x_t = self.ddpm_step(x_t, t, epsilon, noise(x_t, generator))
            else:
                x_t = self.ddim_step(x_t, t, s, epsilon)
        x_0 = x_t.clamp(0, 1)
        yield 0, x_0, x_0

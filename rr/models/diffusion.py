"""The diffusion model of section 2.4: schedules, forward process, reverse steps, samplers that yield the trajectory.

Steps run t = 1..T; t = 0 is the image itself and alpha_bar[0] = 1. Images keep the paper's range [0, 1] (its decoder
ends in a sigmoid), so the process works on x in [0, 1] and adds unit Gaussian noise.
"""

import math

import torch

from rr.errors import choose


def linear(T):
    """Linear betas of DDPM (Ho et al. 2020), rescaled by 1000 / T so that alpha_bar_T is near 0 for every T.

    Unscaled, alpha_bar_T would be .36 at T = 100: a chain that starts from pure noise would start from a place the
    forward process never reaches. At T = 1000 these are DDPM's own values.
    """
    scale = 1000 / T
    return torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=0.999)


def cosine(T, s=0.008):
    """Cosine betas (Nichol & Dhariwal 2021, equation 17), each at most 0.999."""
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear, "cosine": cosine}
OBJECTIVES = ("noise", "image", "v")


def noise(like, generator=None):
    """epsilon ~ N(0, 1) of the shape, device and type of the tensor `like`; generator: a CPU generator, None: torch's own.

    Not drawn on the CPU for another device, where that and the copy take longer than a network's step: there a generator of
    the device draws it, seeded by one draw of `generator`. So one seed gives one noise on each kind of device, and another
    on another kind.
    """
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator).to(like)
    return torch.randn(like.shape, generator=seeded(generator, like.device), device=like.device).to(
        like
    )


def seeded(generator, device):
    """A generator of `device`, seeded by one draw of the CPU generator `generator`."""
    return torch.Generator(device).manual_seed(torch.randint(2**62, (), generator=generator).item())


class Diffusion(torch.nn.Module):
    """beta_t, alpha_t = 1 - beta_t and alpha_bar_t = prod(alpha_1..alpha_t) for t = 0..T, as float64 buffers (T+1,)."""

    def __init__(self, T=1000, schedule="linear"):
        super().__init__()
        beta = torch.cat(
            [torch.zeros(1, dtype=torch.float64), choose("schedule", schedule, SCHEDULES)(T)]
        )
        self.T = T
        self.register_buffer("beta", beta, persistent=False)
        self.register_buffer("alpha", 1 - beta, persistent=False)
        self.register_buffer("alpha_bar", torch.cumprod(1 - beta, 0), persistent=False)

    def at(self, values, t):
        """values[t] shaped (N, 1, 1, 1), float32; t is an int or a tensor (N,). An int costs a GPU no copy, and so no wait."""
        t = t if isinstance(t, int) else torch.as_tensor(t, device=values.device)
        return values[t].float().reshape(-1, 1, 1, 1)

    def add_noise(self, x_0, t, epsilon):
        """Forward process (2.4, first equation): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon."""
        alpha_bar = self.at(self.alpha_bar, t)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * epsilon

    def noise_between(self, x_t, t, x_0):
        """The epsilon for which the forward process takes x_0 to x_t; needs t >= 1."""
        alpha_bar = self.at(self.alpha_bar, t)
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    def target(self, objective, x_t, t, x_0):
        """What the backbone must predict at x_t to lead to x_0: (N, 3, H, W).

        "noise": epsilon; "image": x_0; "v": sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022).
        x_0 need not be the image that was noised: restoration noises y and asks for x.
        """
        if objective == "image":
            return x_0
        epsilon = self.noise_between(x_t, t, x_0)
        if objective == "noise":
            return epsilon
        alpha_bar = self.at(self.alpha_bar, t)
        return alpha_bar.sqrt() * epsilon - (1 - alpha_bar).sqrt() * x_0

    def x_0(self, objective, prediction, x_t, t):
        """The inverse of `target`: the image x_0 that a prediction stands for, (N, 3, H, W), not clipped."""
        alpha_bar = self.at(self.alpha_bar, t)
        if objective == "image":
            return prediction
        if objective == "noise":
            return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction

    def weight(self, objective, t, gamma=5.0):
        """Loss weight (N, 1, 1, 1) that caps the implied weight on x_0 at gamma (min-SNR, Hang et al. 2023).

        For pairs with y != x only. An error e in x_0 is an error e * sqrt(SNR) in epsilon, and SNR = alpha_bar /
        (1 - alpha_bar) is unbounded as t -> 0: there an unweighted noise loss would see little but t = 1.
        """
        if objective == "image":
            return torch.ones_like(self.at(self.alpha_bar, t))
        snr = self.at(self.alpha_bar / (1 - self.alpha_bar).clamp(min=1e-12), t)
        return snr.clamp(max=gamma) / (snr if objective == "noise" else snr + 1)

    def ddpm_step(self, x_t, t, epsilon, z):
        """One reverse step (2.4, third equation); z = 0 at t = 1, where nothing may be added to the result.

        x_{t-1} = (x_t - (1 - alpha_t) / sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_t) + sqrt(beta_t) z
        """
        alpha, alpha_bar, beta = (
            self.at(values, t) for values in (self.alpha, self.alpha_bar, self.beta)
        )
        mean = (x_t - (1 - alpha) / (1 - alpha_bar).sqrt() * epsilon) / alpha.sqrt()
        return mean if t == 1 else mean + beta.sqrt() * z

    def ddim_step(self, x_t, t, s, epsilon):
        """Deterministic step t -> s < t (Song et al. 2021, equation 12, eta = 0): same x_0, same epsilon, less noise."""
        return self.add_noise(self.x_0("noise", epsilon, x_t, t), s, epsilon)

    def reverse(self, denoise, x_t, start, objective, generator=None, steps=None, disturb=None):
        """Walk from x_t at t = start to the image; yields (t, x_t, x_0_hat) per step, at last (0, x_0, x_0).

        denoise(x_t, t) -> prediction, t a tensor (N,). steps None: the paper's chain, every t, fresh noise from the CPU
        generator `generator` (see `noise`). steps k: deterministic DDIM over k times spaced evenly. No step waits for a GPU.
        x_0_hat is clipped to [0, 1] and the step follows the clipped image. disturb(x_t) -> x_t: a change of the state itself
        before every step, which the forward process knows nothing of (notebook 10 shows what it does).
        """
        times = list(range(start, 0, -1))
        if steps is not None:
            times = sorted(
                {max(1, round(start * k / steps)) for k in range(1, steps + 1)}, reverse=True
            )
        for t, s in zip(times, [*times[1:], 0]):
            x_t = x_t if disturb is None else disturb(x_t)
            prediction = denoise(x_t, torch.full((len(x_t),), t, device=x_t.device))
            x_0_hat = self.x_0(objective, prediction, x_t, t).clamp(0, 1)
            yield t, x_t, x_0_hat
            epsilon = self.noise_between(x_t, t, x_0_hat)
            if steps is None:
                x_t = self.ddpm_step(x_t, t, epsilon, noise(x_t, generator))
            else:
                x_t = self.ddim_step(x_t, t, s, epsilon)
        x_0 = x_t.clamp(0, 1)
        yield 0, x_0, x_0

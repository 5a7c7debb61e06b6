"""Schedules and steps against diffusers, and the properties that the equations promise."""

import pytest
import torch

from rr.errors import InputError
from rr.models import diffusion
from rr.models.diffusion import OBJECTIVES, SCHEDULES, Diffusion, seeded

SCHEDULES_AND_T = [(name, T) for name in SCHEDULES for T in (20, 200, 1000)]


def images(n=2, seed=0):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def noise(n=2, seed=1):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name, ours", [("linear", "linear"), ("squaredcos_cap_v2", "cosine")])
def test_schedules_equal_those_of_diffusers_at_1000_steps(name, ours):
    from diffusers import DDPMScheduler

    oracle = DDPMScheduler(num_train_timesteps=1000, beta_schedule=name)
    d = Diffusion(1000, ours)
    assert torch.allclose(d.beta[1:].float(), oracle.betas, atol=1e-6)
    assert torch.allclose(d.alpha_bar[1:].float(), oracle.alphas_cumprod, atol=1e-5)


@pytest.mark.parametrize("schedule, T", SCHEDULES_AND_T)
def test_alpha_bar_falls_from_one_to_almost_nothing(schedule, T):
    a = Diffusion(T, schedule).alpha_bar
    assert a[0] == 1 and len(a) == T + 1
    assert (a[1:] < a[:-1]).all()
    assert 0 < a[-1] < 0.01  # unscaled linear betas would end at .82 for T = 20


def test_unknown_schedule_names_the_choices():
    with pytest.raises(InputError, match="linear, cosine"):
        Diffusion(10, "quadratic")


@pytest.mark.parametrize("schedule, T", SCHEDULES_AND_T)
def test_forward_process_has_the_mean_and_variance_of_the_equation(schedule, T):
    d, t = Diffusion(T, schedule), T // 3
    x_0 = torch.full((1, 3, 256, 256), 0.7)
    x_t = d.add_noise(x_0, t, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)))
    assert abs(x_t.mean() - d.alpha_bar[t].sqrt() * 0.7) < 0.01
    assert abs(x_t.var() - (1 - d.alpha_bar[t])) < 0.01


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_x_0_inverts_target_even_if_another_image_was_noised(objective):
    d, y, x = Diffusion(100, "cosine"), images(seed=2), images(seed=3)
    t = torch.tensor([3, 80])
    x_t = d.add_noise(y, t, noise())
    assert torch.allclose(d.x_0(objective, d.target(objective, x_t, t, x), x_t, t), x, atol=1e-4)


def test_noise_target_is_the_true_noise_where_input_and_target_agree():
    d, x, epsilon, t = Diffusion(100, "cosine"), images(), noise(), torch.tensor([1, 99])
    assert torch.allclose(d.target("noise", d.add_noise(x, t, epsilon), t, x), epsilon, atol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_error_of_x_0_has_the_same_loss_whatever_is_predicted(objective):
    """Predictions that imply x_0 + e: their weighted squared error is min(SNR, 5) e^2."""
    d, t = Diffusion(100, "cosine").double(), torch.arange(1, 101)
    y, x, e = (
        torch.rand(100, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    x_t = d.add_noise(y, t, e)
    error = d.target(objective, x_t, t, x + e) - d.target(objective, x_t, t, x)
    snr = (d.alpha_bar / (1 - d.alpha_bar))[1:].float().view(-1, 1, 1, 1)
    expected = snr.clamp(max=5) * e**2
    assert torch.allclose(d.weight(objective, t) * error**2, expected, rtol=2e-3, atol=1e-4)
    assert snr.max() > 5 > snr.min()  # both sides of the cap


def test_ddpm_and_ddim_steps_equal_those_of_diffusers():
    from diffusers import DDIMScheduler, DDPMScheduler

    d, x_t, epsilon = Diffusion(1000, "linear"), noise(seed=4), noise(seed=5)
    ddpm = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        clip_sample=False,
        variance_type="fixed_large",
    )
    t = 500  # ours count from 1, theirs from 0
    mean = d.ddpm_step(x_t, t, epsilon, torch.zeros_like(x_t))
    alpha, alpha_bar, beta = ddpm.alphas[t - 1], ddpm.alphas_cumprod[t - 1], ddpm.betas[t - 1]
    x_0 = (x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    before = ddpm.alphas_cumprod[t - 2]
    posterior = (before.sqrt() * beta * x_0 + alpha.sqrt() * (1 - before) * x_t) / (1 - alpha_bar)
    assert torch.allclose(mean, posterior, atol=1e-4)
    z = noise(seed=6)
    assert torch.allclose(d.ddpm_step(x_t, t, epsilon, z) - mean, beta.sqrt() * z, atol=1e-6)

    ddim = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="leading",
    )
    ddim.set_timesteps(10)
    theirs = ddim.step(epsilon, 500, x_t).prev_sample  # 500 -> 400
    assert torch.allclose(d.ddim_step(x_t, 501, 401, epsilon), theirs, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 15])
@pytest.mark.parametrize("schedule, T", SCHEDULES_AND_T)
def test_ddim_with_the_true_noise_goes_back_through_the_forward_process_to_x_0(schedule, T, steps):
    """The predicted noise is constant, so only correct steps stay on the forward process."""
    d, x, epsilon = Diffusion(T, schedule), images(), noise()
    chain = list(
        d.reverse(
            lambda x_t, t: epsilon, d.add_noise(x, T // 2, epsilon), T // 2, "noise", steps=steps
        )
    )
    assert len(chain) == min(steps, T // 2) + 1
    for t, x_t, x_0_hat in chain:
        assert torch.allclose(x_t, d.add_noise(x, t, epsilon), atol=1e-4)
        assert torch.allclose(x_0_hat, x, atol=1e-4)
    assert chain[-1][0] == 0 and torch.allclose(chain[-1][1], x, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_chain_is_the_equation_applied_step_by_step(objective):
    """The oracle is the loop written out in float64; the predictions depend on x_t and t."""
    d, x_t = Diffusion(30, "cosine"), noise()
    generator = torch.Generator().manual_seed(7)
    chain = list(
        d.reverse(lambda x, t: 0.3 * x + 0.01 * t.view(-1, 1, 1, 1), x_t, 20, objective, generator)
    )
    beta = d.beta.double()
    alpha, alpha_bar = 1 - beta, torch.cumprod(1 - beta, 0)
    generator, x = torch.Generator().manual_seed(7), x_t.double()
    for t, (at, state, x_0_hat) in zip(range(20, 0, -1), chain):
        assert at == t and torch.allclose(state.double(), x, atol=1e-3)
        guess = 0.3 * x + 0.01 * t
        a, b = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
        x_0 = {"noise": (x - b * guess) / a, "image": guess, "v": a * x - b * guess}[
            objective
        ].clamp(0, 1)
        assert torch.allclose(x_0_hat.double(), x_0, atol=1e-3)
        epsilon = (x - a * x_0) / b
        z = torch.randn(x.shape, generator=generator).double() if t > 0 else 0
        x = (x - beta[t] / b * epsilon) / alpha[t].sqrt() + (beta[t].sqrt() * z if t > 1 else 0)
    assert torch.allclose(chain[-1][1].double(), x.clamp(0, 1), atol=1e-3)


def test_the_papers_chain_keeps_the_distribution_of_the_forward_process():
    """If x_0 is predicted exactly, the states at t have the mean of q(x_t | x_0).

    Their variance is the same or slightly larger, because beta_t is the larger of the two usual
    variances of the reverse step.
    """
    d, x = Diffusion(20, "cosine"), torch.full((1, 3, 128, 128), 0.6)
    start = d.add_noise(x, 20, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    for t, x_t, _ in d.reverse(
        lambda x_t, t: x, start, 20, "image", torch.Generator().manual_seed(1)
    ):
        mean, variance = d.alpha_bar[t].sqrt() * 0.6, 1 - d.alpha_bar[t]
        assert abs(x_t.mean() - mean) < 0.02
        assert variance - 0.03 <= x_t.var() <= 1.5 * variance + 0.03
    assert torch.allclose(x_t, x, atol=1e-4)


def test_the_chain_is_deterministic_in_its_generator():
    d, start = Diffusion(20, "cosine"), noise()
    ends = [
        list(
            d.reverse(
                lambda x_t, t: x_t * 0.1, start, 20, "noise", torch.Generator().manual_seed(seed)
            )
        )[-1][1]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# ------------------------------------------------------------------------------------------- noise


def test_noise_on_the_cpu_is_the_generators_own():
    x = torch.empty(2, 3, 4, 5, dtype=torch.bfloat16)
    drawn = diffusion.noise(x, torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.bfloat16
    assert torch.equal(
        drawn, torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3)).to(x)
    )


def test_a_devices_generator_follows_from_one_draw():
    def draws(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(8, generator=seeded(generator, "cpu")) for _ in range(2)]

    (first, second), again = draws(3), draws(3)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, draws(4)[0])


def test_the_reverse_process_asks_no_value_of_the_device():
    """The meta device has no values: .item(), a branch on a tensor or a copy to the CPU fails."""
    d = Diffusion(20, "cosine").to("meta")
    x = torch.empty(2, 3, 8, 8, device="meta")
    states = list(d.reverse(lambda x_t, t: x_t, x, 20, "noise", steps=5))
    assert [t for t, *_ in states] == [20, 16, 12, 8, 4, 0] and states[-1][1].shape == x.shape

"""The VAE: its parts (2.5), and its losses against closed forms and torch.distributions."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from rr.errors import InputError
from rr.models.layers import Output
from rr.models.vae import (
    LIKELIHOODS,
    VAE,
    bce,
    continuous_bernoulli,
    kl,
    reparameterize,
    squared,
)


def test_three_convolutions_a_fully_connected_layer_and_three_transposed_convolutions():
    model = VAE(96, latent=32, width=8)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Conv2d) == 3 and kinds.count(nn.ConvTranspose2d) == 3
    assert (
        model.fully_connected.in_features
        == model.mu.out_features
        == model.logvar.out_features
        == 32
    )


@pytest.mark.parametrize("size", [64, 96, 224])
def test_shapes_and_range(size):
    output = VAE(size, latent=16, width=4, timed=False)(torch.rand(2, 3, size, size))
    assert output.prediction.shape == (2, 3, size, size)
    assert output.mu.shape == output.logvar.shape == (2, 16)
    assert 0 <= output.prediction.min() and output.prediction.max() <= 1


def test_a_size_that_cannot_be_halved_three_times_is_refused():
    with pytest.raises(InputError, match="multiple of 8"):
        VAE(100)


def test_kl_equals_the_closed_form_of_torch():
    mu, logvar = torch.randn(5, 7), torch.randn(5, 7)
    oracle = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl(mu, logvar), oracle, atol=1e-5)
    assert torch.equal(kl(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_kl_equals_a_monte_carlo_estimate():
    mu, logvar = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.2, -0.7]])
    q, p = Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)
    torch.manual_seed(0)
    z = q.sample((200_000,))
    assert abs((q.log_prob(z) - p.log_prob(z)).sum(-1).mean() - kl(mu, logvar)) < 0.02


def test_bce_is_the_sum_of_the_equation_and_smallest_at_x():
    x, x_hat = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    by_hand = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).sum((1, 2, 3))
    assert torch.allclose(bce(x_hat, x), by_hand, rtol=1e-5)
    assert (bce(x, x) < bce(x_hat, x)).all() and (bce(x, x) > 0).all()  # the entropy of x


def test_reparameterized_samples_have_mean_mu_and_deviation_sigma():
    mu, logvar = torch.full((100_000, 1), 3.0), torch.full((100_000, 1), -1.0)
    z = reparameterize(mu, logvar, torch.Generator().manual_seed(0))
    assert abs(z.mean() - 3) < 0.01 and abs(z.std() - torch.tensor(-0.5).exp()) < 0.01


def test_evaluation_is_deterministic_training_samples():
    torch.manual_seed(0)
    model, x = VAE(32, 8, 4, timed=False), torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(x).prediction, model(x).prediction)
    model.eval()
    assert torch.equal(model(x).prediction, model(x).prediction)


def test_time_reaches_the_output():
    model, x = VAE(32, 8, 4).eval(), torch.rand(1, 3, 32, 32)
    assert not torch.equal(
        model(x, torch.tensor([1])).prediction, model(x, torch.tensor([90])).prediction
    )


def test_bce_of_dark_and_bright_pixels_survives_bf16():
    """A sigmoid in bf16 is 1 above logit 6.3, which would lose its logarithm and the gradient."""
    torch.manual_seed(0)
    model, x = VAE(32, 8, 4), torch.ones(1, 3, 32, 32)
    torch.nn.init.constant_(model.transposed[-1].bias, 8.0)
    exact = bce(model.eval()(x, torch.tensor([1])).prediction, 1 - x)  # 3072 values of 8 nats
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, torch.tensor([1]))
        rough = bce(output.prediction, 1 - x)
    assert output.prediction.dtype == output.mu.dtype == torch.float32
    assert exact.item() > 20_000 and torch.allclose(rough, exact, rtol=0.01)


def test_without_time_there_are_no_parameters_for_it():
    assert not any("time" in name for name, _ in VAE(32, 8, 4, timed=False).named_parameters())


# ------------------------------------------------------------------------------------- likelihoods


def test_a_continuous_bernoulli_is_a_density_with_that_mean_and_the_bce_is_not():
    x = (torch.arange(20_000, dtype=torch.float32) + 0.5) / 20_000
    for logit in (-3.0, -0.5, 0.0, 0.001, 2.0):
        logits = torch.full((20_000, 1), logit)
        density = (-continuous_bernoulli(logits, x[:, None])).exp()
        assert abs(density.mean() - 1) < 1e-3  # integral over [0, 1]
        mean = LIKELIHOODS["continuous-bernoulli"].mean(torch.tensor(logit))
        assert abs((density * x).mean() - mean) < 1e-3
        unnormalised = (-bce(logits.sigmoid(), x[:, None])).exp()
        assert unnormalised.mean() < 0.75 if abs(logit) < 2.5 else True


def test_the_squared_error_is_a_normal_likelihood_of_variance_one_half():
    x, x_hat = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    oracle = -Normal(x_hat, 0.5**0.5).log_prob(x).flatten(1).sum(1)
    constant = 48 * 0.5 * torch.log(torch.tensor(torch.pi))
    assert torch.allclose(squared(x_hat, x), oracle - constant, atol=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_is_smallest_where_its_mean_is_the_image(likelihood):
    mean, nll = LIKELIHOODS[likelihood]
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    x = mean(logits).detach()
    (gradient,) = torch.autograd.grad(nll(Output(mean(logits), logits=logits), x).sum(), logits)
    assert gradient.abs().max() < 1e-3
    shifted = logits + 0.5
    assert nll(Output(mean(shifted), logits=shifted), x) > nll(
        Output(mean(logits), logits=logits), x
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_two_terms_are_kept_apart(likelihood):
    model, x = VAE(32, 8, 4, timed=False, likelihood=likelihood).eval(), torch.rand(2, 3, 32, 32)
    output = model(x)
    parts = model.elbo(output, x)
    assert torch.allclose(parts["loss"], parts[likelihood] + parts["kl"])
    assert torch.allclose(parts["kl"] * 3072, kl(output.mu, output.logvar).mean())
    assert (output.prediction.min() < 0) == (likelihood == "normal")

"""The losses against closed forms that are written out here; what every configuration contains."""

import copy
import math
from contextlib import closing
from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import normalize

import rr.models.restorer
from rr.data import degrade, packing, pairs
from rr.data.dataset import Batch
from rr.data.sources import Source
from rr.models.bridge import Bridge
from rr.models.features import Extractor
from rr.models.restorer import Denoiser
from rr.models.vae import Output
from rr.paper import LABELS
from rr.presets import preset
from rr.train import configs, loop
from rr.train.distributed import fabric

# ---- Only the next two functions know how the losses and the pairs are called.


def loss_of(model, y, x, seed=0):
    """The loss of a Denoiser or a Bridge for the pair (y, x)."""
    return model.loss(y, x, torch.Generator().manual_seed(seed))


def degraded(x, seed=0):
    """The parameters that the paired protocol draws for the images x."""
    batch = Batch(x, None, torch.ones(len(x), 1, 1, 1))
    with patch.object(degrade, "apply", side_effect=lambda x, parameters, fov: x) as apply:
        pairs.paired(batch, torch.Generator().manual_seed(seed), True)
    return apply.call_args.args[1]


# ---- The losses. T = 20 steps with the cosine schedule; restoration starts at t_0 = 10.

T, T_0, SIZE, N = 20, 10, 16, 128


class Answers:
    """Stands in for a backbone's `forward`: gives a prepared answer and keeps what it was asked."""

    def __init__(self, variational):
        draw = torch.Generator().manual_seed(7)
        image = 0.1 + 0.8 * torch.rand(N, 3, SIZE, SIZE, generator=draw)
        code = torch.randn(2, N, 50, generator=draw) - 2  # every term of the KL counts
        self.output = Output(image, *code, image.logit()) if variational else Output(image)

    def __call__(self, x_t, t, generator=None):
        self.x_t, self.t = x_t, t.double().view(-1, 1, 1, 1)
        return self.output


def pair():
    """A dark y and a bright x, so that one cannot be taken for the other."""
    y, x = torch.rand(2, N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return 0.4 * y, 0.6 + 0.4 * x


def divergence(output):
    """KL of N(mu, sigma^2) to N(0, 1) over the number of values of an image, mean over images."""
    posterior = Normal(output.mu.double(), torch.exp(output.logvar.double() / 2))
    return kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean() / (3 * SIZE**2)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("objective", ["noise", "v", "image"])
@pytest.mark.parametrize("backbone", ["unet", "vae"])
@pytest.mark.parametrize("trained_for", ["chain", "one-call"])
def test_the_denoisers_loss_is_its_equation(backbone, objective, same, trained_for):
    """Fails if another image is noised, if t leaves 1..t_0 (one call: t_0), if the prediction is
    compared with another target, if the min-SNR weight is missing (or applied although y is x), or
    if the KL is not divided by the number of values."""
    words = {"T": T, "schedule": "cosine", "start": T_0 / T, "width": 4, "condition": (8, 1, 1)}
    words["trained_for"] = trained_for
    model = Denoiser(SIZE, backbone, objective=objective, latent=5, **words)
    model.backbone.forward = asked = Answers(backbone == "vae")
    y, x = pair()
    if same:
        y = x
    result = loss_of(model, y, x)
    steps = range(1, T_0 + 1) if trained_for == "chain" else [T_0]
    assert set(asked.t.flatten().tolist()) == set(steps)

    alpha_bar = cosine_alpha_bar(asked.t)
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    at_t_0 = cosine_alpha_bar(torch.tensor(T_0, dtype=torch.float64))
    way = spread / signal * (at_t_0 / (1 - at_t_0)).sqrt()
    noised = x + way * (y - x)  # what a perfect chain that began with y has left of y
    epsilon = (asked.x_t - signal * noised) / spread
    assert abs(epsilon.mean()) < 0.02 and abs(epsilon.std() - 1) < 0.02
    assert abs((epsilon * (y - y.mean())).mean()) < 0.02
    towards_x = (asked.x_t - signal * x) / spread
    assert same or towards_x.mean() < -0.4  # so the checks of epsilon would fail with x noised

    snr, p = alpha_bar / (1 - alpha_bar), asked.output.prediction
    target = {"noise": towards_x, "image": x, "v": signal * towards_x - spread * x}[objective]
    capped = snr.clamp(max=5) / {"noise": snr, "image": 1.0, "v": snr + 1}[objective]
    expected = ((1.0 if same else capped) * (p - target) ** 2).mean()
    if backbone == "vae" and objective == "image":
        expected = -(x * p.log() + (1 - x) * (1 - p).log()).mean()
    if backbone == "vae":
        expected = expected + divergence(asked.output)
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def cosine_alpha_bar(t):
    return (
        torch.cos((t / T + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    ) ** 2


def test_the_states_of_training_are_those_that_the_chain_visits():
    """Fails if the network learns from other states than those of a restoration: DDIM with an
    oracle that predicts x, with the noise of `training_states`."""
    words = {"T": T, "schedule": "cosine", "start": T_0 / T, "width": 4, "condition": (8, 1, 1)}
    model = Denoiser(SIZE, "unet", objective="image", **words)
    y, x = pair()
    model.forward = lambda x_t, t, **_: Output(x)
    visited = {t: x_t for t, x_t, _ in model.trajectory(y, torch.Generator().manual_seed(3), T_0)}
    alpha_bar = model.diffusion.alpha_bar
    epsilon = (visited[T_0] - alpha_bar[T_0].sqrt() * y) / (1 - alpha_bar[T_0]).sqrt()

    def noise(like, generator):
        return epsilon.float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rr.models.restorer, "noise", noise)
        t, x_t = model.training_states(y, x, torch.Generator().manual_seed(4))
    assert len(set(t.tolist())) > 1
    for i, step in enumerate(t.tolist()):
        assert torch.allclose(x_t[i], visited[step][i].float(), atol=1e-5)


def test_half_of_a_training_for_pure_noise_begins_at_T():
    """Fails if the states of a chain from pure noise contain y, or if they are not a half."""
    words = {"T": T, "schedule": "cosine", "start": T_0 / T, "width": 4, "condition": (8, 1, 1)}
    model = Denoiser(SIZE, "unet", pure_noise=True, **words)
    n, generator = 4000, torch.Generator().manual_seed(0)
    y, x = torch.full((n, 3, 8, 8), -50.0), torch.full((n, 3, 8, 8), 50.0)
    t, x_t = model.training_states(y, x, generator)
    share_of_y = (50 - x_t.mean((1, 2, 3)) / model.diffusion.alpha_bar[t].sqrt().float()) / 100
    beyond = t > T_0
    assert t.max() == T and abs(share_of_y[beyond]).max() < 1
    at_start = (t == T_0) & (share_of_y > 0.5)
    assert 0.5 / T_0 * 0.8 < at_start.float().mean() < 0.5 / T_0 * 1.2
    assert 0.5 * (1 - T_0 / T) * 0.9 < beyond.float().mean() < 0.5 * (1 - T_0 / T) * 1.1


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("backbone", ["unet", "vae"])
def test_the_bridges_loss_is_its_equation(backbone, one_step):
    """Fails if x_t is not (1 - t) x + t (y + noise), if the error is not the absolute one, if t is
    not 1 in half of the images (one step: in all), or if the KL is not divided."""
    model = Bridge(SIZE, backbone, width=4, latent=5, one_step=one_step, sigma=0.02)
    model.backbone.forward = asked = Answers(backbone == "vae")
    y, x = pair()
    result = loss_of(model, y, x)
    t = asked.t / Bridge.TIMES
    at_y = (t == 1).double().mean()
    assert at_y == 1 if one_step else 0.3 < at_y < 0.7 and 0 <= t.min() < 0.1
    noise = ((asked.x_t - (1 - t) * x) / t - y)[t.flatten() > 0.5]
    assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 0.02) < 1e-3
    answer = asked.output.prediction
    if backbone == "vae":
        expected = (answer - x).abs().mean() + divergence(asked.output)
    else:
        expected = (asked.x_t + t * answer - x).abs().mean()
    assert result["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_paired_protocol_draws_families_and_severities():
    """Fails if a family is not drawn for 70 % of the images, if families depend on each other, or
    if the severities are not spread over [0, 1]."""
    drawn = degraded(torch.rand(4000, 3, 2, 2))
    families, severity = drawn["families"], drawn["severity"]
    assert (families.mean(0) - 0.7).abs().max() < 0.03
    assert abs(families.prod(1).mean() - 0.7**3) < 0.03
    assert 0 <= severity.min() < 0.01 and 0.99 < severity.max() <= 1
    assert abs(severity.mean() - 0.5) < 0.03


# ---- The configurations. All numbers of this preset differ: none can be taken for another.

P = preset(
    "mini", seed=5, batch=6, vae_batch=7, unet_batch=5, classifier_lr=0.03, lr=0.7,
    classifier_images=11, extractor_images=12,
    diffusion_images=13, vae_images=14, restorer_images=15, unet_images=16, factorial_images=17,
)  # fmt: skip
KINDS = [  # fundus, macula, disc, retina, severity
    (1, 1, 1, 1, 0.0), (1, 1, 1, 1, 0.0), (1, 1, 1, 1, 0.5),
    (1, 1, 0, 1, 1.0), (1, 0, 1, 1, 1.0), (0, 0, 0, 0, 0.0),
]  # fmt: skip
UNKNOWN = (np.nan, np.nan, np.nan, np.nan, 0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """72 packed images of noise, each of another brightness; every twelfth has no labels."""
    rows = [UNKNOWN if i % 12 == 11 else KINDS[i % 6] for i in range(72)]
    table = pd.DataFrame(rows, columns=[*LABELS, "severity"])
    table["name"] = table.index.astype(str)

    def image(i, size):
        low = 80 + i // 2
        return np.random.default_rng(i).integers(low, low + 60, (size, size, 3), np.uint8), {}

    folder = tmp_path_factory.mktemp("packed") / "data"
    return packing.pack(Source({"kind": "noise"}, table, image), P.size, folder)


def chosen(data, split, kind):
    """The rows of a split that are of a kind, as they were laid down in KINDS."""
    wanted = {
        "clean": KINDS[:1], "readable": KINDS[:3], "labelled": KINDS, "unreadable": KINDS[3:5],
        "disc": KINDS[3:4], "macula": KINDS[4:5],
    }[kind]  # fmt: skip
    table = data.table[data.table["split"] == split]
    labels = table[[*LABELS, "severity"]].itertuples(index=False, name=None)
    return [i for i, row in zip(table.index, labels, strict=True) if row in wanted]


def restorer(backbone="vae", extractor="off", **words):
    """The choices of a restorer."""
    shared = {"protocol": "paired", "fusion": "bilinear-static"}
    return {**shared, "backbone": backbone, "extractor": extractor, **words}


LAYERS = "adamw-by-layer"
CONFIGS = [  # component, its choices, rows, images seen, rate, optimizer, seed
    ("readability", {}, "labelled", 11, 0.03, "rmsprop", 5),
    ("heldout", {}, "labelled", 5, 0.03, "rmsprop", 6),
    ("extractor", {"extractor": "attention"}, "labelled", 12, 0.07, LAYERS, 5),
    ("diffusion", {}, "clean", 13, 0.7, LAYERS, 5),
    ("vae", {}, "clean", 14, 0.7, LAYERS, 5),
    ("restorer", restorer("vae"), "clean", 15, 0.7, LAYERS, 5),
    ("restorer", restorer("unet"), "clean", 16, 0.7, LAYERS, 5),
    ("restorer", restorer("unet++"), "clean", 16, 0.7, LAYERS, 5),
    ("restorer", restorer("resnet"), "clean", 16, 0.7, LAYERS, 5),
    ("restorer", restorer("densenet"), "clean", 16, 0.7, LAYERS, 5),
    ("restorer", restorer(start=1.0), "clean", 15, 0.7, LAYERS, 5),
    ("restorer", restorer("unet", method="bridge"), "clean", 16, 0.7, LAYERS, 5),
    ("restorer", restorer(budget="equal"), "clean", 17, 0.7, LAYERS, 5),
    ("restorer", restorer("unet", method="one-step", budget="equal"), "clean", 17, 0.7, LAYERS, 5),
    ("restorer", restorer(protocol="literal"), "disc", 15, 0.7, LAYERS, 5),
    ("restorer", restorer(protocol="literal", region="macula"), "macula", 15, 0.7, LAYERS, 5),
]


@pytest.mark.parametrize("component, choices, kind, images, rate, optimizer, seed", CONFIGS)
def test_what_a_configuration_contains(
    component, choices, kind, images, rate, optimizer, seed, data, tmp_path
):
    """Fails if a training sees images of another split, if a reference is degraded, or if a number
    of the preset is taken for another."""
    config = configs.config(component, P, data, tmp_path, **choices)
    assert config.rows.tolist() == chosen(data, "train", kind)
    assert config.val_rows.tolist() == chosen(data, "val", kind)
    assert config.epochs * len(config.rows) == pytest.approx(images)
    assert (config.optimizer, config.seed) == (optimizer, seed)
    assert config.lr == pytest.approx(rate) and config.ema == P.ema
    network = choices.get("backbone", {"diffusion": "unet", "vae": "vae"}.get(component, ""))
    assert config.batch == {"": 6, "vae": 7}.get(network, 5)


def test_references_are_clean_or_where_nothing_is_known_readable(data):
    """Fails if an image that is degraded but readable serves as a reference, or if a photograph,
    whose severity is unknown, cannot be one."""
    photographs = copy.copy(data)
    photographs.table = data.table.assign(severity=float("nan"))
    for split in ("train", "val", "test"):
        clean, readable = (chosen(data, split, kind) for kind in ("clean", "readable"))
        assert clean != readable and data.clean_rows(split).tolist() == clean
        assert photographs.clean_rows(split).tolist() == readable


def test_optimizers_are_what_they_are_called():
    """Fails if the classifier's optimizer is not RMSprop (2.2), or if AdamW has another decay."""
    rmsprop, adamw = (
        loop.OPTIMIZERS[name]([nn.Parameter(torch.ones(1))], lr=0.5)
        for name in ("rmsprop", "adamw")
    )
    assert type(rmsprop) is torch.optim.RMSprop and rmsprop.defaults["lr"] == 0.5
    assert type(adamw) is torch.optim.AdamW and adamw.defaults["lr"] == 0.5
    assert adamw.defaults["weight_decay"] == 1e-4


@pytest.mark.parametrize("component", ["readability", "heldout"])
def test_class_weights_are_those_of_the_training_images(component, data, tmp_path):
    """Fails if the class weights of 2.2, negatives over positives, are not set, or if they are
    computed from other images than those of the training."""
    labels = data.table.loc[chosen(data, "train", "labelled"), list(LABELS)]
    expected = ((labels == 0).sum() / (labels == 1).sum()).tolist()
    result = configs.config(component, P, data, tmp_path).model.pos_weight.tolist()
    assert result == pytest.approx(expected) and max(expected) < 0.7


@pytest.mark.parametrize(
    "component, choices",
    [("readability", {}), ("heldout", {}), ("extractor", {"extractor": "attention"})],
)
def test_what_the_network_sees_in_training(component, choices, data, tmp_path):
    """Fails if a training step augments nothing (2.2), if brightness or contrast change by more or
    much less than 10 %, if images are not flipped, or if they are none of its rows."""
    many = replace(P, batch=8, classifier_images=200, extractor_images=100)
    config = configs.config(component, many, data, tmp_path, **choices)
    n, seen = len(data), []
    config.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with closing(loop.train(config, fabric("cpu"))) as run:
        list(islice(run, 3))
    stored = data.batch(range(n))
    images, originals = torch.cat(seen).flatten(1), torch.cat([stored, stored.flip(-1)]).flatten(1)
    a, b = (values - values.mean(1, keepdim=True) for values in (images, originals))
    likeness, place = (normalize(a) @ normalize(b).T).max(1)
    assert likeness.min() > 0.9999  # every image is found, in place or flipped
    assert set((place % n).tolist()) <= set(config.rows.tolist())
    assert 0.2 < (place >= n).float().mean() < 0.8
    contrast = a.norm(dim=1) / b[place].norm(dim=1) - 1
    brightness = images.mean(1) - originals[place].mean(1)
    for change in (contrast, brightness):
        assert change.abs().max() < 0.1 + 1e-4 and change.std() > 0.03

    inputs = config.prepare(Batch(stored[:4], torch.ones(4, 4), None), torch.Generator(), False)
    assert torch.equal(inputs[0], stored[:4])  # in validation


@pytest.mark.parametrize("condition, kind", [("mean", "readable"), ("unreadable", "unreadable")])
def test_the_condition_of_a_random_extractor(condition, kind, data, tmp_path):
    """Fails if c is not the mean over training images alone: the readable, or the unreadable."""
    choices = restorer(extractor="random", condition=condition)
    model = configs.config("restorer", P, data, tmp_path, **choices).model
    torch.manual_seed(P.seed)
    extractor = Extractor(width=P.attention, heads=P.heads).eval()
    with torch.no_grad():
        right, wrong = (
            extractor(data.batch(chosen(data, split, kind)[: P.pooled])).mean(0)
            for split in ("train", "test")
        )
    assert torch.allclose(model.c, right, atol=1e-5)
    assert not torch.allclose(wrong, right, atol=1e-3)


@pytest.mark.parametrize(
    "component, choices, expected",
    [
        ("diffusion", {}, {"objective": "noise", "start": 1.0, "T": 20}),
        ("vae", {}, {"latent": 32, "timed": False, "likelihood": "bce"}),
        ("restorer", restorer(), {"objective": "image", "start": 0.15, "latent": 32, "T": 20}),
        ("restorer", restorer("unet"), {"objective": "noise", "start": 0.15, "T": 20}),
    ],
)
def test_the_arguments_of_the_models(component, choices, expected, data, tmp_path):
    """Fails if the noise model is not trained at every t, or if a model does not have the sizes of
    its preset."""
    arguments = configs.config(component, P, data, tmp_path, **choices).model.arguments
    assert arguments.items() >= {"size": 80, "width": 8, **expected}.items()


@pytest.mark.parametrize(
    "component, choices, prepare",
    [
        ("diffusion", {}, pairs.literal),
        ("vae", {}, pairs.clean),
        ("restorer", restorer(), pairs.paired),
        ("restorer", restorer(protocol="literal"), pairs.literal),
    ],
)
def test_the_pairs_of_the_models(component, choices, prepare, data, tmp_path):
    """Fails if the noise model or the VAE see degraded images, or a restorer those of another
    protocol; or if pairs are not (A(x), x), (x, x), (x,)."""
    config = configs.config(component, P, data, tmp_path, **choices)
    assert config.prepare is prepare
    x = data.batch(config.rows[:4])
    *y, target = prepare(Batch(x, None, torch.ones(4, 1, 80, 80) > 0), torch.Generator(), False)
    assert torch.equal(target, x)
    assert all(torch.equal(image, x) == (prepare is not pairs.paired) for image in y)

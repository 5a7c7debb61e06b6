"""Every backbone: shapes, gradients, time, sizes. Every trained component: compiled parts."""

import copy
from functools import partial

import pytest
import torch

from rr.errors import InputError
from rr.models.backbones import BACKBONES, backbone
from rr.models.bridge import Bridge
from rr.models.features import EXTRACTORS, Extractor
from rr.models.layers import Dense, DoubleConv, Residual
from rr.models.readability import ARCHITECTURES, Readability
from rr.models.restorer import Denoiser
from rr.models.vae import VAE


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_of_three_channels_comes_back(name, channels):
    model = backbone(name, 80, width=4, latent=8, channels=channels)
    output = model(torch.rand(2, channels, 80, 80), torch.tensor([1, 90]))
    assert output.prediction.shape == (2, 3, 80, 80)
    assert (output.mu is not None) == (name == "vae")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_learns_and_time_matters(name):
    torch.manual_seed(0)
    model, x = backbone(name, 32, width=8, latent=8), torch.rand(2, 3, 32, 32)
    output = model(x, torch.tensor([1, 2]))
    sum(part.square().sum() for part in output if part is not None).backward()
    without_gradient = [
        key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert without_gradient == []
    model.eval()
    early, late = (model(x, torch.tensor([t, t])).prediction for t in (1, 90))
    assert not torch.allclose(early, late)


def test_the_blocks_differ_as_their_names_say():
    blocks = {
        name: {type(m) for m in backbone(name, 32, 8, 8).modules()} & {DoubleConv, Residual, Dense}
        for name in BACKBONES
    }
    assert blocks == {
        "unet": {DoubleConv},
        "unet++": {DoubleConv},
        "resnet": {Residual},
        "densenet": {Dense},
        "vae": set(),
    }
    nodes = backbone("unet++", 32, 8, 8).nodes
    assert set(nodes) == {f"{i}{j}" for i in range(4) for j in range(4 - i)}


def test_unknown_names_and_odd_sizes_are_refused_with_the_choices():
    with pytest.raises(InputError, match="unet, unet\\+\\+, resnet, densenet, vae"):
        backbone("transformer", 32)
    for name in ("unet", "unet++"):
        with pytest.raises(InputError, match="multiples of 8"):
            backbone(name, 36, 8)(torch.rand(1, 3, 36, 36), torch.tensor([1]))


# ---------------------------------------------------------------------------------------- compiled

X = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
PAIR, LABELLED, IMAGES = (0.5 * X, X), (X, torch.ones(2, 4)), (X,)  # what a loss takes

DENOISER = {"size": 80, "width": 8, "latent": 4, "T": 20, "schedule": "cosine"}
CONSTANT = DENOISER | {"condition": (8, 1, 1)}
FEATURES = DENOISER | {"condition": (8, 3, 3), "extractor": {"name": "alexnet", "width": 8}}
COMPONENTS = {  # "aot_eager" differentiates the compiled graph as well
    **{name: (partial(Denoiser, backbone=name, **CONSTANT), PAIR, "eager") for name in BACKBONES},
    "bridge": (partial(Bridge, 80, width=8), PAIR, "aot_eager"),
    "vae alone": (partial(VAE, 80, 4, 8, timed=False), IMAGES, "aot_eager"),
    "features as condition": (partial(Denoiser, **FEATURES), PAIR, "eager"),
    **{f"extractor {name}": (partial(Extractor, name), LABELLED, "eager") for name in EXTRACTORS},
    **{f"classifier {name}": (partial(Readability, name), LABELLED, "eager")
       for name in ARCHITECTURES},
}  # fmt: skip
FAST = ("vae", "unet", "vae alone", "classifier resnet18")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in COMPONENTS]
)
def test_compiled_parts_are_one_graph_with_the_same_loss_and_gradients(name):
    build, inputs, backend = COMPONENTS[name]
    torch.manual_seed(0)
    model = build()
    twin, keys = copy.deepcopy(model), list(model.state_dict())
    torch.compiler.reset()  # the limit of compiled graphs counts those of earlier tests
    for part in model.compile_targets:
        part.compile(backend=backend, fullgraph=True)
    # the names in checkpoints and in the averaged copy stay the same
    assert list(model.state_dict()) == keys == list(copy.deepcopy(model).state_dict())

    def step(model):
        torch.manual_seed(1)  # of dropout
        loss = model.loss(*inputs, torch.Generator().manual_seed(2))["loss"]
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.detach(), torch.cat(gradients)

    (loss, gradient), (expected_loss, expected) = step(model), step(twin)
    assert torch.allclose(loss, expected_loss, rtol=1e-6)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm() and expected.norm() > 0


@pytest.mark.parametrize("name", COMPONENTS)
def test_compiled_parts_hold_the_convolutions(name):
    model = COMPONENTS[name][0]()
    compiled = {id(m) for part in model.compile_targets for m in part.modules()}
    others = [
        key
        for key, m in model.named_modules()
        if isinstance(m, torch.nn.Conv2d) and id(m) not in compiled
    ]
    assert others in ([], ["fusion.project"])  # a 1x1 convolution of c

"""Every backbone with every fusion and every extractor's condition: shapes, time, sizes; every component compiled."""

import copy
from functools import partial

import pytest
import torch

from rr.data.dataset import Batch
from rr.errors import InputError
from rr.models.backbones import BACKBONES, backbone
from rr.models.bridge import Bridge
from rr.models.features import EXTRACTORS, Extractor
from rr.models.fusion import FUSIONS, Fusion
from rr.models.readability import ARCHITECTURES, Readability
from rr.models.restorer import Denoiser
from rr.models.vae import VAE


@pytest.fixture(scope="module")
def conditions():
    torch.manual_seed(0)
    with torch.no_grad():
        return {name: Extractor(name).eval()(torch.rand(1, 3, 80, 80))[0] for name in EXTRACTORS}


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_x_fusion_x_extractor(name, fusion, extractor, conditions):
    x_t, t = torch.rand(2, 3, 80, 80), torch.tensor([1, 90])
    layer = Fusion(fusion)
    with torch.no_grad():
        fused = layer(x_t, conditions[extractor], t, x_t)
        output = backbone(name, 80, width=4, latent=8, channels=layer.channels)(fused, t)
    assert fused.shape == (2, layer.channels, 80, 80)
    assert output.prediction.shape == x_t.shape
    assert (output.mu is not None) == (name == "vae")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_learns_and_time_matters(name):
    torch.manual_seed(0)
    model, x = backbone(name, 32, width=8, latent=8), torch.rand(2, 3, 32, 32)
    output = model(x, torch.tensor([1, 2]))
    (
        output.prediction.square().sum()
        + sum(part.square().sum() for part in output[1:] if part is not None)
    ).backward()
    silent = [
        key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []
    model.eval()
    one, ninety = (model(x, torch.tensor([t, t])).prediction for t in (1, 90))
    assert not torch.allclose(one, ninety)


def test_the_blocks_differ_as_their_names_say():
    from rr.models.backbones import Dense, DoubleConv, Residual

    found = {
        name: {type(m) for m in backbone(name, 32, 8, 8).modules()} & {DoubleConv, Residual, Dense}
        for name in BACKBONES
    }
    assert found == {
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


# ---------------------------------------------------------------------------------------------------------- compiled

DENOISER = {
    "size": 80,
    "width": 8,
    "latent": 4,
    "T": 20,
    "schedule": "cosine",
    "condition": (8, 1, 1),
}
COMPONENTS = {
    **{name: (partial(Denoiser, backbone=name, **DENOISER), "eager") for name in BACKBONES},
    "bridge": (partial(Bridge, 80, width=8), "aot_eager"),  # which also differentiates its graph
    "vae alone": (partial(VAE, 80, 4, 8, timed=False), "aot_eager"),
    "image's condition": (partial(Denoiser, **DENOISER | {"condition": (8, 3, 3), "extractor": {"name": "alexnet", "width": 8}}),
                          "eager"),
    **{f"extractor {name}": (partial(Extractor, name), "eager") for name in EXTRACTORS},
    **{f"classifier {name}": (partial(Readability, name), "eager") for name in ARCHITECTURES},
}  # fmt: skip


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_hot_parts_are_one_graph_with_the_same_loss_and_gradients(name):
    build, backend = COMPONENTS[name]
    torch.manual_seed(0)
    model = build()
    twin, keys = copy.deepcopy(model), list(model.state_dict())
    images = Batch(
        torch.rand(2, 3, 80, 80), torch.ones(2, 4), torch.ones(2, 1, 80, 80, dtype=torch.bool)
    )
    torch.compiler.reset()  # all components count together for the limit at which it gives up
    for part in model.hot:
        part.compile(backend=backend, fullgraph=True)
    assert (
        list(model.state_dict()) == keys == list(copy.deepcopy(model).state_dict())
    )  # checkpoints and the average stay

    def step(model):
        torch.manual_seed(1)  # of dropout
        loss = model.loss(images, torch.Generator().manual_seed(2))["loss"]
        loss.backward()
        return loss.detach(), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )

    (loss, gradient), (expected, reference) = step(model), step(twin)
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert (gradient - reference).norm() <= 1e-5 * reference.norm() and reference.norm() > 0


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_hot_parts_hold_the_convolutions(name):
    model = COMPONENTS[name][0]()
    hot = {id(m) for part in model.hot for m in part.modules()}
    elsewhere = [
        key
        for key, m in model.named_modules()
        if isinstance(m, torch.nn.Conv2d) and id(m) not in hot
    ]
    assert elsewhere in ([], ["fusion.project"])  # a 1x1 convolution of c

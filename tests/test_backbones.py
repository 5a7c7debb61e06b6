"""Every backbone with every fusion and every extractor's condition: shapes, time, sizes."""

import pytest
import torch

from rr.backbones import BACKBONES, backbone
from rr.features import EXTRACTORS, Extractor
from rr.fusion import FUSIONS, Fusion
from rr.io import InputError


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
    (output.prediction.square().sum() + sum(part.square().sum() for part in output[1:] if part is not None)).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    model.eval()
    one, ninety = (model(x, torch.tensor([t, t])).prediction for t in (1, 90))
    assert not torch.allclose(one, ninety)


def test_the_blocks_differ_as_their_names_say():
    from rr.backbones import Dense, DoubleConv, Residual

    found = {name: {type(m) for m in backbone(name, 32, 8, 8).modules()} & {DoubleConv, Residual, Dense} for name in BACKBONES}
    assert found == {"unet": {DoubleConv}, "unet++": {DoubleConv}, "resnet": {Residual}, "densenet": {Dense}, "vae": set()}
    nodes = backbone("unet++", 32, 8, 8).nodes
    assert set(nodes) == {f"{i}{j}" for i in range(4) for j in range(4 - i)}


def test_unknown_names_and_odd_sizes_are_refused_with_the_choices():
    with pytest.raises(InputError, match="unet, unet\\+\\+, resnet, densenet, vae"):
        backbone("transformer", 32)
    for name in ("unet", "unet++"):
        with pytest.raises(InputError, match="multiples of 8"):
            backbone(name, 36, 8)(torch.rand(1, 3, 36, 36), torch.tensor([1]))

"""Conditional features: the paper's 256 and 8, attention that sums to one, the mean as the static condition."""

import pytest
import torch
from torch import nn

from rr.errors import InputError
from rr.models.features import EXTRACTORS, Extractor


def test_eight_extractors():
    assert len(EXTRACTORS) == 8


@pytest.mark.parametrize("name", EXTRACTORS)
def test_compression_and_attention_of_width_256_with_8_heads(name):
    extractor = Extractor(name).eval()
    convolution, normalisation, activation = extractor.compress
    assert convolution.kernel_size == (1, 1) and convolution.out_channels == 256
    assert isinstance(normalisation, nn.BatchNorm2d) and isinstance(activation, nn.ReLU)
    assert extractor.attention.embed_dim == 256 and extractor.attention.num_heads == 8
    with torch.no_grad():
        features, A = extractor.attend(torch.rand(2, 3, 96, 96))
    tokens = features.shape[2] * features.shape[3]
    assert features.shape[:2] == (2, 256) and A.shape == (2, 8, tokens, tokens)
    assert torch.allclose(A.sum(-1), torch.ones(2, 8, tokens), atol=1e-5) and (A >= 0).all()


def test_attention_equals_the_equation_written_out():
    torch.manual_seed(0)
    e = Extractor("attention", width=16, heads=2).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        f = e.compress(e.trunk((x - e.mean) / e.std))
        tokens = f.flatten(2)[0].T  # 4, 16
        q, k, v = (tokens @ e.attention.in_proj_weight.T + e.attention.in_proj_bias).chunk(3, 1)
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / 8**0.5, 1) @ v[:, part])
        by_hand = f[0].flatten(1).T + e.attention.out_proj(torch.cat(heads, 1))
        assert torch.allclose(e(x)[0].flatten(1).T, by_hand, atol=1e-5)


def test_unknown_extractor_and_unknown_weights():
    with pytest.raises(InputError, match="resnet34"):
        Extractor("vit")
    with pytest.raises(InputError, match="imagenet, none"):
        Extractor("resnet18").start_from("random")


def test_pretrained_trunk_is_taken_over_exactly(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    donor = torchvision.models.alexnet(weights=None)
    save_file(
        {k: v for k, v in donor.state_dict().items() if k.startswith("features")},
        tmp_path / "alexnet_features.safetensors",
    )
    torch.manual_seed(1)
    extractor = Extractor("alexnet")
    assert not torch.equal(extractor.trunk[0].weight, donor.features[0].weight)
    note = extractor.start_from("imagenet", tmp_path)
    assert torch.equal(extractor.trunk[0].weight, donor.features[0].weight)
    assert "alexnet_features" in note
    assert Extractor("alexnet").start_from("none").startswith("none")

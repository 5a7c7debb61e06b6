"""Conditional features: the paper's widths, one resolution, the attention, the static condition."""

import functools

import pytest
import torch
from torch import nn

from rr import paper
from rr.errors import InputError
from rr.models.features import EXTRACTORS, Extractor, Patches


@functools.cache
def untrained(name):
    torch.manual_seed(0)
    return Extractor(name).eval()


def test_table_1_has_our_extractors():
    assert list(EXTRACTORS) == list(paper.EXTRACTORS)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_all_extractors_have_the_papers_widths_and_one_resolution(name):
    extractor = untrained(name)
    convolution, normalisation, activation = extractor.compress
    assert convolution.kernel_size == (1, 1) and convolution.out_channels == 256
    assert isinstance(normalisation, nn.BatchNorm2d) and isinstance(activation, nn.ReLU)
    assert extractor.attention.embed_dim == 256 and extractor.attention.num_heads == 8
    for side, h in ((80, 3), (96, 3), (128, 4), (224, 7)):
        with torch.no_grad():
            f, A = extractor.attend(torch.rand(2, 3, side, side))
        assert f.shape == (2, 256, h, h) and A.shape == (2, 8, h * h, h * h)
        assert torch.allclose(A.sum(-1), torch.ones(2, 8, h * h), atol=1e-5) and (A >= 0).all()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_have_a_place_at_80_px(name):
    """A change of one corner changes its features more than the opposite ones; all nine differ."""
    extractor, x = untrained(name), torch.rand(1, 3, 80, 80)
    changed = x.clone()
    changed[..., 64:, 64:] = 1 - changed[..., 64:, 64:]
    with torch.no_grad():
        f, difference = extractor.maps(x), extractor.maps(changed) - extractor.maps(x)
    change = difference.norm(dim=1)[0]  # 3, 3
    assert change[2, 2] > 1.2 * change[0, 0]
    places = f[0].flatten(1).T
    distances = torch.cdist(places, places) + torch.eye(9)
    assert distances.min() > 0


def test_zeros_complete_the_last_patches():
    """The patches at the right and lower border of 80 px are 16 px wide."""
    patches, x = Patches(4), torch.rand(1, 3, 80, 80)
    corner = torch.zeros(1, 3, 32, 32)
    corner[..., :16, :16] = x[..., 64:, 64:]
    with torch.no_grad():
        assert torch.allclose(patches(x)[0, :, 2, 2], patches(corner)[0, :, 0, 0], atol=1e-6)


def test_vgg16_keeps_its_own_pooling_at_multiples_of_32():
    extractor, x = untrained("vgg16"), torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        f = extractor.trunk((x - extractor.mean) / extractor.std)
        assert f.shape[-2:] == (6, 6)
        pooled = extractor.compress(nn.functional.max_pool2d(f, 2))
        assert torch.equal(extractor.maps(x), pooled)


def test_attention_equals_the_equation_written_out():
    torch.manual_seed(0)
    e = Extractor("attention", width=16, heads=2).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        f = e.maps(x)
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

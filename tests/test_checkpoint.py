"""A checkpoint rebuilds its model alone, and says what is wrong when it cannot."""

import json

import pytest
import torch

from rr import checkpoint
from rr import files as io
from rr.errors import InputError
from rr.models.features import Extractor
from rr.models.restorer import Denoiser


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return Denoiser(16, width=4, latent=4, T=10, condition=(8, 1, 1))


def test_round_trip(tmp_path, denoiser):
    denoiser.c.normal_()
    checkpoint.save(tmp_path / "c", denoiser, {"seed": 3})
    again = checkpoint.load(tmp_path / "c", Denoiser)
    assert again.arguments == denoiser.arguments and not again.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(denoiser.state_dict().values(), again.state_dict().values())
    )
    assert io.read_json(tmp_path / "c" / "config.json")["provenance"] == {"seed": 3}


def test_a_second_save_replaces_the_first_and_leaves_no_litter(tmp_path, denoiser):
    checkpoint.save(tmp_path, denoiser, {})
    denoiser.c.normal_()
    checkpoint.save(tmp_path, denoiser, {})
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and len(list(tmp_path.iterdir())) == 2
    assert torch.equal(checkpoint.load(tmp_path, Denoiser).c, denoiser.c)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, denoiser, monkeypatch):
    checkpoint.save(tmp_path, denoiser, {})
    old = denoiser.c.clone()
    denoiser.c.normal_()

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError):
        checkpoint.save(tmp_path, denoiser, {})
    assert torch.equal(checkpoint.load(tmp_path, Denoiser).c, old)


def test_wrong_folders_are_named(tmp_path, denoiser):
    with pytest.raises(InputError, match="no checkpoint there"):
        checkpoint.load(tmp_path / "nothing", Denoiser)
    checkpoint.save(tmp_path / "c", denoiser, {})
    with pytest.raises(InputError, match="of Denoiser, not of Extractor"):
        checkpoint.load(tmp_path / "c", Extractor)
    (weights,) = (tmp_path / "c").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1  # one bit
    weights.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(tmp_path / "c", Denoiser)


def test_a_configuration_that_is_none_is_refused(tmp_path, denoiser):
    checkpoint.save(tmp_path, denoiser, {})
    for text in ("[1]", '{"component": "Denoiser"}', "half {"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match="config.json"):
            checkpoint.load(tmp_path, Denoiser)


def test_another_architecture_is_refused(tmp_path, denoiser):
    checkpoint.save(tmp_path, denoiser, {})
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["width"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit today's Denoiser"):
        checkpoint.load(tmp_path, Denoiser)
    config["arguments"] = {"colour": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit today's Denoiser"):
        checkpoint.load(tmp_path, Denoiser)

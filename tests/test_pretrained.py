"""Where weights are found, and that nothing but the right ones is loaded."""

import hashlib
import shutil
import socket
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import alexnet, resnet18, squeezenet1_1

from rr.errors import InputError
from rr.models import pretrained

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """torch's hub cache, empty; no folder; and no network."""

    def offline(*_, **__):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RR_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "home/hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


def one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


def test_none_leaves_the_model_as_it_is():
    model = squeezenet1_1(weights=None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert pretrained.load(model, "squeezenet1_1", "none") == "none: random initialisation"
    assert same(before, model.state_dict())


def test_imagenet_from_a_folder(tmp_path, monkeypatch):
    donor, model = squeezenet1_1(weights=None), squeezenet1_1(weights=None)
    save_file(donor.state_dict(), tmp_path / "squeezenet1_1.safetensors")
    digest = hashlib.sha256((tmp_path / "squeezenet1_1.safetensors").read_bytes()).hexdigest()
    note = pretrained.load(model, "squeezenet1_1", "imagenet", folder=tmp_path)
    assert note == f"imagenet: squeezenet1_1.safetensors (sha256 {digest[:16]})"
    assert same(donor.state_dict(), model.state_dict())
    assert pretrained.available("squeezenet1_1") is None
    monkeypatch.setenv("RR_WEIGHTS", str(tmp_path))
    assert pretrained.available("squeezenet1_1") == tmp_path / "squeezenet1_1.safetensors"


def test_the_folder_goes_before_the_cache(tmp_path, cache):
    (cache / SQUEEZENET).touch()
    assert pretrained.available("squeezenet1_1", tmp_path) == cache / SQUEEZENET
    (tmp_path / SQUEEZENET).touch()
    assert pretrained.available("squeezenet1_1", tmp_path) == tmp_path / SQUEEZENET


def test_a_download_lies_in_the_cache_and_has_the_hash_of_its_name(tmp_path, cache, monkeypatch):
    donor, model = squeezenet1_1(weights=None), squeezenet1_1(weights=None)
    torch.save(donor.state_dict(), tmp_path / "source.pth")
    digest = hashlib.sha256((tmp_path / "source.pth").read_bytes()).hexdigest()
    file = f"squeezenet1_1-{digest[:8]}.pth"
    monkeypatch.setattr(pretrained, "_url", lambda name: f"https://example.org/models/{file}")

    def download(url, path, hash_prefix, progress):
        assert url.endswith(f"/{file}") and hash_prefix == digest[:8]
        shutil.copy(tmp_path / "source.pth", path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    note = pretrained.load(model, "squeezenet1_1", "imagenet")
    assert note == f"imagenet: {file} (sha256 {digest[:16]})"
    assert same(donor.state_dict(), model.state_dict())
    assert pretrained.available("squeezenet1_1") == cache / file
    (cache / file).write_bytes((tmp_path / "source.pth").read_bytes() + b"more")
    with pytest.raises(InputError, match="damaged"):
        pretrained.load(model, "squeezenet1_1", "imagenet")


def test_no_network_names_both_ways_out_and_leaves_the_model_alone():
    model = resnet18(weights=None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        pretrained.load(model, "resnet18", "imagenet")
    one_line(
        caught, "RR_WEIGHTS", "resnet18-f37072fd.pth", "weights=none", "no network in this test"
    )
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    "error", [TimeoutError("timed out"), RuntimeError("invalid hash value"), ConnectionResetError()]
)
def test_every_failed_download_is_an_input_error(monkeypatch, error):
    def fail(*_, **__):
        assert socket.getdefaulttimeout() == pretrained.SECONDS
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as caught:
        pretrained.state("resnet18")
    one_line(caught, "weights=none")
    assert socket.getdefaulttimeout() is None


def test_a_server_that_does_not_answer_is_given_up(monkeypatch, tmp_path):
    """The real download from a port that accepts a connection and sends nothing."""
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("RR_WEIGHTS", raising=False)
    monkeypatch.setattr(pretrained, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/{SQUEEZENET}"
        monkeypatch.setattr(pretrained, "_url", lambda name: address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(InputError, match="timed out"):
            pretrained.state("squeezenet1_1")


@pytest.mark.parametrize("name", [SQUEEZENET, "squeezenet1_1.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = tmp_path / name
    donor = squeezenet1_1(weights=None).state_dict()
    (torch.save if name.endswith(".pth") else save_file)(donor, path)
    content = {
        "truncated": path.read_bytes()[:50000],
        "empty": b"",
        "text": b"<html>404 not found</html>",
    }[damage]
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        pretrained.load(squeezenet1_1(weights=None), "squeezenet1_1", "imagenet", folder=tmp_path)
    one_line(caught, str(path))


def test_a_pickle_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code in a weights file was run",))

    torch.save({"features.0.weight": Bomb()}, tmp_path / SQUEEZENET)
    with pytest.raises(InputError, match=SQUEEZENET):
        pretrained.state("squeezenet1_1", tmp_path)


def test_a_trunk_file_fits_only_where_the_classifier_is_skipped(tmp_path):
    donor, model = alexnet(weights=None), alexnet(weights=None, num_classes=4)
    features = {
        key: value for key, value in donor.state_dict().items() if key.startswith("features.")
    }
    save_file(features, tmp_path / "alexnet_features.safetensors")
    with pytest.raises(InputError) as caught:
        pretrained.load(model, "alexnet", "imagenet", tmp_path)
    one_line(caught, "alexnet_features.safetensors", "missing", "classifier.1.bias")
    classifier = model.classifier[6].weight.clone()
    pretrained.load(model, "alexnet", "imagenet", tmp_path, skip=("classifier.",))
    assert same(features, model.state_dict()) and torch.equal(
        classifier, model.classifier[6].weight
    )


@pytest.mark.parametrize(
    "fault, key",
    [("missing", "features.0.bias"), ("unexpected", "extra"), ("shape", "features.0.bias")],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, fault, key):
    donor = squeezenet1_1(weights=None).state_dict()
    if fault == "missing":
        donor.pop("features.0.bias")
    elif fault == "unexpected":
        donor["extra"] = torch.zeros(1)
    else:
        donor["features.0.bias"] = torch.zeros(5)
    save_file(donor, tmp_path / "squeezenet1_1.safetensors")
    model = squeezenet1_1(weights=None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        pretrained.load(model, "squeezenet1_1", "imagenet", tmp_path)
    one_line(caught, f": {key}", "squeezenet1_1.safetensors")
    assert same(before, model.state_dict())


def test_what_the_user_mistyped_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="choose one of imagenet, none"):
        pretrained.load(alexnet(weights=None), "alexnet", "ImageNet")
    monkeypatch.setenv("RR_WEIGHTS", str(tmp_path / "absent"))
    with pytest.raises(InputError) as caught:
        pretrained.available("alexnet")
    one_line(caught, "RR_WEIGHTS", "absent", "no such folder")

"""Photographs through every restorer, and the folders that restorers are loaded from."""

import numpy as np
import pytest
import torch
from drawn import disc
from PIL import Image
from test_restorer import Brightness, Oracle, denoiser
from typer.testing import CliRunner

from rr import checkpoint, restore
from rr.cli import app
from rr.errors import InputError
from rr.files import RECOMMENDED, read_json, sha256
from rr.models.bridge import Bridge
from rr.models.corrector import Corrector
from rr.models.readability import Readability
from rr.models.restorer import Denoiser
from rr.models.retinaregen import RetinaRegen
from rr.models.vae import VAE

REPORT = {"status", "summary", "estimates"}


def methods():
    """Tiny restorers of the three methods of notebook 06."""
    torch.manual_seed(0)
    return {
        "diffusion": Denoiser(32, width=4, latent=4, T=10, condition=(8, 1, 1)),
        "bridge": Bridge(32, width=4),
        "one-step": Bridge(32, width=4, one_step=True, sigma=0.0),
    }


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readability")
    torch.manual_seed(0)
    checkpoint.save(folder, Readability("resnet18"), {})
    return folder


@pytest.fixture
def run(tmp_path, classifier):
    """run(method): the folder of a run of notebook 06, and its model."""

    def make(method):
        model = methods()[method].eval()
        checkpoint.save(tmp_path / "run" / "denoiser", model, {})
        restore.assemble(tmp_path / "run", classifier)
        return tmp_path / "run", model

    return make


@pytest.mark.parametrize("method", methods())
def test_a_run_of_every_method_can_be_used(run, method):
    """D9: the whole method restores as its trained network does, for diffusion and for bridges."""
    folder, model = run(method)
    regen = restore.load(folder)
    assert isinstance(regen, RetinaRegen) and type(regen.restorer) is type(model)
    y, fov = torch.rand(2, 3, 32, 32), torch.ones(2, 1, 32, 32).bool()
    restored = regen(y, fov, seed=3, screen=False).image
    assert torch.equal(restored, model.restore(y, fov, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("method", ["bridge", "one-step"])
def test_the_command_line_restores_with_a_run(run, method, tmp_path):
    folder, _ = run(method)
    photo = tmp_path / "photo.png"
    image = disc(90, 120, 60, 45, 38)
    Image.fromarray(image).save(photo)
    words = ["restore", str(photo), "--checkpoint", str(folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "out" / "restore.json")["photo.png"]
    assert report.keys() >= REPORT and report["status"] in ("restored", "left alone")
    assert np.array(Image.open(tmp_path / "out" / "photo.png")).shape == image.shape


def test_a_run_stands_alone_and_other_folders_are_refused(run, tmp_path):
    folder, _ = run("diffusion")
    assert restore.load(folder).size == 32
    with pytest.raises(InputError, match="no checkpoint there"):
        restore.load(tmp_path / "nothing")
    checkpoint.save(folder / "denoiser", VAE(32, 4, 4), {})
    with pytest.raises(InputError, match="'VAE': unknown; choose one of Denoiser, Bridge"):
        restore.load(folder)
    (folder / "denoiser" / "config.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        restore.load(folder)


def test_the_checkpoint_in_the_repository_loads():
    """The format of the published weights: a reader of later versions must still understand it."""
    config = read_json(RECOMMENDED / "config.json")
    assert config["component"] == "Corrector" and config["arguments"] == {"width": 40}
    weights = RECOMMENDED / config["weights"]
    assert sha256(weights) == config["sha256"] and config["sha256"][:12] in weights.name
    model = restore.load_recommended()
    assert isinstance(model, Corrector) and not model.training


def test_a_photograph_keeps_its_size_and_its_surround():
    model = denoiser()
    model.backbone = Oracle()
    regen = RetinaRegen(Brightness(), model)
    image = np.zeros((300, 400, 3), np.uint8)
    yy, xx = np.mgrid[:300, :400]
    eye = (xx - 190) ** 2 + (yy - 150) ** 2 < 130**2
    image[eye] = (90, 40, 20)
    image[5:12, 5:60] = 200  # a caption in the surround
    result, report = restore.restore_photograph(regen, image)
    assert result.shape == image.shape and result.dtype == np.uint8
    assert (result[5:12, 5:60] == 200).all() and (result[~eye][:, 0] < 205).all()
    assert abs(int(result[150, 190, 0]) - 204) <= 1  # 0.8
    assert report.keys() == REPORT and report["status"] == "restored"
    assert report["summary"] == "1 of 4 labels readable before, 4 after"
    assert report["estimates"]["passed"]
    assert report["estimates"]["after"] == {"fundus": 1, "macula": 1, "disc": 1, "retina": 1}

    bright = np.where(eye[..., None], np.uint8(250), image)
    result, report = restore.restore_photograph(regen, bright)
    assert report["status"] == "left alone" and "readable" in report["summary"]
    assert (result == bright).all()


@pytest.mark.parametrize("restorer", [Corrector().eval(), RetinaRegen(Brightness(), denoiser())])
def test_a_photograph_without_a_field_of_view_is_refused(restorer):
    with pytest.raises(InputError, match="no field of view"):
        restore.restore_photograph(restorer, np.full((200, 300, 3), 128, np.uint8))


def test_an_untrained_corrector_leaves_a_photograph_alone_in_a_report_of_the_same_shape():
    image = disc(90, 120, 60, 45, 38)
    with torch.no_grad():
        model = Corrector().eval()
        model.quality[-1].bias.fill_(2.0)  # 50 dB: a good photograph
    result, report = restore.restore_photograph(model, image)
    assert report.keys() == REPORT and report["status"] == "left alone"
    assert np.array_equal(result, image) and report["estimates"]["quality"] == 50

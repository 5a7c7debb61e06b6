"""One configuration per training: a notebook and `rr train` train the same, and find it trained."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rr import checkpoint, studies
from rr import files as io
from rr.cli import TRAINED_IN, app, training_config
from rr.errors import InputError
from rr.evaluate import figures, plots
from rr.files import read_json
from rr.models.features import Extractor
from rr.presets import preset
from rr.train import conditions, configs, distributed, loop
from rr.workflow import notebook


@pytest.fixture(scope="module")
def out(tmp_path_factory, eyes80):
    """Results of preset mini that hold a data set and nothing else."""
    out = tmp_path_factory.mktemp("results")
    folder = io.results("mini", out)
    folder.mkdir()
    (folder / "data").symlink_to(eyes80.path)
    return out


def config(component, out, batch=None, **parameters):
    """The configuration of `rr train`."""
    return training_config(component, {"preset": "mini", "out": str(out), **parameters}, batch)


def test_parameters_change_what_they_name_and_nothing_else(out):
    plain = config("vae", out).entries()
    for changed, entry in (("latent", "model.latent"), ("seed", "seed")):
        entries = config("vae", out, **{changed: "7"}).entries()
        assert entries == plain | {entry: 7}
    assert config("vae", out, batch=24).entries() == plain | {"batch": 24}
    assert config("diffusion", out, schedule="linear").model.arguments["schedule"] == "linear"
    assert config("extractor", out, extractor="alexnet").folder.name == "alexnet_0"


def test_the_restorer_takes_every_field_of_a_configuration(out):
    choice = studies.RETINAREGEN._replace(
        extractor="off", backbone="unet", start=1.0, objective="image", budget="equal"
    )
    chosen = config("restorer", out, **{name: str(value) for name, value in choice.values.items()})
    assert chosen.model.arguments["backbone"] == "unet" and chosen.model.pure_noise
    assert chosen.folder == studies.folder(io.results("mini", out), choice, 0) / "denoiser"
    with pytest.raises(InputError, match="no static condition there; run 03_features"):
        config("restorer", out)  # its extractor is not trained
    with pytest.raises(InputError, match="condition 'image': needs an extractor"):
        config("restorer", out, extractor="off", condition="image")


IMAGES = preset("mini", restorer_images=20, unet_images=30, factorial_images=40)


@pytest.mark.parametrize("budget, vae, unet", [("full", 20, 30), ("equal", 40, 40)])
@pytest.mark.parametrize("changes", [{}, {"start": 1.0}, {"start": 0.15}, {"method": "bridge"}])
def test_only_the_budget_changes_the_images_seen(eyes80, tmp_path, budget, vae, unet, changes):
    """Fails if the start, or another parameter, changes the budget without a word (D4)."""
    for backbone, images in (("vae", vae), ("unet", unet)):
        choices = {"extractor": "off", "backbone": backbone, "budget": budget, **changes}
        chosen = configs.config("restorer", IMAGES, eyes80, tmp_path, **choices)
        assert chosen.epochs * len(chosen.rows) == pytest.approx(images)
        assert ("budget-equal" in str(chosen.folder)) == (budget == "equal")


def test_what_notebook_10_compares_across_backbones_sees_equally_many_images():
    """The runs of all studies, and how long each is trained."""
    runs = {*studies.distinct(), *studies.EVALUATED.values()}
    equal = {run for run in runs if run.budget == "equal"}
    factorial = {(run.backbone, run.objective) for run in equal if run.start == 1}
    assert len(runs) == 32 and len(equal) == 9 and all(run.start in (0, 1) for run in runs)
    assert factorial == {(b, o) for b in ("vae", "unet") for o in ("image", "v", "noise")}
    assert equal == {run for run in runs if run.start or run.method != "diffusion"}


@pytest.mark.parametrize("condition, readable", [("mean", True), ("unreadable", False)])
def test_random_features_are_pooled_over_the_images_of_the_trained_ones(
    eyes80, tmp_path, condition, readable
):
    """Fails if the control differs from notebook 03 in more than the weights (D12)."""
    p = preset("mini")
    choices = {"extractor": "random", "condition": condition}
    model = configs.config("restorer", p, eyes80, tmp_path, **choices).model
    torch.manual_seed(p.seed)
    extractor = Extractor("resnet34", p.attention, p.heads)
    as_notebook_03 = conditions.static_condition(extractor, eyes80, readable, p.pooled)
    assert torch.equal(model.c, as_notebook_03)
    labels = eyes80.labels.numpy()
    if readable:
        wanted = (labels == 1).all(1)
    else:
        wanted = (labels[:, 0] == 1) & (labels == 0).any(1)
    rows = np.flatnonzero(wanted & (eyes80.table["split"] == "train"))[: p.pooled]
    with torch.no_grad():
        pooled = extractor.eval()(eyes80.batch(rows)).mean(0)
    assert torch.allclose(model.c, pooled, atol=1e-5)


class Enough(Exception):
    """Ends a notebook at the training that a test is about."""


@pytest.mark.parametrize("component", TRAINED_IN)
def test_the_notebook_trains_what_rr_train_trains(component, out, monkeypatch):
    """Fails if a notebook trains other rows, epochs, rates or models. Its cells run up to there."""
    seen = []

    def run(config, fabric):
        seen.append(config)
        if len(seen) == (2 if component == "heldout" else 1):  # the second training of its notebook
            raise Enough

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(checkpoint, "load", lambda *_: None)  # the classifier of notebook 06
    monkeypatch.setattr(figures, "save", lambda *_: None)
    monkeypatch.setattr(plots, "learning", lambda *_: None)
    given = {"extractor": "off"} if component == "restorer" else {}
    cells = notebook.find(TRAINED_IN[component]).read_text().split("# %%")[1:]
    names = {}
    with pytest.raises(Enough):
        for header, code in (cell.split("\n", 1) for cell in cells):
            exec(code, names)
            if "parameters" in header:
                names |= {"preset": "mini", "out": str(out), **given}
    trained, expected = seen[-1], config(component, out, **given)
    assert trained.entries() == expected.entries()
    assert (trained.folder, trained.prepare) == (expected.folder, expected.prepare)
    weights = trained.model.state_dict().values(), expected.model.state_dict().values()
    assert all(map(torch.equal, *weights))
    for name in ("rows", "val_rows"):
        assert np.array_equal(getattr(trained, name), getattr(expected, name))


def test_rr_train_trains_once_and_fresh_trains_again(out):
    runner = CliRunner()
    words = ["train", "vae", "--preset", "mini", "--out", str(out), "--device", "cpu"]
    assert runner.invoke(app, words).exit_code == 0
    folder = io.results("mini", out) / "checkpoints" / "vae"
    record = read_json(folder / "config.json")["provenance"]
    assert record["epochs"] * record["rows"] == pytest.approx(preset("mini").vae_images)
    assert (record["preset"], record["processes"]) == ("mini", 1)
    again = loop.train(config("vae", out), distributed.fabric("cpu"))
    assert list(again) == []  # the notebook's call finds it trained
    assert runner.invoke(app, [*words, "--fresh", "--micro", "2"]).exit_code == 0
    assert read_json(folder / "config.json")["provenance"]["micro_batches"] == 2
    assert read_json(folder.with_name("vae.previous") / "config.json")["provenance"] == record


@pytest.mark.parametrize(
    "words, said",
    [
        (["stomach"], f"unknown; choose one of {', '.join(TRAINED_IN)}, corrector"),
        (["vae", "-p", "depth=3"], "05_vae: no parameter 'depth'"),
        (["vae", "-p", "latent"], "must be NAME=VALUE"),
        (["vae", "-p", "seed=3"], "-p seed: use the option --seed of rr train"),
        (["vae", "--photos", "."], "--photos: only for the corrector"),
        (["corrector", "--batch", "8"], "corrector: does not accept --preset, --batch"),
        (["corrector", "--photos", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(words, said):
    done = CliRunner().invoke(app, ["train", *words])
    assert isinstance(done.exception, InputError) and said in str(done.exception)

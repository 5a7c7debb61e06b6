"""One recipe per component: `rr train` and the notebook train the same, and whoever comes second finds it trained."""

import ast

import pytest
from typer.testing import CliRunner

from rr import files as io
from rr import studies
from rr.cli import app
from rr.data import packing, sources
from rr.errors import InputError
from rr.files import read_json
from rr.presets import preset
from rr.train import configs as recipes
from rr.train import loop as train
from rr.workflow import notebook


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Results of preset mini that hold a data set and nothing else."""
    out = tmp_path_factory.mktemp("results")
    packing.pack(sources.embedded(72, 0), 80, io.results("mini", out) / "data")
    return out


def planned(component, out, **words):
    return recipes.plan(
        component, recipes.parameters(component, {"preset": "mini", "out": str(out), **words})
    )


EPOCHS = {"readability": "classifier_epochs", "extractor": "extractor_epochs", "diffusion": "diffusion_epochs",
          "vae": "vae_epochs"}  # fmt: skip


@pytest.mark.parametrize("component", [*EPOCHS, "judge"])
def test_a_plan_follows_the_preset_and_the_parameters_of_its_notebook(component, out):
    plan, row = planned(component, out, seed="3"), preset("mini")
    assert (
        plan["seed"] == (4 if component == "judge" else 3)
        and plan["batch"] == row.batch
        and plan["ema"] == row.ema
    )
    assert plan["epochs"] == getattr(row, EPOCHS.get(component, "classifier_epochs"))
    assert plan["folder"].is_relative_to(io.results("mini", out))
    assert not set(plan["rows"]) & set(plan["val_rows"])
    assert set(plan["data"].table["split"].iloc[plan["rows"]]) == {"train"}


def test_parameters_change_what_they_name_and_nothing_else(out):
    assert planned("vae", out, latent="7")["model"].arguments["latent"] == 7
    assert planned("vae", out)["model"].arguments["latent"] == preset("mini").latent
    assert planned("diffusion", out, schedule="linear")["model"].arguments["schedule"] == "linear"
    assert planned("extractor", out, extractor="alexnet")["folder"].name == "alexnet_0"
    assert (
        recipes.plan(
            "vae", recipes.parameters("vae", {"preset": "mini", "out": str(out)}), batch=24
        )["batch"]
        == 24
    )


def test_the_restorers_recipe_takes_every_word_of_a_configuration(out):
    words = studies.RETINAREGEN._replace(
        extractor="off", backbone="unet", start=1.0, objective="image"
    )
    plan = planned("restorer", out, **{name: str(value) for name, value in words.values.items()})
    assert plan["model"].arguments["backbone"] == "unet" and plan["model"].t_0 == preset("mini").T
    assert plan["folder"] == studies.folder(io.results("mini", out), words, 0) / "denoiser"
    assert plan["epochs"] == preset("mini").factorial_epochs  # compared across backbones
    with pytest.raises(InputError, match="no checkpoint there"):
        planned("restorer", out)  # its extractor is not trained


@pytest.mark.parametrize("component", recipes.COMPONENTS)
def test_the_notebook_trains_by_the_same_recipe(component):
    """It calls the function, and hands what comes back to train.run without a change."""
    chosen = recipes.COMPONENTS[component]
    tree = ast.parse(notebook.find(chosen.notebook).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    recipe = getattr(chosen.recipe, "func", chosen.recipe).__name__
    assert any(ast.unparse(call.func).endswith(recipe) for call in calls)
    runs = [call for call in calls if ast.unparse(call.func) == "train.run"]
    assert runs and all(
        {"**plan"} <= {f"**{word.value.id}" for word in call.keywords if word.arg is None}
        for call in runs
    )


def test_rr_train_trains_what_the_recipe_says_once(out):
    runner = CliRunner()
    words = ["train", "vae", "--preset", "mini", "--out", str(out), "--device", "cpu"]
    assert runner.invoke(app, words).exit_code == 0
    folder = io.results("mini", out) / "checkpoints" / "vae"
    made = read_json(folder / "config.json")["provenance"]
    assert (
        made["epochs"] == preset("mini").vae_epochs
        and made["preset"] == "mini"
        and made["processes"] == 1
    )
    again = train.train(fabric=train.fabric("cpu"), **planned("vae", out))
    assert list(again) == []  # the notebook's call finds it trained


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["stomach"],
            "unknown; choose one of readability, judge, extractor, diffusion, vae, restorer, corrector",
        ),
        (["vae", "-p", "depth=3"], "05_vae: has no parameter 'depth'"),
        (["vae", "-p", "latent"], "must be NAME=VALUE"),
        (["vae", "--photos", "."], "--photos: is for the corrector"),
        (["vae", "--strategy", "horovod"], "strategy 'horovod': unknown; choose one of ddp, fsdp"),
        (["corrector", "--batch", "8"], "corrector: knows no preset"),
        (["corrector", "--photos", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(words, said):
    done = CliRunner().invoke(app, ["train", *words])
    assert isinstance(done.exception, InputError) and said in str(done.exception)

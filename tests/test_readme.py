"""The Markdown pages: generated parts are up to date, links and names exist, commands work."""

import importlib.util
import re
from importlib import import_module

import pytest
from typer.testing import CliRunner

from rr.cli import app
from rr.errors import InputError
from rr.files import ROOT, read_json

spec = importlib.util.spec_from_file_location("readme", ROOT / "workflow" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in readme.PAGES}


@pytest.mark.parametrize("name", TEXTS)
def test_generated_parts_are_up_to_date(name):
    """A preset, a docstring or a result was changed, and the page still shows the old one."""
    assert readme.fill(name, TEXTS[name]) == TEXTS[name], "run: make readme"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12 * 1024


def test_quoted_numbers_name_the_commit_that_made_them():
    """A reader takes numbers of an older version for those of today."""
    for name, job in (("commands", None), ("verdicts", "11_summary")):
        part = TEXTS["README.md"].split(f"<!-- begin: {name} -->")[1].split("<!-- end")[0]
        path = (
            ROOT / "results" / "commands.json"
            if job is None
            else readme.result(readme.REFERENCE, job)
        )
        assert read_json(path)["provenance"]["commit"][:9] in part


def test_results_that_were_never_made_are_shown_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "REFERENCE", tmp_path)
    assert readme.verdicts() == readme.tables() == readme.scale() == readme.metrics() == "not run"
    assert not re.search(r"\d s\b|\d min", readme.cost() + readme.commands())


def test_a_page_without_its_comments_is_named():
    with pytest.raises(InputError, match="README.md: needs <!-- begin: cost"):
        readme.fill("README.md", TEXTS["README.md"].replace("<!-- begin: cost -->", ""))


@pytest.mark.parametrize("name", TEXTS)
def test_links_and_pictures_exist(name):
    targets = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name])]
    local = [target for target in targets if target and not target.startswith("http")]
    assert [target for target in local if not (ROOT / name).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "rr/README.md"])
def test_names_beside_the_equations_exist(name):
    """A function was renamed, and the map of equations points to nothing."""
    cells = re.findall(r"`rr/([\w/]+)\.py`: ((?:`[\w.]+`(?:, )?)+)", TEXTS[name])
    assert len(cells) >= 7
    for module, names in cells:
        for dotted in re.findall(r"`([\w.]+)`", names):
            thing = import_module(f"rr.{module.replace('/', '.')}")
            for step in dotted.split("."):
                thing = getattr(thing, step)


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)$", TEXTS[name], re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for command, rest in re.findall(
        r"\brr (run|reproduce|check|restore|train|doctor|data prepare)\b([^`\n]*)", TEXTS[name]
    ):
        help_text = (
            CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"}).output
        )
        for option in re.findall(r"--[a-z]+", rest):
            assert option in help_text, (command, option)


def test_the_python_example_restores_a_photograph(tmp_path, monkeypatch):
    import skimage.data
    from PIL import Image

    example = TEXTS["README.md"].split("```python\n")[1].split("```")[0]
    Image.fromarray(skimage.data.retina()[::4, ::4]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert names["restored"].shape == skimage.data.retina()[::4, ::4].shape

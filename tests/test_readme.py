"""The README: generated parts are up to date, links and names exist, commands are those of the command line."""

import importlib
import re

import pytest

from rr import readme
from rr.io import ROOT, InputError

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def part(text, name):
    return text.split(f"<!-- begin: {name} -->\n")[1].split(f"\n<!-- end: {name} -->")[0]


@pytest.mark.parametrize("name", ["presets", "choices"])
def test_parts_made_from_the_code_are_up_to_date(name):
    assert part(TEXT, name) == readme.PARTS[name](), "run: python -m rr.readme"


def test_parts_made_from_results_quote_the_result_files(tmp_path, monkeypatch):
    numbers = {
        "protocol": "paired",
        "data": "embedded",
        "n": 7,
        "unreadable_before": 5,
        "passed": 0.4,
        "scores": {
            "RetinaRegen": {"psnr": 23.456, "ssim": 0.7891, "lpips": None, "psnr_fov": 22.0, "ssim_fov": 0.5, "psnr_disc": 21.0}
        },
    }
    result = {"numbers": numbers, "provenance": {"preset": {"seed": 3}, "seconds": 12.4, "device": "cpu", "peak_memory_mib": 900}}
    monkeypatch.setattr(readme, "result", lambda preset, stem: result if (preset, stem) == ("smoke", "06_restoration") else None)
    text = readme.fill(TEXT)
    assert "| RetinaRegen | 23.46 | 0.789 | n/a | 22.00 | 0.500 | 21.00 |" in part(text, "numbers")
    assert "7 test images, seed 3" in part(text, "numbers") and "passed 40%" in part(text, "numbers")
    assert "| [06_restoration](notebooks/06_restoration.py) | 12 s (cpu, 900 MiB) | not run | not run |" in part(text, "cost")
    assert readme.fill(text) == text


def test_a_missing_part_is_named():
    with pytest.raises(InputError, match="begin: cost"):
        readme.fill(TEXT.replace("<!-- begin: cost -->", ""))


def test_links_and_pictures_exist():
    local = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if not target.startswith("http")]
    assert len(local) > 5
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_names_in_the_map_of_equations_exist():
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`rr/[^|]+) \| [^|]+ \|$", TEXT, re.M)
    assert len(rows) >= 11
    for cell in rows:
        for file, names in re.findall(r"`rr/(\w+)\.py`(?:: ((?:`[\w.]+`(?:, )?)+))?", cell):
            module = importlib.import_module(f"rr.{file}")
            for name in re.findall(r"`([\w.]+)`", names):
                thing = module
                for step in name.split("."):
                    thing = getattr(thing, step)


def test_commands_of_the_readme_exist():
    from typer.testing import CliRunner

    from rr.__main__ import app
    from rr.notebook import check, find

    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", TEXT, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for command in set(re.findall(r"\.venv/bin/rr (\w+)", TEXT)):
        assert command in help_text
    for stem, parameters in re.findall(r"rr run (\w+)((?: -p \w+=\S+)+)", TEXT):
        values = dict(p.strip("`,. ").split("=", 1) for p in parameters.split(" -p ")[1:])
        check(find(stem), values)


def test_every_notebook_says_what_it_needs_writes_and_takes():
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    assert len(notebooks) >= 7
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        for row in (r"# \| needs \| .+ \|", r"# \| writes \| .+ \|", r"# \| time \| (smoke: \d+ s on|not run).* \|"):
            assert len(re.findall(f"^{row}$", text, re.M)) == 1, (path.name, row)

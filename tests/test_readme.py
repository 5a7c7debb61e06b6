"""The README: generated parts are up to date, links and names exist, commands are those of the command line."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest

from rr import files as io
from rr.errors import InputError
from rr.files import ROOT
from rr.presets import PRESETS
from rr.provenance import read_result, write_result
from rr.workflow import jobs as workflow
from rr.workflow import notebook, readme
from rr.workflow.notebook import NOTEBOOKS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def part(text, name):
    return text.split(f"<!-- begin: {name} -->\n")[1].split(f"\n<!-- end: {name} -->")[0]


@pytest.mark.parametrize("name", ["presets", "choices"])
def test_parts_made_from_the_code_are_up_to_date(name):
    assert part(TEXT, name) == readme.PARTS[name](), "run: python -m rr.readme"


def test_parts_made_from_results_quote_the_result_files(tmp_path, monkeypatch):
    numbers = {
        "configuration": {"protocol": "paired"},
        "data": "embedded",
        "n": 7,
        "seed": 3,
        "unreadable_before": 5,
        "rechecked": {
            judge: {"RetinaRegen": {"hits": hits}}
            for judge, hits in (("classifier", 2), ("second judge", 1))
        },
        "scores": {
            "RetinaRegen": {
                "psnr": 23.456,
                "ssim": 0.7891,
                "lpips": None,
                "psnr_fov": 22.0,
                "ssim_fov": 0.5,
                "psnr_disc": 21.0,
            }
        },
    }
    row = {
        "label": "disc",
        "n": 9,
        "prevalence": 0.8,
        "majority": 0.8,
        "accuracy": 0.9,
        "roc_auc": None,
        "ece": 0.05,
    }
    judges = {
        judge: [row | {"average_precision": 0.95}] for judge in ("classifier", "second judge")
    }
    facts = {"seconds": 12.4, "device": "cpu", "peak_memory_mib": 900, "threads": 1}
    facts["preset"] = dataclasses.asdict(PRESETS["smoke"])
    home = io.results("smoke", tmp_path)
    for job in workflow.jobs(study="fusion"):
        io.write_json(workflow.result(home, job), {"numbers": numbers, "provenance": facts})
    workflow.result(home, "02_readability").unlink()
    io.write_text(home / "tables" / "09_fusion.md", "| four fusions |\n")
    io.write_text(home / "tables" / "11_summary_verdicts.md", "| six verdicts |\n")
    monkeypatch.setattr(io, "results", lambda preset, out=tmp_path: (tmp_path / preset).resolve())
    text = readme.fill(TEXT)
    assert "| RetinaRegen | 23.46 | 0.789 | n/a | 22.00 | 0.500 | 21.00 |" in part(text, "numbers")
    assert "7 test images, seed 3" in part(text, "numbers")
    assert "2 with the classifier, 1 with the second judge" in part(text, "numbers")
    assert part(text, "numbers").startswith("| six verdicts |"), "what a reader wants to know first"
    assert part(text, "numbers").endswith("| four fusions |")
    data = "| the data (2.2, 3.1) | [01_data](notebooks/01_data.py) | nothing | 12 s, in all 0.2 min (cpu, 900 MiB) |"
    study = "| 3.2: four fusions | [09_fusion](notebooks/09_fusion.py) | 06 | not run | not run | not run |"
    assert data in part(text, "cost") and study in part(text, "cost"), (
        "02_readability, which 09 needs, was not run"
    )
    io.write_json(workflow.result(home, "02_readability"), {"numbers": judges, "provenance": facts})
    second = part(readme.fill(TEXT), "numbers").split("The second judge on 9 test images")[1]
    assert "| disc | 0.80 | 0.80 | 0.90 | n/a | 0.95 | 0.05 |" in second
    study = study.replace(
        "not run", "12 s, in all 1.7 min (cpu, 900 MiB)", 1
    )  # eight jobs of 12.4 s
    assert study in part(readme.fill(TEXT), "cost")
    facts["preset"]["T"] += 1  # a result that other values have made is not quoted
    io.write_json(workflow.result(home, "01_data"), {"numbers": [], "provenance": facts})
    assert "[01_data](notebooks/01_data.py) | nothing | not run |" in part(
        readme.fill(TEXT), "cost"
    )


def test_what_was_never_run_is_not_given_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "results", lambda preset, out=tmp_path: (tmp_path / preset).resolve())
    monkeypatch.setattr(io, "ROOT", tmp_path)
    text = readme.fill(TEXT)
    assert part(text, "numbers") == part(text, "speed") == "not run"
    assert not re.search(r"\d s\b|\d min", part(text, "cost") + part(text, "commands"))


def test_a_missing_part_is_named():
    with pytest.raises(InputError, match="begin: cost"):
        readme.fill(TEXT.replace("<!-- begin: cost -->", ""))


def test_links_and_pictures_exist():
    local = [
        target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if not target.startswith("http")
    ]
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

    from rr.cli import app
    from rr.workflow.notebook import check, find

    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", TEXT, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for command in set(re.findall(r"\.venv/bin/rr (\w+)", TEXT)):
        assert command in help_text
    for stem, parameters in re.findall(r"rr run (\w+)((?: -p \w+=\S+)+)", TEXT):
        values = dict(p.strip("`,.; ").split("=", 1) for p in parameters.split(" -p ")[1:])
        check(find(stem), values)


def test_every_notebook_says_what_it_needs_writes_and_takes():
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    assert len(notebooks) >= 7
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        for row in (
            r"# \| needs \| .+ \|",
            r"# \| writes \| .+ \|",
            r"# \| time \| (smoke: \d+ s on|not run).* \|",
        ):
            assert len(re.findall(f"^{row}$", text, re.M)) == 1, (path.name, row)


# ---------------------------------------------------------------------------------------------------------- twins


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_twins_hold_the_same_cells_and_no_outputs(path):
    text = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == readme.twin(path), "run: python -m rr.readme"
    cells, source = nbformat.reads(text, 4).cells, jupytext.read(path).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        (cell.cell_type, cell.source) for cell in source
    ]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    nbformat.validate(nbformat.reads(text, 4))


def papermill(*words):
    command = [Path(sys.executable).parent / "papermill", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_papermill_describes_every_parameter():
    shown = papermill("--help-notebook", "notebooks/06_restoration.ipynb")
    assert shown.returncode == 0
    words = " ".join(shown.stdout.split())
    for each in notebook.parameters(NOTEBOOKS / "06_restoration.py").values():
        assert f"{each.name}: {each.type.__name__} (default {each.default!r}" in words.replace(
            '"', "'"
        ), each.name
        assert " ".join(each.help.split()) in words, each.name


def test_plain_papermill_runs_a_committed_notebook(tmp_path):
    done = papermill(
        "notebooks/01_data.ipynb",
        tmp_path / "01.ipynb",
        "-p",
        "preset",
        "mini",
        "-p",
        "out",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "out" / "mini" / "01_data.json")["numbers"]["images"] == 72


def test_the_benchmark_and_the_cost_of_a_million_quote_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "ROOT", tmp_path)
    folder = tmp_path / "results" / "bench"
    assert readme.bench("gpu").startswith("Not run") and readme.million().startswith("Not run")
    line = {"row": "T3", "task": "JPEG of 1024 px to 224 px, which looks for the eye", "peer": "PIL", "unit": "photographs/s",
            "ours": 100.0, "theirs": 50.0, "ratio": 2.0, "low": 1.5, "high": 2.5, "target": 3, "met": False, "gate": "difference",
            "value": 0.5, "limit": 2, "ok": True}  # fmt: skip
    alone = line | {
        "row": "T9",
        "task": "eyes",
        "peer": None,
        "theirs": None,
        "ratio": None,
        "target": 90,
        "met": True,
    }
    none = {
        "row": "T5",
        "task": "LPIPS",
        "met": None,
        "note": "not measured: lpips is not installed",
    }
    io.write_table(folder / "cpu.csv", pd.DataFrame([line, none, alone]))
    io.write_json(folder / "cpu.json", {"provenance": {"machine": "a machine"}})
    text = readme.bench("cpu")
    assert (
        "px, which looks for the eye | 100 photographs/s | PIL | 50 | 2.00 (1.50 to 2.50) | 3 | no |"
        in text
    )
    assert "| T5 | LPIPS | not measured: lpips is not installed |" in text and "nan" not in text
    assert (
        "| T9 | eyes | 100 photographs/s |  |  |  | 90 photographs/s | yes | difference: 0.5 (limit 2) |"
        in text
    )
    rows = [{"images": n, "prepare_seconds": n / 100, "prepare_images_per_s": 100.0, "peak_mib": 1000.0, "bytes": 49152 * n,
             "epoch_images_per_s": 5000.0} for n in (1000, 10000)]  # fmt: skip
    exponents = {"prepare_seconds": 1.0, "epoch_seconds": 1.5}
    write_result(folder / "scale.json", {"rows": rows, "exponents": exponents}, size=128, workers=2)
    text = readme.million()
    assert "| 10,000 | 100 | 100 | 1,000 | 0.49 | 5,000 |" in text
    assert (
        "For a million that is 2.8 h, 49 GB, and 33.3 min to read all of them" in text
        and "At 224 px 151 GB" in text
    )
    assert "3 h for a million of 1024 px" in text

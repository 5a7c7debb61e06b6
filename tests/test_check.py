"""`rr check`: a user's results beside the reference."""

import shutil

import pandas as pd
import pytest

from rr import cli
from rr import files as io
from rr.errors import InputError
from rr.evaluate import check, statistics


@pytest.fixture()
def folders(tmp_path):
    """A reference and an equal run, with one table of each kind."""
    study = [
        ("do nothing", "psnr", 0, 20.0),
        ("do nothing", "ssim", 0, 0.7),
        ("vae", "psnr", 1, 22.5),
        ("vae", "ssim", 1, 0.75),
        ("vae", "lpips", 1, None),
        ("unet", "psnr", 4, 22.0),
    ]
    labels = dict.fromkeys(["fundus", "macula", "disc", "retina"], 0.8)
    tables = {
        "01_data_splits": pd.DataFrame(
            {"split": ["test", "train"], "images": [120, 400], **labels}
        ),
        "02_readability_report": pd.DataFrame(
            {"label": ["disc"], "roc_auc": 0.87, "accuracy": 0.8}
        ),
        "07_backbones": pd.DataFrame(study, columns=["method", "metric", "seeds", "mean"]).assign(
            sd=[None] * 5 + [0.5]
        ),
        "11_summary_verdicts": pd.DataFrame(
            {"claim": ["C1", "C2"], "verdict": ["supported", "not tested"], "because": "seen"}
        ),
    }
    for name, table in tables.items():
        io.write_table(tmp_path / "reference" / "tables" / f"{name}.csv", table)
    shutil.copytree(tmp_path / "reference", tmp_path / "yours")
    return tmp_path / "reference", tmp_path / "yours"


def change(folder, name, row, column, value):
    path = folder / "tables" / f"{name}.csv"
    table = pd.read_csv(path)
    table.loc[row, column] = value
    io.write_table(path, table)


def differing(folders):
    return [row.headline for row in check.compare(*folders) if row.agrees is False]


def test_an_equal_run_agrees(folders):
    headlines = {row.headline: row for row in check.compare(*folders)}
    assert differing(folders) == []
    assert headlines["01_data_splits test images"].reference == 120
    assert headlines["11_summary_verdicts C2 verdict"].yours == "not tested"
    assert not any("train" in name or "lpips" in name or "accuracy" in name for name in headlines)


@pytest.mark.parametrize(
    ("name", "row", "column", "within", "outside", "headline"),
    [
        ("07_backbones", 2, "mean", 23.1, 23.2, "07_backbones vae psnr mean"),
        ("07_backbones", 2, "mean", 21.9, 21.8, "07_backbones vae psnr mean"),
        # 4 standard deviations of 0.5, one training against a mean of four: 2 sqrt(5 / 4) = 2.24
        ("07_backbones", 5, "mean", 24.2, 24.3, "07_backbones unet psnr mean"),
        ("07_backbones", 0, "mean", 20.04, 20.1, "07_backbones do nothing psnr mean"),
        ("07_backbones", 3, "mean", 0.73, 0.71, "07_backbones vae ssim mean"),
        ("02_readability_report", 0, "roc_auc", 0.85, 0.83, "02_readability_report disc roc_auc"),
        ("01_data_splits", 0, "images", 120, 121, "01_data_splits test images"),
        ("01_data_splits", 0, "disc", 0.81, 0.85, "01_data_splits test disc"),
    ],
)
def test_a_number_may_differ_by_its_tolerance(
    folders, name, row, column, within, outside, headline
):
    change(folders[1], name, row, column, within)
    assert differing(folders) == []
    change(folders[1], name, row, column, outside)
    assert differing(folders) == [headline]


def test_another_verdict_disagrees(folders):
    change(folders[1], "11_summary_verdicts", 0, "verdict", "not supported")
    assert differing(folders) == ["11_summary_verdicts C1 verdict"]


@pytest.mark.parametrize("folder", [0, 1])
def test_a_verdict_of_too_few_trainings_is_not_compared(folders, folder):
    """Fails if every run with one seed disagrees with a reference with five."""
    change(folders[folder], "11_summary_verdicts", 0, "verdict", "not testable here")
    change(folders[folder], "11_summary_verdicts", 0, "because", statistics.NOT_TESTED)
    assert differing(folders) == []
    (row,) = [row for row in check.compare(*folders) if row.agrees is None]
    assert row.headline == "11_summary_verdicts C1 verdict"
    assert "not compared" in check.shown(check.compare(*folders))


def test_a_missing_or_damaged_table_disagrees(folders):
    (folders[1] / "tables" / "11_summary_verdicts.csv").unlink()
    assert differing(folders) == [
        "11_summary_verdicts C1 verdict",
        "11_summary_verdicts C2 verdict",
    ]
    path = folders[1] / "tables" / "07_backbones.csv"
    io.write_table(path, pd.read_csv(path).query("metric == 'psnr' and method == 'vae'"))
    assert {"07_backbones do nothing psnr mean", "07_backbones vae ssim mean"} < {
        *differing(folders)
    }
    change(folders[1], "07_backbones", 0, "mean", None)  # a training that ended in NaN
    assert "07_backbones vae psnr mean" in differing(folders)
    io.write_table(path, pd.DataFrame({"method": ["vae"]}))
    assert "07_backbones vae psnr mean" in differing(folders)


def test_without_tables_there_is_nothing_to_compare(folders, tmp_path):
    for pair in ((tmp_path / "none", folders[1]), (folders[0], tmp_path / "none")):
        with pytest.raises(InputError, match="none: no tables"):
            check.compare(*pair)


def test_the_command_prints_all_and_its_exit_code_tells(tmp_path, capsys):
    out = tmp_path / "smoke"
    shutil.copytree(io.results("smoke", io.REFERENCE) / "tables", out / "tables")
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) > 50
    assert lines[0].split() == ["headline", "reference", "yours", "tolerance", "agrees"]
    compared = len([line for line in lines[1:-1] if not line.endswith("not compared")])
    assert lines[-1] == f"{compared} of {compared} headlines agree with the reference"
    (out / "tables" / "02_readability_report.csv").unlink()
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 1 and sum(line.endswith("NO") for line in lines) == 4
    assert "missing" in next(line for line in lines if line.endswith("NO"))

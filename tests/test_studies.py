"""The studies, the runs that are read or refused, and the notebooks that compare them."""

import subprocess
import sys
from itertools import product

import fakes
import numpy as np
import pandas as pd
import pytest

from rr import files as io
from rr import paper, studies
from rr.data.pairs import PROTOCOLS, REGIONS
from rr.errors import InputError
from rr.evaluate import runs as finished
from rr.evaluate import statistics
from rr.evaluate.claims import ALIKE, NOT_SUPPORTED, NOT_TESTABLE, SUPPORTED
from rr.models.backbones import BACKBONES
from rr.models.diffusion import OBJECTIVES
from rr.models.features import EXTRACTORS
from rr.models.fusion import FUSIONS
from rr.models.vae import LIKELIHOODS
from rr.workflow import notebook

STEMS = ("07_backbones", "08_extractors", "09_fusion", "11_summary")

# Every notebook as the script that it is, in a Python that has no torch; what it shows is printed.
WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "lightning_fabric"):
            raise ModuleNotFoundError(f"{name} is imported")
sys.meta_path.insert(0, NoTorch())
import IPython.display
IPython.display.Markdown = print
out, seeds, *notebooks = sys.argv[1:]
for path in notebooks:
    text = open(path, encoding="utf-8").read()
    assert text.count('out: str = "results"') == text.count("seeds: int = 1 ") == 1
    text = text.replace('out: str = "results"', f"out: str = {out!r}")
    text = text.replace("seeds: int = 1 ", f"seeds: int = {seeds} ")
    exec(compile(text, path, "exec"), {})
"""


def execute(out, seeds, stems=STEMS):
    """Run notebooks on the fake runs in out/smoke; returns what they show."""
    paths = [notebook.NOTEBOOKS / f"{stem}.py" for stem in stems]
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-c",
        WITHOUT_TORCH,
        str(out),
        str(seeds),
        *map(str, paths),
    ]
    done = subprocess.run(command, cwd=io.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -------------------------------------------------------------------------------------- the matrix


def test_the_matrix_is_the_papers():
    rows = [row for study in studies.VARIES for row in studies.STUDIES[study]]
    assert [len(studies.STUDIES[study]) for study in studies.VARIES] == [5, 8, 4] and len(
        rows
    ) == 17
    assert len(studies.distinct(studies.VARIES)) == len(set(rows)) == 15
    assert all(studies.RETINAREGEN in study for study in studies.STUDIES.values())
    for study, word in studies.VARIES.items():
        words = [getattr(row, word) for row in studies.STUDIES[study]]
        assert [studies.RETINAREGEN._replace(**{word: row}) for row in words] == studies.STUDIES[
            study
        ]
        assert set(words) == set(
            {"backbone": BACKBONES, "extractor": EXTRACTORS, "fusion": paper.FUSIONS}[word]
        )
    assert [row.extractor for row in studies.STUDIES["extractors"]] == list(
        paper.EXTRACTORS
    )  # Table 1's order
    assert all(row.protocol in PROTOCOLS for row in rows)


def test_distinct_of_one_study_keeps_its_order():
    assert studies.distinct(["fusion"]) == studies.STUDIES["fusion"]
    assert studies.distinct(["backbones", "fusion"])[:5] == studies.STUDIES["backbones"]


def test_folders_differ_for_every_run(tmp_path):
    every = [studies.folder(tmp_path, row, seed) for row in studies.distinct() for seed in range(3)]
    assert len(set(every)) == 3 * 32 and every[0].name == "paired_unet_resnet34_bilinear-static_0"
    assert str(studies.BRIDGE) == "paired_unet_off_off_method-bridge_budget-equal"
    assert (
        str(studies.cell("vae", "v"))
        == "paired_vae_resnet34_bilinear-static_objective-v_trained_for-chain_start-1_budget-equal"
    )


def test_the_factorial_is_full_and_all_of_what_matters_is_a_choice_that_the_models_know():
    every = studies.STUDIES["matters"]
    cells = {
        studies.cell(*levels)
        for levels in product(studies.FACTORS["backbone"], studies.FACTORS["objective"])
    }
    assert len(cells) == 6 and cells <= set(every) and {row.start for row in cells} == {1.0}
    assert set(studies.STUDIES["extractors"] + studies.STUDIES["fusion"]) <= set(every)
    for row in every:
        assert (
            row.backbone in BACKBONES
            and row.protocol in PROTOCOLS
            and row.objective in ("", *OBJECTIVES)
        )
        assert (
            row.extractor in (*EXTRACTORS, "random", "off")
            and row.likelihood in LIKELIHOODS
            and row.region in REGIONS
        )
        assert (
            row.fusion in FUSIONS
            if row.method == "diffusion"
            else row.fusion == row.extractor == "off"
        )
    for row in studies.CONDITIONS.values():
        twins = [
            len(row.values.items() - other.values.items())
            for other in studies.STUDIES["extractors"]
        ]
        assert min(twins) == 1, "one thing differs from a row of Table 1, or nothing is told"


# --------------------------------------------------------------------------------------- runs read


@pytest.fixture
def home(tmp_path):
    """Fake runs of the four fusions, two seeds."""
    fakes.write(tmp_path / "smoke", 2, configurations=studies.STUDIES["fusion"])
    return tmp_path / "smoke"


def test_a_run_is_read_as_it_was_written(home):
    run = finished.read(home, studies.RETINAREGEN, 1)
    assert (run.configuration, run.seed, run.numbers["seed"]) == (studies.RETINAREGEN, 1, 1)
    assert run.eyes.shape == (3, studies.EYES, 8, 8, 3) and run.eyes.dtype == np.uint8
    strip = np.asarray(fakes.Image.open(studies.folder(home, studies.RETINAREGEN, 1) / "eyes.png"))
    assert (run.eyes[1, 2] == strip[8:16, 16:24]).all()  # second row, third eye
    assert (
        list(run.scores.columns) == ["image", "method", *fakes.METRICS]
        and len(run.scores) == 3 * 12
    )
    study = finished.read_study(home, "fusion", 2)
    assert list(study) == studies.STUDIES["fusion"] and [
        run.seed for run in study[studies.RETINAREGEN]
    ] == [0, 1]


def test_a_run_of_an_older_version_says_how_to_make_it_anew(home):
    path = studies.folder(home, studies.RETINAREGEN, 1) / "result.json"
    result = io.read_json(path)
    del result["numbers"]["variation"]
    io.write_json(path, result)
    finished.read_study(home, "fusion", 1)
    with pytest.raises(InputError, match="_1/result.json: an older version .*; delete it and run"):
        finished.read_study(home, "fusion", 2)


def test_missing_and_changed_runs_are_named(home):
    with pytest.raises(InputError, match="upsample-static_2: this run does not exist"):
        finished.read_study(home, "fusion", 3)
    with pytest.raises(InputError, match="seeds 0: must be 1 or more"):
        finished.read_study(home, "fusion", 0)
    with pytest.raises(
        InputError, match="paired_vae_attention_bilinear-static_0: this run does not exist"
    ):
        finished.read_study(home, "extractors", 1)
    table = studies.folder(home, studies.RETINAREGEN, 1) / "per_image.csv"
    table.write_text(table.read_text().replace("eye00", "eye99"))
    with pytest.raises(InputError, match="per_image.csv: "):
        finished.read_study(home, "fusion", 2)
    finished.read_study(home, "fusion", 1)  # seed 0 is as it was


@pytest.mark.parametrize(
    "what, changes", [("test images", {"n": 11}), ("LPIPS trunk", {"lpips": False})]
)
def test_runs_that_cannot_be_compared_are_refused(home, what, changes):
    fakes.write(home, configurations=[studies.STUDIES["fusion"][3]], **changes)
    with pytest.raises(InputError, match=f"bilinear-dynamic_0: another {what} than in"):
        finished.read_study(home, "fusion", 1)


# ----------------------------------------------------------------------------- the study notebooks


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three seeds: a weak unet, alexnet equal to resnet18, a better mobilenet, a mixed fusion and a
    collapsed one.
    """
    out = tmp_path_factory.mktemp("compared")
    effects = {
        "unet": -6,
        "unet++": -5,
        "resnet": -6,
        "densenet": -5,
        "mobilenet": 3,
        "upsample-static": [-2, -2, 1.5],
    }
    fakes.write(out / "smoke", 3, effects=effects, noise=0.05, collapsed="upsample-dynamic")
    like = studies.RETINAREGEN._replace(extractor="resnet18")
    for seed in range(3):  # a tie
        for name in ("per_image.csv", "eyes.png", "result.json"):
            content = (studies.folder(out / "smoke", like, seed) / name).read_bytes()
            (
                studies.folder(out / "smoke", like._replace(extractor="alexnet"), seed) / name
            ).write_bytes(content)
    return out, execute(out, 3)


def files(out):
    """{path: bytes} of tables and figures."""
    paths = [*(out / "smoke" / "tables").iterdir(), *(out / "smoke" / "figures").iterdir()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_all_tables_and_figures_are_written_byte_by_byte_the_same(compared):
    out, _ = compared
    first = files(out)
    stems = [*STEMS, "11_summary_verdicts", "11_summary_cost"]
    tables = {f"smoke/tables/{stem}.{suffix}" for stem in stems for suffix in ("csv", "md", "tex")}
    pictures = [
        *(f"{stem}_{kind}" for stem in STEMS[:3] for kind in ("bars", "eyes")),
        "11_summary_ladder",
    ]
    assert set(first) == tables | {
        f"smoke/figures/{stem}.{suffix}" for stem in pictures for suffix in ("png", "pdf")
    }
    execute(out, 3)
    assert {name for name, content in files(out).items() if content != first[name]} == set()


def test_the_table_follows_from_the_runs(compared):
    out, _ = compared
    table = pd.read_csv(out / "smoke" / "tables" / "08_extractors.csv")
    assert table.method.unique().tolist() == ["do nothing", "population mean", *paper.EXTRACTORS]
    every = finished.read_study(out / "smoke", "extractors", 3)
    runs = every[studies.RETINAREGEN._replace(extractor="mobilenet")]
    means = [run.scores[run.scores.method == "RetinaRegen"].psnr.mean() for run in runs]
    row = table[(table.method == "mobilenet") & (table.metric == "psnr")].iloc[0]
    assert row["mean"] == pytest.approx(np.mean(means)) and row.sd == pytest.approx(
        np.std(means, ddof=1)
    )
    other = [
        run.scores[run.scores.method == "RetinaRegen"].psnr.mean()
        for run in every[studies.RETINAREGEN]
    ]
    assert row.difference == pytest.approx(np.mean(means) - np.mean(other)) and (
        row.n,
        row.seeds,
    ) == (12, 3)
    assert row.difference_sd == pytest.approx(
        np.std(np.subtract(means, other), ddof=1)
    )  # paired by seed
    assert row.difference_sd < row.sd / 2  # the seeds have something in common, which drops out
    result = io.read_json(out / "smoke" / "08_extractors.json")
    rows = {(row["method"], row["metric"]): row for row in result["numbers"]["rows"]}
    assert (
        rows["mobilenet", "psnr"]["difference"] == row.difference
        and ("mobilenet", "lpips_fov") not in rows
    )
    assert result["provenance"]["runs"][0] == {
        "run": "paired_vae_attention_bilinear-static_0", "data": "0123456789ab",
        "commit": runs[0].provenance["commit"],
        "seconds": every[studies.STUDIES["extractors"][0]][0].provenance["seconds"],
    }  # fmt: skip


def test_the_words_follow_from_the_numbers(compared):
    out, text = compared
    results = {stem: io.read_json(out / "smoke" / f"{stem}.json")["numbers"] for stem in STEMS}

    def verdict(stem, name):
        return results[stem]["compared"]["psnr"][name]["verdict"]

    assert verdict("07_backbones", "densenet") == statistics.WORSE
    assert verdict("08_extractors", "mobilenet") == statistics.BETTER
    assert verdict("09_fusion", "upsample-static") == statistics.UNCLEAR  # one seed is better
    assert "(unet: noise; unet++: noise; resnet: noise; densenet: noise; vae: image)" in text
    verdicts = {row["claim"]: row for row in results["11_summary"]["verdicts"]}
    assert {claim: row["verdict"] for claim, row in verdicts.items()} == {
        "C1": SUPPORTED,
        "C2": SUPPORTED,
        "C3": NOT_SUPPORTED,
        "C4": NOT_TESTABLE,
        "C5": SUPPORTED,
        "C6": SUPPORTED,
    }
    assert "predicting the noise +5.9" in verdicts["C2"]["here"]  # from pure noise: the contrary
    assert "PSNR: mobilenet" in text
    assert "nan" not in text.replace("RetinaRegen", "").lower().split()


def test_a_collapsed_row_is_marked_wherever_it_stands(compared):
    out, text = compared
    for stem in ("09_fusion", "11_summary", "11_summary_cost"):
        for suffix in ("md", "tex"):
            written = (out / "smoke" / "tables" / f"{stem}.{suffix}").read_text()
            lines = [line for line in written.splitlines() if "upsample-dynamic" in line]
            assert lines and all("collapsed" in line for line in lines), f"{stem}.{suffix}"
    for stem, row in (("09_fusion", "method"), ("11_summary", "row")):
        table = pd.read_csv(out / "smoke" / "tables" / f"{stem}.csv")
        assert table[row].str.contains("upsample-dynamic").equals(table["collapsed"]), stem
    verdicts = pd.read_csv(out / "smoke" / "tables" / "11_summary_verdicts.csv")
    assert verdicts.set_index("claim").because["C4"] == ALIKE
    result = io.read_json(out / "smoke" / "09_fusion.json")["numbers"]
    compared = result["compared"]["psnr"]
    assert compared["upsample-dynamic"]["verdict"] == statistics.NO_VARIATION
    assert compared["bilinear-dynamic"]["verdict"] != statistics.NO_VARIATION
    assert "upsample-dynamic (collapsed)" in text


def test_the_summary_never_mixes_the_papers_numbers_with_ours(compared):
    out, _ = compared
    head, _, *lines = (out / "smoke" / "tables" / "11_summary.md").read_text().splitlines()
    assert [cell.split(":")[0].strip() for cell in head.split("|")[2:-1]] == ["paper"] * 3 + [
        "ours"
    ] * 3
    assert (
        "**" not in "".join(lines[:18]) and "SynFundus-1M" in lines[-1] and "embedded" in lines[-1]
    )
    cells = {
        line.split("|")[1].strip(): line.split("|")[2:5] for line in lines if line.startswith("| C")
    }
    assert len(cells) == 3 + 3 + 8 + 4
    assert [float(cell) for cell in cells["C3: extractor vgg16"]] == [24.81, 0.911, 0.204]
    assert [float(cell) for cell in cells["C4: fusion upsample-static"]] == [11.99, 0.35, 0.546]
    assert {cell.strip() for cell in cells["C1: do nothing"]} == {"–"}


def test_one_seed_and_no_trunk(tmp_path):
    fakes.write(tmp_path / "smoke", lpips=False, effects={"unet": -9})
    text = execute(tmp_path, 1)
    assert text.count("one training per configuration: not tested") >= 6 and "±" not in text
    assert not {"nan", "inf"} & set(text.lower().split())
    verdicts = io.read_json(tmp_path / "smoke" / "11_summary.json")["numbers"]["verdicts"]
    words = {row["claim"]: row["verdict"] for row in verdicts}
    assert words.pop("C5") == SUPPORTED and set(words.values()) == {NOT_TESTABLE}

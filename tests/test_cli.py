"""The command line, called in this process as its entry point calls it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rr import cli
from rr.errors import InputError


@pytest.fixture
def command(capfd):
    """command("run", ...): exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, words)))
        return end.value.code or 0, *capfd.readouterr()

    return call


def only_line(text):
    """The one line that stderr holds: no traceback, no warning."""
    assert text.count("\n") == 1 and text.startswith("error: "), text
    return text


def test_help_shows_the_commands(command):
    code, shown, _ = command("--help")
    names = ("reproduce", "check", "run", "restore", "train", "data", "doctor")
    assert code == 0 and all(f" {name} " in shown for name in names)
    for name in names:
        assert command(name, "--help")[0] == 0


def test_the_command_line_starts_without_torch():
    """`rr reproduce` starts `rr run` some fifty times; the kernels import torch if they need it."""
    script = "import sys, rr.cli, rr.workflow.notebook as n; n.check(n.find('05_vae'), {})\n"
    script += "print({'torch', 'lightning_fabric', 'pandas', 'snakemake'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "99_nothing"], "unknown; choose one of"),
        (["run", "TOY", "-p", "sed=1"], "choose one of preset, seed, out"),
        (["run", "TOY", "-p", "seed=one"], "must be a whole number"),
        (["run", "TOY", "-p", "seed"], "must be NAME=VALUE"),
        (["run", "TOY", "-p", "out="], "out: empty; name the folder"),
        (["run", "TOY", "--each", "seed=1"], '--each seed=1: must be JSON like {"seed": 1}'),
        (["run", "TOY", "--each", "[1]"], "must be JSON like"),
        (["run", "TOY", "--each", '{"sed": 1}'], "choose one of preset, seed, out"),
        (["run", "TOY", "--each", "{}", "--each", "{}"], "runs of toy would write the same"),
        (["reproduce", "--preset", "tiny"], "choose one of mini, smoke, course, paper"),
        (["reproduce", "--study", "every"], "choose one of all, backbones, extractors, fusion"),
        (["reproduce", "--profile", "cloud", "--out", "TMP"], "choose one of kubernetes, laptop"),
        (["reproduce", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["reproduce", "--labels", "README.md"], "must be a CSV that labels the photographs"),
        (["reproduce", "--out", ""], "out: empty; name the folder"),
        (["check", "--preset", "tiny"], "choose one of mini, smoke, course, paper"),
        (["check", "--out", "TMP"], "no tables; `rr reproduce` makes them"),
        (["restore", "nowhere"], "nowhere: no such file or folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(command, toy, tmp_path, words, message):
    places = {"TOY": toy(), "TMP": tmp_path}
    code, out, error = command(*(places.get(word, word) for word in words))
    assert code == 2 and message in only_line(error) and out == ""


@pytest.mark.parametrize("words", [["--present", "mini"], ["--seeds", "0"], ["--jobs", "one"]])
def test_unknown_options_are_exit_2(command, words):
    assert command("reproduce", *words)[0] == 2


def test_run(command, toy, tmp_path):
    code = "from rr.files import results, write_json\n"
    code += "write_json(results(preset, out) / 'toy.json', [seed, rate])"
    given = ("-p", "seed=4", "-p", "rate=0.5", "-p", f"out={tmp_path}/a b")
    code, _, error = command("run", toy(code), *given)
    assert code == 0 and "toy: done in" in error
    assert json.loads((tmp_path / "a b" / "mini" / "toy.json").read_text()) == [4, 0.5]
    assert (tmp_path / "a b" / "mini" / "executed" / "toy.ipynb").is_file()


def test_run_with_each_runs_once_per_value(command, toy, tmp_path):
    code = "from rr.files import results, write_json\n"
    code += "write_json(results(preset, out) / 'toy.json', [seed, rate])"
    each = [("--each", json.dumps({"preset": name, "seed": 7})) for name in ("mini", "smoke")]
    given = ("-p", "rate=0.5", "-p", "seed=1", "-p", f"out={tmp_path}")
    assert command("run", toy(code), *given, *each[0], *each[1])[0] == 0
    for name in ("mini", "smoke"):
        assert json.loads((tmp_path / name / "toy.json").read_text()) == [7, 0.5]
        assert (tmp_path / name / "executed" / "toy.ipynb").is_file()


def test_run_of_a_failing_notebook_is_exit_1(command, toy, tmp_path):
    code, _, error = command("run", toy("1 / 0"), "--executed", tmp_path / "toy.ipynb")
    line = "error: toy: ZeroDivisionError: division by zero; see the traceback in "
    assert code == 1 and only_line(error).startswith(f"{line}{tmp_path}")


def test_doctor(command, tmp_path, monkeypatch):
    (tmp_path / "resnet34.safetensors").touch()
    monkeypatch.setenv("RR_WEIGHTS", str(tmp_path))
    code, shown, error = command("doctor")
    assert (code, error) == (0, "")
    for word in ("python", "torch", "cpu", "inception_v3", "alexnet", "smoke"):
        assert f" {word} " in shown
    assert str(tmp_path / "resnet34.safetensors") in shown
    assert "missing: downloaded when needed" in shown
    monkeypatch.setenv("RR_WEIGHTS", str(tmp_path / "nowhere"))
    code, _, error = command("doctor")
    assert code == 1 and "no such folder" in only_line(error)


# ------------------------------------------------------------------------------------------ restore


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run of notebook 06, whose restorer returns the negative of a photograph."""
    from rr import restore

    def negative(restorer, image, seed):
        if image.mean() == 0:
            raise InputError("no field of view; give a photograph of the retina")
        return 255 - image, {"status": "restored", "summary": "readable", "estimates": {}}

    monkeypatch.setattr(restore, "load", lambda folder, device: None)
    monkeypatch.setattr(restore, "restore_photograph", negative)
    (tmp_path / "run" / "denoiser").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path):
    """A folder with two photographs, a truncated one and one without a field of view."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for name in ("a.png", "d.JPG", "broken.png", "dark.png"):
        Image.fromarray(noise * (name != "dark.png")).save(folder / name)
    data = (folder / "broken.png").read_bytes()
    (folder / "broken.png").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").write_text("no photograph")
    return folder


def test_restore_goes_on_after_bad_photographs(command, photos, run, tmp_path):
    out = tmp_path / "out"
    code, shown, error = command("restore", photos, "--out", out, "--checkpoint", run, "--seed", 3)
    assert code == 1 and len(error.splitlines()) == 2
    assert "broken.png: not a readable image" in error and "dark.png: no field of view" in error
    assert f"{out}/a.png: restored; readable" in shown
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "d.png", "restore.json"]
    original, restored = (np.array(Image.open(folder / "a.png")) for folder in (photos, out))
    assert (restored == 255 - original).all()
    report = json.loads((out / "restore.json").read_text())
    assert report["a.png"] == {
        "input": str(photos / "a.png"), "checkpoint": str(run), "seed": 3,
        "status": "restored", "summary": "readable", "estimates": {},
    }  # fmt: skip
    assert report["broken.png"]["status"] == "failed"
    assert "not a readable image" in report["broken.png"]["error"]


def test_restore_by_the_weights_in_the_repository(command, photos, tmp_path):
    """The default needs nothing that was made before."""
    skimage_data = pytest.importorskip("skimage.data")
    folder, out = tmp_path / "eyes", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(skimage_data.retina()).resize((400, 400)).save(folder / "eye.png")
    code, _, error = command("restore", folder, photos / "dark.png", "--out", out)
    assert code == 1 and "no field of view" in only_line(error)
    report = json.loads((out / "restore.json").read_text())
    assert report["dark.png"]["status"] == "failed"
    assert report["eye.png"]["status"] in ("restored", "left alone")
    estimates = report["eye.png"]["estimates"]
    assert estimates["quality"] > 15 and 0 <= estimates["correction"] <= 1
    assert Image.open(out / "eye.png").size == (400, 400)


def test_restore_without_a_checkpoint_writes_nothing(command, photos, tmp_path):
    options = ("--out", tmp_path / "out", "--checkpoint", tmp_path / "nothing")
    code, _, error = command("restore", photos / "a.png", *options)
    assert code == 2 and "no checkpoint there" in only_line(error)
    assert not (tmp_path / "out").exists()


def test_restore_keeps_what_an_earlier_call_reported(command, photos, run, tmp_path):
    options = ("--out", tmp_path / "out", "--checkpoint", run)
    for name in ("a.png", "d.JPG"):
        code, _, error = command("restore", photos / name, *options)
        assert (code, error) == (0, "")
    report = json.loads((tmp_path / "out" / "restore.json").read_text())
    assert set(report) == {"a.png", "d.png"}


def test_restore_refuses_before_any_work(command, photos, run, tmp_path):
    out, checkpoint = tmp_path / "out", ("--checkpoint", run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes((photos / "d.JPG").read_bytes())
    photo = photos / "a.png"
    before = photo.read_bytes()
    for words, message in [
        ((photo, tmp_path / "a.jpg", "--out", out), "both would become"),
        ((photo, "--out", photos), "would be lost; choose another --out"),
        ((tmp_path / "empty", "--out", out), "no photographs in this folder"),
        ((photo, "nowhere.png", "--out", out), "nowhere.png: no such file or folder"),
        ((photo, "--out", out, "--device", "tpu"), "choose one of auto, cpu, cuda"),
    ]:
        code, _, error = command("restore", *words, *checkpoint)
        assert code == 2 and message in only_line(error)
    assert not out.exists() and photo.read_bytes() == before


def test_restore_on_a_full_disk_keeps_the_old_file(command, photos, run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("restore", photos / "a.png", "--out", out, "--checkpoint", run)
    assert command(*words)[0] == 0
    before = (out / "a.png").read_bytes()

    def full(self, path, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, error = command(*words)
    assert code == 1 and "the disk is full" in only_line(error)
    assert (out / "a.png").read_bytes() == before and len(list(out.iterdir())) == 2


# -------------------------------------------------------------------------------------------- train


@pytest.mark.parametrize(
    ("words", "started", "reason"),
    [
        (["-p", "preset=paper"], {}, "-p preset: use the option --preset"),
        (["--nodes", "2"], {}, "2 nodes: start the command with torchrun or srun"),
        (
            ["--devices", "2"],
            {"SLURM_JOB_ID": "1"},
            "2 devices on 1 nodes: start the command with torchrun or srun",
        ),
        (
            ["--devices", "3"],
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
            "3 devices on 1 nodes: torchrun or srun started 2 processes",
        ),
        (
            [],
            {"SLURM_STEP_NUM_TASKS": "4"},
            "1 devices on 1 nodes: torchrun or srun started 4 processes",
        ),
        (["--devices", "2"], {}, "no complete packed data set"),
    ],
)
def test_train_says_before_it_starts_what_cannot_be(
    command, monkeypatch, tmp_path, words, started, reason
):
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    options = ("--out", tmp_path / "nothing", "--device", "cpu")
    code, _, error = command("train", "vae", *options, *words)
    assert code == 2 and reason in only_line(error)

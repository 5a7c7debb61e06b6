"""The command line as a user meets it: a new process each time, but for `restore`, whose restorer is a stand-in."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from rr import cli
from rr.errors import InputError
from rr.workflow import notebook

NOTEBOOKS = sorted(notebook.NOTEBOOKS.glob("[0-9]*.py"))


def only_line(text):
    """The one line that stderr holds: no traceback, no warning."""
    assert text.count("\n") == 1 and text.startswith("error: "), text
    return text


def test_help_is_fast_and_shows_the_commands(rr):
    started = time.monotonic()
    shown = rr("--help")
    assert time.monotonic() - started < 3 and shown.returncode == 0
    assert all(
        command in shown.stdout
        for command in ("reproduce", "run", "restore", "train", "report", "doctor")
    )


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "99_nothing"], "unknown; choose one of"),
        (["run", "TOY", "-p", "sed=1"], "choose from preset, seed, out"),
        (["run", "TOY", "-p", "seed=one"], "must be a whole number"),
        (["run", "TOY", "-p", "preset=tiny"], "choose one of mini, smoke"),
        (["run", "TOY", "-p", "seed"], "must be NAME=VALUE"),
        (["reproduce", "--preset", "tiny"], "choose one of mini, smoke, course, paper"),
        (
            ["reproduce", "--study", "all of them"],
            "choose one of all, backbones, extractors, fusion",
        ),
        (
            ["reproduce", "--profile", "cloud"],
            "profile 'cloud': unknown; choose one of kubernetes, laptop, slurm",
        ),
        (["reproduce", "--data", "nowhere"], "--data nowhere: no such folder"),
        (
            ["reproduce", "--labels", "README.md"],
            "must be a CSV that labels the photographs in --data",
        ),
        (["reproduce", "--out", ""], "out: empty; name the folder"),
        (["reproduce", "--out", "a{b}"], "braces have a meaning for Snakemake"),
        (["run", "TOY", "-p", "out="], "out: empty; name the folder"),
        (["report", "--preset", "tiny"], "choose one of mini, smoke, course, paper"),
        (["restore", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(rr, toy, words, message):
    started = time.monotonic()
    done = rr(*[str(toy()) if word == "TOY" else word for word in words])
    assert done.returncode == 2 and message in only_line(done.stderr) and done.stdout == ""
    assert time.monotonic() - started < 3


def test_unknown_options_are_exit_2(rr):
    assert rr("reproduce", "--present", "mini").returncode == 2
    assert rr("reproduce", "--seeds", "0").returncode == 2
    assert rr("reproduce", "--jobs", "one").returncode == 2


def test_run(rr, toy, tmp_path):
    path = toy(
        "from rr.io import results, write_json\nwrite_json(results(preset, out) / 'toy.json', [seed, rate])"
    )
    done = rr("run", path, "-p", "seed=4", "-p", "rate=0.5", "-p", f"out={tmp_path}/a b")
    assert done.returncode == 0 and "toy  done in" in done.stderr
    assert json.loads((tmp_path / "a b" / "mini" / "toy.json").read_text()) == [4, 0.5]
    assert (tmp_path / "a b" / "mini" / "executed" / "toy.ipynb").is_file()


def test_run_of_a_failing_notebook_is_exit_1(rr, toy, tmp_path):
    done = rr("run", toy("1 / 0"), "--executed", tmp_path / "toy.ipynb")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        f"error: toy: ZeroDivisionError: division by zero; see the traceback in {tmp_path}"
        in done.stderr
    )


def test_doctor(rr, tmp_path):
    (tmp_path / "resnet34.safetensors").touch()
    done = rr("doctor", RR_WEIGHTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout
        for word in ("python", "torch", "cpu", "inception_v3", "alexnet", "smoke")
    )
    assert (
        str(tmp_path / "resnet34.safetensors") in done.stdout
        and "missing: downloaded when needed" in done.stdout
    )
    done = rr("doctor", RR_WEIGHTS=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "no such folder" in only_line(done.stderr)


# -------------------------------------------------------------------------------------------------------- restore


@pytest.fixture
def some(tmp_path):
    """A folder that looks like a run of the paper's method."""
    (tmp_path / "some" / "denoiser").mkdir(parents=True)
    return tmp_path / "some"


@pytest.fixture
def command(monkeypatch, capsys):
    """command("restore", ...) in this process, with a restorer that turns photographs into their negative."""
    from rr.models import restorer

    def negative(regen, image, seed):
        if image.mean() == 0:
            raise InputError("no field of view; give a photograph of the retina")
        return 255 - image, {
            "status": "restored",
            "passed": True,
            "before": {"disc": 0.1},
            "after": {"disc": 0.9},
        }

    monkeypatch.setattr(restorer.RetinaRegen, "load", classmethod(lambda *_: None))
    monkeypatch.setattr(restorer, "restore_photograph", negative)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["rr", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr().err

    return run


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


def test_restore_goes_on_after_bad_photographs(command, photos, some, tmp_path):
    out = tmp_path / "out"
    code, said = command("restore", photos, "--out", out, "--checkpoint", some, "--seed", 3)
    assert code == 1 and len(said.splitlines()) == 2
    assert "broken.png: not a readable image" in said and "dark.png: no field of view" in said
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "d.png", "restore.json"]
    assert (
        np.array(Image.open(out / "a.png")) == 255 - np.array(Image.open(photos / "a.png"))
    ).all()
    report = json.loads((out / "restore.json").read_text())
    assert report["a.png"] == {
        "input": str(photos / "a.png"), "checkpoint": str(some), "seed": 3, "status": "restored", "passed": True,
        "before": {"disc": 0.1}, "after": {"disc": 0.9},
    }  # fmt: skip
    assert (
        report["broken.png"]["status"] == "failed"
        and "not a readable image" in report["broken.png"]["error"]
    )


def test_restore_by_the_weights_in_the_repository(command, photos, tmp_path, capsys):
    """The default needs nothing that was made before: the bundled photograph, degraded, comes back at its size."""
    skimage_data = pytest.importorskip("skimage.data")
    folder = tmp_path / "eyes"
    folder.mkdir()
    Image.fromarray(skimage_data.retina()).resize((400, 400)).save(folder / "eye.png")
    out = tmp_path / "out"
    assert (
        command("restore", folder, photos / "dark.png", "--out", out)[0] == 1
    )  # dark.png has no field of view
    report = json.loads((out / "restore.json").read_text())
    assert (
        report["dark.png"]["status"] == "failed"
        and "no field of view" in report["dark.png"]["error"]
    )
    facts = report["eye.png"]
    assert (
        facts["status"] in ("restored", "left alone")
        and facts["quality"] > 15
        and 0 <= facts["correction"] <= 1
    )
    assert Image.open(out / "eye.png").size == (400, 400)
    code, said = command(
        "restore", folder, "--out", tmp_path / "other", "--checkpoint", tmp_path / "nothing"
    )
    assert code == 2 and "no checkpoint there" in only_line(said)


def test_restore_keeps_what_an_earlier_call_reported(command, photos, some, tmp_path):
    for name in ("a.png", "d.JPG"):
        assert command(
            "restore", photos / name, "--out", tmp_path / "out", "--checkpoint", some
        ) == (0, "")
    assert set(json.loads((tmp_path / "out" / "restore.json").read_text())) == {"a.png", "d.png"}


def test_restore_refuses_before_any_work(command, photos, some, tmp_path):
    out, some = tmp_path / "out", ("--checkpoint", some)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes((photos / "d.JPG").read_bytes())
    before = (photos / "a.png").read_bytes()
    for words, message in [
        ((photos / "a.png", tmp_path / "a.jpg", "--out", out, *some), "both would become"),
        ((photos / "a.png", "--out", photos, *some), "would be lost; choose another --out"),
        ((tmp_path / "empty", "--out", out, *some), "no photographs in this folder"),
        (
            (photos / "a.png", "nowhere.png", "--out", out, *some),
            "nowhere.png: no such file or folder",
        ),
        (
            (photos / "a.png", "--out", out, "--device", "tpu", *some),
            "choose one of auto, cpu, cuda",
        ),
    ]:
        code, said = command("restore", *words)
        assert code == 2 and message in only_line(said)
    assert not out.exists() and (photos / "a.png").read_bytes() == before


def test_restore_on_a_full_disk_keeps_the_old_file(command, photos, some, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command("restore", photos / "a.png", "--out", out, "--checkpoint", some)
    before = (out / "a.png").read_bytes()

    def full(self, path, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, said = command("restore", photos / "a.png", "--out", out, "--checkpoint", some)
    assert code == 1 and "the disk is full" in only_line(said)
    assert (out / "a.png").read_bytes() == before and len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    "words, started, reason",
    [
        (["-p", "preset=paper"], {}, "-p preset: is the option --preset"),
        (["--strategy", "fsdp"], {}, "fsdp: divides a component among several devices"),
        (["--nodes", "2"], {}, "2 nodes: start the command with torchrun or srun"),
        (
            ["--devices", "2"],
            {"SLURM_JOB_ID": "1"},
            "2 devices on 1 nodes: start the command with torchrun or srun",
        ),
        (
            ["--devices", "3"],
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
            "3 devices on 1 nodes, and 2 processes",
        ),
        (
            [],
            {"SLURM_STEP_NUM_TASKS": "4"},
            "1 devices on 1 nodes, and 4 processes from torchrun or srun",
        ),
        (["--devices", "2"], {}, "no complete packed data set here"),
    ],
)
def test_train_says_once_and_before_it_starts_what_cannot_be(rr, tmp_path, words, started, reason):
    done = rr("train", "vae", "--out", tmp_path / "nothing", "--device", "cpu", *words, **started)
    (said,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert done.returncode == 2 and reason in said and "Traceback" not in done.stderr

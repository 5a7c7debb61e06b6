"""The loop: exact resume, averaged weights, best and last checkpoint, what begins a new one."""

import subprocess
import sys
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from rr import checkpoint
from rr.data import packing
from rr.data.sources import Source
from rr.errors import InputError
from rr.files import read_json
from rr.paper import LABELS
from rr.presets import preset
from rr.train import loop, state
from rr.train.distributed import fabric


class Line(nn.Module):
    """A tiny model with all that makes a resume hard: dropout, batch normalisation, noise."""

    def __init__(self, width=4):
        super().__init__()
        self.arguments = {"width": width}
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1)
        )

    def loss(self, x, labels, generator):
        x = x.mean((2, 3)) + 0.1 * torch.randn(len(x), 3, generator=generator)
        return {"loss": ((self.net(x)[:, 0] - labels[:, 0]) ** 2).mean()}


def prepare(batch, generator, training):
    return batch.x, batch.labels


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """40 images of 4 px with random labels."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 4, 4, 3), np.uint8), rng.random((40, 4))
    names = {"name": [f"{i}" for i in range(40)]}
    table = pd.DataFrame(names | dict(zip(LABELS, labels.T)))
    source = Source({"kind": "random"}, table, lambda i, size: (pixels[i], {}))
    return packing.pack(source, 4, tmp_path_factory.mktemp("packed") / "data")


@pytest.fixture
def configured(packed):
    """configured(folder, **changes): the Config of a Line, always with the same first weights."""

    def build(folder, rows=np.arange(32), val_rows=np.arange(32, 40), **changes):
        torch.manual_seed(0)
        values = {"epochs": 3, "batch": 8, "lr": 1e-2, "ema": 0.9, **changes}
        return loop.Config("line", Line(), packed, rows, val_rows, prepare, folder, **values)

    return build


@pytest.fixture
def training(configured):
    """training(folder, **changes): (model, its training, not yet begun)."""

    def begin(folder, micro=1, fresh=False, **changes):
        config = configured(folder, **changes)
        return config.model, loop.train(config, fabric("cpu"), micro, fresh)

    return begin


def parameters(folder):
    return checkpoint.load(folder, Line).state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


# ---- Resume


def test_a_resumed_run_ends_with_the_parameters_of_an_uninterrupted_one(tmp_path, training):
    whole, run = training(tmp_path / "whole", epochs=4)
    list(run)
    _, run = training(tmp_path / "cut", epochs=4)
    for row in run:
        if row["step"] == 11:  # in the middle of the third epoch
            break
    run.close()
    torch.manual_seed(99)
    cut, run = training(tmp_path / "cut", epochs=4)
    rows = list(run)
    assert rows[0]["step"] == 9  # after the last finished epoch
    assert same(parameters(tmp_path / "whole"), parameters(tmp_path / "cut"))
    assert same(parameters(tmp_path / "whole" / "last"), parameters(tmp_path / "cut" / "last"))
    assert same(whole.state_dict(), cut.state_dict())
    logs = [state.history(tmp_path / name) for name in ("whole", "cut")]
    columns = ["step", "loss", "val_loss"]
    assert logs[0][columns].equals(logs[1][columns]) and len(logs[0]) == 16


def test_a_finished_run_is_not_trained_again(tmp_path, training):
    first, run = training(tmp_path)
    list(run)
    again, run = training(tmp_path)
    assert list(run) == []
    assert same(first.state_dict(), again.state_dict())


@pytest.mark.parametrize("write", range(5))
def test_a_run_killed_between_any_two_writes_continues_to_the_same_end(
    tmp_path, monkeypatch, training, write
):
    """An epoch writes best, log, last, state. The process dies in the second epoch before one."""
    whole, run = training(tmp_path / "whole")
    list(run)
    done = []

    def dying(function, *arguments, **options):
        if len(done) == 4 + write:
            raise KeyboardInterrupt
        done.append(function)
        return function(*arguments, **options)

    monkeypatch.setattr(state.checkpoint, "save", partial(dying, checkpoint.save))
    monkeypatch.setattr(state, "write_table", partial(dying, state.write_table))
    monkeypatch.setattr(state, "save_state", partial(dying, state.save_state))
    with pytest.raises(KeyboardInterrupt):
        list(training(tmp_path / "cut")[1])
    monkeypatch.undo()
    again, run = training(tmp_path / "cut")
    assert next(run)["step"] > 4  # the first epoch is not lost
    list(run)
    assert same(whole.state_dict(), again.state_dict())
    logs = [state.history(tmp_path / name)[["step", "loss"]] for name in ("whole", "cut")]
    assert logs[0].equals(logs[1])


def test_partial_files_of_a_killed_process_are_removed(tmp_path, training):
    (tmp_path / "last").mkdir()
    left = tmp_path / "last" / ".state.part-abcdefgh.pt"
    left.write_bytes(b"half")
    list(training(tmp_path)[1])
    assert not left.exists()


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path, configured):
    config = configured(tmp_path / "line", epochs=1)
    holder = (
        "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / ".line.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(InputError, match="line: another process trains there"):
            loop.run(config, fabric("cpu"))
        process.kill()
    assert not config.folder.exists()
    assert len(loop.run(config, fabric("cpu"))) == 4  # the lock ends with the process that held it


# ---- What starts a new training


def test_the_configuration_decides_and_the_code_does_not(tmp_path, monkeypatch, training, capsys):
    """Fails if an edited message, which changes the hash of the code, starts a new training."""
    list(training(tmp_path / "line")[1])
    monkeypatch.setattr("rr.provenance.code", lambda: "000000000000")
    assert list(training(tmp_path / "line")[1]) == []
    assert capsys.readouterr().out == "" and not (tmp_path / "line.previous").exists()
    assert read_json(tmp_path / "line" / "config.json")["provenance"]["code"] != "000000000000"


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_learning_rate_trains_anew_and_keeps_the_previous(
    tmp_path, training, capsys, finished
):
    _, run = training(tmp_path / "line")
    first = list(run) if finished else [next(run) for _ in range(5)]
    run.close()
    before = parameters(tmp_path / "line")
    rows = list(training(tmp_path / "line", lr=2e-2, metadata={"weights": "none"})[1])
    assert len(first) == (12 if finished else 5) and len(rows) == 12
    said = capsys.readouterr().out
    assert "(lr: 0.01 -> 0.02, weights: None -> none)" in said and "line.previous" in said
    assert same(before, parameters(tmp_path / "line.previous"))
    assert not same(before, parameters(tmp_path / "line"))
    list(training(tmp_path / "line", lr=3e-2)[1])  # one generation is kept
    assert read_json(tmp_path / "line.previous" / "config.json")["provenance"]["lr"] == 2e-2


def test_fresh_trains_anew_and_keeps_the_previous(tmp_path, configured, capsys):
    config = configured(tmp_path / "line")
    assert len(loop.run(config, fabric("cpu"), fresh=True)) == 12  # there is nothing yet to keep
    assert capsys.readouterr().out == "" and not (tmp_path / "line.previous").exists()
    before = parameters(config.folder)
    written = (config.folder / "config.json").stat().st_mtime_ns
    loop.run(configured(tmp_path / "line"), fabric("cpu"), fresh=True)
    assert "a fresh training was asked for" in capsys.readouterr().out
    assert (config.folder / "config.json").stat().st_mtime_ns > written
    assert same(before, parameters(tmp_path / "line.previous"))
    assert same(before, parameters(tmp_path / "line"))


@pytest.mark.parametrize("broken", ["config.json", "history.csv", "last/state.pt"])
@pytest.mark.parametrize("how", ["half", "absent"])
def test_what_cannot_be_continued_is_trained_anew(tmp_path, training, capsys, broken, how):
    whole, run = training(tmp_path / "whole")
    list(run)
    list(training(tmp_path / "cut")[1])
    if how == "half":
        (tmp_path / "cut" / broken).write_bytes(b"")
    else:
        (tmp_path / "cut" / broken).unlink()
    again, run = training(tmp_path / "cut")
    assert len(list(run)) == 12
    assert same(whole.state_dict(), again.state_dict())
    assert "cannot be continued" in capsys.readouterr().out
    assert (tmp_path / "cut.previous" / "last" / "config.json").exists()


# ---- Images, weights, checkpoints


@pytest.fixture
def asked(monkeypatch):
    """The rows of every pass over the data: training, validation, training, ..."""
    passes, batches = [], loop.batches

    def watched(data, shares, device):
        passes.append(list(shares))
        return batches(data, shares, device)

    monkeypatch.setattr(loop, "batches", watched)
    return passes


def test_an_epoch_sees_every_image_once_and_the_seed_decides_the_order(tmp_path, asked, training):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        list(training(tmp_path / name, epochs=1, seed=seed)[1])
    first, again, second = (np.concatenate(shares).tolist() for shares in asked[::2])
    assert sorted(first) == list(range(32)) and first == again != second


def test_no_image_is_left_out_if_the_batch_does_not_divide_their_number(tmp_path, asked, training):
    list(training(tmp_path, epochs=1, batch=12)[1])
    assert sorted(map(len, asked[0])) == [10, 11, 11]  # not 12, 12 and 8: all steps count the same
    assert sorted(np.concatenate(asked[0])) == list(range(32))


def test_best_is_the_epoch_of_the_lowest_validation_loss(tmp_path, training, packed):
    val = [row["val_loss"] for row in training(tmp_path, epochs=6, lr=0.3)[1] if "val_loss" in row]
    assert len(val) == 6
    assert read_json(tmp_path / "config.json")["val_loss"] == pytest.approx(min(val))
    assert read_json(tmp_path / "last" / "config.json")["val_loss"] == pytest.approx(val[-1])
    record = read_json(tmp_path / "config.json")["provenance"]
    assert (record["seed"], record["data"], record["device"]) == (0, packed.hash, "cpu")
    assert record["seconds"] > 0 and record["model.width"] == 4


def test_the_saved_weights_are_the_exponential_average(tmp_path, training):
    model, run = training(tmp_path, epochs=2)
    seen = [model.net[0].weight.detach().clone() for _ in islice(run, 4)]  # one epoch
    average = seen[0]
    for weight in seen[1:]:
        average = 0.9 * average + 0.1 * weight
    saved = checkpoint.load(tmp_path / "last", Line).net[0].weight
    assert torch.allclose(saved, average, atol=1e-6)


def test_dropout_and_batch_normalisation_are_on_in_training_and_off_in_validation(
    tmp_path, monkeypatch, training
):
    modes, loss = [], Line.loss

    def recorded(self, x, labels, generator):
        modes.append(self.training)
        return loss(self, x, labels, generator)

    monkeypatch.setattr(Line, "loss", recorded)
    model, run = training(tmp_path, epochs=2)
    list(run)
    assert modes == 2 * [True, True, True, True, False]  # four steps, one batch to validate on
    assert not model.training


@pytest.mark.parametrize(
    "optimizer, key",
    [("rmsprop", "square_avg"), ("adamw", "exp_avg_sq"), ("adamw-by-layer", "exp_avg_sq")],
)
def test_the_optimizer_is_the_one_of_the_configuration(tmp_path, training, optimizer, key):
    list(islice(training(tmp_path, epochs=2, optimizer=optimizer)[1], 4))
    assert key in state.load_state(tmp_path)["optimizer"]["state"][0]


def test_the_rate_warms_up_and_decays_and_that_of_the_paper_is_constant(configured, tmp_path):
    """Fails if AdamW begins or ends at its full rate, or if the classifier's rate changes (2.2)."""
    config = configured(tmp_path, epochs=250)  # of four steps
    rates = [config.rate(step) / config.lr for step in range(1, 1001)]
    assert rates[0] < 0.021 and rates[24] == pytest.approx(0.5, rel=0.01)
    assert rates[48] < rates[49] == rates[599] == 1 > rates[600]
    assert rates[799] == pytest.approx(0.5) and rates[-1] == 0
    short = configured(tmp_path, epochs=5)
    assert short.rate(1) < short.rate(2) == short.rate(12) == short.lr > short.rate(13)
    constant = configured(tmp_path, optimizer="rmsprop")
    assert {constant.rate(step) for step in (1, 6, 12)} == {constant.lr}


def test_the_optimizer_uses_the_rate_of_the_step(tmp_path, training):
    _, run = training(tmp_path, epochs=3, lr=0.3)
    list(islice(run, 8))  # of 12 steps; after the seventh the rate falls
    groups = state.load_state(tmp_path)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [pytest.approx(0.3 * (4 / 12) / 0.4)]


def test_a_finished_training_keeps_no_state_and_is_found_finished(tmp_path, training):
    """Fails if every finished training keeps its optimizer on the disk, or trains again."""
    first, run = training(tmp_path, epochs=2)
    list(run)
    assert not {"model", "averaged", "optimizer"} & state.load_state(tmp_path).keys()
    again, run = training(tmp_path, epochs=2)
    assert list(run) == []
    assert torch.equal(first.net[0].weight, again.net[0].weight)


def test_a_weight_with_many_inputs_moves_in_small_steps():
    """The first step of Adam is the rate. Fails if it does not fall with the number of inputs."""
    layers = nn.Linear(2048, 2), nn.Conv2d(4, 2, 4)
    weights = [weight for layer in layers for weight in layer.parameters()]
    before = [weight.detach().clone() for weight in weights]
    optimizer = loop.OPTIMIZERS["adamw-by-layer"](weights, lr=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["scale"]
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    steps = [(old - new).mean().item() for old, new in zip(before, weights)]
    assert steps == pytest.approx([0.5 / 2048**0.5, 0.5, 0.5 / 8, 0.5], rel=1e-3)


def test_half_an_epoch_sees_half_of_the_images(tmp_path, training):
    """Fails if a training is rounded to whole epochs, or is not validated at its end."""
    rows = list(training(tmp_path, epochs=1.5)[1])
    assert [row["epoch"] for row in rows] == [0] * 4 + [1] * 2
    assert ["val_loss" in row for row in rows] == [False, False, False, True, False, True]


def test_a_configuration_shows_what_a_student_asks_for(configured, tmp_path):
    shown = repr(configured(tmp_path))
    for line in ("model Line", "rows 32", "val_rows 8", "epochs 3", "batch 8", "optimizer adamw",
                 "lr 0.01", "prepare prepare"):  # fmt: skip
        assert line in " ".join(shown.split())


def test_only_a_long_training_on_a_gpu_compiles_its_model(tmp_path, configured):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    config = configured(tmp_path, epochs=loop.COMPILE_STEPS // 4)  # of four steps
    assert loop.compiles(config, gpu) and not loop.compiles(config, cpu)
    config.epochs -= 1
    assert not loop.compiles(config, gpu)


@pytest.mark.parametrize("name", ["mini", "smoke", "course"])
def test_no_training_of_a_small_preset_is_long_enough_to_compile(name):
    """Fails if a preset trains for so long that `rr reproduce` compiles for minutes on a GPU."""
    values = vars(preset(name))
    images = max(value for key, value in values.items() if key.endswith("_images"))
    smallest = min(values[key] for key in ("batch", "vae_batch", "unet_batch"))
    assert images / smallest < loop.COMPILE_STEPS


# ---- Bad input


def test_what_cannot_work_is_said_in_one_line(tmp_path, training):
    with pytest.raises(InputError, match="4 training and 2 validation images are too few"):
        list(training(tmp_path, rows=np.arange(4), val_rows=np.arange(2))[1])
    with pytest.raises(InputError, match=r"8 images of a step .* use a batch of 10 or more"):
        list(training(tmp_path, micro=5)[1])  # batch normalisation needs two images
    with pytest.raises(InputError, match="loss is (nan|inf) at step [0-9]+; use a lower learning"):
        list(training(tmp_path, epochs=9, lr=1e18)[1])


def test_a_batch_that_does_not_fit_into_memory_is_said_in_one_line(
    tmp_path, monkeypatch, configured
):
    def loss(self, x, labels, generator):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 ...")

    monkeypatch.setattr(Line, "loss", loss)
    with pytest.raises(
        InputError, match="batches of 8 images of 4 px; use a smaller batch, or mor"
    ):
        loop.run(configured(tmp_path / "line"), fabric("cpu"))


@pytest.mark.parametrize(
    "words, said",
    [
        (("cpu", 0), "0 devices on 1 nodes: use at least one"),
        (("cpu", 2, 2), "start the command with torchrun or srun"),
        (("tpu",), "choose one of auto, cpu, cuda"),
        pytest.param(("cuda",), "torch finds no GPU",
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
    ],
)  # fmt: skip
def test_devices_that_do_not_exist_are_said_in_one_line(words, said):
    with pytest.raises(InputError, match=said):
        fabric(*words)


def test_another_number_of_processes_than_torchrun_started(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="torchrun or srun started 4 processes; start 2"):
        fabric("cpu", 2)

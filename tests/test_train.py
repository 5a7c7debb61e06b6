"""The loop: resume equals an uninterrupted run, bit by bit; averaged weights; best and last; refusals."""

import subprocess
import sys

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
from rr.train import loop as train


class Line(nn.Module):
    """A tiny component with everything that makes a resume hard: dropout, batch normalisation, random noise."""

    def __init__(self, width=4):
        super().__init__()
        self.arguments = {"width": width}
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 1)
        )

    def loss(self, batch, generator):
        x = batch.x.mean((2, 3)) + 0.1 * torch.randn(len(batch.x), 3, generator=generator)
        return {"loss": ((self.net(x)[:, 0] - batch.labels[:, 0]) ** 2).mean()}


@pytest.fixture(scope="module", autouse=True)
def packed(tmp_path_factory):
    """40 images of 4 px with random labels."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 4, 4, 3), np.uint8), rng.random((40, 4))
    table = pd.DataFrame({"name": [f"{i}" for i in range(40)]}).assign(
        **dict(zip(LABELS, labels.T))
    )
    source = Source({"kind": "random"}, table, lambda i, size: (pixels[i], {}))
    steps.data = packing.pack(source, 4, tmp_path_factory.mktemp("packed") / "data")
    return steps.data


def steps(folder, epochs=3, seed=0, lr=1e-2, **more):
    torch.manual_seed(0)
    model = Line()
    return model, train.train(
        model,
        steps.data,
        np.arange(32),
        np.arange(32, 40),
        folder=folder,
        epochs=epochs,
        lr=lr,
        ema=0.9,
        seed=seed,
        fabric=train.fabric("cpu"),
        **{"batch": 8, **more},
    )


def parameters(folder):
    return checkpoint.load(folder, Line).state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_a_resumed_run_ends_with_the_parameters_of_an_uninterrupted_one(tmp_path):
    whole, run = steps(tmp_path / "whole", epochs=4)
    list(run)
    _, run = steps(tmp_path / "cut", epochs=4)
    for row in run:
        if row["step"] == 11:  # in the middle of the third epoch
            break
    run.close()
    torch.manual_seed(99)
    cut, run = steps(tmp_path / "cut", epochs=4)
    rows = list(run)
    assert rows[0]["step"] == 9  # after the last finished epoch, not from the start
    assert same(parameters(tmp_path / "whole"), parameters(tmp_path / "cut"))
    assert same(parameters(tmp_path / "whole" / "last"), parameters(tmp_path / "cut" / "last"))
    assert same(whole.state_dict(), cut.state_dict())
    histories = [
        train.history(tmp_path / name)[["step", "loss", "val_loss"]] for name in ("whole", "cut")
    ]
    assert histories[0].equals(histories[1]) and len(histories[0]) == 16


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, run = steps(tmp_path)
    list(run)
    again, run = steps(tmp_path)
    assert list(run) == []
    assert same(first.state_dict(), again.state_dict())


@pytest.mark.parametrize("broken", ["config.json", "history.csv", "last/state.pt"])
def test_what_cannot_be_continued_is_trained_afresh(tmp_path, capsys, broken):
    whole, run = steps(tmp_path / "whole")
    list(run)
    _, run = steps(tmp_path / "cut")
    list(run)
    if broken == "last/state.pt":
        (tmp_path / "cut" / broken).write_bytes(b"half")
    else:
        (tmp_path / "cut" / broken).unlink()
    again, run = steps(tmp_path / "cut")
    assert len(list(run)) == 12
    assert same(whole.state_dict(), again.state_dict())
    assert "cannot be continued" in capsys.readouterr().out


@pytest.mark.parametrize("write", range(5))
def test_a_run_killed_between_any_two_writes_continues_to_the_same_end(
    tmp_path, monkeypatch, write
):
    """The second epoch's writes: best, log, last, state, in this order; the process dies before one of them."""
    whole, run = steps(tmp_path / "whole")
    list(run)
    done = []
    originals = {
        "save": checkpoint.save,
        "write_table": train.write_table,
        "_save_state": train._save_state,
    }

    def dying(name):
        def call(*arguments, **options):
            if len(done) == 4 + write:
                raise KeyboardInterrupt
            done.append(name)
            return originals[name](*arguments, **options)

        return call

    monkeypatch.setattr(train.checkpoint, "save", dying("save"))
    monkeypatch.setattr(train, "write_table", dying("write_table"))
    monkeypatch.setattr(train, "_save_state", dying("_save_state"))
    with pytest.raises(KeyboardInterrupt):
        list(steps(tmp_path / "cut")[1])
    monkeypatch.undo()
    again, run = steps(tmp_path / "cut")
    assert next(run)["step"] > 4  # the first epoch is not lost
    list(run)
    assert same(whole.state_dict(), again.state_dict())
    assert train.history(tmp_path / "cut")[["step", "loss"]].equals(
        train.history(tmp_path / "whole")[["step", "loss"]]
    )


def test_what_a_killed_writer_left_is_swept(tmp_path):
    (tmp_path / "last").mkdir()
    left = tmp_path / "last" / ".state.part-abcdefgh.pt"
    left.write_bytes(b"half")
    list(steps(tmp_path)[1])
    assert not left.exists()


def test_another_configuration_trains_afresh(tmp_path, capsys):
    _, run = steps(tmp_path)
    list(run)
    _, run = steps(tmp_path, seed=1)
    assert next(run)["step"] == 1
    assert "another configuration" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """The shares of every pass over the data: training, validation, training, ..."""
    found, batches = [], train.batches

    def watched(data, shares, device):
        found.append(list(shares))
        return batches(data, shares, device)

    monkeypatch.setattr(train, "batches", watched)
    return found


def test_an_epoch_sees_every_image_once_and_the_seed_decides_the_order(tmp_path, asked):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        list(steps(tmp_path / name, epochs=1, seed=seed)[1])
    first, again, other = (np.concatenate(shares).tolist() for shares in asked[::2])
    assert sorted(first) == list(range(32)) and first == again != other


def test_no_image_is_left_out_where_the_batch_does_not_divide_their_number(tmp_path, asked):
    list(steps(tmp_path, epochs=1, batch=12)[1])
    assert sorted(map(len, asked[0])) == [
        10,
        11,
        11,
    ]  # not 12, 12 and 8: no step counts less, none is larger than asked for
    assert sorted(np.concatenate(asked[0])) == list(range(32))


def test_best_is_the_epoch_of_the_lowest_validation_loss(tmp_path):
    _, run = steps(tmp_path, epochs=6, lr=0.3)
    val = [row["val_loss"] for row in run if "val_loss" in row]
    assert len(val) == 6
    assert read_json(tmp_path / "config.json")["val_loss"] == pytest.approx(min(val))
    assert read_json(tmp_path / "last" / "config.json")["val_loss"] == pytest.approx(val[-1])
    facts = read_json(tmp_path / "config.json")["provenance"]
    assert (
        facts["seed"] == 0
        and facts["data"] == steps.data.hash
        and facts["device"] == "cpu"
        and facts["seconds"] > 0
    )


def test_the_saved_weights_are_the_exponential_average(tmp_path):
    model, run = steps(tmp_path, epochs=1)
    seen = []
    for _ in run:
        seen.append(model.net[0].weight.detach().clone())
    average = seen[0]
    for weight in seen[1:3]:
        average = 0.9 * average + 0.1 * weight
    # the last step's weight is not seen: after it `model` takes over the saved average
    last = checkpoint.load(tmp_path / "last", Line).net[0].weight
    state = torch.load(tmp_path / "last" / "state.pt", weights_only=True)["model"]["net.0.weight"]
    assert torch.allclose(last, 0.9 * average + 0.1 * state, atol=1e-6)


def test_what_cannot_work_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="too few"):
        model = Line()
        list(
            train.train(
                model,
                steps.data,
                np.arange(4),
                np.arange(2),
                folder=tmp_path,
                epochs=1,
                batch=8,
                lr=1,
                ema=0.9,
                fabric=train.fabric("cpu"),
            )
        )
    _, run = steps(tmp_path, epochs=9, lr=1e18)
    with pytest.raises(InputError, match="loss is (nan|inf) at step"):
        list(run)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            train.fabric("cuda")


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path, packed):
    def once():
        return train.run("line", Line(), packed, np.arange(32), np.arange(32, 40), folder=tmp_path / "line", epochs=1, batch=8,
                         lr=1e-2, ema=0.9, fabric=train.fabric("cpu"))  # fmt: skip

    holder = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
    (tmp_path / "line").mkdir()
    words = [sys.executable, "-c", holder, str(tmp_path / "line" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="line: another process trains there"):
            once()
        other.kill()
    assert not (tmp_path / "line" / "config.json").exists()
    assert len(once()) == 4  # the lock goes with the process that held it


def test_rmsprop_is_the_classifiers_optimizer(tmp_path):
    assert train.OPTIMIZERS["rmsprop"] is torch.optim.RMSprop
    list(steps(tmp_path, epochs=1, optimizer="rmsprop")[1])
    state = torch.load(tmp_path / "last" / "state.pt", weights_only=True)
    assert "square_avg" in state["optimizer"]["state"]["net.0.weight"]


def test_a_step_that_does_not_fit_into_memory_is_taken_in_smaller_bites(
    tmp_path, monkeypatch, capsys
):
    """Same images, same weights of each in the gradient; the trial leaves no trace in batch normalisation."""
    whole, run = steps(tmp_path / "whole", micro=4)
    list(run)
    loss = Line.loss

    def hungry(self, batch, generator):
        if self.training and len(batch.x) > 2:
            raise torch.OutOfMemoryError("a test's")
        return loss(self, batch, generator)

    monkeypatch.setattr(Line, "loss", hungry)
    small, run = steps(tmp_path / "small")
    list(run)
    assert same(whole.state_dict(), small.state_dict())
    assert read_json(tmp_path / "small" / "config.json")["provenance"]["micro_batches"] == 4
    assert capsys.readouterr().out.count("out of memory") == 2


@pytest.mark.parametrize(
    "devices, strategy, word", [(1, "horovod", "ddp, fsdp"), (0, "ddp", "devices")]
)
def test_devices_that_cannot_be_had_are_said_in_one_line(devices, strategy, word):
    with pytest.raises(InputError, match=word):
        train.fabric("cpu", devices, strategy=strategy)

"""The benchmark `rr bench`: ours against what one would use instead, measured by turns, with a check of quality beside it.

Defines `Task` (one line of work, done by us and by peers), `compare` (the timing), `measure` (a Task as lines of the
table), `need` (a peer that must be installed) and `run` (the table, results/bench/<device>.csv and .json). The rows are in
rr.bench_cpu and rr.bench_gpu: ROWS = {name: function}. A row's function is a generator: it prepares, yields its Tasks,
which are measured while it waits, and tidies up. Peers come from the package index, the optional extra `bench`.
"""

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rr import files as io
from rr.errors import InputError, choose
from rr.models import pretrained as weights
from rr.provenance import provenance, read_result, write_result

DEVICES = {
    "cpu": "rr.bench_cpu",
    "gpu": "rr.bench_gpu",
}  # argument of `rr bench` => module of its rows
PAIRS = 5
PEERS = {  # module => its name in the package index
    "denoising_diffusion_pytorch": "denoising-diffusion-pytorch", "diffusers": "diffusers",
    "lpips": "lpips", "papermill": "papermill", "skimage": "scikit-image", "torchmetrics": "torchmetrics",
}  # fmt: skip
COLUMNS = ["row", "task", "peer", "unit", "ours", "theirs", "ratio", "low", "high", "target", "met", "gate", "value", "limit",
           "ok", "threads", "note", "seconds", "commit", "written"]  # fmt: skip


class Gate(NamedTuple):
    """A number that must not exceed its limit for the speed to count: "largest difference", 3e-7, 1e-5."""

    what: str
    value: float
    limit: float

    @property
    def ok(self):
        return self.value <= self.limit  # False for NaN


@dataclass
class Task:
    """What one or two lines of the table measure.

    target: at least so many times the rate of each peer; without peers, at least so much of `unit` per second.
    why: called where the target is missed: measures the reason and says it in a line.
    """

    name: str  # "SSIM, 64 images of 224 px"
    unit: str  # of the work: "images"; rates are in unit per second
    amount: float  # of work in one call of `ours`
    ours: Callable[[], object]
    target: float
    gate: Gate
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)  # "peer: how" => call
    peer_amount: float | None = None  # of work in one call of a peer; None: as ours
    threads: int = 1
    note: str = ""
    why: Callable[[], str] | None = None


class NotMeasured(InputError):
    """A row that cannot be measured here: its peer, its weights or its device is missing. The others go on."""


def need(*modules):
    """Raises NotMeasured, with the command that installs it, unless every one of these peers can be imported."""
    for module in modules:
        if find_spec(module) is None:
            raise NotMeasured(
                f"{PEERS[module]}: not installed; `pip install {PEERS[module]}`, or all: `pip install '.[bench]'`"
            )


def parameters(model):
    """Number of a network's parameters."""
    return sum(p.numel() for p in model.parameters())


def with_trunk(peer):
    """A peer's LPIPS network with AlexNet's ImageNet weights in its trunk. Raises NotMeasured where they are not at hand."""
    if weights.available("alexnet") is None:
        raise NotMeasured("LPIPS: no ImageNet weights of AlexNet here, and a random trunk measures nothing; "
                          f"{weights.FOLDER}=FOLDER with torchvision's file")  # fmt: skip
    tensors, _ = weights.state("alexnet")
    peer.net.load_state_dict(
        {key: tensors[f"features.{key.split('.', 1)[1]}"] for key in peer.net.state_dict()}
    )
    return peer.requires_grad_(False)


def seconds(call):
    """Wall time of call(), in s; on a GPU, until the device has finished."""
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise():
    if (
        torch.cuda.is_initialized()
    ):  # this process has used a GPU: what it was asked before must not count, nor be left over
        torch.cuda.synchronize()


def compare(ours, peer, pairs=PAIRS):
    """Seconds (pairs, 2) of ours() and peer(), called by turns: ours, peer, ours, peer, ...

    By turns, so that what disturbs the machine disturbs both; the ratio of two neighbours is less noisy than that of two
    means. One call of each goes before, untimed: first calls compile, allocate and fill caches.
    """
    ours()
    peer()
    return np.array([[seconds(ours), seconds(peer)] for _ in range(pairs)])


def hotspots(call, n=4):
    """The n operators in which call() spends most of its time, each with its share, in words."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # without a GPU it would complain on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_initialized():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        _synchronise()
    on_gpu = torch.cuda.is_initialized()
    column, kind = (
        ("self_device_time_total", "CUDA") if on_gpu else ("self_cpu_time_total", "CPU")
    )  # kernels, or operators
    found = [
        each
        for each in profile.key_averages()
        if each.device_type.name == kind and not each.is_user_annotation
    ]
    spent = sorted(((getattr(each, column), each.key) for each in found), reverse=True)
    total = sum(time for time, _ in spent)
    return ", ".join(f"{name} {time / total:.0%}" for time, name in spent[:n])


def measure(task, pairs=PAIRS):
    """Yield the lines of the table that a Task gives, one per peer: a dict of COLUMNS, without `row` and provenance.

    ours, theirs: median rates, unit per second. ratio: the median of the pairwise ratios, low and high the extremes.
    """
    reason = ""
    for peer, call in task.peers.items() or [("", None)]:
        if call is None:
            task.ours()
            rates = task.amount / np.array([[seconds(task.ours), np.nan] for _ in range(pairs)])
        else:
            rates = np.array([task.amount, task.peer_amount or task.amount]) / compare(
                task.ours, call, pairs
            )
        ours, theirs = np.median(rates, axis=0)
        ratios = rates[:, 0] / rates[:, 1]
        line = {"task": task.name, "peer": peer, "unit": f"{task.unit}/s", "ours": ours, "theirs": theirs,
                "ratio": np.median(ratios), "low": ratios.min(), "high": ratios.max(), "target": task.target}  # fmt: skip
        line["met"] = bool((line["ratio"] if call else ours) >= task.target)
        line |= {
            "gate": task.gate.what,
            "value": float(task.gate.value),
            "limit": task.gate.limit,
            "ok": bool(task.gate.ok),
        }
        if not line["met"] and task.why:
            reason = reason or task.why()
        yield line | {
            "threads": task.threads,
            "note": "; ".join(filter(None, [task.note, "" if line["met"] else reason])),
        }


def run(device="cpu", only=None, folder=io.ROOT / "results" / "bench"):
    """Measure the rows of `device`, or the row `only`, and write them into <device>.csv and .json; print the table.

    Written after every row, which replaces what was measured of it before; rows that are not, or cannot be, measured now stay,
    each with the commit and time of its own measurement. Returns {row: why it could not be measured}. Raises InputError for an
    unknown device or row, and where "gpu" finds none.
    """
    module = choose("device", device, DEVICES)
    if device == "gpu" and not torch.cuda.is_available():
        raise InputError("rr bench gpu: torch sees no GPU here; use rr bench cpu")
    rows = import_module(module).ROWS
    if only is not None:
        choose("row", only, rows)
    path = io.folder(folder) / f"{device}.json"
    try:
        lines = read_result(path)["numbers"] if path.exists() else []
    except InputError as error:
        raise InputError(
            f"{error}; or delete {path.name}: all rows are then measured anew"
        ) from None
    table, where, failed = (
        pd.DataFrame(lines, columns=COLUMNS),
        "cuda" if device == "gpu" else "cpu",
        {},
    )
    for name in [only] if only else rows:
        started = time.time()
        print(f"{name} ...", flush=True)
        with _threads(
            torch.get_num_threads() if device == "gpu" else 1
        ):  # a Task that uses more says so
            new = []
            try:
                for task in rows[name]():
                    new += measure(task)
            except NotMeasured as error:
                failed[name] = str(error)
                if not new and any(
                    line["row"] == name and line["ours"] is not None for line in lines
                ):
                    print(f"{name}: what was measured of it before stays")
                    continue
                new += [
                    {
                        "task": rows[name].__doc__.splitlines()[0].rstrip("."),
                        "note": f"not measured: {error}",
                    }
                ]
            facts = provenance(started=started, device=where)
            commit = (facts["commit"] or "")[:9] + (
                "+" if facts["dirty"] else ""
            )  # +: with changes
            own = {
                "row": name,
                "seconds": facts["seconds"],
                "commit": commit,
                "written": facts["written"],
            }
            lines = [line for line in lines if line["row"] in rows and line["row"] != name] + [
                line | own for line in new
            ]
            lines.sort(key=lambda line: list(rows).index(line["row"]))
            table = pd.DataFrame(lines, columns=COLUMNS)
            io.write_table(path.with_suffix(".csv"), table)
            write_result(
                path,
                table.to_dict("records"),
                files=[f"{device}.csv"],
                device=where,
                peers=_peers(),
            )
    show(table[table["row"].isin([only] if only else rows)])
    print(f"{path.with_suffix('.csv')}")
    return failed


@contextmanager
def _threads(n):
    """Within the block torch computes with n threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peers():
    """{package: version, None where it is not installed} of all peers."""
    found = {}
    for package in PEERS.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def show(table):
    """Print a table of COLUMNS."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        caption="ratio: of the rates, the median of five pairs; quality: measured <= limit"
    )
    for head in ("", "task", "against", "ours", "theirs", "ratio >= target", "quality"):
        shown.add_column(head, overflow="fold", no_wrap=head in ("", "ours", "theirs"))
    for line in table.itertuples():
        if pd.isna(line.ours):
            shown.add_row(line.row, line.task, "not measured")
            continue
        reached = f"{_digits(line.ratio if line.peer else line.ours)} >= {line.target:g} "
        quality = f"{line.gate}: {line.value:.2g} <= {line.limit:.2g} " + (
            "ok" if line.ok else "NOT OK"
        )
        shown.add_row(line.row, f"{line.task} ({line.unit})", line.peer, _digits(line.ours), _digits(line.theirs),
                      reached + ("met" if line.met else "MISSED"), quality)  # fmt: skip
    console = Console(markup=False, highlight=False)
    console.print(shown)
    for (row, task), notes in table.groupby(["row", "task"], sort=False)["note"]:
        if note := max(
            notes.dropna(), key=len, default=""
        ):  # a missed line's says more than that of a line that was met
            console.print(f"{row} {task}: {note}")


def _digits(number):
    return "" if pd.isna(number) else f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"

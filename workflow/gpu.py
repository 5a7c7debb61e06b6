"""What workflow/gpu runs: four parts within a time limit, and the collection of what they made.

    check      preset mini on the GPU against the CPU, component by component, see gpu_parts.py
    data       the images of the preset
    rates      images/s of every component in training, see gpu_parts.py
    reproduce  rr reproduce, with one seed, until the time is over

Each part is a process of its own, so that one that fails or hangs does not stop the next. A part
that is called again continues what an earlier call has made.
"""

import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

from rr import files as io
from rr import studies
from rr.errors import InputError
from rr.presets import preset as choose_preset
from rr.workflow import jobs as workflow
from rr.workflow.reproduce import CORES

ENDS = {"check": 0.2, "data": 0.3, "rates": 0.5, "reproduce": 0.95}  # at the latest, of the limit
MIB, TOTAL_MIB = 16, 64  # at most: one collected file, all together


def main(
    preset: Annotated[str, typer.Option(help="What is measured and reproduced.")] = "course",
    results: Annotated[str, typer.Option(help="As `rr reproduce --out`.")] = "results",
    out: Annotated[str, typer.Option(envvar="OUT", help="Of the archives.")] = "gpu-results",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    limit: Annotated[float, typer.Option(help="Seconds until the end, with the collection.")] = 570,
    elapsed: Annotated[float, typer.Option(help="Seconds that are over already.")] = 0,
    jobs: Annotated[int, typer.Option(help="Notebooks side by side; 0: 3 per 4 cores.")] = 0,
):
    """All parts, then the collection. The exit code is 1 if a part was not done."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not workflow.gpus():
        raise InputError("this machine has no GPU; use --device cpu")
    p, start = choose_preset(preset), time.monotonic() - elapsed
    folder, log = io.results(preset, results), io.folder(out) / "log.txt"
    this = [sys.executable, Path(__file__).with_name("gpu_parts.py")]
    rr = [sys.executable, "-m", "rr"]
    parts = {
        "check": [*this, "check", "--results", results],
        "data": [*rr, "data", "prepare", "embedded", "--n", p.n, "--size", p.size,
                 "--out", folder / "data"],
        "rates": [*this, "rates", "--preset", preset, "--results", results],
        "reproduce": [*rr, "reproduce", "--preset", preset, "--out", results,
                      "--jobs", jobs or max(1, 3 * CORES // 4)],
    }  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the collection runs then, too
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    done = []
    try:
        for name, command in parts.items():
            seconds = start + ENDS[name] * limit - time.monotonic()
            done += [name] * run_part(name, command, seconds, log)
    finally:
        for line in collect(preset, results, log.parent):
            say(log, line)
        for line in summary(preset, results):
            say(log, line)
        say(log, f"{len(done)} of {len(parts)} parts are done; {time.monotonic() - start:.0f} s")
    raise typer.Exit(int(len(done) < len(parts)))


def summary(preset, results):
    """Lines about what the parts have found out so far."""
    check, rates = (io.results("gpu", results) / f"{name}.csv" for name in ("check", "rates"))
    if check.is_file():
        table = pd.read_csv(check)
        yield f"{table['agrees'].sum()} of {len(table)} values agree with those of the CPU"
        for row in table[~table["agrees"]].itertuples():
            yield f"{row.component}, {row.precision}, {row.value}: differs by {row.difference:.2g}"
    if rates.is_file():
        yield from pd.read_csv(rates).drop(columns="code").to_string(index=False).splitlines()
    made = [workflow.result(io.results(preset, results), job).is_file() for job in workflow.jobs()]
    yield f"{sum(made)} of {len(made)} notebooks of preset {preset} have a result"


def run_part(name, command, seconds, log):
    """Run a part for at most `seconds`, with its output in `log`. Returns whether it succeeded."""
    say(log, f"{name}: starts, at most {seconds:.0f} s")
    started, output = time.monotonic(), open(log, "ab")
    process = psutil.Popen(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT)
    try:
        with sampled_load(2) as load:
            status = process.wait(max(0, seconds))
        result = "done" if status == 0 else f"failed with exit code {status}, see {log}"
    except psutil.TimeoutExpired:
        result = "stopped, because its time was over"
    finally:
        end(process)
        output.close()
    line = f"{name}: {result}; {time.monotonic() - started:.0f} s"
    say(log, line + (f", GPU busy {mean(load):.0f} % of the time" if load else ""))
    return result == "done"


def end(process):
    """End a process and all that it started: asked first, killed after five seconds."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for kill in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                kill(member)
        family = psutil.wait_procs(family, timeout=5)[1]


def say(log, line):
    print(line, flush=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"== {line}\n")


@contextmanager
def sampled_load(every):
    """Yield a list that a thread fills with the load of the GPU, in percent, during the block."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    load, over = [], threading.Event()

    def sample():
        while not over.wait(every):
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            load.append(float(shown.split()[0]))

    thread = threading.Thread(target=sample)
    if workflow.gpus():
        thread.start()
    try:
        yield load
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def mean(values):
    return sum(values) / len(values) if values else float("nan")


def collect(preset, results, out):
    """Write archives of what was made into `out`; yields a line about each.

    The largest files of an archive are left out until it keeps the limits.
    """
    folder, figures = io.results(preset, results), io.figures(preset, results)
    kinds, skipped = (".json", ".csv", ".md", ".tex", ".log"), ("data", "checkpoints", ".snakemake")
    numbers = [
        path
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] not in skipped
        if path.suffix in kinds or path.name == "eyes.png"
    ]
    root = io.ROOT if folder.is_relative_to(io.ROOT) else folder.parent
    archives = {  # with the log at most eight files
        "measured": sorted((folder.parent / "gpu").glob("*.csv")),
        "numbers": numbers,
        "figures": sorted(figures.rglob("*.png")),
        "executed": sorted((folder / "executed").glob("*.ipynb")),
    }
    for name in ("RetinaRegen", "bridge", "one-step U-Net"):
        run = studies.folder(folder, studies.EVALUATED[name], 0) / "denoiser"
        archives[f"weights-{name.replace(' ', '-')}"] = sorted(run.glob("*.*"))
    room = TOTAL_MIB * 2**20 - (out / "log.txt").stat().st_size
    for name, paths in archives.items():
        archive, count = out / f"{name}.tar.gz", len(paths)
        paths = sorted(paths, key=lambda path: path.stat().st_size)
        while True:
            with tarfile.open(archive, "w:gz") as tar:
                for path in paths:
                    tar.add(path, path.relative_to(root))
            excess = archive.stat().st_size - min(room, MIB * 2**20)
            if excess <= 0 or not paths:
                break
            while excess > 0 and paths:
                excess -= paths.pop().stat().st_size
        size = archive.stat().st_size
        room -= size
        yield f"{archive.name}: {len(paths)} of {count} files, {size / 2**20:.1f} MiB"


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        sys.exit(f"error: {error}")

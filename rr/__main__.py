"""The command line: reproduce, run, restore, doctor.

Commands import what they need themselves, so that `rr --help` answers at once. Whatever a user gave wrong ends as one
line `error: ...` on stderr: exit code 2 for a call that cannot be done, 1 for one that was done in part or that failed
on the way.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from rr import io, notebook
from rr.io import InputError, read_json, write_json, writing
from rr.presets import PRESETS, choose

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="RetinaRegen: restore unreadable fundus photographs, and reproduce the paper.",
)  # fmt: skip
Preset = Annotated[str, typer.Option(help=f"The values of the run: {', '.join(PRESETS)}.")]
SHOWN = re.compile(r"\d\d_\w+  [^\s\d]|\d+ of \d+ steps")  # of the workflow's output
SNAKEFILE = io.ROOT / "workflow" / "Snakefile"


def main():
    """Entry point of `rr` and of `python -m rr`."""
    try:
        app(prog_name="rr")
    except (InputError, notebook.NotebookError) as error:
        fail(error)
        sys.exit(2 if isinstance(error, InputError) else 1)


def fail(message):
    """One line on stderr, whatever the message."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------ reproduce


@app.command()
def reproduce(
    preset: Preset = "smoke",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    out: Annotated[str, typer.Option(help="Folder of the results; a relative one lies in the project.")] = "results",
    cores: Annotated[int, typer.Option(min=1, help="Notebooks that may run side by side.")] = os.cpu_count() or 1,
):
    """Run every notebook that has no result yet, or whose parameters have changed, and say where everything lies."""
    import fcntl

    choose("preset", preset, PRESETS)
    folder = io.results(preset, out)
    io.folder(folder)
    with open(folder / ".reproduce.lock", "a+") as lock:  # holds: host, our process, Snakemake's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _stop_orphan(folder, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        code, done, errors, rest = _snakemake(preset, seed, out, cores, lock)
    if code:
        print("\nnot everything could be made; after a repair the same command continues", file=sys.stderr)
        print("".join(errors or rest).rstrip() or f"error: snakemake ended with code {code}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"\npreset {preset}, seed {seed}:", "everything is made" if done else "nothing to do, all was made before")
    places = {
        "figures": io.figures(preset, out),
        "tables": folder / "tables",
        "restored photograph": folder / "restored",
        "trained models": folder / "checkpoints",
        "executed notebooks": folder / "executed",
    }
    for what, place in places.items():
        if place.is_dir():
            print(f"  {what + ':':21}{_short(place)}/")


def _snakemake(preset, seed, out, cores, lock):
    """Run the workflow, showing its notebooks' lines; returns (exit code, those lines, errors, Snakemake's own lines).

    Snakemake inherits the open file `lock`: the lock is held while either of us lives and is released by the
    system however we die, so that Snakemake's own lock, which survives a kill, is not needed (--nolock).
    """
    config = {"preset": preset, "seed": seed, "out": out}
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", SNAKEFILE, "--directory", io.results(preset, out),
        "--cores", str(cores), "--keep-going", "--rerun-incomplete", "--nolock", "--scheduler", "greedy",
        "--quiet", "rules", "host", "reason", "--nocolor",
        "--config", *(f"{key}={json.dumps(value)}" for key, value in config.items()),
    ]  # fmt: skip
    done, errors, rest = [], [], []
    workflow = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True, pass_fds=[lock.fileno()],
    )  # fmt: skip
    lock.truncate(0)
    print(platform.node(), os.getpid(), workflow.pid, file=lock, flush=True)
    with notebook.terminable():
        try:
            for line in workflow.stdout:
                kind = errors if line.startswith("error: ") else done if SHOWN.match(line) else rest
                kind.append(line)
                if kind is not rest:
                    print(line, end="", flush=True)
            return workflow.wait(), done, errors, rest
        finally:
            if workflow.poll() is None:  # Ctrl-C or SIGTERM: to Snakemake and all notebooks, which end their kernels
                os.killpg(workflow.pid, signal.SIGTERM)
                try:
                    workflow.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(workflow.pid, signal.SIGKILL)


def _stop_orphan(folder, lock):
    """Kill a Snakemake whose `rr reproduce` was killed. Raises InputError if both live, with what to type."""
    lock.seek(0)
    host, ours, workflow = (lock.read().split() + ["", "0", "0"])[:3]
    try:
        os.kill(int(ours), 0)
    except ProcessLookupError:
        if host == platform.node():  # the lock is held, hence by this Snakemake: its number was not given away
            os.killpg(int(workflow), signal.SIGKILL)
            return
    stop = f"on {host}: kill -- -{workflow}"
    raise InputError(f"{folder}: another `rr reproduce` is at work there; wait for its end, or stop it {stop}")


def _short(path):
    """A path as one types it: relative to the current folder where it lies below."""
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# ------------------------------------------------------------------------------------------------------------ run


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NOTEBOOK", help="Name (01_data) or path of a notebook.")],
    values: Annotated[list[str], typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may be repeated.")] = [],
    executed: Annotated[Path | None, typer.Option(help="The executed notebook; default: among the results.")] = None,
):
    """Run one notebook with papermill; its parameters are checked before anything starts."""
    path = notebook.find(name)
    given = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise InputError(f"-p {value}: must be NAME=VALUE")
        is_path = key.strip() in ("data", "labels", "photo") and Path(text).exists()
        given[key.strip()] = str(Path(text).absolute()) if is_path else text  # notebooks run in the project's root
    every = notebook.check(path, given)
    if executed is None:
        if not {"preset", "out"} <= every.keys():
            raise InputError(f"{path.name}: has no parameters preset and out; say with --executed where to write it")
        executed = io.results(every["preset"], every["out"]) / "executed" / f"{path.stem}.ipynb"
    if {"preset", "out"} <= every.keys():  # the workflow's mark: these results may be others
        notebook.mark(io.results(every["preset"], every["out"]), path.stem).unlink(missing_ok=True)
    notebook.execute(path, given, executed)


# -------------------------------------------------------------------------------------------------------- restore


@app.command()
def restore(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO_OR_FOLDER...", help="Photographs, folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the restored photographs and restore.json.")] = Path("restored"),
    checkpoint: Annotated[Path | None, typer.Option(help="Folder of a restorer; default: the best one made.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
):
    """Restore photographs: one PNG each, of the same name and size, and restore.json with the readabilities."""
    targets = _targets(photos, out)
    folder = checkpoint or _best_checkpoint()
    report = read_json(out / "restore.json") if (out / "restore.json").exists() else {}
    if not isinstance(report, dict):
        raise InputError(f"{out / 'restore.json'}: not made by `rr restore`; move it away or choose another --out")

    from PIL import Image

    from rr import restorer, train
    from rr.photo import read_photograph

    where = train.fabric(device).device
    io.folder(out)
    regen = restorer.RetinaRegen.load(folder, where)
    print(f"restorer: {_short(folder)}")
    failed = 0
    try:
        for target, photo in targets.items():
            try:
                image = read_photograph(photo)
                restored, facts = restorer.restore_photograph(regen, image, seed)
                with writing(target) as part:
                    Image.fromarray(restored).save(part)
            except InputError as error:
                failed += 1
                line = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                fail(line)
                facts = {"status": "failed", "error": line}
            else:
                threshold = restorer.RetinaRegen.THRESHOLD
                before, after = (sum(p >= threshold for p in facts[when].values()) for when in ("before", "after"))
                worse = ", judged worse than before" if after < before else ""
                print(f"{target}: {facts['status']}; {before} of 4 labels readable before, {after} after{worse}")
            report[target.name] = {"input": str(photo), "checkpoint": str(folder), "seed": seed, **facts}
    finally:
        write_json(out / "restore.json", report)
    if failed:
        raise typer.Exit(1)


def _best_checkpoint():
    for name in ("paper", "course", "smoke"):
        folder = io.results(name) / "checkpoints" / "restorer"
        if all((folder / part / "config.json").is_file() for part in ("denoiser", "classifier")):
            return folder
    raise InputError("no trained restorer yet; run `make reproduce` first or give --checkpoint")


def _targets(photos, out):
    """{PNG to write: photograph}. Raises InputError before any work if a name is missing, doubled, or an input."""
    for photo in photos:
        if not photo.exists():
            raise InputError(f"{photo}: no such file or folder")
    from rr.sources import EXTENSIONS

    inputs = []
    for photo in photos:
        if photo.is_dir():
            visible = (each for each in photo.iterdir() if not each.name.startswith("."))
            inside = sorted(each for each in visible if each.suffix.lower() in EXTENSIONS)
            if not inside:
                raise InputError(f"{photo}: no photographs in this folder ({', '.join(EXTENSIONS)})")
            inputs += inside
        else:
            inputs.append(photo)
    targets = {}
    for photo in dict.fromkeys(inputs):
        target = out / f"{photo.stem}.png"
        if target in targets:
            raise InputError(f"{targets[target]}, {photo}: both would become {target}; restore them in two calls to two --out")
        targets[target] = photo
    originals = {photo.resolve() for photo in inputs}
    for target in targets:
        if target.resolve() in originals:
            raise InputError(f"{target}: is itself a photograph to restore and would be lost; choose another --out")
    return targets


# --------------------------------------------------------------------------------------------------------- doctor


@app.command()
def doctor():
    """Say what is installed, which device, weights and data there are, and how to get what is missing."""
    from importlib.metadata import version

    def row(what, value):
        print(f"  {what:22}{value}")

    print("versions")
    row("python", f"{platform.python_version()} ({sys.executable})")
    for package in (*io.PACKAGES, "papermill", "snakemake"):
        try:
            row(package, version(package))
        except ModuleNotFoundError:
            raise InputError(f"{package}: not installed; `pip install -r requirements.lock`") from None
    try:
        import torch
        import torchvision.ops  # noqa: F401  torchvision of another torch fails here

        from rr import data, features, weights
    except (ImportError, RuntimeError) as error:
        raise InputError(f"torch and torchvision do not import ({error}); take both from one place") from None

    print("device")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    if not torch.cuda.is_available():
        row("cuda", "no GPU: preset smoke takes minutes, course and paper want one")
    row("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")

    broken = []
    print(f"pretrained weights ({weights.FOLDER}={os.environ.get(weights.FOLDER, '')})")
    trunks = [build.__name__ for build, *_ in filter(None, features.EXTRACTORS.values())]
    for name in sorted({"inception_v3", "alexnet", *trunks}):  # the classifier, LPIPS, the extractors
        try:
            path = weights.available(name)
        except InputError as error:
            broken.append(error)
            break
        row(name, path or f"missing: downloaded when needed, or put it into a folder and set {weights.FOLDER}")

    print("made so far")
    for name in PRESETS:
        folder = io.results(name)
        results = sorted(path.stem for path in folder.glob("[0-9]*.json"))
        row(name, f"results {', '.join(results)}" if results else f"nothing; make it: rr reproduce --preset {name}")
        for manifest in sorted(folder.glob("data/**/manifest.json")):
            try:
                packed = data.Packed(manifest.parent, verify=True)
            except InputError as error:
                broken.append(error)
            else:
                row("", f"data {_short(packed.path)}: {len(packed)} images of {packed.size} px")
        for config in sorted(folder.glob("checkpoints/**/config.json")):
            if config.parent.name != "last":
                row("", f"checkpoint {_short(config.parent)}")
    for error in broken:
        fail(error)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()

"""The command line: reproduce, check, run, restore, train, data prepare, report, doctor.

Commands import what they need themselves, so that `rr --help` answers at once. Bad input ends as
one line `error: ...` on stderr. The exit code is 2 if nothing could be done, 1 if a part failed.
"""

import json
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from rr import files as io
from rr.errors import InputError, choose
from rr.files import read_json, write_json, writing
from rr.presets import PRESETS
from rr.workflow import jobs as workflow
from rr.workflow import notebook

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="RetinaRegen: restore unreadable fundus photographs, and reproduce the paper.",
)  # fmt: skip
Preset = Annotated[str, Option(help=f"The values of the run: {', '.join(PRESETS)}.")]
Out = Annotated[str, Option(help="Folder of the results; a relative one is in the project.")]
Device = Annotated[str, Option(help="auto, cpu or cuda.")]
Values = Annotated[list[str], Option("-p", metavar="NAME=VALUE", help="A parameter; repeatable.")]


def main(arguments=None):
    """Entry point of `rr` and of `python -m rr`."""
    try:
        app(arguments, prog_name="rr")
    except (InputError, notebook.NotebookError) as error:
        fail(error)
        sys.exit(2 if isinstance(error, InputError) else 1)


def fail(message):
    """Print one line on stderr, whatever the message."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _short(path):
    """A path as one types it: relative to the current folder if it is inside."""
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# ---------------------------------------------------------------------------------------- reproduce


@app.command()
def reproduce(
    preset: Preset = "smoke",
    seeds: Annotated[int, Option(min=1, help="Runs per configuration: seeds 0, 1, ...")] = 1,
    study: Annotated[str, Option(help=f"all, or {', '.join(workflow.NOTEBOOKS)}.")] = "all",
    jobs: Annotated[int | None, Option(min=1, help="Notebooks side by side; default: 2.")] = None,
    cores: Annotated[int | None, Option(min=1, help="CPU cores; default: all.")] = None,
    profile: Annotated[str, Option(help="Where to run: laptop, slurm, or a folder.")] = "laptop",
    out: Out = "results",
    data: Annotated[Path | None, Option(help="Photographs to use for the embedded eyes.")] = None,
    labels: Annotated[Path | None, Option(help="The labels of --data, a CSV.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only list what would run.")] = False,
    fresh: Annotated[bool, Option("--fresh", help="Delete the results first.")] = False,
):
    """Run every notebook that has no current result, and say where the results are."""
    from rr.workflow.reproduce import snakemake

    choose("preset", preset, PRESETS)
    if data and not data.is_dir():
        raise InputError(f"--data {data}: no such folder")
    if labels and not (labels.is_file() and data):
        raise InputError(f"--labels {labels}: must be a CSV that labels the photographs in --data")
    paths = {
        "data": str(data.absolute()) if data else "",
        "labels": str(labels.absolute()) if labels else "",
    }
    config = {"preset": preset, "out": out, "seeds": seeds, "study": study, **paths}
    total = len(workflow.jobs(seeds, study, **paths))
    folder, pictures = io.results(preset, out), io.figures(preset, out)
    lock = io.folder(folder.parent) / f".{preset}.lock"
    with io.exclusive_lock(lock, f"{folder}: another `rr reproduce` is running", wait=False):
        if fresh and not dry_run and folder.exists():
            if not (folder / ".snakemake").is_dir():
                raise InputError(f"{folder}: not made by `rr reproduce`; choose another --out")
            print(f"deleting {_short(folder)}/ and {_short(pictures)}/: everything is made anew")
            shutil.rmtree(folder)
            shutil.rmtree(pictures, ignore_errors=True)
        if not dry_run:  # a killed run may have left files that it was writing
            for place in (folder, folder / "tables", pictures):
                io.remove_partial_files(place)
        failed = snakemake(folder, config, profile, cores, jobs, dry_run)
    if dry_run:
        return
    for reason in failed.values():
        fail(reason)
    if failed:
        count = f"{sum(map(len, failed))} of {total} notebooks must run again"
        fail(f"{count}; after a repair the same command continues")
        raise typer.Exit(1)
    print(f"preset {preset}, seeds {seeds}, study {study}: all {total} notebooks have a result")
    print(f"  figures   {_short(pictures)}/")
    print(f"  tables    {_short(folder / 'tables')}/")
    print(f"  notebooks {_short(folder / 'executed')}/")


# -------------------------------------------------------------------------------------------- check


@app.command()
def check(preset: Preset = "smoke", out: Out = "results"):
    """Compare your results with the reference of the project, headline by headline."""
    from rr.evaluate.check import compare, shown

    choose("preset", preset, PRESETS)
    headlines = compare(io.results(preset, io.REFERENCE), io.results(preset, out))
    compared = [headline.agrees for headline in headlines if headline.agrees is not None]
    print(shown(headlines))
    print(f"{sum(compared)} of {len(compared)} headlines agree with the reference")
    if not all(compared):
        raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------- run


@app.command()
def run(
    name: Annotated[str, Argument(metavar="NOTEBOOK", help="Name (01_data) or path of one.")],
    values: Values = [],
    each: Annotated[
        list[str], Option(metavar="JSON", help="{NAME: VALUE} of one of several runs.")
    ] = [],
    executed: Annotated[Path | None, Option(help="The executed notebook to write.")] = None,
):
    """Run one notebook with papermill. Its parameters are checked before anything starts.

    With --each, given once per run, the notebook runs several times in one kernel, which saves the
    time of its start. The result replaces the one of `rr reproduce`; delete it to have it made
    again.
    """
    path = notebook.find(name)
    runs = []
    for more in map(json_object, each or ["{}"]):
        given = dict(map(notebook.assignment, values))
        given |= {key: str(value) for key, value in more.items()}
        for key in ("data", "labels", "photo", "photos", "train_photos"):
            if key in given and Path(given[key]).exists():  # notebooks run in the project's root
                given[key] = str(Path(given[key]).absolute())
        runs.append((given, executed or _executed(path, notebook.check(path, given))))
    if len({target for _, target in runs}) < len(runs):
        raise InputError(f"--each: several runs of {path.stem} would write the same notebook")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end the kernel, too
    with workflow.lease():
        notebook.execute(path, *runs)


def json_object(text):
    """The dict in a JSON text. Raises InputError for anything else."""
    with suppress(json.JSONDecodeError):
        if isinstance(value := json.loads(text), dict):
            return value
    raise InputError(f'--each {text}: must be JSON like {{"seed": 1}}')


def _executed(path, every):
    """Where the executed notebook of a run with these values belongs."""
    if not {"preset", "out"} <= every.keys():
        raise InputError(f"{path.name}: has no parameters preset and out; give --executed")
    name = workflow.name(path.stem, every)
    return io.results(every["preset"], every["out"]) / "executed" / f"{name}.ipynb"


# ------------------------------------------------------------------------------------------ restore


@app.command()
def restore(
    photos: Annotated[list[Path], Argument(metavar="PHOTO_OR_FOLDER...", help="Photographs.")],
    out: Annotated[Path, Option(help="Folder for the results.")] = Path("restored"),
    checkpoint: Annotated[Path | None, Option(help="Folder of another restorer.")] = None,
    seed: Annotated[int, Option(min=0, help="Of the noise, in the paper's method.")] = 0,
    device: Device = "auto",
):
    """Restore photographs: one PNG each, of the same name and size, and a report, restore.json.

    --checkpoint takes a folder of a corrector that `rr train` made, or of a run of 06_restoration.
    """
    for photo in photos:
        if not photo.exists():
            raise InputError(f"{photo}: no such file or folder")
    report = read_json(out / "restore.json") if (out / "restore.json").exists() else {}
    if not isinstance(report, dict):
        raise InputError(f"{out / 'restore.json'}: not made by `rr restore`; choose another --out")
    from PIL import Image

    from rr import restore as restoration
    from rr.data.photo import read_photograph
    from rr.train.distributed import fabric

    targets, folder = restoration.targets(photos, out), checkpoint or io.RECOMMENDED
    restorer = restoration.load(folder, fabric(device).device)
    io.folder(out)
    print(f"restorer: {_short(folder)}")
    failed = 0
    try:
        for target, photo in targets.items():
            try:
                image = read_photograph(photo)
                restored, result = restoration.restore_photograph(restorer, image, seed)
                with writing(target) as part:
                    Image.fromarray(restored).save(part)
                print(f"{target}: {result['status']}; {result['summary']}")
            except InputError as error:
                failed += 1
                line = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                fail(line)
                result = {"status": "failed", "error": line}
            origin = {"input": str(photo), "checkpoint": str(folder), "seed": seed}
            report[target.name] = origin | result
    finally:
        write_json(out / "restore.json", report)
    if failed:
        raise typer.Exit(1)


# -------------------------------------------------------------------------------------------- train


TRAINED_IN = {  # component: the notebook that explains it and defines its parameters
    "readability": "02_readability",
    "heldout": "02_readability",
    "extractor": "03_features",
    "diffusion": "04_diffusion",
    "vae": "05_vae",
    "restorer": "06_restoration",
}


@app.command()
def train(
    component: Annotated[str, Argument(help=f"{', '.join(TRAINED_IN)} or corrector.")],
    preset: Preset = "smoke",
    values: Values = [],
    devices: Annotated[int, Option(min=1, help="GPUs, or on a CPU processes, per machine.")] = 1,
    nodes: Annotated[int, Option(min=1, help="Machines; start with torchrun or srun.")] = 1,
    batch: Annotated[int | None, Option(min=1, help="Images per step, over all devices.")] = None,
    micro: Annotated[int, Option(min=1, help="Parts of a device's batch; save memory.")] = 1,
    fresh: Annotated[bool, Option("--fresh", help="Train even if it is trained already.")] = False,
    device: Device = "auto",
    seed: Annotated[int, Option(min=0, help="Of all random numbers.")] = 0,
    out: Annotated[str | None, Option(help="Folder of the results.")] = None,
    photos: Annotated[Path | None, Option(help="Good photographs, for the corrector.")] = None,
):
    """Train one component on one or several devices. Its notebook then uses what was trained.

    The data set is the one of 01_data, and `-p` sets a parameter of the notebook. `corrector` is
    the recommended restorer. It takes an hour on a CPU and draws its own data set; use it with
    `rr restore --checkpoint OUT/restorer`.
    """
    choose("component", component, [*TRAINED_IN, "corrector"])
    if component == "corrector":
        if values or batch or micro > 1 or fresh or preset != "smoke":
            raise InputError(
                "corrector: does not accept --preset, --batch, --micro, --fresh or -p; its options "
                "are --photos, --seed, --out and the devices"
            )
        if photos and not photos.is_dir():
            raise InputError(f"--photos {photos}: no such folder")
    elif photos:
        raise InputError(f"--photos: only for the corrector; {component} has the data of 01_data")
    from rr.train import corrector, distributed, loop

    fabric = distributed.fabric(device, devices, nodes)
    if component == "corrector":
        fabric.launch()
        folder = corrector.make(out or "training", photos, seed=seed, fabric=fabric)
    else:
        given = {"preset": preset, "seed": seed, "out": out or "results", "device": device}
        named = dict(map(notebook.assignment, values))
        if doubled := given.keys() & named.keys():
            raise InputError(f"-p {min(doubled)}: use the option --{min(doubled)} of rr train")
        config = training_config(component, named | given, batch)
        fabric.launch()  # after all checks: other processes would repeat their messages
        loop.run(config, fabric, micro, fresh)
        folder = config.folder
    if fabric.is_global_zero:
        print(_short(folder))


def training_config(component, given, batch=None):
    """The loop.Config of a component for given parameters of its notebook, {name: value or text}.

    batch: images per step in place of the preset's. Raises InputError for wrong parameters.
    """
    from rr import studies
    from rr.data.dataset import Packed
    from rr.presets import Preset, preset
    from rr.train import configs

    parameters = notebook.check(notebook.find(TRAINED_IN[component]), given)
    choices = {key: parameters[key] for key in studies.Configuration._fields if key in parameters}
    overrides = {
        key: parameters[key] or None  # empty or 0: the value of the preset
        for key in Preset.__dataclass_fields__
        if key in parameters and key not in choices
    }
    batches = dict.fromkeys(("batch", "vae_batch", "unet_batch"), batch)
    p = preset(parameters["preset"], **batches, **overrides)
    results_dir = io.results(p.name, parameters["out"])
    data = Packed(parameters["data"] or results_dir / "data", p.size)
    return configs.config(component, p, data, results_dir, **choices)


# --------------------------------------------------------------------------------------------- data

data = typer.Typer(no_args_is_help=True, help="Data sets: prepare.")
app.add_typer(data, name="data")


@data.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help='A folder of photographs or parquet files, or "embedded".')
    ],
    out: Annotated[Path, typer.Option(help="Folder of the packed data set.")],
    labels: Annotated[Path | None, typer.Option(help="CSV with the labels of the images.")] = None,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the images, px.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, and of embedded eyes.")] = 0,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes; 0: one per core.")] = 0,
    n: Annotated[int, typer.Option(min=1, help="Number of embedded eyes.")] = 1000,
    fresh: Annotated[bool, typer.Option("--fresh", help="Pack again from the beginning.")] = False,
):
    """Pack images and labels for training. The same call continues after an interruption."""
    from rr.data import packing, sources

    if not source:
        raise InputError('the name of the source is empty; give a folder, or "embedded"')
    images = sources.source(source, str(labels or ""), n, seed)
    packed = packing.pack(images, size, out, seed, workers, fresh)
    megabytes = len(packed) * 3 * size**2 / 1e6
    print(f"{_short(out)}: {len(packed)} images of {size} px, {megabytes:.1f} MB")
    manifest = packed.manifest
    if skipped := manifest["skipped"]:
        message = f"{len(skipped)} unusable images were left out (all in manifest.json)"
        print(f"{message}, the first: {skipped[0]}")
    if missing := manifest["missing"]:
        first = manifest["missing_first"][0]
        print(f"{missing} names of the labels have no image (missing.csv), the first: {first}")


# ------------------------------------------------------------------------------------------- report


@app.command()
def report(
    preset: Preset = "smoke",
    out: Annotated[
        str, typer.Option(help="Folder of the results; a relative one lies in the project.")
    ] = "results",
):
    """Put all figures, tables and executed notebooks of a preset on pages that open offline."""
    choose("preset", preset, PRESETS)
    from rr.workflow import report

    print(_short(report.write(io.results(preset, out), io.figures(preset, out))))


# ------------------------------------------------------------------------------------------- doctor


@app.command()
def doctor():
    """Say which packages, devices, weights and results there are, and what is missing."""
    from rr.workflow.doctor import examine

    broken = examine()
    for error in broken:
        fail(error)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()

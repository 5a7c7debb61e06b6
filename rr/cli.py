"""The command line: reproduce, run, restore, train, data prepare, bench, report, doctor.

Commands import what they need themselves, so that `rr --help` answers at once. Whatever a user gave wrong ends as one
line `error: ...` on stderr: exit code 2 for a call that cannot be done, 1 for one that was done in part or that failed
on the way.
"""

import os
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rr import files as io
from rr.errors import InputError, choose
from rr.files import read_json, write_json, writing
from rr.presets import PRESETS
from rr.provenance import PACKAGES
from rr.train import corrector as corrector_training
from rr.workflow import forked, notebook
from rr.workflow import jobs as workflow

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="RetinaRegen: restore unreadable fundus photographs, and reproduce the paper.",
)  # fmt: skip
Preset = Annotated[str, typer.Option(help=f"The values of the run: {', '.join(PRESETS)}.")]


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
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of every configuration: seeds 0, 1, ...")
    ] = 1,
    study: Annotated[
        str, typer.Option(help=f"all, or one: {', '.join(workflow.NOTEBOOKS)}.")
    ] = "all",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Notebooks side by side; default: 2, or the profile's."),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="Where it runs: laptop, slurm, or a folder with a Snakemake profile."),
    ] = "laptop",
    out: Annotated[
        str, typer.Option(help="Folder of the results; a relative one lies in the project.")
    ] = "results",
    data: Annotated[
        Path | None, typer.Option(help="A folder of photographs instead of the embedded eyes.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels, a CSV.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, and why.")
    ] = False,
):
    """Run every notebook that has no result yet, or whose parameters have changed, and say where everything lies."""
    from rr.workflow import reproduce

    if data and not data.is_dir():
        raise InputError(f"--data {data}: no such folder")
    if labels and not (labels.is_file() and data):
        raise InputError(f"--labels {labels}: must be a CSV that labels the photographs in --data")
    sources = {
        "data": str(data.absolute()) if data else "",
        "labels": str(labels.absolute()) if labels else "",
    }
    plan = reproduce.Plan(preset, out, seeds, study, profile, jobs, **sources)
    if dry_run:
        reproduce.preview(plan)
        return
    if not reproduce.run(plan):
        raise typer.Exit(1)
    folder = io.results(preset, out)
    places = {
        "figures": io.figures(preset, out),
        "tables": folder / "tables",
        "restored photograph": folder / "restored",
        "executed notebooks": folder / "executed",
    }
    for what, place in places.items():
        if place.is_dir():
            print(f"  {what + ':':21}{_short(place)}/")
    print(
        f"all on one page: rr report --preset {preset}"
        + ("" if out == "results" else f" --out {out}")
    )


def _short(path):
    """A path as one types it: relative to the current folder where it lies below."""
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# ------------------------------------------------------------------------------------------------------------ run


@app.command()
def run(
    name: Annotated[
        str, typer.Argument(metavar="NOTEBOOK", help="Name (01_data) or path of a notebook.")
    ],
    values: Annotated[
        list[str], typer.Option("-p", metavar="NAME=VALUE", help="A parameter; may be repeated.")
    ] = [],
    executed: Annotated[
        Path | None, typer.Option(help="The executed notebook; default: among the results.")
    ] = None,
    mark: Annotated[
        Path | None, typer.Option(help="For the workflow: a file to write in the end.")
    ] = None,
):
    """Run one notebook with papermill; its parameters are checked before anything starts."""
    path = notebook.find(name)
    given = {}
    for key, text in map(notebook.assigned, values):
        is_path = (
            key in ("data", "labels", "photo", "photos", "train_photos") and Path(text).exists()
        )
        given[key] = (
            str(Path(text).absolute()) if is_path else text
        )  # notebooks run in the project's root
    every = notebook.check(path, given)
    home = io.results(every["preset"], every["out"]) if {"preset", "out"} <= every.keys() else None
    if executed is None:
        if home is None:
            raise InputError(
                f"{path.name}: has no parameters preset and out; say with --executed where to write it"
            )
        executed = home / "executed" / f"{workflow.name(path.stem, every)}.ipynb"
    if (
        mark is None and home is not None
    ):  # by hand: perhaps with other values than the workflow's, which makes it again
        workflow.mark(home, workflow.name(path.stem, every)).unlink(missing_ok=True)
    with workflow.owned(), workflow.lease(), workflow.reported(executed, mark, path.stem, given):
        forked.execute(path, given, executed)


# -------------------------------------------------------------------------------------------------------- restore


@app.command()
def restore(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO_OR_FOLDER...", help="Photographs, folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the restored photographs and restore.json.")] = Path("restored"),
    checkpoint: Annotated[Path | None, typer.Option(
        help="Folder of another restorer: of `rr train`, or a run of 06_restoration (the paper's method).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise, in the paper's method.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
):  # fmt: skip
    """Restore photographs: one PNG each, of the same name and size, and restore.json with what was judged."""
    targets = _targets(photos, out)
    report = read_json(out / "restore.json") if (out / "restore.json").exists() else {}
    if not isinstance(report, dict):
        raise InputError(
            f"{out / 'restore.json'}: not made by `rr restore`; move it away or choose another --out"
        )

    from PIL import Image

    from rr import restore as restoration
    from rr.data.photo import read_photograph
    from rr.models import restorer
    from rr.train import loop as train

    where = train.fabric(device).device
    io.folder(out)
    folder = checkpoint or io.RECOMMENDED
    if (folder / "denoiser").is_dir():
        method = partial(
            restoration.restore_with_regen, restorer.RetinaRegen.load(folder, where), seed=seed
        )
    else:
        method = partial(
            restoration.restore_photograph, restoration.load_recommended(where, folder)
        )
    print(f"restorer: {_short(folder)}")
    failed = 0
    try:
        for target, photo in targets.items():
            try:
                image = read_photograph(photo)
                restored, facts = method(image)
                with writing(target) as part:
                    Image.fromarray(restored).save(part)
            except InputError as error:
                failed += 1
                line = str(error) if str(photo) in str(error) else f"{photo}: {error}"
                fail(line)
                facts = {"status": "failed", "error": line}
            else:
                print(f"{target}: {facts['status']}; {_judged(facts)}")
            report[target.name] = {
                "input": str(photo),
                "checkpoint": str(folder),
                "seed": seed,
                **facts,
            }
    finally:
        write_json(out / "restore.json", report)
    if failed:
        raise typer.Exit(1)


def _judged(facts):
    """What a restorer's report says of one photograph, in a few words."""
    if "before" not in facts:
        if facts["status"] == "left alone":
            return (
                "nothing found that this restorer can correct, which does not mean that it is good"
            )
        blur = f", blur of {facts['blur']:.1f}/512 of the width undone" if facts["blur"] else ""
        return f"light and colour corrected by {facts['correction']:.0%} of what was proposed{blur}"
    from rr.models.restorer import RetinaRegen

    before, after = (
        sum(p >= RetinaRegen.THRESHOLD for p in facts[when].values())
        for when in ("before", "after")
    )
    return f"{before} of 4 labels readable before, {after} after" + (
        ", judged worse than before" if after < before else ""
    )


def _targets(photos, out):
    """{PNG to write: photograph}. Raises InputError before any work if a name is missing, doubled, or an input."""
    for photo in photos:
        if not photo.exists():
            raise InputError(f"{photo}: no such file or folder")
    from rr.data.sources import EXTENSIONS

    inputs = []
    for photo in photos:
        if photo.is_dir():
            visible = (each for each in photo.iterdir() if not each.name.startswith("."))
            inside = sorted(each for each in visible if each.suffix.lower() in EXTENSIONS)
            if not inside:
                raise InputError(
                    f"{photo}: no photographs in this folder ({', '.join(EXTENSIONS)})"
                )
            inputs += inside
        else:
            inputs.append(photo)
    targets = {}
    for photo in dict.fromkeys(inputs):
        target = out / f"{photo.stem}.png"
        if target in targets:
            raise InputError(
                f"{targets[target]}, {photo}: both would become {target}; restore them in two calls to two --out"
            )
        targets[target] = photo
    originals = {photo.resolve() for photo in inputs}
    for target in targets:
        if target.resolve() in originals:
            raise InputError(
                f"{target}: is itself a photograph to restore and would be lost; choose another --out"
            )
    return targets


# ---------------------------------------------------------------------------------------------------------- train


@app.command()
def train(
    component: Annotated[str, typer.Argument(help="readability, judge, extractor, diffusion, vae, restorer or corrector.")],
    preset: Preset = "smoke",
    values: Annotated[list[str], typer.Option("-p", metavar="NAME=VALUE", help="A parameter of its notebook.")] = [],
    devices: Annotated[int, typer.Option(min=1, help="GPUs of every machine; on a CPU: processes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; started by torchrun or srun.")] = 1,
    strategy: Annotated[str, typer.Option(help="ddp: every device holds the component; fsdp: its share of it.")] = "ddp",
    batch: Annotated[int | None, typer.Option(min=1, help="Images per step, over all devices; default: the preset's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    out: Annotated[str | None, typer.Option(help="Folder of the results; default: results, of the corrector training.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Corrector: a folder of good photographs, beside embedded eyes.")] = None,
):  # fmt: skip
    """Train one component, on one device or many, as its notebook would, which then finds it trained.

    The data set is the one of 01_data. `corrector` is the recommended restorer: an hour on a CPU, no preset; it ends as
    OUT/restorer, which `rr restore --checkpoint` uses.
    """
    if component == "corrector":
        if values or batch or preset != "smoke" or strategy != "ddp":
            raise InputError(
                "corrector: knows no preset, batch, -p or other strategy than ddp; see --photos, --seed, --out"
            )
        if photos and not photos.is_dir():
            raise InputError(f"--photos {photos}: no such folder")
    elif photos:
        raise InputError(
            f"--photos: is for the corrector; {component} is trained on the data set of 01_data"
        )
    from rr.train import configs as recipes
    from rr.train import loop as train

    choose("component", component, [*recipes.COMPONENTS, "corrector"])
    given = {"preset": preset, "seed": seed, "out": out or "results", "device": device}
    named = dict(map(notebook.assigned, values))
    if doubled := given.keys() & named.keys():
        raise InputError(f"-p {min(doubled)}: is the option --{min(doubled)} of rr train")
    fabric = train.fabric(device, devices, nodes, strategy)
    if component != "corrector":  # before other processes are there: what is wrong is said once
        plan = recipes.plan(component, recipes.parameters(component, named | given), batch)
    fabric.launch()
    if component == "corrector":
        made = corrector_training.make(out or "training", photos, seed=seed, fabric=fabric)
    else:
        train.run(component, fabric=fabric, **plan)
        made = plan["folder"]
    if fabric.is_global_zero:
        print(_short(made))


# ----------------------------------------------------------------------------------------------------------- data

data = typer.Typer(no_args_is_help=True, help="Data sets: prepare.")
app.add_typer(data, name="data")


@data.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help='A folder of images or of parquet shards, or "embedded".')
    ],
    out: Annotated[Path, typer.Option(help="Folder of the packed data set.")],
    labels: Annotated[Path | None, typer.Option(help="The labels of these images, a CSV.")] = None,
    size: Annotated[
        int, typer.Option(min=32, max=1024, help="Side of the packed images, px.")
    ] = 224,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the split; of the eyes, if they are drawn.")
    ] = 0,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes; the result does not depend on it.")
    ] = 1,
    n: Annotated[int, typer.Option(min=1, help="How many embedded eyes.")] = 1000,
):
    """Turn images and their labels into shards of equal size, once; the same call continues where it was stopped."""
    import resource
    import time

    from rr.data import packing, sources

    if not source:
        raise InputError('the name of the source is empty; give a folder, or "embedded"')
    started = time.time()
    packed = packing.pack(
        sources.source(source, str(labels or ""), n, seed), size, out, seed, workers
    )
    shards = {out / f"{shard['name']}.npy": shard["count"] for shard in packed.manifest["shards"]}
    made = sum(count for path, count in shards.items() if path.stat().st_mtime >= started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    if workers > 1:  # a bound: each as large as the largest
        memory += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    megabytes, rate = (
        sum(path.stat().st_size for path in shards) / 1e6,
        made / (time.time() - started),
    )
    print(f"{_short(out)}: {len(packed)} images of {size} px, {megabytes:.1f} MB; {made} made now, {rate:.1f} images/s; "
          f"at most {memory / 1024:.0f} MiB of memory")  # fmt: skip
    if skipped := packed.manifest["skipped"]:
        print(
            f"{len(skipped)} images could not be used and were left out (all in manifest.json), the first: {skipped[0]}"
        )
    if missing := packed.manifest["missing"]:
        print(
            f"{missing} names of the labels have no image (missing.csv), the first: {packed.manifest['missing_first'][0]}"
        )


# ---------------------------------------------------------------------------------------------------------- bench


@app.command()
def bench(
    device: Annotated[str, typer.Argument(help="cpu or gpu.")] = "cpu",
    only: Annotated[str | None, typer.Option(help="One row of the table, as T4.")] = None,
):
    """Measure ours and what one would use instead, by turns, and write results/bench/<device>.csv."""
    from rr.benchmarks import bench

    failed = bench.run(device, only)
    for row, reason in failed.items():
        fail(f"{row}: {reason}")
    if failed:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- report


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


# --------------------------------------------------------------------------------------------------------- doctor


@app.command()
def doctor():
    """Say what is installed, which device, weights and data there are, and how to get what is missing."""
    from importlib.metadata import version

    def row(what, value):
        print(f"  {what:22}{value}")

    print("versions")
    row("python", f"{platform.python_version()} ({sys.executable})")
    for package in (*PACKAGES, "papermill", "snakemake"):
        try:
            row(package, version(package))
        except ModuleNotFoundError:
            raise InputError(
                f"{package}: not installed; `pip install -r requirements.lock`"
            ) from None
    try:
        import torch
        import torchvision.ops  # noqa: F401  torchvision of another torch fails here

        from rr.data import dataset as data
        from rr.models import features
        from rr.models import pretrained as weights
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torch and torchvision do not import ({error}); take both from one place"
        ) from None

    print("device")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        row(
            f"cuda:{index}",
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
        )
    if not torch.cuda.is_available():
        row("cuda", "no GPU: preset smoke takes minutes, course and paper want one")
    row("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")

    broken = []
    print(f"pretrained weights ({weights.FOLDER}={os.environ.get(weights.FOLDER, '')})")
    trunks = [build.__name__ for build, *_ in filter(None, features.EXTRACTORS.values())]
    for name in sorted(
        {"inception_v3", "alexnet", *trunks}
    ):  # the classifier, LPIPS, the extractors
        try:
            path = weights.available(name)
        except InputError as error:
            broken.append(error)
            break
        row(
            name,
            path
            or f"missing: downloaded when needed, or put it into a folder and set {weights.FOLDER}",
        )

    print("made so far")
    for name in PRESETS:
        folder = io.results(name)
        results = sorted(path.stem for path in folder.glob("[0-9]*.json"))
        row(
            name,
            f"results {', '.join(results)}"
            if results
            else f"nothing; make it: rr reproduce --preset {name}",
        )
        for what, where in (
            ("runs of 06_restoration", "runs/*/result.json"),
            ("trained extractors", "extractors/*/config.json"),
            ("trained restorers", "runs/*/denoiser/config.json"),
        ):
            if found := len(list(folder.glob(where))):
                row("", f"{what}: {found}")
        for manifest in sorted(folder.glob("data/**/manifest.json")):
            try:
                packed = data.Packed(manifest.parent, verify=True)
            except InputError as error:
                broken.append(error)
            else:
                row("", f"data {_short(packed.path)}: {len(packed)} images of {packed.size} px")
    for error in broken:
        fail(error)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()

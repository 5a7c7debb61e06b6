"""What is generated in texts: `python -m rr.readme` writes it again, from the code and from result files.

In the README a part stands between two comments, <!-- begin: NAME --> and <!-- end: NAME -->; in a notebook it is the
row `time` of its first table. No number in them is typed: what no command has made yet is shown as "not run". The
notebooks' .ipynb twins, for papermill and for JupyterLab without jupytext, are made from the .py files here, too.
"""

import re
from dataclasses import asdict, fields
from functools import partial
from statistics import fmean

import jupytext
import nbformat
import pandas as pd

from rr import files as io
from rr import studies
from rr.errors import InputError
from rr.paper import CHOICES
from rr.presets import PRESETS, Preset
from rr.provenance import read_result
from rr.workflow import jobs as workflow
from rr.workflow.notebook import NOTEBOOKS

README = io.ROOT / "README.md"
CARD = io.RECOMMENDED / "README.md"  # of the weights in the repository
SHOWN = ("smoke", "course", "paper")  # presets; mini is for the tests
HEADLINE = workflow.name("06_restoration", {**studies.RETINAREGEN._asdict(), "seed": 0})
PAPER = {  # notebook: what of the paper it makes again
    "00_start_here": "one photograph",
    "01_data": "the data (2.2, 3.1)",
    "02_readability": "Fig. 2: confusion matrices, ROC, PR",
    "03_features": "Fig. 3: extractor, one per row of Table 1",
    "04_diffusion": "Fig. 4, diffusion (2.4)",
    "05_vae": "Fig. 4, VAE (2.5)",
    "06_restoration": "Fig. 1: the method, one per configuration",
    "07_backbones": "Fig. 5: five backbones",
    "08_extractors": "Table 1: eight extractors",
    "09_fusion": "3.2: four fusions",
    "10_what_matters": "what it leaves open, by experiment",
    "11_summary": "verdicts on the claims C1 to C6",
    "12_evaluation": "all restorers, all degradations (ours)",
}


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def result(preset, job):
    """What a job of the workflow found, or None if it was never run, or not with today's values of the preset."""
    path = workflow.result(io.results(preset), job)
    found = io.read_json(path) if path.is_file() else None
    values = asdict(PRESETS[preset])
    today = found and {**found["provenance"]["preset"], "seed": 0} == values
    return found if today else None


def commands():
    """The two commands with the times that `.ci/fresh` measured in a fresh clone."""
    path = io.ROOT / "results" / "commands.json"
    times = io.read_json(path) if path.is_file() else {}
    rows = []
    for command, does in (
        ("make reproduce", "every figure and table, preset `smoke`, and a restored photograph"),
        ("make test", "lint and all tests"),
    ):
        seconds = times.get(command)
        rows.append((f"`{command}`", does, f"{seconds / 60:.1f} min" if seconds else "not run"))
    where = f" on {times['machine']}" if times else ""
    install = f", after an installation of {times['install'] / 60:.1f} min" if times else ""
    return table(("command", "does", f"measured{where}{install}"), rows)


def presets():
    names = [field.name for field in fields(Preset) if field.name not in ("name", "seed")]
    rows = [(f"`{name}`", *(getattr(PRESETS[preset], name) for preset in SHOWN)) for name in names]
    return table(("value", *SHOWN), rows)


def choices():
    return table(("about", "the paper's words", "our choice", "alternatives"), CHOICES)


def cost():
    """Figure or table, notebook, what it needs, seconds for itself and with all it needs, from the provenance of results."""
    jobs, rows = workflow.jobs(), []
    for stem, what in PAPER.items():
        mine = [name for name, job in jobs.items() if job.notebook == stem]
        needs = {jobs[need].notebook for name in mine for need in jobs[name].needs}
        cells = [_cost(preset, jobs, mine) for preset in SHOWN]
        rows.append(
            (
                what,
                f"[{stem}](notebooks/{stem}.py)",
                ", ".join(sorted(need[:2] for need in needs)) or "nothing",
                *cells,
            )
        )
    head = (
        "figure or table",
        "notebook",
        "needs",
        "`smoke`, a thread of a CPU",
        "`course`, a GPU",
        "`paper`, a GPU",
    )
    return table(head, rows)


def _cost(preset, jobs, mine):
    """ "own s / own and all that it needs s (device, peak memory)" of jobs; several of one notebook: their mean, and all."""
    every, todo = set(), list(mine)
    while todo:
        name = todo.pop()
        every.add(name)
        todo += jobs[name].needs
    facts = {name: (result(preset, name) or {}).get("provenance") for name in every}
    if not all(facts.values()):
        return "not run"
    own = [facts[name] for name in mine]
    runs = (
        f"{len(own)} x {fmean(each['seconds'] for each in own):.0f} s"
        if len(own) > 1
        else f"{own[0]['seconds']:.0f} s"
    )
    total = sum(each["seconds"] for each in facts.values())
    return f"{runs}, in all {total / 60:.1f} min ({own[0]['device']}, {max(each['peak_memory_mib'] for each in own)} MiB)"


def numbers():
    """Per preset that was run: the verdicts, headline numbers of RetinaRegen and of the judges, the tables of the studies."""
    parts = []
    for preset in SHOWN:
        found = result(preset, HEADLINE)
        if not found:
            continue
        facts, scores = found["numbers"], found["numbers"]["scores"]
        parts += _tables(preset, f"{workflow.SUMMARY}_verdicts")
        rows = [
            (
                name,
                *(
                    f"{row[key]:.{digits}f}" if row[key] is not None else "n/a"
                    for key, digits in (
                        ("psnr", 2),
                        ("ssim", 3),
                        ("lpips", 3),
                        ("psnr_fov", 2),
                        ("ssim_fov", 3),
                        ("psnr_disc", 2),
                    )
                ),
            )
            for name, row in scores.items()
        ]
        parts.append(
            f"Preset `{preset}`, {facts['data']} data, {facts['configuration']['protocol']} protocol, "
            f"{facts['n']} test images, seed {facts['seed']}:\n\n"
            + table(
                ("", "PSNR", "SSIM", "LPIPS", "PSNR in FOV", "SSIM in FOV", "PSNR at disc"), rows
            )
            + f"\n\nThe classifier called {facts['unreadable_before']} of the inputs unreadable. Of these pass after "
            + "restoration: "
            + ", ".join(
                f"{each['RetinaRegen']['hits']} with the {judge}"
                for judge, each in facts["rechecked"].items()
            )
            + "."
        )
        judges = result(preset, "02_readability")
        if judges:
            parts += [
                _judge(judge, judges["numbers"][judge]) for judge in ("classifier", "second judge")
            ]
        stems = (*workflow.NOTEBOOKS.values(), workflow.SUMMARY, workflow.EVALUATION)
        parts += _tables(preset, *stems)
    return "\n\n".join(parts) or "not run"


def _tables(preset, *stems):
    """Those of the tables, as Markdown, that were made."""
    paths = [io.results(preset) / "tables" / f"{stem}.md" for stem in stems]
    return [path.read_text(encoding="utf-8").strip() for path in paths if path.is_file()]


def _judge(name, report):
    rows = [
        (
            row["label"],
            *(
                f"{row[key]:.2f}" if row[key] is not None else "n/a"
                for key in (
                    "prevalence",
                    "majority",
                    "accuracy",
                    "roc_auc",
                    "average_precision",
                    "ece",
                )
            ),
        )
        for row in report
    ]
    return f"The {name} on {report[0]['n']} test images:\n\n" + table(
        ("label", "prevalence", "majority", "accuracy", "ROC AUC", "average precision", "ECE"), rows
    )


def time_row(stem):
    """The row of a notebook's first table that says how long it takes: per preset that was run, where it was run.

    Of a notebook that is run in several configurations: how long the first of them takes.
    """
    times = []
    job = next(name for name, job in workflow.jobs().items() if job.notebook == stem)
    job = HEADLINE if stem == "06_restoration" else job
    for preset in SHOWN:
        facts = (result(preset, job) or {}).get("provenance")
        if facts:
            where = (
                f"{facts['threads']} thread(s) of a CPU"
                if facts["device"] == "cpu"
                else facts["device"]
            )
            times.append(f"{preset}: {facts['seconds']:.0f} s on {where}")
    return f"# | time | {'; '.join(times) or 'not run'} |"


def speed():
    """What the workflow saves, as measured by .ci/speed."""
    path = io.ROOT / "results" / "speed.json"
    if not path.is_file():
        return "not run"
    found, facts = (read_result(path)[part] for part in ("numbers", "provenance"))
    ours, once, again = (
        found[key] / 60
        for key in ("rr_reproduce", "papermill_each_once", "papermill_everything_recomputed")
    )
    return (
        f"Preset `{found['preset']}`, all studies, one seed, {facts['machine']}: {ours:.1f} min by `rr reproduce`. Its "
        f"{found['notebooks']} notebooks by plain papermill, one after the other: {once:.1f} min; {again:.1f} min where "
        f"every configuration recomputes data, classifier and extractor, {found['ratio']:.1f} times as long (`.ci/speed`, "
        f"measured at commit {facts['commit'][:7]}, with the notebooks of that day)."
    )


def evaluated(stem):
    """A table of notebook 12 as it stands in results/smoke/tables, or "not run"."""
    path = io.results("smoke") / "tables" / f"{stem}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "not run"


def photographs():
    return evaluated("12_evaluation_photographs")


def weights():
    """How the weights of the recommended restorer came about, from their own provenance."""
    config = io.read_json(CARD.parent / "config.json")
    made = config["provenance"]
    rows = []
    for name, stage in config["stages"].items():
        where = f"commit {stage['commit'][:12]}{', with changes' if stage['dirty'] else ''}, code {stage['code']}"
        how = f"{stage['epoch'] + 1} of {stage['epochs']} epochs, learning rate {stage['lr']}, {stage['seconds'] / 60:.0f} min"
        rows.append((f"U-Net, stage {name}", f"{where}; {how}"))
    rows += [("seed", made["seed"]), ("device", f"{made['device']}, {made['threads']} thread(s); {made['machine']}"),
            ("images", f"{made['eyes']} embedded eyes, {made['photographs']} photographs; {made['held_out']} for validation"),
            ("optimizer", f"{made['optimizer']}, batches of {made['batch']}, weights averaged with decay {made['ema']}"),
            ("blur", "; ".join(f"{name}: {value:.4g}" for name, value in config["blur"].items())),
            ("versions", ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "torchvision"))),
            ("sha256", config["sha256"])]  # fmt: skip
    return table(("", ""), rows)


def metrics():
    """All methods on photographs that nobody trained on, and on embedded eyes."""
    tables = ("12_evaluation_photographs", "12_evaluation_photographs_ssim", "12_evaluation_photographs_undegraded",
              "12_evaluation_photographs_reading", "12_evaluation")  # fmt: skip
    return "\n\n".join(evaluated(stem) for stem in tables)


def bench(device):
    """The benchmark's table, results/bench/<device>.csv."""
    path = io.ROOT / "results" / "bench" / f"{device}.csv"
    if not path.is_file():
        return f"Not run: `.venv/bin/rr bench {device}` makes results/bench/{device}.csv."
    lines = []
    for line in pd.read_csv(path).itertuples():
        if pd.isna(line.ours):
            lines.append((line.row, line.task, line.note, *[""] * 6))
            continue
        against = ["", "", ""]
        if isinstance(line.peer, str):
            against = [
                line.peer,
                f"{line.theirs:,.4g}",
                f"{line.ratio:.2f} ({line.low:.2f} to {line.high:.2f})",
            ]
        target = f"{line.target:g}" + ("" if isinstance(line.peer, str) else f" {line.unit}")
        quality = f"{line.gate}: {float(line.value):.2g} (limit {line.limit:g})"
        ours, met = f"{line.ours:,.4g} {line.unit}", "yes" if line.met else "no"
        lines.append((line.row, line.task, ours, *against, target, met, quality))
    facts = io.read_json(path.with_suffix(".json"))["provenance"]
    head = ("", "what", "ours", "peer", "theirs", "ratio", "target", "met", "quality")
    note = (f"{facts['machine']}. Ratio: the median of five pairs (and the extremes). Threads and reasons of what was missed: "
            f"results/bench/{device}.csv.")  # fmt: skip
    return f"{table(head, lines)}\n\n{note}"


def million():
    """Cost of a data set as it grows, and what follows for a million images: results/bench/scale.json and cpu.csv."""
    folder = io.ROOT / "results" / "bench"
    if not (folder / "scale.json").is_file():
        return "Not run: `workflow/scale` makes results/bench/scale.json."
    found = read_result(folder / "scale.json")
    if len(found["numbers"]["rows"]) < 2:
        return "Only one number of images was measured: `workflow/scale` measures three."
    scale, rows, facts = (
        found["numbers"]["exponents"],
        found["numbers"]["rows"],
        found["provenance"],
    )
    head = (
        "embedded images",
        "preparing, s",
        "images/s",
        "memory, all processes, MiB",
        "disk, GB",
        "data of an epoch, images/s",
    )
    lines = [(f"{each['images']:,}", f"{each['prepare_seconds']:,.0f}", f"{each['prepare_images_per_s']:.0f}",
              f"{each['peak_mib']:,.0f}", f"{each['bytes'] / 1e9:.2f}", f"{each['epoch_images_per_s']:,.0f}")
             for each in rows]  # fmt: skip
    largest, size = rows[-1], facts["size"]
    hours = (
        largest["prepare_seconds"] * (1e6 / largest["images"]) ** scale["prepare_seconds"] / 3600
    )
    epoch = (
        1e6
        / largest["epoch_images_per_s"]
        * (1e6 / largest["images"]) ** (scale["epoch_seconds"] - 1)
        / 60
    )
    disk = largest["bytes"] / largest["images"] * 1e6 / 1e9
    text = (
        f"{size} px, {facts['workers']} processes to prepare, one thread to read; {facts['machine']}. Seconds grow with the "
        f"power {scale['prepare_seconds']:.2f} (preparing) and {scale['epoch_seconds']:.2f} (an epoch) of the number of images. "
        f"For a million that is {hours:.1f} h, {disk:.0f} GB, and {epoch:.1f} min to read all of them on one thread, "
        f"as long as memory holds them: beyond that the disk decides. "
        f"At 224 px {1e6 * 3 * 224**2 / 1e9:.0f} GB."
    )
    bench = (
        pd.read_csv(folder / "cpu.csv")
        if (folder / "cpu.csv").is_file()
        else pd.DataFrame({"row": [], "task": []})
    )
    jpegs = bench[
        (bench["row"] == "T3") & bench["task"].str.contains("which looks for")
    ].drop_duplicates("task")
    if len(jpegs):
        text += " Photographs instead of eyes that are drawn, per core: " + ", ".join(
            f"{1e6 / each.ours / 3600:.0f} h for a million of {each.task.removeprefix('JPEG of ').split(' to ')[0]}"
            for each in jpegs.itertuples()) + "."  # fmt: skip
    return f"{table(head, lines)}\n\n{text}"


PARTS = {
    "commands": commands, "speed": speed, "photographs": photographs, "presets": presets, "choices": choices, "cost": cost,
    "numbers": numbers, "bench-cpu": partial(bench, "cpu"), "bench-gpu": partial(bench, "gpu"), "million": million,
}  # fmt: skip
CARD_PARTS = {"weights": weights, "metrics": metrics}


def fill(text, parts=PARTS):
    """`text` with every part made again. Raises InputError if a part's comments are missing."""
    for name, make in parts.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise InputError(f"README.md: needs {begin} and {end}, once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def twin(path):
    """The .ipynb text of a notebook's .py file: the same cells, no outputs, the same bytes every time."""
    nb = jupytext.read(path, fmt="py:percent")
    for i, cell in enumerate(nb.cells):
        cell.id = f"cell-{i:02d}"
    nb.metadata.pop("jupytext", None)
    nb.metadata["language_info"] = {"name": "python"}
    return nbformat.writes(nb, version=4) + "\n"


def main():
    io.write_text(README, fill(README.read_text(encoding="utf-8")))
    io.write_text(CARD, fill(CARD.read_text(encoding="utf-8"), CARD_PARTS))
    for path in sorted(NOTEBOOKS.glob("[0-9]*.py")):
        text = path.read_text(encoding="utf-8")
        new = re.sub(r"^# \| time \| .*$", time_row(path.stem), text, count=1, flags=re.M)
        if new != text:
            io.write_text(path, new)
        io.write_text(path.with_suffix(".ipynb"), twin(path))


if __name__ == "__main__":
    main()

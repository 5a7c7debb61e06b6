#!/usr/bin/env python
"""Write the generated parts of the project's Markdown pages from the code and from result files.

    make readme

A part stands between two comments, <!-- begin: NAME --> and <!-- end: NAME -->. No number in a
part is typed by hand. A part whose result file does not exist says "not run".
"""

import ast
import textwrap
from dataclasses import fields
from statistics import fmean

from rr.errors import InputError
from rr.files import ROOT, read_json, write_text
from rr.paper import CHOICES
from rr.presets import PRESETS, Preset
from rr.workflow.jobs import jobs, result

REFERENCE = ROOT / "results" / "reference" / "smoke"
PAPER = {  # notebook: what of the paper it makes again
    "00_start_here": "a restored photograph (ours)",
    "01_data": "the data (2.2, 3.1)",
    "02_readability": "Fig. 2: confusion matrices, ROC, PR",
    "03_features": "the extractor of Fig. 3",
    "04_diffusion": "the diffusion of Fig. 4",
    "05_vae": "the VAE of Fig. 4",
    "06_restoration": "the method of Fig. 1",
    "07_backbones": "Fig. 5: five backbones",
    "08_extractors": "Table 1: eight extractors",
    "09_fusion": "3.2: four fusions",
    "10_what_matters": "what the paper leaves open (ours)",
    "11_summary": "the claims C1 to C6",
    "12_evaluation": "all methods, all degradations (ours)",
}
NOTEBOOK_OF_CLAIM = dict(
    zip(("C1", "C2", "C3", "C4", "C5", "C6"), ("06", "07", "08", "09", "02", "06"))
)


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def reference(name):
    """The numbers and the provenance of a result of the reference, or None if it was never made."""
    path = result(REFERENCE, name)
    return read_json(path) if path.is_file() else None


def made_at(provenance):
    return f"commit {provenance['commit'][:9]}, {provenance['written'][:10]}"


def commands():
    """The two commands, with the times that .ci/fresh measured in a fresh clone."""
    path = ROOT / "results" / "commands.json"
    if not path.is_file():
        return "The two commands have not been timed yet."
    times = read_json(path)
    purposes = {
        "make reproduce": "all figures and tables of preset `smoke`",
        "make test": "lint and tests",
    }
    rows = [(f"`{name}`", text, f"{times[name] / 60:.0f} min") for name, text in purposes.items()]
    note = f"Measured in a fresh clone at {made_at(times['provenance'])}, on {times['machine']}, "
    note += "after an installation of "
    return (
        table(("command", "what it does", "time"), rows)
        + f"\n\n{note}{times['install'] / 60:.0f} min."
    )


def verdicts():
    """One line per claim: the paper's number, ours in short, the verdict."""
    summary = reference("11_summary")
    if not summary:
        return "not run"
    rows = [
        (
            f"{row['claim']}: {row['says']}",
            row["paper"].split(";")[0].split(",")[0],
            row["here"].split(";")[0],
            f"**{row['verdict']}**",
            NOTEBOOK_OF_CLAIM[row["claim"]],
        )
        for row in summary["numbers"]["verdicts"]
    ]
    numbers, provenance = summary["numbers"], summary["provenance"]
    note = (
        f"Preset `smoke` at {made_at(provenance)}: {numbers['data']} data, "
        f"{numbers['n']} test images "
        f"of {numbers['size']} px, {numbers['seeds']} training(s) per configuration. Intervals are "
        "95 % over images."
    )
    return table(("claim", "paper", "ours", "verdict", "notebook"), rows) + f"\n\n{note}"


def cost():
    """Item of the paper, notebook, and seconds of one thread in preset smoke."""
    rows, table_of_jobs = [], jobs()
    for stem, item in PAPER.items():
        runs = [reference(name) for name, job in table_of_jobs.items() if job.notebook == stem]
        seconds = [run["provenance"]["seconds"] for run in runs if run]
        time = f"{sum(seconds):.0f} s" if seconds else "not run"
        if len(seconds) > 1:
            time = f"{len(seconds)} x {fmean(seconds):.0f} s"
        rows.append((item, f"[{stem}](notebooks/{stem}.py)", time))
    return table(("item", "notebook", "time, `smoke`, one thread"), rows)


def tree():
    """The modules of rr by folder, with the beginning of their docstrings."""
    lines = ["```"]
    folders = [ROOT / "rr", *sorted(path for path in (ROOT / "rr").iterdir() if path.is_dir())]
    for folder in folders:
        modules = [path for path in sorted(folder.glob("*.py")) if "__" not in path.name]
        if modules:
            lines.append(f"{folder.relative_to(ROOT)}/")
        for path in modules:
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            comment = doc.splitlines()[0].split(". ")[0].split(": ")[0].rstrip(".:,")
            lines.append(f"  {path.name:19}{textwrap.shorten(comment, 36, placeholder=' ...')}")
    return "\n".join([*lines, "```"])


def presets():
    names = [field.name for field in fields(Preset) if field.name not in ("name", "seed")]
    shown = ("smoke", "course", "paper")
    return table(
        ("value", *shown),
        [(f"`{name}`", *(getattr(PRESETS[p], name) for p in shown)) for name in names],
    )


def choices():
    return table(("about", "the paper's words", "our choice", "alternatives"), CHOICES)


def tables():
    """All tables of the reference, the verdicts first, each with the commit that made it."""
    parts = []
    paths = sorted(
        (REFERENCE / "tables").glob("*.md"),
        key=lambda path: ("verdicts" not in path.stem, path.stem),
    )
    for path in paths:
        stem = (
            path.stem
            if reference(path.stem)
            else max(
                (
                    name
                    for name in (*PAPER, "12_evaluation_photographs")
                    if path.stem.startswith(name)
                ),
                key=len,
            )
        )
        made = reference(stem)
        made_by = f" ({made_at(made['provenance'])})" if made else ""
        parts.append(f"## {path.stem}{made_by}\n\n{path.read_text(encoding='utf-8').strip()}")
    return "\n\n".join(parts) or "not run"


def weights():
    """How the weights of the recommended restorer were made, from their own provenance."""
    config = read_json(ROOT / "rr" / "recommended" / "config.json")
    made, rows = config["provenance"], []
    for name, stage in config["stages"].items():
        changes = ", with changes" if stage["dirty"] else ""
        rows.append(
            (
                f"U-Net, stage {name}",
                f"commit {stage['commit'][:9]}{changes}; "
                f"{stage['epoch'] + 1} of {stage['epochs']} epochs, "
                f"learning rate {stage['lr']}, {stage['seconds'] / 60:.0f} min",
            )
        )
    rows += [
        (
            "seed, device",
            f"{made['seed']}; {made['device']}, {made['threads']} thread(s); {made['machine']}",
        ),
        (
            "images",
            f"{made['eyes']} embedded eyes, {made['photographs']} photographs; "
            f"{made['held_out']} for validation",
        ),
        (
            "optimizer",
            f"{made['optimizer']}, batches of {made['batch']}, "
            f"weights averaged with decay {made['ema']}",
        ),
        ("blur", "; ".join(f"{name}: {value:.4g}" for name, value in config["blur"].items())),
        (
            "versions",
            ", ".join(f"{name} {made['versions'][name]}" for name in ("torch", "torchvision")),
        ),
        ("sha256", config["sha256"]),
    ]
    return table(("", ""), rows)


def metrics():
    """All methods on photographs that nobody trained on, and on embedded eyes."""
    names = (
        "_photographs",
        "_photographs_ssim",
        "_photographs_undegraded",
        "_photographs_downstream",
        "",
    )
    paths = [REFERENCE / "tables" / f"12_evaluation{name}.md" for name in names]
    return (
        "\n\n".join(path.read_text(encoding="utf-8").strip() for path in paths if path.is_file())
        or "not run"
    )


def scale():
    """How the cost of a data set grows with its size, from results/bench/scale.json."""
    path = ROOT / "results" / "bench" / "scale.json"
    if not path.is_file():
        return "not run"
    measured = read_json(path)
    head = (
        "embedded images",
        "seconds to prepare",
        "memory of all processes, MiB",
        "disk, GB",
        "images/s when read",
    )
    rows = [
        (
            f"{row['images']:,}",
            f"{row['prepare_seconds']:,.0f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['epoch_images_per_s']:,.0f}",
        )
        for row in measured["numbers"]["rows"]
    ]
    made = measured["provenance"]
    return (
        table(head, rows)
        + f"\n\n{made['size']} px, {made['workers']} processes; {made['machine']}; {made_at(made)}."
    )


PAGES = {
    "README.md": (commands, verdicts, cost, tree),
    "rr/README.md": (presets, choices),
    "results/README.md": (tables,),
    "rr/recommended/README.md": (weights, metrics),
    "workflow/README.md": (scale,),
}


def fill(name, text):
    """The text of a page with every part made again.

    Raises InputError if the comments of a part are missing.
    """
    for make in PAGES[name]:
        begin, end = f"<!-- begin: {make.__name__} -->", f"<!-- end: {make.__name__} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise InputError(f"{name}: needs {begin} and {end}, once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for name in PAGES:
        write_text(ROOT / name, fill(name, (ROOT / name).read_text(encoding="utf-8")))

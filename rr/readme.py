"""What is generated in texts: `python -m rr.readme` writes it again, from the code and from result files.

In the README a part stands between two comments, <!-- begin: NAME --> and <!-- end: NAME -->; in a notebook it is the
row `time` of its first table. No number in them is typed: what no command has made yet is shown as "not run".
"""

import re
from dataclasses import fields

from rr import io
from rr.paper import CHOICES
from rr.presets import PRESETS, Preset

README = io.ROOT / "README.md"
SHOWN = ("smoke", "course", "paper")  # presets; mini is for the tests


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def result(preset, stem):
    """The result file of a notebook, or None if it was never run."""
    path = io.results(preset) / f"{stem}.json"
    return io.read_json(path) if path.is_file() else None


def commands():
    """The two commands with the times that `.ci/fresh` measured in a fresh clone."""
    path = io.ROOT / "results" / "commands.json"
    times = io.read_json(path) if path.is_file() else {}
    rows = []
    for command, does in (("make reproduce", "every chapter and figure, preset `smoke`, and a restored photograph"),
                          ("make test", "lint and all tests")):
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
    """Seconds of every notebook, from the provenance beside its result."""
    rows = []
    for path in sorted((io.ROOT / "notebooks").glob("[0-9]*.py")):
        cells = []
        for preset in SHOWN:
            facts = (result(preset, path.stem) or {}).get("provenance")
            cells.append(f"{facts['seconds']:.0f} s ({facts['device']}, {facts['peak_memory_mib']} MiB)" if facts else "not run")
        rows.append((f"[{path.stem}](notebooks/{path.name})", *cells))
    return table(("notebook", *SHOWN), rows)


def numbers():
    """Headline numbers of 06_restoration and 02_readability, per preset that was run."""
    parts = []
    for preset in SHOWN:
        found = result(preset, "06_restoration")
        if not found:
            continue
        facts, scores = found["numbers"], found["numbers"]["scores"]
        rows = [(name, *(f"{row[key]:.{digits}f}" if row[key] is not None else "n/a" for key, digits in
                         (("psnr", 2), ("ssim", 3), ("lpips", 3), ("psnr_fov", 2), ("ssim_fov", 3), ("psnr_disc", 2))))
                for name, row in scores.items()]
        parts.append(f"Preset `{preset}`, {facts['data']} data, {facts['protocol']} protocol, {facts['n']} test images, "
                     f"seed {found['provenance']['preset']['seed']}:\n\n"
                     + table(("", "PSNR", "SSIM", "LPIPS", "PSNR in FOV", "SSIM in FOV", "PSNR at disc"), rows)
                     + f"\n\nThe classifier called {facts['unreadable_before']} of the inputs unreadable and passed "
                     + (f"{facts['passed']:.0%} of these after restoration." if facts["passed"] is not None else "none."))
        judge = result(preset, "02_readability")
        if judge:
            rows = [(row["label"], *(f"{row[key]:.2f}" if row[key] is not None else "n/a" for key in
                     ("prevalence", "majority", "accuracy", "roc_auc", "average_precision"))) for row in judge["numbers"]]
            parts.append(f"The classifier on {judge['numbers'][0]['n']} test images:\n\n"
                         + table(("label", "prevalence", "majority", "accuracy", "ROC AUC", "average precision"), rows))
    return "\n\n".join(parts) or "not run"


def time_row(stem):
    """The row of a notebook's first table that says how long it takes: per preset that was run, where it was run."""
    times = []
    for preset in SHOWN:
        facts = (result(preset, stem) or {}).get("provenance")
        if facts:
            where = f"{facts['threads']} thread(s) of a CPU" if facts["device"] == "cpu" else facts["device"]
            times.append(f"{preset}: {facts['seconds']:.0f} s on {where}")
    return f"# | time | {'; '.join(times) or 'not run'} |"


PARTS = {"commands": commands, "presets": presets, "choices": choices, "cost": cost, "numbers": numbers}


def fill(text):
    """`text` with every part made again. Raises InputError if a part's comments are missing."""
    for name, make in PARTS.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise io.InputError(f"README.md: needs {begin} and {end}, once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    io.write_text(README, fill(README.read_text(encoding="utf-8")))
    for notebook in sorted((io.ROOT / "notebooks").glob("[0-9]*.py")):
        text = notebook.read_text(encoding="utf-8")
        io.write_text(notebook, re.sub(r"^# \| time \| .*$", time_row(notebook.stem), text, count=1, flags=re.M))

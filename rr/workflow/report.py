"""One page with all figures and tables of a preset, and every executed notebook as a page beside it.

    results/<preset>/report/index.html                 complete in itself: it can be mailed
    results/<preset>/report/notebooks/<notebook>.html

Defines `write`. No page loads anything from elsewhere or runs a script: pictures are embedded, formulas are MathML, and
what a notebook's output would fetch is left out. The same inputs give the same bytes: no page bears the time of its making.
"""

import base64
import csv
import math
import re
from html import escape
from typing import NamedTuple
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from rr import files as io
from rr.errors import InputError
from rr.files import read_json, remove_partial_files, write_text
from rr.workflow.notebook import NOTEBOOKS

LONG, HEAD, DIGITS = (
    40,
    10,
    4,
)  # a table of more rows than LONG shows its first HEAD, numbers with so many digits
RESULTS = {
    "03_features": "extractors",
    "06_restoration": "runs",
}  # folders of what was made with other parameters
KINDS = [
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/latex",
    "text/plain",
]
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf", re.I)
GONE = ["script", "style", "link", "meta", "base", "iframe", "frame", "object", "embed", "applet"]
LOADING = {
    "src",
    "srcset",
    "href",
    "xlink:href",
    "poster",
    "data",
    "background",
    "action",
    "formaction",
    "ping",
    "style",
}

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --dim: #5c6670; --line: #d9dde2; --paper: #fff; --box: #f5f6f8;
  --link: #0b5cad; --bad: #b3261e; --word: #7b2d8b; --text: #1d6b38; --value: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e8; --dim: #99a3ad; --line: #3a4048; --paper: #15181c; --box: #1f2329;
  --link: #7db8f5; --bad: #ff8a80; --word: #d3a0e0; --text: #8fd3a5; --value: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink); font: 1rem/1.6
  system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.35rem; } h3 { font-size: 1.1rem; }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em; } h1 { margin-top: .5em; } math[display="block"] { margin: 1rem 0; }
section { border-top: 1px solid var(--line); margin-top: 3rem; } section > h2 { margin-top: 1.2em; } a { color: var(--link); }
.facts, figcaption, .rows { color: var(--dim); font-size: .875rem; } .failed { color: var(--bad); }
nav ol, ul.runs { list-style: none; padding: 0; } figure { margin: 1.8rem 0; } figcaption, .rows { margin: .4rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 3px; }
pre { background: var(--box); border-radius: 3px; padding: .7rem .9rem; overflow-x: auto; font-size: .8125rem;
  line-height: 1.45; }
code, pre { font-family: ui-monospace, Consolas, Menlo, monospace; } code { font-size: .9em; } pre code { font-size: 1em; }
.output_text pre, .output_error pre { background: none; border-left: 3px solid var(--line); }
.output_error pre { border-color: var(--bad); }
.scroll, .output_html, .output_markdown, .text_cell_render { overflow-x: auto; overflow-y: hidden; }
table { border: 0; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { border: 0; border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; }
th:first-child, td:first-child { padding-left: 0; } .number, .dataframe th, .dataframe td { text-align: right; }
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; }
.k, .kn, .kc, .kd, .ow, .o.ow { color: var(--word); } .s, .s1, .s2, .sa, .sd, .sf, .si { color: var(--text); }
.mi, .mf, .nb, .bp { color: var(--value); } .c, .c1, .cm { color: var(--dim); font-style: italic; }
.ansi-red-fg { color: var(--bad); } .ansi-green-fg { color: var(--text); } .ansi-blue-fg, .ansi-cyan-fg { color: var(--value); }
@media print { pre { white-space: pre-wrap; } figure { break-inside: avoid; } }
"""
# also what `offline` overlooks is not loaded by a browser
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Executed(NamedTuple):
    """An executed notebook: its file's stem, its first heading ("" without one), and what is wrong with it ("" if nothing)."""

    name: str
    title: str
    failed: str
    unreadable: bool


def write(home, pictures):
    """Write the report of the results in the folder `home` and the PNG in the folder `pictures`; returns the index's path.

    Pages of notebooks that are gone are removed. Raises InputError if no notebook has been executed, or if the report
    cannot be written. A damaged notebook or result is named in the index; the others go on.
    """
    paths = _visible(home / "executed", "ipynb")
    if not paths:
        where = "" if home == io.results(home.name) else f" --out {home.parent}"
        raise InputError(
            f"{home / 'executed'}: no executed notebook; run `rr reproduce --preset {home.name}{where}` first"
        )
    pages = io.folder(home / "report" / "notebooks")
    with io.exclusive_lock(
        home / "report" / ".lock", f"another report is being written to {home / 'report'}"
    ):
        remove_partial_files(pages.parent)  # those of the pages go with the old pages
        executed = [_notebook(path, pages) for path in paths]
        kept = {f"{each.name}.html" for each in executed if not each.unreadable}
        for old in pages.glob("*.html"):
            if old.name not in kept:
                old.unlink()
        index = pages.parent / "index.html"
        write_text(index, _index(home, pictures, executed))
    return index


def _visible(folder, suffix):
    """Files of a folder by name, without the hidden ones that are being written."""
    return sorted(path for path in folder.glob(f"*.{suffix}") if not path.name.startswith("."))


def page(title, body):
    """A complete HTML page; title is text, body HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


# -------------------------------------------------------------------------------------------------------- notebooks


def _notebook(path, pages):
    """Write the page of one executed notebook, if it can be read; returns its Executed."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        nbformat.ValidationError,
    ) as error:
        return Executed(path.stem, "", f"unreadable: {type(error).__name__}", True)
    heading, failed, title = path.stem, "", ""
    for number, cell in enumerate(nb.cells):
        cell["id"] = str(number)  # older notebooks have none, and would be given random ones
        if cell.cell_type == "markdown":
            found = headings(cell.source)
            title, heading = title or (found or [""])[0], (found or [heading])[-1]
        elif cell.cell_type == "code":
            cell.metadata.setdefault("alt", f"Picture, under: {heading}")
            cell.outputs = _streams(cell.outputs)
            failed = failed or next(
                map(_failure, (each for each in cell.outputs if each.output_type == "error")), ""
            )
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": markdown},
    )
    exporter.config.NbConvertBase.display_data_priority = KINDS  # no widgets, no JavaScript
    body, _ = exporter.from_notebook_node(nb)
    back = '<p class="facts"><a href="../index.html">Report</a></p>'
    write_text(
        pages / f"{path.stem}.html",
        page(title or path.stem, f"{back}\n<main>\n{offline(body)}\n</main>"),
    )
    return Executed(path.stem, title, failed, False)


def headings(source):
    """The headings of a Markdown text, outside of fenced code."""
    text = re.sub(r"^ {0,3}(```+|~~~+).*?(^ {0,3}\1|\Z)", "", source, flags=re.M | re.S)
    return [
        found.strip()
        for found in re.findall(r"^ {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", text, re.M)
    ]


def _failure(output):
    said = re.sub(r"\x1b\[[\d;]*m", "", output.evalue).strip().splitlines()
    return f"failed: {output.ename}: {said[-1]}" if said else f"failed: {output.ename}"


def _streams(outputs):
    """Outputs with the pieces of a stream joined, and of a line that was rewritten (a progress bar) only its last state."""
    joined = []
    for each in outputs:
        if (
            each.output_type == "stream"
            and joined
            and joined[-1].output_type == "stream"
            and joined[-1].name == each.name
        ):
            joined[-1].text += each.text
        else:
            joined.append(each)
    for each in joined:
        if each.output_type == "stream":
            each.text = re.sub(r"[^\n]*\r(?=[^\r\n])", "", each.text.replace("\r\n", "\n"))
    return joined


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML; what is code and what a formula is decided by nbconvert's parser."""

    def inline_math(self, body):
        return formula(body, "inline", f"${body}$")

    def block_math(self, body):
        return formula(body, "block", f"$${body}$$")

    def latex_environment(self, name, body):
        text = f"\\begin{{{name}}}{body}\\end{{{name}}}"
        return formula(text, "block", text)

    def image(self, text, url, title=None):
        return super(IPythonRenderer, self).image(text, url, title)  # not read from disk


def markdown(source):
    """Markdown to HTML. Headings get no anchors: they would be made from MathML."""
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(
        source
    )


def formula(tex, display, text):
    """MathML of a formula; display: inline or block. What cannot be parsed stays as `text`, for all to see."""
    try:
        mathml = convert(tex, display=display)
    except Exception:  # latex2mathml's errors have no common class, and some are bare IndexErrors
        mathml = "\\"
    if "\\" in mathml:  # a command that it does not know, as a letter
        return f"<code>{escape(text)}</code>"
    mathml = mathml.replace(
        "<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"
    )  # its \sim is the raised tilde of a keyboard
    space = '<mspace width="0.17em"></mspace>'  # its \log is a variable without room around it
    return re.sub(r"<mi>[a-z]{2,}</mi>", rf"<mrow>{space}\g<0>{space}</mrow>", mathml)


def offline(html):
    """`html` without what a browser would fetch or run: links stay, a picture from elsewhere becomes its description."""
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(GONE):
        tag.decompose()
    for tag in soup(True):
        source, target = tag.get("src", ""), tag.get("href", "")
        tag.attrs = {
            name: value
            for name, value in tag.attrs.items()
            if name not in LOADING and not name.startswith("on")
        }
        if tag.name == "img" and source.startswith("data:image/"):
            tag["src"] = source
        elif tag.name == "img":
            tag.replace_with(f"[picture: {tag.get('alt') or source}]")
        elif tag.name == "a" and target.startswith(("https://", "http://", "mailto:", "#")):
            tag["href"] = target
    return str(soup)


# ------------------------------------------------------------------------------------------------------------ index


def _index(home, pictures, executed):
    """The HTML of the index: chapters with their notebooks, figures and tables; at the end what belongs to none."""
    stems = {each.name for each in executed} | {path.stem for path in NOTEBOOKS.glob("[0-9]*.py")}
    chapters = {}
    every = {
        "notebooks": executed,
        "figures": _visible(pictures, "png"),
        "tables": _visible(home / "tables", "csv"),
    }
    for kind, found in every.items():
        for each in found:
            stem = chapter(each.name if kind == "notebooks" else each.stem, stems)
            chapters.setdefault(stem, {name: [] for name in every})[kind].append(each)
    contents, sections = [], []
    for stem in sorted(chapters, key=lambda stem: (not stem, stem)):
        parts = chapters[stem]
        titles = [each.title for each in parts["notebooks"] if each.title]
        # as a heading, not as a paragraph: "6. Restoration" would be a list there
        title = (
            re.sub(r"</?h1>|\n", "", offline(markdown(f"# {titles[0]}")))
            if titles
            else escape(stem or "Other")
        )
        name = escape(stem or "other")
        contents.append(
            f'<li><a href="#{quote(stem or "other")}">{re.sub("</?a[^>]*>", "", title)}</a></li>'
        )
        lines = [_line(home, stem, each) for each in parts["notebooks"]]
        lines = (
            ['<ul class="runs facts">', *lines, "</ul>"]
            if lines
            else ['<p class="facts">No executed notebook.</p>']
        )
        shown = [*map(_figure, parts["figures"]), *map(_table, parts["tables"])]
        sections += [f'<section id="{name}">\n<h2>{title}</h2>', *lines, *shown, "</section>"]
    title = f"RetinaRegen, reproduced: preset {home.name}"
    top = f'<main>\n<h1>{escape(title)}</h1>\n<nav aria-label="Contents">\n<ol>'
    return page(title, "\n".join([top, *contents, "</ol>\n</nav>", *sections, "</main>"]))


def chapter(name, stems):
    """The stem that a notebook, figure or table belongs to by its name, "" if there is none; the shortest one if several."""
    return min((stem for stem in stems if f"{name}_".startswith(f"{stem}_")), key=len, default="")


def _line(home, stem, executed):
    """A notebook in the list of its chapter: link, what went wrong, and where its result comes from."""
    name, variant = executed.name, executed.name[len(stem) + 1 :]
    result = (
        home / RESULTS.get(stem, "runs") / variant / "result.json"
        if variant
        else home / f"{name}.json"
    )
    parts = [
        escape(name)
        if executed.unreadable
        else f'<a href="notebooks/{quote(name)}.html">{escape(name)}</a>'
    ]
    parts += (
        [f'<strong class="failed">{escape(executed.failed)}</strong>'] if executed.failed else []
    )
    parts += [escape(provenance(result))] if result.is_file() else []
    return f"<li>{' · '.join(parts)}</li>"


def provenance(path):
    """One line on where a result file comes from."""
    try:
        facts = read_json(path)["provenance"]
        seed = (facts.get("preset") or {}).get("seed", facts.get("seed"))
        commit = (facts.get("commit") or "unknown")[:12] + (
            " with changes" if facts.get("dirty") else ""
        )
        where = f"seed {seed} · {facts.get('device')} · {facts.get('seconds')} s · written {facts.get('written')}"
        return f"commit {commit} · {where}"
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{path.name}: unreadable"


def _figure(path):
    words = escape(re.sub(r"[\W_]+", " ", path.stem).strip())
    data = base64.b64encode(path.read_bytes()).decode()
    picture = f'<img alt="Figure: {words}" src="data:image/png;base64,{data}">'
    return f"<figure>\n{picture}\n<figcaption>{escape(path.name)}</figcaption>\n</figure>"


def _table(path):
    """A CSV file as a table, its numbers rounded, a long one cut."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        lines = [line for line in csv.reader(file) if line] or [[]]
    width = max(map(len, lines))
    head, *rows = [line + [""] * (width - len(line)) for line in lines]
    numeric = [
        any(column) and all(NUMBER.fullmatch(cell) for cell in column if cell)
        for column in zip(*rows)
    ] or [False] * width
    shown = rows[:HEAD] if len(rows) > LONG else rows
    note = (
        f'<p class="rows">The first {HEAD}; {len(rows)} rows in {escape(path.name)}</p>\n'
        if shown != rows
        else ""
    )

    def line(cells, tag, show):
        return "<tr>" + "".join(
            f'<{tag} class="number">{escape(show(cell))}</{tag}>' if right else f"<{tag}>{escape(cell)}</{tag}>"
            for cell, right in zip(cells, numeric)
        ) + "</tr>"  # fmt: skip

    body = "\n".join(line(row, "td", number) for row in shown)
    return (
        f'<figure>\n<figcaption>{escape(path.name)}</figcaption>\n<div class="scroll">\n<table>\n'
        f"<thead>{line(head, 'th', str)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n{note}</figure>"
    )


def number(text):
    """A number for display, at DIGITS significant digits without a needless exponent; whole ones and words as they are."""
    if not NUMBER.fullmatch(text) or re.fullmatch(r"[+-]?\d+", text):
        return text
    value = float(text)
    if not math.isfinite(value) or value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    rounded = f"{value:.{DIGITS}g}"
    return f"{float(rounded):.0f}" if "e+" in rounded and abs(value) < 1e15 else rounded

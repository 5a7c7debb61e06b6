"""Pages with all figures, tables and executed notebooks of a preset. They open without a network.

    results/<preset>/report/index.html                      figures, tables, links to the notebooks
    results/<preset>/report/notebooks/<notebook>.html

nbconvert makes them. A page contains its images, loads nothing and runs no script.
Formulas are MathML.
"""

import base64
import shutil

import nbformat
import pandas as pd
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rr import files
from rr.errors import InputError
from rr.workflow.notebook import NOTEBOOKS

ROWS = 20  # of a long table on the index page: its first and last ten
PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: auto; max-width: 62rem; padding: 1rem; font: 1rem/1.5 sans-serif; }}
img {{ max-width: 100%; }} pre {{ background: #f5f6f8; padding: .5rem; overflow-x: auto; }}
table {{ font-size: .85rem; }} td, th {{ padding: .2rem .6rem; text-align: right; }}
</style>
{body}
"""


def write(results, figures):
    """Write the report of the folder `results` and of the PNG files in `figures`.

    It replaces an earlier report. Returns the path of the index page. Raises InputError if no
    notebook has been executed.
    """
    executed = sorted((results / "executed").glob("[!.]*.ipynb"))
    if not executed:
        raise InputError(f"{results / 'executed'}: no executed notebook; run `rr reproduce` first")
    shutil.rmtree(results / "report", ignore_errors=True)
    report = files.folder(results / "report")
    pages = files.folder(report / "notebooks")
    for path in executed:
        page = _page(path.stem, nbformat.read(path, as_version=4))
        files.write_text(pages / f"{path.stem}.html", page)
    paths = [*executed, *sorted(figures.glob("*.png")), *sorted(results.glob("tables/*.csv"))]
    index = _index(f"RetinaRegen: results of preset {results.name}", paths)
    files.write_text(report / "index.html", index)
    return report / "index.html"


def _index(title, paths):
    """One chapter per notebook. The beginning of a file's name tells to which it belongs."""
    cells = [new_markdown_cell(f"# {title}")]
    for stem in [*sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.py")), ""]:
        chapter = [path for path in paths if path.stem.startswith(stem)]
        paths = [path for path in paths if path not in chapter]
        if chapter:
            cells += [new_markdown_cell(f"## {stem or 'Other'}"), *map(_cell, chapter)]
    return _page(title, new_notebook(cells=cells), exclude_input=True)


def _cell(path):
    """A cell of the index: the link to a notebook, a figure, or a table."""
    if path.suffix == ".ipynb":
        return new_markdown_cell(f"* [{path.stem}](notebooks/{path.stem}.html)")
    if path.suffix == ".png":
        data = {"image/png": base64.b64encode(path.read_bytes()).decode()}
    else:
        table = pd.read_csv(path)
        data = {
            "text/html": table.to_html(max_rows=ROWS, index=False, float_format="{:.4g}".format)
        }
    caption = new_output("stream", text=path.name)
    return new_code_cell(outputs=[caption, new_output("display_data", data)])


class _MathMl(IPythonRenderer):
    """Markdown with formulas as MathML, which a browser shows without a script."""

    def inline_math(self, body):
        return convert(body)

    def block_math(self, body):
        return convert(body, display="block")


def _markdown(source):
    return MarkdownWithMath(renderer=_MathMl(escape=False, exclude_anchor_links=True)).render(
        source
    )


def _page(title, notebook, **options):
    for cell in notebook.cells:
        cell.metadata.setdefault("alt", "figure")  # nbconvert warns of images without a description
    filters = {"markdown2html": _markdown}
    exporter = HTMLExporter(template_name="basic", filters=filters, **options)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(enabled=True))  # of progress bars
    body, _ = exporter.from_notebook_node(notebook)
    return PAGE.format(title=title, body=body)

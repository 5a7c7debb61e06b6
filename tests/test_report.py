"""rr.workflow.report: every notebook, figure and table is there, and no page loads anything."""

import re

import pandas as pd
import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from rr.errors import InputError
from rr.workflow import report


@pytest.fixture
def results(tmp_path):
    """results("name", cell, ...) writes an executed notebook; results.folder is the preset's."""

    def add(name, *cells):
        (tmp_path / "mini" / "executed").mkdir(parents=True, exist_ok=True)
        write(new_notebook(cells=list(cells)), tmp_path / "mini" / "executed" / f"{name}.ipynb")

    add.folder = tmp_path / "mini"
    return add


def page(results, name):
    return (results.folder / "report" / "notebooks" / f"{name}.html").read_text()


def output(**data):
    return new_code_cell("show()", outputs=[new_output("display_data", data)])


def test_a_page_shows_text_code_formulas_and_outputs(results):
    progress = new_output("stream", text="\r 50%| x| 4/9\r100%|xx| 9/9\n")
    results(
        "01_data",
        new_markdown_cell("# The *data*\nwith $x_t < 1$ and `$y$`\n\n$$ \\sqrt{\\alpha} $$"),
        new_code_cell("train()", outputs=[progress]),
        output(**{"text/html": "<table><tr><td>cell</td></tr></table>"}),
        output(**{"image/png": "iVBORw0KGgo="}),
    )
    report.write(results.folder, results.folder)
    html = page(results, "01_data")
    assert "<em>data</em>" in html and "<td>cell</td>" in html and "train" in html
    assert html.count("<math") == 2 and 'display="block"' in html and "<code>$y$</code>" in html
    assert "9/9" in html and "4/9" not in html
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in html


def test_a_page_loads_nothing_and_runs_no_script(results):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar"}
    results("01_data", new_markdown_cell("# Data, $x$"), output(**view))
    index = report.write(results.folder, results.folder).read_text()
    for html in (index, page(results, "01_data")):
        assert "default-src 'none'" in html  # the browser then refuses scripts and requests
        assert not re.search(r"<(script|link|iframe)[^>]*\b(src|href)=", html)
        assert not re.search(r'\bsrc="(?!data:)', html)


def test_the_index_has_a_chapter_per_notebook_with_its_figures_and_tables(results, tmp_path):
    for name in ("12_evaluation_photographs", "02_readability", "mine"):
        results(name, new_markdown_cell("# Text"))
    Image.new("RGB", (2, 2)).save(tmp_path / "02_readability_curves.png")
    tables = results.folder / "tables"
    tables.mkdir()
    numbers = pd.DataFrame({"n": range(100, 141), "x": 0.123456})
    numbers.to_csv(tables / "12_evaluation.csv", index=False)
    index = report.write(results.folder, tmp_path).read_text()
    assert re.findall(r"<h2[^>]*>(\w+)", index) == ["02_readability", "12_evaluation", "Other"]
    chapters = index.split("<h2")
    assert 'href="notebooks/02_readability.html"' in chapters[1]
    assert "02_readability_curves.png" in chapters[1] and "data:image/png" in chapters[1]
    assert 'href="notebooks/12_evaluation_photographs.html"' in chapters[2]
    assert "<td>140</td>" in chapters[2] and "<td>120</td>" not in chapters[2]
    assert "0.1235" in chapters[2] and 'href="notebooks/mine.html"' in chapters[3]


def test_a_new_report_replaces_the_old(results):
    results("01_data", new_markdown_cell("# Text"))
    results("02_readability", new_markdown_cell("# Text"))
    report.write(results.folder, results.folder)
    (results.folder / "executed" / "01_data.ipynb").unlink()
    assert "01_data" not in report.write(results.folder, results.folder).read_text()
    assert not (results.folder / "report" / "notebooks" / "01_data.html").exists()


def test_without_executed_notebooks_the_message_says_what_to_run(results):
    with pytest.raises(InputError, match="mini/executed: no executed notebook; run `rr reproduce`"):
        report.write(results.folder, results.folder)

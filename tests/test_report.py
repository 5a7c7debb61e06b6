"""The report: everything is on it, its pages stand alone, the same inputs give the same bytes, damage is named."""

import base64
import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rr import files as io
from rr.errors import InputError
from rr.workflow import report

PNG = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
FACTS = {
    "preset": {"seed": 3}, "commit": "0123456789abcdef", "dirty": True, "device": "cpu", "seconds": 7.5,
    "written": "2026-01-02T03:04:05Z",
}  # fmt: skip
HOSTILE = """
<script src="https://a.example/x.js"></script><link rel="stylesheet" href="https://a.example/y.css">
<style>@import "https://a.example/x.css"; p { background: url(//a.example/b) }</style><iframe src="https://a.example/"></iframe>
<p style="background: url(x)" onclick="go()">kept</p>
<img src="https://a.example/z.png" alt="an eye" onerror="go()"><svg><image href="https://a.example/s.svg"></image></svg>
<video poster="../v.png"><source src="v.mp4"></video><img srcset="//a.example/q.png 2x"><a href="../secret.txt">aside</a>
<a href="javascript:go()">run</a> <a href="https://arxiv.org/abs/2502.19153">the paper</a>
"""


def error(name="ValueError", text="first line\nthe last line"):
    return new_output(
        "error", ename=name, evalue=text, traceback=["\x1b[31mTraceback\x1b[0m", text]
    )


@pytest.fixture
def home(tmp_path):
    """home(name, *cells) writes an executed notebook; home.path is the results folder of preset mini."""

    def add(name, *cells):
        path = add.path / "executed" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        nbformat.write(
            new_notebook(cells=cells, metadata={"language_info": {"name": "python"}}), path
        )
        return path

    add.path, add.pictures = tmp_path / "mini", tmp_path / "figures"
    add.write = lambda: report.write(add.path, add.pictures).read_text(encoding="utf-8")
    add.page = lambda name: (add.path / "report" / "notebooks" / f"{name}.html").read_text(
        encoding="utf-8"
    )
    return add


def output(**data):
    return new_code_cell(
        "show()",
        outputs=[
            new_output("execute_result", {name.replace("_", "/"): data[name] for name in data})
        ],
    )


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Fetched(HTMLParser):
    """What a page would load or run, and where its links lead outside of the folder."""

    def __init__(self, html):
        super().__init__()
        self.found, self.inside = [], ""
        self.feed(html)

    def handle_data(self, data):
        self.found += re.findall(r"@import|url\([^)]*\)", data) if self.inside == "style" else []

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        for name, value in attrs:
            value = value or ""
            self.found += re.findall(r"url\([^)]*\)", value)
            if tag == "a" and name == "href":
                inside = re.fullmatch(
                    r"#[\w%.+-]+|notebooks/[\w%.+-]+\.html|\.\./index\.html", value
                )
                self.found += [] if inside or value.startswith("https://") else [(tag, name, value)]
            elif name in (
                "href",
                "src",
                "srcset",
                "poster",
                "data",
                "action",
                "background",
            ) or name.startswith("on"):
                self.found += [] if value.startswith("data:image/") else [(tag, name, value)]
        if tag in ("script", "iframe", "object", "embed", "link", "base"):
            self.found.append(tag)


def test_the_check_of_pages_sees_what_leaves_the_folder():
    assert len(Fetched(HOSTILE).found) >= 13


def test_no_page_loads_or_runs_anything(home):
    widget = output(
        **{"application_vnd.jupyter.widget-view+json": {"model_id": "m"}, "text_plain": "a widget"}
    )
    script = output(application_javascript="fetch('https://a.example')", text_plain="a script")
    other = output(image_png=base64.b64encode(PNG).decode(), text_plain="<Figure>")
    pictures = "![a vessel](https://a.example/v.png) ![](attachment:x.png)"
    home("01_data", "# 01 · Data", HOSTILE, pictures, "$x$", widget, script, other)
    home(
        "02_readability",
        "# " + HOSTILE.replace("\n", " "),
        output(text_html=HOSTILE, text_plain="x"),
    )
    put(home.pictures / "01_data_eyes.png", PNG)
    index = home.write()
    pages = [index, home.page("01_data"), home.page("02_readability")]
    for html in pages:
        assert Fetched(html).found == []
        assert "default-src 'none'; img-src data:" in html
    for html in pages[1:]:
        assert (
            "kept" in html
            and 'href="https://arxiv.org/abs/2502.19153"' in html
            and "[picture: an eye]" in html
        )
    assert "[picture: a vessel]" in pages[1] and "a widget" in pages[1] and "a script" in pages[1]
    assert 'alt="Picture, under: 01 · Data"' in pages[1]


def test_index_shows_chapters_figures_tables_and_provenance(home):
    home(
        "06_restoration",
        "Before\n\n```\n# no heading\n```\n\n# 06 · The <whole> `method` $x_0$\n\n## Then",
    )
    home("01_data", "# 01 · Data")
    io.write_json(home.path / "01_data.json", {"numbers": {}, "provenance": FACTS})
    put(home.pictures / "01_data_two.png", PNG + b"2")
    put(home.pictures / "01_data_one.png", PNG)
    put(home.pictures / "unknown.png", PNG)
    put(home.path / "tables" / "06_restoration_scores.csv", "method,psnr\nRetinaRegen,23.991486\n")
    put(home.path / "tables" / ".06_restoration.part-x.csv", "half,")
    index = home.write()
    order = [
        'id="01_data"', "01 · Data</h2>", 'href="notebooks/01_data.html"',
        "commit 0123456789ab with changes · seed 3 · cpu · 7.5 s · written 2026-01-02T03:04:05Z",
        base64.b64encode(PNG).decode() + '">\n<figcaption>01_data_one.png<', "<figcaption>01_data_two.png<",
        'id="06_restoration"', "<code>method</code> <math", "06_restoration_scores.csv", "<td>RetinaRegen</td>", ">23.99<",
        'id="other"', "unknown.png",
    ]  # fmt: skip
    places = [index.find(part, index.index("</nav>")) for part in order]
    assert -1 not in places and places == sorted(places)
    assert index.count("<figcaption>") == 4 and "half" not in index
    toc = index[: index.index("</nav>")]
    assert re.findall(r'href="#(\w+)"', toc) == ["01_data", "06_restoration", "other"]
    assert all(re.search(r'alt="[^"]+"', picture) for picture in re.findall(r"<img[^>]*>", index))
    assert "<title>01 · Data</title>" in home.page("01_data")


def test_other_parameters_are_listed_under_their_chapter(home):
    home("06_restoration", "# 06 · Method")
    home("06_restoration_unet++-literal_1", "# 06 · Method")
    home("06_restoration_vae_0", "# 06 · Method", new_code_cell("go()", outputs=[error()]))
    home("03_features_vgg16_2", "# 03 · Features")  # its chapter has not been run itself
    io.write_json(
        home.path / "runs" / "unet++-literal_1" / "result.json", {"numbers": 1, "provenance": FACTS}
    )
    io.write_json(
        home.path / "extractors" / "vgg16_2" / "result.json",
        {"numbers": 1, "provenance": FACTS | {"seconds": 8}},
    )
    index = home.write()
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', index, re.S))
    assert list(sections) == ["03_features", "06_restoration"]
    assert "<h2>03 · Features</h2>" in sections["03_features"] and "8 s" in sections["03_features"]
    lines = re.findall("<li>(.*?)</li>", sections["06_restoration"])
    assert [re.search(r'href="notebooks/(.+?)"', line)[1] for line in lines] == [
        "06_restoration.html", "06_restoration_unet%2B%2B-literal_1.html", "06_restoration_vae_0.html",
    ]  # fmt: skip
    assert ["seed 3" in line for line in lines] == [False, True, False]
    assert ["failed: ValueError: the last line<" in line for line in lines] == [False, False, True]
    assert "Traceback" in home.page("06_restoration_vae_0") and "\x1b" not in home.page(
        "06_restoration_vae_0"
    )


@pytest.mark.parametrize(
    "damage",
    [None, "", "[]", "{}", "null", '{"cells": 3}', '{"nbformat": 9}', '{"nbformat": 4, "nbformat_minor": 5}', b"\xff",
     '{"cells": [{"cell_type": "markdown", "source": 3, "metadata": {}}], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}'],
)  # fmt: skip
def test_a_damaged_notebook_is_named_and_the_others_go_on(home, damage):
    home("01_data", "# 01 · Data")
    path = home("05_vae", "# 05 · VAE")
    home.write()
    text = path.read_text()
    put(path, text[: len(text) // 2] if damage is None else damage)
    index = home.write()
    assert re.search(r'<li>05_vae · <strong class="failed">unreadable: \w+<', index)
    assert 'href="notebooks/01_data.html"' in index and 'href="notebooks/05_vae.html"' not in index
    assert [each.name for each in (home.path / "report" / "notebooks").glob("*")] == [
        "01_data.html"
    ]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"provenance": 3}', '{"provenance": {"preset": [1]}}']
)
def test_a_damaged_result_is_named(home, text):
    home("01_data", "# 01 · Data")
    put(home.path / "01_data.json", text)
    assert "01_data.json: unreadable" in home.write()


def test_same_inputs_same_bytes_and_old_pages_go(home, monkeypatch):
    path = home(
        "01_data", "# 01 · Data", output(text_plain="1"), new_code_cell("go()", outputs=[error()])
    )
    old = json.loads(path.read_text())
    for cell in old[
        "cells"
    ]:  # as of older programs: cells without names, which nbformat would draw at random
        del cell["id"]
    put(path, json.dumps(old))
    home(
        "02_readability",
        "# 02",
        output(**{"application_vnd.jupyter.widget-view+json": {}, "text_plain": "w"}),
    )
    gone = home("04_diffusion", "# 04")

    def files():
        home.write()
        return {
            each.relative_to(home.path): each.read_bytes()
            for each in (home.path / "report").rglob("*")
            if each.is_file()
        }

    first = files()
    assert files() == first
    gone.unlink()
    for left in ("notebooks/.01_data.part-x.html", ".index.part-x.html"):
        put(home.path / "report" / left, "left by a killed writer")
    assert {each.name for each in files()} == {
        "01_data.html",
        "02_readability.html",
        "index.html",
        ".lock",
    }


def test_nothing_executed_says_what_to_run(home, tmp_path):
    with pytest.raises(
        InputError,
        match=r"mini/executed: no executed notebook; run `rr reproduce --preset mini --out .+` first",
    ):
        home.write()
    assert not home.path.exists()
    with pytest.raises(InputError, match=r"run `rr reproduce --preset none` first"):
        report.write(io.results("none"), tmp_path)


@pytest.mark.parametrize(
    "source, formulas, kept",
    [
        ("with $x_t$ and $\\hat x$.", 2, []),
        ("$$ a_1 * b * c\n   < d $$", 1, []),
        ("* item $a$\n\n| $b$ |\n| --- |\n| `$c$` |", 2, ["$c$"]),
        ("`$a$` and ``$$b$$`` but $c$", 1, ["$a$", "$$b$$"]),
        ("```\n$a$\n$$b$$\n```\n\n~~~python\n$c$\n~~~\n\n    $d$\n\n$e$", 1, ["$a$", "$$b$$", "$", "$d$"]),
        ("\\begin{align} a &= b \\\\ c &= d \\end{align}", 1, []),
        ("costs \\$5", 0, ["costs $5"]),
        ("$\\left( x$, $\\unknown x$, $a_b_c < 1$, $$x^$$, $y$", 1,
         ["<code>$\\left( x$</code>", "<code>$\\unknown x$</code>", "<code>$a_b_c &lt; 1$</code>", "<code>$$x^$$</code>"]),
    ],
)  # fmt: skip
def test_formulas_become_mathml_and_code_stays(home, source, formulas, kept):
    home("01_data", source, output(text_markdown=source, text_plain="x"))
    home.write()
    for part in report.markdown(source), home.page("01_data").split("show")[1]:
        assert part.count("<math") == part.count("</math>") == formulas
        assert [text for text in kept if text not in part] == []
    assert 'display="block"' in report.markdown(
        "$$ x $$"
    ) and 'display="inline"' in report.markdown("$x$")


def test_heading_with_a_formula_stays_a_heading():
    assert re.fullmatch(
        r"<h2>The pair <math.*</math></h2>\n", report.markdown("## The pair $(y, x)$")
    )


def test_progress_bars_show_their_last_state(home):
    pieces = ["\r  0%| | 0/9", "\r 50%|x| 4/9", "\r100%|xx| 9/9", "\n", "end\n"]
    home(
        "01_data",
        new_code_cell(
            "train()", outputs=[new_output("stream", name="stderr", text=text) for text in pieces]
        ),
    )
    home.write()
    assert re.search(r"<pre>\s*100%\|xx\| 9/9\nend\n</pre>", home.page("01_data"))
    assert "50%" not in home.page("01_data")


@pytest.mark.parametrize(
    "text, shown",
    [("0.123456", "0.1235"), ("23.991486", "23.99"), ("12345.678", "12350"), ("9999.96", "10000"), ("-1e-07", "-1e-07"),
     ("1.0", "1"), ("123456", "123456"), ("007", "007"), ("3.5e20", "3.5e+20"), ("inf", "inf"), ("", ""), ("0_1", "0_1")],
)  # fmt: skip
def test_numbers_for_display(text, shown):
    assert report.number(text) == shown


def test_tables(home):
    home("01_data", "# 01")
    tables = home.path / "tables"
    put(tables / "01_data_40.csv", "n,x\n" + "".join(f"{i},{i}.123456\n" for i in range(40)))
    put(tables / "01_data_41.csv", "n\n" + "".join(f"{i}\n" for i in range(41)))
    put(tables / "01_data_mixed.csv", 'name,0.123456\n0.123456,<b>\nx,"a,b"\ny\n1,2,3\n')
    put(tables / "01_data_none.csv", "")
    index = home.write()
    cut = dict(
        re.findall(r"<figcaption>01_data_(\w+)\.csv</figcaption>(.*?)</figure>", index, re.S)
    )
    assert (
        cut["40"].count("<tr>") == 41
        and "rows in" not in cut["40"]
        and '<td class="number">39.12</td>' in cut["40"]
    )
    assert cut["41"].count("<tr>") == 1 + report.HEAD and "41 rows in 01_data_41.csv" in cut["41"]
    assert re.findall("<t[dh](?: class=\"number\")?>(.*?)</t[dh]>", cut["mixed"]) == [
        "name", "0.123456", "", "0.123456", "&lt;b&gt;", "", "x", "a,b", "", "y", "", "", "1", "2", "3",
    ]  # fmt: skip
    assert "<td" not in cut["none"]

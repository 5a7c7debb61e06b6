"""Tables: files that are known byte for byte, and what a reader must not be told."""

import re

import numpy as np
import pandas as pd
import pytest
from test_statistics import made, random

from rr.evaluate import sentences, statistics, tables
from rr.files import ROOT

GOLDEN = ROOT / "tests" / "golden"
METADATA = {
    "data": "embedded",
    "protocol": "paired",
    "preset": "mini",
    "size": 80,
    "n": 2,
    "seeds": 3,
}


def three_seeds():
    """Two configurations with three seeds and two images: `b` is 1 dB better than `a` in each."""
    return {
        "do nothing": [made([18, 20], 0.5, np.nan)],
        "population mean": [made([24, 26], 0.125, np.nan)],
        "a": [made([20, 22]), made([22, 24]), made([21, 23])],
        "b": [made([21, 23]), made([23, 25], 0.375), made([22, 24])],
    }


def one_seed():
    return {name: group[:1] for name, group in three_seeds().items()}


def test_numbers_as_strings():
    table = pd.DataFrame({"psnr": [20.126, 8.0], "ssim": [-0.12345, np.nan]})
    text = tables.text(table)
    assert text["psnr"].tolist() == ["20.13", "8.00"] and text["ssim"].tolist() == [
        "−0.1235",
        "n/a",
    ]
    assert tables.interval(1, -2, 3) == "+1.00 [−2.00, +3.00]"
    assert tables.interval(np.nan, np.nan, np.nan) == "n/a"


def test_golden_files_byte_for_byte(tmp_path):
    study = statistics.study(three_seeds(), "a")
    caption = tables.caption("Two 100 % made_up rows.", study, METADATA, "a")
    tables.write(tmp_path, "study", study, tables.shown(study, "a"), caption)
    for suffix in ("csv", "md", "tex"):
        expected = (GOLDEN / f"study.{suffix}").read_bytes()
        assert (tmp_path / f"study.{suffix}").read_bytes() == expected, suffix


def test_bold_is_the_best_configuration_and_no_baseline():
    study = statistics.study(three_seeds(), "a")
    shown = tables.shown(study, "a")
    assert tables.best(study, "psnr") == ["b"] and tables.best(study, "lpips") == ["a"]
    bold = shown.map(lambda cell: cell.startswith("**"))
    assert bold["PSNR / dB"].tolist() == [False, False, False, True]
    assert bold["LPIPS"].tolist() == [False, False, True, False]
    assert shown.loc["b", "PSNR / dB"] == "**23.00 ± 1.00**"
    assert shown.loc["b", "PSNR − a"] == "+1.00 [+1.00, +1.00]"
    caption = tables.caption("Rows.", study, METADATA, "a")
    assert (
        "every trained row has a worse mean than: population mean in PSNR, SSIM, LPIPS" in caption
    )
    assert "do nothing" not in caption and "(1 of them with a known disc)" in caption


def test_one_training_has_no_bold_and_no_better():
    """A table of single trainings ranks its rows (D1)."""
    scores = one_seed()
    study = statistics.study(scores, "a")
    text = tables.markdown(tables.shown(study, "a"))
    caption = tables.caption("Rows.", study, METADATA | {"seeds": 1}, "a")
    texts = [text, sentences.findings(scores, "a"), sentences.conclusion(scores, study, "a")]
    assert not any("**" in part or "better" in part or "best" in part for part in texts)
    assert "one training per configuration: not tested" in caption and "±" not in text


def test_a_collapsed_row_is_marked_in_every_file_and_is_never_the_best(tmp_path):
    """A table ranks copies of a constant (D2)."""
    scores = three_seeds()
    scores["b"][1] = scores["b"][1].assign(variation=0.25)
    study = statistics.study(scores, "a")
    caption = tables.caption("Rows.", study, METADATA, "a")
    tables.write(tmp_path, "study", study, tables.shown(study, "a"), caption)
    csv = pd.read_csv(tmp_path / "study.csv")
    assert csv.groupby("method")["collapsed"].unique().map(list).to_dict() == {
        "do nothing": [False], "population mean": [False], "a": [False], "b": [True]
    }  # fmt: skip
    for name in ("study.md", "study.tex"):
        text = (tmp_path / name).read_text()
        (row,) = [line for line in text.splitlines() if "b (collapsed)" in line and "0.58" in line]
        assert "**" not in row and "textbf" not in row
        assert "These rows are collapsed: b." in text
    assert tables.best(study, "psnr") == ["a"] and tables.above(study, "lpips") != []
    conclusion = sentences.conclusion(scores, study, "a")
    assert "PSNR: a" in conclusion and f"{statistics.NO_VARIATION}: b" in conclusion
    assert sentences.spread_sentence(scores, "psnr").endswith(f": {statistics.NO_VARIATION}.")
    few = statistics.study({name: group[1:2] or group for name, group in scores.items()}, "a")
    assert "collapsed: b." in tables.trainings(few) and "not tested" in tables.trainings(few)


def test_under_a_table_stands_what_another_training_changes():
    """Means of three seeds with a standard deviation of 1 dB, by hand."""
    scores = three_seeds()
    two = {name: group[:2] for name, group in scores.items()}
    one, few, all_seeds = (
        tables.trainings(statistics.study(group, "a")) for group in (one_seed(), two, scores)
    )
    assert all_seeds == "From training to training, PSNR has a standard deviation of 1.00 dB."
    assert few.startswith("From training to training, PSNR has a standard deviation of 1.41 dB.")
    assert "2 trainings per configuration: not tested" in few
    assert "one training per configuration: not tested" in one and "deviation" not in one


def test_ties_in_the_shown_digits_are_all_bold():
    scores = three_seeds() | {
        "a": [made([20, 22.001])] * 3,
        "b": [made([20, 22.004])] * 3,
        "c": [made([20, 21])] * 3,
    }
    study = statistics.study(scores, "a")
    assert tables.best(study, "psnr") == ["a", "b"]
    assert tables.above(study, "psnr") == ["population mean"]
    cells = tables.shown(study, "a")["PSNR / dB"].tolist()[2:]
    assert cells == ["**21.00 ± 0.00**", "**21.00 ± 0.00**", "20.50 ± 0.00"]


def test_not_available_is_never_bold():
    scores = {
        name: [t.assign(lpips=np.nan) for t in group] for name, group in three_seeds().items()
    }
    study = statistics.study(scores, "a")
    assert tables.best(study, "lpips") == tables.above(study, "lpips") == []
    assert set(tables.shown(study, "a")["LPIPS"]) == {"n/a"}
    assert "* LPIPS: n/a." in sentences.findings(scores, "a")


def test_sentences_name_who_is_better_and_what_the_seeds_can_say():
    scores = {"do nothing": random(-3, 1), "a": random(0, start=10), "b": random(2, start=20)}
    scores["c"] = random(0.001, start=30)
    study = statistics.study(scores, "a")
    text = sentences.conclusion(scores, study, "a")
    assert "compared with a, better: b; worse: do nothing; not distinguishable: c" in text
    assert "There are 3 seeds" in text and "PSNR: b" in text
    assert "more than chance explains" in sentences.spread_sentence(scores, "psnr")
    assert f"({statistics.needed(5, 7):.1f} with 5 seeds)" in sentences.certainty(3, 7)
    assert "with 10 seeds" not in sentences.certainty(10, 7)


def test_latex_is_escaped_and_balanced():
    table = pd.DataFrame(
        {"a_b & 100 %": ["**−1.0 ± 0.2**", "~#{}$"]}, index=["unet++", "\\x^2 <–>"]
    )
    text = tables.latex(table, "50 % of_it", "x_y")
    assert r"\textbf{$-$1.0 $\pm$ 0.2}" in text and r"a\_b \& 100 \%" in text
    assert r"\caption{50 \% of\_it}" in text and r"\label{tab:x_y}" in text
    for begin in re.findall(r"\\begin\{(.*?)\}", text):
        assert text.count(rf"\begin{{{begin}}}") == text.count(rf"\end{{{begin}}}") == 1
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")


def test_markdown_keeps_the_cells():
    table = pd.DataFrame({"PSNR": ["1.00", "**2.00**"]}, index=["a", "b"])
    assert [cell.strip() for cell in tables.markdown(table).splitlines()[-1].split("|")[1:-1]] == [
        "b",
        "**2.00**",
    ]


def test_an_answer_is_the_verdict_in_words():
    scores = {"a": 20.0, "b": 21.5}
    groups = {
        name: [pd.DataFrame({"psnr": [mean, mean + 1, mean + 2], "variation": 1}) for _ in range(3)]
        for name, mean in scores.items()
    }
    better = statistics.compare(groups["b"], groups["a"], "psnr")
    row = sentences.answer(1, "b over a", better)
    assert row["answer"] == "yes" and row["difference"] == pytest.approx(1.5)
    assert sentences.answers([row]) == "b over a: yes, +1.50 [+1.50, +1.50] dB."
    worse = statistics.compare(groups["a"], groups["b"], "psnr")
    assert sentences.answer(1, "a over b", worse)["answer"] == "no, worse"
    assert sentences.answer(1, "a over b", worse, {"worse": "a loss"})["answer"] == "a loss"
    same = statistics.compare(groups["a"], groups["a"], "psnr")
    assert sentences.answer(1, "same", same)["answer"] == statistics.UNCLEAR

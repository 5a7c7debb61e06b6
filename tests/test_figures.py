"""Figures are saved twice, byte by byte the same on a second run, and show what they are given."""

import numpy as np
import pandas as pd
import torch

from rr import figures
from rr.readability import curves, report


def images(n):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def judged():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 4))
    return labels, np.clip(labels * 0.4 + rng.random((50, 4)) * 0.6, 0, 1)


def made():
    labels, p = judged()
    steps = [(t, images(1), images(1)) for t in (3, 2, 1, 0)]
    history = pd.DataFrame({"step": range(20), "loss": np.linspace(1, 0, 20), "val_loss": [np.nan] * 19 + [0.1]})
    scores = pd.DataFrame(
        [
            {"method": m, "metric": k, "mean": v, "low": v - 1, "high": v + 1}
            for m, k, v in (("a", "psnr", 20.0), ("b", "psnr", np.inf), ("a", "lpips", np.nan), ("b", "lpips", np.nan))
        ]
    )
    return {
        "grid": figures.grid({"x": images(3), "y": images(2)}, ["1", "2", "3"]),
        "sheet": figures.sheet(images(7), columns=3),
        "confusion": figures.confusion(report(labels, p)),
        "roc_pr": figures.roc_pr(curves(labels, p), report(labels, p)),
        "learning": figures.learning(history),
        "attention": figures.attention(images(1)[0], torch.full((2, 4, 4), 0.25), (2, 2), [0, 3]),
        "lines": figures.lines(pd.DataFrame({"t": [0, 1, 0, 1], "v": [0, 1, 1, 0], "kind": list("aabb")}), "t", "v", "kind"),
        "bars": figures.bars(scores, ["psnr", "lpips"]),
        "pipeline": figures.pipeline(images(1)[0], steps, images(1)[0], torch.rand(4), torch.rand(4), images(1)[0]),
    }  # fmt: skip


def test_every_panel_is_written_twice_byte_by_byte_the_same(tmp_path):
    torch.manual_seed(0)
    first = made()
    torch.manual_seed(0)
    second = made()
    for name in first:
        figures.save(first[name], tmp_path / "1", name)
        figures.save(second[name], tmp_path / "2", name)
        for suffix in ("png", "pdf"):
            a, b = ((tmp_path / n / f"{name}.{suffix}").read_bytes() for n in "12")
            assert a == b and len(a) > 2000, (name, suffix)


def test_confusion_shows_the_counts_of_the_report():
    labels, p = judged()
    table = report(labels, p)
    shown = [text.get_text() for text in figures.confusion(table).axes[1].texts]
    row = table.iloc[1]
    assert shown == [str(row[key]) for key in ("tn", "fp", "fn", "tp")]


def test_missing_metrics_are_marked_and_infinite_ones_have_no_bar():
    figure = made()["bars"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["n/a"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths[0] == 20 and np.isnan(widths[1])

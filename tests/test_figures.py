"""Figures are saved twice, byte by byte the same on a second run, and show what they are given."""

import numpy as np
import pandas as pd
import torch

from rr.evaluate import figures
from rr.evaluate.classification import curves, reliability, report


def images(n):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def judged():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 4))
    return labels, np.clip(labels * 0.4 + rng.random((50, 4)) * 0.6, 0, 1)


def study():
    """A rung, the reference and two rows that are 1 and -2 dB from it; two seeds, 0.5 dB to either side."""
    means = {"do nothing": 18.0, "vae": 20.0, "unet": 21.0, "unet++": 18.0}
    table = pd.DataFrame([
        {"method": m, "metric": "psnr", "mean": v, "low": v - 1, "high": v + 1,
         "difference": v - 20, "difference_low": v - 20.25, "difference_high": v - 19.75}
        for m, v in means.items()
    ])  # fmt: skip
    seeds = [
        {"method": m, "seed": s, "metric": "psnr", "mean": v + s - 0.5}
        for m, v in means.items()
        for s in (0, 1)
    ]
    seeds[-1]["mean"] += (
        0.25  # the second seed's unet++ alone: what a difference within seeds shows
    )
    return table, pd.DataFrame(seeds)


def gains():
    columns = pd.MultiIndex.from_tuples([("blur", 1 / 3), ("blur", 1.0), ("haze", 1.0)])
    return pd.DataFrame([[1.0, 2.0, -30.0], [0.0, -0.5, 3.0]], index=["a", "b"], columns=columns)


def fooled():
    """Two judges, two tricks: value, low, high."""
    rows = [
        ("one", "a", 0.0, 0.2),
        ("one", "b", 0.5, 0.7),
        ("two", "a", 0.25, 0.5),
        ("two", "b", 1.0, 1.0),
    ]
    return pd.DataFrame([{"judge": judge, "method": method, "passed": value, "passed_low": value / 2, "passed_high": high}
                         for judge, method, value, high in rows])  # fmt: skip


def made():
    labels, p = judged()
    steps = [(t, images(1), images(1)) for t in (3, 2, 1, 0)]
    history = pd.DataFrame(
        {"step": range(20), "loss": np.linspace(1, 0, 20), "val_loss": [np.nan] * 19 + [0.1]}
    )
    scores = pd.DataFrame(
        [
            {"method": m, "metric": k, "mean": v, "low": v - 1, "high": v + 1}
            for m, k, v in (
                ("a", "psnr", 20.0),
                ("b", "psnr", np.inf),
                ("a", "lpips", np.nan),
                ("b", "lpips", np.nan),
            )
        ]
    )
    return {
        "grid": figures.grid({"x": images(3), "y": images(2)}, ["1", "2", "3"]),
        "sheet": figures.sheet(images(7), columns=3),
        "confusion": plots.confusion(report(labels, p)),
        "roc_pr": plots.roc_pr(curves(labels, p), report(labels, p)),
        "learning": plots.learning(history),
        "attention": figures.attention(images(1)[0], torch.full((2, 4, 4), 0.25), (2, 2), [0, 3]),
        "lines": plots.lines(pd.DataFrame({"t": [0, 1, 0, 1], "v": [0, 1, 1, 0], "kind": list("aabb")}), "t", "v", "kind"),
        "bars": plots.bars(scores, ["psnr", "lpips"]),
        "study": plots.bars(study()[0], ["psnr"], baselines=["do nothing"], seeds=study()[1], reference="vae"),
        "bytes": figures.grid({"eye": [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)]}, ["0", "255"]),
        "reliability": plots.reliability({"one": reliability(labels, p), "two": reliability(labels, p**2)}),
        "shares": plots.shares(fooled(), ["passed"]),
        "heat": plots.heat(gains(), "dB", 10),
        "pipeline": figures.pipeline(images(1)[0], steps, images(1)[0], torch.rand(4), torch.rand(4), images(1)[0]),
    }  # fmt: skip


def test_every_panel_is_written_twice_byte_by_byte_the_same(tmp_path):
    for time in "12":
        torch.manual_seed(0)
        drawn = made()
        for name, figure in drawn.items():
            figures.save(figure, tmp_path / time, name)
    names = {path.stem for path in (tmp_path / "1").iterdir()}
    assert names == set(drawn)
    for name in names:
        for suffix in ("png", "pdf"):
            a, b = ((tmp_path / n / f"{name}.{suffix}").read_bytes() for n in "12")
            assert a == b and len(a) > 2000, (name, suffix)


def test_confusion_shows_the_counts_of_the_report():
    labels, p = judged()
    table = report(labels, p)
    shown = [text.get_text() for text in plots.confusion(table).axes[1].texts]
    row = table.iloc[1]
    assert shown == [str(row[key]) for key in ("tn", "fp", "fn", "tp")]


def test_missing_metrics_are_marked_and_infinite_ones_have_no_bar():
    figure = made()["bars"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["n/a"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths[0] == 20 and np.isnan(widths[1])


def test_a_study_shows_its_seeds_and_the_paired_differences():
    table, seeds = study()
    means, differences = plots.bars(
        table, ["psnr"], baselines=["do nothing"], seeds=seeds, reference="vae"
    ).axes
    assert [bar.get_width() for bar in means.patches] == [18, 20, 21, 18]
    grey, *blue = [bar.get_facecolor() for bar in means.patches]
    assert grey[0] == grey[1] == grey[2] and len(set(blue)) == 1 and blue[0] != grey
    (dots,) = [line for line in means.lines if line.get_markersize() == 2.5]
    assert (
        sorted(zip(dots.get_ydata(), dots.get_xdata()))[:2] == [("unet", 20.5), ("unet", 21.5)]
        and len(dots.get_xdata()) == 6
    )
    shown = differences.containers[0].lines[0]
    assert dict(zip(shown.get_ydata(), shown.get_xdata())) == {"unet": 1, "unet++": -2}
    (dots,) = [line for line in differences.lines if line.get_markersize() == 2.5]
    found = sorted(zip(dots.get_ydata(), dots.get_xdata()))  # to the reference of the same seed
    assert found == [("unet", 1), ("unet", 1), ("unet++", -2), ("unet++", -1.75)]


def test_bytes_and_tensors_are_the_same_picture():
    tensor = torch.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
    array = (tensor * 255).round().byte().permute(1, 2, 0).numpy()
    one, two = (axis.images[0].get_array() for axis in figures.grid({"x": [tensor, array]}).axes)
    assert np.abs(one * 255 - two).max() <= 0.5


def test_a_heat_map_names_methods_families_and_severities_and_shows_every_number():
    axis = plots.heat(gains(), "dB", 10).axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["+1.0", "+2.0", "-30.0", "+0.0", "-0.5", "+3.0", "blur", "haze"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.33", "1", "1"]
    assert [text.get_position()[0] for text in axis.texts[-2:]] == [1.0, 2.5], (
        "a family over the middle of its columns"
    )


def test_shares_stand_in_the_line_of_their_method():
    (axis,) = plots.shares(fooled(), ["passed"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    first, second = (each.lines[0] for each in axis.containers)
    assert (first.get_xdata().tolist(), second.get_xdata().tolist()) == ([0, 0.5], [0.25, 1])
    assert (first.get_ydata() < [0, 1]).all() and (second.get_ydata() > [0, 1]).all()


def test_a_reliability_diagram_has_a_panel_per_label_and_points_of_every_judge():
    labels, p = judged()
    points = reliability(labels, p)
    axes = plots.reliability({"one": points, "two": points[points.n > 3]}).axes
    assert [axis.get_title() for axis in axes] == list(points.label.unique())
    shown = axes[1].containers[0].lines[0]
    rows = points[points.label == axes[1].get_title()]
    assert (
        shown.get_xdata().tolist() == rows.predicted.tolist()
        and shown.get_ydata().tolist() == rows.observed.tolist()
    )
    assert len(axes[1].containers[1].lines[0].get_xdata()) < len(rows)


def test_a_forest_shows_every_difference_on_its_line():
    table = pd.DataFrame(
        {"label": ["a", "b"], "difference": [1.0, -2.0], "low": [0.5, -3.0], "high": [2.0, -1.0]}
    )
    one, two = plots.forest({"first": table, "second": table.iloc[:1]}).axes
    assert [label.get_text() for label in one.get_yticklabels()] == [
        "a",
        "b",
    ] and two.get_title() == "second"
    whiskers = one.collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in whiskers] == [[0.5, 2.0], [-3.0, -1.0]]
    assert one.get_ylim()[0] > one.get_ylim()[1], "the first on top"
    figures.plt.close()


def test_curves_draw_a_line_and_a_band_per_method_over_the_steps_that_there_are():
    table = pd.DataFrame(
        {"method": ["a", "a", "b"], "steps": [1, 15, 1], "mean": [20.0, 22.0, 19.0]}
    )
    table = table.assign(low=table["mean"] - 1, high=table["mean"] + 1)
    axis = plots.curves(table, "steps", "steps", levels={"nothing": 21}).axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[1, 20], [15, 22]] and len(axis.collections) == 2
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "1",
        "15",
    ] and axis.get_xscale() == "log"
    assert axis.lines[-1].get_ydata()[0] == 21
    figures.plt.close()


def test_growth_shows_every_cost_from_zero():
    table = pd.DataFrame({"images": [10, 100], "prepare_seconds": [1.0, 10.0], "epoch_seconds": [0.1, 1.0],
                          "peak_mib": [1000.0, 1001.0], "bytes": [1e9, 1e10]})  # fmt: skip
    figure = figures.growth(table)
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "seconds",
        "memory of all processes, MiB",
        "disk, GB",
    ]
    assert all(
        axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > axis.lines[0].get_ydata().max()
        for axis in figure.axes[1:]
    )
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_ydata()[-1] for line in dotted] == [
        10.0,
        1.0,
    ]  # what the first number of images says of the last

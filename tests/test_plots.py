"""Plots show the numbers of their tables. That they are saved reproducibly is in test_figures."""

import numpy as np
import pandas as pd
import pytest

from rr.evaluate import plots
from rr.evaluate.classification import curves, reliability, report


@pytest.fixture(autouse=True)
def closed():
    yield
    plots.plt.close("all")


def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 4))
    return labels, np.clip(labels * 0.4 + rng.random((50, 4)) * 0.6, 0, 1)


def study():
    """A baseline, the reference, and two rows 1 and -2 dB from it; seeds at -0.5 and 0.5 dB."""
    means = {"do nothing": 18.0, "vae": 20.0, "unet": 21.0, "unet++": 18.0}
    table = pd.DataFrame({"method": list(means), "metric": "psnr", "mean": list(means.values())})
    table["collapsed"] = table.method == "unet++"
    table = table.assign(low=table["mean"] - 1, high=table["mean"] + 1)
    table = table.assign(difference=table["mean"] - 20)
    table = table.assign(
        difference_low=table.difference - 0.25, difference_high=table.difference + 0.25
    )
    seeds = [
        {"method": method, "seed": seed, "metric": "psnr", "mean": mean + seed - 0.5}
        for method, mean in means.items()
        for seed in (0, 1)
    ]
    seeds[-1]["mean"] += 0.25  # unet++ of the second seed only
    return table, pd.DataFrame(seeds)


def gains():
    columns = pd.MultiIndex.from_tuples([("blur", 1 / 3), ("blur", 1.0), ("haze", 1.0)])
    return pd.DataFrame([[1.0, 2.0, -30.0], [0.0, -0.5, 3.0]], index=["a", "b"], columns=columns)


def fooled():
    """Shares of two tricks that pass two classifiers."""
    table = pd.DataFrame(
        {
            "classifier": ["one", "one", "two", "two"],
            "method": ["a", "b", "a", "b"],
            "passed": [0.0, 0.5, 0.25, 1.0],
            "passed_high": [0.2, 0.7, 0.5, 1.0],
        }
    )
    return table.assign(passed_low=table.passed / 2)


def without_lpips():
    table = pd.DataFrame(
        {
            "method": ["a", "b"] * 2,
            "metric": ["psnr", "psnr", "lpips", "lpips"],
            "mean": [20.0, 21.0, np.nan, np.nan],
            "collapsed": False,
        }
    )
    return table.assign(low=table["mean"] - 1, high=table["mean"] + 1)


def plotted():
    """One example of every plot."""
    labels, p = predictions()
    steps = np.arange(20)
    losses = {"loss": np.linspace(1, 0, 20), "val_loss": [np.nan] * 19 + [0.1]}
    long = pd.DataFrame({"t": [0, 1, 0, 1], "v": [0, 1, 1, 0], "kind": list("aabb")})
    table, seeds = study()
    calibration = {"one": reliability(labels, p), "two": reliability(labels, p**2)}
    compared = {"baselines": ["do nothing"], "seeds": seeds, "reference": "vae"}
    return {
        "confusion": plots.confusion(report(labels, p)),
        "roc_pr": plots.roc_pr(curves(labels, p), report(labels, p)),
        "reliability": plots.reliability(calibration),
        "shares": plots.shares(fooled(), ["passed"]),
        "learning": plots.learning(pd.DataFrame({"step": steps, **losses})),
        "lines": plots.lines(long, "t", "v", "kind"),
        "bars": plots.bars(without_lpips(), ["psnr", "lpips"]),
        "study": plots.bars(table, ["psnr"], **compared),
        "heat": plots.heat(gains(), "dB", 10),
    }


def points(container):
    return container.lines[0].get_xydata().tolist()


def test_confusion_shows_the_counts_of_the_report():
    labels, p = predictions()
    table = report(labels, p)
    texts = [text.get_text() for text in plots.confusion(table).axes[1].texts]
    assert texts == [str(table.iloc[1][key]) for key in ("tn", "fp", "fn", "tp")]


def test_curves_of_a_label_with_one_class_are_left_out():
    labels, p = predictions()
    labels[:, 2] = 1
    roc, pr = plots.roc_pr(curves(labels, p), report(labels, p)).axes
    assert len(roc.get_legend().texts) == len(pr.get_legend().texts) == 3
    rows = curves(labels, p)
    rows = rows[(rows.label == "fundus") & (rows.curve == "pr")]
    assert pr.lines[0].get_xydata().tolist() == rows[["x", "y"]].to_numpy().tolist()


def test_a_reliability_diagram_has_a_panel_per_label_and_points_of_every_classifier():
    labels, p = predictions()
    table = reliability(labels, p)
    axes = plots.reliability({"one": table, "two": table[table.n > 3]}).axes
    assert [axis.get_title() for axis in axes] == list(table.label.unique())
    rows = table[table.label == axes[1].get_title()]
    first, second = axes[1].containers
    assert points(first) == rows[["predicted", "observed"]].to_numpy().tolist()
    assert len(points(second)) < len(rows)


def test_shares_stand_in_the_line_of_their_method():
    (axis,) = plots.shares(fooled(), ["passed"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    first, second = (np.array(points(container)) for container in axis.containers)
    assert first[:, 0].tolist() == [0, 0.5] and second[:, 0].tolist() == [0.25, 1]
    assert (first[:, 1] < [0, 1]).all() and (second[:, 1] > [0, 1]).all()


def test_a_missing_metric_is_marked():
    psnr, lpips = plots.bars(without_lpips(), ["psnr", "lpips"]).axes
    assert [text.get_text() for text in lpips.texts] == ["n/a"]
    assert [bar.get_width() for bar in psnr.patches] == [20, 21]


def test_a_study_shows_its_seeds_and_the_paired_differences():
    table, seeds = study()
    means, differences = plots.bars(table, ["psnr"], ["do nothing"], seeds, "vae").axes
    assert [bar.get_width() for bar in means.patches] == [18, 20, 21, 18]
    grey, *blue = [bar.get_facecolor() for bar in means.patches]
    assert grey[0] == grey[1] == grey[2] and len(set(blue)) == 1 and blue[0] != grey
    (dots,) = [line for line in means.lines if line.get_markersize() == 2.5]
    runs = sorted(zip(dots.get_ydata(), dots.get_xdata()))
    assert runs[:2] == [("unet", 20.5), ("unet", 21.5)] and len(runs) == 6
    line = differences.containers[0].lines[0]
    assert dict(zip(line.get_ydata(), line.get_xdata())) == {"unet": 1, "unet++": -2}
    (dots,) = [line for line in differences.lines if line.get_markersize() == 2.5]
    runs = sorted(zip(dots.get_ydata(), dots.get_xdata()))  # to the reference of the same seed
    assert runs == [("unet", 1), ("unet", 1), ("unet++", -2), ("unet++", -1.75)]


def test_a_collapsed_row_is_hatched_and_named_so():
    table, seeds = study()
    axes = plots.bars(table, ["psnr"], ["do nothing"], seeds, "vae").axes
    assert [bool(bar.get_hatch()) for bar in axes[0].patches] == [False, False, False, True]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == ["do nothing", "vae", "unet", "unet++ (collapsed)"]
    assert axes[0].get_yticks().tolist() == [bar.get_y() + 0.3 for bar in axes[0].patches]


def test_a_heat_map_names_methods_families_and_severities_and_shows_every_number():
    axis = plots.heat(gains(), "dB", 10).axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["+1.0", "+2.0", "-30.0", "+0.0", "-0.5", "+3.0", "blur", "haze"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.33", "1", "1"]
    middles = [text.get_position()[0] for text in axis.texts[-2:]]
    assert middles == [1.0, 2.5]  # of the columns of a family


def test_a_forest_shows_every_difference_on_its_line():
    table = pd.DataFrame(
        {"label": ["a", "b"], "difference": [1.0, -2.0], "low": [0.5, -3.0], "high": [2.0, -1.0]}
    )
    first, second = plots.forest({"first": table, "second": table.iloc[:1]}).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert second.get_title() == "second"
    whiskers = first.collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in whiskers] == [[0.5, 2.0], [-3.0, -1.0]]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first row is on top


def test_curves_draw_a_line_and_a_band_per_method():
    table = pd.DataFrame(
        {"method": ["a", "a", "b"], "steps": [1, 15, 1], "mean": [20.0, 22.0, 19.0]}
    )
    table = table.assign(low=table["mean"] - 1, high=table["mean"] + 1)
    axis = plots.curves(table, "steps", "steps", levels={"nothing": 21}).axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[1, 20], [15, 22]]
    assert len(axis.collections) == 2 and axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "15"]
    assert axis.lines[-1].get_ydata()[0] == 21

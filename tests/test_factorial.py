"""Factorials: effects that were put in are found again, and shares add up."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from test_claims import made

from rr import studies
from rr.errors import InputError
from rr.evaluate import factorial
from rr.evaluate.factorial import trained_alike
from rr.evaluate.statistics import BETTER, NO_VARIATION, UNCLEAR, WORSE

FACTORS = {"a": (0, 1), "b": ("x", "y", "z")}


def scores_of_cells(effect, seeds=3):
    """Scores of 20 images in every cell of FACTORS; effect(a, b) in dB, noise of 0.1 dB."""
    rng, base = np.random.default_rng(0), np.random.default_rng(1).normal(20, 3, 20)

    def noisy(levels):
        psnr = base + effect(*levels) + rng.normal(0, 0.1, 20)
        return pd.DataFrame({"psnr": psnr, "variation": 0.8})

    return {levels: [noisy(levels) for _ in range(seeds)]
            for levels in product(*FACTORS.values())}  # fmt: skip


def test_main_effects_are_found_and_what_has_none_is_not_distinguishable():
    table = factorial.effects(
        scores_of_cells(lambda a, b: -3 * a + {"x": 0, "y": 0, "z": 2}[b]), FACTORS
    )
    assert table[["factor", "better", "worse"]].to_numpy().tolist() == [
        ["a", 0, 1],
        ["b", "x", "y"],
        ["b", "x", "z"],
    ]
    assert table.difference.to_numpy() == pytest.approx(
        [3, 0, -2], abs=0.1
    ) and table.verdict.tolist() == [BETTER, UNCLEAR, WORSE]
    assert (table.low <= table.difference).all() and (table.difference <= table.high).all()


def test_effects_that_rest_on_a_collapsed_cell_are_not_tested():
    cells = scores_of_cells(lambda a, b: -3 * a)
    cells[1, "z"][2]["variation"] = 0.1  # one of six cells, one of its three seeds
    verdicts = factorial.effects(cells, FACTORS).verdict.tolist()
    assert verdicts == [NO_VARIATION, UNCLEAR, NO_VARIATION]  # a; x - y; x - z
    table = factorial.attribution(cells, FACTORS, (1, "x"), (0, "z"))
    assert set(table.verdict) == {NO_VARIATION}
    elsewhere = factorial.attribution(cells, FACTORS, (1, "x"), (0, "y"))
    assert elsewhere.verdict.tolist() == [BETTER, UNCLEAR, BETTER]


@pytest.mark.parametrize("seeds", [3, 4])
def test_shares_add_up_to_the_difference_of_the_corners_and_split_an_interaction_evenly(seeds):
    cells = scores_of_cells(lambda a, b: 5 * a + (4 if a == 1 and b == "z" else 0), seeds)
    table = factorial.attribution(cells, FACTORS, (0, "x"), (1, "z"))
    assert table.factor.tolist() == ["a", "b", "all"] and table.verdict.tolist() == [BETTER] * 3
    assert table.difference.to_numpy() == pytest.approx([5 + 2, 2, 9], abs=0.1)
    corners = np.mean([(new - old).psnr.mean() for new, old in zip(cells[1, "z"], cells[0, "x"])])
    assert (
        table.difference.iloc[-1]
        == pytest.approx(corners)
        == pytest.approx(table.difference.iloc[:-1].sum())
    )
    back = factorial.attribution(cells, FACTORS, (1, "z"), (0, "x"))
    assert back.difference.to_numpy() == pytest.approx(-table.difference.to_numpy())


def test_trained_alike_are_the_cells_that_start_at_the_noised_input():
    ours = [
        table.set_index(pd.Index([f"eye{i}" for i in range(40)], name="image"))
        for table in made(25, seeds=2)
    ]
    psnr = {
        cell: 20 + place for place, cell in enumerate(product(*studies.FACTORS.values()))
    }  # another one in every cell
    cells = pd.concat(
        table.assign(image=ours[0].index, **dict(zip(studies.FACTORS, cell)), seed=seed)
        for cell, value in psnr.items() for seed, table in enumerate(made(value, seeds=2))
    )  # fmt: skip
    groups = trained_alike(cells, ours)
    assert list(groups) == ["the image", "the v", "the noise"]
    for objective in studies.FACTORS["objective"]:
        for backbone, group in zip(("vae", "unet"), groups[f"the {objective}"], strict=True):
            expected = made(psnr[backbone, objective, "noised input"], seeds=2)
            assert [table.psnr.tolist() for table in group] == [
                table.psnr.tolist() for table in expected
            ]
            assert all(table.index.equals(ours[0].index) for table in group)
    with pytest.raises(InputError, match="without `variation`; delete 10_what_matters.json"):
        trained_alike(cells.drop(columns="variation"), ours)
    with pytest.raises(
        InputError, match="vae, image, noised input, seed 2: these are not the test images"
    ):
        trained_alike(cells, [*ours, ours[0]])
    with pytest.raises(InputError, match="unet, v, noised input, seed 1"):
        other = (cells.backbone == "unet") & (cells.objective == "v") & (cells.seed == 1)
        trained_alike(cells.assign(image=cells.image.where(~other, "eye of another")), ours)

"""Which factor of a full factorial makes a difference: main effects, and shares of the difference
between two corners.

Cells are {(level of each factor): [scores per image of seed 0, 1, ...]}; factors are {name:
levels}. Nothing here needs torch.
"""

from itertools import permutations, product

import pandas as pd

from rr.errors import InputError
from rr.evaluate.statistics import compare, mean_over_seeds
from rr.studies import FACTORS

COMPARED = ("psnr", "ssim")  # of cells: no restorer is trained for LPIPS
START = FACTORS["start"][0]  # the noised input: from pure noise the chain does not see the image


def effects(cells, factors, metric="psnr"):
    """Main effects of a full factorial: factor, better, worse, and the Comparison of a factor's
    first level with another.

    cells: {(level of each factor): [scores per image of each seed]}; factors: {name: levels}. The
    difference is that of the means over all cells with one level or the other. Intervals hold for
    all rows together. A row is collapsed if one of its cells is.
    """
    rows = [
        (place, name, levels[0], level)
        for place, (name, levels) in enumerate(factors.items())
        for level in levels[1:]
    ]
    table = []
    for place, name, first, level in rows:
        a, b = (
            [
                mean_over_seeds(tables).assign(variation=_least(tables))
                for tables in zip(*_cells_at(cells, place, value), strict=True)
            ]
            for value in (first, level)
        )
        comparison = compare(a, b, metric, len(rows))
        table.append({"factor": name, "better": first, "worse": level, **comparison._asdict()})
    return pd.DataFrame(table)


def _least(tables):
    return min(table["variation"].min() for table in tables)


def _cells_at(cells, place, level):
    return [tables for levels, tables in cells.items() if levels[place] == level]


def attribution(cells, factors, worst, best, metric="psnr"):
    """The share of each factor in the difference between two corners of a factorial, and their sum:
    one row per factor.

    A factor's share is the gain of changing it from its level in `worst` to that in `best`,
    averaged over all orders in which the factors can be changed (Shapley 1953). The shares add up
    to the difference, whatever the interactions are. All rows are collapsed if one of the cells on
    the way is.
    """
    names, orders = list(factors), list(permutations(range(len(factors))))
    shares = {name: [0.0] * len(cells[tuple(worst)]) for name in names}
    for order in orders:
        levels = list(worst)
        for place in order:
            before, levels[place] = cells[tuple(levels)], best[place]
            for seed, (new, old) in enumerate(zip(cells[tuple(levels)], before, strict=True)):
                shares[names[place]][seed] += (new[metric] - old[metric]) / len(orders)
    shares["all"] = [sum(parts) for parts in zip(*shares.values())]
    least = min(_least(cells[levels]) for levels in product(*zip(worst, best)))
    table = []
    for name, share in shares.items():
        gains = [pd.DataFrame({metric: gain, "variation": least}) for gain in share]
        none = [gain.assign(**{metric: 0.0}) for gain in gains]
        comparison = compare(gains, none, metric, len(shares))
        table.append({"factor": name, **comparison._asdict()})
    return pd.DataFrame(table)


def trained_alike(cells, ours):
    """{objective: (scores of the VAE, scores of the U-Net)}, trained alike and started at START.

    cells: the table of notebook 10 with a row per image and cell of studies.FACTORS. ours: scores
    per image of each seed. Raises InputError if a cell has other images or seeds, or if an older
    version wrote the table.
    """
    if "variation" not in cells:
        raise InputError(
            "10_what_matters_per_image.csv: an older version wrote it, without `variation`; delete "
            "10_what_matters.json and run `rr reproduce` again"
        )
    cells = cells[cells.start == START]

    def of(objective, backbone, seed, images):
        rows = cells[
            cells.objective.eq(objective) & cells.backbone.eq(backbone) & cells.seed.eq(seed)
        ]
        if rows.image.tolist() != list(images):
            raise InputError(
                f"10_what_matters_per_image.csv: {backbone}, {objective}, {START}, seed {seed}: "
                "these are not the test images of notebook 06; run `rr reproduce` again"
            )
        return rows.set_index("image")[[*COMPARED, "variation"]]

    return {
        f"the {objective}": tuple(
            [of(objective, backbone, seed, table.index) for seed, table in enumerate(ours)]
            for backbone in FACTORS["backbone"]
        )
        for objective in FACTORS["objective"]
    }

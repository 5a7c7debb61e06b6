"""Compare a user's run with the reference that comes with the project, headline by headline.

The same command gives other numbers with other seeds and on other CPUs. The reference has several
trainings of each row, and its tables have their mean and standard deviation sd. Your training
agrees if it differs from the mean of n trainings by at most SPREADS sd sqrt(1 + 1/n), or by at most
OTHER_CPU.
"""

import math
from typing import NamedTuple

import pandas as pd

from rr.errors import InputError
from rr.evaluate.statistics import NOT_TESTED

# table of results/<preset>/tables: the columns that name a row, and the columns that are compared
TABLES = {
    "01_data_splits": (["split"], ["images", "fundus", "macula", "disc", "retina"]),
    "02_readability_report": (["label"], ["roc_auc"]),
    "02_readability_heldout": (["label"], ["roc_auc"]),
    "07_backbones": (["method", "metric"], ["mean"]),
    "08_extractors": (["method", "metric"], ["mean"]),
    "09_fusion": (["method", "metric"], ["mean"]),
    "12_evaluation": (["family", "method", "metric"], ["mean"]),
    "11_summary_verdicts": (["claim"], ["verdict"]),
}
# the rows that are compared; LPIPS depends on weights that a user may not have
ROWS = {"split": ["test"], "family": ["all"], "metric": ["psnr", "ssim"]}
# the largest difference that agrees; what is not listed must be equal
SPREADS = 4  # standard deviations of one training
# for trained methods; 31 trainings of an earlier preset, on two kinds of x86 machines, differed in
# PSNR by 0.65 dB at most. The other two values are our choice.
OTHER_CPU = {"psnr": 0.65, "ssim": 0.03, "roc_auc": 0.03}
UNTRAINED = {"psnr": 0.05, "ssim": 0.005}
LABELS = {"fundus": 0.02, "macula": 0.02, "disc": 0.02, "retina": 0.02}  # shares of the test images


class Headline(NamedTuple):
    """A number or a verdict; `yours` is None if the run does not have it.

    A verdict is not compared, and `agrees` is None, if one of the two runs has too few trainings.
    """

    headline: str
    reference: float | str
    yours: float | str | None
    tolerance: float
    agrees: bool | None


def compare(reference, results_dir):
    """[Headline] of all tables of the reference. Both are folders of results of one preset.

    Raises InputError if one of the two has no tables.
    """
    if not (reference / "tables").is_dir():
        raise InputError(f"{reference}: no tables; the project has no reference for this preset")
    if not (results_dir / "tables").is_dir():
        raise InputError(f"{results_dir}: no tables; `rr reproduce` makes them")
    headlines = []
    for name in TABLES:
        own = _values(results_dir, name)
        for row, (value, tolerance) in _values(reference, name).items():
            yours, _ = own.get(row, (None, 0))
            headlines.append(
                Headline(row, value, yours, tolerance, _agree(value, yours, tolerance))
            )
    return headlines


def _values(folder, name):
    """{headline: (value, tolerance)} of a table; empty if the table or a column is missing."""
    names, columns = TABLES[name]
    path = folder / "tables" / f"{name}.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if not {*names, *columns} <= {*table.columns}:
        return {}
    for column in ROWS.keys() & {*names}:
        table = table[table[column].isin(ROWS[column])]
    values = {}
    for _, row in table.iterrows():
        for column in columns:
            words = [name, *(row[key] for key in names), column]
            value = NOT_TESTED if row.get("because") == NOT_TESTED else row[column]
            if pd.notna(value):
                values[" ".join(map(str, words))] = (value, _tolerance(row, column))
    return values


def _tolerance(row, column):
    kind = row.get("metric", column)
    if kind not in OTHER_CPU:
        return LABELS.get(kind, 0)
    if not row.get("seeds", 1):
        return UNTRAINED[kind]
    if math.isnan(sd := row.get("sd", math.nan)):
        return OTHER_CPU[kind]
    return max(OTHER_CPU[kind], SPREADS * sd * math.sqrt(1 + 1 / row["seeds"]))


def _agree(reference, yours, tolerance):
    if yours is None:
        return False
    if NOT_TESTED in (reference, yours):
        return None
    if isinstance(reference, str) or isinstance(yours, str):
        return reference == yours
    return abs(reference - yours) <= tolerance


def shown(headlines):
    """The headlines as a table in text."""
    table = pd.DataFrame(headlines)
    table["agrees"] = table["agrees"].map({True: "yes", False: "NO", None: "not compared"})
    for column in ("reference", "yours", "tolerance"):
        table[column] = [_text(value) for value in table[column]]
    return table.to_string(index=False)


def _text(value):
    return value if isinstance(value, str) else "missing" if pd.isna(value) else f"{value:.4g}"

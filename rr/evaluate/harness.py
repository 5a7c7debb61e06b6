"""One harness for every restorer: the same images, the same degradations, the same scores.

Defines `evaluate`, the table of all scores with a row per image, condition, method and seed, and
what is derived from it: `summarize`, `gains` and `shown` (tables for a reader), `over_enhancement`,
`worst` and `gallery` (failures, selected by a rule). `error_uncertainty_correlation` says whether a
map of uncertainty predicts where the errors are. Images, degradations and methods are in
`rr.evaluate.inputs`.
"""

import numpy as np
import pandas as pd

from rr.errors import InputError
from rr.evaluate import downstream, statistics, tables
from rr.evaluate.classification import readable
from rr.evaluate.inputs import CONDITIONS, FULL, OPERATORS, UNDEGRADED, Condition, degraded, resize

REFERENCE = "do nothing"  # every method is compared with it
KEYS = ["image", "family", "severity", "method", "seed"]  # the other columns are scores
WORST_SHARE, WORST_LEAST = 0.05, 3  # failures shown: the worst 5 %, at least 3
UNCHANGED = 36.0  # dB: above it, an image is not changed visibly
DOWNSTREAM = {  # column of downstream.measure: (head, digits)
    "vessel_dice": ("vessels: Dice", 2),
    "vessel_cldice": ("vessels: clDice", 2),
    "vessel_precision": ("vessels: precision", 2),
    "vessel_recall": ("vessels: recall", 2),
    "disc_shift": ("shift of the disc / % of width", 1),
    "delta_e": ("colour shift (CIEDE2000)", 1),
    "sharpness": ("gradient energy, ratio", 2),
    "consistency": ("consistency / dB", 1),
}
PASSED = "passed: "  # start of a classifier's column


def evaluate(
    methods,  # {name: [method of seed 0, 1, ...]}; a method without training has one
    images,  # inputs.Images
    conditions=CONDITIONS,
    downstream_conditions=(UNDEGRADED, FULL),  # the slow scores are NaN under other conditions
    classifiers=None,  # {name: (model with .probabilities, side of its images)}
    lpips=None,  # from metrics.load_lpips; None: n/a
    seed=0,  # of the degradations
    kept=None,  # {name of a method: {}}; its restorations (seed 0) are added, {condition: x_hat}
):
    """Score every method under every condition: a row per image, and per seed.

    Columns: KEYS, those of metrics.score and of downstream.measure, and for each classifier PASSED
    and its name: 1.0 where it calls all four labels of the restoration readable. Raises InputError
    for a method that returns anything but images of the same size in [0, 1].
    """
    from tqdm import tqdm

    parts = []
    clean = downstream.structures(images.x, images.fov)
    for condition in tqdm(conditions, desc="evaluating", unit="condition"):
        y, params, A = degraded(images, condition, seed)
        for name, group in methods.items():
            for number, method in enumerate(group):
                x_hat = restored(name, method, y, images.fov, params)
                if name in (kept or {}) and number == 0:
                    kept[name][condition] = x_hat
                keys = {**condition._asdict(), "method": name, "seed": number}
                columns = [
                    pd.DataFrame({"image": images.names, **keys}),
                    images.score(x_hat, lpips).reset_index(drop=True),
                ]
                if condition in downstream_conditions:
                    columns.append(
                        downstream.measure(images.x, x_hat, y, images.fov, images.disc, A, clean)
                    )
                    for classifier, (model, size) in (classifiers or {}).items():
                        columns.append(
                            pd.DataFrame({PASSED + classifier: passed(x_hat, model, size)})
                        )
                parts.append(pd.concat(columns, axis=1))
    return pd.concat(parts, ignore_index=True)


def restored(name, method, y, fov, params):
    """The restoration of y by a method, which gets `params` only if its name contains "known".

    Raises InputError unless the result is finite, in [0, 1] and of the same shape.
    """
    x_hat = method(y.clone(), fov, params if "known" in name else None)
    if x_hat.shape != y.shape:
        raise InputError(
            f"method {name!r}: images {tuple(y.shape)} came back as {tuple(x_hat.shape)}; "
            "return the same shape"
        )
    if not (x_hat.amin() >= 0 and x_hat.amax() <= 1):  # true for NaN as well
        raise InputError(
            f"method {name!r}: values from {x_hat.amin():.3g} to {x_hat.amax():.3g}; "
            "return finite images in [0, 1]"
        )
    return x_hat.float().cpu()


def passed(x, model, size):
    """1.0 where a classifier of images of side `size` calls all four labels readable: (N,)."""
    return readable(model.probabilities(resize(x, size))).astype(float)


# ---------------------------------------------------------------------------- tables for a reader


def summarize(table, by=("family",), only=None, reference=REFERENCE):
    """The table of statistics.study for each group of `evaluate`'s rows.

    by: columns that define the groups. Over other columns (the severities) every image is averaged
    first, so that the intervals are over images. only: metrics, all by default. The interval of
    a share (PASSED) is Wilson's. Raises InputError if `reference` was not evaluated.
    """
    if reference not in set(table["method"]):
        raise InputError(f"evaluation: no method {reference!r} to compare with; evaluate it, too")
    metrics = list(only or table.columns.drop(KEYS))
    columns = list(dict.fromkeys([*metrics, "variation"]))  # says which rows are collapsed
    parts = []
    for key, group in table.groupby(list(by), sort=False):
        scores = {
            method: [
                run.groupby("image", sort=False)[columns].mean() for _, run in rows.groupby("seed")
            ]
            for method, rows in group.groupby("method", sort=False)
        }
        study = statistics.study(scores, reference)
        for i in study.index[study.metric.str.startswith(PASSED) & (study.n > 0)]:
            study.loc[i, ["low", "high"]] = statistics.wilson(study["mean"][i], study.n[i])
        parts.append(study[study.metric.isin(metrics)].assign(**dict(zip(by, key))))
    summary = pd.concat(parts, ignore_index=True)
    return summary[[*by, *summary.columns.drop(list(by))]]


def gains(summary, metric):
    """Methods x families as strings: the mean of "do nothing", and for other methods the paired
    difference to it with its interval, ± the standard deviation over seeds.
    """
    head, digits = tables.HEADS[metric], statistics.DIGITS[metric]
    rows = summary[summary.metric == metric].set_index(["method", "family"])
    methods = list(dict.fromkeys(summary.method))
    table = pd.DataFrame(index=methods)
    for family in dict.fromkeys(rows.index.get_level_values("family")):
        cells = []
        for row in rows.xs(family, level="family").loc[methods].itertuples():
            ends = row.difference, row.difference_low, row.difference_high
            difference = tables.interval(*ends, digits)
            difference += tables.plus_minus(row.difference_sd, digits)
            cells.append(f"{row.mean:.{digits}f}" if row.Index == REFERENCE else difference)
        table[family] = cells
    return table.rename_axis(columns=head)


def shown(summary, columns):
    """Methods x columns as strings: means with intervals, ± the standard deviation over seeds, and
    the variation; columns: {metric: (head, digits)}.
    """
    methods = list(dict.fromkeys(summary.method))
    table = pd.DataFrame(index=methods)
    for metric, (head, digits) in columns.items():
        rows = summary[summary.metric == metric].set_index("method").loc[methods]
        means = rows[["mean", "low", "high"]].to_numpy()
        table[head] = [tables.interval(*row, digits, sign="") for row in means]
        table[head] += [tables.plus_minus(sd, digits) for sd in rows.sd]
    return table.assign(variation=tables.variation(summary))


def over_enhancement(table):
    """What each method does to undegraded images, one row per method.

    psnr: median over images and seeds of the PSNR to the image itself. changed, low, high: share of
    images below UNCHANGED dB, with Wilson's 95 % interval.
    """
    rows = {}
    for method, group in table[table.family == UNDEGRADED.family].groupby("method", sort=False):
        changed = (group.psnr < UNCHANGED).groupby(group.image).mean()
        low, high = statistics.wilson(changed.mean(), len(changed))
        rows[method] = (group.psnr.median(), changed.mean(), low, high)
    return pd.DataFrame.from_dict(rows, "index", columns=["psnr", "changed", "low", "high"])


# ---------------------------------------------------------------------------------- single images


def worst(table, method):
    """The rows (seed 0) of degraded images where `method` loses most against "do nothing" in PSNR.

    In each family, these are the worst 5 % of all images and severities, rounded up, and at least
    3, the worst first. The column `difference` is added.
    """
    table = table[(table.seed == 0) & (table.family != UNDEGRADED.family)]
    own, base = (table[table.method == name].set_index(KEYS[:3]) for name in (method, REFERENCE))
    rows = own.assign(difference=own.psnr - base.psnr).reset_index()
    rows = rows.sort_values("difference", kind="stable")
    groups = {family: group for family, group in rows.groupby("family")}
    kept = [
        groups[family].head(max(WORST_LEAST, int(np.ceil(WORST_SHARE * len(groups[family])))))
        for family in OPERATORS
        if family in groups
    ]
    return pd.concat(kept, ignore_index=True)


def gallery(rows, restorations, images, seed=0):
    """{family: [input, output, reference, input, ...]} for the rows of `worst`.

    restorations: those that `evaluate` kept of the method.
    """
    triples = {}
    for condition, group in rows.groupby(["family", "severity"], sort=False):
        y, _, _ = degraded(images, Condition(*condition), seed)
        x_hat = restorations[condition]  # a Condition is a tuple
        for place, name in group["image"].items():
            i = images.names.index(name)
            triples[place] = [y[i], x_hat[i], images.x[i]]
    return {
        family: [image for place in group.index for image in triples[place]]
        for family, group in rows.groupby("family", sort=False)
    }


def error_uncertainty_correlation(sd, x_hat, x, fov):
    """Spearman's rank correlation of standard deviation and absolute error of the pixels in the
    field of view, per image: (N,).

    sd, x_hat and x are (N, 3, H, W) and are averaged over the channels. The correlation is 1 if the
    map orders the pixels by their error, 0 if it has no information, and NaN if it is constant.
    """
    from scipy.stats import spearmanr

    correlations = []
    for spread, error, mask in zip(sd.mean(1), (x_hat - x).abs().mean(1), fov[:, 0]):
        spread, error = (image[mask].double().cpu().numpy() for image in (spread, error))
        constant = np.ptp(spread) == 0 or np.ptp(error) == 0
        correlations.append(np.nan if constant else spearmanr(spread, error).statistic)
    return np.array(correlations)

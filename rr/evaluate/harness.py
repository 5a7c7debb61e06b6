"""One harness for every restorer: the same images, the same degradations, the same scores.

    method(y, fov, params) -> x_hat

is all that a method is: degraded images (N, 3, H, W) in [0, 1] and their fields of view in, restored images of the same
size out. `params` are the parameters of the degradation for a method that says so in its name ("known"), None for others.

Defines the degradations (OPERATORS, CONDITIONS, `degraded`), the images (`test_images`, `photographs`), methods that know
nothing (`know_nothing`) or come from a trained model (`trained`, `at_size`); `evaluate`, the table of all scores, one row
per image, condition, method and seed; and what is read off it: `summarize`, `gains` (for a reader), `over_enhancement`,
`worst` and `gallery` (failures, picked by rule); `certain_of`, whether a map of uncertainty knows where the errors are.
"""

from fnmatch import fnmatch
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from rr.data import degrade, haze, sources
from rr.data.packing import dhash, near_duplicates
from rr.data.photo import fov_mask, to_tensor
from rr.errors import InputError, choose
from rr.evaluate import downstream, metrics, statistics, tables
from rr.evaluate.classification import readable
from rr.models.restorer import RetinaRegen

REFERENCE = "do nothing"  # what every method is compared with
KEYS = [
    "image",
    "family",
    "severity",
    "method",
    "seed",
]  # columns that say whose a row is; the others are scores
SEVERITIES = (1 / 3, 2 / 3, 1.0)
SHARE, LEAST = 0.05, 3  # of the failure gallery: the worst 5 %, at least 3
UNCHANGED = 36.0  # dB: an image that comes back above it was, to the eye, left alone
ROUNDING = 58.9  # dB: error of an image that is stored with 8 bits, 10 log10(12 x 255^2); means count no PSNR above it
READING = {  # what a reader uses, from rr.downstream: column: (head, digits)
    "vessel_dice": ("vessels: Dice", 2),
    "vessel_cldice": ("clDice", 2),
    "vessel_precision": ("true ones (precision)", 2),
    "vessel_recall": ("kept ones (recall)", 2),
    "disc_shift": ("disc moved / % of width", 1),
    "delta_e": ("colour shift (CIEDE2000)", 1),
    "sharpness": ("gradient energy, ratio", 2),
    "consistency": ("consistency / dB", 1),
}
PASSED = "passed: "  # head of a judge's column


# ------------------------------------------------------------------------------------------------------------ images


class Images(NamedTuple):
    """Clean images to be degraded and restored."""

    names: list  # N
    x: Tensor  # (N, 3, H, W) in [0, 1], black outside of fov
    fov: Tensor  # (N, 1, H, W) bool
    disc: Tensor  # (N, 3): x, y, radius in fractions of the width; NaN where unknown


def test_images(packed, limit):
    """The first `limit` reference images of a packed data set's test split, as Images."""
    rows = packed.references("test")[:limit]
    fov = packed.fov(rows)
    return Images(
        packed.table["name"].iloc[rows].tolist(), packed.batch(rows) * fov, fov, packed.disc(rows)
    )


def photographs(folder, size, names="*", apart_from=None):
    """Photographs of a folder and its subfolders whose names match a pattern, cropped to size x size, as Images.

    names: with the wildcards * ? [1-5]; several patterns are separated by commas. apart_from: Images of the same size;
    near-duplicates of these (same photograph, resized or compressed again) are left out. Discs are unknown. Raises
    InputError for a missing folder, an unreadable photograph, and if no photograph is left.
    """
    source = sources.folder(folder)
    patterns = [each.strip() for each in names.split(",")]
    rows = [
        i
        for i, name in enumerate(source.table["name"])
        if any(fnmatch(name, each) for each in patterns)
    ]
    made = [source.image(i, size) for i in rows]
    if apart_from is not None and made:
        others = (apart_from.x * 255).round().byte().permute(0, 2, 3, 1).numpy()
        groups = near_duplicates(
            np.stack([dhash(image) for image in (*others, *(image for image, _ in made))])
        )
        new = ~np.isin(groups[len(others) :], groups[: len(others)])
        rows, made = (
            [i for i, keep in zip(rows, new) if keep],
            [each for each, keep in zip(made, new) if keep],
        )
    if not rows:
        raise InputError(
            f"{folder}: no photograph matches {names!r}"
            + (" that is not a test image" if apart_from else "")
        )
    fov = fov_mask(
        torch.tensor(
            [[row[f"fov_{key}"] for key in ("x", "y", "r", "top", "bottom")] for _, row in made]
        ),
        size,
    )
    x = torch.cat([to_tensor(image) for image, _ in made]) * fov
    return Images(
        source.table["name"].iloc[rows].tolist(), x, fov, torch.full((len(x), 3), torch.nan)
    )


# ------------------------------------------------------------------------------------------------------ degradations


def _cofe(families, x, fov, severity, generator):
    params = degrade.sample(len(x), generator, families, severity)
    return params, partial(degrade.apply, params=params, fov=fov)


def _mild_blur(x, fov, severity, generator):
    params = degrade.mild_blur(degrade.sample(len(x), generator, ("blur",), severity), generator)
    return params, partial(degrade.apply, params=params, fov=fov)


def _haze(x, fov, severity, generator):
    params = haze.sample(len(x), generator, severity)
    return params, partial(haze.apply, params=params, fov=fov)


OPERATORS = {  # family: function (x, fov, severity, generator) -> (params, A)
    "illumination": partial(_cofe, ("illumination",)),
    "blur": partial(_cofe, ("blur",)),
    "mild blur": _mild_blur,
    "spots": partial(_cofe, ("spots",)),
    "all": partial(_cofe, degrade.FAMILIES),
    "haze": _haze,  # no training draws it
}


class Condition(NamedTuple):
    family: str  # a key of OPERATORS, or "undegraded"
    severity: float  # in [0, 1]


UNDEGRADED = Condition("undegraded", 0.0)
FULL = Condition("all", 1.0)
CONDITIONS = (
    UNDEGRADED,
    *(Condition(family, severity) for family in OPERATORS for severity in SEVERITIES),
)
CLOSELY = (UNDEGRADED, FULL)  # judges and downstream measures take longest


def degraded(images, condition, seed=0):
    """(y, params, A) of a condition: y = A(x), A a callable on images (N, 3, H, W).

    Whatever the method, an image meets the same degradation; and at every severity of a family the same one, stronger.
    Raises InputError for an unknown family.
    """
    if condition.family == UNDEGRADED.family:
        return (
            images.x,
            degrade.sample(len(images.x), torch.Generator().manual_seed(seed), (), 0.0),
            torch.clone,
        )
    operator = choose("degradation", condition.family, OPERATORS)
    params, A = operator(
        images.x, images.fov, condition.severity, torch.Generator().manual_seed(seed)
    )
    return A(images.x), params, A


# ----------------------------------------------------------------------------------------------------------- methods


def know_nothing(others, seed=0):
    """{name: method}: answers that do not look at the image at all, the lowest rungs of the ladder.

    Noise is Gaussian (mean 1/2, standard deviation 1/4, clipped); mid-grey is 1/2, both over the whole frame. another eye: a
    photograph of `others` (M, 3, H, W), training images of the same size, drawn per image.
    """

    def noise(y, fov, params):
        return (
            0.5 + 0.25 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
        ).clamp(0, 1)

    def another(y, fov, params):
        return others[
            torch.randint(len(others), (len(y),), generator=torch.Generator().manual_seed(seed))
        ]

    return {
        "noise": noise,
        "black": lambda y, fov, params: torch.zeros_like(y),
        "mid-grey": lambda y, fov, params: torch.full_like(y, 0.5),
        "another eye": another,
    }


def trained(model, seed=0, steps=None):
    """A trained restorer (a module with `.restore`) as a method, its seed bound: deterministic, results on the CPU.

    seed: None for a model that needs no generator; steps: None for the model's own number.
    """
    words = {} if steps is None else {"steps": steps}
    device = next(model.parameters()).device

    def method(y, fov, params):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return model.restore(y.to(device), fov.to(device), generator, **words).float().cpu()

    return method


def screened(classifier, model, seed=0):
    """The paper's whole method (2.1): what the classifier calls readable, or no fundus, is left alone."""
    regen = RetinaRegen(classifier, model)

    def method(y, fov, params):
        device = next(model.parameters()).device
        return regen(y.to(device), fov.to(device), seed).image.float().cpu()

    return method


def at_size(method, size):
    """`method` for images of any size, working on size x size: reduced, restored, enlarged. Finer detail is lost."""

    def resized(y, fov, params):
        side = y.shape[-2:]
        if side == (size, size):
            return method(y, fov, params)
        # reduced and enlarged with the mask and divided by it, so that the black surround does not bleed into the rim
        cover, mask = (
            resize(fov.float(), size),
            F.interpolate(fov.float(), (size, size), mode="area") > 0,
        )
        x_hat = method(
            (resize(y * fov, size) / cover.clamp(min=0.1)).clamp(0, 1) * mask, mask, params
        )
        layers = F.interpolate(
            torch.cat([x_hat, mask.to(x_hat)], 1), side, mode="bicubic", align_corners=False
        )
        return (layers[:, :3] / layers[:, 3:].clamp(min=0.1)).clamp(0, 1) * fov

    return resized


def resize(x, size):
    """Images (N, 3, H, W) in [0, 1] at size x size, without aliasing."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(
        x, (size, size), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def restored(name, method, y, fov, params):
    """What a method makes of y; params only if its name says that it knows them.

    Raises InputError unless that is a finite image in [0, 1] for each, of the same size.
    """
    x_hat = method(y.clone(), fov, params if "known" in name else None)
    if x_hat.shape != y.shape:
        raise InputError(
            f"method {name!r}: images {tuple(y.shape)} came back as {tuple(x_hat.shape)}; return the same shape"
        )
    if not bool(torch.isfinite(x_hat).all()):
        raise InputError(
            f"method {name!r}: returns NaN or infinite values; return images in [0, 1]"
        )
    if not (x_hat.amin() >= 0 and x_hat.amax() <= 1):
        raise InputError(
            f"method {name!r}: values from {x_hat.amin():.3g} to {x_hat.amax():.3g}; return images in [0, 1]"
        )
    return x_hat.float().cpu()


# ------------------------------------------------------------------------------------------------------------ scores


def evaluate(
    methods,  # {name: [method of seed 0, 1, ...]}; what is not trained has one
    images,  # Images
    conditions=CONDITIONS,
    closely=CLOSELY,  # those of them under which judges and downstream measures look; elsewhere these are NaN
    judges=None,  # {name: (model with .probabilities, side of its images)}
    lpips=None,  # from metrics.load_lpips; None: n/a
    seed=0,  # of the degradations
):
    """Score every method under every condition on every image: one row for each, and for each seed.

    Columns: KEYS; those of metrics.score(x, x_hat) and of downstream.measure; and per judge PASSED and its name, 1 where it
    calls all four labels readable (before restoration: the row of "do nothing"). A method that gives the input back
    scores inf, 1 and 0 in PSNR, SSIM and LPIPS on undegraded images. Raises InputError for a method that returns anything
    but images of the same size in [0, 1].
    """
    from tqdm import tqdm

    parts = []
    clean = downstream.structures(images.x, images.fov)
    for condition in tqdm(conditions, desc="evaluating", unit="condition"):
        y, params, A = degraded(images, condition, seed)
        for name, seeds in methods.items():
            for number, method in enumerate(seeds):
                x_hat = restored(name, method, y, images.fov, params)
                keys = {
                    "image": images.names,
                    **condition._asdict(),
                    "method": name,
                    "seed": number,
                }
                found = [
                    pd.DataFrame(keys),
                    metrics.score(images.x, x_hat, images.fov, images.disc, lpips),
                ]
                if condition in closely:
                    found.append(
                        downstream.measure(images.x, x_hat, y, images.fov, images.disc, A, clean)
                    )
                    found += [
                        pd.DataFrame({PASSED + judge: passed(x_hat, *each)})
                        for judge, each in (judges or {}).items()
                    ]
                parts.append(pd.concat(found, axis=1))
    return pd.concat(parts, ignore_index=True)


def passed(x, judge, size):
    """1.0 where a judge, which sees images of side `size`, calls all four labels readable, else 0.0: (N,)."""
    return readable(judge.probabilities(resize(x, size))).astype(float)


def summarize(table, by=("family",), only=None, reference=REFERENCE):
    """Of `evaluate`'s table: statistics.study (mean, interval, paired difference to `reference`, sd over seeds) per group.

    by: columns that make the groups; over the others (the severities) every image is averaged first, so that the
    intervals stay intervals over images. PSNR counts up to ROUNDING: beyond it is nothing that a stored image shows, and an
    infinite one would decide every mean. only: metrics, all by default. Raises InputError if `reference` was not evaluated.
    """
    if reference not in set(table["method"]):
        raise InputError(f"evaluation: no method {reference!r} to compare with; evaluate it, too")
    only = list(only or table.columns.drop(KEYS))
    in_dB = [metric for metric in only if metric.startswith("psnr") or metric == "consistency"]
    table = table.assign(**{metric: table[metric].clip(upper=ROUNDING) for metric in in_dB})
    parts = []
    for key, group in table.groupby(list(by), sort=False):
        scores = {
            method: [
                one.groupby("image", sort=False)[only].mean() for _, one in rows.groupby("seed")
            ]
            for method, rows in group.groupby("method", sort=False)
        }
        parts.append(statistics.study(scores, reference).assign(**dict(zip(by, key))))
    found = pd.concat(parts, ignore_index=True)
    return found[[*by, *found.columns.drop(list(by))]]


def gains(summary, metric):
    """Methods x families for a reader: of "do nothing" the mean, of the others the paired difference to it, with its interval.

    With several seeds ± is their standard deviation.
    """
    head, digits = tables.HEADS[metric], statistics.DIGITS[metric]
    rows = summary[summary.metric == metric].set_index(["method", "family"])
    table = pd.DataFrame(index=list(dict.fromkeys(summary.method)))
    for family in dict.fromkeys(rows.index.get_level_values("family")):
        cells = []
        for method in table.index:
            row = rows.loc[(method, family)]
            ends = row.difference, row.difference_low, row.difference_high
            spread = "" if np.isnan(row.difference_sd) else f" ± {row.difference_sd:.{digits}f}"
            cells.append(
                f"{row['mean']:.{digits}f}"
                if method == REFERENCE
                else tables.interval(*ends, digits) + spread
            )
        table[family] = cells
    return table.rename_axis(columns=head)


def shown(summary, columns):
    """Methods x columns for a reader: means over images with their intervals; columns: {metric: (head, digits)}."""
    table = pd.DataFrame(index=list(dict.fromkeys(summary.method)))
    for metric, (head, digits) in columns.items():
        rows = (
            summary[summary.metric == metric]
            .set_index("method")
            .loc[table.index, ["mean", "low", "high"]]
        )
        table[head] = [tables.interval(*row, digits, "") for row in rows.to_numpy()]
    return table


def over_enhancement(table):
    """What each method does to images that nothing was done to, one row per method.

    psnr: median over images and seeds of the PSNR to the image itself, counted up to ROUNDING; changed, low, high: share of
    images below UNCHANGED dB, with its bootstrap interval over images.
    """
    rows = {}
    for method, group in table[table.family == UNDEGRADED.family].groupby("method", sort=False):
        changed = (group.psnr < UNCHANGED).groupby(group.image).mean()
        rows[method] = dict(zip(("changed", "low", "high"), statistics.bootstrap(changed)))
        rows[method]["psnr"] = group.psnr.clip(upper=ROUNDING).median()
    return pd.DataFrame.from_dict(rows, orient="index")[["psnr", "changed", "low", "high"]]


def worst(table, method):
    """Failures by rule: the rows (seed 0) of degraded images where `method` loses most to "do nothing" in PSNR, worst first.

    In each family the worst 5 % of all images and severities, rounded up, at least 3. Adds the column `difference`.
    """
    table = table[(table.seed == 0) & (table.family != UNDEGRADED.family)]
    mine, base = (table[table.method == each].set_index(KEYS[:3]) for each in (method, REFERENCE))
    rows = (
        mine.assign(difference=mine.psnr - base.psnr)
        .reset_index()
        .sort_values("difference", kind="stable")
    )
    kept = [
        group.head(max(LEAST, int(np.ceil(SHARE * len(group)))))
        for _, group in rows.groupby("family")
    ]
    order = {family: place for place, family in enumerate(OPERATORS)}
    return (
        pd.concat(kept)
        .sort_values("family", key=lambda names: names.map(order), kind="stable")
        .reset_index(drop=True)
    )


def gallery(rows, method, images, seed=0):
    """{family: [input, output, reference, input, ...]} of `worst`'s rows, restored once more as they were scored."""
    shown = {}
    for condition, picked in rows.groupby(["family", "severity"], sort=False):
        y, params, _ = degraded(images, Condition(*condition), seed)
        x_hat = restored(picked["method"].iloc[0], method, y, images.fov, params)
        for place, name in picked["image"].items():
            i = images.names.index(name)
            shown[place] = [y[i], x_hat[i], images.x[i]]
    families = dict.fromkeys(rows.family)
    return {
        family: sum((shown[place] for place in rows.index[rows.family == family]), [])
        for family in families
    }


def certain_of(sd, x_hat, x, fov):
    """Rank correlation (Spearman), inside each field of view, of the standard deviation and the true error: (N,).

    sd, x_hat, x (N, 3, H, W); both are means over the channels, the error absolute. 1: the map knows which pixels are
    wrong; 0: it knows nothing; NaN: it is the same everywhere, for there is nothing random in the method.
    """
    found = []
    for spread, error, inside in zip(sd.mean(1), (x_hat - x).abs().mean(1), fov[:, 0]):
        spread, error = spread[inside].double().cpu().numpy(), error[inside].double().cpu().numpy()
        found.append(
            spearmanr(spread, error).statistic
            if np.ptp(spread) > 0 and np.ptp(error) > 0
            else np.nan
        )
    return np.array(found)

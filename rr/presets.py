"""The presets: one frozen dataclass, one aligned table.

A preset fixes every scientific choice of a run. Notebooks name a preset and may replace single values
(`preset("smoke", seed=1)`): an override is a difference to the table, never a copied table.
"""

from dataclasses import dataclass, fields, replace

from rr.io import InputError


@dataclass(frozen=True)
class Preset:
    """All values of a run. Units: pixels, images, epochs, steps; [paper] marks a value that the paper states."""

    name: str
    n: int                   # embedded images to draw; other data sets come with their own number
    size: int                # side of every image, px                               [paper: 224 for the classifier]
    weights: str             # "imagenet" | "none": where pretrained networks start  [paper: pre-trained]
    batch: int               # images per optimizer step                             (paper: not stated)
    ema: float               # decay of the averaged weights that are kept           (paper: not stated)

    classifier_epochs: int   # InceptionV3, RMSprop, BCE                             (paper: epochs not stated)
    classifier_lr: float     # RMSprop learning rate                                 [paper: 1e-4]

    extractor: str           # a key of features.EXTRACTORS                          [paper: ResNet34]
    extractor_epochs: int    # readability as the auxiliary task                     (paper: training not stated)
    attention: int           # width of the self-attention                           [paper: 256]
    heads: int               # attention heads                                       [paper: 8]

    fusion: str              # a key of fusion.FUSIONS                               [paper: bilinear, static]
    backbone: str            # a key of backbones.BACKBONES                          [paper: VAE]
    objective: str           # what the backbone predicts: "image" | "noise" | "v"   (paper: noise; the VAE: image)
    protocol: str            # "paired" | "literal": the pair (input, target)        (paper: reference not stated)
    width: int               # channels of the first convolution                     (paper: not stated)
    latent: int              # size of z                                             (paper: not stated)
    T: int                   # diffusion steps                                       (paper: not stated)
    schedule: str            # a key of diffusion.SCHEDULES                          (paper: not stated)
    start: float             # share of T to which the input is noised               (paper: not stated)
    restorer_epochs: int     # of the backbone + fusion                              (paper: not stated)
    lr: float                # AdamW, everything but the classifier                  (paper: not stated)
    seed: int = 0


# fmt: off
_HEADER = (  "name",    "n", "size", "weights",  "batch", "ema",
             "classifier_epochs", "classifier_lr", "extractor", "extractor_epochs", "attention", "heads",
             "fusion",          "backbone", "objective", "protocol", "width", "latent", "T",  "schedule", "start",
             "restorer_epochs", "lr")
_TABLE = (
    # tests only: every code path in seconds
    Preset(  "mini",      48,   80,  "none",         8,  0.90,
             1,                    1e-4,            "resnet18", 1,                  256,         8,
             "bilinear-static", "vae",      "image",     "paired",   8,       32,       20,   "cosine",   0.25,
             1,                 1e-3),
    # minutes on two CPU cores: proves that everything runs, quality is poor
    Preset(  "smoke",    400,   96,  "none",        16,  0.95,
             6,                    1e-4,            "resnet34", 4,                  256,         8,
             "bilinear-static", "vae",      "image",     "paired",   24,      128,     100,   "cosine",   0.25,
             40,                1e-3),
    # a small GPU or a patient laptop: visible quality
    Preset(  "course",  8000,  128,  "none",        64,  0.995,
             20,                   1e-4,            "resnet34", 20,                 256,         8,
             "bilinear-static", "vae",      "image",     "paired",   48,      256,     200,   "cosine",   0.25,
             100,               5e-4),
    # what the paper states; needs a GPU, and torchvision's ImageNet weights
    Preset(  "paper",  20000,  224,  "imagenet",    64,  0.999,
             30,                   1e-4,            "resnet34", 30,                 256,         8,
             "bilinear-static", "vae",      "image",     "paired",   64,      512,    1000,   "linear",   0.25,
             100,               2e-4),
)
# fmt: on
PRESETS = {row.name: row for row in _TABLE}


def preset(name, **changes):
    """The preset `name`, with the given fields replaced; None leaves a field as it is.

    Raises InputError for an unknown preset or field.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: unknown; choose one of {', '.join(PRESETS)}")
    known = {field.name for field in fields(Preset)}
    for field in changes:
        if field not in known:
            raise InputError(f"preset field {field!r}: unknown; choose one of {', '.join(sorted(known))}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})


def choose(kind, name, choices):
    """choices[name]. Raises InputError that lists the choices: the one check behind every name that a user gives."""
    if name not in choices:
        raise InputError(f"{kind} {name!r}: unknown; choose one of {', '.join(choices)}")
    return choices[name]

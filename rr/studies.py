"""Configurations of the paper's three studies (3.2) and of our study of what it leaves open.

A configuration is what one run of notebook 06_restoration trains and evaluates; with a seed it
names that run's folder, results/<preset>/runs/<configuration>_<seed>/:

    result.json      numbers and provenance, written last; it holds the hashes of the next two
    per_image.csv    image, method, and the columns of metrics.score: "do nothing", "population mean", "RetinaRegen"
    eyes.png         EYES test images, the same in every run, side by side; below each other: input, restored, reference

rr.evaluate.runs reads these files.
"""

from typing import NamedTuple

from rr import paper

EYES = 4  # test images in eyes.png
METHODS = (
    "do nothing",
    "population mean",
    "RetinaRegen",
)  # of per_image.csv; the first two are the same in every run


class Configuration(NamedTuple):
    """One row of a study. The fields are parameters of notebook 06_restoration.

    What the paper does not vary has a default, and is in the name only if it differs from it.
    """

    protocol: str
    backbone: str
    extractor: str  # "random": a ResNet34 that nobody trained; "off": c = 0
    fusion: str
    method: str = "diffusion"  # "bridge" | "one-step": see models/bridge.py; without a condition
    objective: str = ""  # "noise" | "image" | "v"; "": the image for the VAE, else the noise
    start: float = 0.0  # share of T to which inputs are noised; 0: the preset's
    condition: str = "mean"  # "image" | "noise" | "unreadable": see train/conditions.py
    likelihood: str = "bce"  # of the VAE, see vae.LIKELIHOODS
    region: str = "disc"  # whose readability chooses the images of the literal protocol
    budget: str = "full"  # epochs: the preset's for the backbone; "equal": its factorial_epochs

    @property
    def values(self):
        """{field: value} of the first four, and of the others where they are not the default."""
        return {
            name: value
            for name, value in self._asdict().items()
            if value != self._field_defaults.get(name)
        }

    def __str__(self):
        values = {
            name: f"{value:g}" if isinstance(value, float) else value
            for name, value in self.values.items()
        }
        return "_".join(
            f"{name}-{value}" if name in self._field_defaults else value
            for name, value in values.items()
        )


RETINAREGEN = Configuration(
    "paired", "vae", "resnet34", "bilinear-static"
)  # what the paper recommends
LITERAL = RETINAREGEN._replace(protocol="literal")
BRIDGE = Configuration("paired", "unet", "off", "off", method="bridge", budget="equal")
ONE_STEP = BRIDGE._replace(method="one-step")  # the control that any iterated method has to beat

# the factorial of notebook 10. A start is no training: those of a start of 1 restore from pure noise and from the noised input
FACTORS = {
    "backbone": ("vae", "unet"),
    "objective": ("image", "v", "noise"),
    "start": ("noised input", "pure noise"),
}
STEPS = 15  # looks of the network at an image in the restorations that begin at T, whatever T is


def cell(backbone, objective):
    """The configuration whose weights serve both starts of a backbone and an objective."""
    return RETINAREGEN._replace(backbone=backbone, objective=objective, start=1.0, budget="equal")


CONDITIONS = {  # name in notebook 10: trained like RETINAREGEN, or like its twin of Table 1, but for the condition
    "none": RETINAREGEN._replace(extractor="off"),
    "random extractor": RETINAREGEN._replace(extractor="random"),
    "features of each image": RETINAREGEN._replace(
        extractor="attention", condition="image"
    ),  # the smallest
    "depends on the step": RETINAREGEN._replace(fusion="film"),
}
CONCATENATED = cell("unet", "v")._replace(fusion="concat")
LIKELIHOODS = {"bce": RETINAREGEN} | {
    name: RETINAREGEN._replace(likelihood=name) for name in ("mse", "continuous-bernoulli")
}

EVALUATED = {  # name in notebook 12, which compares these and the backbones with what needs no training
    "one-step U-Net": ONE_STEP, "RetinaRegen": RETINAREGEN, "RetinaRegen (literal)": LITERAL, "bridge": BRIDGE,
}  # fmt: skip

# study: its configurations in the paper's order (Fig. 5, Table 1, 3.2); RETINAREGEN is in all three
STUDIES = {
    "backbones": [
        RETINAREGEN._replace(backbone=name)
        for name in ("unet", "unet++", "resnet", "densenet", "vae")
    ],
    "extractors": [RETINAREGEN._replace(extractor=name) for name in paper.EXTRACTORS],
    "fusion": [RETINAREGEN._replace(fusion=name) for name in paper.FUSIONS],
}
STUDIES["matters"] = list(dict.fromkeys([  # what notebook 10 reads, Table 1 and the fusions among it
    *STUDIES["extractors"], *STUDIES["fusion"], BRIDGE, ONE_STEP, LITERAL,
    *(cell(backbone, objective) for backbone in FACTORS["backbone"] for objective in FACTORS["objective"]),
    CONCATENATED, *CONDITIONS.values(), *LIKELIHOODS.values(),
]))  # fmt: skip
VARIES = {
    "backbones": "backbone",
    "extractors": "extractor",
    "fusion": "fusion",
}  # the word that differs within the paper's


def distinct(studies=STUDIES):
    """The configurations of some studies, each once, in order."""
    return list(dict.fromkeys(each for study in studies for each in STUDIES[study]))


def folder(home, configuration, seed):
    """Where a run's files lie; home: the results of a preset (io.results)."""
    return home / "runs" / f"{configuration}_{seed}"

"""Configurations of the paper's three studies (3.2) and of our study of what it leaves open.

A configuration is what one run of notebook 06_restoration trains and evaluates; with a seed it
names that run's folder, results/<preset>/runs/<configuration>_<seed>/:

    result.json      numbers and provenance, written last; it holds the hashes of the next two
    per_image.csv    image, method (METHODS), and the columns of metrics.score
    eyes.png         EYES test images side by side; rows: input, restored, reference

rr.evaluate.runs reads these files.
"""

from itertools import product
from typing import NamedTuple

from rr import paper

EYES = 4  # test images in eyes.png
METHODS = ("do nothing", "population mean", "RetinaRegen")  # two baselines, and the trained one


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
    trained_for: str = "one-call"  # or "chain": see restorer.TRAINED_FOR
    start: float = 0.0  # share of T to which inputs are noised; 0: the preset's; 1: also pure noise
    condition: str = "mean"  # "image" | "noise" | "unreadable": see train/conditions.py
    likelihood: str = "bce"  # of the VAE, see vae.LIKELIHOODS
    region: str = "disc"  # whose readability chooses the images of the literal protocol
    budget: str = "full"  # images seen: the preset's for the backbone; "equal": factorial_images

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


RETINAREGEN = Configuration("paired", "vae", "resnet34", "bilinear-static")  # the paper's choice
LITERAL = RETINAREGEN._replace(protocol="literal")
BRIDGE = Configuration("paired", "unet", "off", "off", method="bridge", budget="equal")
ONE_STEP = BRIDGE._replace(method="one-step")  # the control that any iterated method has to beat

CHAIN = RETINAREGEN._replace(trained_for="chain")  # the other reading of the restoration (2.1)
# The factorial of notebook 10. One training with start = 1 restores from both starts.
FACTORS = {
    "backbone": ("vae", "unet"),
    "objective": ("image", "v", "noise"),
    "start": ("noised input", "pure noise"),
}
STEPS = 15  # network calls of a restoration that begins at T


def cell(backbone, objective):
    """The configuration whose weights serve both starts of a backbone and an objective."""
    return RETINAREGEN._replace(
        backbone=backbone, objective=objective, trained_for="chain", start=1.0, budget="equal"
    )


CONDITIONS = {  # name in notebook 10: differs from RETINAREGEN or a row of Table 1 by the condition
    "none": RETINAREGEN._replace(extractor="off"),
    "random extractor": RETINAREGEN._replace(extractor="random"),
    "features of each image": RETINAREGEN._replace(extractor="attention", condition="image"),
    "depends on the step": RETINAREGEN._replace(fusion="film"),
}
CONCATENATED = cell("unet", "v")._replace(fusion="concat")
LIKELIHOODS = {"bce": RETINAREGEN} | {
    name: RETINAREGEN._replace(likelihood=name) for name in ("mse", "continuous-bernoulli")
}

EVALUATED = {  # name in notebook 12, which compares these and the backbones with the baselines
    "one-step U-Net": ONE_STEP,
    "RetinaRegen": RETINAREGEN,
    "RetinaRegen (literal)": LITERAL,
    "bridge": BRIDGE,
}

# The configurations of each study in the paper's order (Fig. 5, Table 1, 3.2).
STUDIES = {
    "backbones": [
        RETINAREGEN._replace(backbone=name)
        for name in ("unet", "unet++", "resnet", "densenet", "vae")
    ],
    "extractors": [RETINAREGEN._replace(extractor=name) for name in paper.EXTRACTORS],
    "fusion": [RETINAREGEN._replace(fusion=name) for name in paper.FUSIONS],
}
CELLS = [cell(*levels) for levels in product(FACTORS["backbone"], FACTORS["objective"])]
STUDIES["matters"] = list(  # everything that notebook 10 reads
    dict.fromkeys(
        [
            *STUDIES["extractors"],
            *STUDIES["fusion"],
            *(BRIDGE, ONE_STEP, LITERAL, CHAIN),
            *CELLS,
            CONCATENATED,
            *CONDITIONS.values(),
            *LIKELIHOODS.values(),
        ]
    )
)
# The field that differs within each of the paper's studies.
VARIES = {"backbones": "backbone", "extractors": "extractor", "fusion": "fusion"}


def distinct(studies=STUDIES):
    """The configurations of some studies, without repetition, in order."""
    return list(dict.fromkeys(row for study in studies for row in STUDIES[study]))


def folder(results_dir, configuration, seed):
    """The folder of a run; results_dir is that of its preset."""
    return results_dir / "runs" / f"{configuration}_{seed}"

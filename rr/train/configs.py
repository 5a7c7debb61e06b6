"""All training configurations in one table: which model is trained on which images, and how.

Notebooks and `rr train` both take their configuration from here. So a notebook finds what
`rr train` has trained, and the other way round.
"""

import torch

from rr import checkpoint, studies
from rr import files as io
from rr.data import pairs
from rr.errors import InputError, choose
from rr.models.bridge import Bridge
from rr.models.features import Extractor
from rr.models.readability import Readability
from rr.models.restorer import Denoiser
from rr.models.vae import VAE
from rr.provenance import digest
from rr.train import conditions
from rr.train.loop import Config


def config(component, preset, data, results_dir, **choices):
    """The Config of a component, with its model before training.

    preset: a presets.Preset. data: a Packed data set. results_dir: the folder of the preset's
    results. choices: fields of studies.Configuration in place of those of RETINAREGEN; they concern
    the restorer and, by `extractor`, the extractor. Raises InputError if `data` lacks the images,
    or if the extractor of a restorer is not trained.
    """
    p, choice = preset, studies.RETINAREGEN._replace(**choices)
    pair = choose("protocol", choice.protocol, pairs.PROTOCOLS)
    restorer_images = choose("budget", choice.budget, {
        "full": p.restorer_images if choice.backbone == "vae" else p.unet_images,
        "equal": p.factorial_images,
    })  # fmt: skip
    checkpoints, run = results_dir / "checkpoints", studies.folder(results_dir, choice, p.seed)
    extractors = io.extractor_folder(results_dir, choice.extractor, p.seed)

    originals = data.originals
    pair_data = originals if choice.protocol == "paired" else data

    def pair_rows(split):
        return pairs.training_rows(pair_data, split, choice.protocol, choice.region)

    # fmt: off
    table = {
        # component    model         inputs          data       rows
        #              images seen               rate             optimizer         seed    folder
        "readability": (inception,   pairs.labelled, data,      data.labelled,
                        p.classifier_images,      p.classifier_lr, "rmsprop",        p.seed,
                        checkpoints / "readability"),
        # another architecture, other initial weights, another order of the images
        "heldout":     (resnet18,    pairs.labelled, data,      data.labelled,
                        p.classifier_images // 2, p.classifier_lr, "rmsprop",        p.seed + 1,
                        checkpoints / "heldout"),
        "extractor":   (features,    pairs.labelled, data,      data.labelled,
                        p.extractor_images,       p.lr / 10,       "adamw-by-layer", p.seed,
                        extractors),
        "diffusion":   (noise_model, pairs.literal,  originals, originals.clean_rows,
                        p.diffusion_images,       p.lr,            "adamw-by-layer", p.seed,
                        checkpoints / "diffusion"),
        "vae":         (vae,         pairs.clean,    originals, originals.clean_rows,
                        p.vae_images,             p.lr,            "adamw-by-layer", p.seed,
                        checkpoints / "vae"),
        "restorer":    (restorer,    pair,           pair_data, pair_rows,
                        restorer_images,          p.lr,            "adamw-by-layer", p.seed,
                        run / "denoiser"),
    }
    # fmt: on
    build, prepare, images, rows, seen, lr, optimizer, seed, folder = choose(
        "component", component, table
    )
    if component == "vae" or component == "restorer" and choice.backbone == "vae":
        batch = p.vae_batch
    else:
        batch = p.unet_batch if component in ("diffusion", "restorer") else p.batch
    torch.manual_seed(seed)
    model, metadata = build(p, data, choice, results_dir)
    train, val = rows("train"), rows("val")[: p.held_out]
    return Config(
        component, model, images, train, val, prepare, folder, seen / len(train), batch, lr,
        p.ema, seed, optimizer, {"preset": p.name, **metadata},
    )  # fmt: skip


# Each function below returns (model before training, metadata: what else decides the result).


def inception(preset, data, choice, results_dir):
    """The paper's readability classifier (2.2)."""
    return classifier("inception", preset, data)


def resnet18(preset, data, choice, results_dir):
    """The second readability classifier, which evaluates what the first one has selected."""
    return classifier("resnet18", preset, data)


def classifier(architecture, preset, data):
    model = Readability(architecture)
    weights = model.start_from(preset.weights)
    model.weigh_classes(data.labels[data.labelled("train")])
    return model, {"weights": weights}


def features(preset, data, choice, results_dir):
    """A feature extractor (2.3), trained on the readability labels."""
    model = Extractor(choice.extractor, preset.attention, preset.heads)
    return model, {"weights": model.start_from(preset.weights)}


def noise_model(preset, data, choice, results_dir):
    """The noise model alone, trained at all steps 1..T on pairs (x, x)."""
    model = Denoiser(
        preset.size, "unet", objective="noise", width=preset.width, T=preset.T,
        schedule=preset.schedule, start=1.0,
    )  # fmt: skip
    return model, {}


def vae(preset, data, choice, results_dir):
    """The VAE alone."""
    return VAE(preset.size, preset.latent, preset.width, timed=False), {}


def restorer(preset, data, choice, results_dir):
    """The restorer of a studies.Configuration, with its condition c."""
    extractor, c = extractor_and_condition(preset, data, choice, results_dir)
    torch.manual_seed(preset.seed)
    if choice.method == "diffusion":
        per_image = choice.condition == "image"
        model = Denoiser(
            preset.size, choice.backbone, choice.fusion, choice.objective, preset.width,
            preset.latent, preset.T, preset.schedule,
            choice.start if 0 < choice.start < 1 else preset.start, choice.trained_for,
            choice.start == 1, c.shape, choice.likelihood,
            extractor.arguments if per_image else None,
        )  # fmt: skip
        model.c.copy_(c)
        if per_image:
            model.extractor.load_state_dict(extractor.state_dict())
    else:
        once = choice.method == "one-step"
        sigma = 0.0 if once else 0.02
        model = Bridge(
            preset.size, choice.backbone, preset.width, preset.latent, one_step=once, sigma=sigma
        )
    return model, {"condition": digest(c)}


def extractor_and_condition(preset, data, choice, results_dir):
    """(extractor, static condition c) of a configuration; the extractor is None if c is enough."""
    if choice.extractor == "off":
        if choice.condition not in ("mean", "zeros"):
            raise InputError(f"condition {choice.condition!r}: needs an extractor, not 'off'")
        return None, torch.zeros(preset.attention, 1, 1)
    if choice.extractor == "random":  # a control that nobody trained
        extractor = Extractor(width=preset.attention, heads=preset.heads)
        c = conditions.static_condition(extractor, data, limit=preset.pooled)
    else:
        folder = io.extractor_folder(results_dir, choice.extractor, preset.seed)
        c = conditions.load_condition(folder)
        extractor = None if choice.condition == "mean" else checkpoint.load(folder, Extractor)
    if choice.condition not in ("mean", "image"):
        c = conditions.control_condition(
            choice.condition, c, extractor, data, preset.seed, preset.pooled
        )
    return extractor, c

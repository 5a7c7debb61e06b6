"""The presets: one frozen dataclass, one aligned table.

A preset fixes every scientific choice of a run except those that the paper's studies compare, see
studies.Configuration. Notebooks name a preset and may replace single values:
`preset("smoke", seed=1)`.
"""

from dataclasses import dataclass, fields, replace

from rr.errors import InputError, choose


# fmt: off
@dataclass(frozen=True)
class Preset:
    """All values of a run, in pixels, images, epochs or steps; [paper] marks the paper's values."""

    name: str
    n: int                  # embedded images to draw; other data sets have their own number
    size: int               # side of every image, px                       [paper: 224, classifier]
    weights: str            # "imagenet" | "none": start of pretrained networks [paper: pre-trained]
    batch: int              # images per optimizer step                          (paper: not stated)
    ema: float              # decay of the averaged weights that are saved       (paper: not stated)

    classifier_epochs: int  # InceptionV3, RMSprop, BCE                   (paper: epochs not stated)
    classifier_lr: float    # RMSprop learning rate                                    [paper: 1e-4]

    extractor_epochs: int   # readability as the auxiliary task         (paper: training not stated)
    attention: int          # width of the self-attention                               [paper: 256]
    heads: int              # attention heads                                             [paper: 8]

    width: int              # channels of the first convolution                  (paper: not stated)
    latent: int             # size of z                                          (paper: not stated)
    T: int                  # diffusion steps                                    (paper: not stated)
    schedule: str           # a key of diffusion.SCHEDULES                       (paper: not stated)
    start: float            # share of T to which the input is noised            (paper: not stated)
    diffusion_epochs: int   # of the noise model alone, notebook 04              (paper: not stated)
    vae_epochs: int         # of the VAE alone, notebook 05                      (paper: not stated)
    restorer_epochs: int    # of VAE + fusion, notebook 06                       (paper: not stated)
    unet_epochs: int        # of each of the other four backbones + fusion       (paper: not stated)
    factorial_epochs: int   # of all that notebook 10 compares across backbones               (ours)
    lr: float               # AdamW, everything except the classifiers           (paper: not stated)
    seed: int = 0


_TABLE = (
    # tests only: all code in seconds. Expected quality: none
    Preset("mini",      72,  80, "none",      4, 0.90,
           classifier_epochs=1,  classifier_lr=1e-4, extractor_epochs=1,  attention=256, heads=8,
           width=8,  latent=32,  T=20,   schedule="cosine", start=0.15,
           diffusion_epochs=1,   vae_epochs=1,   restorer_epochs=1,   unet_epochs=1,
           factorial_epochs=1,   lr=1e-3),
    # minutes on two CPU cores: proves that everything runs.
    # Expected of RetinaRegen (results/reference/smoke, one training): 22.5 dB, SSIM 0.75
    # (do nothing: 21.1 dB, 0.69; population mean: 22.9 dB, 0.79)
    Preset("smoke",    600,  80, "none",      8, 0.98,
           classifier_epochs=7,  classifier_lr=1e-4, extractor_epochs=1,  attention=256, heads=8,
           width=16, latent=64,  T=100,  schedule="cosine", start=0.15,
           diffusion_epochs=3,   vae_epochs=20,  restorer_epochs=32,  unet_epochs=3,
           factorial_epochs=5,   lr=2e-3),
    # a small GPU or a patient laptop. Expected quality: not run
    Preset("course",  8000, 128, "none",     64, 0.995,
           classifier_epochs=10, classifier_lr=1e-4, extractor_epochs=5,  attention=256, heads=8,
           width=32, latent=256, T=200,  schedule="cosine", start=0.15,
           diffusion_epochs=10,  vae_epochs=40,  restorer_epochs=60,  unet_epochs=60,
           factorial_epochs=60,  lr=5e-4),
    # what the paper states; needs a GPU and torchvision's ImageNet weights. Expected: not run
    # (the paper reports 27.45 dB, SSIM 0.956 on images that are not published)
    Preset("paper",  20000, 224, "imagenet", 64, 0.999,
           classifier_epochs=30, classifier_lr=1e-4, extractor_epochs=30, attention=256, heads=8,
           width=64, latent=512, T=1000, schedule="linear", start=0.15,
           diffusion_epochs=60,  vae_epochs=60,  restorer_epochs=100, unet_epochs=100,
           factorial_epochs=100, lr=2e-4),
)
# fmt: on
PRESETS = {row.name: row for row in _TABLE}


def preset(name, **changes):
    """The preset `name` with the given fields replaced; a value of None changes nothing.

    Raises InputError for an unknown preset or field, or a negative seed.
    """
    row = choose("preset", name, PRESETS)
    names = sorted(field.name for field in fields(Preset))
    for name in changes:
        choose("preset field", name, names)
    if (changes.get("seed") or 0) < 0:
        raise InputError(f"seed {changes['seed']}: must be 0 or more")
    return replace(row, **{key: value for key, value in changes.items() if value is not None})

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
    batch: int              # images per step of classifiers and extractors      (paper: not stated)
    vae_batch: int          # of VAEs: their steps cost little
    unet_batch: int         # of the other backbones: their steps cost more, and they need many
    ema: float              # decay of the averaged weights that are saved       (paper: not stated)
    held_out: int           # images for validation, and for testing restorers, at most      (ours)
    pooled: int             # readable images whose mean features are c, at most        [paper: all]

    # images seen in training, all passes together                           (paper: not stated)
    classifier_images: int  # InceptionV3, RMSprop, BCE; the held-out classifier sees half of them
    classifier_lr: float    # RMSprop learning rate                                    [paper: 1e-4]

    extractor_images: int   # readability as the auxiliary task
    attention: int          # width of the self-attention                               [paper: 256]
    heads: int              # attention heads                                             [paper: 8]

    width: int              # channels of the first convolution                  (paper: not stated)
    latent: int             # size of z                                          (paper: not stated)
    T: int                  # diffusion steps                                    (paper: not stated)
    schedule: str           # a key of diffusion.SCHEDULES                       (paper: not stated)
    start: float            # share of T to which the input is noised            (paper: not stated)
    diffusion_images: int   # of the noise model alone, notebook 04
    vae_images: int         # of the VAE alone, notebook 05
    restorer_images: int    # of VAE + fusion, notebook 06
    unet_images: int        # of each of the other four backbones + fusion
    factorial_images: int   # of all that notebook 10 compares across backbones
    lr: float               # AdamW, biases; weights: see loop.adamw_by_layer (paper: not stated)
    seed: int = 0


_TABLE = (
    # tests only: all code in seconds. Expected quality: none
    Preset("mini",      72,  80, "none",      4, 4, 4, 0.90, held_out=16, pooled=16,
           classifier_images=48,     classifier_lr=1e-4, extractor_images=48,
           attention=256, heads=8, width=8,  latent=32,  T=20,   schedule="cosine", start=0.15,
           diffusion_images=48,      vae_images=48,      restorer_images=48,
           unet_images=48,           factorial_images=48,      lr=2e-2),
    # minutes on two CPU cores. Expected of RetinaRegen (results/reference/smoke, five trainings):
    # 24.9 dB, SSIM 0.77 (do nothing: 21.2 dB, 0.68; population mean: 22.7 dB, 0.76)
    Preset("smoke",   3200,  64, "none",      8, 16, 4, 0.98, held_out=64, pooled=128,
           classifier_images=2_500,  classifier_lr=1e-4, extractor_images=96,
           attention=256, heads=8, width=8,  latent=64,  T=100,  schedule="cosine", start=0.15,
           diffusion_images=1_200,   vae_images=9_000,   restorer_images=9_000,
           unet_images=600,          factorial_images=600,     lr=7e-2),
    # a small GPU or a patient laptop. Expected quality: not run. The rates of this preset and of
    # paper are guesses. They are lower than that of smoke, because these presets train longer
    Preset("course",  8000, 128, "none",     64, 64, 64, 0.995, held_out=256, pooled=1000,
           classifier_images=40_000, classifier_lr=1e-4, extractor_images=20_000,
           attention=256, heads=8, width=32, latent=256, T=200,  schedule="cosine", start=0.15,
           diffusion_images=40_000,  vae_images=80_000,  restorer_images=80_000,
           unet_images=40_000,       factorial_images=40_000,  lr=2e-2),
    # what the paper states; needs a GPU and torchvision's ImageNet weights. Expected: not run
    # (the paper reports 27.45 dB, SSIM 0.956 on images that are not published)
    Preset("paper",  20000, 224, "imagenet", 64, 64, 64, 0.999, held_out=2000, pooled=20000,
           classifier_images=400_000, classifier_lr=1e-4, extractor_images=400_000,
           attention=256, heads=8, width=64, latent=512, T=1000, schedule="linear", start=0.15,
           diffusion_images=400_000, vae_images=400_000, restorer_images=1_000_000,
           unet_images=1_000_000,    factorial_images=1_000_000, lr=5e-3),
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

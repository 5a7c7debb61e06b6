"""The presets: the paper's values where the paper states them, and names that exist."""

import dataclasses

import pytest

from rr.errors import InputError
from rr.models.diffusion import SCHEDULES
from rr.presets import PRESETS, preset


def test_the_preset_of_the_paper_is_this():
    """Fails if any value of the preset `paper` changes. The paper names those in `stated`."""
    stated = {"size": 224, "weights": "imagenet", "classifier_lr": 1e-4}
    stated |= {"attention": 256, "heads": 8}
    data = {
        "name": "paper",
        "n": 20000,
        "batch": 64,
        "vae_batch": 64,
        "unet_batch": 64,
        "ema": 0.999,
        "lr": 5e-3,
        "seed": 0,
    }
    sizes = {"width": 64, "latent": 512, "T": 1000, "schedule": "linear", "start": 0.15}
    sizes |= {"held_out": 2000, "pooled": 20000}
    images = {
        "classifier_images": 400_000, "extractor_images": 400_000, "diffusion_images": 400_000,
        "vae_images": 400_000, "restorer_images": 1_000_000, "unet_images": 1_000_000,
        "factorial_images": 1_000_000,
    }  # fmt: skip
    assert dataclasses.asdict(preset("paper")) == {**stated, **data, **sizes, **images}


def test_smaller_presets_keep_what_does_not_depend_on_size():
    """Fails if a small preset leaves out a training, or changes a value that costs no time."""
    for row in map(dataclasses.asdict, PRESETS.values()):
        shared = {"attention": 256, "heads": 8, "classifier_lr": 1e-4, "start": 0.15, "seed": 0}
        assert row.items() >= shared.items()
        assert all(value >= 1 for name, value in row.items() if name.endswith("_images"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_in_the_table_exists(name):
    p = preset(name)
    assert p.schedule in SCHEDULES and p.weights in ("none", "imagenet")
    assert p.size % 8 == 0 and p.size >= 64 and p.attention % p.heads == 0 and 0 < p.start <= 1


def test_an_override_is_a_difference_and_none_changes_nothing():
    assert preset("smoke", seed=3) == dataclasses.replace(PRESETS["smoke"], seed=3)
    assert preset("smoke", seed=None) == PRESETS["smoke"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("smoke").seed = 1


def test_unknown_names_list_the_choices():
    with pytest.raises(InputError, match="mini, smoke, course, paper"):
        preset("large")
    with pytest.raises(InputError, match="latent"):
        preset("smoke", learning_rate=1)
    with pytest.raises(InputError, match="seed -1: must be 0 or more"):
        preset("smoke", seed=-1)

"""The presets: the paper's values where the paper states them, and names that exist."""

import dataclasses

import pytest

from rr.errors import InputError
from rr.models.diffusion import SCHEDULES
from rr.presets import PRESETS, preset


def test_the_papers_values():
    paper = preset("paper")
    assert (paper.size, paper.classifier_lr, paper.weights) == (224, 1e-4, "imagenet")
    assert (paper.attention, paper.heads) == (256, 8)


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_in_the_table_exists(name):
    p = preset(name)
    assert p.schedule in SCHEDULES and p.weights in ("none", "imagenet")
    assert p.size % 8 == 0 and p.size >= 75 and p.attention % p.heads == 0 and 0 < p.start <= 1


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

"""The static condition: the mean over readable training images; its controls; its file."""

import numpy as np
import pytest
import torch

from rr.errors import InputError
from rr.models.features import Extractor
from rr.train.conditions import (
    CONTROLS,
    control_condition,
    load_condition,
    save_condition,
    static_condition,
)


class Images:
    """Seven images of a packed data set: 1 and 4 are unreadable, 6 is not for training."""

    path = "data"

    def __init__(self, readable=(0, 2, 3, 5), unreadable=(1, 4)):
        self.images = torch.rand(7, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.known = {True: np.array(readable, int), False: np.array(unreadable, int)}

    def rows(self, split, readable):
        assert split == "train"
        return self.known[readable]

    def batch(self, rows, device="cpu"):
        return self.images[torch.as_tensor(rows)]


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    return Extractor("attention", width=16, heads=2).train()


@pytest.mark.parametrize("readable, rows", [(True, [0, 2, 3, 5]), (False, [1, 4])])
def test_static_condition_is_the_mean_over_the_images_whatever_the_batch(extractor, readable, rows):
    """Fails if another image counts, if a last, smaller batch counts as a whole one, or if the mode
    of the extractor is wrong."""
    data = Images()
    c = static_condition(extractor, data, readable, batch=3)
    assert extractor.training
    with torch.no_grad():
        pooled = extractor.eval()(data.images[rows]).mean(0)
    assert torch.allclose(c, pooled, atol=1e-6)


@pytest.mark.parametrize("readable, said", [(True, "no readable image"), (False, "no unreadable")])
def test_no_image_is_an_error(extractor, readable, said):
    with pytest.raises(InputError, match=said):
        static_condition(extractor, Images((), ()), readable)


def test_controls_have_the_shape_and_what_their_names_say(extractor):
    data = Images()
    c = static_condition(extractor, data)
    controls = {name: control_condition(name, c, extractor, data) for name in CONTROLS}
    assert all(new.shape == c.shape and not torch.equal(new, c) for new in controls.values())
    assert (controls["zeros"] == 0).all()
    assert torch.equal(controls["unreadable"], static_condition(extractor, data, readable=False))
    assert abs(controls["noise"].std() / c.std() - 1) < 0.3
    assert torch.equal(controls["noise"], control_condition("noise", c, extractor, data))
    assert not torch.equal(controls["noise"], control_condition("noise", c, extractor, data, 1))
    with pytest.raises(InputError, match="zeros, noise, unreadable"):
        control_condition("ones", c, extractor, data)


def test_a_condition_is_saved_beside_its_extractor(tmp_path):
    c = torch.rand(16, 2, 2)
    save_condition(tmp_path, c)
    assert torch.equal(load_condition(tmp_path), c)
    (tmp_path / "condition.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        load_condition(tmp_path)
    with pytest.raises(InputError, match="no static condition there; run 03_features"):
        load_condition(tmp_path / "empty")

"""Figures have the same bytes on every run, and show the images that they get."""

import numpy as np
import torch
from PIL import Image
from test_plots import plotted

from rr.evaluate import figures


def images(n):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def drawn():
    steps = [(t, images(1), images(1)) for t in (3, 2, 1, 0)]
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    p = torch.tensor([0.9, 0.2, 0.4, 0.6])
    image = images(1)[0]
    return {
        "grid": figures.grid({"x": images(3), "y": images(2)}, ["1", "2", "3"]),
        "bytes": figures.grid({"eye": [black, white]}, ["0", "255"]),
        "sheet": figures.sheet(images(7), columns=3),
        "attention": figures.attention(image, torch.full((2, 4, 4), 0.25), (2, 2), [0, 3]),
        "pipeline": figures.pipeline(image, steps, image, p, p, image),
        "maps": figures.grid({"map": figures.coloured(torch.rand(2, 8, 8))}),
    }


def test_every_figure_can_be_drawn():
    for name, figure in (drawn() | plotted()).items():
        figure.canvas.draw()
        assert np.asarray(figure.canvas.buffer_rgba()).std() > 5, f"{name} is empty"
    figures.plt.close("all")


def test_a_figure_is_saved_with_the_same_bytes_on_every_run(tmp_path):
    for run in "12":
        for name, figure in {"grid": drawn()["grid"], "study": plotted()["study"]}.items():
            figures.save(figure, tmp_path / run, name)
        figures.plt.close("all")
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == ["grid.pdf", "grid.png", "study.pdf", "study.png"]
    for name in files:
        first, second = ((tmp_path / run / name).read_bytes() for run in "12")
        assert first == second and len(first) > 2000, name


def test_no_label_is_cut_off(tmp_path):
    """Fails if a layout moves the axes after the border of the picture was measured."""
    for name, figure in plotted().items():
        figures.save(figure, tmp_path, name)
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        border = np.concatenate([picture[[0, -1]].ravel(), picture[:, [0, -1]].ravel()])
        assert border.min() > 200, name
    figures.plt.close("all")


def test_bytes_and_tensors_are_the_same_picture():
    tensor = torch.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)
    array = (tensor * 255).round().byte().permute(1, 2, 0).numpy()
    (axis,) = figures.grid({"x": [tensor, array]}).axes
    from_tensor, from_array = (image.get_array() for image in axis.images)
    assert np.abs(from_tensor * 255 - from_array).max() <= 0.5
    figures.plt.close("all")


def test_attention_is_shown_relative_to_uniform_attention_at_the_place_of_the_token():
    A = torch.tensor([[[0.1, 0.2, 0.3, 0.4]] * 4])
    axes = figures.attention(images(1)[0], A, (2, 2), [1]).axes
    np.testing.assert_allclose(axes[1].images[1].get_array(), [[0.4, 0.8], [1.2, 1.6]], rtol=1e-6)
    assert axes[1].lines[0].get_xydata().tolist() == [[11.5, 3.5]]  # token 1: right, above
    figures.plt.close("all")


def test_the_pipeline_shows_steps_from_the_first_and_never_the_last():
    steps = [(t, images(1), images(1)) for t in range(9, -1, -1)]
    p = torch.full((4,), 0.5)
    figure = figures.pipeline(images(1)[0], steps, images(1)[0], p, p, shown=3)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["input y", "t = 9", "t = 5", "t = 1", "restored", "readability"]
    figures.plt.close("all")

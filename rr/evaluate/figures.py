"""Figures of images, and one way to save every figure. Curves and bars are in `rr.evaluate.plots`.

Images are tensors (3, H, W) or (N, 3, H, W) in [0, 1], or arrays (H, W, 3) of bytes, which need no
torch. Every function returns a matplotlib Figure. `save` writes it as PNG and PDF, with the same
bytes on every run. No function computes a result.
"""

import matplotlib

matplotlib.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "figure.dpi": 100,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
        "image.interpolation": "nearest",
        "image.composite_image": False,  # a PDF keeps the images of an axis apart
    }
)

import matplotlib.pyplot as plt  # noqa: E402 (the style must be set first)
import numpy as np  # noqa: E402

from rr.files import writing  # noqa: E402
from rr.paper import LABELS  # noqa: E402


def save(figure, folder, stem):
    """Write folder/stem.png (200 dpi) and folder/stem.pdf; return the PNG for a notebook."""
    from IPython.display import Image

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a layout that moves again would leave the box
    box = figure.get_tightbbox().padded(0.1)  # inches; bbox_inches="tight" draws again per format
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    for suffix in metadata:
        with writing(folder / f"{stem}.{suffix}") as part:
            figure.savefig(part, format=suffix, dpi=200, bbox_inches=box, metadata=metadata[suffix])
    plt.close(figure)
    return Image(str(folder / f"{stem}.png"), width=900)


def grid(rows, titles=(), side=1.1):
    """Images in rows: {label: images}, with a title over each column. Rows may differ in length."""
    figure, axis = _tiles(rows.values(), max(len(images) for images in rows.values()), side)
    for line, label in enumerate(rows):
        axis.text(-0.06, line + 0.5, label, ha="right", va="center")
    for column, title in enumerate(titles):
        axis.text(column + 0.5, -0.05, title, ha="center", va="bottom")
    return figure


def sheet(images, columns=10, side=1.0):
    """A contact sheet of images (N, 3, H, W), without frames or titles."""
    return _tiles([images[i : i + columns] for i in range(0, len(images), columns)], columns, side)[
        0
    ]


def _tiles(rows, columns, side, gap=0.05):
    """Rows of images, each in a cell of `side` inches: (figure, axis). A cell has the width 1.

    One axis holds all images, because one axis per image takes twice as long.
    """
    figure = plt.figure(figsize=(side * columns, side * len(rows)))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(len(rows), 0))
    axis.axis("off")
    for line, images in enumerate(rows):
        for column, image in enumerate(map(_array, images)):
            height, width = (1 - gap) / 2 * np.array(image.shape[:2]) / max(image.shape[:2])
            u, v = column + 0.5, line + 0.5
            axis.imshow(image, extent=(u - width, u + width, v + height, v - height))
    return figure, axis


def coloured(maps):
    """Maps (N, h, w) in [0, 1] as images (N, 3, h, w)."""
    import torch

    return torch.from_numpy(plt.get_cmap("viridis")(maps.numpy())[..., :3]).permute(0, 3, 1, 2)


def attention(image, A, shape, tokens):
    """Attention of some tokens over the image, as multiples of the uniform attention 1 / L.

    A (heads, L, L) is averaged over the heads; its rows sum to 1. shape is (h, w) with h w = L. A
    circle marks the place of the token.
    """
    panels = len(tokens) + 1
    figure, axes = plt.subplots(1, panels, figsize=(1.6 * panels, 1.8), layout="constrained")
    picture(axes[0], image)
    axes[0].set_title("image")
    height, width = image.shape[-2:]
    frame = (-0.5, width - 0.5, height - 0.5, -0.5)  # the edges of the image
    ratio = A.mean(0).float().cpu().numpy() * A.shape[-1]  # L, L
    low, high = ratio[tokens].min(), ratio[tokens].max()
    for axis, token in zip(axes[1:], tokens):
        picture(axis, image)
        overlay = axis.imshow(
            ratio[token].reshape(shape),
            alpha=0.5,
            extent=frame,
            vmin=low,
            vmax=high,
        )
        row, column = divmod(token, shape[1])
        x, y = (column + 0.5) * width / shape[1] - 0.5, (row + 0.5) * height / shape[0] - 0.5
        axis.plot(x, y, "o", mfc="none", mec="w")
        axis.set_title(f"from ({row + 1}, {column + 1})")
    figure.colorbar(overlay, ax=axes, shrink=0.8, label="attention / uniform")
    return figure


def pipeline(before, trajectory, after, p_before, p_after, reference=None, shown=5):
    """RetinaRegen on one eye (paper, Fig. 1): input, steps of the reverse process, restored image,
    and readability.

    before, after, reference (3, H, W); trajectory [(t, x_t, x_0_hat)] of tensors (1, 3, H, W);
    p_before, p_after (4,).
    """
    steps = trajectory[:-1]  # the last step is the restored image
    picks = np.unique(np.linspace(0, len(steps) - 1, shown).round().astype(int))
    columns = len(picks) + 3 + (reference is not None)
    figure = plt.figure(figsize=(1.25 * columns, 2.9))
    widths = [1] * (columns - 1) + [1.7]
    spec = figure.add_gridspec(2, columns, width_ratios=widths, wspace=0.08, hspace=0.12)

    def place(rows, column, image, title=""):
        axis = figure.add_subplot(spec[rows, column])
        picture(axis, image)
        axis.set_title(title)
        return axis

    place(slice(0, 2), 0, before, "input y")
    for column, pick in enumerate(picks, 1):
        t, x_t, x_0_hat = steps[pick]
        states = place(0, column, x_t[0], f"t = {t}"), place(1, column, x_0_hat[0])
        if column == 1:
            for axis, label in zip(states, ("$x_t$", r"$\hat{x}_0$")):
                axis.set_ylabel(label, rotation=0, labelpad=8, va="center")
    place(slice(0, 2), len(picks) + 1, after, "restored")
    if reference is not None:
        place(slice(0, 2), len(picks) + 2, reference, "reference x")

    axis, at = figure.add_subplot(spec[:, -1]), np.arange(len(LABELS))
    axis.barh(at - 0.2, p_before, 0.36, color="0.7", label="before")
    axis.barh(at + 0.2, p_after, 0.36, color="C0", label="after")
    axis.axvline(0.5, ls=":", color="k", lw=0.8)
    axis.set(xlim=(0, 1), title="readability")
    axis.set_yticks(at, LABELS)
    axis.yaxis.tick_right()
    axis.invert_yaxis()
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    axis.spines["left"].set_visible(False)
    return figure


def picture(axis, image):
    """Draw one image without ticks and frame."""
    axis.imshow(_array(image))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _array(image):
    """An image as an array (H, W, 3)."""
    if isinstance(image, np.ndarray):
        return image
    return image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()

"""RetinaRegen, the whole method (section 2.1): screen, condition, noise, restore, verify.

    screen     the readability classifier selects the unreadable images
    condition  c, the mean of the features of the readable training images, is fused with x_t
    noise      the unreadable image y is noised to step t_0
    restore    the reverse process with the chosen backbone goes from step t_0 to step 0
    verify     the classifier evaluates the restored image

rr.models.restorer defines the network that does the middle three.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rr.errors import InputError
from rr.models.readability import LABELS


class Restoration(NamedTuple):
    """The result of RetinaRegen for N images."""

    image: Tensor  # (N, 3, H, W) in [0, 1]; images that are not restored are returned unchanged
    before: Tensor  # (N, 4) probabilities of the labels before
    after: Tensor  # (N, 4) and after
    readable: Tensor  # (N,) bool: all labels are readable before, so the image is not restored
    no_fundus: Tensor  # (N,) bool: not a fundus image, so it is not restored into an eye
    passed: Tensor  # (N,) bool: all labels are readable after
    trajectory: list | None  # [(t, x_t, x_0_hat)] of the restored images, if requested


class RetinaRegen:
    """The whole method: a Readability classifier and a Restorer, on one device."""

    THRESHOLD = 0.5  # a label is readable if its probability is at least this

    def __init__(self, classifier, restorer):
        self.classifier, self.restorer = classifier.eval(), restorer.eval()

    @property
    def size(self):
        return self.restorer.arguments["size"]

    @torch.no_grad()
    def __call__(self, y, fov, seed=0, steps=None, trajectory=False, screen=True):
        """Restore images y (N, 3, size, size) with fields of view fov (N, 1, size, size).

        screen=False restores all images. Otherwise readable images and images that are not fundus
        images are returned unchanged. Raises InputError for images of another size.
        """
        if y.shape[-2:] != (self.size, self.size):
            raise InputError(
                f"images {y.shape[-1]}x{y.shape[-2]}: this restorer was trained on "
                f"{self.size}x{self.size}; resize them"
            )
        before = self.classifier.probabilities(y)
        readable = screen & (before >= self.THRESHOLD).all(1)
        no_fundus = screen & (before[:, LABELS.index("fundus")] < self.THRESHOLD)
        selected = ~(readable | no_fundus)

        image, states = y.clone(), None
        generator = torch.Generator().manual_seed(seed)
        if selected.any():
            if trajectory:
                states = list(self.restorer.trajectory(y[selected], generator, steps))
                image[selected] = states[-1][1] * fov[selected]
            else:
                image[selected] = self.restorer.restore(
                    y[selected], fov[selected], generator, steps
                )
        after = self.classifier.probabilities(image)
        passed = (after >= self.THRESHOLD).all(1)
        return Restoration(image, before, after, readable, no_fundus, passed, states)

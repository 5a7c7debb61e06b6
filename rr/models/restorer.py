"""RetinaRegen (section 2.1): screen, condition, noise, restore, verify.

    screen     the readability classifier finds the images that are unreadable
    condition  c, the mean of the features of the readable training images, is fused with
    noise      the unreadable image y, noised to step t_0:  x_t0 = sqrt(alpha_bar) y + sqrt(1 - alpha_bar) epsilon
    restore    the reverse process with the chosen backbone walks from t_0 to 0
    verify     the classifier judges the result

`Denoiser` is what is trained (backbone, fusion, schedule); `RetinaRegen` puts the classifier round it. Two protocols,
never mixed, decide what a training pair (y, x) is: "literal" takes an unreadable image as its own target, as the
paper's text does, for no clean reference exists; "paired" degrades a readable image with a known operator and asks for
that image back.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rr import checkpoint
from rr.errors import InputError, choose
from rr.models import backbones
from rr.models.diffusion import OBJECTIVES, Diffusion, noise
from rr.models.features import Extractor
from rr.models.fusion import FUSIONS, Fusion
from rr.models.readability import Readability
from rr.models.vae import kl
from rr.paper import LABELS


class Restorer(nn.Module):
    """What walks from y to x in steps: a subclass defines trajectory(y, generator, steps, **options)."""

    def restore(self, y, fov, generator, steps=None, batch=64, **options):
        """y (N, 3, H, W) in [0, 1], fov (N, 1, H, W) => the restored images; black outside of the field of view.

        steps and options: of `trajectory`.
        """
        parts = []
        for part, mask in zip(y.split(batch), fov.split(batch)):
            for _, x_0, _ in self.trajectory(part, generator, steps, **options):
                pass
            parts.append(x_0 * mask)
        return torch.cat(parts)


class Denoiser(Restorer):
    """Backbone, fusion and schedule round a condition c: one constant for all images, or the features of each image."""

    def __init__(
        self,
        size,  # side of the images, px
        backbone="vae",  # a key of backbones.BACKBONES
        fusion="bilinear-static",  # a key of fusion.FUSIONS
        objective="",  # what the backbone predicts: "noise" | "image" | "v"; "": noise (2.4), the VAE image (2.5)
        width=32,  # channels of the backbone's first convolution
        latent=128,  # length of the VAE's z
        T=1000,  # diffusion steps
        schedule="linear",  # a key of diffusion.SCHEDULES
        start=0.25,  # share of T to which the input is noised; 1: all of the chain, from pure noise
        condition=(256, 3, 3),  # shape of c
        likelihood="bce",  # of a VAE that predicts images, a key of vae.LIKELIHOODS
        extractor=None,  # arguments of a features.Extractor: then c is the features of y; None: the constant c
    ):
        super().__init__()
        objective = objective or ("image" if backbone == "vae" else "noise")
        self.arguments = {
            "size": size, "backbone": backbone, "fusion": fusion, "objective": objective,
            "width": width, "latent": latent, "T": T, "schedule": schedule, "start": start,
            "condition": list(condition), "likelihood": likelihood, "extractor": extractor,
        }  # fmt: skip
        self.objective = choose("objective", objective, OBJECTIVES)
        self.diffusion = Diffusion(T, schedule)
        self.t_0 = max(1, round(start * T))
        channels = 3 + 3 * choose("fusion", fusion, FUSIONS).get("beside", False)
        if objective != "image":
            likelihood = "normal"  # noise and v are no images: no sigmoid
        self.backbone = backbones.backbone(backbone, size, width, latent, channels, likelihood)
        self.fusion = Fusion(fusion, condition[0])
        self.register_buffer("c", torch.zeros(condition))
        self.extractor = extractor and Extractor(**extractor).requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if self.extractor:
            self.extractor.eval()  # frozen, its batch normalisation too
        return self

    @property
    def hot(self):
        """The parts in which a step spends its time, for torch.compile."""
        return self.backbone.hot + (self.extractor.hot if self.extractor else [])

    def condition(self, y):
        """c (256, h, w) for all images, or the features (N, 256, h, w) of the images y."""
        return self.extractor(y) if self.extractor else self.c

    def forward(self, x_t, t, generator=None, y=None, c=None):
        """The backbone's Output for the fused x_t; x_t itself, the state of the diffusion, is left as it is (2.4).

        y: the degraded images, where c or the fusion asks for them. c: `condition(y)`, if it is at hand.
        """
        c = self.condition(y) if c is None else c
        return self.backbone(self.fusion(x_t, c, t, y), t, generator)

    def loss(self, y, x, generator):
        """Noise y to a random t of the steps that restoration visits, 1..t_0; predict towards x: {"loss", parts}, means.

        U-Nets: mean squared error of the prediction (2.4), weighted only where y is not x, see Diffusion.weight. Then
        "noise" is the epsilon that leads from x to x_t: the drawn one would lead back to y. VAE: -log p(x | z) + KL (2.5) if it
        predicts the image, else the same squared error + KL over the number of values.
        """
        t = torch.randint(1, self.t_0 + 1, (len(x),), generator=generator).to(
            x.device, non_blocking=True
        )
        x_t = self.diffusion.add_noise(y, t, noise(x, generator))
        output = self(x_t, t, generator, y)
        if output.mu is not None and self.objective == "image":
            return self.backbone.elbo(output, x)
        error = (output.prediction.float() - self.diffusion.target(self.objective, x_t, t, x)) ** 2
        weight = 1.0 if y is x else self.diffusion.weight(self.objective, t)
        loss = (weight * error).mean()
        if output.mu is None:
            return {"loss": loss}
        divergence = kl(output.mu, output.logvar).mean() / x[0].numel()
        return {"loss": loss + divergence, "mse": loss, "kl": divergence}

    @torch.no_grad()
    def trajectory(self, y, generator, steps=None, start=None, state=False):
        """Noise y to t_0 and walk back: yields (t, x_t, x_0_hat), at last (0, x_0, x_0). See Diffusion.reverse.

        steps: None, the paper's chain; k, DDIM in k steps.
        start: share of T in place of the one that was trained; at T the walk begins from pure noise, with nothing of y. state:
        add c to the state x_t before every step, where the network should see the sum and the state stay as it is: the
        reading of 2.4 that breaks the forward process. Raises InputError for a start beyond the trained one, and for a
        fusion that is no sum and has no state to be added to.
        """
        if state and (self.fusion.beside or self.fusion.film):
            raise InputError(
                f"fusion {self.arguments['fusion']!r}: is no plain sum; state=True needs one of the paper's four"
            )
        t_0 = self.t_0 if start is None else max(1, round(start * self.diffusion.T))
        if t_0 > self.t_0:
            raise InputError(
                f"start {start}: this restorer was trained up to {self.arguments['start']} of T; begin there"
            )
        epsilon = noise(y, generator)
        x_t = epsilon if t_0 == self.diffusion.T else self.diffusion.add_noise(y, t_0, epsilon)
        c = self.condition(y)
        yield from self.diffusion.reverse(
            lambda x, t: (self.backbone(x, t) if state else self(x, t, y=y, c=c)).prediction.float(),
            x_t, t_0, self.objective, generator, steps, (lambda x: self.fusion(x, c)) if state else None,
        )  # fmt: skip


class Restoration(NamedTuple):
    """What RetinaRegen returns for N images."""

    image: Tensor  # (N, 3, H, W) in [0, 1]; images that were left alone are returned as they came
    before: Tensor  # (N, 4) probabilities of the labels before
    after: Tensor  # (N, 4) and after
    readable: Tensor  # (N,) bool: readable already, left alone
    no_fundus: Tensor  # (N,) bool: no fundus image, left alone: it would be turned into an eye
    passed: Tensor  # (N,) bool: all four labels are readable in the end
    trajectory: list | None  # [(t, x_t, x_0_hat)] of the images that were restored, if asked for


class RetinaRegen:
    """The whole method: classifier and denoiser, in evaluation mode, on one device."""

    THRESHOLD = 0.5  # of a label's probability

    def __init__(self, classifier, denoiser):
        self.classifier, self.denoiser = classifier.eval(), denoiser.eval()

    @property
    def size(self):
        return self.denoiser.arguments["size"]

    @torch.no_grad()
    def __call__(self, y, fov, seed=0, steps=None, trajectory=False, screen=True):
        """Restore photographs y (N, 3, size, size) in [0, 1] with fields of view fov (N, 1, size, size).

        screen: leave alone what the classifier calls readable in all four labels, or no fundus image; False restores
        every image.
        Raises InputError for images of another size.
        """
        if y.shape[-2:] != (self.size, self.size):
            raise InputError(
                f"images {y.shape[-1]}x{y.shape[-2]}: this restorer was trained on {self.size}x{self.size}"
            )
        before = self.classifier.probabilities(y)
        readable = screen & (before >= self.THRESHOLD).all(1)
        no_fundus = screen & (before[:, LABELS.index("fundus")] < self.THRESHOLD)
        image, todo, generator = (
            y.clone(),
            ~(readable | no_fundus),
            torch.Generator().manual_seed(seed),
        )
        steps_taken = None
        if todo.any():
            if trajectory:
                steps_taken = list(self.denoiser.trajectory(y[todo], generator, steps))
                image[todo] = steps_taken[-1][1] * fov[todo]
            else:
                image[todo] = self.denoiser.restore(y[todo], fov[todo], generator, steps)
        after = self.classifier.probabilities(image)
        return Restoration(
            image, before, after, readable, no_fundus, (after >= self.THRESHOLD).all(1), steps_taken
        )

    @classmethod
    def load(cls, folder, device="cpu"):
        """The restorer whose parts lie in `folder`/classifier and `folder`/denoiser."""
        folder = Path(folder)
        return cls(
            checkpoint.load(folder / "classifier", Readability, device),
            checkpoint.load(folder / "denoiser", Denoiser, device),
        )

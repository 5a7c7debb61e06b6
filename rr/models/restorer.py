"""The restorer of RetinaRegen (2.1, 2.4): backbone, fusion and diffusion with a condition c.

In a training pair (y, x), y is the degraded image and x is the image that the network must return.
A restoration noises y to step t_0,

    x_t0 = sqrt(alpha_bar_t0) y + sqrt(1 - alpha_bar_t0) epsilon,

and the reverse process goes from there to step 0, in all steps or in a few. One call of the network
at t_0 already predicts the image. rr.models.retinaregen adds the classifier.

Shapes: y, x, x_t are (N, 3, H, W) in [0, 1]; the field of view fov is (N, 1, H, W), bool.
"""

import torch
from torch import nn

from rr.errors import InputError, choose
from rr.models import backbones
from rr.models.diffusion import OBJECTIVES, Diffusion, noise
from rr.models.features import Extractor
from rr.models.fusion import FUSIONS, Fusion
from rr.models.vae import kl


class Restorer(nn.Module):
    """A network that goes from y to the restored image in several steps.

    A subclass defines trajectory(y, generator, steps, **options), which yields (t, x_t, x_0_hat).
    """

    def restore(self, y, fov, generator, steps=None, batch=64, **options):
        """The restored images (N, 3, H, W) in [0, 1], black outside the field of view.

        steps and options are those of `trajectory`. `batch` images are restored at a time.
        """
        parts = []
        for part, mask in zip(y.split(batch), fov.split(batch)):
            for _, x_0, _ in self.trajectory(part, generator, steps, **options):
                pass
            parts.append(x_0 * mask)
        return torch.cat(parts)


TRAINED_FOR = {"chain": "all", "one-call": 1}  # steps of a restoration, unless others are given


class Denoiser(Restorer):
    """Backbone, fusion and schedule, with a condition c."""

    # fmt: off
    def __init__(
        self,
        size,                         # side of the images, px
        backbone="vae",               # a key of backbones.BACKBONES
        fusion="bilinear-static",     # a key of fusion.FUSIONS
        objective="",                 # prediction: "noise", "image" or "v"; "": see below
        width=32,                     # channels of the backbone's first convolution
        latent=128,                   # length of the VAE's z
        T=1000,                       # diffusion steps
        schedule="linear",            # a key of diffusion.SCHEDULES
        start=0.25,                   # t_0 / T, the noise strength
        trained_for="chain",          # which x_t training shows, a key of TRAINED_FOR
        pure_noise=False,             # half of the training is for chains that begin at T
        condition=(256, 3, 3),        # shape of c
        likelihood="bce",             # of a VAE that predicts images, a key of vae.LIKELIHOODS
        extractor=None,               # of an Extractor whose features of y are c; None: fixed c
    ):
        # fmt: on
        super().__init__()
        # the paper: noise (2.4), and the image for the VAE (2.5)
        objective = objective or ("image" if backbone == "vae" else "noise")
        self.arguments = {
            "size": size, "backbone": backbone, "fusion": fusion, "objective": objective,
            "width": width, "latent": latent, "T": T, "schedule": schedule, "start": start,
            "trained_for": trained_for, "pure_noise": pure_noise,
            "condition": list(condition), "likelihood": likelihood, "extractor": extractor,
        }  # fmt: skip
        self.objective = choose("objective", objective, OBJECTIVES)
        self.diffusion = Diffusion(T, schedule)
        self.t_0 = self.first_step(start)
        self.steps = choose("trained_for", trained_for, TRAINED_FOR)
        self.trained_for, self.pure_noise = trained_for, pure_noise
        channels = 3 + 3 * choose("fusion", fusion, FUSIONS).concat
        if objective != "image":
            likelihood = "normal"  # noise and v are not in [0, 1], so the VAE must have no sigmoid
        self.backbone = backbones.backbone(backbone, size, width, latent, channels, likelihood)
        self.fusion = Fusion(fusion, condition[0])
        self.register_buffer("c", torch.zeros(condition))
        self.extractor = extractor and Extractor(**extractor).requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if self.extractor:
            self.extractor.eval()  # frozen, including its batch normalisation
        return self

    @property
    def compile_targets(self):
        """The modules that torch.compile compiles on a GPU."""
        of_extractor = self.extractor.compile_targets if self.extractor else []
        return self.backbone.compile_targets + of_extractor

    def first_step(self, start):
        """t_0 = start * T, rounded. Only start = 1 (pure noise) gives T, others give 1..T-1."""
        if not 0 <= start <= 1:
            raise InputError(f"start {start}: is a fraction of T; give a value from 0 to 1")
        T = self.diffusion.T
        return T if start == 1 else max(1, min(round(start * T), T - 1))

    def condition(self, y):
        """c (256, h, w) for all images, or the features (N, 256, h, w) of the images y."""
        return self.extractor(y) if self.extractor else self.c

    def forward(self, x_t, t, generator=None, y=None, c=None):
        """The backbone's Output for x_t^conditioned = c + x_t (2.4). The state x_t does not change.

        t (N,). y: the degraded images, if the condition or the fusion needs them. c: the value of
        `condition(y)`, if it was computed before.
        """
        c = self.condition(y) if c is None else c
        return self.backbone(self.fusion(x_t, c, t, y), t, generator)

    def loss(self, y, x, generator):
        """The loss of the pairs (y, x): {"loss", its parts}, means over the images.

        The network sees x_t of `training_states`. U-Nets: mean squared error of the prediction
        (2.4). VAE: -log p(x | z) + KL if it predicts the image (2.5), otherwise the squared error
        + KL.

        If y is not x, the squared error has the weight of Diffusion.weight (-log p(x | z) has no
        weight), and the target "noise" is the epsilon that leads from x to x_t, because the drawn
        epsilon would lead back to y.
        """
        t, x_t = self.training_states(y, x, generator)
        output = self(x_t, t, generator, y)
        if output.mu is not None and self.objective == "image":
            return self.backbone.elbo(output, x)
        target = self.diffusion.target(self.objective, x_t, t, x)
        weight = 1.0 if y is x else self.diffusion.weight(self.objective, t)
        mse = (weight * (output.prediction.float() - target) ** 2).mean()
        return with_kl("mse", mse, output)

    def training_states(self, y, x, generator):
        """Steps t (N,) and states x_t (N, 3, H, W) as a restoration visits them.

        "one-call": t = t_0, and x_t is the noised y.

        "chain": t is random in 1..t_0. A DDIM chain that begins with the noised y, and whose
        network predicts x, visits

            x_t = sqrt(alpha_bar_t) (x + lambda_t (y - x)) + sqrt(1 - alpha_bar_t) epsilon,
            lambda_t = sqrt(SNR_t0 / SNR_t),   SNR = alpha_bar / (1 - alpha_bar).

        It goes from y (lambda = 1 at t_0) to x, like a bridge. If training showed the noised y at
        every t, the network would correct its own result again in every step.

        With pure_noise, half of the images have t in 1..T and lambda = 0, because a chain that
        begins with pure noise knows nothing of y.
        """
        n, T, snr = len(x), self.diffusion.T, self.diffusion.snr
        t = torch.randint(1, self.t_0 + 1, (n,), generator=generator)
        if self.trained_for == "one-call":
            t = torch.full_like(t, self.t_0)
        from_T = torch.zeros(n, dtype=torch.bool)
        if self.pure_noise:
            from_T = torch.rand(n, generator=generator) < 0.5
            t = torch.where(from_T, torch.randint(1, T + 1, (n,), generator=generator), t)
        t, from_T = (values.to(x.device, non_blocking=True) for values in (t, from_T))
        way = self.diffusion.at((snr[self.t_0] / snr.clamp(min=1e-12)).sqrt(), t)  # lambda_t
        way = way * ~from_T[:, None, None, None]
        return t, self.diffusion.add_noise(x + way * (y - x), t, noise(x, generator))

    @torch.no_grad()
    def trajectory(self, y, generator, steps=None, start=None, condition_on_state=False):
        """Noise y to step t_0 and restore it: yields (t, x_t, x_0_hat) and finally (0, x_0, x_0).

        steps: "all" for the paper's chain, k for DDIM with k steps, None for TRAINED_FOR.
        start: t_0 / T, if it differs from the trained one; start = 1 (the default with pure_noise)
        begins with pure noise, which contains nothing of y.
        condition_on_state: add c to the state x_t before every step, instead of to the network's
        input only. Section 2.4 can be read in this way, but it breaks the forward process.

        Raises InputError if start is larger than the trained one, or if the fusion is not a sum and
        condition_on_state is set.
        """
        if start is None:
            start = 1 if self.pure_noise else self.arguments["start"]
        steps = self.steps if steps is None else steps
        t_0 = self.first_step(start)
        if t_0 > (self.diffusion.T if self.pure_noise else self.t_0):
            raise InputError(
                f"start {start}: this restorer was trained up to {self.arguments['start']} of T; "
                "give that value or a smaller one"
            )
        if condition_on_state and (self.fusion.kind.concat or self.fusion.kind.film):
            raise InputError(
                f"fusion {self.arguments['fusion']!r}: is not a plain sum; condition_on_state "
                "needs one of the paper's four fusions"
            )
        epsilon = noise(y, generator)
        x_t = epsilon if start == 1 else self.diffusion.add_noise(y, t_0, epsilon)
        c = self.condition(y)

        def predict(x_t, t):
            output = self.backbone(x_t, t) if condition_on_state else self(x_t, t, y=y, c=c)
            return output.prediction.float()

        change_state = (lambda x_t: self.fusion(x_t, c)) if condition_on_state else None
        yield from self.diffusion.reverse(
            predict, x_t, t_0, self.objective, generator, steps, change_state
        )


def with_kl(name, loss, output):
    """Add the KL term of a VAE to a loss that is a mean over values: {"loss", name, "kl"}.

    KL is divided by the number of values of an image, as in VAE.elbo. Without a VAE: {"loss"}.
    """
    if output.mu is None:
        return {"loss": loss}
    divergence = kl(output.mu, output.logvar).mean() / output.prediction[0].numel()
    return {"loss": loss + divergence, name: loss, "kl": divergence}

"""What notebook 10 does again and again: restore the same test images with trained weights, score them, note an answer.

Defines `Bench`, the test pairs of a protocol with the models that were trained on a preset's data, and `Answers`, the sentences
of the chapters with the rows of the final table.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rr import checkpoint, studies
from rr.data import pairs
from rr.evaluate import metrics, statistics, tables
from rr.models import restorer
from rr.models.bridge import Bridge


class Bench(NamedTuple):
    """N test images, and where the models lie that restore them."""

    home: Path  # results of a preset
    device: torch.device
    names: np.ndarray  # (N,)
    y: Tensor  # (N, 3, H, W) in [0, 1]
    x: Tensor  # the references
    fov: Tensor  # (N, 1, H, W) bool
    disc: Tensor  # (N, 3), see data.Packed.disc

    def weights(self, configuration, seed):
        """The trained restorer of a run. Raises InputError if it is missing or damaged."""
        component = restorer.Denoiser if configuration.method == "diffusion" else Bridge
        return checkpoint.load(
            studies.folder(self.home, configuration, seed) / "denoiser", component, self.device
        )

    def restored(self, model, seed, n=None, **options):
        """The first n images (None: all), restored; options of `model.restore`, noise from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return model.restore(
            self.y[:n].to(self.device), self.fov[:n].to(self.device), generator, **options
        ).cpu()

    def scored(self, x_hat):
        """Scores per image of all N restorations, as metrics.score gives them, without LPIPS; index: names."""
        return metrics.score(self.x, x_hat.cpu(), self.fov, self.disc).set_index(self.names)


def bench(home, packed, device, protocol="paired"):
    """The Bench of a protocol's test images (pairs.test_pairs) of a packed data set, the same in every run."""
    rows, y, x, _ = pairs.test_pairs(packed, protocol)
    return Bench(
        home,
        device,
        packed.table["name"].to_numpy()[rows],
        y,
        x,
        packed.fov(rows),
        packed.disc(rows),
    )


ANSWERS = {statistics.BETTER: "yes", statistics.WORSE: "the other way round"}


class Answers(list):
    """Rows {"point", "claim", "answer", "difference", "low", "high"} in dB, in the order in which they were noted."""

    def note(self, point, claim, comparison, answers=ANSWERS):
        """Add a row. answers: {verdict: the word for it}; other verdicts are their own word."""
        difference, low, high, verdict = comparison
        answer = answers.get(verdict, verdict)
        row = {"answer": answer, "difference": difference, "low": low, "high": high}
        self.append({"point": point, "claim": claim, **row})
        return self[-1]

    def better(self, point, claim, a, b, pairs=1):
        """Note whether `a` has more PSNR than `b`, scores per image of each seed; as a sentence."""
        row = self.note(point, claim, statistics.compare(a, b, "psnr", pairs))
        ends = row["difference"], row["low"], row["high"]
        return f"{claim}: {row['answer']}, {tables.interval(*ends)} dB."

"""The rule that derives readability labels from what a degradation left of a region."""

import torch
from torch import Tensor

from rr.models.deconvolution import blur

# The thresholds were chosen by looking at twelve regions of real photographs at 256 pixels. Below
# them, the rim of the disc and its vessels had run together, the small vessels around the fovea
# were gone, and of the retina only the main arcades could be guessed. A sharp image at poor
# contrast and brightness stays above them.
DETAIL_SIGMA = (
    0.02  # of the width: vessels (0.5 to 2 % wide) and the rims of disc and cup are finer
)
G_MIN, RHO_MIN = 0.45, 0.65


def readable(x: Tensor, y: Tensor, region: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether a region of x can still be read in y: (N,) bool, and the gain and fidelity behind it.

    h = green channel minus its Gaussian blur (sigma 2 % of the width) is the detail. Inside
    `region` (N, 1, H, W)

        gain g = <h_x, h_y> / <h_x, h_x>           how much of the detail's contrast is left
        fidelity rho = <h_x, h_y> / (|h_x| |h_y|)  how much of what is seen is that detail

    and the region is readable if g >= G_MIN and rho >= RHO_MIN. The blur is normalised to the
    region, so that the step at the rim of the field of view does not count as detail. An empty
    region is not readable, and its numbers are NaN.
    """
    width = region.shape[-1]
    rows, columns = (_extent(region.any(dim=dims)) for dims in ((0, 1, 3), (0, 1, 2)))
    x, y, region = (image[..., rows, columns] for image in (x, y, region.to(x.dtype)))
    inside = torch.cat([x[:, 1:2], y[:, 1:2], torch.ones_like(region)], dim=1) * region
    sigma = torch.full((len(x),), DETAIL_SIGMA * width / x.shape[-1], device=x.device)
    means = blur(inside, sigma)
    h = inside[:, :2] - region * means[:, :2] / means[:, 2:].clamp_min(1e-6)
    h_x, h_y = h.flatten(2).double().unbind(1)
    xx, xy, yy = (h_x * h_x).sum(1), (h_x * h_y).sum(1), (h_y * h_y).sum(1)
    gain, fidelity = xy / xx, xy / (xx * yy).sqrt()
    return (gain >= G_MIN) & (fidelity >= RHO_MIN), {"gain": gain, "fidelity": fidelity}


def _extent(used):
    """The slice from the first to the last True of a vector; nothing outside a region matters."""
    positions = used.nonzero()
    return slice(int(positions[0]), int(positions[-1]) + 1) if len(positions) else slice(0, 1)

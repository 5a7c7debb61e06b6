"""ImageNet weights of torchvision's networks (IMAGENET1K_V1).

`weights` is always explicit: "imagenet", or "none" for random initialisation. ImageNet weights that
cannot be found raise an InputError; random weights never replace them. The file is searched in the
folder RR_WEIGHTS, then in torch's hub cache (see TORCH_HOME), and then downloaded to that cache.
"""

import hashlib
import http.client
import os
import re
import socket
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import get_model_weights

from rr.errors import InputError, choose

WEIGHTS = ("imagenet", "none")
FOLDER = "RR_WEIGHTS"  # environment variable: a folder of weight files, for use without a network
SECONDS = 10  # the download stops if the server does not answer for so long


def available(name, folder=None):
    """The local file with the weights of torchvision's network `name`, or None. Needs no network.

    The folder (default: RR_WEIGHTS) can hold torchvision's own file, <name>.safetensors, or
    <name>_features.safetensors without a classifier. Raises InputError if there is no such folder.
    """
    file = Path(_url(name)).name
    paths = [Path(torch.hub.get_dir(), "checkpoints", file)]
    folder = folder or os.environ.get(FOLDER)
    if folder:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise InputError(f"{FOLDER}={folder}: no such folder; name one that holds {file}")
        names = (file, f"{name}.safetensors", f"{name}_features.safetensors")
        paths = [folder / file for file in names] + paths
    return next((path for path in paths if path.is_file()), None)


def state(name, folder=None):
    """The weights of network `name` (downloaded if necessary) and one line that names their file.

    Raises InputError if they cannot be downloaded or if the file is damaged.
    """
    path = available(name, folder) or _download(name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = re.search(r"-([0-9a-f]{8,})\.pth$", path.name)  # torchvision's names hold the hash
    try:
        if expected and not digest.startswith(expected[1]):
            raise ValueError(f"its sha256 starts with {digest[:8]}")
        if path.suffix == ".pth":
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and get it again") from error
    return tensors, f"imagenet: {path.name} (sha256 {digest[:16]})"


def load(
    model,  # torchvision's network, or one with the same parameter names
    name,  # torchvision's name of it: "resnet34", "inception_v3", "alexnet", ...
    weights,  # one of WEIGHTS
    folder=None,  # of weight files; None: the folder RR_WEIGHTS
    skip=(),  # prefixes of parameters that are not loaded, such as ("fc.",) for a new classifier
):
    """Load weights into `model` in place and return one line of provenance.

    Apart from `skip`, the model and the file must have the same parameters with the same shapes.
    Raises InputError if they differ (the model is then unchanged), and as `state` does.
    """
    if choose("weights", weights, WEIGHTS) == "none":
        return "none: random initialisation"
    tensors, provenance = state(name, folder)

    def compared(key):  # torchvision's oldest files have no counters of batches
        return not key.startswith(skip) and not key.endswith("num_batches_tracked")

    tensors = {key: value for key, value in tensors.items() if compared(key)}
    shapes = {(key, value.shape) for key, value in tensors.items()}
    expected = {(key, value.shape) for key, value in model.state_dict().items() if compared(key)}
    differing = sorted({key for key, _ in shapes ^ expected})
    if differing:
        raise InputError(
            f"{provenance}: does not fit {name}; missing, unknown or of another shape: "
            + ", ".join(differing[:3])
        )
    model.load_state_dict(tensors, strict=False)  # `skip` and the counters are missing
    return provenance


def _url(name):
    return get_model_weights(name).IMAGENET1K_V1.url


def _download(name):
    """Torchvision's file of network `name`, downloaded to torch's hub cache and checked."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(_url(name)).name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torch's download has no timeout of its own
    try:
        torch.hub.load_state_dict_from_url(_url(name), check_hash=True, weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{name}: no ImageNet weights ({reason}); connect to a network, or put {path.name} "
            f"into a folder and set {FOLDER} to it, or use weights=none"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path

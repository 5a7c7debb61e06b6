"""Pretrained weights: the only place where they are looked for.

Defines `available` (where torchvision's ImageNet weights of a model lie on this machine, without a network), `state`
(their tensors) and `load` (into a model, strictly). `weights` is always explicit:

    "imagenet"  torchvision's IMAGENET1K_V1: a local folder, else torch's hub cache, else torchvision's download
    "none"      random initialisation

Nothing falls back from the first to the second: what cannot be had is an InputError that names the ways out.
"""

import http.client
import os
import pickle
import re
import socket
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from rr.errors import InputError, choose
from rr.files import sha256

WEIGHTS = ("imagenet", "none")
FOLDER = (
    "RR_WEIGHTS"  # environment variable: a folder of weight files, for machines without a network
)
SECONDS = 10  # without an answer from the server: a blocked network must not look like a slow one


def available(name: str, folder: str | Path | None = None) -> Path | None:
    """The file on this machine that holds the ImageNet weights of torchvision model `name`, or None. No network.

    Looked for in `folder` (default: the folder named by the environment variable RR_WEIGHTS), as torchvision's own
    file (resnet34-b627a593.pth), <name>.safetensors or <name>_features.safetensors (a trunk: keys `features.*` only);
    then in torch's hub cache. Raises InputError if the folder does not exist or `name` is no torchvision model.
    """
    filename = Path(_url(name)).name
    places = [_cache() / filename]
    folder = folder or os.environ.get(FOLDER)
    if folder:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"{FOLDER}={folder}: no such folder; point it at a folder that holds {filename}, or unset it"
            )
        places = [
            folder / file
            for file in (filename, f"{name}.safetensors", f"{name}_features.safetensors")
        ] + places
    return next((place for place in places if place.is_file()), None)


def state(name: str, folder: str | Path | None = None) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of torchvision model `name` (on the CPU) and one line that says which file they came from.

    Downloads into torch's hub cache if `available` finds none. Raises InputError if they cannot be had or are damaged.
    """
    path = available(name, folder) or _download(name)
    tensors, digest = _read(path), sha256(path)
    expected = _hash_prefix(path.name)
    if path.suffix == ".pth" and not digest.startswith(expected):
        raise InputError(
            f"{path}: damaged, sha256 {digest[:8]} where the name says {expected}; get the file again"
        )
    return tensors, f"imagenet: {path.name} (sha256 {digest[:16]})"


def load(
    model: nn.Module,  # torchvision's model, or one with the same parameter names
    name: str,  # torchvision's name of it: "resnet34", "inception_v3", "alexnet", ...
    weights: str,  # "imagenet" | "none"
    folder: str | Path | None = None,  # a local folder of weight files; default: RR_WEIGHTS
    skip: tuple[
        str, ...
    ] = (),  # parameters that start so keep their values: ("fc.",) for a classifier of one's own
) -> str:
    """Load pretrained weights into `model`, in place; return one line of provenance for the results.

    Strict: apart from `skip`, every parameter and buffer of the model must be in the file with its shape and the other
    way round. With "none" the model stays as it was built. Raises InputError for an unknown `weights`, weights that
    cannot be had, a damaged file, or a file that does not fit the model.
    """
    choose("weights", weights, WEIGHTS)
    if weights == "none":
        return "none: random initialisation"
    tensors, note = state(name, folder)
    own = model.state_dict()
    tensors = {key: value for key, value in tensors.items() if not key.startswith(skip)}
    wanted = {key for key in own if not key.startswith(skip)}
    # torch counts batches only for momentum=None; weights from before that counter existed fit all the same
    missing = sorted(
        key for key in wanted - tensors.keys() if not key.endswith("num_batches_tracked")
    )
    unexpected = sorted(tensors.keys() - wanted)
    misshapen = sorted(
        key for key in wanted & tensors.keys() if own[key].shape != tensors[key].shape
    )
    for keys, fault in (
        (missing, "lacks"),
        (unexpected, "has what the model lacks:"),
        (misshapen, "differs in shape:"),
    ):
        if keys:
            some = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise InputError(
                f"{note.removeprefix('imagenet: ')}: does not fit {name}, it {fault} {some}; use another file"
            )
    model.load_state_dict(tensors, strict=False)
    return note


def _url(name):
    """Torchvision's address of the IMAGENET1K_V1 weights of model `name`."""
    try:
        return get_model_weights(name).IMAGENET1K_V1.url
    except (ValueError, AttributeError):
        raise InputError(
            f"{name}: torchvision has no ImageNet weights for it; use weights=none"
        ) from None


def _cache():
    return Path(torch.hub.get_dir()) / "checkpoints"


def _hash_prefix(filename):
    """The first digits of a file's SHA-256, which torchvision writes into its name; "" if there are none."""
    found = re.search(r"-([0-9a-f]{8,})\.", filename)
    return found.group(1) if found else ""


def _download(name):
    """Torchvision's file of model `name`, downloaded to torch's hub cache and checked against the hash in its name."""
    url = _url(name)
    path = _cache() / Path(url).name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(SECONDS):
            torch.hub.download_url_to_file(
                url, str(path), hash_prefix=_hash_prefix(path.name), progress=True
            )
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
    ) as error:  # URLError, timeouts and a full disk are OSErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name}: its ImageNet weights could not be downloaded ({reason}); give it a network, or put {path.name} "
            f"into a folder and set {FOLDER} to that folder, or use weights=none"
        ) from error
    return path


@contextmanager
def _timeout(seconds):
    """Sockets opened inside give up after `seconds` without an answer (torch's download itself knows no timeout)."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path):
    """The tensors of a weights file. No code in the file is run (safetensors, or torch.load with weights_only)."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as weights ({reason}); delete it and get the file again"
        ) from error

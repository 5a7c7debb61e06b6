"""A checkpoint is a folder that rebuilds its model: weights, configuration and provenance.

    weights-<first digits of sha256>.safetensors
    config.json     component, arguments, name and sha256 of the weights, provenance

No file is unpickled. The name of the weights contains their hash, and config.json names them. So
the moment at which config.json is replaced is the moment at which the new checkpoint takes the
place of the old one. If the process is killed or the disk is full before, the old one is intact.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from rr.errors import InputError
from rr.files import read_json, sha256, write_json, writing


def save(folder, model, provenance, **metadata):
    """Save `model`, an nn.Module with the `arguments` of its constructor, to `folder`.

    The metadata go into config.json. Raises InputError if the disk is full; then the previous
    content of the folder is unchanged.
    """
    folder = Path(folder)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    part = folder / "weights.safetensors"
    with writing(part) as temporary:
        save_file(tensors, temporary)
    digest = sha256(part)
    weights = part.rename(folder / f"weights-{digest[:12]}.safetensors")
    config = {
        "component": type(model).__name__,
        "arguments": model.arguments,
        "weights": weights.name,
        "sha256": digest,
    }
    write_json(folder / "config.json", {**config, **metadata, "provenance": provenance})
    for stale in folder.glob("weights-*.safetensors"):
        if stale != weights:
            stale.unlink()


def read_config(folder):
    """The config.json of a checkpoint. Raises InputError if it is missing or damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no checkpoint there; train one with `rr reproduce` or its notebook, or "
            "name another folder"
        )
    config = read_json(folder / "config.json")
    if not (
        isinstance(config, dict)
        and {"component", "arguments", "weights", "sha256"} <= config.keys()
    ):
        raise InputError(f"{folder / 'config.json'}: damaged; train this checkpoint again")
    return config


def load(folder, component, device="cpu"):
    """Rebuild the model in `folder`, in evaluation mode; `component` is its class.

    Raises InputError if the folder holds no checkpoint, a damaged one, or one of another class.
    """
    folder = Path(folder)
    config = read_config(folder)
    saved, wanted = config["component"], component.__name__
    if saved != wanted:
        raise InputError(
            f"{folder}: a checkpoint of {saved}, not of {wanted}; name the folder of a {wanted}"
        )
    weights = folder / config["weights"]
    if not weights.is_file() or sha256(weights) != config["sha256"]:
        raise InputError(
            f"{weights}: missing or damaged (its sha256 is not the recorded one); train it again"
        )
    try:
        model = component(**config["arguments"])
        model.load_state_dict(load_file(weights))
    except (TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{folder}: does not fit today's {wanted} ({reason}); train it again"
        ) from error
    return model.to(device).eval()

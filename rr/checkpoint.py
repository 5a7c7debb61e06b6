"""A checkpoint is a folder: weights as safetensors, resolved configuration and provenance. It rebuilds its model alone.

    weights-<first of sha256>.safetensors
    config.json     component, arguments, name and sha256 of the weights file, and under "provenance" commit, versions,
                    device, seconds, data hash, ...; written last

Nothing pickled is ever executed. The weights carry their hash in their name and config.json names them, so replacing
config.json is the one moment at which a new checkpoint takes the place of the old: a process killed or a disk full
before it leaves the old one whole.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file

from rr.errors import InputError
from rr.files import read_json, sha256, write_json, writing


def save(folder, model, provenance, **facts):
    """Save `model` (an nn.Module with `arguments`, those of its constructor) to `folder`; facts go into config.json.

    Raises InputError if the disk is full; what was in the folder before is then untouched.
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
    write_json(folder / "config.json", {**config, **facts, "provenance": provenance})
    for stale in folder.glob("weights-*.safetensors"):
        if stale != weights:
            stale.unlink()


def read_config(folder):
    """The config.json of the checkpoint in `folder`. Raises InputError if it is missing or damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no checkpoint there; train one with `rr reproduce` or its notebook, or name another folder"
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

    Raises InputError if the folder holds no checkpoint, one of another architecture, or a damaged one.
    """
    folder = Path(folder)
    config = read_config(folder)
    found, wanted = config["component"], component.__name__
    if found != wanted:
        raise InputError(
            f"{folder}: a checkpoint of {found}, not of {wanted}; name the folder of a {wanted}"
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

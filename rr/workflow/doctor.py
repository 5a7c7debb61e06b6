"""What is installed and what has been made: the report of `rr doctor`."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from rr.errors import InputError
from rr.files import results
from rr.presets import PRESETS
from rr.provenance import PACKAGES


def examine():
    """Print the report; returns the errors that were found, as a list of InputError.

    Raises InputError if a package is missing or torch does not import.
    """

    def row(name, value):
        print(f"  {name:22}{value}")

    print("versions")
    row("python", f"{platform.python_version()} ({sys.executable})")
    try:
        for package in (*PACKAGES, "papermill", "snakemake"):
            row(package, version(package))
        import torch
        import torchvision.ops  # noqa: F401  fails if torch is of another version

        from rr.data.dataset import Packed
        from rr.models import features
        from rr.models import pretrained as weights
    except PackageNotFoundError as error:
        raise InputError(
            f"{error.name}: not installed; `pip install -r requirements.lock`"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torch and torchvision do not import ({error}); take both from one place"
        ) from None

    print("device")
    for index in range(torch.cuda.device_count()):
        free, total = (round(bytes / 2**30) for bytes in torch.cuda.mem_get_info(index))
        row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {free} of {total} GiB free")
    if not torch.cuda.is_available():
        row("cuda", "no GPU: preset smoke takes minutes, course and paper want one")
    row("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")

    broken = []
    print(f"pretrained weights ({weights.FOLDER}={os.environ.get(weights.FOLDER, '')})")
    trunks = {build.__name__ for build, *_ in filter(None, features.EXTRACTORS.values())}
    try:
        for name in sorted({"inception_v3", "alexnet", *trunks}):
            missing = f"missing: downloaded when needed, or put it into {weights.FOLDER}"
            row(name, weights.available(name) or missing)
    except InputError as error:
        broken.append(error)

    print("results")
    for name in PRESETS:
        folder = results(name)
        made = len(list((folder / "executed").glob("*.ipynb")))
        row(name, f"{made} notebooks" if made else f"none; rr reproduce --preset {name}")
        for manifest in sorted(folder.glob("data/**/manifest.json")):
            try:
                packed = Packed(manifest.parent, verify=True)
                row("", f"{packed.path}: {len(packed)} images of {packed.size} px")
            except InputError as error:
                broken.append(error)
    return broken

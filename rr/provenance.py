"""Results of notebooks, {"numbers": ..., "provenance": ...}: where every number comes from.

Provenance does not decide whether a result is current: the configuration does. It says which code,
data, versions and machine made a number.
"""

import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rr.errors import InputError
from rr.files import ROOT, read_json, sha256, write_json

PACKAGES = (
    "torch", "torchvision", "lightning-fabric", "lpips",
    "numpy", "pandas", "pillow", "scikit-image", "scikit-learn",
)  # fmt: skip


def write_result(path, numbers, *, files=(), **metadata):
    """Write the result of a notebook, as its last act; metadata as for `provenance`.

    files: names of files in the same folder that belong to the result. `read_result` checks their
    hashes.
    """
    files = {name: sha256(Path(path).parent / name) for name in files}
    write_json(path, {"numbers": numbers, "provenance": provenance(files=files, **metadata)})


def read_result(path):
    """Read a result. Raises InputError if it is missing or damaged, or one of its files changed."""
    result = read_json(path)
    if not (isinstance(result, dict) and {"numbers", "provenance"} <= result.keys()):
        raise InputError(f"{path}: not the result of a notebook; delete it and make it again")
    for name, expected in result["provenance"].get("files", {}).items():
        file = Path(path).parent / name
        if not file.is_file() or sha256(file) != expected:
            reason = f"missing, or not the one that {Path(path).name} was written with"
            raise InputError(f"{file}: {reason}; run it again")
    return result


def provenance(*, started=None, device=None, **metadata):
    """Commit, code, versions, machine, device, threads, seconds and memory, beside the metadata.

    started: time.time() at the start of the work. device: where torch computed; None: nowhere.
    metadata: for example the preset, the seed, the hash of the data, the weights that were used.
    """
    import resource

    torch = sys.modules["torch"] if device is not None else None
    on_gpu = torch is not None and torch.device(device).type == "cuda"
    gpu_memory = round(torch.cuda.max_memory_allocated(device) / 2**20) if on_gpu else None
    return {
        **metadata,
        "code": code(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "rr", "notebooks", "workflow")),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads() if torch else 1,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_gpu_memory_mib": gpu_memory,
        "seconds": round(time.time() - started, 2) if started else None,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def code():
    """First 12 digits of a SHA-256 over the package's Python files."""
    digests = [sha256(path) for path in sorted((ROOT / "rr").rglob("*.py"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def digest(tensor):
    """First 12 digits of the SHA-256 of a CPU tensor's bytes."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:12]


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments):
    """Output of a git command in the project, or None outside of a git checkout."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

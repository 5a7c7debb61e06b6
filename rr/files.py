"""Paths, atomic writes and provenance.

Defines `writing` (a file is complete or absent),
the layout of `results/` and `figures/`, and `provenance` (where a number comes from).
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rr.errors import InputError

RECOMMENDED = (
    Path(__file__).parent / "recommended"
)  # weights of the recommended restorer, with their model card
ROOT = Path(__file__).resolve().parent.parent
REFERENCE = (
    "results/reference"  # the results that come with the project; `out` of `results` and `figures`
)
PART = ".part-"  # in the names of files that are being written
PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "lpips",
    "numpy",
    "pandas",
    "pillow",
    "scikit-image",
    "scikit-learn",
)


FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def folder(path):
    """Make a folder (and those above it) unless it exists; returns it as a Path. Raises InputError if it cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (*CLOSED, errno.ENOENT):
            raise InputError(
                f"{path}: cannot be made or written to ({error.strerror}); choose another folder"
            ) from error
        raise
    return path


@contextmanager
def writing(path):
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure `path` stays as it was.

    Same folder (a rename across file systems is a copy), flushed to disk before the rename, so that neither a killed
    process nor a full disk leaves half a file under the final name. Raises InputError if the disk is full or the folder
    cannot be written to.
    """
    path = Path(path)
    folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}{PART}", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        if error.errno in (*FULL, *CLOSED):
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another folder or free space"
            ) from error
        raise
    os.close(handle)
    part = Path(name)
    try:
        yield part
        os.chmod(part, 0o644)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        if _full(error, path.parent):
            raise InputError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _full(error, folder):
    """Whether an error comes from a full disk: torch and safetensors say so in their own ways, or not at all."""
    if isinstance(error, OSError) and error.errno in FULL or "No space left" in str(error):
        return True
    return (
        type(error).__name__ in ("SafetensorError", "RuntimeError")
        and shutil.disk_usage(folder).free < 2**20
    )


@contextmanager
def alone(lock, busy, wait=True, say=print):
    """Within the block no other process of this machine is in such a block with the same file `lock`, in an existing folder.

    `busy` says in a line what another one does: the line is said before waiting for its end, or is the InputError if not `wait`.
    A lock goes with the process that holds it. Raises InputError if the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise InputError(f"{busy}; wait for its end, or stop it") from None
        say(f"{busy}; waiting for its end")
        held.acquire()
    except OSError as error:
        raise InputError(
            f"{Path(lock).parent}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
    try:
        yield
    finally:
        held.release()


def sweep(folder, stem="*"):
    """Remove what killed writers of files `stem` left in `folder`. Only for who knows that no other writer is alive."""
    for left in Path(folder).glob(f".{stem}{PART}*"):
        left.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` (UTF-8) to `path`, atomically."""
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON, atomically. NaN is written as null: JSON has no NaN."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path):
    """Read a JSON file. Raises InputError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and make it again") from None


def write_table(path, table):
    """Write a pandas DataFrame as CSV at full precision, without its index, atomically."""
    with writing(path) as part:
        table.to_csv(part, index=False)


def sha256(path):
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code(*files):
    """First 12 digits of the SHA-256 of the package's Python files and of the given ones: says which code was run.

    This is provenance only. It does not decide whether a result is current.
    """
    package = Path(__file__).parent
    digests = [sha256(path) for path in [*sorted(package.rglob("*.py")), *map(Path, files)]]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def digest(tensor):
    """First 12 digits of the SHA-256 of a CPU tensor's bytes: says whether two are the same."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:12]


def results(preset, out="results"):
    """Folder of everything a preset produced: <out>/<preset>. Relative paths start at the project's root.

    Raises InputError if `out` is empty.
    """
    if not str(out).strip():
        raise InputError("out: empty; name the folder of the results")
    return (ROOT / out / preset).resolve()


def figures(preset, out="results"):
    """Folder of a preset's figures: figures/ mirrors results/; for any other `out` it is <out>/<preset>/figures."""
    parent = results(preset, out).parent
    if parent.is_relative_to(ROOT / "results"):
        return ROOT / "figures" / parent.relative_to(ROOT / "results") / preset
    return parent / preset / "figures"


def extractor_folder(home, extractor, seed):
    """Where a trained extractor and its static condition lie; home: the results of a preset."""
    return home / "extractors" / f"{extractor}_{seed}"


def write_result(path, numbers, *, files=(), **facts):
    """Write what a notebook found, {"numbers", "provenance"}, as its last act; facts as for `provenance`.

    files: names of files beside it that belong to it; their hashes go into the provenance (see `read_result`).
    """
    files = {name: sha256(Path(path).parent / name) for name in files}
    write_json(path, {"numbers": numbers, "provenance": provenance(files=files, **facts)})


def read_result(path):
    """What `write_result` wrote. Raises InputError if it is missing or damaged, or a file that belongs to it has changed."""
    found = read_json(path)
    if not (isinstance(found, dict) and {"numbers", "provenance"} <= found.keys()):
        raise InputError(f"{path}: not the result of a notebook; delete it and make it again")
    for name, digest in found["provenance"].get("files", {}).items():
        beside = Path(path).parent / name
        if not beside.is_file() or sha256(beside) != digest:
            raise InputError(
                f"{beside}: missing, or not the one that {Path(path).name} was written with; run it again"
            )
    return found


def provenance(*, started=None, device=None, **facts):
    """Where a result comes from: commit (and whether dirty), versions, machine, device, threads, seconds, memory.

    started: time.time() at the start of the work, to give `seconds`. device: where torch computed; None: nowhere.
    facts: anything else worth knowing (preset, seed, data hash, weights used).
    """
    import resource

    torch = sys.modules["torch"] if device is not None else None
    on_gpu = torch is not None and torch.device(device).type == "cuda"
    return {
        **facts,
        "code": code(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(
            _git("status", "--porcelain", "--", "rr", "notebooks", "workflow")
        ),  # of what computes
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads() if torch else 1,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20)
        if on_gpu
        else None,
        "seconds": round(time.time() - started, 2) if started else None,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words):
    """Output of a git command in the project, or None outside of a git checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value):
    """`value` with dataclasses, paths, arrays and NaN turned into what JSON knows."""
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Path):
        return str(value)
    return value

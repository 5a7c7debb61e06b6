"""Where results lie, and how files are written: completely or not at all."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path

from rr.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RECOMMENDED = ROOT / "rr" / "recommended"  # weights of the recommended restorer, with a model card
REFERENCE = "results/reference"  # `out` of the results that come with the project
PART = ".part-"  # in the names of files that are being written
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def results(preset, out="results"):
    """Folder of everything that a preset produced: <out>/<preset>.

    A relative `out` starts at the project's root. Raises InputError if `out` is empty.
    """
    if not str(out).strip():
        raise InputError("out: empty; name the folder of the results")
    return (ROOT / out / preset).resolve()


def figures(preset, out="results"):
    """Folder of a preset's figures: figures/ mirrors results/, else <out>/<preset>/figures."""
    parent = results(preset, out).parent
    if parent.is_relative_to(ROOT / "results"):
        return ROOT / "figures" / parent.relative_to(ROOT / "results") / preset
    return parent / preset / "figures"


def extractor_folder(results_dir, extractor, seed):
    """Folder of a trained extractor and its static condition, in the results of a preset."""
    return results_dir / "extractors" / f"{extractor}_{seed}"


def folder(path):
    """Make a folder and its parents; return it as a Path. Raises InputError if that fails."""
    path = Path(path)
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def writing(path):
    """Yield a temporary path beside `path`. After the block it becomes `path`.

    If the block fails or the process is killed, `path` stays as it was. The temporary file is in
    the same folder, because a rename between file systems is a copy, and is flushed to disk first.
    Raises InputError if the disk is full or the folder is not writable.
    """
    path = Path(path)
    folder(path.parent)
    with readable_errors(path):
        handle, name = tempfile.mkstemp(path.suffix, f".{path.stem}{PART}", path.parent)
    os.close(handle)
    part = Path(name)
    try:
        with readable_errors(path, codes=()):
            yield part
            part.chmod(0o644)
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def readable_errors(path, codes=NOT_WRITABLE):
    """Turn the error of a full disk, and any of `codes`, into an InputError about `path`."""
    try:
        yield
    except Exception as error:
        if _disk_full(error, path.parent):
            line = f"{path}: the disk is full; free some space and run the same command again"
            raise InputError(line) from error
        if isinstance(error, OSError) and error.errno in codes:
            line = f"{path}: cannot be written ({error.strerror}); choose another folder"
            raise InputError(line) from error
        raise


def _disk_full(error, folder):
    """Whether the disk is full. torch and safetensors report it by errors of their own types."""
    if isinstance(error, OSError) and error.errno in FULL or "No space left" in str(error):
        return True
    other = type(error).__name__ in ("SafetensorError", "RuntimeError")
    return other and shutil.disk_usage(folder).free < 2**20


@contextmanager
def exclusive_lock(lock, busy, wait=True):
    """Keep other processes of this machine out of blocks with the same file `lock`.

    busy: what another process does, in one line. If the lock is taken, this line is printed and we
    wait; if not `wait`, it becomes an InputError. The system releases the lock of a killed process.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    with readable_errors(Path(lock)):
        try:
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise InputError(f"{busy}; wait for its end, or stop it") from None
            print(f"{busy}; waiting for its end", flush=True)
            held.acquire()
    try:
        yield
    finally:
        held.release()


def remove_partial_files(folder, stem="*"):
    """Remove what killed writers of files named `stem` left. Only call it when none is alive."""
    for part in Path(folder).glob(f".{stem}{PART}*"):
        part.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path` in UTF-8."""
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON. NaN and infinity become null, because JSON has neither."""
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda constant: None)
    write_text(path, json.dumps(plain, indent=2) + "\n")


def _plain(value):
    """A dataclass, a path, or an array of numpy or torch, as JSON has it."""
    if is_dataclass(value):
        return asdict(value)
    return str(value) if isinstance(value, Path) else value.tolist()


def read_json(path):
    """Read a JSON file. Raises InputError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and make it again") from None


def write_table(path, table):
    """Write a pandas DataFrame as CSV at full precision, without its index."""
    with writing(path) as part:
        table.to_csv(part, index=False)


def sha256(path):
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Run a notebook: its parameters are checked, then papermill runs it in a new kernel.

Notebooks are jupytext percent scripts, or .ipynb files. One cell has the tag "parameters"; its
lines are

    name: type = literal  # help            type: str | int | float | bool
"""

import ast
import asyncio
import glob
import math
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from rr.errors import InputError
from rr.files import ROOT, exclusive_lock, folder, remove_partial_files, writing

# jsonschema imports this optional package, which builds a grammar for two seconds at every start
sys.modules.setdefault("rfc3987_syntax", None)

NOTEBOOKS = ROOT / "notebooks"
TYPES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3 (ipykernel)"}
START_TIMEOUT = 60  # seconds in which a kernel must answer
# It deletes the variables of an earlier run. %reset would delete __spec__, too, which spawn needs.
RESET = "%reset_selective -f .\nget_ipython().execution_count = 1"


class NotebookError(Exception):
    """A cell or its kernel failed. The message is one line and names the executed notebook."""


def find(name):
    """The file of a notebook: a path, or the name of one of the project's notebooks.

    An .ipynb file that jupytext has not made yet is the .py file beside it. Raises InputError, with
    all names, if there is none.
    """
    given = Path(name), NOTEBOOKS / name
    for path in (*given, *(path.with_suffix(".py") for path in given)):
        if path.suffix in (".py", ".ipynb") and path.is_file():
            return path.resolve()
    names = ", ".join(path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.py")))
    raise InputError(
        f"notebook {str(name)!r}: unknown; choose one of {names}, or give the path of a notebook"
    )


def read(path):
    """The notebook in a .py or .ipynb file.

    Raises InputError if beside a .py file there is an .ipynb file with other cells: one of the two
    was edited, and jupytext must bring the other up to date.
    """
    import jupytext

    path, twin = Path(path), Path(path).with_suffix(".ipynb")
    nb = jupytext.read(path, fmt=None if path == twin else "py:percent")
    nb.metadata.setdefault("kernelspec", KERNEL)
    if path != twin and twin.is_file():
        saved = jupytext.writes(jupytext.read(twin), fmt="py:percent")
        if _cells(jupytext.reads(saved, fmt="py:percent")) != _cells(nb):
            raise InputError(
                f"{path}: {twin.name} beside it has other cells; make the older file equal to the "
                f"newer one: jupytext --sync {twin}"
            )
    return nb


def _cells(nb):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in nb.cells]


def parameters(nb, name):
    """{parameter: default} of a notebook, as papermill sees them.

    Raises InputError, which names the notebook `name`, if one is not a typed literal.
    """
    import papermill

    defaults = {}
    for parameter, seen in papermill.inspect_notebook(nb).items():
        kind, text = seen["inferred_type_name"], seen["default"]
        try:
            defaults[parameter] = ast.literal_eval(text)
            valid = kind in TYPES and type(defaults[parameter]).__name__ == kind
        except (ValueError, SyntaxError):
            valid = False
        if not valid:
            line, wanted = f"{parameter}: {kind} = {text}", f"name: {' | '.join(TYPES)} = literal"
            raise InputError(f"{name}: parameter cell: {line}; write {wanted}")
    if not defaults:
        raise InputError(f'{name}: no cell has the tag "parameters", or the cell is empty')
    return defaults


def assignment(text):
    """(name, value) of "NAME=VALUE". Raises InputError for anything else."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"-p {text}: must be NAME=VALUE")
    return name.strip(), value


def check(path, values):
    """All parameters of a notebook, {name: value}, with `values` in place of their defaults.

    values: {name: value, or its text}. Raises InputError for an unknown name or a wrong type.
    """
    name = Path(path).stem
    checked = parameters(read(path), name)
    for key, value in values.items():
        if key not in checked:
            raise InputError(f"{name}: no parameter {key!r}; choose one of {', '.join(checked)}")
        try:
            checked[key] = _typed(str(value), type(checked[key]))
        except (KeyError, ValueError):
            wanted = TYPES[type(checked[key]).__name__]
            raise InputError(f"{name}: {key}={value}: must be {wanted}") from None
    return checked


def _typed(text, kind):
    """The str, int, float or bool that a text stands for. Raises KeyError or ValueError."""
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind is float and not math.isfinite(float(text)):
        raise ValueError
    return kind(text)


def execute(path, *runs):
    """Run a notebook in the project's root, once per run (values, executed), in one kernel.

    A kernel needs seconds to start and to import torch. Every run begins without the variables of
    the one before. Its notebook is written to `executed`, completely, and also after a failure:
    then it holds the traceback, and no further run begins. What the notebook writes to stderr is
    shown. Raises InputError if the parameters do not fit, the disk is full or a cell raised
    InputError, and NotebookError if a cell failed or the kernel died.
    """
    checked = [(check(path, values), Path(executed).resolve()) for values, executed in runs]
    with tempfile.TemporaryDirectory(prefix="rr-") as scratch, _kernel(Path(scratch)) as kernel:
        for values, executed in checked:
            lock = folder(executed.parent) / f".{executed.stem}.lock"
            with exclusive_lock(lock, f"another run is writing {executed}"):
                _execute(path, values, executed, kernel, Path(scratch) / "executed.ipynb")


def _execute(path, values, executed, kernel, output):
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    nb, started, failure = read(path), time.monotonic(), None
    nb.cells.insert(0, nbformat.v4.new_code_cell(RESET))
    remove_partial_files(executed.parent, glob.escape(executed.stem))
    try:
        papermill.execute_notebook(
            nb, output, values, kernel_name="python3", language="python", cwd=ROOT,
            km=kernel, start_timeout=START_TIMEOUT, progress_bar=False, stderr_file=sys.stderr,
        )  # fmt: skip
    except (PapermillExecutionError, DeadKernelError, RuntimeError) as error:
        failure = error
    nb = nbformat.read(output, as_version=4)
    nb.cells = [cell for cell in nb.cells if cell.source != RESET]
    nb.metadata.papermill.update(input_path=Path(path).name, output_path=executed.name)
    with writing(executed) as part:
        nbformat.write(nb, part)
    if failure is None:
        print(f"{executed.stem}: done in {time.monotonic() - started:.0f} s", file=sys.stderr)
        return
    kind = getattr(failure, "ename", type(failure).__name__)
    lines = getattr(failure, "evalue", str(failure)).strip().splitlines() or [""]
    if kind == "InputError":
        raise InputError(f"{executed.stem}: {lines[-1]}")
    raise NotebookError(f"{executed.stem}: {kind}: {lines[-1]}; see the traceback in {executed}")


@contextmanager
def _kernel(scratch):
    """A manager for the kernel of this interpreter, which is dead after the block.

    The kernel is reached through socket files in `scratch`. TCP ports are found free and only then
    taken, so two kernels that start together may take the same one; the second one then hangs.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    manager = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # not one that the user installed
        transport="ipc",
        ip=str(scratch / "s"),
        connection_file=str(scratch / "kernel.json"),
    )
    try:
        yield manager
    finally:
        if manager.has_kernel:
            asyncio.run(manager.shutdown_kernel(now=True))

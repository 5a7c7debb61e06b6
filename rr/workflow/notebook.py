"""Running one notebook: its parameters are checked first, then papermill runs it in a kernel of its own.

Defines `find` (a notebook by its name), `parameters` and `check` (from the text alone: no kernel, no torch, well below
a second) and `execute`. Notebooks are jupytext percent scripts with one cell tagged "parameters", whose lines are

    name: type = literal  # help            type: str | int | float | bool
    name: str = "a"       # a | b: help     only a and b are accepted, and "" if it is the default
    name: int = 1         # from 0 to 9: help   only these; "from 0" has no upper end but that of 32 bits
"""

import ast
import glob
import io
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tokenize
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rr.errors import InputError
from rr.files import ROOT, exclusive_lock, folder, remove_partial_files, writing

NOTEBOOKS = ROOT / "notebooks"
TYPES = {"str": str, "int": int, "float": float, "bool": bool}
START = 60  # seconds in which a kernel must answer; a hung start is killed and tried once more
EVERY = 10  # seconds between two lines of a progress bar
_CELL = re.compile(
    r'^# %%[^\n]*tags=\[[^]\n]*"parameters"[^]\n]*\][^\n]*\n(.*?)(?=^# %%|\Z)', re.M | re.S
)
_BAR = re.compile(r"\[[\d:]+[<,]")  # tqdm's "[elapsed<" or "[elapsed,"
_RANGE = re.compile(r"from (\S+?)(?: to (\S+?))?[:,; ]")
_CHOICES = re.compile(r"[^\s|]+(?: \| [^\s|]+)+")


class NotebookError(Exception):
    """A cell failed, or its kernel did. The message is one line that names the executed notebook."""


class Parameter(NamedTuple):
    """One line of the parameter cell; choices is empty where any value of the type will do."""

    name: str
    type: type
    default: str | int | float | bool
    help: str
    choices: tuple[str, ...]

    @property
    def range(self):
        """(lowest, highest) of a number, from its help; without "from" nothing is checked but 32 bits."""
        found = _RANGE.match(self.help)
        low, high = found.groups() if found else (None, None)
        return float(low or -(2**31)), float(high or 2**31 - 1)


def find(name):
    """The file of a notebook: a path, or the name of one of the project's. Raises InputError that lists them."""
    for path in (Path(name), NOTEBOOKS / f"{name}.py", NOTEBOOKS / name):
        if path.is_file() and path.suffix == ".py":
            return path.resolve()
    known = ", ".join(path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.py")))
    raise InputError(
        f"notebook {str(name)!r}: unknown; choose one of {known}, or give the path of a .py notebook"
    )


def parameters(path):
    """The parameters of a notebook, {name: Parameter}, in their order.

    Raises InputError if there is no parameter cell, or if it holds anything but typed literals.
    """
    found = _CELL.search(Path(path).read_text(encoding="utf-8"))
    if not found:
        raise InputError(
            f'{path}: has no cell tagged parameters; head one with # %% tags=["parameters"]'
        )
    try:
        tree = ast.parse(found[1])
        tokens = list(tokenize.generate_tokens(io.StringIO(found[1]).readline))
    except SyntaxError as error:
        raise InputError(f"{path}: its parameter cell is not valid Python ({error.msg})") from None
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    return {each.name: each for each in (_parameter(path, node, comments) for node in tree.body)}


def _parameter(path, node, comments):
    try:
        name, kind, default = (
            node.target.id,
            TYPES[node.annotation.id],
            ast.literal_eval(node.value),
        )
        if type(default) is not kind:
            raise TypeError
    except (AttributeError, KeyError, ValueError, TypeError):
        line = ast.unparse(node).splitlines()[0]
        raise InputError(
            f"{path}: parameter cell: {line}; write: name: {' | '.join(TYPES)} = literal"
        ) from None
    about = comments.get(node.end_lineno, "")
    listed = _CHOICES.match(about)
    return Parameter(
        name, kind, default, about, tuple(listed[0].rstrip(":;,.").split(" | ")) if listed else ()
    )


def assigned(value):
    """(name, text) of "NAME=VALUE", as -p takes it. Raises InputError for anything else."""
    name, equals, text = value.partition("=")
    if not equals:
        raise InputError(f"-p {value}: must be NAME=VALUE")
    return name.strip(), text


def check(path, values):
    """All parameters of a notebook with the given values in place: {name: typed value}.

    values: {name: text or value}. Raises InputError for an unknown name (lists the names), a value that does not fit
    the type, or one that is not among the choices (lists them).
    """
    known, stem = parameters(path), Path(path).stem
    for name in values:
        if name not in known:
            raise InputError(f"{stem}: has no parameter {name!r}; choose from {', '.join(known)}")
    return {
        name: _typed(stem, each, str(values.get(name, each.default)))
        for name, each in known.items()
    }


def _typed(stem, parameter, text):
    name, kind, default, _, choices = parameter
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{stem}: {name}={text}: must be {wanted}") from None
    low, high = parameter.range
    if kind in (int, float) and not low <= value <= high:
        raise InputError(f"{stem}: {name}={text}: must be from {low:g} to {high:g}")
    if choices and text not in choices and text != default:
        raise InputError(f"{stem}: {name}={text}: unknown; choose one of {', '.join(choices)}")
    return value


def execute(path, values, executed, kernel=None):
    """Run the notebook `path` with parameter `values` in the project's root; the executed notebook goes to `executed`.

    It appears there complete, also after a failure: then it holds the traceback. Progress goes to stderr. Must be
    called from the main thread: SIGTERM and a hung kernel arrive there as signals. Raises InputError if the
    parameters do not fit, the disk is full or a cell raised InputError, else NotebookError if a cell failed or the
    kernel died.

    kernel: a forked.Kernel that is used in place of a new process, see there.
    """
    values = check(path, values)
    path, executed, started = Path(path), Path(executed).resolve(), time.monotonic()
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # optional in jsonschema, builds a grammar for 1 s at every start
    import jupytext
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    say = Say(executed.stem)  # of several runs of one notebook, which
    failure = None
    folder(executed.parent)
    with terminable(), _alone(executed, say), writing(executed) as part:
        nb = jupytext.read(path, fmt="py:percent")
        try:
            _run(nb, part, values, say, kernel)
        except (PapermillExecutionError, DeadKernelError, _NoStart) as error:
            failure = error
        nb = nbformat.read(part, as_version=4)
        nb.metadata.papermill.update(
            input_path=path.name, output_path=executed.name
        )  # not the temporary one
        nbformat.write(nb, part)
    if failure is None:
        say(f"done in {time.monotonic() - started:.0f} s")
        return
    kind, said = (
        getattr(failure, "ename", type(failure).__name__),
        getattr(failure, "evalue", str(failure)),
    )
    said = said.strip().splitlines()[-1] if said.strip() else ""
    if kind == "InputError":
        raise InputError(f"{executed.stem}: {said}")
    raise NotebookError(f"{executed.stem}: {kind}: {said}; see the traceback in {executed}")


def _run(nb, part, values, say, kernel):
    """papermill from `nb` into `part`. The kernel must answer within START seconds; the second try is a new process."""
    import nbformat
    import papermill

    for attempt, process in ((1, kernel), (2, None)):
        nbformat.write(nb, part)
        answered = False

        def on_start(notebook):
            nonlocal answered
            answered = True
            signal.setitimer(signal.ITIMER_REAL, 0)

        signal.setitimer(signal.ITIMER_REAL, START)
        try:
            with _kernel(process) as manager:
                return papermill.execute_notebook(
                    part, part, values, kernel_name="python3", language="python", cwd=ROOT, progress_bar=False,
                    km=manager, start_timeout=START, on_notebook_start=on_start,
                    on_cell_start=lambda cell, cell_index: say.cell(cell, cell_index, len(nb.cells) + 1),
                    stderr_file=say,
                )  # fmt: skip
        except (RuntimeError, TimeoutError) as error:
            if answered:
                raise
            reason = (
                str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            )
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        say(f"the kernel did not start ({reason})" + ("; trying once more" if attempt == 1 else ""))
    raise _NoStart(
        f"the kernel did not start in two attempts ({reason}); `rr doctor` tells whether torch imports"
    )


class _NoStart(Exception):
    ename = "kernel"


@contextmanager
def _kernel(kernel=None):
    """A manager for the ipykernel of this very interpreter, over sockets that no other process can meet.

    TCP ports are found free and then taken, so that two kernels starting together may cross; a socket file in a folder
    of our own cannot. However the block is left, the kernel and what it started are dead afterwards. (If this process
    is killed with -9, ipykernel notices within a second.) kernel: a process that waits to be it, else a new one is started.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    folder = Path(
        tempfile.mkdtemp(prefix="rr-")
    )  # short: the path of a socket has at most 107 characters
    manager = AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(
            kernel_dirs=[]
        ),  # no installed kernelspec, only the native one
        transport="ipc",
        ip=str(folder / "s"),
        connection_file=str(folder / "kernel.json"),
    )
    if kernel:
        manager.provisioner = kernel.provisioner(manager)
    try:
        yield manager
    finally:
        process = manager.provisioner and manager.provisioner.process
        if process:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # a kernel leads its own process group
            except ProcessLookupError:
                pass
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(executed, say):
    """One writer of `executed` at a time, on this machine; what a killed one left behind is removed."""
    with exclusive_lock(
        executed.with_name(f".{executed.stem}.lock"), f"another run is writing {executed}"
    ):
        remove_partial_files(executed.parent, glob.escape(executed.stem))
        yield


@contextmanager
def terminable():
    """SIGTERM and a lost terminal end the block like Ctrl-C does, so that its `finally` run; SIGALRM raises TimeoutError."""

    def terminate(*_):
        sys.exit(128 + signal.SIGTERM)

    def hung(*_):
        raise TimeoutError(f"no answer in {START} s")

    handlers = {signal.SIGTERM: terminate, signal.SIGHUP: terminate, signal.SIGALRM: hung}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Say:
    """Lines on stderr that begin with the run's name: its headings; as a file for the kernel's stderr, its bars.

    Many runs share one screen: of headings and of the states of a progress bar, the newest is shown every EVERY seconds.
    """

    def __init__(self, stem):
        self.stem, self.shown = stem, -math.inf

    def __call__(self, line):
        sys.stderr.write(f"{self.stem}  {line}\n")  # one write: lines of two notebooks do not mix
        sys.stderr.flush()
        self.shown = time.monotonic()

    def cell(self, cell, index, n):
        headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
        if cell.cell_type == "markdown" and headings and time.monotonic() - self.shown >= EVERY:
            self(f"cell {index + 1}/{n}  {headings[-1]}")

    def write(self, text):
        states = [state for state in re.split(r"[\r\n]", text) if _BAR.search(state)]
        if states and time.monotonic() - self.shown >= EVERY:
            self(re.sub(r"\|.*?\|", "|", states[-1], count=1).strip())

    def flush(self):
        pass

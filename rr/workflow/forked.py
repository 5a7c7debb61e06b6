"""Kernels that start fast: a server imports the libraries once, and each notebook runs in a fork of it.

    rr reproduce   `server` starts    python -m rr.forked, which imports LIBRARIES and waits
    rr run         `execute` asks it  for a fork, the runner, which calls notebook.execute
                                      with a fork of its own as the kernel

A fork is safe while there is one thread and no event loop, ZeroMQ or CUDA context to copy: the server has none, and the
runner forks the kernel before it makes any. Nothing of `rr` is carried over: a job computes with the files as they are when
it starts. Its client decides about a job, nobody else: when that ends, however it does, runner and kernel end (their socket
and pipe are closed then); when the server ends, the jobs it has accepted go on.
"""

import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from rr import files as io
from rr.errors import InputError
from rr.workflow import notebook

SERVER = "RR_FORK"  # the environment variable that names a server's socket
LIBRARIES = (
    "torch", "torchvision.models", "lightning", "lpips", "pandas", "pandera.pandas", "scipy.ndimage", "scipy.sparse.csgraph",
    "skimage.color", "skimage.data", "skimage.exposure", "skimage.morphology", "sklearn.metrics", "matplotlib.pyplot", "seaborn",
    "PIL.Image", "pyarrow.parquet", "safetensors.torch", "filelock", "tqdm",
    "torch.optim.swa_utils", "torch.distributed.checkpoint.state_dict", "IPython.display", "ipykernel.kernelapp",
    "jupytext", "nbformat", "nbclient", "papermill",
)  # fmt: skip
# variables that a library or Python reads while it is loaded: the server refuses a job with other values
LOADED = (
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "GOMP_",
    "KMP_",
    "TORCH_",
    "PYTORCH_",
    "PYTHON",
    "MPL",
    "TQDM_",
    "LD_",
    "LC_",
)

# --------------------------------------------------------------------------------------------------------- clients


@contextmanager
def server(threads):
    """A server for jobs of `threads` threads, as long as the block lasts; yields variables for the jobs' environment.

    None on systems other than Linux, whose libraries do not survive a fork. A kill -9 of this process ends it, too.
    """
    if sys.platform != "linux":
        yield {}
        return
    numbers = {
        f"{name}_NUM_THREADS": str(threads)
        for name in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")
    }  # as Snakemake
    folder = Path(
        tempfile.mkdtemp(prefix="rr-")
    )  # 0700; short: the path of a socket has at most 107 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(128)  # a job that comes while the server still loads waits
        process = subprocess.Popen(
            [sys.executable, "-m", "rr.forked", str(listener.fileno())], pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE, cwd=io.ROOT, env=os.environ | numbers, start_new_session=True,
        )  # fmt: skip
    with process:
        try:
            yield {SERVER: str(folder / "s"), **numbers}
        finally:
            process.kill()  # it holds nothing, and its jobs belong to their clients
            shutil.rmtree(folder, ignore_errors=True)


def execute(path, values, executed):
    """`notebook.execute`, same arguments and errors, in a fork of the server that RR_FORK names; if unset, here.

    If no server accepts the job: here, after a line that says so. NotebookError if an accepted job is killed.
    """
    address, stem = os.environ.get(SERVER), Path(executed).stem
    if not address:
        return notebook.execute(path, values, executed)
    job = {
        "path": path,
        "values": values,
        "executed": executed,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
    }
    with notebook.terminable(), socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(notebook.START)
            connection.connect(address)
            socket.send_fds(connection, [b" "], [0, 1, 2])
            _send(connection, job)
            answer = _receive(connection) or "it has ended"
        except OSError as error:
            answer = error.strerror or str(error)
        if answer == "accepted":
            connection.settimeout(None)
            return _outcome(connection, stem)
    print(f"{stem}  runs without the server of forks ({answer})", file=sys.stderr, flush=True)
    return notebook.execute(path, values, executed)


def _outcome(connection, stem):
    """Wait for the end of an accepted job and raise what it raised."""
    try:
        outcome = _receive(connection)
    except BaseException:  # SIGTERM or Ctrl-C: when we are gone, so is the kernel
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(20)
        with suppress(OSError):
            connection.recv(1)
        raise
    if outcome is None:
        raise notebook.NotebookError(f"{stem}: its process was killed or has failed; run it again")
    for error in (InputError, notebook.NotebookError):
        if outcome[0] == error.__name__:
            raise error(outcome[1])


def _send(connection, value):
    connection.sendall(json.dumps(value, default=str).encode() + b"\n")


def _receive(connection):
    """The value that the other side sent; None if it has ended."""
    with connection.makefile("rb", buffering=0) as lines:  # takes nothing beyond the line
        return json.loads(lines.readline() or "null")


# --------------------------------------------------------------------------------------------------------- server


def main(number):
    """Serve until stdin ends. Runners and kernels leave `_serve` and `_run` as forks and end here, as any process does.

    number: the file descriptor of the listening socket.
    """
    given = dict(os.environ)
    with socket.socket(fileno=number) as listener:
        sys.modules.setdefault("rfc3987_syntax", None)  # see notebook.execute
        for name in LIBRARIES:
            importlib.import_module(name)
        assert not sys.modules["torch"].cuda.is_initialized(), "forks cannot use CUDA"
        connection = _serve(listener)
    if connection:
        _run(connection, given)


def _serve(listener):
    """Fork for every connection and return it in the fork; None when stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for runners
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        assert threading.active_count() == 1, "a fork would miss the other threads"
        if os.fork() == 0:
            return connection
        connection.close()


def _run(connection, given):
    """The runner: one job, in its client's environment. given: the server's, before libraries added to it."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _, stdio, *_ = socket.recv_fds(connection, 1, 3)
    job = _receive(connection)
    if job is None:
        return
    wanted = job["environment"]
    names = sorted(
        name
        for name in {*given, *wanted}
        if name.startswith(LOADED) and given.get(name) != wanted.get(name)
    )
    if names:
        return _send(connection, f"{', '.join(names)}: not as in the server")
    added = {name: value for name, value in os.environ.items() if given.get(name) != value}
    _become(stdio, added | wanted, job["cwd"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "rr"]:
        del sys.modules[name]
    importlib.invalidate_caches()

    (order, orders), runner = os.pipe(), os.getpid()
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.close(orders)
        return _kernel(order, runner)
    os.close(order)
    threading.Thread(target=_end_with, args=[connection], daemon=True).start()
    _send(connection, "accepted")
    from rr.workflow import notebook

    outcome = [None, None]
    try:
        notebook.execute(job["path"], job["values"], job["executed"], Kernel(pid, orders))
    except (InputError, notebook.NotebookError) as error:
        outcome = [type(error).__name__, str(error)]
    _send(connection, outcome)


def _become(stdio, environment, cwd):
    for number, file in enumerate(stdio):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)


def _end_with(connection):
    """Thread of the runner: when its client ends, end it as SIGTERM ends an ordinary run."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


# --------------------------------------------------------------------------------------------------------- kernel


def _kernel(order, runner):
    """The kernel: waits for its order, one line of JSON, then is an ipykernel, at most as long as its runner lives."""
    os.setsid()
    with open(order, "rb") as lines:
        line = lines.readline()
    if not line:  # the runner has ended
        return
    arguments, environment, cwd = json.loads(line)
    _become([os.open(os.devnull, os.O_RDONLY)], environment, cwd)
    import matplotlib
    import numpy
    from ipykernel.kernelapp import IPKernelApp

    numpy.random.seed()  # or all kernels would draw the same numbers where none seeds
    sys.argv = ["ipykernel_launcher", *arguments]
    app = IPKernelApp.instance(
        parent_handle=runner
    )  # it looks every second whether that is still its parent
    app.initialize()
    matplotlib.rcParams["backend"] = os.environ[
        "MPLBACKEND"
    ]  # ipykernel has set it, matplotlib was there before
    app.start()


class Kernel:
    """A runner's handle of its kernel: the part of subprocess.Popen that jupyter_client uses."""

    stdin = stdout = stderr = returncode = None

    def __init__(self, pid, orders):
        self.pid, self.orders = pid, orders

    def poll(self, how=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def provisioner(self, manager):
        """Gives `manager` this process where it would start one."""
        from jupyter_client.provisioning import LocalProvisioner

        class Provisioner(LocalProvisioner):
            async def launch_kernel(provisioner, command, *, env, cwd=None, **_):
                arguments = command[command.index("ipykernel_launcher") + 1 :]
                with suppress(BrokenPipeError):  # it is dead: what comes next notices
                    os.write(
                        self.orders,
                        json.dumps([arguments, env, str(cwd or os.getcwd())]).encode() + b"\n",
                    )
                provisioner.process, provisioner.pid, provisioner.pgid = self, self.pid, self.pid
                return provisioner.connection_info

        return Provisioner(kernel_spec=manager.kernel_spec, parent=manager)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""rr.forked: the same outcome as rr.notebook, sooner, and nothing is left whoever is killed."""

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import nbformat
import pytest

from rr.data import sources
from rr.data.packing import pack
from rr.errors import InputError
from rr.files import ROOT, read_json
from rr.workflow import forked, notebook
from rr.workflow.notebook import NotebookError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server is for Linux")
CLIENT = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from rr import forked\n"
CLIENT += "path, seed, executed = sys.argv[1:]; forked.execute(path, {'seed': seed}, executed)"


@pytest.fixture(scope="module")
def jobs():
    """The environment variables of jobs of a server that has loaded everything."""
    with forked.server(1) as variables:
        yield variables


@pytest.fixture
def fork(jobs, monkeypatch):
    """Turns this process into a client: fork() with the server, fork(False) of the same threads without it."""

    def use(server=True):
        for name, value in jobs.items():
            monkeypatch.setenv(name, value)
        if not server:
            monkeypatch.delenv(forked.SERVER)

    use()
    return use


def client(environment, path, seed, executed, **options):
    command = [sys.executable, "-c", CLIENT, path, str(seed), executed]
    return subprocess.Popen(command, env=os.environ | environment, **{"cwd": ROOT} | options)


@contextmanager
def small_server(folder, cwd=ROOT, **variables):
    """A server of its own that has loaded torch and little else: (its process, the environment of jobs)."""
    script = "import sys; from rr import forked\nforked.LIBRARIES = 'torch', 'ipykernel.kernelapp', 'papermill', 'jupytext'\n"
    script += "forked.main(int(sys.argv[1]))"
    environment = os.environ | variables
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        number = listener.fileno()
        command = [sys.executable, "-c", script, str(number)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, cwd=cwd, env=environment, pass_fds=[number]
        )
    with process:
        try:
            yield process, {forked.SERVER: str(folder / "s"), **variables}
        finally:
            process.kill()


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        output.text
        for cell in cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


# ----------------------------------------------------------------------------------------------- the same, sooner


def test_a_run_in_a_fork(toy, tmp_path, fork, monkeypatch, capfd):
    monkeypatch.setenv("WHO", "the client")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    path = toy(
        "import os, sys\nhad = 'torch' in sys.modules\nimport matplotlib, torch\n"
        "print(seed, os.environ['WHO'], had, os.getcwd(), os.environ['CUDA_VISIBLE_DEVICES'], sys.stdin.read())\n"
        "print(torch.get_num_threads(), torch.cuda.is_initialized(), matplotlib.get_backend())"
    )
    forked.execute(path, {"seed": 5}, tmp_path / "a" / "toy.ipynb")
    first, second = printed(tmp_path / "a" / "toy.ipynb").splitlines()
    assert first.split() == ["5", "the", "client", "True", str(ROOT), "7"]
    assert second.split() == ["1", "False", "module://matplotlib_inline.backend_inline"]
    said = capfd.readouterr().err.splitlines()
    assert (
        said[0] == "toy  cell 3/4  The work"
        and said[1].startswith("toy  done in")
        and len(said) == 2
    )
    assert [each.name for each in (tmp_path / "a").iterdir()] in (
        ["toy.ipynb", ".toy.lock"],
        [".toy.lock", "toy.ipynb"],
    )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "rr":
                yield from (f"rr.{alias.name}" for alias in node.names)


def test_everything_that_notebooks_import_is_loaded_before(toy, tmp_path, fork):
    used, files = set(), [*ROOT.glob("notebooks/[0-9]*.py"), ROOT / "rr" / "notebook.py"]
    for path in files:  # grows: modules of rr that are imported
        new = set(imports(path)) - used
        files += [ROOT / f"{name.replace('.', '/')}.py" for name in new if name.startswith("rr.")]
        used |= new
    used = {name for name in used if name.partition(".")[0] not in {*sys.stdlib_module_names, "rr"}}
    assert {"torch", "papermill", "seaborn", "torchvision"} < used
    code = f"import sys\nprint([name for name in {sorted(used)} if name not in sys.modules])"
    forked.execute(toy(code), {}, tmp_path / "toy.ipynb")
    assert printed(tmp_path / "toy.ipynb") == "[]\n"


def test_a_fork_is_three_times_faster(toy, tmp_path, fork):
    path = toy("import torch, torchvision, lightning")

    def seconds(times):
        took = []
        for _ in range(times):
            started = time.monotonic()
            forked.execute(path, {}, tmp_path / "toy.ipynb")
            took.append(time.monotonic() - started)
        return min(took)

    fast = seconds(2)
    fork(False)
    slow = seconds(1)
    print(f"a fork {fast:.2f} s, a new kernel {slow:.2f} s")
    assert slow > 3 * fast


def test_the_numbers_are_those_of_a_new_kernel(tmp_path, fork):
    packed = pack(sources.embedded(40), 80, tmp_path / "data")
    results, models = [], []
    for way in ("forked", "new"):
        fork(way == "forked")
        values = {"preset": "mini", "out": tmp_path / way, "data": packed.path, "device": "cpu"}
        forked.execute(notebook.find("05_vae"), values, tmp_path / f"{way}.ipynb")
        results.append(read_json(tmp_path / way / "mini" / "05_vae.json"))
        models.append(
            [
                each.name
                for each in (tmp_path / way / "mini" / "checkpoints" / "vae").glob("weights-*")
            ]
        )
    assert (
        results[0]["numbers"] == results[1]["numbers"] and models[0] == models[1] != []
    )  # named by hash
    assert results[0]["provenance"]["threads"] == results[1]["provenance"]["threads"] == 1


def test_kernels_draw_different_unseeded_numbers(toy, tmp_path, fork):
    path = toy(
        "import random, uuid, numpy\nprint(random.random(), numpy.random.rand(), uuid.uuid4())"
    )
    for name in "ab":
        forked.execute(path, {}, tmp_path / f"{name}.ipynb")
    assert not set(printed(tmp_path / "a.ipynb").split()) & set(
        printed(tmp_path / "b.ipynb").split()
    )


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize(
    "code, error, message",
    [
        (
            "raise ValueError('first\\nlast line')",
            NotebookError,
            r"^toy: ValueError: last line; see the traceback in ",
        ),
        (
            "from rr.presets import preset as of\nof('tiny')",
            InputError,
            r"^toy: preset 'tiny': unknown; choose one of mini",
        ),
        (
            "import os\nos.kill(os.getpid(), 9)",
            NotebookError,
            r"^toy: DeadKernelError: Kernel died; see the traceback in",
        ),
    ],
)
def test_errors_pass_through(toy, tmp_path, fork, code, error, message, server):
    fork(server)
    with pytest.raises(error, match=message):
        forked.execute(toy(code), {}, tmp_path / "toy.ipynb")
    assert "kill" in code or "Traceback" in str(
        nbformat.read(tmp_path / "toy.ipynb", as_version=4).cells
    )
    with pytest.raises(InputError, match="^toy: has no parameter 'sed'"):
        forked.execute(toy(), {"sed": 1}, tmp_path / "toy.ipynb")


def test_what_runs_is_the_code_on_disk(toy, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "rr", project / "rr", ignore=shutil.ignore_patterns("__pycache__"))
    path = toy(
        "from rr import notebook, presets, fresh\nprint(notebook.START, len(presets.PRESETS), fresh.FRESH)"
    )
    with small_server(tmp_path, cwd=project, PYTHONPATH=str(project)) as (_, environment):
        for start, fresh in ((61, 1), (62, 2)):
            with open(project / "rr" / "notebook.py", "a") as file:
                file.write(f"\nSTART = {start}\n")
            (project / "rr" / "fresh.py").write_text(f"FRESH = {fresh}\n")
            with client(environment, path, 0, tmp_path / "toy.ipynb", cwd=project) as process:
                assert process.wait(60) == 0
            assert printed(tmp_path / "toy.ipynb").split()[::2] == [str(start), str(fresh)]


# -------------------------------------------------------------------------------------------- without, and killed


@pytest.mark.parametrize(
    "server, reason",
    [
        ("never was", "No such file or directory"),
        ("has ended", "Connection refused"),
        ("ends now", "it has ended|Connection reset by peer|Broken pipe"),
    ],
)
def test_without_a_server_the_run_is_an_ordinary_one(
    toy, tmp_path, monkeypatch, capfd, server, reason
):
    monkeypatch.setenv(forked.SERVER, str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        if server != "never was":
            listener.bind(str(tmp_path / "s"))
        if server == "ends now":
            listener.listen()
            pool.submit(lambda: listener.accept()[0].close())
        forked.execute(toy("print(seed)"), {"seed": 3}, tmp_path / "toy.ipynb")
    assert printed(tmp_path / "toy.ipynb") == "3\n"
    first, *rest = capfd.readouterr().err.splitlines()
    assert (
        re.fullmatch(rf"toy  runs without the server of forks \(({reason})\)", first)
        and len(rest) == 2
    )


def test_a_job_of_other_threads_is_refused(toy, tmp_path, fork, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    forked.execute(toy("import torch\nprint(torch.get_num_threads())"), {}, tmp_path / "toy.ipynb")
    assert printed(tmp_path / "toy.ipynb") == "2\n"
    assert (
        "forks (MKL_NUM_THREADS, OMP_NUM_THREADS: not as in the server)" in capfd.readouterr().err
    )


def test_a_kernel_that_hangs_is_replaced_by_a_new_one(toy, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(notebook, "START", 8)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as hung:
        order, orders = os.pipe()
        try:
            notebook.execute(
                toy("print(seed)"), {}, tmp_path / "toy.ipynb", forked.Kernel(hung.pid, orders)
            )
        finally:
            os.close(order), os.close(orders)
            hung.kill()
    assert printed(tmp_path / "toy.ipynb") == "0\n" and "trying once more" in capfd.readouterr().err
    assert not alive(hung.pid)


@contextmanager
def at_work(toy, folder, environment, last="time.sleep(600)"):
    """A client whose notebook has started: (its process, runner's pid, kernel's pid)."""
    told = folder / "pids"
    path = toy(
        f"import os, time\nopen({str(told)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}} ')\n{last}"
    )
    with client(
        environment, path, 0, folder / "toy.ipynb", stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait(lambda: told.exists() and told.read_text().endswith(" "), 60)
            yield process, *map(int, told.read_text().split())
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
@pytest.mark.parametrize("who", ["client", "runner"])
def test_no_kernel_outlives_its_run(toy, tmp_path, jobs, name, who):
    with at_work(toy, tmp_path, jobs) as (process, runner, kernel):
        assert os.getpgid(kernel) == kernel and os.getpgid(runner) == runner
        os.kill(process.pid if who == "client" else runner, getattr(signal, name))
        said = process.communicate(timeout=20)[1]
        assert process.returncode != 0
        if who == "runner":
            assert "NotebookError: toy: its process was killed or has failed; run it again" in said
        elif name != "SIGKILL":  # who ends in order ends last
            assert not alive(kernel)
        wait(lambda: not alive(kernel) and not alive(runner), 10)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL", "EOF"])
def test_jobs_survive_their_server_and_end(toy, tmp_path, name):
    with small_server(tmp_path) as (server, environment):
        with at_work(toy, tmp_path, environment, "time.sleep(2)\nprint('here')") as (
            process,
            runner,
            kernel,
        ):
            server.stdin.close() if name == "EOF" else server.send_signal(getattr(signal, name))
            server.wait(20)
            assert process.wait(30) == 0 and printed(tmp_path / "toy.ipynb") == "here\n"
            wait(lambda: not alive(kernel) and not alive(runner), 10)


def test_a_server_ends_with_its_owner():
    script = "import time; from rr import forked\nwith forked.server(1): print('x', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout.readline()
        with open(f"/proc/{owner.pid}/task/{owner.pid}/children") as children:
            (server,) = map(int, children.read().split())
        owner.kill()
    wait(lambda: not alive(server), 60)


@pytest.mark.parametrize("server", [True, False])
def test_runs_side_by_side_do_not_cross(toy, tmp_path, jobs, server):
    path = toy("import os\nprint(seed, os.environ['WHO'])")

    def run(seed):
        environment = {"WHO": f"w{seed}", **jobs} if server else {"WHO": f"w{seed}"}
        with client(
            environment, path, seed, tmp_path / f"{seed}.ipynb", stderr=subprocess.PIPE, text=True
        ) as process:
            said = process.communicate(timeout=120)[1]
        return process.returncode, "without" in said, printed(tmp_path / f"{seed}.ipynb")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(20))) == [
            (0, False, f"{seed} w{seed}\n") for seed in range(20)
        ]

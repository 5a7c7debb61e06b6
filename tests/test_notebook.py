"""Running one notebook, and what every notebook of the project must keep to."""

import ast
import signal
import subprocess
import sys
import time

import jupytext.cli
import nbformat
import papermill
import pytest

from rr.errors import InputError
from rr.files import ROOT
from rr.workflow import notebook

NOTEBOOKS = sorted(notebook.NOTEBOOKS.glob("[0-9]*.py"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# --------------------------------------------------------------------------------------- parameters


def test_check_gives_typed_values(toy):
    given = {"seed": "7", "rate": "2e-4", "fast": "True", "backbone": "unet++"}
    others = {"preset": "mini", "out": "results"}
    assert notebook.check(toy(), given) == {
        **others, "seed": 7, "rate": 2e-4, "fast": True, "backbone": "unet++",
    }  # fmt: skip
    defaults = {"seed": 0, "rate": 1e-3, "fast": False, "backbone": ""}
    assert notebook.check(toy(), {}) == {**others, **defaults}
    assert notebook.check(toy(), {"seed": 3, "fast": True})["fast"] is True


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sed", "1", r"no parameter 'sed'; choose one of preset, seed, out, rate, fast, backbone"),
        ("seed", "1.5", r"toy: seed=1.5: must be a whole number"),
        ("seed", "", r"must be a whole number"),
        ("rate", "fast", r"rate=fast: must be a number"),
        ("rate", "nan", r"rate=nan: must be a number"),
        ("fast", "yes", r"must be true or false"),
    ],
)
def test_check_refuses_unknown_names_and_wrong_types(toy, name, text, message):
    with pytest.raises(InputError, match=message):
        notebook.check(toy(), {name: text})


@pytest.mark.parametrize(
    "line", ["seed = 0", "seed: int = 1 + 1", "seed: int = 0.5", "seed: list = []"]
)
def test_parameters_are_typed_literals(tmp_path, line):
    path = tmp_path / "bad.py"
    path.write_text(f'# %% tags=["parameters"]\n{line}\n\n# %%\n1\n')
    with pytest.raises(InputError, match="bad: parameter cell: seed: .*; write name: str | int"):
        notebook.check(path, {})


def test_a_notebook_without_parameters_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("# %%\n1\n")
    with pytest.raises(InputError, match='bad: no cell has the tag "parameters"'):
        notebook.check(path, {})


def test_find(toy, tmp_path, monkeypatch):
    assert notebook.find(toy()) == toy()
    assert notebook.find("05_vae") == notebook.NOTEBOOKS / "05_vae.py"
    monkeypatch.setattr(notebook, "NOTEBOOKS", tmp_path)
    path, twin = tmp_path / "00_start_here.py", tmp_path / "00_start_here.ipynb"
    path.touch()
    for name in ("00_start_here", "00_start_here.py", "00_start_here.ipynb", twin):
        assert notebook.find(name) == path
    twin.touch()  # what JupyterLab has made is run itself
    assert notebook.find(twin) == twin and notebook.find("00_start_here") == path
    with pytest.raises(InputError, match="'99_nothing': unknown; choose one of 00_start_here, or"):
        notebook.find("99_nothing")


# ---------------------------------------------------------------------------------------- execution


def outputs(path):
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def test_execute(toy, tmp_path, monkeypatch, capfd):
    # an installed kernel of the same name is not used: it may be of another environment
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
    code = "import os, sys\nprint(seed, sys.executable, os.getcwd())\nprint('bar', file=sys.stderr)"
    executed = tmp_path / "with {braces}" / "toy.ipynb"
    notebook.execute(toy(code), ({"seed": "5"}, executed))
    printed, warned = outputs(executed)
    assert printed.text.split() == ["5", sys.executable, str(ROOT)] and warned.text == "bar\n"
    metadata = nbformat.read(executed, 4).metadata.papermill
    assert metadata.parameters.seed == 5 and metadata.duration > 0
    assert (metadata.input_path, metadata.output_path) == ("toy.py", "toy.ipynb")
    assert {path.name for path in executed.parent.iterdir()} == {"toy.ipynb", ".toy.lock"}
    assert "bar\n" in capfd.readouterr().err


def test_a_failure_keeps_its_traceback_and_names_it(toy, tmp_path):
    executed = tmp_path / "toy.ipynb"
    message = rf"^toy: ValueError: last line; see the traceback in {executed}$"
    with pytest.raises(notebook.NotebookError, match=message):
        notebook.execute(toy("raise ValueError('first line\\nlast line')"), ({}, executed))
    (error,) = outputs(executed)
    assert error.ename == "ValueError" and "last line" in error.traceback[-1]


def test_runs_in_one_kernel_do_not_see_each_other(toy, tmp_path):
    """Fails if a run could use a variable of the one before, or if it has a kernel of its own."""
    path = toy("import os\nprint(os.getpid(), seed, 'left' in dir())\nleft = __spec__")
    runs = [({"seed": seed}, tmp_path / f"{seed}.ipynb") for seed in (3, 4)]
    notebook.execute(path, *runs)
    first, second = (outputs(executed)[0].text.split() for _, executed in runs)
    assert first[0] == second[0] and first[1:] == ["3", "False"] and second[1:] == ["4", "False"]
    for _, executed in runs:
        cells = nbformat.read(executed, 4).cells
        counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
        assert counts == [1, 2, 3]  # as if each had a kernel of its own


def test_no_run_begins_after_one_that_failed(toy, tmp_path):
    runs = [({"seed": seed}, tmp_path / f"{seed}.ipynb") for seed in range(3)]
    with pytest.raises(notebook.NotebookError, match="^1: AssertionError"):
        notebook.execute(toy("assert seed != 1"), *runs)
    assert [executed.exists() for _, executed in runs] == [True, True, False]


def test_bad_input_in_a_cell_is_bad_input_of_the_run(toy, tmp_path):
    path = toy("from rr.presets import preset as choose_preset\nchoose_preset('tiny')")
    with pytest.raises(InputError, match=r"^toy: preset 'tiny': unknown; choose one of mini"):
        notebook.execute(path, ({}, tmp_path / "toy.ipynb"))


def test_a_killed_kernel_is_an_error(toy, tmp_path):
    with pytest.raises(notebook.NotebookError, match="Kernel died"):
        notebook.execute(toy("import os\nos.kill(os.getpid(), 9)"), ({}, tmp_path / "toy.ipynb"))
    assert (tmp_path / "toy.ipynb").exists()


def test_a_kernel_that_does_not_start_is_an_error(toy, tmp_path, monkeypatch):
    from jupyter_client import AsyncKernelManager

    silent = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(AsyncKernelManager, "format_kernel_cmd", lambda *_, **__: silent)
    monkeypatch.setattr(notebook, "START_TIMEOUT", 1)
    with pytest.raises(notebook.NotebookError, match="Kernel didn't respond in 1 seconds"):
        notebook.execute(toy(), ({}, tmp_path / "toy.ipynb"))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_no_kernel_outlives_its_run(toy, tmp_path, name):
    told = tmp_path / "pid"
    code = f"import os, time\nprint(os.getpid(), file=open({str(told)!r}, 'w'))\ntime.sleep(600)"
    command = [sys.executable, "-m", "rr", "run", toy(code), "-p", f"out={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait(lambda: told.exists() and told.read_text().endswith("\n"))
            process.send_signal(getattr(signal, name))
            assert process.wait(20) != 0
        finally:
            process.kill()
    wait(lambda: not alive(int(told.read_text())), 10)


def test_runs_side_by_side_do_not_cross(toy, tmp_path):
    path = toy("import time\ntime.sleep(0.5)\nprint(seed)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "rr", "run", path, "-p", f"seed={seed}",
             "--executed", tmp_path / f"{seed}.ipynb"],
            cwd=ROOT, stderr=subprocess.DEVNULL,
        )
        for seed in range(4)
    ]  # fmt: skip
    assert [process.wait(120) for process in processes] == [0] * 4
    for seed in range(4):
        assert outputs(tmp_path / f"{seed}.ipynb")[0].text == f"{seed}\n"


# ------------------------------------------------------------------------- pairs with .ipynb files


@pytest.fixture
def pair(tmp_path):
    """A copy of 05_vae.py and jupytext's settings, and the .ipynb file that jupytext makes."""
    for name in ("05_vae.py", "jupytext.toml"):
        (tmp_path / name).write_text((notebook.NOTEBOOKS / name).read_text())
    path = tmp_path / "05_vae.py"
    sync(path)
    return path, path.with_suffix(".ipynb")


def sync(path):
    jupytext.cli.jupytext(["--sync", "--quiet", str(path)])


def edit(twin, cell, text):
    nb = nbformat.read(twin, 4)
    nb.cells[cell].source += text
    nbformat.write(nb, twin)


def test_an_edited_ipynb_is_not_ignored(pair):
    path, twin = pair
    assert notebook.check(path, {}) == notebook.check(twin, {})
    edit(twin, -1, "\nprint('an edit in JupyterLab')")
    with pytest.raises(InputError, match=f"05_vae.ipynb .*: jupytext --sync {twin}$"):
        notebook.read(path)
    assert "an edit" in notebook.read(twin).cells[-1].source  # `rr run notebooks/05_vae.ipynb`
    sync(twin)
    assert "an edit" in notebook.read(path).cells[-1].source


def test_an_edited_py_is_not_ignored(pair):
    path, twin = pair
    path.write_text(path.read_text().replace("latent: int = 0", "latent: int = 8"))
    with pytest.raises(InputError, match="has other cells"):
        notebook.check(path, {})
    sync(path)
    assert notebook.check(twin, {})["latent"] == 8


def test_outputs_are_no_edit(pair):
    path, twin = pair
    nb = nbformat.read(twin, 4)
    code = next(cell for cell in nb.cells if cell.cell_type == "code")
    code.outputs, code.execution_count = [nbformat.v4.new_output("stream", text="1\n")], 1
    code.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
    nb.metadata["language_info"] = {"name": "python", "version": "3.12.1"}
    nbformat.write(nb, twin)
    notebook.read(path)
    before = path.read_text()
    sync(twin)
    assert path.read_text() == before


def test_saving_in_jupyterlab_leaves_the_py_file_as_it_is(pair):
    """jupytext's contents manager is what JupyterLab opens and saves notebooks with."""
    from jupytext import TextFileContentsManager

    path, twin = pair
    manager = TextFileContentsManager(root_dir=str(path.parent))
    before = path.read_bytes()
    model = manager.get("05_vae.py", content=True, type="notebook")
    model["content"].metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python",
    }  # fmt: skip
    model["content"].metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    manager.save(model, "05_vae.py")
    assert path.read_bytes() == before
    model = manager.get("05_vae.ipynb", content=True, type="notebook")
    model["content"].cells[-1].source += "\nprint('an edit')"
    manager.save(model, "05_vae.ipynb")
    assert path.read_text() == before.decode().rstrip() + "\nprint('an edit')\n"
    assert notebook.read(path).cells[-1].source == notebook.read(twin).cells[-1].source


# ------------------------------------------------------------------------- the project's notebooks


@each_notebook
def test_papermill_finds_every_parameter(path):
    """papermill reads the cell line by line, jupytext decides which cell it is."""
    cell = next(c for c in notebook.read(path).cells if "parameters" in c.metadata.get("tags", []))
    names = [line.target.id for line in ast.parse(cell.source).body]
    parameters = papermill.inspect_notebook(notebook.read(path))
    assert list(parameters) == names and all(parameter["help"] for parameter in parameters.values())
    values = notebook.check(path, {})
    assert values["preset"] == "smoke" and values["out"] == "results"
    assert values.get("seed", 0) == 0 and values.get("seeds", 1) == 1


@each_notebook
def test_notebook_defines_nothing_and_stays_in_python(path):
    cells = [cell for cell in notebook.read(path).cells if cell.cell_type == "code"]
    for cell in cells:
        starts = [line.lstrip() for line in cell.source.splitlines()]
        assert not any(line.startswith(("!", "%", "get_ipython")) for line in starts)
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            attribute = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert attribute not in ("sys.path", "os.system")


@each_notebook
def test_jupytext_keeps_a_notebook_as_it_is(path, tmp_path):
    for file in (path, notebook.NOTEBOOKS / "jupytext.toml"):
        (tmp_path / file.name).write_text(file.read_text())
    copy = tmp_path / path.name
    sync(copy)
    twin = copy.with_suffix(".ipynb")
    twin.touch()  # the newer file: jupytext writes the other one
    sync(twin)
    assert copy.read_text() == path.read_text()

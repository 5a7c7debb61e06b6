"""rr.notebook on throw-away notebooks, and what every notebook of the project must keep to."""

import ast
import os
import signal
import subprocess
import sys
import time

import jupytext
import jupytext.cli
import nbformat
import papermill
import pytest

from rr.errors import InputError
from rr.files import ROOT
from rr.presets import PRESETS
from rr.workflow import notebook

NOTEBOOKS = sorted(notebook.NOTEBOOKS.glob("[0-9]*.py"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def inspect(path, folder):
    """papermill's own reading of the parameter cell."""
    copy = folder / f"{path.stem}.ipynb"
    nbformat.write(jupytext.read(path, fmt="py:percent"), copy)
    return papermill.inspect_notebook(copy)


def agree(path, folder):
    ours, theirs = notebook.parameters(path), inspect(path, folder)
    assert list(ours) == list(theirs)
    for name, each in ours.items():
        assert each.default == ast.literal_eval(theirs[name]["default"])
        assert (
            each.help == theirs[name]["help"]
            and each.type.__name__ == theirs[name]["inferred_type_name"]
        )


# ------------------------------------------------------------------------------------------------------ parameters


def test_parameters_are_those_that_papermill_finds(toy, tmp_path):
    path = toy()
    agree(path, tmp_path)
    found = notebook.parameters(path)
    assert found["preset"].choices == ("mini", "smoke") and found["backbone"].choices == (
        "vae",
        "unet++",
        "unet",
    )
    assert (
        found["rate"].choices == () and found["rate"].default == 1e-3 and found["fast"].type is bool
    )


def test_check_gives_typed_values(toy):
    values = notebook.check(
        toy(), {"seed": "7", "rate": "2e-4", "fast": "True", "backbone": "unet++"}
    )
    assert values == {
        "preset": "mini",
        "seed": 7,
        "out": "results",
        "rate": 2e-4,
        "fast": True,
        "backbone": "unet++",
    }
    assert notebook.check(toy(), {"backbone": ""})["backbone"] == ""


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("sed", "1", r"no parameter 'sed'; choose from preset, seed, out, rate, fast, backbone"),
        ("seed", "1.5", r"seed=1.5: must be a whole number"),
        ("seed", "", r"must be a whole number"),
        ("seed", "-1", r"seed=-1: must be from 0 to"),
        ("seed", "9" * 30, r"must be from 0 to"),
        ("rate", "-0.1", r"rate=-0.1: must be from 0 to 1$"),
        ("rate", "fast", r"rate=fast: must be a number"),
        ("rate", "nan", r"rate=nan: must be a number"),
        ("fast", "yes", r"must be true or false"),
        ("preset", "tiny", r"preset=tiny: unknown; choose one of mini, smoke$"),
        ("preset", "", r"choose one of mini, smoke"),
        ("backbone", "gan", r"choose one of vae, unet\+\+, unet"),
    ],
)
def test_check_refuses(toy, name, text, message):
    with pytest.raises(InputError, match=message):
        notebook.check(toy(), {name: text})


WRONG = ["seed = 0", "seed: int = 1 + 1", "seed: int = 0.5", "seed: list = []", "import os", "a b"]


@pytest.mark.parametrize("line", WRONG)
def test_parameter_cells_hold_typed_literals_only(tmp_path, line):
    path = tmp_path / "bad.py"
    path.write_text(f'# %% tags=["parameters"]\n{line}\n\n# %%\n1\n')
    with pytest.raises(InputError, match="parameter cell"):
        notebook.parameters(path)
    path.write_text("# %%\n1\n")
    with pytest.raises(InputError, match="no cell tagged parameters"):
        notebook.parameters(path)


def test_find(toy):
    assert notebook.find(toy()) == toy()
    with pytest.raises(InputError, match="'99_nothing': unknown; choose one of"):
        notebook.find("99_nothing")


# ------------------------------------------------------------------------------------------------------- execution


def outputs(path):
    nb = nbformat.read(path, as_version=4)
    return nb, [output for cell in nb.cells for output in cell.get("outputs", [])]


def left_over(folder):
    return [
        each.name
        for each in folder.iterdir()
        if each.suffix == ".ipynb" and each.name.startswith(".")
    ]


def test_execute(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(
        "JUPYTER_PATH", str(tmp_path)
    )  # an installed kernelspec of the same name is not taken
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "other", "language": "python"}'
    )
    executed = tmp_path / "executed" / "toy.ipynb"
    notebook.execute(
        toy("import os, sys\nprint(seed, sys.executable, os.getcwd())"), {"seed": "5"}, executed
    )
    nb, (printed,) = outputs(executed)
    assert printed.text.split() == ["5", sys.executable, str(ROOT)]
    assert nb.metadata.papermill.parameters.seed == 5 and nb.metadata.papermill.duration > 0
    assert (
        str(tmp_path) not in nb.metadata.papermill.output_path and left_over(executed.parent) == []
    )
    said = capsys.readouterr().err
    assert "toy  cell 3/4  The work" in said and "toy  done in" in said


def test_a_failure_keeps_its_traceback_and_names_it(toy, tmp_path):
    executed = tmp_path / "toy.ipynb"
    path = toy("raise ValueError('first line\\nlast line')")
    with pytest.raises(
        notebook.NotebookError,
        match=rf"^toy: ValueError: last line; see the traceback in {executed}$",
    ):
        notebook.execute(path, {}, executed)
    _, (error,) = outputs(executed)
    assert error.ename == "ValueError" and "last line" in error.traceback[-1]
    assert left_over(tmp_path) == []


def test_bad_input_in_a_cell_is_bad_input_of_the_run(toy, tmp_path):
    path = toy("from rr.presets import preset as of\nof('tiny')")
    with pytest.raises(InputError, match=r"^toy: preset 'tiny': unknown; choose one of mini"):
        notebook.execute(path, {}, tmp_path / "toy.ipynb")


def test_a_killed_kernel_is_an_error_and_no_hang(toy, tmp_path):
    started = time.monotonic()
    with pytest.raises(notebook.NotebookError, match="Kernel died"):
        notebook.execute(toy("import os\nos.kill(os.getpid(), 9)"), {}, tmp_path / "toy.ipynb")
    assert time.monotonic() - started < 30 and (tmp_path / "toy.ipynb").exists()


@pytest.mark.parametrize("hangs", [1, 2])
def test_a_hung_start_is_tried_once_more(toy, tmp_path, monkeypatch, capsys, hangs):
    from jupyter_client import AsyncKernelManager

    commands, pids = [], []
    format_command, launch = (
        AsyncKernelManager.format_kernel_cmd,
        AsyncKernelManager._async_launch_kernel,
    )

    def command(self, *words, **options):
        commands.append(format_command(self, *words, **options))
        return (
            [sys.executable, "-c", "import time; time.sleep(600)"]
            if len(commands) <= hangs
            else commands[-1]
        )

    async def launched(self, *words, **options):
        await launch(self, *words, **options)
        pids.append(self.provisioner.process.pid)

    monkeypatch.setattr(AsyncKernelManager, "format_kernel_cmd", command)
    monkeypatch.setattr(AsyncKernelManager, "_async_launch_kernel", launched)
    monkeypatch.setattr(notebook, "START", 2 if hangs == 2 else 8)
    if hangs == 1:
        notebook.execute(toy("print(seed)"), {}, tmp_path / "toy.ipynb")
        assert outputs(tmp_path / "toy.ipynb")[1][0].text == "0\n"
    else:
        with pytest.raises(
            notebook.NotebookError, match="the kernel did not start in two attempts"
        ):
            notebook.execute(toy("print(seed)"), {}, tmp_path / "toy.ipynb")
    assert len(commands) == len(pids) == 2 and "trying once more" in capsys.readouterr().err
    assert not any(alive(pid) for pid in pids)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_no_kernel_outlives_its_run(toy, tmp_path, name):
    told = tmp_path / "pid"
    path = toy(
        f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()) + ' ')\ntime.sleep(600)"
    )
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
    script += "from rr import notebook; notebook.execute(*sys.argv[1:2], {}, sys.argv[2])"
    command = [sys.executable, "-c", script, path, tmp_path / "toy.ipynb"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            wait(lambda: told.exists() and told.read_text().endswith(" "), 60)
            process.send_signal(getattr(signal, name))
            assert process.wait(20) != 0
        finally:
            process.kill()
    kernel = int(told.read_text())
    wait(lambda: not alive(kernel), 10)


def wait(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def test_runs_side_by_side_do_not_cross(toy, tmp_path):
    path = toy("import os, time\ntime.sleep(0.5)\nprint(seed, os.environ['WHO'])")
    script = "import sys; from rr import notebook; notebook.execute(sys.argv[1], {'seed': sys.argv[2]}, sys.argv[3])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, path, str(seed), tmp_path / f"{seed}.ipynb"],
            cwd=ROOT, env={**os.environ, "WHO": f"w{seed}"}, stderr=subprocess.DEVNULL,
        )
        for seed in range(4)
    ]  # fmt: skip
    assert [process.wait(120) for process in processes] == [0] * 4
    for seed in range(4):
        assert outputs(tmp_path / f"{seed}.ipynb")[1][0].text == f"{seed} w{seed}\n"


def test_the_state_of_a_progress_bar_is_shown_now_and_then(monkeypatch, capsys):
    say, now = notebook.Say("03_features"), [100.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    for step in range(100):
        now[0] += 0.5
        say.write(f"\rtrain: {step}%|#####| {step}/100 [00:{step:02}<00:10, 2.00it/s]")
        say.write("UserWarning: something\n")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and lines[0] == "03_features  train: 0%| 0/100 [00:00<00:10, 2.00it/s]"
    say.write("\rtrain: 5step [00:03, 1.2step/s]")
    assert capsys.readouterr().err == ""
    now[0] += 20
    say.write("\rtrain: 6step [00:13, 1.2step/s]")
    assert capsys.readouterr().err == "03_features  train: 6step [00:13, 1.2step/s]\n"


# ---------------------------------------------------------------------------------------- the project's notebooks


@each_notebook
def test_notebook_parameters(path, tmp_path):
    agree(path, tmp_path)
    found = notebook.parameters(path)
    assert {"preset", "out"} <= found.keys() and all(each.help for each in found.values())
    assert (
        found["seed"].default == 0
        if "seed" in found
        else (found["seeds"].default, found["seeds"].range[0]) == (1, 1)
    )
    assert found["preset"].choices == tuple(PRESETS) and found["preset"].default == "smoke"
    assert found["out"].default == "results"
    if "device" in found:
        assert found["device"].choices == ("auto", "cpu", "cuda")


@each_notebook
def test_notebook_defines_nothing_and_stays_in_python(path):
    cells = [
        cell for cell in jupytext.read(path, fmt="py:percent").cells if cell.cell_type == "code"
    ]
    for cell in cells:
        assert not any(
            line.lstrip().startswith(("!", "%", "get_ipython")) for line in cell.source.splitlines()
        )
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assert not isinstance(node, ast.Attribute) or ast.unparse(node) not in (
                "sys.path",
                "os.system",
            )


@each_notebook
def test_notebook_round_trip(path):
    jupytext.cli.jupytext(
        ["--test", "--to", "ipynb", "--quiet", str(path)]
    )  # raises where the text would change
    assert (
        "format_name" not in path.read_text().split("# %%")[0]
    )  # such a header is read as light, tags are lost

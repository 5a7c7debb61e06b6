"""`rr reproduce` on preset mini: every notebook, what runs again after which change, and what survives which kill."""

import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rr import files as io
from rr import studies
from rr.errors import InputError
from rr.files import ROOT
from rr.provenance import read_result
from rr.workflow import jobs as workflow
from rr.workflow import notebook, reproduce

NOTEBOOKS = sorted(notebook.NOTEBOOKS.glob("[0-9]*.py"))
MARKER = (
    "RR_TEST_RUN"  # in the environment of all that a test starts: how its processes are found again
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def made(rr, tmp_path_factory):
    """The whole workflow on preset mini: (out, first call, second call, seconds of the second)."""
    out = tmp_path_factory.mktemp("with space")
    words = ("reproduce", "--preset", "mini", "--out", out, "--jobs", 2)
    first = rr(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    started = time.monotonic()
    return out, first, rr(*words), time.monotonic() - started


def numbers(out, jobs):
    """What jobs found, without what differs between two equal runs: their times and memory."""
    found = {job: io.read_json(workflow.result(out / "mini", job))["numbers"] for job in jobs}
    for result in found.values():
        if isinstance(result, dict):
            result.pop("cost", None)
            result.pop("training_seconds", None)
    return found


# ------------------------------------------------------------------------------------------------------ everything


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_on_preset_mini(made, path):
    out, *_ = made
    mine = [name for name, job in workflow.jobs().items() if job.notebook == path.stem]
    for job in mine:
        executed = json.loads((out / "mini" / "executed" / f"{job}.ipynb").read_text())
        assert executed["metadata"]["papermill"]["exception"] is None
        facts = read_result(workflow.result(out / "mini", job))["provenance"]
        assert (
            facts["seconds"] > 0
            and facts["peak_memory_mib"] > 50
            and facts["threads"] >= 1
            and facts["device"]
        )
    assert mine and list((out / "mini" / "figures").glob(f"{path.stem}*.png")), (
        "a chapter shows a figure"
    )


def test_the_servers_forks_ran_the_notebooks(made):
    _, first, *_ = made
    assert "without the server" not in first.stdout + first.stderr
    assert len(re.findall(r" done in \d+ s$", first.stdout, re.M)) == len(workflow.jobs())


def test_it_says_where_everything_lies(made):
    out, first, *_ = made
    shown = [line.split(":")[0].strip() for line in first.stdout.splitlines() if str(out) in line]
    assert shown == [
        "figures",
        "tables",
        "restored photograph",
        "executed notebooks",
        "all on one page",
    ]


def test_a_second_call_has_nothing_to_do(made):
    _, _, second, seconds = made
    assert second.returncode == 0 and "nothing to do" in second.stdout and seconds < 20


def test_runs_of_a_study_are_comparable(made):
    out, *_ = made
    for study in (
        studies.VARIES
    ):  # the paper's: in "matters" other protocols and equal weights are the point
        runs = studies.read_study(out / "mini", study, 1)
        assert (
            len(
                {run.scores[run.scores.method != "RetinaRegen"].to_csv() for [run] in runs.values()}
            )
            == 1
        ), "the same images"
        assert len(
            {run.scores[run.scores.method == "RetinaRegen"].to_csv() for [run] in runs.values()}
        ) == len(runs)


def test_a_result_that_is_gone_or_made_by_hand_is_made_again(rr, made):
    out, *_ = made
    words = ("reproduce", "--preset", "mini", "--out", out, "--dry-run")
    result = workflow.result(out / "mini", "04_diffusion")
    before = result.read_text()
    result.write_text(before.replace('"commit"', '"Commit"'))
    of = len(workflow.jobs())
    assert rr(*words).stdout.splitlines() == [
        "04_diffusion  made otherwise, or damaged",
        f"1 of {of} notebooks to run",
    ]
    result.write_text(before)
    assert rr(*words).stdout == "nothing to do\n"
    assert (
        rr(*words[:-3], "--out", f"{out}/../{out.name}/", "--dry-run").stdout == "nothing to do\n"
    ), "another spelling"


# -------------------------------------------------------------------------------------------------------- tracking


@pytest.fixture(scope="module")
def changed(made, tmp_path_factory):
    """changed(file, old, new): what a copy of the project with that change would run again, as a set of jobs."""
    out, *_ = made
    copy = tmp_path_factory.mktemp("copy")
    for part in ("rr", "notebooks", "workflow"):
        shutil.copytree(ROOT / part, copy / part)

    def call(file, old, new, *words):
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1))
        command = [
            sys.executable,
            "-m",
            "rr",
            "reproduce",
            "--preset",
            "mini",
            "--out",
            out,
            "--dry-run",
            *words,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(
            list(map(str, command)), cwd=copy, env=environment, capture_output=True, text=True
        )
        (copy / file).write_text(text)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        of = len(workflow.jobs())
        assert lines[-1] == (
            f"{len(lines) - 1} of {of} notebooks to run" if len(lines) > 1 else "nothing to do"
        )
        return {line.split()[0] for line in lines[:-1]}

    return call


def after(*stems):
    """Jobs of some notebooks, and all jobs that read the results of these."""
    jobs, found = workflow.jobs(), set()
    for name, job in jobs.items():  # in an order in which they can run
        if job.notebook in stems or found & set(job.needs):
            found.add(name)
    return found


CHANGES = {  # a value of the preset: the notebooks that use it
    "n": (" 72,", " 73,", ["01_data"]),
    "classifier_lr": ("classifier_lr=1e-4", "classifier_lr=2e-4", ["02_readability"]),
    "extractor_epochs": ("extractor_epochs=1,", "extractor_epochs=2,", ["03_features"]),
    "T": ("T=20, ", "T=21, ", ["04_diffusion", "06_restoration"]),
    "vae_epochs": (" vae_epochs=1,", " vae_epochs=2,", ["05_vae"]),
    "unet_epochs": ("unet_epochs=1,", "unet_epochs=2,", ["06_restoration"]),
}


@pytest.mark.parametrize("value", CHANGES)
def test_a_changed_value_runs_again_what_depends_on_it_and_no_more(changed, value):
    old, new, stems = CHANGES[value]
    expected = after(*stems)
    assert 1 <= len(expected) and changed("rr/presets.py", old, new) == expected


def test_changed_code_runs_again_what_computes_with_it(changed):
    assert changed("rr/fusion.py", "std=0.1", "std=0.2") == after(
        "00_start_here", "04_diffusion", "06_restoration"
    )
    assert changed("rr/paper.py", "27.4521", "27.4522") == {"11_summary"}


def test_prose_runs_nothing_again(changed):
    assert (
        changed("notebooks/06_restoration.py", "# ## Training", "# ## How it is trained") == set()
    )
    assert changed("rr/presets.py", "# tests only", "# for tests only") == set()


def test_more_seeds_run_what_is_new(rr, made):
    out, *_ = made
    done = rr(
        "reproduce",
        "--preset",
        "mini",
        "--out",
        out,
        "--study",
        "fusion",
        "--seeds",
        2,
        "--dry-run",
    )
    found = {line.split()[0] for line in done.stdout.splitlines()[:-1]}
    new = {f"06_restoration_{each}_1" for each in studies.STUDIES["fusion"]}
    assert found == {"03_features_resnet34_1", *new, "09_fusion"}


# -------------------------------------------------------------------------------------------------------- recovery


def processes(marker):
    """{pid: command line} of all that lives and was started by a test with this marker in its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARKER}={marker}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                if (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found[int(folder.name)] = (
                        (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Call:
    """`rr reproduce --study fusion` in the background, and its processes by what they are."""

    def __init__(self, out, marker):
        words = [
            "reproduce",
            "--preset",
            "mini",
            "--study",
            "fusion",
            "--jobs",
            "2",
            "--out",
            str(out),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), MARKER: marker}
        self.marker = marker
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rr", *words], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def find(self, what, seconds=120):
        """The pid of a process of this call, once there is one: ours, Snakemake's, a client's, a runner's or a kernel's."""
        if what == "rr reproduce":
            return self.process.pid
        if what in ("snakemake", "rr run"):
            command = f" -m {what} "
            return until(
                lambda: [p for p, c in processes(self.marker).items() if command in c],
                seconds,
                what,
            )[0]

        def forks():  # of the server: runners; of these: kernels
            every = [p for p, c in processes(self.marker).items() if "-m rr.forked" in c]
            parent = {
                p: int(Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()[1])
                for p in every
            }
            runners = [p for p in every if parent[p] in every and parent[parent[p]] not in every]
            kernels = [p for p in every if parent[p] in runners]
            return runners if what == "runner" else kernels

        return until(forks, seconds, what)[0]

    def end(self):
        said, _ = self.process.communicate(timeout=400)
        return self.process.returncode, said


KILLS = [  # who, when: a file that exists while that work is being done, and the job that fails for it ("": nobody's fault)
    ("kernel", "data/.shard-*.part-*", "01_data"),
    ("rr reproduce", "executed/.03_features_resnet34_0.part-*", ""),
    ("snakemake", "executed/.02_readability.part-*", ""),
    ("runner", "executed/.06_restoration_*.part-*", "06_restoration_"),
    ("rr run", "executed/.06_restoration_*.part-*", "06_restoration_"),
    ("rr reproduce", "executed/.09_fusion.part-*", ""),
]


def test_a_run_killed_at_several_points_ends_with_the_numbers_of_an_uninterrupted_one(
    made, tmp_path
):
    """kill -9 each time; the next call continues. No kernel is alive a minute later, nothing half-written is taken."""
    uninterrupted, *_ = made
    home, markers = tmp_path / "mini", []
    for who, work, fails in KILLS:
        markers.append(f"{os.getpid()}-{len(markers)}")
        call = Call(tmp_path, markers[-1])
        until(lambda: list(home.glob(work)) or call.process.poll() is not None, 200, work)
        assert call.process.poll() is None, call.end()
        os.kill(call.find(who), signal.SIGKILL)
        code, said = call.end()
        assert code != 0, (who, said)
        if who != "rr reproduce":
            until(lambda: not processes(markers[-1]), 60, f"end of all processes after {who} died")
        if fails:
            assert (
                f"  {fails}" in said.split("notebooks failed:")[1]
                and "the same command continues" in said
            ), said
    code, said = Call(tmp_path, f"{os.getpid()}-last").end()
    assert code == 0, said
    until(lambda: not any(map(processes, markers)), 60, "end of everything that was started")
    jobs = workflow.jobs(study="fusion")
    assert numbers(tmp_path, jobs) == numbers(uninterrupted, jobs)
    assert not list(home.rglob(f".*{io.PART}*")), "what the killed ones left is swept"


def test_a_failing_configuration_does_not_stop_the_others(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0] / "mini", out / "mini")
    copy = tmp_path / "copy"
    for part in ("rr", "notebooks", "workflow"):
        shutil.copytree(ROOT / part, copy / part)
    path = copy / "notebooks" / "06_restoration.py"
    broken = "assert fusion != 'upsample-static', 'broken\\non purpose'\nclassifier = "
    path.write_text(path.read_text().replace("classifier = ", broken, 1))
    command = [
        sys.executable,
        "-m",
        "rr",
        "reproduce",
        "--preset",
        "mini",
        "--out",
        out,
        "--study",
        "fusion",
    ]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        list(map(str, command)), cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    broken = "06_restoration_paired_vae_resnet34_upsample-static_0"
    executed = out / "mini" / "executed" / f"{broken}.ipynb"
    assert (
        "1 of 8 notebooks failed:" in done.stderr
        and "not made because of that: 09_fusion" in done.stderr
    )
    [line] = [line for line in done.stderr.splitlines() if line.startswith(f"  {broken}: ")]
    assert line.endswith(f"AssertionError: on purpose; see the traceback in {executed}")
    outputs = [
        output for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", [])
    ]
    assert [
        "broken" in output.traceback[-1] for output in outputs if output.output_type == "error"
    ] == [True]
    others = [
        f"06_restoration_{each}_0"
        for each in studies.STUDIES["fusion"]
        if each.fusion != "upsample-static"
    ]
    for job in others:
        assert f"{job}  done" in done.stdout and workflow.mark(out / "mini", job).is_file()


# ------------------------------------------------------------------------------------------------------- one at a time


def test_one_reproduce_at_a_time(rr, tmp_path):
    folder = io.results("mini", tmp_path)
    folder.mkdir()
    with open(folder / ".reproduce.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(platform.node(), os.getpid(), 12345, file=lock, flush=True)
        done = rr("reproduce", "--preset", "mini", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"or stop it on {platform.node()}: kill -- -12345\n")


def test_a_workflow_whose_reproduce_was_killed_is_stopped(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with open(tmp_path / ".reproduce.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        orphan = subprocess.Popen(
            ["sleep", "600"], start_new_session=True, pass_fds=[lock.fileno()]
        )
        print(platform.node(), gone.pid, orphan.pid, file=lock, flush=True)
    with open(tmp_path / ".reproduce.lock", "a+") as lock:
        reproduce._stop_orphan(tmp_path, lock)
        assert orphan.wait(10) < 0 and reproduce._free(lock)


@pytest.mark.parametrize(
    "content", ["", "elsewhere {gone} {bystander}", "{here} {gone}", "garbage"]
)
def test_nobody_is_stopped_on_a_guess(tmp_path, content):
    """The lock is held, but its file does not say by whom: perhaps its holder has just taken it."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        with open(tmp_path / ".reproduce.lock", "a+") as lock:
            print(
                content.format(gone=gone.pid, bystander=bystander.pid, here=platform.node()),
                file=lock,
                flush=True,
            )
            with pytest.raises(InputError, match="another `rr reproduce` is at work there"):
                reproduce._stop_orphan(tmp_path, lock)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_plans_say_what_is_wrong_with_them(tmp_path):
    with pytest.raises(InputError, match="preset 'tiny': unknown"):
        reproduce.Plan("tiny").command()
    with pytest.raises(
        InputError,
        match="profile 'cloud': unknown; choose one of kubernetes, laptop, slurm, or name a folder",
    ):
        reproduce.Plan(profile="cloud").command()
    (tmp_path / "config.yaml").write_text("jobs: 3\n")
    assert tmp_path in reproduce.Plan(profile=str(tmp_path)).command()


@pytest.mark.parametrize("side_by_side, threads", [(None, 1), (1, 2), (2, 1), (5, 1)])
def test_jobs_share_the_cores(monkeypatch, side_by_side, threads):
    monkeypatch.setattr(reproduce, "CORES", 2)
    monkeypatch.setattr(workflow, "gpus", list)
    plan = reproduce.Plan(side_by_side=side_by_side)
    command = plan.command()
    assert plan.threads == threads and f"threads={threads}" in command
    assert command[command.index("--cores") + 1] == str((side_by_side or 2) * threads)

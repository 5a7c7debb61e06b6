"""A full disk of 8 MB: every error is one line, and the previous file is intact."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from rr.files import ROOT

pytestmark = pytest.mark.slow
KINDS = ["text", "json", "table", "figure", "picture", "condition", "checkpoint", "training state",
         "packed data", "executed notebook"]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What tests/full_disk.py prints, run on a small disk that no other process sees."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare: needs Linux")
    disk = tmp_path_factory.mktemp("disk")
    script = 'mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"'
    command = [
        "unshare",
        "--mount",
        *([] if os.getuid() == 0 else ["--map-root-user"]),
        "sh",
        "-c",
        script,
        "sh",
        disk,
    ]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system gives no mount namespace")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, sys.executable, ROOT / "tests" / "full_disk.py", disk],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_loses_nothing(outcomes, kind):
    error = outcomes[kind]["error"]
    assert error and error.startswith("InputError: ") and "\n" not in error
    assert "disk is full" in error or "free space" in error
    assert outcomes[kind]["intact"] and outcomes[kind]["left"] == []


def test_every_kind_is_tried(outcomes):
    assert set(outcomes) == set(KINDS)

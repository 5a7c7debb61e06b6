"""One environment in three files.

pyproject.toml names the packages; requirements.lock and environment.yml name their versions.
"""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rr.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def locked(python=None):
    """{package: version} of the lock on this platform, for this Python or for another one."""
    environment = {"python_version": python, "python_full_version": f"{python}.9"} if python else {}
    lines = [Requirement(line) for line in LOCK.splitlines() if line.strip()]
    lines = [line for line in lines if not line.marker or line.marker.evaluate(environment)]
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in lines}


def pinned():
    """{package: version} of environment.yml."""
    lines = [line for line in CONDA[-1]["pip"] if line != "-e ."]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_versions_agree(requirement):
    name = canonicalize_name(requirement.name)
    installed = version(name).split("+")[0]  # +cpu, +cu130: other builds of the same version
    assert installed == locked()[name]
    assert requirement.specifier.contains(installed)
    conda = next(
        line.removeprefix("python=")
        for line in CONDA
        if isinstance(line, str) and line.startswith("python=")
    )
    assert pinned()[name] == locked(conda)[name]


def test_environment_lists_the_direct_dependencies_and_no_more():
    assert sorted(pinned()) == sorted(
        canonicalize_name(requirement.name) for requirement in REQUIREMENTS
    )


def test_lock_has_exact_versions_and_names_no_host():
    assert all(re.match(r"[\w.-]+==[\w.+!-]+( ; .+)?$", line) for line in LOCK.splitlines())
    assert "://" not in LOCK and "--" not in LOCK


def test_every_import_is_a_direct_dependency():
    owner = packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    folders = (ROOT / "rr", ROOT / "notebooks", ROOT / "workflow")
    own = {"rr", *(path.stem for path in folders[-1].glob("*.py"))}
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - own:
                assert {
                    canonicalize_name(package) for package in owner.get(name, [name])
                } & declared, f"{path.name} imports {name}"

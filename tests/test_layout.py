"""The layout of the package: the map is complete, and imports point one way."""

import ast
import re
import sys

import pytest

import rr
from rr.files import ROOT

PACKAGE = ROOT / "rr"
LINES = [line for line in rr.__doc__.splitlines() if line.startswith("    ")]
MAP = [re.split(r"\s{2,}", line.strip())[0].split(", ") for line in LINES]
RANK = {part: rank for rank, parts in enumerate(MAP) for part in parts}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "__" not in path.name]


def part(path):
    """The part of the map that a file belongs to: a folder, or a module of the top level."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The dotted names that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_map_lists_every_part_and_no_other():
    assert sorted(RANK) == sorted({part(path) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    """A model reads a preset, or the data import the workflow: the layers dissolve."""
    for name in imported(path):
        if name.startswith("rr."):
            used = name.split(".")[1]
            assert used == part(path) or RANK[used] <= RANK[part(path)], name


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda p: p.stem)
def test_models_import_torch_and_other_models_only(path):
    allowed = ("torch", "torchvision", "numpy", "safetensors", "rr.models", "rr.errors")
    for name in imported(path):
        assert name.startswith(allowed) or name.split(".")[0] in sys.stdlib_module_names, name
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250

"""The rooms: what may import what, how many files stand at the door, how long a file may be."""

import ast
from pathlib import Path

import pytest
from conftest import ROOMS, ROOT

# From the ground up: a file imports from rooms below its own, or from its own.
FLOORS = (
    {"common"},
    {"sandbox"},
    {"dataset"},
    {"model"},
    {"data"},
    {"completion"},
    {"training"},
    {"serving", "evaluation"},
    {"trainer", "charts"},
    {"benchmarks", "adaptation"},
    {"train", "evaluate", "interact", "analysis", "serve"},
    {"adapt"},  # which calls what the others call
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted([*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).glob("*.py"))])


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(file) for file in FILES}


def imports(file: Path) -> set[str]:
    """The project's modules that a file imports, at its head or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & MODULES


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file):
    room = name_of(file).split(".")[0]
    upward = [name for name in imports(file) if LEVEL[name.split(".")[0]] > LEVEL[room]]
    sideways = [
        name for name in imports(file) if LEVEL[name.split(".")[0]] == LEVEL[room] and name.split(".")[0] != room
    ]
    assert not upward
    assert not sideways


def test_no_files_import_each_other():
    below = {name_of(file): imports(file) for file in FILES}
    while free := {name for name, found in below.items() if not found & below.keys()}:
        below = {name: found for name, found in below.items() if name not in free}
    assert not below, "a circle of imports"


def test_few_files_at_the_door_and_none_too_long():
    assert len(list(ROOT.glob("*.py"))) <= 9
    assert not [name_of(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > 400]
    for room in ROOMS:
        assert len(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body) == 1  # its docstring

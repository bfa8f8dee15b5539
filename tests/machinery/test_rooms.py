"""The rooms of foldwise/: no arrow runs back up, and each floor needs only what it says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import foldwise

PACKAGE = Path(foldwise.__file__).parent
# From the bottom up: a room imports from its own floor and from those below, nothing from above.
FLOORS = [
    {"errors", "files", "locks", "progress", "reachable", "settings", "shell", "machinery"},
    {"code", "processes"},
    {"data", "tasks", "unpacking"},
    {"schedule", "command"},
    {"config", "checks"},
    {"predictions"},
    {"models", "inference", "reporting"},
    {"audit", "labelling", "discovery"},
    {"training", "preflight", "bundle", "export"},
    {"tuning", "planning"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path, everywhere: bool = True) -> Iterator[str]:
    """Modules that a file imports; those of functions too, unless only its import is asked for."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_no_arrow_runs_up():
    up = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in PACKAGE.rglob("*.py")
        for module in imports(path)
        if module.startswith("foldwise.") and path != PACKAGE / "__init__.py"
        if FLOOR[room(module)] > FLOOR[path.relative_to(PACKAGE).with_suffix("").parts[0]]
    ]
    assert not up, up


def reached(start: Path) -> dict[str, Path]:
    """What importing a file imports, without what its functions import later; with who does."""
    found: dict[str, Path] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        for module in imports(path, everywhere=False):
            if module in found:
                continue
            found[module] = path
            if module.startswith("foldwise"):
                inner = PACKAGE.joinpath(*module.split(".")[1:])
                waiting += [one for one in (inner.with_suffix(".py"), inner / "__init__.py") if one.exists()]
    return found


@pytest.mark.parametrize(
    ("files", "without"),
    [
        (["data/table.py", "data/folds.py", "predictions/**/*.py"], ("torch", "pytorch_lightning", "hydra")),
        (["inference/*.py", "tasks/*.py", "models/networks.py"], ("pytorch_lightning", "hydra", "wandb")),
        (["**/*.py"], ("solution", "lightning")),
    ],
)
def test_what_a_room_does_without(files: list[str], without: tuple[str, ...]):
    paths = [path for pattern in files for path in PACKAGE.glob(pattern)]
    assert len(paths) >= len(files)
    for path in paths:
        needed = {module.split(".")[0]: by for module, by in reached(path).items()}
        assert not {name: by for name, by in needed.items() if name in without}, path

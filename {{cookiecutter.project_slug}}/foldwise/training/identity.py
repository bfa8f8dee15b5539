"""What a run is made from: everything that can change its result, hashed, and the differences between two runs."""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import foldwise
from foldwise.data.prepare import Prepared

# What the result does not depend on: where things lie, how they are logged, and which folds are trained now.
# Paths are left out because the contents behind them are hashed instead.
IRRELEVANT = (
    "fold",
    "fold_workers",
    "run",
    "experiment_name",
    "epochs",  # phases have it
    "logger",
    "project",
    "data.name",
    "data.root",
    "data.table",
    "data.test_table",
    "data.prepared",
    "data.pseudo",
    "data.workers",
    "model.weights",
)
CODE_FOLDERS = ("data", "models", "training", "inference")


def make_identity(config: Mapping[str, Any], world: int, contents: Mapping[str, str]) -> dict[str, str]:
    """A flat description of a run; two runs with the same one give the same numbers.

    Args:
        config: the resolved configuration.
        world: number of processes that train one fold.
        contents: hashes of the table, folds, images and initial weights, by name.
    """
    settings = {
        key: json.dumps(value) for key, value in _flatten(config) if not any(_inside(key, name) for name in IRRELEVANT)
    }
    return {**{f"config {key}": value for key, value in settings.items()}, "world size": str(world)} | {
        **{f"content {name}": value for name, value in contents.items()},
        **{f"code {name}": value for name, value in hash_code().items()},
    }


def hash_identity(identity: Mapping[str, str]) -> str:
    """Eight hexadecimal digits that stand for an identity."""
    return _hash(json.dumps(sorted(identity.items())))[:8]


def describe_differences(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """One line for each thing in which two identities differ, as "name: old -> new"; hashes are not shown."""
    lines = []
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) == old.get(name):
            continue
        if name.startswith(("content ", "code ")):
            lines.append(f"{name}: {'changed' if name in new and name in old else 'new' if name in new else 'gone'}")
        else:
            lines.append(f"{name.removeprefix('config ')}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}")
    return lines


def hash_code(root: Path | None = None) -> dict[str, str]:
    """A hash of the syntax tree of each file of the code that can change a result, docstrings left out."""
    root = root or Path(foldwise.__file__).parent
    files = [path for folder in CODE_FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): _hash_source(path.read_bytes()) for path in files}


def hash_data(prepared: Prepared) -> str:
    """A hash of what training reads of tables: rows in their order, the reader's columns, items, targets, weights."""
    columns = list(dict.fromkeys(["id", "image", "unit", "weight", *prepared.samples.columns]))
    present = [name for name in columns if name in prepared.source.frame]
    digest = hashlib.sha256(repr((prepared.outputs, present)).encode())
    for row in prepared.source.frame[present].itertuples(index=False):
        digest.update(repr(tuple(map(str, row))).encode())
    for item in prepared.items:
        digest.update(repr((item.id, tuple(map(int, item.rows)))).encode())
    for table in prepared.tables.values():
        if table.target is not None:
            digest.update(table.target.tobytes())
        elif "mask" in table.frame:
            digest.update(repr(table.frame["mask"].tolist()).encode())
    return digest.hexdigest()[:16]


@cache
def _hash_source(source: bytes) -> str:
    return _hash(" ".join(_tokens(ast.parse(source))))


def _tokens(node: ast.AST) -> Iterator[str]:
    """The syntax tree as text that is the same on every Python version (ast.dump is not) and ignores comments."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield f"{name}("
                yield from _tokens(item)
                yield ")"
            elif item is not None:  # absent fields are left out: newer versions of Python have more of them
                yield f"{name}={item!r}"


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _inside(key: str, name: str) -> bool:
    return key == name or key.startswith(name + ".")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

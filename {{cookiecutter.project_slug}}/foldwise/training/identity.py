"""What a run is made from: everything that can change its result, hashed, and the differences between two runs."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import foldwise
from foldwise.code.definitions import Definitions
from foldwise.code.imports import inside, walk
from foldwise.code.runs import all_targets
from foldwise.code.source import Code
from foldwise.code.syntax import hash_source, hash_text
from foldwise.config import followers
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
# Where a training begins, and what never changes its result; metrics do if it follows the validation.
ENTRY = "foldwise.training.fold"
METRICS, REPORTING = "foldwise.predictions.metrics", "foldwise.reporting"


def make_identity(
    config: Mapping[str, Any], world: int, contents: Mapping[str, str], code: Code | None = None
) -> dict[str, str]:
    """A flat description of a run; two runs with the same one give the same numbers.

    Args:
        config: the resolved configuration.
        world: number of processes that train one fold.
        contents: hashes of the table, folds, images and initial weights, by name.
        code: that the configuration reaches in `solution/`.
    """
    settings = {
        key: json.dumps(value) for key, value in _flatten(config) if not any(inside(key, name) for name in IRRELEVANT)
    }
    targets, code = trained_targets(config), code or Code({}, Path())
    definitions = Definitions(code, targets)
    pieces = hash_code([*targets, *definitions.foldwise()], bool(followers(config))) | definitions.hashes()
    return {**{f"config {key}": value for key, value in settings.items()}, "world size": str(world)} | {
        **{f"content {name}": value for name, value in contents.items()},
        **{f"code {name}": value for name, value in pieces.items()},
    }


def hash_identity(identity: Mapping[str, str]) -> str:
    """Eight hexadecimal digits that stand for an identity."""
    return hash_text(json.dumps(sorted(identity.items())))[:8]


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


def trained_targets(config: Mapping[str, Any]) -> list[str]:
    """The targets in a configuration that can change what is trained; a metric only if the training follows it."""
    others = {"logger", *(() if followers(config) else ("metric",))}
    return all_targets({key: value for key, value in config.items() if key not in others})


def hash_code(targets: Iterable[str] = (), followed: bool = False, root: Path | None = None) -> dict[str, str]:
    """A hash of the syntax tree of each file of foldwise that a training reaches by imports, docstrings left out.

    Args:
        targets: modules that it reaches besides, or names in them; those of other packages are passed over.
        followed: the training follows the validation, so metrics count.
        root: the folder that foldwise is in.
    """
    root = root or Path(foldwise.__file__).parents[1]
    names = [ENTRY, *(target.replace(":", ".") for target in targets)]
    files = walk(names, root, "foldwise", (REPORTING,) if followed else (METRICS, REPORTING))
    return {file.path.relative_to(root).as_posix(): hash_source(file.source) for file in files}


def hash_data(prepared: Prepared) -> str:
    """A hash of what training reads of tables: rows in their order, the reader's columns, items, targets, weights."""
    columns = list(
        dict.fromkeys(["id", "image", "unit", "weight", *prepared.samples.columns, *prepared.samples.target_columns])
    )
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


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value

"""The identity of a run: everything that can change its result, hashed, and the differences between two runs."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import foldwise
from foldwise.code.definitions import Definitions
from foldwise.code.imports import inside, walk
from foldwise.code.runs import all_targets
from foldwise.code.source import NO_CODE, Code
from foldwise.code.syntax import hash_source, hash_text
from foldwise.config import followers
from foldwise.data.prepare import Prepared
from foldwise.files import sha256_file

# Settings that the result does not depend on: where files lie, how a run is logged, which folds are trained now. Paths
# are left out because the contents behind them are hashed instead; phases have the epochs.
IRRELEVANT = (
    "fold", "fold_workers", "run", "experiment_name", "epochs", "logger", "project", "data.name", "data.root",
    "data.table", "data.test_table", "data.prepared", "data.pseudo", "data.workers", "model.weights",
)  # fmt: skip
# The module where a training begins, and those that never change its result; metrics do if it follows the validation.
ENTRY = "foldwise.training.fold"
METRICS, REPORTING = "foldwise.predictions.metrics", "foldwise.reporting"


def make_identity(
    config: Mapping[str, Any], world: int, contents: Mapping[str, str], code: Code = NO_CODE
) -> dict[str, str]:
    """A flat description of a run; two runs with the same one give the same numbers.

    Args:
        config: the resolved configuration.
        world: processes that train one fold.
        contents: as from `hash_contents`.
        code: that the configuration reaches in `solution/`.
    """
    settings = {key: json.dumps(value) for key, value in _flatten(config)}
    targets = trained_targets(config)
    definitions = Definitions(code, targets)
    pieces = hash_code([*targets, *definitions.foldwise()], bool(followers(config))) | definitions.hashes()
    return {
        **{f"config {key}": value for key, value in settings.items() if not any(inside(key, n) for n in IRRELEVANT)},
        "world size": str(world),
        **{f"content {name}": value for name, value in contents.items()},
        **{f"code {name}": value for name, value in pieces.items()},
    }


def hash_identity(identity: Mapping[str, str]) -> str:
    """The eight hexadecimal digits of an identity, for the run's folder."""
    return hash_text(json.dumps(sorted(identity.items())))[:8]


def describe_differences(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """One line for each thing in which two identities differ, as "name: old -> new"; hashes are not shown."""
    lines = []
    for name in sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name)):
        if name.startswith(("content ", "code ")):
            lines.append(f"{name}: {'gone' if name not in new else 'changed' if name in old else 'new'}")
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
        targets: modules that it reaches besides, or names in them; those of other packages are ignored.
        followed: the training follows the validation, so metrics count.
        root: the folder that foldwise is in.
    """
    root = root or Path(foldwise.__file__).parents[1]
    names = [ENTRY, *(target.replace(":", ".") for target in targets)]
    files = walk(names, root, "foldwise", (REPORTING,) if followed else (METRICS, REPORTING))
    return {file.path.relative_to(root).as_posix(): hash_source(file.source) for file in files}


def hash_contents(prepared: Prepared, weights: str | None) -> dict[str, str]:
    """Hashes of what a run reads, by name: the table, folds, images, pseudo labels and initial weights."""
    return {
        "table": hash_data(prepared),
        "folds": prepared.folds_hash,
        "images": prepared.images_hash,
        "pseudo": sha256_file(prepared.pseudo.table.path)[:16] if prepared.pseudo else "none",
        "weights": sha256_file(Path(weights))[:16] if weights else "none",
    }


def hash_data(prepared: Prepared) -> str:
    """A hash of what training reads of tables: rows in their order, the reader's columns, items, targets, weights."""
    frame, samples = prepared.source.frame, prepared.samples
    columns = dict.fromkeys(["id", "image", "unit", "weight", *samples.columns, *samples.target_columns])
    present = [name for name in columns if name in frame]
    digest = hashlib.sha256(repr((prepared.outputs, present)).encode())
    for row in frame[present].itertuples(index=False):
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

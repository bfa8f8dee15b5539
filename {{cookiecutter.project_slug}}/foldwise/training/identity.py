"""Identity of a run: everything that can change its result. Hashes and compares identities."""

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
from foldwise.errors import Refusal
from foldwise.files import read_json, sha256_file

# Settings that do not change the result: logging, which folds train now, and paths, whose contents are hashed instead.
# `epochs` is contained in the phases.
IRRELEVANT = (
    "fold", "fold_workers", "run", "preflight", "experiment_name", "epochs", "logger", "project", "data.name",
    "data.root", "data.table", "data.test_table", "data.prepared", "data.pseudo", "data.features", "data.workers",
    "model.weights", "init",
)  # fmt: skip
# Entry point of a training; reporting never changes the result, metrics only if training follows the validation.
ENTRY = "foldwise.training.fold"
METRICS, REPORTING = "foldwise.predictions.metrics", "foldwise.reporting"


def make_identity(
    config: Mapping[str, Any], world: int, contents: Mapping[str, str], code: Code = NO_CODE
) -> dict[str, str]:
    """Flat description of a run of `world` processes per fold; equal identities give equal results."""
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
    """Eight hexadecimal digits for the name of the run folder."""
    return hash_text(json.dumps(sorted(identity.items())))[:8]


def read_identity(run: Path) -> dict[str, str]:
    """Read the identity of a run; raise a Refusal if it is not a run or has another format version."""
    path = run / "identity.json"
    if not path.is_file():
        raise Refusal(f"{run} is not a run: it has no identity.json; runs are the folders that train.py makes in runs/")
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != foldwise.FORMAT_VERSION:
        raise Refusal(
            f"{run} has the format version {version}, and this code reads {foldwise.FORMAT_VERSION}: "
            "use the code that the run was made with (its commit is in environment.json), or train again"
        )
    return content["identity"]


def describe_differences(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """One line per difference, as "name: old -> new"; hashes are not shown."""
    lines = []
    for name in sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name)):
        if name.startswith(("content ", "code ")):
            lines.append(f"{name}: {'gone' if name not in new else 'changed' if name in old else 'new'}")
        else:
            lines.append(f"{name.removeprefix('config ')}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}")
    return lines


def trained_targets(config: Mapping[str, Any]) -> list[str]:
    """The `_target_`s that can change the trained weights; the metric only if training follows it."""
    others = {"logger", *(() if followers(config) else ("metric",))}
    return all_targets({key: value for key, value in config.items() if key not in others})


def hash_code(targets: Iterable[str] = (), followed: bool = False, root: Path | None = None) -> dict[str, str]:
    """Hash the syntax tree, without docstrings, of each foldwise file that a training imports.

    Args:
        targets: further modules, or names in modules, to start from; other packages are ignored.
        followed: training follows the validation, so metrics count.
        root: the folder that contains foldwise.
    """
    root = root or Path(foldwise.__file__).parents[1]
    names = [ENTRY, *(target.replace(":", ".") for target in targets)]
    files = walk(names, root, "foldwise", (REPORTING,) if followed else (METRICS, REPORTING))
    return {file.path.relative_to(root).as_posix(): hash_source(file.source) for file in files}


def hash_contents(prepared: Prepared, config: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the tables, folds, images, pseudo labels, initial weights, features, and the run to start from."""
    weights, init = config["model"]["weights"], config["init"]
    further = {"init": hash_identity(read_identity(Path(init)))} if init else {}
    if prepared.unlabelled:
        further["unlabelled"] = sha256_file(prepared.unlabelled.source.path)[:16]
    return {
        **further,
        "table": hash_data(prepared),
        "folds": prepared.folds_hash,
        "images": prepared.images_hash,
        "pseudo": sha256_file(prepared.pseudo.table.path)[:16] if prepared.pseudo else "none",
        "weights": sha256_file(Path(weights))[:16] if weights else "none",
        **{f"features {number}": features.digest for number, features in enumerate(prepared.features)},
    }


def hash_data(prepared: Prepared) -> str:
    """Hash what training reads of the tables: row order, the reader's columns, items, targets, weights."""
    frame, samples = prepared.source.frame, prepared.samples
    columns = dict.fromkeys(["id", "image", "unit", "weight", *samples.columns, *samples.target_columns])
    present = [name for name in columns if name in frame]
    digest = hashlib.sha256(repr((prepared.trained, present)).encode())
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

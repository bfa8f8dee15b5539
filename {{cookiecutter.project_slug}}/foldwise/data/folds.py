"""The folds of a table: folds.csv is made once, shared by the team, and extended with new rows."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.holdout import GOLD
from foldwise.data.problems import TableError, explain_ids, some
from foldwise.data.splitting import make_folds
from foldwise.data.table import Table
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal
from foldwise.files import write_csv
from foldwise.shell import prepare_command


def read_folds(path: Path | str) -> dict[str, int]:
    """Read a `folds.csv` (`id,fold`); refuses repeated ids and folds below -1."""
    frame = read_file(Path(path))
    if list(frame.columns) != ["id", "fold"]:
        raise Refusal(f"{path} has the columns {', '.join(frame.columns)}; they must be id,fold")
    bad = ~frame["fold"].str.fullmatch(r"-1|\d+") | frame["id"].duplicated(keep=False)
    if bad.any():
        lines = some(frame.index[bad].tolist(), 20)
        raise Refusal(f"{path} has a repeated id or a fold that is not a whole number of -1 or more: lines {lines}")
    return dict(zip(frame["id"].tolist(), frame["fold"].astype(int).tolist(), strict=True))


def write_folds(path: Path | str, folds: Mapping[str, int]) -> None:
    """Write a `folds.csv`, sorted by id so that diffs stay small."""
    frame = pd.DataFrame({"id": list(folds), "fold": np.array(list(folds.values()), dtype=int)}).sort_values("id")
    write_csv(Path(path), frame)


def folds_hash(folds: Mapping[str, int]) -> str:
    """Hash folds: 16 hex digits of SHA-256 over the sorted lines `id,fold`."""
    lines = sorted(f"{name},{fold}" for name, fold in folds.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fold_array(folds: Mapping[str, int], ids: Sequence[str]) -> np.ndarray:
    return np.array([folds[id] for id in ids], dtype=np.int64)


def table_folds(table: Table, data: Mapping[str, Any]) -> dict[str, int]:
    """Read the fold of each id (-1: always train, or GOLD) from the fold column, else from a complete folds.csv."""
    gold = dict.fromkeys(np.array(table.ids, object)[table.gold].tolist(), GOLD)
    if "fold" in table.frame:
        return dict(zip(table.ids, table.frame["fold"].tolist(), strict=True)) | gold
    path, command = Path(data["prepared"]) / "folds.csv", prepare_command(data["name"])
    if not path.exists():
        raise Refusal(f"{path} does not exist; make it with: {command}")
    stored = read_folds(path)
    missing = [id for id in table.ids if id not in stored and id not in gold]
    if missing:
        why = explain_ids(stored, table.ids)
        raise Refusal(f"{len(missing)} rows have no fold in {path}{why}: {some(missing)}; {command} adds them")
    stored |= gold
    return {id: stored[id] for id in table.ids}


def update_folds(
    table: Table, target: np.ndarray, data: Mapping[str, Any], seed: int, extend: bool = True
) -> tuple[dict[str, int], list[str]]:
    """Update folds.csv from the table's fold column, or assign new rows to folds; return folds by id, and notes.

    New rows are balanced by `target`, (N, C) of 0 and 1; `extend=False` refuses them.
    """
    path, n_folds = Path(data["prepared"]) / "folds.csv", data["folds"]
    stored = read_folds(path) if path.exists() else {}
    if "fold" in table.frame:
        folds = table_folds(table, data)
        found = sorted(fold for fold in set(folds.values()) if fold >= 0)
        if found != list(range(n_folds)):
            problem = f"the fold column has the folds {found}, but data.folds={n_folds} needs 0 to {n_folds - 1}"
            problem += ": subtract 1 from each" if found == list(range(1, n_folds + 1)) else ""
            raise TableError(table.path, [problem])
        given = {name: fold for name, fold in folds.items() if fold != GOLD}
        if stored != given:
            write_folds(path, given)
        return folds, ["the given folds replace the ones in folds.csv"] if stored and stored != given else []
    if not extend:
        table_folds(table, data)
    if stored and max(stored.values()) + 1 != n_folds:
        raise Refusal(
            f"{path} has {max(stored.values()) + 1} folds, but data.folds is {n_folds}; "
            f"to make new folds, delete it and run: {prepare_command(data['name'])}"
        )
    rows = np.flatnonzero(~table.gold)
    ids = [table.ids[row] for row in rows]
    new = [name for name in ids if name not in stored]
    if new:
        groups = _fold_groups(table)
        assigned = make_folds(ids, n_folds, target[rows], groups and [groups[row] for row in rows], seed, stored)
        # Removed rows keep their fold in case they come back.
        write_folds(path, stored | dict(zip(ids, assigned.tolist(), strict=True)))
    joined = [f"{len(new)} new rows joined the folds"] if stored and new else []
    return table_folds(table, data), joined


def _fold_groups(table: Table) -> list[str] | None:
    """Return the groups, or else the units: folds must not split them."""
    frame = table.frame
    if "group" in frame and "unit" in frame:
        groups = frame.groupby("unit")["group"].nunique()
        split = groups[groups > 1].index
        if len(split):
            raise TableError(table.path, [f"the unit {name!r} is in several groups" for name in split])
    column = next((name for name in ("group", "unit") if name in frame), None)
    return None if column is None else frame[column].tolist()

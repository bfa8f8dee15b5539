"""Schema of prediction folders and the checks against it; the format is described in `predictions/store.py`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.tasks import TASKS, Task, find_task

SCHEMA_VERSION = 2
MEMBER = ["fold", "snapshot", "view"]
SPLITS = ("oof", "test")
HEADER = "predictions.json"
FILES = {"rows": "predictions.parquet", "maps": "index.parquet"}  # by the kind of the task
INDEX_COLUMNS = ["id", *MEMBER, "file", "height", "width"]


class PredictionsError(Refusal):
    """Predictions that cannot be used; `problems` has a sentence each."""

    def __init__(self, where: Path | str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        shown = "\n".join(f"  - {problem}" for problem in self.problems[:20])
        more = f"\n  and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        super().__init__(f"{where}:\n{shown}{more}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The sidecar `predictions.json`.

    Attributes:
        split: "oof" or "test".
        task: its name, see `foldwise.tasks`.
        columns: names of the task's values; of probabilities the classes.
        run: the run that predicted.
        folds_hash: of the folds it was trained on (`folds.folds_hash`); None when unknown. Others cannot be blended.
        tta: {"views": [...], "mean": "arithmetic", "geometric" or "rank"}, and "tiles": True where images were tiled.
        members: [{"fold": ..., "snapshot": ..., "view": ...}], filled in from the rows when they are written.
        created_by: the command or person.
        kind: what is stored of an image, "rows" or "maps"; filled in from the task.
    """

    split: str
    task: str
    columns: Sequence[str]
    run: str = ""
    folds_hash: str | None = None
    tta: dict[str, Any] = field(default_factory=lambda: {"views": ["identity"], "mean": "arithmetic"})
    members: list[dict[str, Any]] = field(default_factory=list)
    created_by: str = ""
    kind: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", list(self.columns))  # a tuple is not equal to what JSON gives back
        if not self.kind and self.task in TASKS:
            object.__setattr__(self, "kind", self.meaning.kind)

    @property
    def meaning(self) -> Task:
        return find_task(self.task)

    @property
    def ranks(self) -> bool:
        """Whether the values are means of ranks: they order the rows and are no probabilities."""
        return self.tta.get("mean") == "rank"


def row_columns(frame: pd.DataFrame, header: Header, where: Path) -> list[str]:
    """The columns of rows or an index; refuses a frame that lacks some or has others."""
    wanted = INDEX_COLUMNS if header.kind == "maps" else ["id", *MEMBER, *header.columns]
    problems = [f"the column {name} is missing" for name in wanted if name not in frame]
    others = [name for name in frame if name not in wanted]
    problems += [f"the column {name} is none of {HEADER} nor {', '.join(['id', *MEMBER])}" for name in others]
    raise_problems(where, problems)
    return wanted


def header_problems(values: Any) -> list[str]:
    """Problems of a sidecar's values."""
    if not isinstance(values, dict):
        return [f"{HEADER} is not a JSON object"]
    version = values.get("schema_version")
    if not isinstance(version, int):
        return [f"{HEADER} has no schema_version"]
    if version > SCHEMA_VERSION:
        return [f"{HEADER} has schema version {version}, and this code reads up to {SCHEMA_VERSION}: update the code"]
    if version < SCHEMA_VERSION:
        return [
            f"{HEADER} has schema version {version}, and this code reads {SCHEMA_VERSION}: predict again, or in that "
            'file rename "kind" to "split" and "classes" to "columns", add "kind": "rows" (of masks "maps"), and set '
            f'"schema_version": {SCHEMA_VERSION}'
        ]
    problems = [f"{HEADER} lacks {item.name}" for item in fields(Header) if item.name not in values]
    if problems:
        return problems
    task, columns, members = values["task"], values["columns"], values["members"]
    if values["split"] not in SPLITS:
        problems.append(f"the split is {values['split']!r} and not one of {', '.join(SPLITS)}")
    if task not in TASKS:
        problems.append(f"the task is {task!r} and not one of {', '.join(TASKS)}")
    elif values["kind"] != TASKS[task].kind:
        problems.append(f"the kind is {values['kind']!r}, and that of {task} is {TASKS[task].kind}")
    if not (isinstance(columns, list) and columns and all(isinstance(name, str) for name in columns)):
        problems.append("columns is not a list of names")
    elif len(set(columns)) < len(columns):
        problems.append(f"columns come twice: {some(sorted({name for name in columns if columns.count(name) > 1}))}")
    elif clash := {"id", *MEMBER} & set(columns):
        problems.append(f"a class cannot be called {some(sorted(clash))}, which is a column of its own: rename it")
    problems += [f"{name} is not a text" for name in ("run", "created_by") if not isinstance(values[name], str)]
    if not isinstance(values["folds_hash"], str | None):
        problems.append("folds_hash is neither a text nor null")
    if not isinstance(values["tta"], dict):
        problems.append("tta is not an object with views and mean")
    if not (isinstance(members, list) and all(isinstance(m, dict) and set(m) == set(MEMBER) for m in members)):
        problems.append("members is not a list of objects with fold, snapshot and view")
    return problems


def frame_problems(frame: pd.DataFrame, header: Header) -> list[str]:
    """Problems of rows or an index that has the right columns."""
    if not len(frame):
        return ["there are no rows: every predicted image has one, or one a member"]
    problems = []
    for name in ("id", "snapshot", "view"):
        if not all(isinstance(value, str) for value in frame[name].unique()):
            fix = ' (write it with .astype("string"))' if name == "id" else ""
            problems.append(f"the column {name} is not text{fix}")
    if not pd.api.types.is_integer_dtype(frame["fold"]):
        problems.append(f"the column fold is {frame['fold'].dtype} and not an integer")
    if problems:
        return problems
    if header.kind == "rows":
        problems += _value_problems(frame, header)
    if twice := listed("ids come more than once for one member", frame["id"][frame.duplicated(["id", *MEMBER])]):
        return problems + twice
    members = frame[MEMBER].drop_duplicates()
    full = len(members)
    if header.split == "oof":
        folds = frame.groupby("id")["fold"].nunique()
        if several := listed("ids are out of fold in more than one fold", folds.index[folds > 1]):
            return problems + several
        full = members["fold"].value_counts().max()  # the folds' snapshots may differ in name, as the best epochs do
    counts = frame["id"].value_counts()
    return problems + listed(f"ids lack some of the {full} members", counts.index[counts < full])


def _value_problems(frame: pd.DataFrame, header: Header) -> list[str]:
    other = [name for name in header.columns if not pd.api.types.is_float_dtype(frame[name])]
    if other:
        return [f"the column {name} is {frame[name].dtype} and not a float" for name in other]
    values = frame[header.columns].to_numpy(np.float32)
    return [
        f"{rows.sum()} rows {what}: ids {some(sorted(frame['id'][rows].unique()))}"
        for what, rows in header.meaning.problems(values).items()
        if rows.any()
    ]


def members_of(frame: pd.DataFrame) -> list[tuple[int, str, str]]:
    """The (fold, snapshot, view) that the rows have, sorted."""
    rows = frame[MEMBER].drop_duplicates()
    return sorted((int(fold), snapshot, view) for fold, snapshot, view in rows.itertuples(index=False))


def with_members(header: Header, frame: pd.DataFrame) -> Header:
    """The header with the members of the rows."""
    return replace(header, members=[dict(zip(MEMBER, member, strict=True)) for member in members_of(frame)])


def map_file_problems(folder: Path, frame: pd.DataFrame) -> list[str]:
    """Map files of an index that are missing, or not in maps/."""
    maps = (folder / "maps").resolve()
    outside = [name for name in frame["file"] if (folder / name).resolve().parent != maps]
    if outside:
        return listed("map files are not in maps/", outside)
    found = {f"maps/{path.name}" for path in maps.iterdir()} if maps.is_dir() else set()
    return listed("map files are missing", set(frame["file"]) - found)


def listed(what: str, names: Iterable[str]) -> list[str]:
    """A problem that counts the distinct names and lists the first of them, sorted; none without names."""
    distinct = sorted(set(names))
    return [f"{len(distinct)} {what}: {some(distinct)}"] if distinct else []


def raise_problems(where: Path | str, problems: list[str]) -> None:
    """Raise a PredictionsError where there are problems."""
    if problems:
        raise PredictionsError(where, problems)

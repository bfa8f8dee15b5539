"""Schema of prediction folders and its checks; `predictions/store.py` describes the format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.boxes import BOX
from foldwise.data.problems import some
from foldwise.errors import Refusal
from foldwise.tasks import TASKS, Task, find_task

SCHEMA_VERSION = 2
MEMBER = ["fold", "snapshot", "view"]
SPLITS = ("oof", "test")
HEADER = "predictions.json"
FILES = {
    "rows": "predictions.parquet",
    "maps": "index.parquet",
    "vectors": "predictions.parquet",
    "boxes": "predictions.parquet",
}  # kind of the task -> file
INDEX_COLUMNS = ["id", *MEMBER, "file", "height", "width"]
BOX_COLUMNS = ["id", *MEMBER, "class", "score", *BOX]


class PredictionsError(Refusal):
    """Unusable predictions; `problems` lists every reason."""

    def __init__(self, where: Path | str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        shown = "\n".join(f"  - {problem}" for problem in self.problems[:20])
        more = f"\n  and {len(self.problems) - 20} more" if len(self.problems) > 20 else ""
        super().__init__(f"{where}:\n{shown}{more}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The sidecar `predictions.json`.

    Attributes:
        tta: {"views": [...], "mean": "arithmetic", "geometric" or "rank"}; also "tiles": True for tiled images.
        members: [{"fold": ..., "snapshot": ..., "view": ...}], filled in when the rows are written.
        created_by: the command or person.
        kind: "rows", "maps", "vectors" or "boxes"; filled in from the task.
    """

    split: str  # "oof" or "test"
    task: str
    # Names of the predicted values; the classes, if these are probabilities; of vectors filled in, if empty.
    columns: Sequence[str]
    run: str = ""  # name of the run that predicted
    folds_hash: str | None = None  # `folds.folds_hash`, None when unknown; different hashes cannot be blended
    tta: dict[str, Any] = field(default_factory=lambda: {"views": ["identity"], "mean": "arithmetic"})
    members: list[dict[str, Any]] = field(default_factory=list)
    created_by: str = ""
    kind: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", list(self.columns))  # JSON returns lists
        if not self.kind and self.task in TASKS:
            object.__setattr__(self, "kind", self.meaning.kind)

    @property
    def meaning(self) -> Task:
        return find_task(self.task)

    @property
    def ranks(self) -> bool:
        """Whether the values are mean ranks, not probabilities."""
        return self.tta.get("mean") == "rank"


def row_columns(frame: pd.DataFrame, header: Header, where: Path) -> list[str]:
    """Return the expected columns of rows or an index; refuse a frame with missing or unknown columns."""
    others = {"maps": INDEX_COLUMNS, "boxes": BOX_COLUMNS}
    expected = others.get(header.kind, ["id", *MEMBER, *header.columns])
    problems = [f"the column {name} is missing" for name in expected if name not in frame]
    unknown = [name for name in frame if name not in expected]
    problems += [
        f"the column {name} is neither in {HEADER} nor one of {', '.join(['id', *MEMBER])}" for name in unknown
    ]
    raise_problems(where, problems)
    return expected


def clip_values(frame: pd.DataFrame, header: Header, dtype: Any = None) -> pd.DataFrame:
    """Clip rows to the task's range; the values become one block, because pandas is slow with thousands of columns."""
    if header.kind == "boxes":
        return frame
    values = header.meaning.clip(frame[header.columns].to_numpy(dtype))
    rest = frame.drop(columns=header.columns)
    return pd.concat([rest, pd.DataFrame(values, frame.index, header.columns)], axis=1)


def header_problems(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [f"{HEADER} is not a JSON object"]
    version = values.get("schema_version")
    if not isinstance(version, int):
        return [f"{HEADER} has no schema_version"]
    if version > SCHEMA_VERSION:
        return [f"{HEADER} has schema version {version}, but this code reads up to {SCHEMA_VERSION}: update the code"]
    if version < SCHEMA_VERSION:
        return [
            f"{HEADER} has schema version {version}, but this code reads {SCHEMA_VERSION}: predict again, or in that "
            'file rename "kind" to "split" and "classes" to "columns", add "kind": "rows" (for masks "maps"), and set '
            f'"schema_version": {SCHEMA_VERSION}'
        ]
    problems = [f"{HEADER} lacks {item.name}" for item in fields(Header) if item.name not in values]
    if problems:
        return problems
    task, columns, members = values["task"], values["columns"], values["members"]
    if values["split"] not in SPLITS:
        problems.append(f"the split is {values['split']!r}, not one of {', '.join(SPLITS)}")
    if task not in TASKS:
        problems.append(f"the task is {task!r}, not one of {', '.join(TASKS)}")
    elif values["kind"] != TASKS[task].kind:
        problems.append(f"the kind is {values['kind']!r}, but {task} has {TASKS[task].kind}")
    if not (
        isinstance(columns, list)
        and (columns or values["kind"] == "vectors")
        and all(isinstance(name, str) for name in columns)
    ):
        problems.append("columns is not a list of names")
    elif len(set(columns)) < len(columns):
        problems.append(
            f"columns are duplicated: {some(sorted({name for name in columns if columns.count(name) > 1}))}"
        )
    elif clash := {"id", *MEMBER} & set(columns):
        problems.append(f"a class cannot be called {some(sorted(clash))}, a reserved column name: rename it")
    problems += [f"{name} is not text" for name in ("run", "created_by") if not isinstance(values[name], str)]
    if not isinstance(values["folds_hash"], str | None):
        problems.append("folds_hash is neither text nor null")
    if not isinstance(values["tta"], dict):
        problems.append("tta is not an object with views and mean")
    if not (isinstance(members, list) and all(isinstance(m, dict) and set(m) == set(MEMBER) for m in members)):
        problems.append("members is not a list of objects with fold, snapshot and view")
    return problems


def frame_problems(frame: pd.DataFrame, header: Header) -> list[str]:
    if not len(frame):
        return ["there are no rows: every predicted image needs one row per member"]
    problems = []
    for name in ("id", "snapshot", "view"):
        if not all(isinstance(value, str) for value in frame[name].unique()):
            fix = ' (write it with .astype("string"))' if name == "id" else ""
            problems.append(f"the column {name} is not text{fix}")
    if not pd.api.types.is_integer_dtype(frame["fold"]):
        problems.append(f"the column fold is {frame['fold'].dtype}, not an integer")
    if problems:
        return problems
    if header.kind != "maps":
        problems += (_box_problems if header.kind == "boxes" else _value_problems)(frame, header)
    if header.kind == "boxes":  # any number of a member
        frame = frame.drop_duplicates(["id", *MEMBER])
    if repeated := listed("ids have several rows for one member", frame["id"][frame.duplicated(["id", *MEMBER])]):
        return problems + repeated
    members = frame[MEMBER].drop_duplicates()
    full = len(members)
    if header.split == "oof" and header.kind != "vectors":  # a fold's model embeds its training images too
        folds = frame.groupby("id")["fold"].nunique()
        if several := listed("ids are predicted out of fold by more than one fold", folds.index[folds > 1]):
            return problems + several
        full = members["fold"].value_counts().max()  # folds may name their snapshots differently, e.g. by best epoch
    counts = frame["id"].value_counts()
    return problems + listed(f"ids lack some of the {full} members", counts.index[counts < full])


def _value_problems(frame: pd.DataFrame, header: Header) -> list[str]:
    other = [name for name in header.columns if not pd.api.types.is_float_dtype(frame[name])]
    if other:
        return [f"the column {name} is {frame[name].dtype}, not a float" for name in other]
    values = frame[header.columns].to_numpy(np.float32)
    return [
        f"{rows.sum()} rows {what}: ids {some(sorted(frame['id'][rows].unique()))}"
        for what, rows in header.meaning.problems(values).items()
        if rows.any()
    ]


def _box_problems(frame: pd.DataFrame, header: Header) -> list[str]:
    """A box has a class, a score from 0 to 1 and an area; a member that found nothing has one row without a box."""
    other = [name for name in ("score", *BOX) if not pd.api.types.is_float_dtype(frame[name])]
    if other:
        return [f"the column {name} is {frame[name].dtype}, not a float" for name in other]
    score, edges = frame["score"].to_numpy(), frame[list(BOX)].to_numpy()
    nothing = (frame["class"] == "").to_numpy() & np.isnan(score) & np.isnan(edges).all(axis=1)
    classes = set(header.columns)
    bad = {
        "have a class that is not in columns": ~frame["class"].isin(classes).to_numpy(),
        "have no score from 0 to 1": ~((score >= 0) & (score <= 1)),
        "have no area (left, top, right, bottom)": ~((edges[:, :2] < edges[:, 2:]).all(axis=1)),
        "have infinite edges": np.isinf(edges).any(axis=1),
        "have a box beside an empty one": nothing & frame.duplicated(["id", *MEMBER], keep=False).to_numpy(),
    }
    problems = [
        f"{rows.sum()} rows {what}: ids {some(sorted(frame['id'][rows].unique()))}"
        for what, values in bad.items()
        if (rows := values & (what.startswith("have a box") | ~nothing)).any()
    ]
    if not nothing.all() and np.nanmax(edges) <= 1.5:
        problems.append("all boxes are within 0 to 1, so they seem to be shares: multiply them by the picture's sides")
    return problems


def members_of(frame: pd.DataFrame) -> list[tuple[int, str, str]]:
    """Return the distinct (fold, snapshot, view) of the rows, sorted."""
    rows = frame[MEMBER].drop_duplicates()
    return sorted((int(fold), snapshot, view) for fold, snapshot, view in rows.itertuples(index=False))


def with_members(header: Header, frame: pd.DataFrame) -> Header:
    """Fill in the members, and the columns of vectors."""
    if header.kind == "vectors":
        header = replace(header, columns=[name for name in frame if name not in ("id", *MEMBER)])
    return replace(header, members=[dict(zip(MEMBER, member, strict=True)) for member in members_of(frame)])


def map_file_problems(folder: Path, frame: pd.DataFrame) -> list[str]:
    """List map files of an index that are missing or outside maps/."""
    maps = (folder / "maps").resolve()
    outside = [name for name in frame["file"] if (folder / name).resolve().parent != maps]
    if outside:
        return listed("map files are not in maps/", outside)
    found = {f"maps/{path.name}" for path in maps.iterdir()} if maps.is_dir() else set()
    return listed("map files are missing", set(frame["file"]) - found)


def listed(what: str, names: Iterable[str]) -> list[str]:
    """Return a problem with the number of distinct names and the first of them; [] without names."""
    distinct = sorted(set(names))
    return [f"{len(distinct)} {what}: {some(distinct)}"] if distinct else []


def raise_problems(where: Path | str, problems: list[str]) -> None:
    if problems:
        raise PredictionsError(where, problems)

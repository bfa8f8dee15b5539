"""Which column of a table is which, and which could be meant if one is missing."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.errors import Refusal
from foldwise.shell import command, override

MOST_OFFERED = 3
NEAR = 0.75  # similarity of names that one is offered for the other, as difflib has it
LOOKED_AT = 20  # rows whose paths are tried
# Parts of names of columns that often have it; such columns are offered alone.
OFTEN = {
    "id": re.compile("id|name|key|image|file", re.IGNORECASE),
    "target": re.compile("label|class|target|tag|categor|species|breed|diagnos|grade", re.IGNORECASE),
}


@dataclass(frozen=True)
class Columns:
    """Column names in the file; None: the table has no such column.

    `target` defaults to `label` (multiclass), `labels` (multilabel) or `mask` (segmentation). A list of columns means
    one column per class: of probabilities (soft targets), or of masks.
    """

    id: str = "id"
    image: str = "image"
    target: str | Sequence[str] | None = None
    group: str | None = None
    unit: str | None = None
    weight: str | None = None
    fold: str | None = None
    gold: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Columns":
        known = [field.name for field in fields(cls)]
        unknown = [key for key in config if key not in known]
        if unknown:
            raise Refusal(f"data.columns has no key {', '.join(unknown)}; its keys are {', '.join(known)}")
        return cls(**{key: _as_names(key, value) for key, value in config.items()})


def _as_names(key: str, value: Any) -> Any:
    """Names as text, for YAML reads a column called 0 as a number; refuse what is no name."""
    if value is None or isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if key == "target" and isinstance(value, Sequence) and all(type(name) in (str, int) for name in value):
        return [str(name) for name in value]
    what = "the name of a column, a list of names, or null" if key == "target" else "the name of a column, or null"
    raise Refusal(f"data.columns.{key} is {value!r}; it must be {what}")


def missing_columns(names: Iterable[tuple[str, str]], raw: pd.DataFrame, root: Path) -> list[str]:
    """Describe the columns that a table lacks, each with the ones that could be meant.

    Args:
        names: (key of `data.columns`, or mask; name) of all columns that are used.
        root: of the paths.
    """
    pairs = list(dict.fromkeys(names))
    used = {name for _, name in pairs}
    free = [name for name in raw if name not in used]
    problems = []
    for key, name in pairs:
        if name not in raw.columns:
            found = ", ".join(name or "(without a name)" for name in raw)
            offered = [column for column in free if plain(column) == plain(name)]
            offered = offered or difflib.get_close_matches(name, free, 1, NEAR)
            offered = offered or [column for column in free if _could_be(key, raw[column], root)]
            offered = [column for column in offered if key in OFTEN and OFTEN[key].search(column)] or offered
            setting = f"data.columns.{'target' if key == 'mask' else key}"
            advice = " or ".join(_advice(setting, name, column) for column in offered[:MOST_OFFERED])
            problems.append(f"there is no column {name!r}; the columns are {found}" + (advice and f": {advice}"))
    return problems


def _advice(setting: str, name: str, column: str) -> str:
    if column == "":
        return f"write {name} over the column that has no name"
    return f"set {command(override(setting, column))}"


def plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[\W_]", "", name.casefold())


def _could_be(key: str, column: pd.Series, root: Path) -> bool:
    """Whether a column has what is looked for: unique values, paths of files, or values that repeat."""
    texts = text_column(column)
    if (texts == "").all():
        return False
    files = [(root / text).is_file() for text in texts.iloc[:LOOKED_AT] if 0 < len(text) < 200 and "\0" not in text]
    are_files = bool(files) and all(files)
    if key == "id":
        return texts.is_unique and (texts != "").all() and not are_files
    if key in ("image", "mask"):
        return are_files
    return not are_files and texts.nunique() > 1 and not texts.is_unique

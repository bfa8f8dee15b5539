"""Columns of a table, or starts of names, that look like groups: patients, sites, videos."""

from collections.abc import Sequence

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.table import MISSING
from foldwise.discovery.files import words
from foldwise.discovery.findings import Findings, Rows, first_free
from foldwise.discovery.targets import AMOUNTS, SIZES

GROUP = {
    "patient", "subject", "person", "participant", "case", "video", "clip", "sequence", "seq", "scene", "slide", "wsi",
    "specimen", "lesion", "series", "study", "session", "recording", "track", "flight", "group", "animal", "location",
    "site", "station", "farm", "field", "plot", "block", "house", "burst",
}  # fmt: skip
LEAST = 10  # groups
MOST = 0.98  # groups for each row
REPEATED = 0.67  # starts of names for each row, at most


def choose_group(found: Findings, rows: Rows) -> None:
    """Choose the column whose values no fold may split: the coarsest, as what it holds together holds the others."""
    target = [] if rows.target is None else rows.target.columns
    candidates = find_groups(rows.frame, [rows.id, rows.image], target)
    if not candidates:
        found.say("groups", "none: no column that repeats is called patient, site, video, ... or begins the ids")
        name_starts(found, rows)
        return
    finest = candidates[-1][0]
    inner = rows.frame.groupby(finest)  # each of whose values occurs with one of the chosen alone
    chosen, why = next((name, why) for name, why in candidates if (inner[name].nunique() == 1).all())
    found.settings["columns.group"] = chosen
    found.say("groups", f"{chosen}: {why}")
    others = [f"{name} ({why})" for name, why in candidates if name != chosen]
    if others:
        found.doubts.append(f"rows could also be held together by {'; '.join(others)}: write in columns group: <name>")


def find_groups(frame: pd.DataFrame, taken: Sequence[str], target: Sequence[str]) -> list[tuple[str, str]]:
    """Columns that look like groups, the coarsest first, each with its evidence."""
    found = []
    for name in frame:
        cells = text_column(frame[name])
        count = cells.nunique()
        if name in taken or name in target or not LEAST <= count <= MOST * len(cells) or cells.isin(MISSING).any():
            continue
        known = GROUP & set(words(name)) and not (AMOUNTS | SIZES) & set(words(name))
        first = frame.groupby(cells.to_numpy(), sort=False)
        alike = bool(target) and all((first[other].nunique(dropna=False) == 1).all() for other in target)
        begins = sum(str(id).startswith(cell) for id, cell in zip(frame[taken[0]], cells, strict=True)) == len(cells)
        if known or (alike and begins):
            why = "by its name" if known else "the ids begin with it, and its rows share their target"
            found.append((name, f"{count:,} values, {len(cells) / count:.3g} rows each, {why}"))
    return sorted(found, key=lambda pair: frame[pair[0]].nunique())


def name_starts(found: Findings, rows: Rows) -> None:
    """Add a column with the start of each name before its last part, if starts repeat, as in 10_left and 10_right."""
    starts = rows.frame[rows.image].str.extract(r"([^/]*[^/._-])[._-]+[^/._-]+\.\w+$")[0].fillna("")
    count, target = starts.nunique(), rows.target
    labels = rows.frame[target.columns[0]] if target is not None else starts
    few = not LEAST <= count <= REPEATED * len(starts)
    if few or (starts == "").any() or starts.groupby(labels).nunique().max() == 1:
        return
    column = first_free(rows.frame, "name_start")
    rows.frame, rows.stored = rows.frame.assign(**{column: starts}), None
    found.doubts.append(
        f"the names begin with {count:,} different words, such as {starts.iat[0]}: if these are patients, videos or "
        f"places, write in columns group: {column}"
    )

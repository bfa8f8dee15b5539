"""Rows of a folder that has a table: pictures, id, target and groups by its columns."""

from collections.abc import Sequence

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import some
from foldwise.data.targets import as_numbers
from foldwise.discovery import pixels
from foldwise.discovery.files import NEARLY, Survey, is_mask, parent, stem, words
from foldwise.discovery.findings import Findings, Rows, first_free
from foldwise.discovery.folders import pair_masks
from foldwise.discovery.tables import Found, folders_of
from foldwise.discovery.targets import CLASS, Target, choose_columns, find_groups, has_boxes, judge, nested
from foldwise.errors import Refusal

EMPTY_CODES = ("-1", "1 0", "0", "nan")  # how competitions write an empty mask


def rows_of_table(found: Findings, survey: Survey, train: Found, test: Found | None, sample: Found | None) -> Rows:
    link = train.link
    assert link is not None
    frame = train.frame.assign(**{link.column: text_column(train.frame[link.column])})
    header = ", which has no header" if train.headless else ""
    found.say("table", f"{train.path}{header}: {len(frame):,} rows; columns {some(list(frame), 8)}")
    each = "the start of each cell" if train.part else "each cell"
    found.say("pictures", f"column {link.column}: {each} is a {link.how} in {folders_of(link)}")
    if link.rivals:
        found.doubts.append(
            f"pictures of these names are in {some(link.rivals)} too; those in {folders_of(link)} were taken. To use "
            "others, move these away and run this again"
        )
    if train.part:
        frame[link.column] = frame[link.column].str.rpartition("_")[0]
    known = pd.Series([path != "" for path in link.found])
    whole = known.all() and not train.headless and not train.part and frame[link.column].tolist() == link.found
    if not known.all():
        found.doubts.append(
            f"{(~known).sum():,} rows of {train.path} have no picture, such as {frame[link.column][~known].iat[0]!r}: "
            "they were left out"
        )
    picture = first_free(frame, "image", "image_path", "picture_path")
    frame[picture] = link.found
    part = first_free(frame, "class", "class_of_row")
    if train.part:
        frame[part] = train.part
    frame = frame[known.to_numpy()].reset_index(drop=True)
    repeated = bool(frame[picture].duplicated().any())
    if repeated and (boxes := has_boxes(frame)):
        raise Refusal(
            f"{train.path} has a row per bounding box ({boxes}), which no task here predicts: write a table with one "
            "row per picture, and run this again"
        )
    stored = train.path if whole and not repeated else None
    if stored:
        frame, picture = frame.drop(columns=picture), link.column
    rows = Rows(frame, _choose_id(frame, link.column, picture, sample, repeated), picture, stored)
    taken = {rows.id, rows.image, link.column, part if train.part else ""}
    free = [name for name in frame if name not in taken and not _is_empty_or_index(frame[name])]
    masks = next((other for other in train.others if sum(map(is_mask, other.found)) > len(frame) / 2), None)
    pairs, evidence, _ = pair_masks(survey.pictures)
    paired = sum(path in pairs for path in frame[picture]) >= NEARLY * len(frame) and not repeated
    answers = pd.DataFrame() if sample is None else _answers(sample)
    columns, why, others = choose_columns(
        frame, free, None if test is None or test.is_sample else list(test.frame), answers
    )
    target = None
    if masks is not None and not set(columns) & set(answers):
        cells = text_column(train.frame[masks.column])[known.to_numpy()]
        target = _files(found, survey, rows, masks.column, cells.tolist(), [p for p in masks.found if p])
    elif columns:
        target = judge(frame, columns, answers)
    if (target is None or target.kind == "rle") and paired and masks is None:
        also = f"; {some(columns)} has the same as run-length codes" if target is not None else ""
        frame["mask_path"] = [pairs[path] for path in frame[picture]]
        rows.stored = None
        target = Target(("mask_path",), "files", evidence + also)
    if target is None:
        found.doubts.append(
            f"which column of {train.path} is the target ({some(others or free, 8)}): write in columns target: <name>"
        )
        return rows
    found.say("target", target.evidence + (f" ({why})" if why and target.kind != "files" else ""))
    if target.kind == "rle":
        rows, target = _runs(found, survey, rows, target, link.column, part if train.part else _class_column(free))
    elif repeated:
        rows, target = _join(rows, target, train.path)
    if others and target.kind != "files":
        found.doubts.append(
            f"{some(others, 8)} could be the target as well: write another one in columns, as target: <name>"
        )
    rows.target = target
    _group(found, rows, target)
    return rows


def _choose_id(frame: pd.DataFrame, column: str, picture: str, sample: Found | None, repeated: bool) -> str:
    """The column of the ids: the sample submission's, else an unique one called id, else that of the pictures."""
    unique = [
        name for name in frame if name != picture and frame[name].is_unique and (text_column(frame[name]) != "").all()
    ]
    if repeated or not unique:
        return column
    asked = [] if sample is None else [name for name in list(sample.frame)[:1] if name in unique]
    named = [name for name in unique if "id" in words(name)]
    return (
        asked
        or [name for name in named if name == "id" or name == column]
        or ([column] if column in unique else [])
        or named
        or unique
    )[0]


def _is_empty_or_index(column: pd.Series) -> bool:
    texts = text_column(column)
    return texts.nunique() < 2 or texts.tolist() == list(map(str, range(len(texts))))


def _answers(sample: Found) -> pd.DataFrame:
    """A sample submission without its ids."""
    return sample.frame.drop(columns=sample.link.column if sample.link is not None else sample.frame.columns[0])


def _class_column(free: Sequence[str]) -> str | None:
    return next((name for name in free if CLASS & set(words(name))), None)


def _files(found: Findings, survey: Survey, rows: Rows, column: str, cells: list[str], paths: list[str]) -> Target:
    """A column of mask files; their paths get a column of their own unless the cells are these."""
    evidence = f"{column}: each cell is a mask in {parent(paths[0]) or 'the folder'}/"
    if cells != paths:
        column = first_free(rows.frame, "mask_path", "mask_file")
        rows.frame[column] = paths
        rows.stored = None
    return Target((column,), "files", evidence)


def _join(rows: Rows, target: Target, path: str) -> tuple[Rows, Target]:
    """Make one row of several rows of a picture; their labels are joined."""
    grouped = rows.frame.groupby(rows.image, sort=False)
    first = grouped.first().reset_index()
    differ = [name for name in target.columns if (grouped[name].nunique() > 1).any()]
    if not differ:
        return Rows(first, rows.id, rows.image), target
    if len(target.columns) > 1 or target.kind in ("number", "grade"):
        raise Refusal(
            f"{path} has several rows of a picture with different {some(differ)}: write a table with one row per "
            "picture, and run this again"
        )
    name = target.columns[0]
    names = text_column(rows.frame[name])
    separator = next(mark for mark in (" ", "|", ";", "\t") if not names.str.contains(mark, regex=False).any())
    first[name] = grouped[name].agg(lambda cells: separator.join(dict.fromkeys(map(str, cells)))).to_numpy()
    evidence = f"{target.evidence}; the rows of a picture were joined"
    return Rows(first, rows.id, rows.image), Target(
        (name,), "labels", evidence, None if separator == " " else separator
    )


def _runs(
    found: Findings, survey: Survey, rows: Rows, target: Target, id: str, class_column: str | None
) -> tuple[Rows, Target]:
    """One row a picture, and a column of codes a class."""
    frame = rows.frame.copy()
    for name in target.columns:
        cells = text_column(frame[name]).str.split().str.join(" ")
        frame[name] = cells.where(~cells.isin(EMPTY_CODES), "")
    columns, classes = list(target.columns), list(target.columns) if len(target.columns) > 1 else ["object"]
    if len(columns) == 1:
        code = columns[0]
        if class_column is not None:
            classes = sorted(set(text_column(frame[class_column])) - {""})
            classes = sorted(classes, key=float) if as_numbers(classes) else classes
            columns = [f"mask_{name}" for name in classes]
        else:
            columns = ["mask" if code == rows.id else code]
        if class_column is not None or frame[rows.image].duplicated().any():
            key = pd.Series("", frame.index) if class_column is None else text_column(frame[class_column])
            joined = frame.groupby([frame[rows.image], key], sort=False)[code].agg(
                lambda codes: " ".join(filter(None, codes))
            )
            wide = joined.unstack(fill_value="").reindex(columns=classes if class_column else [""], fill_value="")
            dropped = [code] if class_column is None else [code, class_column]
            first = frame.drop_duplicates(rows.image).drop(columns=dropped).reset_index(drop=True)
            frame = first.assign(**dict(zip(columns, wide.loc[first[rows.image]].to_numpy().T, strict=True)))
            rows = Rows(frame, id if id in frame else rows.id, rows.image)
            found.say(
                "rows", f"{len(frame):,} pictures with {len(columns)} column{'s' * (len(columns) > 1)} of codes each"
            )
    if not frame[list(target.columns)].equals(rows.frame[list(target.columns)]) if rows.stored else True:
        rows = Rows(frame, rows.id, rows.image)
    rows.frame = _with_empty(found, survey, frame, rows, columns)
    filled = [
        (image, code) for name in columns for image, code in zip(frame[rows.image], frame[name], strict=True) if code
    ]
    encoding, why, doubt = pixels.order_of_runs(found.root, filled)
    found.settings |= {"mask_encoding": encoding, "classes": classes}
    found.say("run-length codes", f"{encoding}: {why}")
    found.doubts += [doubt] if doubt else []
    return rows, Target(tuple(columns), "rle", target.evidence)


def _with_empty(
    found: Findings, survey: Survey, frame: pd.DataFrame, rows: Rows, columns: Sequence[str]
) -> pd.DataFrame:
    """Ask whether pictures beside those of the table, without a row, have empty masks."""
    folders, known = set(map(parent, frame[rows.image])), set(frame[rows.image])
    missing = [path for path in survey.pictures if parent(path) in folders and path not in known]
    if not missing:
        return frame
    empty = f"they have empty masks: add the {len(missing):,} rows"
    text = f"{len(missing):,} pictures in {some(sorted(folders))}/ have no row in the table"
    answer = found.ask(
        f"{text}:", ["leave them out", empty], f"{text} and were left out; if they have no mask, add a row with empty "
        f"cells for each to data/{found.name}/tables/train.csv", "leave them out",
    )  # fmt: skip
    if answer != empty:
        return frame
    suffix = "." in frame[rows.id].iat[0]
    ids = [path.rpartition("/")[2] if suffix else stem(path) for path in missing]
    more = pd.DataFrame({rows.id: ids, rows.image: missing})
    return pd.concat([frame, more], ignore_index=True).fillna("")


def _group(found: Findings, rows: Rows, target: Target) -> None:
    """Choose the column whose values no fold may split: the coarsest, as what holds it together holds the others."""
    candidates = find_groups(rows.frame, [rows.id, rows.image], target.columns)
    if not candidates:
        return found.say("groups", "none: no column that repeats is called patient, site, video, ... or begins the ids")
    finest = candidates[-1][0]
    chosen, why = next((name, why) for name, why in candidates if nested(rows.frame, name, finest))
    found.settings["columns.group"] = chosen
    found.say("groups", f"{chosen}: {why}")
    others = [f"{name} ({why})" for name, why in candidates if name != chosen]
    if others:
        found.doubts.append(
            f"rows could also be held together by {'; '.join(others)}: write it in columns, as group: <name>"
        )
    return None

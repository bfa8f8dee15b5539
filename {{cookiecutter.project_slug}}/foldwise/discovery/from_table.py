"""Rows of a folder that has a table: pictures, id, target and groups by its columns."""

from collections.abc import Sequence
from itertools import chain

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.problems import some
from foldwise.data.table import MISSING
from foldwise.data.targets import as_numbers
from foldwise.discovery import pixels
from foldwise.discovery.files import NEARLY, TEST, TRAIN, VALIDATION, Survey, parent, stem, words
from foldwise.discovery.findings import Findings, Rows, first_free
from foldwise.discovery.folders import pair_masks
from foldwise.discovery.groups import choose_group
from foldwise.discovery.tables import Found
from foldwise.discovery.targets import CLASS, TARGET, Target, box_columns, choose_columns, judge
from foldwise.errors import Refusal

NO_TARGET = ("width", "height", "fold", "kfold", "split")
NAMED = ("class", "grade", "individual")  # targets that no row may lack
EMPTY_CODES = ("-1", "1 0", "0", "nan")  # how competitions write an empty mask


def rows_of_table(
    found: Findings, survey: Survey, tables: Sequence[Found], train: Found, test: Found | None, sample: Found | None
) -> Rows:
    rows, key, part = _link_pictures(found, train, sample)
    boxes, index = box_columns(rows.frame), list(map(str, range(len(rows.frame))))
    free = [name for name in rows.frame if name not in (rows.id, rows.image, key, part, *boxes)]
    texts = {name: text_column(rows.frame[name]) for name in free}
    free = [name for name in free if texts[name].nunique() > 1 and texts[name].tolist() != index]
    free = [name for name in free if name.casefold() not in NO_TARGET] or free
    answers = pd.DataFrame() if sample is None else sample.beside_ids
    tested = None if test is None or test.is_sample else list(test.frame)
    columns, why, others = choose_columns(rows.frame, free, tested, answers)
    repeated = bool(rows.frame[rows.image].duplicated().any())
    if repeated and boxes:
        raise Refusal(
            f"{train.path} has a row per bounding box ({some(boxes)}), which no task here predicts. To classify what "
            "is in the boxes, write the table by hand, with four columns of edges (docs/tasks.md); "
            "else write one row per picture, and run this again"
        )
    target = judge(rows.frame, columns, answers) if columns else None
    sure = any(name in answers or TARGET & set(words(name)) for name in columns)
    if target is None or target.kind == "rle" or not sure:
        target = _mask_files(survey, rows, train, repeated, target) or target
    if target is None:
        listed = others or free
        sentence = f"which column of {train.path} is the target ({some(listed, 8)}): write in columns target: <name>"
        if not listed:
            found.doubts.append(f"no column of {train.path} can be the target: add one, and run this again")
        answer = found.ask("Which column is the target?", listed, sentence) if listed else None
        if answer is None:
            return rows
        target, others, why = judge(rows.frame, [answer], answers), [], "chosen"
    found.say("target", target.evidence + (f" ({why})" if why and target.kind != "files" else ""))
    if target.kind == "rle":
        of_class = next((name for name in [part, *free] if CLASS & set(words(name))), None)
        rows, target = _runs(found, survey, rows, target, key, of_class)
    elif repeated:
        rows, target = _join_rows(rows, target, train.path)
    if empty := sum(text_column(rows.frame[target.columns[0]]).isin(MISSING)) if target.kind in NAMED else 0:
        found.doubts.append(f"what the {empty:,} rows without a {target.columns[0]} are: fill them in, or delete them")
    if others and target.kind != "files":
        found.doubts.append(f"{some(others, 8)} could be the target as well: write in columns target: <name>")
    for name in rows.frame:
        if set(map(str.casefold, text_column(rows.frame[name]))) <= TRAIN | TEST | VALIDATION:
            found.doubts.append(f"whether rows with another {name} than train are to be trained on: delete the others")
    rows.target = target
    _join_tables(found, rows, [table for table in tables if table not in (train, test, sample)])
    choose_group(found, rows)
    return rows


def _link_pictures(found: Findings, train: Found, sample: Found | None) -> tuple[Rows, str, str]:
    """The rows with their pictures, the column that leads to these, and the one of the classes in its cells or ""."""
    link, part = train.link, ""
    assert link is not None
    frame = train.frame.assign(**{link.column: text_column(train.frame[link.column])})
    found.say("table", f"{train.path} {train.note}".strip() + f": {len(frame):,} rows; columns {some(list(frame), 8)}")
    each = "the start of each cell" if train.part else "each cell"
    found.say("pictures", f"column {link.column}: {each} is a {link.how} in {link.folders}")
    if link.rivals:
        found.doubts.append(
            f"pictures of these names are in {some(link.rivals)} too; those in {link.folders} were taken. To use "
            "others, move these away and run this again"
        )
    if train.part:
        part = first_free(frame, "class", "class_of_row")
        frame = frame.assign(**{link.column: frame[link.column].str.rpartition("_")[0], part: train.part})
    if missing := [cell for cell, path in zip(frame[link.column], link.found, strict=True) if not path]:
        found.doubts.append(
            f"{len(missing):,} rows of {train.path} have no picture, such as {missing[0]!r}: they were left out"
        )
    whole = not train.note and not train.part and frame[link.column].tolist() == link.found
    picture = link.column if whole else first_free(frame, "image", "image_path", "picture_path")
    frame = frame.assign(**{picture: link.found})
    frame = frame[frame[picture] != ""].reset_index(drop=True)
    id = _choose_id(frame, link.column, picture, sample)
    stored = train.path if whole and not frame[picture].duplicated().any() else None
    return Rows(frame, id, picture, stored), link.column, part


def _mask_files(survey: Survey, rows: Rows, train: Found, repeated: bool, target: Target | None) -> Target | None:
    """A column of mask files, or masks with the names of the pictures; None if there are none."""
    frame = rows.frame
    link = next((link for link in train.others if link.column in frame and link.of_masks), None)
    if link is not None:
        path_of = dict(zip(text_column(train.frame[link.column]), link.found, strict=True))
        masks = [path_of[cell] for cell in text_column(frame[link.column])]
        evidence = f"{link.column}: each cell is a mask in {link.folders}"
        if masks == frame[link.column].tolist():
            return Target((link.column,), "files", evidence)
    else:
        pairs, evidence, _ = pair_masks(survey.pictures)
        masks = [pairs.get(path, "") for path in frame[rows.image]]
        if repeated or sum(map(bool, masks)) < NEARLY * len(frame):
            return None
        evidence += f"; {some(target.columns)} could be the target as well" if target is not None else ""
    column = first_free(frame, "mask_path", "mask_file")
    rows.frame, rows.stored = frame.assign(**{column: masks}), None
    return Target((column,), "files", evidence)


def _join_tables(found: Findings, rows: Rows, tables: Sequence[Found]) -> None:
    """Add the columns of other tables that have one row for each of the pictures."""
    for table in tables:
        if table.link is None or table.part:
            continue
        row_of = {path: row for row, path in enumerate(table.link.found)}
        new = [name for name in table.frame if name not in rows.frame and name != table.link.column]
        whole = len(row_of) == len(table.frame) and rows.frame[rows.image].isin(row_of.keys()).all()
        if new and whole:
            chosen = table.frame[new].iloc[[row_of[path] for path in rows.frame[rows.image]]]
            rows.frame = rows.frame.join(chosen.reset_index(drop=True))
            rows.stored = None
            found.used.append(table.path)
            found.say("joined", f"{some(new, 8)} of {table.path}, which has a row for each picture")


def _choose_id(frame: pd.DataFrame, column: str, picture: str, sample: Found | None) -> str:
    """The column of the ids: the sample submission's, one called id, that of the pictures, or else any unique."""
    if frame[picture].duplicated().any():
        return column
    usual = (name for name in frame if name.casefold() == "id"), [column], (n for n in frame if "id" in words(n)), frame
    named = [*([] if sample is None else [sample.frame.columns[0]]), *chain(*usual)]
    return next((name for name in named if name in frame and frame[name].is_unique and name != picture), column)


def _join_rows(rows: Rows, target: Target, path: str) -> tuple[Rows, Target]:
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
    found: Findings, survey: Survey, rows: Rows, target: Target, key: str, of_class: str | None
) -> tuple[Rows, Target]:
    """Make one row of the rows of a picture, with a column of codes per class."""
    codes = rows.frame[list(target.columns)].apply(lambda cells: text_column(cells).str.split().str.join(" "))
    frame = rows.frame.assign(**codes.mask(codes.isin(EMPTY_CODES), ""))
    columns = list(target.columns)
    classes = columns if len(columns) > 1 else ["object"]
    stored = rows.stored if frame[columns].equals(rows.frame[columns]) else None
    if len(columns) == 1 and (of_class is not None or frame[rows.image].duplicated().any()):
        label = pd.Series("object", frame.index) if of_class is None else text_column(frame[of_class])
        classes = sorted(set(label) - {""})
        classes = sorted(classes, key=float) if as_numbers(classes) else classes
        wide = frame.groupby([frame[rows.image], label])[columns[0]].agg(lambda cells: " ".join(filter(None, cells)))
        wide = wide.unstack(fill_value="").reindex(columns=classes, fill_value="").add_prefix("mask_")
        frame = frame.drop_duplicates(rows.image).drop(columns=[columns[0], *filter(None, [of_class])])
        frame = frame.join(wide, on=rows.image).reset_index(drop=True)
        columns, stored = list(wide), None
        of = f"with a column of codes for each of {some(classes)}" if of_class else "with the codes of its rows joined"
        found.say("rows", f"one for each of {len(frame):,} pictures, {of}")
    frame = _with_empty(found, survey, frame, rows, columns)
    filled = [(image, code) for name in columns for image, code in zip(frame[rows.image], frame[name], strict=True)]
    encoding = pixels.order_of_runs(found, [(image, code) for image, code in filled if code])
    found.settings |= {"mask_encoding": encoding, "classes": classes}
    return Rows(frame, key if key in frame else rows.id, rows.image, stored), Target(
        tuple(columns), "rle", target.evidence
    )


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

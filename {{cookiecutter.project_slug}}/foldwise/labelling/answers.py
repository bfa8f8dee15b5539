"""Take the answers of a labelling page into a new version of a table, with a log of what changed."""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from foldwise.data.boxes import BOX, origin_path
from foldwise.data.columns import Columns
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal, refuse_all
from foldwise.files import check_new, read_json, write_atomic, write_json
from foldwise.labelling.page import ACCEPT, REJECT, ToLabel
from foldwise.predictions.pseudo.rules import check_suffix, write_table
from foldwise.predictions.schema import some
from foldwise.tasks import find_task


class Taken(NamedTuple):
    """Counts of answers: rows that changed, that were right already, new rows, and masks that were rejected."""

    changed: int
    same: int
    new: int
    rejected: int
    log: Path


def take_answers(listed: ToLabel, answers: Path, out: Path) -> Taken:
    """Write a new version of `listed.base`, and `<out>.log.csv` beside it.

    Labels replace those of known ids; other ids, and accepted masks, become new rows with the columns of the list that
    the table has. Nothing else of the table changes.
    """
    check_suffix(out)
    log = out.with_name(f"{out.stem}.log.csv")
    table = listed.base
    origin = origin_path(table)
    carried = [origin_path(out)] if listed.kind == "box" and origin.is_file() else []
    check_new(out, log, *carried)
    given = _read_answers(listed, answers)
    frame = read_file(table).reset_index(drop=True)
    columns = Columns.from_config(listed.data["columns"])
    id_column = "id" if table == listed.path else columns.id
    names = list(BOX) if listed.kind == "box" else [_target(listed, columns)]
    accepted = given[given["mask"] == ACCEPT] if listed.kind == "mask" else given
    answered = accepted
    if listed.kind == "mask":
        masks = listed.frame.set_index("id")["mask"]
        answered = accepted.assign(mask=[masks[id] for id in accepted["id"]])
    row_of = {id: row for row, id in enumerate(frame[id_column].astype(str))}
    source = listed.frame.set_index("id", drop=False)
    lines, rows, same = [], [], 0
    frame = frame.astype(object)
    for answer in answered.to_dict("records"):
        values = [answer[name] for name in (BOX if listed.kind == "box" else [listed.kind])]
        row = row_of.get(answer["id"])
        before = [""] * len(names) if row is None else ["" if pd.isna(x) else str(x) for x in frame.loc[row, names]]
        if row is not None and _equal(before, values, listed):
            same += 1
            continue
        if row is None:
            shared = {name: source.at[answer["id"], name] for name in frame if name in source}
            image = {columns.image: source.at[answer["id"], "image"]}
            rows.append(shared | image | {id_column: answer["id"]} | dict(zip(names, values, strict=True)))
        else:
            frame.loc[row, names] = values
        lines += [
            {"id": answer["id"], "column": name, "before": old, "after": new, "seconds": answer["seconds"]}
            for name, old, new in zip(names, before, values, strict=True)
        ]
    if rows and columns.fold is not None:
        raise Refusal(
            f"{len(rows)} answers are new rows, which have no fold in the column {columns.fold!r}: set "
            "data.columns.fold=null; folds.csv has the given folds, and new rows join them"
        )
    if rows:
        frame = pd.concat([frame, pd.DataFrame(rows, dtype=object)[list(dict.fromkeys(rows[0]))]], ignore_index=True)
    with ExitStack() as stack:
        write_table(stack.enter_context(write_atomic(out)), frame)
        found = pd.DataFrame(lines, columns=["id", "column", "before", "after", "seconds"])
        found.assign(answers=answers.name).to_csv(stack.enter_context(write_atomic(log)), index=False)
        for path in carried:  # corrected boxes are still those of models that had not seen their pictures
            write_json(stack.enter_context(write_atomic(path)), read_json(origin) | {"corrected_by": answers.name})
    return Taken(len(answered) - same - len(rows), same, len(rows), len(given) - len(accepted), log)


def _read_answers(listed: ToLabel, path: Path) -> pd.DataFrame:
    """Read answers.csv; refuse those to another list, and all that are not among the choices."""
    given = read_file(path).reset_index(drop=True)
    names = list(BOX) if listed.kind == "box" else [listed.kind]
    if list(given) != ["id", *names, "seconds"]:
        raise Refusal(
            f"{path} has the columns {', '.join(given)}; answers to {listed.path} have id, {', '.join(names)}, seconds"
        )
    if given.empty:
        raise Refusal(f"{path} has no answers yet")
    given = given.astype(str).replace("nan", "")
    problems = []
    unknown = sorted(set(given["id"]) - set(listed.frame["id"]))
    if unknown:
        problems.append(f"{len(unknown)} ids are not in {listed.path}: {some(unknown)}")
    repeated = given["id"][given["id"].duplicated()].tolist()
    if repeated:
        problems.append(f"{len(repeated)} ids come more than once: {some(repeated)}")
    if listed.kind == "box":
        edges = given[list(BOX)].apply(pd.to_numeric, errors="coerce")
        empty = (given[list(BOX)] == "").all(axis=1)
        bad = ~empty & ~((edges["x0"] < edges["x1"]) & (edges["y0"] < edges["y1"]))
        wrong = [f"{id}" for id in given["id"][bad]]
        problems += [f"{len(wrong)} boxes are no left, top, right and bottom edge: ids {some(wrong)}"] if wrong else []
    else:
        choices = set(listed.classes)
        separator = listed.separator if listed.kind == "labels" else None
        cells = {
            text: text.split(separator) if separator and text else [text] * bool(text) for text in given[listed.kind]
        }
        other = sorted({name for names in cells.values() for name in names} - choices)
        other += [REJECT] if listed.kind == "mask" and "" in cells else []
        if other or (listed.kind == "label" and "" in cells):
            problems.append(f"{some(other) or 'an empty answer'} is none of {', '.join(listed.classes)}")
    refuse_all(f"{path}: {text}" for text in problems)
    return given


def _target(listed: ToLabel, columns: Columns) -> str:
    target = columns.target or find_task(listed.table.task).column
    if not isinstance(target, str):
        raise Refusal(f"data.columns.target is the list {', '.join(target)}; answers need one column of labels")
    return target


def _equal(before: list[str], after: list[str], listed: ToLabel) -> bool:
    if listed.kind == "labels":
        return set(before[0].split(listed.data["label_separator"])) == set(
            after[0].split(listed.data["label_separator"])
        )
    if listed.kind == "box":
        return all(a == b or (a and b and abs(float(a) - float(b)) < 0.05) for a, b in zip(before, after, strict=True))
    return before == after

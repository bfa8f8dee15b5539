"""Find out what a competition's folder holds, and write the data configuration that reads it."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.formats import describe_file
from foldwise.data.problems import some
from foldwise.data.run_lengths import RUNS
from foldwise.discovery import pixels, writing
from foldwise.discovery.files import TRAIN, Survey, is_mask, split_of, stem, words
from foldwise.discovery.findings import TABLES, Findings, Rows, ask_for
from foldwise.discovery.from_folders import rows_of_folders
from foldwise.discovery.from_table import rows_of_table
from foldwise.discovery.tables import (
    Found,
    choose_sample,
    choose_test,
    choose_train,
    find_names,
    folders_of,
    read_tables,
)
from foldwise.errors import Refusal
from foldwise.settings import OWNER

UNSEEN = ("columns.unit", "columns.weight", "columns.fold")  # nothing tells these: those of a file are kept
ARCHIVES = (".zip", ".tar", ".gz", ".7z", ".rar", ".tgz", ".bz2", ".xz")


def discover(root: Path, name: str) -> Findings:
    """Look at a folder, which is only read; the configuration would be called `name`."""
    if name == "sample":
        raise Refusal("data=sample is the embedded sample: choose another name with --data")
    if not re.fullmatch(r"[\w-]+", name):
        raise Refusal(f"--data {name!r} is no name of letters, digits, _ and -, for a file in configs/data")
    if OWNER.parent.is_relative_to(root.resolve()):
        raise Refusal(f"{root.resolve()} is this repository or holds it: name the folder with the competition's files")
    if not root.is_dir():
        raise Refusal(
            f"there is no folder {root}: unpack the competition's files, and name the folder that they are in"
        )
    root, repository = root.resolve(), OWNER.parent
    home = Path("data") / name
    survey = Survey.of(root, [repository / home / TABLES])
    _check_pictures(survey)
    found = Findings(root, name)
    inside = root.relative_to(repository) if root.is_relative_to(repository) else root
    found.settings |= writing.shipped(name) | {"root": inside.as_posix(), "test_table": None}
    tables, problems = read_tables(survey)
    train = choose_train(tables)
    if train is None and any(TRAIN & set(words(problem.partition(":")[0])) for problem in problems):
        raise Refusal("\n".join(problems))
    found.doubts += [f"a table that cannot be read: {problem}" for problem in problems]
    sample, test = choose_sample(tables, train), choose_test(tables, train)
    if train is None:
        try:
            rows = rows_of_folders(found, survey, tables)
        except Refusal as error:
            raise Refusal("\n".join([str(error), *problems])) from error
    else:
        rows = rows_of_table(found, survey, tables, train, test, sample)
    found.settings |= {"columns.id": rows.id, "columns.image": rows.image}
    found.settings["table"] = _place(found, home, rows.frame, "train.csv", rows.stored, inside)
    found.say("id", f"column {rows.id}: {len(rows.frame):,} different values, such as {rows.frame[rows.id].iat[0]}")
    _settle(found, survey, rows, tables)
    _find_test(found, survey, rows, test, home, inside)
    if sample is not None:
        found.say("sample submission", f"{sample.path}: {_describe_sample(sample)}")
    masks = rows.target is not None and rows.target.task == "segmentation"
    pixels.look_at_pictures(found, rows.frame[rows.image].tolist(), masks)
    _name_others(found, survey, tables, [train, test, sample])
    return found


def write(found: Findings) -> list[Path]:
    """Write the configuration and its tables; values that its owner changed are refused, on a terminal asked about."""
    path = writing.path_of(found.name)
    settings = {key: value for key, value in found.settings.items() if key not in UNSEEN or not path.is_file()}
    changed = writing.conflicts(found.name, settings, found.choices)
    changed += [f"{path} has other rows" for path, frame in found.tables.items() if writing.differs(path, frame)]
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        text = f"{path.relative_to(OWNER.parent)} has been changed and is not overwritten:\n{lines}\n"
        if not sys.stdin.isatty():
            raise Refusal(
                f"{text}Add --data <another name> to write a configuration of that name, or delete what is obsolete"
            )
        print(f"\n{text}")
        if ask_for("Replace these values? [y/N] ").casefold() not in ("y", "yes"):
            raise Refusal("nothing was written")
    header = [f"Found by python prepare.py --discover {found.root}"]
    header += [f"  {what}: {text}" for what, text in found.lines]
    header += ["", "Not decided:"] * bool(found.doubts) + [f"  {doubt}" for doubt in found.doubts]
    text = writing.fill_in(found.name, settings, found.choices, header)
    writing.write(found.name, text, found.tables)
    return [path.relative_to(OWNER.parent), *found.tables]


def _check_pictures(survey: Survey) -> None:
    if survey.pictures:
        return
    others = [f"{count:,} {suffix or 'files without suffix'}" for suffix, count in survey.others.most_common(5)]
    advice = ""
    for path in list(survey.example.values())[:20]:
        with (survey.root / path).open("rb") as file:
            what = describe_file(survey.root / path, file.read(4096))
        if ":" in what and not advice:
            advice = f"; {path} {what}"
    raise Refusal(f"{survey.root} has no pictures{f'; it has {some(others)}' if others else ''}{advice}")


def _place(found: Findings, home: Path, frame: pd.DataFrame, name: str, stored: str | None, inside: Path) -> str:
    """The path of a table for the configuration: one of the folder, or a new one."""
    if stored is not None:
        return (inside / stored).as_posix()
    path = home / TABLES / name
    found.tables[path] = frame
    return path.as_posix()


def _settle(found: Findings, survey: Survey, rows: Rows, tables: Sequence[Found]) -> None:
    """Settings that the target asks for."""
    target = rows.target
    if target is None:
        return
    found.doubts += [target.doubt] if target.doubt else []
    if not target.kind:
        return
    found.settings["columns.target"] = (
        list(target.columns) if len(target.columns) > 1 or target.kind == "rle" else target.columns[0]
    )
    found.settings["label_separator"] = target.separator
    names, file = find_names(survey, tables)
    if target.kind == "files":
        pixels.look_at_masks(found, [path for path in rows.frame[target.columns[0]] if path], names)
    if names:
        found.say("class names", f"{file}: {some(names['names'], 8)}")
    whys = {
        "class": "as each picture has one class", "individual": "as each picture has one name",
        "grade": "as each picture has one grade", "labels": "as a picture has any number of labels",
        "number": "as the target is a number", "rle": "a mask per class, as codes can overlap",
        "files": "as each pixel has a class",
    }  # fmt: skip
    found.set_task(target.task, whys[target.kind], "overlapping" if target.kind == "rle" else "exclusive")
    more = f"python train.py experiment={{}} data={found.name}"
    if target.kind == "grade":
        found.doubts.append(f"whether the numbers are grades in an order; {more.format('grades')} trains them as such")
    if target.kind == "individual":
        found.doubts.append(
            f"whether the names are individuals; {more.format('retrieval')} searches by likeness and finds new ones"
        )


def _find_test(found: Findings, survey: Survey, rows: Rows, test: Found | None, home: Path, inside: Path) -> None:
    known = set(rows.frame[rows.image])
    loose = [path for path in survey.pictures if split_of(path) == "test" and path not in known]
    loose = [path for path in loose if not is_mask(path)] or loose  # seg_train/ and seg_test/ are of no masks
    frame, stored, where = None, None, ""
    if test is not None and test.link is not None:
        link, frame = test.link, test.frame
        ids = text_column(frame[rows.id] if rows.id in frame else frame[link.column])
        ids = ids.str.rpartition("_")[0] if test.part else ids
        same = rows.image == link.column and rows.id in frame and frame[link.column].tolist() == link.found
        frame = frame.assign(**{rows.id: ids, rows.image: link.found})
        frame = frame[frame[rows.image] != ""].drop_duplicates(rows.image)
        stored = test.path if same and len(frame) == len(test.frame) and not test.note else None
        frame = frame[[rows.id, rows.image]] if test.is_sample else frame
        where = f"{test.path}: {len(frame):,} pictures in {folders_of(link)}"
    elif loose:
        names = [path.rpartition("/")[2] if rows.has_suffix else stem(path) for path in loose]
        unique = len(set(names)) == len(names)
        frame = pd.DataFrame(
            {rows.id: names if unique else [path.rpartition(".")[0] for path in loose], rows.image: loose}
        )
        where = (
            f"no table; {len(loose):,} pictures in {some(sorted({path.rpartition('/')[0] + '/' for path in loose}), 3)}"
        )
    if frame is None or frame.empty:
        found.say("test", "none found: no folder or table is called test; test_table stays empty")
        return
    found.settings["test_table"] = _place(found, home, frame, "test.csv", stored, inside)
    found.say("test", where)


def _describe_sample(sample: Found) -> str:
    """The columns of a sample submission, and which format of submit.py it has."""
    values = list(sample.beside_ids)
    cells = text_column(sample.frame[values[0]])
    tokens = cells.str.split().str.len()
    if len(values) > 1:
        kind = f"{len(values)} columns of values (submit.py --format columns)"
    elif (cells == "").all():
        kind = f"{values[0]}, which is empty"
    elif cells.map(lambda cell: RUNS.fullmatch(cell) is not None).all() and tokens.max() > 1:
        kind = f"{values[0]}, run-length codes (submit.py --format rle)"
    elif cells.str.fullmatch(r"-?\d*\.\d+").any():
        kind = f"{values[0]}, a number (submit.py --format columns)"
    else:
        ranked = tokens.min() == tokens.max() > 2
        kind = f"{values[0]}, such as {cells.iat[0][:40]!r} (submit.py --format {'ranking' if ranked else 'labels'})"
    key = next(name for name in sample.frame if name not in values)
    return f"ids in {key}; {kind}"


def _name_others(found: Findings, survey: Survey, tables: Sequence[Found], used: Sequence[Found | None]) -> None:
    for table in [table for table in tables if table not in used and table.path not in found.used][:8]:
        leads = f", {table.link.column} leads to {folders_of(table.link)}" if table.link is not None else ""
        found.say(
            "also there",
            f"{table.path}, not used: {len(table.frame):,} rows; columns {some(list(table.frame), 8)}{leads}",
        )
    others = survey.others.copy()
    others[".json"] -= sum(table.path.endswith(".json") for table in tables)
    for suffix, count in (+others).most_common(8):
        advice = " (an archive: unpack it if its files are needed)" if suffix in ARCHIVES else ""
        found.say(
            "also there", f"{count:,} {suffix or 'without suffix'}, not used, such as {survey.example[suffix]}{advice}"
        )

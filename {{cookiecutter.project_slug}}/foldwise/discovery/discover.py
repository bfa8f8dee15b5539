"""Find out what a competition's folder holds, and write the data configuration that reads it."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from foldwise.data.cells import text_column
from foldwise.data.formats import describe_file
from foldwise.data.problems import some
from foldwise.data.run_lengths import RUNS
from foldwise.discovery import pixels, writing
from foldwise.discovery.files import TRAIN, Survey, is_mask, parent, split_of, stem, suffix, words
from foldwise.discovery.findings import Findings, Rows
from foldwise.discovery.folders import rows_of_folders
from foldwise.discovery.from_table import rows_of_table
from foldwise.discovery.tables import (
    Found,
    choose_sample,
    choose_test,
    choose_train,
    find_names,
    read_tables,
)
from foldwise.discovery.targets import TASKS, Target
from foldwise.errors import Refusal
from foldwise.files import write_csv, write_text
from foldwise.settings import OWNER, read_yaml
from foldwise.tasks import find_task

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
    found = Findings(root.resolve(), name)
    survey = Survey(found.root, OWNER.parent / found.folder)
    if not survey.pictures:
        raise Refusal(_without_pictures(survey))
    found.settings |= writing.shipped(name) | {"root": found.inside.as_posix(), "test_table": None}
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
    found.settings["table"] = found.place(rows.frame, "train.csv", rows.stored)
    found.say("id", f"column {rows.id}: {len(rows.frame):,} different values, such as {rows.frame[rows.id].iat[0]}")
    if rows.target is not None:
        _set_target(found, survey, rows, rows.target, tables)
    _find_test(found, survey, rows, test)
    if sample is not None:
        found.say("sample submission", f"{sample.path}: {_describe_sample(sample)}")
    masks = rows.target is not None and rows.target.task == "segmentation"
    pixels.inspect_pictures(found, rows.frame[rows.image].tolist(), masks)
    _name_others(found, survey, tables, (train, test, sample))
    return found


def write(found: Findings) -> list[Path]:
    """Write the configuration and its tables; refuse to replace values that its owner changed."""
    path = writing.path_of(found.name)
    settings = {key: value for key, value in found.settings.items() if key not in UNSEEN or not path.is_file()}
    changed = writing.conflicts(found.name, settings, found.choices)
    changed += [f"{path} has other rows" for path, frame in found.tables.items() if writing.differs(path, frame)]
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise Refusal(
            f"{path.relative_to(OWNER.parent)} has been changed and is not overwritten:\n{lines}\n"
            "Add --data <another name> to write a configuration of that name, or delete what is obsolete"
        )
    header = [f"Found by python prepare.py --discover {found.root}"]
    header += [f"  {what}: {text}" for what, text in found.lines]
    header += ["", "Not decided:"] * bool(found.doubts) + [f"  {doubt}" for doubt in found.doubts]
    text = writing.fill_in(found.name, settings, found.choices, header)
    for table, frame in found.tables.items():
        write_csv(table, frame)
    write_text(path, text)
    return [path.relative_to(OWNER.parent), *found.tables]


def _without_pictures(survey: Survey) -> str:
    counts = Counter(map(suffix, survey.others))
    others = [f"{count:,} {name or 'files without suffix'}" for name, count in counts.most_common(5)]
    advice = ""
    for path in {suffix(path): path for path in survey.others[::-1]}.values():
        with (survey.root / path).open("rb") as file:
            what = describe_file(survey.root / path, file.read(4096))
        advice = advice or (f"; {path} {what}" if ":" in what else "")
    return f"{survey.root} has no pictures{f'; it has {some(others)}' if others else ''}{advice}"


def _set_target(found: Findings, survey: Survey, rows: Rows, target: Target, tables: Sequence[Found]) -> None:
    """Settings that the target asks for; the metric and loss too where the repository's own do not suit the task."""
    found.doubts += [target.doubt] if target.doubt else []
    if not target.kind:
        return
    several = len(target.columns) > 1 or target.kind == "rle"
    found.settings["columns.target"] = list(target.columns) if several else target.columns[0]
    found.settings["label_separator"] = target.separator
    names, file = find_names(survey, tables)
    if target.kind == "files":
        pixels.inspect_masks(found, [path for path in rows.frame[target.columns[0]] if path], names)
    if names:
        found.say("class names", f"{file}: {some(names['names'], 8)}")
    entries = read_yaml(OWNER / "project.yaml")["defaults"]
    own = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    overlapping, changed = target.kind == "rle", ""
    metric = find_task("segmentation_overlapping" if overlapping else target.task).metric
    if overlapping or target.task != own["task"]:
        found.choices |= {"task": target.task, "metric": metric} | ({"loss": "bce_dice"} if overlapping else {})
    if overlapping:
        found.settings["masks"] = "overlapping"
    if target.task != own["task"]:
        changed = f" (configs/project.yaml has {own['task']}; the file's first lines change it)"
    found.say("task", f"{target.task}, {TASKS[target.kind][1]}{changed}")
    if found.choices.get("metric") not in (None, own["metric"]):
        found.doubts.append(
            f"the competition's metric is in no file: {metric} was taken. For another one change the line of /metric "
            "(python train.py --help lists them)"
        )
    more = {
        "grade": "whether the numbers are grades in an order; {} experiment=grades {} trains them as such",
        "individual": "whether the names are individuals; {} experiment=retrieval {} searches by likeness and finds "
        "new ones",
    }
    if target.kind in more:
        found.doubts.append(more[target.kind].format("python train.py", f"data={found.name}"))


def _find_test(found: Findings, survey: Survey, rows: Rows, test: Found | None) -> None:
    known = set(rows.frame[rows.image])
    loose = [path for path in survey.pictures if split_of(path) == "test" and path not in known]
    loose = [path for path in loose if not is_mask(path)] or loose  # seg_train/ and seg_test/ are of no masks
    if test is not None and test.link is not None:
        link, frame = test.link, test.frame
        ids = text_column(frame[rows.id] if rows.id in frame else frame[link.column])
        ids = ids.str.rpartition("_")[0] if test.part else ids
        same = rows.image == link.column and rows.id in frame and frame[link.column].tolist() == link.found
        frame = frame.assign(**{rows.id: ids, rows.image: link.found})
        frame = frame[frame[rows.image] != ""].drop_duplicates(rows.image)
        stored = test.path if same and len(frame) == len(test.frame) and not test.note else None
        frame = frame[[rows.id, rows.image]] if test.is_sample else frame
        found.say("test", f"{test.path}: {len(frame):,} pictures in {link.folders}")
    elif loose:
        names = [path.rpartition("/")[2] if rows.has_suffix else stem(path) for path in loose]
        names = names if len(set(names)) == len(names) else [path.rpartition(".")[0] for path in loose]
        frame, stored = pd.DataFrame({rows.id: names, rows.image: loose}), None
        folders = sorted({f"{parent(path)}/" for path in loose})
        found.say("test", f"no table; {len(loose):,} pictures in {some(folders, 3)}")
    else:
        found.say("test", "none found: no folder or table is called test; test_table stays empty")
        return
    found.settings["test_table"] = found.place(frame, "test.csv", stored)


def _describe_sample(sample: Found) -> str:
    """The columns of a sample submission, and which format of submit.py it has."""
    values = list(sample.beside_ids)
    cells = text_column(sample.frame[values[0]])
    tokens = cells.str.split().str.len()
    key, kind, form = next(name for name in sample.frame if name not in values), values[0], "labels"
    if len(values) > 1:
        kind, form = f"{len(values)} columns of values", "columns"
    elif (cells == "").all():
        return f"ids in {key}; {kind}, which is empty"
    elif cells.map(lambda cell: RUNS.fullmatch(cell) is not None).all() and tokens.max() > 1:
        kind, form = f"{kind}, run-length codes", "rle"
    elif cells.str.fullmatch(r"-?\d*\.\d+").any():
        kind, form = f"{kind}, a number", "columns"
    else:
        kind, form = f"{kind}, such as {cells.iat[0][:40]!r}", "ranking" if tokens.min() == tokens.max() > 2 else form
    return f"ids in {key}; {kind} (submit.py --format {form})"


def _name_others(found: Findings, survey: Survey, tables: Sequence[Found], used: Sequence[Found | None]) -> None:
    for table in [table for table in tables if table not in used and table.path not in found.used][:8]:
        leads = f", {table.link.column} leads to {table.link.folders}" if table.link is not None else ""
        columns = some(list(table.frame), 8)
        found.say("also there", f"{table.path}, not used: {len(table.frame):,} rows; columns {columns}{leads}")
    read = {table.path for table in tables}
    others = [path for path in survey.others if path not in read]
    for kind, count in Counter(map(suffix, others)).most_common(8):
        example = next(path for path in others if suffix(path) == kind)
        advice = " (an archive: unpack it if its files are needed)" if kind in ARCHIVES else ""
        found.say("also there", f"{count:,} {kind or 'without suffix'}, not used, such as {example}{advice}")

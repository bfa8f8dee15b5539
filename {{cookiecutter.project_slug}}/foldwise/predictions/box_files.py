"""Read boxes from COCO JSON, YOLO text files and tables: ground truth into a table, found ones into predictions.

A file of found boxes is of one fold's model and one view (`Part`). A view's flips are undone. All problems of all files
are listed at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from foldwise.config import compose_config, resolve_config, write_config
from foldwise.data.boxes import BOX, origin_path
from foldwise.data.columns import Columns
from foldwise.data.holdout import FULL
from foldwise.data.table import Table, read_table
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal, refuse_all
from foldwise.files import check_new, new_folder, read_json, read_text, write_atomic
from foldwise.predictions.boxes import Boxes, boxes_frame, picture_sides
from foldwise.predictions.ground_truth import read_ground_truth, read_test_table
from foldwise.predictions.pseudo.rules import check_suffix, write_table
from foldwise.predictions.schema import Header, listed
from foldwise.predictions.store import write_predictions
from foldwise.tasks.detection import write_boxes

IDENTITY = "identity"
OUTSIDE = 1.0  # pixels that a box may lead out of its picture; it is cut
MOST_SHARE = 1.5  # edges up to this are shares of the picture's sides
ORIGIN = "tools/boxes.py"
KEYS = ("image_id", "category_id", "bbox", "score")  # of COCO's results


class Part(NamedTuple):
    """A file of found boxes; `fold` None: each picture's own, by folds.csv."""

    path: Path
    fold: int | None = None
    view: str = IDENTITY

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read [FOLD[:VIEW]=]PATH, such as 0:hflip=fold0.json; the fold of a full fit is called full."""
        found = re.fullmatch(r"(?:(\d+|full)?(?::([\w@.]+))?=)?(.+)", text)
        assert found is not None
        fold = None if found[1] is None else FULL if found[1] == "full" else int(found[1])
        return cls(Path(found[3]), fold, found[2] or IDENTITY)


@dataclass
class BoxReader:
    """Reads files of boxes of a table's pictures, and collects their problems.

    Attributes:
        classes: None: those found.
        names: of the columns of a table of boxes, by our name, where they are called otherwise.
        annotations: COCO files with the names of images and categories.
    """

    table: Table
    classes: Sequence[str] | None
    names: Mapping[str, str] = field(default_factory=dict)
    annotations: Sequence[Path] = ()
    problems: list[str] = field(default_factory=list)

    def read(self, kind: str, part: Part, scored: bool) -> pd.DataFrame:
        """Return id, class, score (1 if not `scored`) and edges in pixels of the upright picture."""
        reader: Callable[[Path, bool], pd.DataFrame] = getattr(self, f"_read_{kind}")
        frame = reader(part.path, scored)
        frame = frame.assign(id=[self.id_of.get(name, "") for name in frame["name"]])
        known = frame["id"] != ""
        report = self._reporter(part.path, frame["name"])
        report("boxes are of pictures that the table does not have", ~known)
        if self.classes is not None:
            report(f"boxes have a class that is none of {', '.join(self.classes)}", ~frame["class"].isin(self.classes))
        report("boxes have no score from 0 to 1", ~frame["score"].between(0, 1))
        frame = frame[known].reset_index(drop=True)
        edges = frame[list(BOX)].to_numpy(np.float64)
        ids, place = np.unique(frame["id"].to_numpy(object), return_inverse=True)
        sides = np.array([picture_sides(self.table, id) for id in ids]).reshape(-1, 4)[place]
        transposed, flips = self._symmetry(part.view)
        sides = sides[:, [1, 0, 3, 2]] if transposed else sides
        if (edges[~np.isnan(edges)] <= MOST_SHARE).all():
            edges = edges * sides
        report = self._reporter(part.path, frame["id"])
        outside = ((edges < -OUTSIDE) | (edges > sides + OUTSIDE)).any(axis=1)
        report("boxes lead out of their picture", outside)
        edges = edges.clip(0, sides)
        report("boxes have no area", ~((edges[:, :2] < edges[:, 2:]).all(axis=1) | outside))
        for axis in flips:
            low, high = (0, 2) if axis == -1 else (1, 3)
            edges[:, [low, high]] = sides[:, [low]] - edges[:, [high, low]]
        if transposed:
            edges = edges[:, [1, 0, 3, 2]]
        return frame[["id", "class", "score"]].join(pd.DataFrame(edges, columns=list(BOX)))

    @cached_property
    def id_of(self) -> dict[str, str]:
        """Ids by what files may call a picture: its id, path, file name, or the name without suffix."""
        found: dict[str, str] = {}
        for short in (lambda path: path.with_suffix("").name, lambda path: path.name, str):
            names = [short(Path(image)) for image in self.table.frame["image"]]
            twice = {name for name, count in pd.Series(names).value_counts().items() if count > 1}
            found |= {name: id for name, id in zip(names, self.table.ids, strict=True) if name not in twice}
        return found | {id: id for id in self.table.ids}

    def _symmetry(self, view: str) -> tuple[bool, tuple[int, ...]]:
        if view == IDENTITY:
            return False, ()
        from foldwise.tasks.views import SYMMETRIES  # imports torch

        if view not in SYMMETRIES:
            raise Refusal(f"there is no view {view!r} of boxes; there are {', '.join(SYMMETRIES)}")
        return SYMMETRIES[view]

    def _reporter(self, path: Path, names: pd.Series) -> Callable[[str, Any], None]:
        def report(what: str, bad: Any) -> None:
            bad = np.asarray(bad, bool)
            found = listed("pictures", names[bad])
            self.problems += [f"{path}: {bad.sum():,} {what}, in {each}" for each in found]

        return report

    def _read_coco(self, path: Path, scored: bool) -> pd.DataFrame:
        images, classes = dict[Any, str](), dict[Any, str]()
        known: Any = {}
        for file in self.annotations if scored else [path]:
            known = read_json(file)
            try:
                images |= {image["id"]: str(image["file_name"]) for image in known["images"]}
                classes |= {kind["id"]: str(kind["name"]) for kind in known.get("categories", [])}
            except (KeyError, TypeError, AttributeError) as error:
                raise Refusal(
                    f"{file} is no file of COCO annotations: it lacks the names of images or classes"
                ) from error
        entries = read_json(path) if scored else known.get("annotations")
        if not isinstance(entries, list):
            raise Refusal(f"{path} has no list of {'results' if scored else 'annotations'}, as COCO's files have")
        rows, bad, unnamed = [], [], set[str]()
        for number, each in enumerate(entries):
            try:
                x, y, width, height = map(float, each["bbox"])
                name = images.get(each["image_id"], str(each["image_id"]))
                if classes and each["category_id"] not in classes:
                    unnamed.add(str(each["category_id"]))
                kind = classes.get(each["category_id"], str(each["category_id"]))
                score = float(each["score"]) if scored else 1.0
            except (KeyError, TypeError, ValueError):
                bad.append(str(number))
                continue
            name = name if name in self.id_of else Path(name).name
            rows += [(name, kind, score, x, y, x + width, y + height)] * (not each.get("iscrowd"))
        self.problems += [f"{path}: {each}" for each in listed("categories have no name", sorted(unnamed))]
        keys = ", ".join(KEYS[: 3 + scored])
        self.problems += [f"{path}: {each}" for each in listed(f"entries, counted from 0, lack one of {keys}", bad)]
        return _frame(rows)

    def _read_yolo(self, path: Path, scored: bool) -> pd.DataFrame:
        if not path.is_dir():
            raise Refusal(f"{path} is no folder: YOLO has a text file for each picture, in one folder")
        if self.classes is None:
            raise Refusal("YOLO's classes are numbers: list their names in data.classes, in that order")
        rows, bad = [], []
        for file in sorted(path.glob("*.txt")):
            for number, line in enumerate(read_text(file).splitlines(), 1):
                values = line.split()
                try:
                    kind, x, y, width, height, score = map(float, [*values, "1"] if not scored else values)
                    name = self.classes[int(kind)] if 0 <= kind < len(self.classes) else f"number {kind:g}"
                except ValueError:
                    bad.append(f"{file.name}:{number}")
                    continue
                rows.append((file.stem, name, score, x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        last = ", confidence (save_conf=True)" if scored else ""
        self.problems += [f"{path}: lines are not class, x, y, width, height{last}: {e}" for e in listed("such", bad)]
        return _frame(rows)

    def _read_table(self, path: Path, scored: bool) -> pd.DataFrame:
        frame = read_file(path)
        names = {name: self.names.get(name, name) for name in ("id", "class", *(["score"] if scored else []), *BOX)}
        if missing := [name for name in names.values() if name not in frame]:
            ours = next(own for own, name in names.items() if name == missing[0])
            raise Refusal(f"{path} has no column {', '.join(missing)}: name it with --columns {ours}=<column>")
        frame = frame[list(names.values())].set_axis(list(names), axis=1).rename(columns={"id": "name"})
        frame = frame.assign(**({} if scored else {"score": 1.0})).reset_index(drop=True)
        numbers = frame[["score", *BOX]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
        found = numbers[list(BOX)].notna().any(axis=1)  # a row with empty edges is a picture without a box
        return pd.concat([frame[["name", "class"]].astype(str), numbers], axis=1)[found].reset_index(drop=True)


def _frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["name", "class", "score", *BOX])
    return frame.astype(dict.fromkeys(("score", *BOX), np.float64))


def write_truth(
    kind: str, path: Path, out: Path, data: str, overrides: Sequence[str] = (), names: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Write the training table with a column `boxes`; return the numbers of boxes and of pictures without one.

    Args:
        data, overrides: as in `read_ground_truth`, for a table without boxes.
    """
    check_suffix(out)
    check_new(out)
    section = resolve_config(compose_config([f"data={data}", "task=detection", *overrides]))["data"]
    columns, classes = Columns.from_config(section["columns"]), section["classes"]
    exif = section.get("exif")
    table = read_table(section["table"], "detection", section["root"], columns, classes, has_target=False, exif=exif)
    reader = BoxReader(table, classes, names or {})
    frame = reader.read(kind, Part(path), scored=False)
    stray = [name for name in frame["class"].unique() if name != " ".join(name.split()) or ";" in name or not name]
    problems = listed("classes are empty, or have a semicolon or stray spaces", map(repr, stray))
    refuse_all([*reader.problems, *problems])
    boxes: dict[str, list[Any]] = {id: [] for id in table.ids}
    for id, name, _, *edges in frame.itertuples(index=False):
        boxes[id].append((name, tuple(edges)))
    written = read_file(Path(section["table"])).reset_index(drop=True)
    with write_atomic(out) as temporary:
        write_table(temporary, written.assign(boxes=[write_boxes(boxes[id]) for id in table.ids]))
    return len(frame), sum(not each for each in boxes.values())


def write_found(
    kind: str,
    oof: Sequence[Part],
    test: Sequence[Part],
    out: Path,
    data: str,
    overrides: Sequence[str] = (),
    annotations: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> dict[str, tuple[int, int]]:
    """Write a source of predictions; return the numbers of boxes and of pictures without one by split."""
    check_new(out)
    settings = ["task=detection", "metric=detection_map", *overrides]
    truth = read_ground_truth(out, data, settings)
    classes = truth.table.classes
    scored = {id: fold for id, fold in zip(truth.table.ids, truth.folds.tolist(), strict=True) if fold >= 0}
    ids_of = {fold: [id for id, own in scored.items() if own == fold] for fold in truth.scored_folds}
    reader = BoxReader(truth.table, classes, names or {}, annotations)
    problems = reader.problems
    read = []
    for part in oof:
        frame = reader.read(kind, part, scored=True)
        folds = frame["id"].map(scored).fillna(-1).astype(int)
        if part.fold == FULL:
            problems.append(f"--oof {part.path}: the model of all rows has no held-out pictures: name a fold")
            continue
        why = "are never scored" if part.fold is None else f"are not in fold {part.fold}, whose model learnt from them"
        wrong = frame["id"][folds.eq(-1) if part.fold is None else folds.ne(part.fold)]
        problems += [f"{part.path}: {each}" for each in listed(f"predicted ids {why}", wrong)]
        origin = read_json(origin_path(part.path)) if origin_path(part.path).is_file() else {}  # of tools/crop.py
        if isinstance(origin, dict) and origin.get("folds_hash", truth.folds_hash) != truth.folds_hash:
            problems.append(f"{part.path}: its boxes were found with other folds than those of data={data}")
        read.append((part, frame))
    problems += _repeated("oof", [(part._replace(fold=None), frame) for part, frame in read])
    given = {fold for part in oof for fold in (ids_of if part.fold is None else [part.fold]) if fold != FULL}
    problems += [f"--oof has no boxes of fold {fold}" for fold in sorted(ids_of.keys() - given)]
    problems += [f"--oof has boxes of fold {fold}, which does not exist" for fold in sorted(given - ids_of.keys())]
    sides = {"oof": (read, ids_of)}
    if test:
        table = read_test_table(truth)
        of_test = BoxReader(table, classes, names or {}, annotations, problems)
        problems += [f"--test {part.path}: name the model's fold: 0={part.path}" for part in test if part.fold is None]
        found = [(part, of_test.read(kind, part, scored=True)) for part in test]
        problems += _repeated("test", found)
        sides["test"] = (found, {part.fold: table.ids for part in test if part.fold is not None})
    refuse_all(problems)
    counts = {}
    with new_folder(out) as folder:
        for split, (found, ids) in sides.items():
            header = Header(
                split=split,
                task="detection",
                columns=classes,
                run=out.name,
                folds_hash=truth.folds_hash,
                tta={"views": list(dict.fromkeys(part.view for part, _ in found)), "mean": "arithmetic"},
                created_by=ORIGIN,
            )
            frame = _members(found, ids, classes)
            write_predictions(folder / "oof" if split == "oof" else folder / "predictions" / split, frame, header)
            boxes = frame["class"] != ""
            counts[split] = int(boxes.sum()), frame["id"].nunique() - frame["id"][boxes].nunique()
        write_config(folder, {key: truth.config[key] for key in ("task", "data", "samples", "metric")})
    return counts


def _repeated(split: str, read: Sequence[tuple[Part, pd.DataFrame]]) -> list[str]:
    """Problems of boxes that several files of one fold and view have, which would count twice."""
    if not read:
        return []
    seen = pd.concat([frame.drop_duplicates().assign(of=str(part[1:])) for part, frame in read])
    again = seen["id"][seen.duplicated()].unique()
    return listed(f"pictures have the same boxes in several files of one fold and view of --{split}", again)


def _members(
    read: Sequence[tuple[Part, pd.DataFrame]], ids_of: Mapping[int, Sequence[str]], classes: Sequence[str]
) -> pd.DataFrame:
    """Rows of a prediction folder; several files of one fold and view are one member, a row for each id at least."""
    frames: dict[tuple[int, str], list[pd.DataFrame]] = {}
    for part, frame in read:
        for fold in ids_of if part.fold is None else [part.fold]:
            frames.setdefault((fold, part.view), []).append(frame)
    parts = []
    for (fold, view), each in frames.items():
        frame = pd.concat(each, ignore_index=True)
        rows_of = frame.groupby("id").indices
        label = pd.Index(classes).get_indexer(frame["class"])
        every = Boxes(label, frame["score"].to_numpy(), frame[list(BOX)].to_numpy())
        found = ((id, every.take(rows_of.get(id, np.zeros(0, np.int64)))) for id in ids_of[fold])
        parts.append(boxes_frame(found, classes, {"fold": fold, "snapshot": "last", "view": view}))
    return pd.concat(parts, ignore_index=True)

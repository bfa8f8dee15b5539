"""Check submission files against the competition's sample submission, write them, and compare them."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.decoding import decode_mask
from foldwise.data.problems import explain_ids, some
from foldwise.data.table_file import read_file
from foldwise.files import check_new, write_atomic
from foldwise.predictions.decisions.formats import FORMATS, Masks, RunLengths
from foldwise.predictions.decisions.sample import Sample
from foldwise.predictions.schema import PredictionsError, raise_problems


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV as text; refuse one that cannot be read."""
    return read_file(path).reset_index(drop=True).astype(str)


def check_rows(layout: Any, ids: Sequence[str], sample: Sample | None) -> list[str]:
    """Refuse duplicate row ids, and ids of the sample submission without a prediction; return notes on other ids."""
    rows = layout.row_ids(ids)
    found = [("ids would be written more than once", _duplicates(rows))]
    notes = []
    problems = layout.id_problems(ids)
    if sample is not None:
        ours, theirs = set(rows), set(sample.ids)
        missing, extra = [id for id in sample.ids if id not in ours], [id for id in rows if id not in theirs]
        found += [
            ("ids come more than once in the sample submission", _duplicates(sample.ids)),
            (f"of its {len(theirs):,} ids have no prediction{explain_ids(ours, theirs)}", missing),
        ]
        notes += [f"{len(extra):,} predicted rows are not in {sample.path} and are left out: {some(extra)}."] * bool(
            extra
        )
    problems += [f"{len(names):,} {what}: {some(names)}" for what, names in found if names]
    raise_problems("the submission" if sample is None else sample.path, problems)
    return notes


def write_table(path: Path, frame: pd.DataFrame, sample: Sample | None) -> None:
    """Write a new CSV, in the rows, columns and separator of the sample submission; refuse NaN and infinity."""
    check_new(path)
    key = frame.columns[0]
    found = [("ids would be written more than once", _duplicates(frame[key].tolist()))]
    if sample is not None:
        found.append(("of its ids have no prediction", sorted(set(sample.ids) - set(frame[key]))))
    raise_problems(path, [f"{len(names):,} {what}: {some(names)}" for what, names in found if names])
    if sample is not None:
        frame = frame.set_index(key).loc[sample.ids].reset_index(names=key)
        frame = frame.assign(**{name: sample.frame[name].to_numpy() for name in sample.copied})[sample.columns]
    bad = ~np.isfinite(frame.select_dtypes("number").to_numpy(np.float64)).all(axis=1) | frame.isna().any(axis=1)
    if bad.any():
        text = f"{bad.sum()} rows have NaN or infinite values: {some(frame[key][bad].tolist())}"
        raise PredictionsError(path, [text])
    numbered, separator = (False, ",") if sample is None else (sample.numbered, sample.separator)
    with write_atomic(path) as temporary:
        frame.to_csv(temporary, index=numbered, sep=separator, float_format="%.8g")


def write_masks(
    path: Path,
    layout: RunLengths | Masks,
    masks: Iterable[tuple[str, bytes]],
    sample: Sample | None,
    absent: Sequence[str] = (),
) -> None:
    """Write masks one at a time as a new submission.

    Run-length codes that are not in the sample submission are dropped: it may have some of the classes only.

    Args:
        masks: ids, and masks encoded by `layout.encode`.
        absent: row ids of the sample without a mask; they get an empty code.
    """
    if isinstance(layout, Masks):
        check_new(path)
        with write_atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for id, png in masks:
                archive.writestr(layout.file_name(id), png)
        return
    expected = None if sample is None else set(sample.ids)
    rows = [
        row
        for id, codes in masks
        for row in zip(layout.row_ids([id]), codes.decode().split("\n"), strict=True)
        if expected is None or row[0] in expected
    ]
    rows += [(name, layout.empty) for name in absent]
    write_table(path, pd.DataFrame(rows, columns=layout.columns), sample)


def difference(first: Path, second: Path, kind: str, common: bool = False) -> float:
    """Return the mean distance of the answers of two submissions, 0 to 1; NaN if rows, columns or sizes differ.

    Distances: labels and run-length codes 1 - Jaccard index, numbers |a - b|, masks the share of different pixels.
    With `common`, the second submission may have more rows.
    """
    return (_masks_difference if FORMATS[kind].suffix == ".zip" else _table_difference)(first, second, kind, common)


def _table_difference(first: Path, second: Path, kind: str, common: bool) -> float:
    one, two = (frame.set_index(frame.columns[0]) for frame in (read_text_table(first), read_text_table(second)))
    if set(one) != set(two) or _differ(one.index, two.index, common):
        return float("nan")
    cells = zip(one.to_numpy().ravel(), two.loc[one.index, list(one)].to_numpy().ravel(), strict=True)
    return float(np.mean([FORMATS[kind].differ(a, b) if a != b else 0.0 for a, b in cells]))


def _masks_difference(first: Path, second: Path, kind: str, common: bool) -> float:
    for path in (first, second):
        if not zipfile.is_zipfile(path):
            raise PredictionsError(path, ["it does not exist or is not a zip file"])
    shares = []
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        if _differ(one.namelist(), two.namelist(), common):
            return float("nan")
        for name in one.namelist():
            a, b = (decode_mask(Path(name), archive.read(name)) for archive in (one, two))
            if a.shape != b.shape:
                return float("nan")
            shares.append((a != b).mean())
    return float(np.mean(shares))


def _differ(first: Iterable[str], second: Iterable[str], common: bool) -> bool:
    one, two = set(first), set(second)
    return not one <= two if common else one != two


def _duplicates(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]

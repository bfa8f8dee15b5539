"""Check submission files against the competition's sample submission, write them, and compare them."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.data.table_file import read_file
from foldwise.files import check_new, write_atomic
from foldwise.predictions.decisions.formats import FORMATS, Masks, RunLengths
from foldwise.predictions.schema import PredictionsError, raise_problems


def read_sample(path: Path) -> pd.DataFrame:
    """Read and check a sample submission, as text; the first column has the ids."""
    sample = read_text_table(path)
    problems = [] if len(sample.columns) > 1 else ["it has no column beside the ids"]
    problems += [] if len(sample) else ["it has no rows; a sample submission has one for every expected answer"]
    raise_problems(path, problems)
    return sample


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV as text; refuse one that cannot be read."""
    return read_file(path).reset_index(drop=True).astype(str)


def check_columns(layout: Any, sample: pd.DataFrame | None, path: Path | None) -> None:
    """Raise PredictionsError if the sample submission in `path` has other columns than the format."""
    if sample is not None and set(sample) != set(layout.columns):
        theirs, ours = ", ".join(sample), ", ".join(layout.columns)
        raise PredictionsError(path or "the sample", [f"it has the columns {theirs}, but the format writes {ours}"])


def check_rows(row_ids: Sequence[str], columns: Sequence[str], sample: pd.DataFrame | None, path: Path | None) -> None:
    """Refuse duplicate ids, and rows or columns that differ from the sample submission in `path`, in any order."""
    found: list[tuple[str, list[str]]] = [("ids would be written more than once", _duplicates(row_ids))]
    if sample is not None:
        ids = sample.iloc[:, 0].tolist()
        ours, theirs = set(row_ids), set(ids)
        found += [
            ("ids come more than once in the sample submission", _duplicates(ids)),
            ("of its columns would be missing", [name for name in sample if name not in columns]),
            ("columns are not in it", [name for name in columns if name not in sample]),
            ("of its ids have no prediction", [id for id in ids if id not in ours]),
            ("predicted ids are not in it", [id for id in row_ids if id not in theirs]),
        ]
    problems = [f"{len(names)} {what}: {some(names)}" for what, names in found if names]
    raise_problems(path or "the submission", problems)


def write_table(path: Path, frame: pd.DataFrame, sample: pd.DataFrame | None, sample_path: Path | None) -> None:
    """Write a new CSV in the order of the sample submission; refuse what `check_rows` does, and NaN or infinity."""
    check_new(path)
    key = frame.columns[0]
    check_rows(frame[key].tolist(), list(frame), sample, sample_path)
    if sample is not None:
        frame = frame.set_index(key).loc[sample.iloc[:, 0]].reset_index()[list(sample)]
    bad = ~np.isfinite(frame.select_dtypes("number").to_numpy(np.float64)).all(axis=1) | frame.isna().any(axis=1)
    if bad.any():
        names = some(frame[key][bad].tolist())
        raise PredictionsError(path, [f"{bad.sum()} rows have NaN or infinite values: {names}"])
    with write_atomic(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g")


def write_masks(
    path: Path,
    layout: RunLengths | Masks,
    masks: Iterable[tuple[str, bytes]],
    sample: pd.DataFrame | None,
    sample_path: Path | None,
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
                archive.writestr(f"{id}.png", png)
        return
    expected = None if sample is None else set(sample.iloc[:, 0])
    rows = [
        row
        for id, codes in masks
        for row in zip(layout.row_ids([id]), codes.decode().split("\n"), strict=True)
        if expected is None or row[0] in expected
    ]
    rows += [(name, layout.empty) for name in absent]
    write_table(path, pd.DataFrame(rows, columns=layout.columns), sample, sample_path)


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
    import cv2

    def read_image(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    shares = []
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        if _differ(one.namelist(), two.namelist(), common):
            return float("nan")
        for name in one.namelist():
            a, b = (read_image(archive.read(name)) for archive in (one, two))
            if a.shape != b.shape:
                return float("nan")
            shares.append((a != b).mean())
    return float(np.mean(shares))


def _differ(first: Iterable[str], second: Iterable[str], common: bool) -> bool:
    one, two = set(first), set(second)
    return not one <= two if common else one != two


def _duplicates(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]

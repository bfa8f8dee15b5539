"""Submission files: checked against the competition's sample submission, written whole, compared; see `formats`."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.data.problems import some
from foldwise.files import check_new, write_atomic
from foldwise.predictions.decisions.formats import FORMATS, Masks, RunLengths
from foldwise.predictions.schema import PredictionsError, raise_problems


def read_sample(path: Path) -> pd.DataFrame:
    """A sample submission, all of it text; the first column has the ids.

    Raises:
        PredictionsError: it cannot be read, has no rows or one column only.
    """
    sample = read_text_table(path)
    problems = [] if len(sample.columns) > 1 else ["it has no column beside the ids"]
    problems += [] if len(sample) else ["it has no rows; a sample submission has one for every answer that is wanted"]
    raise_problems(path, problems)
    return sample


def read_text_table(path: Path) -> pd.DataFrame:
    """A CSV, all of it text.

    Raises:
        PredictionsError: it is not there or cannot be read.
    """
    if not path.is_file():
        raise PredictionsError(path, ["there is no such file"])
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise PredictionsError(path, [f"it cannot be read as CSV ({str(error).strip()})"]) from error


def check_columns(layout: Any, sample: pd.DataFrame | None, path: Path | None) -> None:
    """Refuse a sample submission in `path` with other columns than the format's.

    Raises:
        PredictionsError: it has.
    """
    if sample is not None and set(sample) != set(layout.columns):
        theirs, ours = ", ".join(sample), ", ".join(layout.columns)
        raise PredictionsError(path or "the sample", [f"it has the columns {theirs}, and this would write {ours}"])


def check_rows(row_ids: Sequence[str], columns: Sequence[str], sample: pd.DataFrame | None, path: Path | None) -> None:
    """Refuse ids that come twice, and rows and columns other than those of the sample submission in `path`.

    Their order does not matter here: `write_table` takes that of the sample.

    Raises:
        PredictionsError: everything that is missing, unknown or there twice.
    """
    found: list[tuple[str, list[str]]] = [("ids would be written twice", _twice(row_ids))]
    if sample is not None:
        ids = sample.iloc[:, 0].tolist()
        ours, theirs = set(row_ids), set(ids)
        found += [
            ("ids of the sample submission come twice", _twice(ids)),
            ("of its columns would be missing", [name for name in sample if name not in columns]),
            ("columns are not in it", [name for name in columns if name not in sample]),
            ("of its ids have no prediction", [id for id in ids if id not in ours]),
            ("predicted ids are not in it", [id for id in row_ids if id not in theirs]),
        ]
    problems = [f"{len(names)} {what}: {some(names)}" for what, names in found if names]
    raise_problems(path or "the submission", problems)


def write_table(path: Path, frame: pd.DataFrame, sample: pd.DataFrame | None, sample_path: Path | None) -> None:
    """Write a submission as a new CSV, rows and columns in the order of the sample submission.

    Raises:
        PredictionsError: as `check_rows`, or NaN or infinite values; nothing is written then.
        Refusal: the file exists.
    """
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
    """Write (id, mask as `layout.encode` gives it) as a new submission, one at a time; only codes are kept in memory.

    Run lengths that the sample submission does not ask for are left out: it may ask for some of the classes only.

    Args:
        absent: row ids of the sample that no mask is there for; they get an empty code.

    Raises:
        PredictionsError: as `write_table`.
        Refusal: the file exists.
    """
    if isinstance(layout, Masks):
        check_new(path)
        with write_atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for id, png in masks:
                archive.writestr(f"{id}.png", png)
        return
    wanted = None if sample is None else set(sample.iloc[:, 0])
    rows = [
        row
        for id, codes in masks
        for row in zip(layout.row_ids([id]), codes.decode().split("\n"), strict=True)
        if wanted is None or row[0] in wanted
    ]
    rows += [(name, layout.empty) for name in absent]
    write_table(path, pd.DataFrame(rows, columns=layout.columns), sample, sample_path)


def difference(first: Path, second: Path, kind: str, common: bool = False) -> float:
    """How much two submissions of one format differ: 0 the same, 1 nothing in common, the mean over all answers.

    Labels and run-length codes differ by one minus their Jaccard index, numbers by their distance, masks by the share
    of their pixels. NaN where rows, columns or sizes are not the same.

    Args:
        common: compare what the first has; the second may have more rows.

    Raises:
        PredictionsError: a file cannot be read.
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
            raise PredictionsError(path, ["it is not there, or not a zip file"])
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


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]

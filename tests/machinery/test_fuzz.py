"""Tables and predictions of any content are read, or refused with a sentence; what is written is whole or absent."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldwise.data.folds import read_folds
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Refusal
from foldwise.predictions.schema import FILES, HEADER, Header, PredictionsError
from foldwise.predictions.store import Predictions, read_predictions, write_predictions

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Texts that mean something to somebody on the way, and any others.
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "a", "b", "a b", "0", "-1", "1e999", "nan", "None", "NA", "é", "\ufeffid", '"', "a,b", "\x00"]
    ),
    st.sampled_from(["images/a.png", "images", "images\\a.png", "../a.png", "/etc/passwd", "link.png", "x" * 300]),
    st.text(max_size=6),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 300), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A data root with one picture, and a link that leaves it."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "images").mkdir()
    (root / "images/a.png").write_bytes(b"x")
    (root / "link.png").symlink_to("/etc/passwd")
    return root


def check_table(path: Path, task: str, root: Path) -> None:
    """It is read and holds what a table promises, or it is refused in words that name it."""
    columns = Columns(group="group", weight="weight", fold="fold")
    try:
        table = read_table(path, task, root, columns, ["a", "b"] if task == "segmentation" else None)
    except (Refusal, OSError) as error:  # what the commands end with a sentence for
        assert str(root) in str(error)
        return
    assert isinstance(table, Table) and len(set(table.ids)) == len(table) > 0
    for row in range(len(table)):
        assert table.image_path(row).resolve().is_relative_to(root.resolve())
    assert table.target is None or np.isfinite(table.target).all()


@QUICK
@given(
    rows=st.lists(st.lists(TEXTS, min_size=6, max_size=6), max_size=4),
    task=st.sampled_from(["multiclass", "multilabel", "segmentation"]),
    target=st.sampled_from(["label", "labels", "mask"]),
    suffix=st.sampled_from([".csv", ".parquet"]),
)
def test_tables_of_any_values(rows, task, target, suffix, root):
    frame = pd.DataFrame(rows, columns=["id", "image", target, "group", "weight", "fold"], dtype=object)
    path = root / f"table{suffix}"
    try:
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    except (UnicodeEncodeError, ValueError):
        return  # no file can have half of a character
    check_table(path, task, root)


@QUICK
@given(
    content=st.binary(max_size=60)
    | st.tuples(st.just(b"id,image,label,group,weight,fold\n"), st.binary()).map(b"".join)
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_any_bytes(suffix, content, root):
    path = root / f"bytes{suffix}"
    path.write_bytes(content)
    check_table(path, "multiclass", root)


@QUICK
@given(content=st.binary(max_size=30) | st.tuples(st.just(b"id,fold\n"), st.binary(max_size=30)).map(b"".join))
def test_folds_of_any_bytes(content, root):
    path = root / "folds.csv"
    path.write_bytes(content)
    try:
        assert all(fold >= -1 for fold in read_folds(path).values())
    except Refusal as error:
        assert str(path) in str(error)


VALID = {"id": ["1", "2"], "fold": [0, 0], "snapshot": ["last"] * 2, "view": ["identity"] * 2, "a": [0.25, 1.0]}
VALUES = st.one_of(st.floats(width=32), st.integers(-3, 3), TEXTS, st.none(), st.booleans())


def check_predictions(folder: Path) -> None:
    """They are read and hold what predictions promise, or are refused in words that name the folder."""
    try:
        predictions = read_predictions(folder)
    except PredictionsError as error:
        assert str(folder) in str(error)
        return
    assert isinstance(predictions, Predictions)
    values = predictions.frame[predictions.columns].to_numpy(float)
    assert ((values >= 0) & (values <= 1)).all()


@QUICK
@given(key=st.sampled_from([*Header.__dataclass_fields__, "other"]), value=JSON, drop=st.booleans())
def test_sidecars_of_any_values(key, value, drop, tmp_path):
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    write_predictions(folder, pd.DataFrame(VALID), Header(split="test", task="multilabel", columns=["a"]))
    values = json.loads((folder / HEADER).read_text()) | {key: value}
    if drop:
        del values[key]
    (folder / HEADER).write_text(json.dumps(values), encoding="utf-8", errors="surrogatepass")
    check_predictions(folder)


@QUICK
@given(column=st.sampled_from([*VALID, "other"]), values=st.lists(VALUES, min_size=2, max_size=2), drop=st.booleans())
def test_rows_of_any_values_are_written_whole_or_not_at_all(column, values, drop, tmp_path):
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    frame = pd.DataFrame(VALID)
    frame[column] = values
    if drop:
        del frame[column]
    try:
        write_predictions(tmp_path / "p", frame, Header(split="test", task="multilabel", columns=["a"]))
    except PredictionsError:
        assert not list(tmp_path.iterdir())
        return
    check_predictions(tmp_path / "p")


@QUICK
@given(position=st.integers(0, 3000), content=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_prediction_files_of_any_bytes(position, content, cut, tmp_path):
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    write_predictions(folder, pd.DataFrame(VALID), Header(split="test", task="multilabel", columns=["a"]))
    for name in (HEADER, FILES["rows"]):
        old = (folder / name).read_bytes()
        at = position % len(old)
        (folder / name).write_bytes(old[:at] if cut else old[:at] + content + old[at + len(content) :])
        check_predictions(folder)
        (folder / name).write_bytes(old)

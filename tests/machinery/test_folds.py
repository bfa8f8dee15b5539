"""Folds: even, never splitting a group, the same for any order of the rows, and kept when rows join."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldwise.data.folds import folds_hash, read_folds, write_folds
from foldwise.data.splitting import make_folds
from foldwise.errors import Refusal


def names(count: int) -> list[str]:
    return [f"row{number}" for number in range(count)]


def per_fold(folds: np.ndarray, target: np.ndarray, n_folds: int) -> np.ndarray:
    """(folds, classes) counts, by brute force."""
    return np.array([target[folds == fold].sum(axis=0) for fold in range(n_folds)])


@pytest.mark.parametrize(("rows", "n_folds"), [(100, 5), (101, 10), (7, 7), (12, 5)])
def test_plain_folds_are_equal(rows, n_folds):
    sizes = np.bincount(make_folds(names(rows), n_folds), minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1


def test_plain_folds_are_mixed_and_depend_on_the_seed():
    first, second = make_folds(names(1000), 5), make_folds(names(1000), 5, seed=1)
    assert 100 < (first == second).sum() < 300
    neighbours = (first[1:] == first[:-1]).mean()
    assert 0.1 < neighbours < 0.3  # no stripes and no blocks


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(0, 5), min_size=10, max_size=200), st.integers(2, 10), st.integers(0, 3))
def test_stratified_folds_are_as_even_as_arithmetic_allows(labels, n_folds, seed):
    target = np.eye(6)[labels]
    folds = make_folds(names(len(labels)), n_folds, target, seed=seed)
    counts = per_fold(folds, target, n_folds)
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    sizes = np.bincount(folds, minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1


def test_eight_positives_over_ten_folds_are_in_eight_folds():
    target = np.zeros((500, 3))
    target[:8, 0] = target[4:300, 1] = 1
    target[300:, 2] = 1
    counts = per_fold(make_folds(names(500), 10, target), target, 10)
    assert sorted(counts[:, 0]) == [0, 0] + [1] * 8
    # Also when each positive is in a group of its own, and the groups differ in size.
    groups = [f"g{number}" if number < 8 else f"g{8 + number % 60}" for number in range(500)]
    folds = make_folds(names(500), 10, target, groups)
    assert sorted(per_fold(folds, target, 10)[:, 0]) == [0, 0] + [1] * 8


def test_multilabel_folds_are_even_in_every_class():
    rng = np.random.default_rng(0)
    target = (rng.random((4000, 12)) < np.geomspace(0.6, 0.003, 12)).astype(float)
    counts = per_fold(make_folds(names(4000), 10, target), target, 10)
    spread = counts.max(axis=0) - counts.min(axis=0)
    assert (spread[counts.sum(axis=0) < 1000] <= 1).all() and (spread <= 4).all()


def test_groups_are_never_split_and_still_even():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 3000)
    target = np.eye(4)[np.minimum(rng.geometric(0.5, 300) - 1, 3)[groups]]  # a group is of one class
    folds = make_folds(names(3000), 5, target, groups)
    for group in range(300):
        assert len(set(folds[groups == group])) == 1
    counts = per_fold(folds, target, 5)
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 10  # groups have about ten rows
    assert np.ptp(np.bincount(folds)) <= 10


def test_one_huge_group_gets_its_own_fold():
    groups = ["huge"] * 500 + [f"small{number // 5}" for number in range(500)]
    sizes = np.bincount(make_folds(names(1000), 5, groups=groups))
    assert sorted(sizes) == [125, 125, 125, 125, 500]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_the_rows_does_not_matter(grouped):
    rng = np.random.default_rng(1)
    ids = np.array(names(600))
    target = (rng.random((600, 5)) < [0.5, 0.3, 0.1, 0.05, 0.01]).astype(float)
    groups = rng.integers(0, 80, 600).astype(str)
    order = rng.permutation(600)
    first = make_folds(ids, 5, target, groups if grouped else None)
    second = make_folds(ids[order], 5, target[order], groups[order] if grouped else None)
    assert (first[order] == second).all()


def test_new_rows_join_without_moving_old_ones():
    rng = np.random.default_rng(2)
    ids, target = names(1000), np.eye(3)[rng.choice(3, 1000, p=[0.7, 0.25, 0.05])]
    old = dict(zip(ids[:600], make_folds(ids[:600], 5, target[:600]).tolist(), strict=True))
    folds = make_folds(ids, 5, target, known=old)
    assert dict(zip(ids[:600], folds[:600].tolist(), strict=True)) == old
    counts = per_fold(folds, target, 5)
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_new_rows_of_a_known_group_go_to_its_fold():
    groups = [f"g{number % 20}" for number in range(100)]
    folds = make_folds(names(100), 4, groups=groups)
    old = dict(zip(names(100), folds.tolist(), strict=True))
    longer = [*groups, *groups, *["new"] * 10]
    extended = make_folds(names(210), 4, groups=longer, known=old)
    assert (extended[100:200] == folds).all()
    assert len(set(extended[200:])) == 1
    with pytest.raises(Refusal, match="split groups: g"):
        make_folds(names(100), 4, groups=groups, known={"row0": 0, "row20": 1})


def test_rows_that_always_train_stay_and_do_not_count():
    known = dict.fromkeys(names(50), -1)
    folds = make_folds(names(100), 5, known=known)
    assert (folds[:50] == -1).all()
    assert np.bincount(folds[50:]).tolist() == [10] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_folds": 1}, "at least 2"),
        ({"n_folds": 11}, "11 folds need at least as many rows; there are 10"),
        ({"n_folds": 5, "groups": list("aabbccddaa")}, "as many groups; there are 4"),
        ({"n_folds": 2, "target": np.zeros((9, 2))}, "one entry per row"),
        ({"n_folds": 2, "groups": [None, *"abcdefghi"]}, "group is missing"),
    ],
)
def test_impossible_folds(arguments, message):
    with pytest.raises(Refusal, match=message):
        make_folds(names(10), **arguments)


def test_repeated_ids():
    with pytest.raises(Refusal, match="not unique"):
        make_folds(["a", "b", "a"], 2)


def test_the_folds_of_today_are_those_of_tomorrow():
    """Folds are shared by a team and compared by hash: another result of the same call is a broken promise."""
    target = np.eye(3)[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]]
    folds = dict(zip(names(12), make_folds(names(12), 3, target, seed=42).tolist(), strict=True))
    assert folds_hash(folds) == "966218ddb522c760"


def test_files_and_hash(tmp_path):
    folds = {"b": 1, "a,x": 0, "007": -1}
    write_folds(tmp_path / "folds.csv", folds)
    assert (tmp_path / "folds.csv").read_text() == 'id,fold\n007,-1\n"a,x",0\nb,1\n'
    again = read_folds(tmp_path / "folds.csv")
    assert again == folds
    assert folds_hash(again) == folds_hash(dict(reversed(folds.items()))) != folds_hash(folds | {"b": 2})


@pytest.mark.parametrize("text", ["id,fold\na,0\na,1\n", "id,fold\na,x\n", "id,fold\na,-2\n", "name,fold\na,1\n"])
def test_bad_fold_files(tmp_path, text):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(Refusal, match=r"folds\.csv"):
        read_folds(tmp_path / "folds.csv")


@pytest.mark.parametrize("content", [b"", b"id,fold\na,0,1,2\nb,0,1\n", "id,fold\né,0\n".encode("latin-1")])
def test_fold_files_that_are_no_csv_in_utf_8(tmp_path, content):
    (tmp_path / "folds.csv").write_bytes(content)
    with pytest.raises(Refusal, match=r"folds\.csv"):
        read_folds(tmp_path / "folds.csv")

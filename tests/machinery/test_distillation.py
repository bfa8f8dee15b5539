"""Soft targets of training images: each from teachers that saw neither it nor the student's validation fold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import CLASSES, prepare_tiny, tiny_config, train_folds, write_data

from foldwise.config import followers, write_config
from foldwise.data.holdout import FULL, choose_holdouts
from foldwise.data.pseudo import provenance_path
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.predictions.distillation import distill
from foldwise.predictions.schema import Header
from foldwise.predictions.store import write_predictions
from foldwise.training.plan import choose_parts

FOLD_OF = [-1 if row == 23 else row % 3 for row in range(24)]


def write_world(root: Path, flipped: int | None = None) -> Path:
    """24 pictures in three given folds, one of them trained always; `flipped` is a fold whose labels are all others."""
    frame = pd.read_csv(write_data(root) / "train.csv", keep_default_na=False).assign(part=FOLD_OF)
    frame["label"] = [CLASSES[row // 3 % 3] for row in range(24)]
    following = dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
    held = frame["part"] == flipped
    frame.loc[held, "label"] = frame.loc[held, "label"].map(following)
    frame.to_csv(root / "train.csv", index=False)
    return root


def config_of(root: Path, *overrides: str) -> dict:
    return tiny_config(root, "multiclass", "data.columns.fold=part", "data.folds=3", *overrides)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("distillation") / "world")


def make_teacher(root: Path, name: str, oof: bool) -> tuple[Path, dict]:
    """A run as `train.py fold=pairs` leaves it, but for its models; and what each pair's model says, by (pair, id)."""
    config = config_of(root)
    prepared = prepare_tiny(config)
    run = root / name
    write_config(run, config)
    write_json(run / "identity.json", {"identity": {"content folds": prepared.folds_hash}})
    header = Header(split="oof", task="multiclass", columns=CLASSES, run=name, folds_hash=prepared.folds_hash)
    rng = np.random.default_rng(len(name))
    said = {}

    def write(folder: Path, folds: tuple[int, ...]) -> None:
        rows = [row for row, fold in enumerate(FOLD_OF) if fold in folds]
        frame = pd.DataFrame(rng.dirichlet([1] * 3, len(rows)), columns=CLASSES)
        frame = frame.assign(id=[f"row{row}" for row in rows], fold=[FOLD_OF[row] for row in rows])
        write_predictions(folder, frame.assign(snapshot="last", view="identity"), header)
        said.update({(folds, id): values for id, *values in frame[["id", *CLASSES]].itertuples(index=False)})

    for pair in choose_holdouts("pairs", [0, 1, 2]):
        write(run / pair.name / "oof-0-of-1", pair.folds)
        write_json(run / pair.name / "metrics.json", {})
    if oof:
        write(run / "oof", (0, 1, 2))
    return run, said


def test_each_image_is_labelled_by_the_models_without_it_and_the_students_fold(world, tmp_path):
    teachers = [make_teacher(world, name, oof=True) for name in ("a", "bb")]
    out = tmp_path / "distilled.parquet"
    students = distill([run for run, _ in teachers], out, weight=0.5)
    assert [student["rows"] for student in students] == [15, 15, 16, 23]
    prepared = prepare_tiny(config_of(world) | {"data": config_of(world)["data"] | {"pseudo": str(out)}})
    assert prepared.pseudo is not None
    for fold in (0, 1, 2, FULL):
        table = prepared.pseudo.of(fold)
        assert table.target is not None and set(table.weights) == {1.0}
        for name, target in zip(table.frame["id"], table.target, strict=True):
            own = FOLD_OF[int(name.split("row")[1])]
            assert own not in (fold, -1)  # a row that all teachers saw has no soft target
            folds = (0, 1, 2) if fold == FULL else tuple(sorted((own, fold)))
            expected = np.mean([said[folds, name.split("/")[1]] for _, said in teachers], axis=0)
            np.testing.assert_allclose(target, expected, atol=1e-6)


def test_unusable_teachers_are_refused_before_anything_is_written(world, tmp_path):
    out = tmp_path / "out.csv"
    run, _ = make_teacher(world, "teacher", oof=False)
    assert [student["student"] for student in distill([run], tmp_path / "first.csv")] == ["0", "1", "2"]
    (run / "without-0-2" / "metrics.json").unlink()
    missing = f"lacks the teachers without-0-2; train them with python train.py run={run} fold=pairs"
    with pytest.raises(Refusal, match=missing):
        distill([run], out)
    write_config(run, config_of(world, "scheduler=plateau"))
    with pytest.raises(Refusal, match="tuned by validation on fold k"):
        distill([run], out)
    assert not out.exists() and not provenance_path(out).exists()


@pytest.mark.slow
def test_no_byte_of_a_students_targets_depends_on_its_folds_labels(tmp_path):
    """Every label of fold 1 is another one and the teachers are trained anew: its student must not notice."""
    lines = []
    for flipped in (None, 1):
        root = write_world(tmp_path / str(flipped), flipped)
        config = config_of(root, "data.sampling=balanced", "loss.class_weights=balanced", "epochs=1", "fold=pairs")
        run = train_folds(config, root / "runs")
        distill([run], root / "distilled.csv")
        lines.append((root / "distilled.csv").read_bytes().splitlines())
    for student in (b"0/", b"1/", b"2/"):
        first, second = ([line for line in each if line.startswith(student)] for each in lines)
        assert first and (first == second) == (student == b"1/")  # the labels do matter to the others


def test_teachers_learn_from_labels_alone_and_a_student_of_every_row_needs_targets(world, tmp_path):
    run, _ = make_teacher(world, "third", oof=False)
    distill([run], tmp_path / "pairs.csv")
    config = config_of(world, f"data.pseudo={tmp_path}/pairs.csv")
    prepared = prepare_tiny(config)
    for fold, message in (("pairs", "models that saw the other made it"), ("full", "no rows for a full fit")):
        with pytest.raises(Refusal, match=f"fold={fold}: .*{message}"):
            choose_parts(fold, followers(config), prepared)
    assert len(choose_parts(config["fold"], followers(config), prepared)) == 3


def test_the_command(world, tmp_path, command):
    run, _ = make_teacher(world, "command", oof=True)
    out = tmp_path / "distilled.csv"
    code, said, error = command("tools/distill.py", run, "--out", out)
    assert (code, error) == (0, "") and "student of the full fit: 23 images" in said and f"data.pseudo={out}" in said
    assert read_json(provenance_path(out))["created_by"] == "distill.py"
    code, _, error = command("tools/distill.py", run, "--out", out)
    assert code == 2 and "not overwritten" in error

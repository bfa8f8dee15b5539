"""No byte of what decides about a fold depends on the fold's labels: all of them are others, and nothing may move.

For pseudo labels, distillation, ensembles of rows and of boxes: test_pseudo, test_distillation, test_ensemble,
test_detection.
"""

import json

import numpy as np
import pandas as pd
import pytest
from pseudo_world import LABELLED, UNLABELLED, begin_run, config_of, write_world
from rows import scored
from test_ensemble import World
from tiny import CLASSES, prepare_tiny, train_folds, train_scored

from foldwise.data.boxes import BOX, FOLD, SCORE, SCORE_MAP
from foldwise.data.folds import folds_hash
from foldwise.data.pseudo import provenance_path
from foldwise.files import write_json
from foldwise.predictions.decisions.calibration import CALIBRATORS
from foldwise.predictions.decisions.deciding import Method, choose_decision, fit_decision
from foldwise.predictions.decisions.layers import compare_cuts, measure_cuts
from foldwise.predictions.decisions.masks import CANDIDATES, WITH_PRESENCE, compare_cleaning, measure_candidates
from foldwise.predictions.decisions.rules import rules_for
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.ensembles.stack import Stacks, _arrays
from foldwise.predictions.finder import Finder
from foldwise.predictions.found_boxes import write_boxes
from foldwise.predictions.metrics import Dice, FBeta, LogLoss, MacroF1, MeanIoU, QuadraticKappa, Rmse
from foldwise.predictions.schema import Header
from foldwise.predictions.store import iter_maps, read_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.training.averaging import choose_counts
from foldwise.training.results import merge_oof

# All that may look at labels: weights of classes, balancing, averages, restarts with snapshots.
CHOICES = {
    "multiclass": ["loss.class_weights=balanced", "data.sampling=balanced", "phases=cycles"],
    "multilabel": ["loss.class_weights=sqrt_balanced", "data.sampling=balanced", "ema=0.9"],
    "regression": ["data.transform=rank", "phases=cycles"],
    "segmentation": ["loss=ce_dice", "loss.terms.0.loss.class_weights=balanced", "phases=cycles"],
}
COMMON = ["epochs=3", "augmentation=flip", "optimizer.lr=0.01"]


def decided(run, fold):
    """The files of a fold's model: weights, of snapshots too, what is saved beside them, and its predictions."""
    folder = run / f"fold{fold}"
    files = [path for path in folder.rglob("*") if path.name.startswith(("model.", "predictions.parquet", "index"))]
    history = pd.read_csv(folder / "history.csv")[["lr", "train_loss"]].to_csv()
    maps = {path.name: path.read_bytes() for path in folder.rglob("*.npz")}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | maps | {"history": history}


def test_a_model_and_its_predictions(task, tmp_path):
    runs, configs = [], []
    for flipped in (False, True):
        root = write_world(tmp_path / str(flipped), flipped)
        configs.append(config_of(root, task, *CHOICES[task], *COMMON))
        runs.append(train_folds(configs[-1], root / "runs"))
    first, second = (decided(run, 0) for run in runs)
    assert len(first) >= 4 and first == second
    assert decided(runs[0], 1) != decided(runs[1], 1)  # the labels do matter
    scores = [json.loads((run / "fold0" / "metrics.json").read_text())["score"] for run in runs]
    assert scores[0] != scores[1]
    if task == "segmentation":
        for run, config in zip(runs, configs, strict=True):
            merge_oof(run, prepare_tiny(config))
        for how in ("union", "components", "peak"):
            first, second = (found_in(run, how) for run in runs)
            pd.testing.assert_frame_equal(first[first["fold"] == 0], second[second["fold"] == 0])
            assert not first.equals(second)


def found_in(run, how):
    """The boxes that a run finds, and the hashes of their maps."""
    out = run.parent / f"{how}.csv"
    write_boxes(run, out, Finder(how, ("blue", "green"), 0.3, side=8, map=True))
    frame = pd.read_csv(out)
    return frame[[*BOX, SCORE, SCORE_MAP, FOLD]].sort_values([FOLD, SCORE_MAP, SCORE], ignore_index=True)


def test_gold_rows(task, tmp_path):
    """With other labels in the gold rows nothing moves but their score."""
    runs = []
    for flipped in (False, True):
        root = write_world(tmp_path / str(flipped), flipped)
        frame = pd.read_csv(root / "train.csv", keep_default_na=False)
        frame.assign(gold=(frame["part"] == 0).astype(int)).to_csv(root / "train.csv", index=False)
        gold = ["data.columns.fold=null", "data.columns.gold=gold"]
        runs.append(train_scored(config_of(root, task, *CHOICES[task], *COMMON, *gold), root / "runs"))
    for fold in (0, 1):
        assert decided(runs[0], fold) == decided(runs[1], fold)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert first.pop("gold") != second.pop("gold") and first == second


# Statistics of metadata and the pool belong to what is fitted on the training items.
UNITS = [
    "samples._target_=foldwise.data.units.Units",
    *("+samples.unit=thing", "+samples.order=number", "+samples.numbers=[number]", "+samples.categories=[site]"),
    *("+samples.frames=2", "+samples.rare=1", "model._target_=foldwise.models.pooled.PooledNetwork"),
    *(
        "model.library=null",
        "+model.pool=attention",
        "+model.numbers=[number]",
        "+model.categories=[site]",
        "batch_size=2",
    ),
]


def check_fold_0(folder, *choices):
    """With other labels in fold 0, its model and predictions are the same, and those of fold 1 are not."""
    runs = []
    for flipped in (False, True):
        root = write_world(folder / str(flipped), flipped)
        runs.append(train_folds(config_of(root, "multiclass", *choices, *COMMON), root / "runs"))
    assert decided(runs[0], 0) == decided(runs[1], 0)
    assert decided(runs[0], 1) != decided(runs[1], 1)


def test_a_model_of_units_and_metadata(tmp_path):
    check_fold_0(tmp_path, *UNITS)


def test_a_model_that_is_trained_on_pseudo_labels_of_other_students_too(tmp_path):
    """Those of fold 1's student are others, and fewer: they were made by models that had seen fold 0's labels."""
    root = write_world(tmp_path / "world")
    rng, runs = np.random.default_rng(0), []
    for rows in (8, 5):
        frames = []
        for student, count in ((0, 8), (1, rows)):
            soft = np.random.default_rng(0).dirichlet([1] * 3, 8) if student == 0 else rng.dirichlet([1] * 3, count)
            names = [f"row{row}" for row in UNLABELLED][:count]
            frame = pd.DataFrame(soft, columns=CLASSES).assign(id=names, weight=0.5 + 0.4 * student, student=student)
            frame = frame.assign(row=[f"{student}/{id}" for id in names])
            frames.append(frame.assign(image=[f"images/{row}.png" for row in UNLABELLED][:count]))
        table = tmp_path / f"pseudo{rows}.csv"
        pd.concat(frames).to_csv(table, index=False)
        folds = {f"row{row}": row % 2 for row in LABELLED}
        write_json(provenance_path(table), {"folds_hash": folds_hash(folds)})
        config = config_of(root, "multiclass", *CHOICES["multiclass"], *COMMON, pseudo=table)
        runs.append(train_folds(config, tmp_path / "runs"))
    assert decided(runs[0], 0) == decided(runs[1], 0)
    assert decided(runs[0], 1) != decided(runs[1], 1)


def test_a_model_that_labels_unlabelled_rows_itself(tmp_path):
    choices = [
        "loss.class_weights=balanced",
        "phases=train_then_relabel",
        "phases.train.share=1",
        "data.pseudo_share=0.25",
    ]
    check_fold_0(tmp_path, *choices)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_calibration_of_a_folds_model(task):
    rng = np.random.default_rng(0)
    values, folds = rng.dirichlet([1] * 4, 200).astype(float), np.arange(200) % 4
    target = (rng.random((200, 4)) < values).astype(float)
    target = np.eye(4)[values.argmax(1)] if task == "multiclass" else target
    changed = target.copy()
    changed[folds == 2] = np.roll(changed[folds == 2], 1, axis=1)
    metric = (MacroF1() if task == "multiclass" else FBeta()).for_task(task, list("abcd"))
    moved = 0
    for calibrator in CALIBRATORS[task == "multiclass"]:
        method = Method(calibrator, rules_for(metric)[0])
        first, second = (fit_decision(method, metric, scored(labels, values, folds)) for labels in (target, changed))
        assert first.calibrate(2, values).tobytes() == second.calibrate(2, values).tobytes()
        moved += first.calibrate(1, values).tobytes() != second.calibrate(1, values).tobytes()
    assert moved


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_floors_and_ceilings_of_a_folds_probabilities(task):
    rng, folds = np.random.default_rng(0), np.arange(300) % 3
    values, target = rng.dirichlet([0.02] * 4, 300), np.eye(4)[rng.integers(0, 4, 300)]
    target = np.where(rng.random((300, 1)) < 0.9, np.eye(4)[values.argmax(1)], target)
    changed = np.where(folds[:, None] == 1, np.roll(target, 1, axis=1), target)
    metric = LogLoss().for_task(task, list("abcd"))
    first, second = (choose_decision(metric, scored(each, values, folds)).outcomes for each in (target, changed))
    for before, after in zip(first, second, strict=True):
        assert before.answers[folds == 1].tobytes() == after.answers[folds == 1].tobytes()
        if before.name == "clip":
            assert (before.answers[folds == 0] != after.answers[folds == 0]).any()


@pytest.mark.parametrize("sums", [[], [["3", "a", "b"]]])
def test_the_post_processing_of_a_folds_numbers(sums):
    """Ranges, roundings, sums and cut points of a fold's answers are fitted on the labels of the others."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, (90, 2)).astype(float)
    predicted, folds = target * 0.6 + rng.normal(0.8, 0.4, target.shape), np.arange(90) % 3
    other = np.where(folds[:, None] == 0, 9 - target, target)
    for metric in (Rmse(), QuadraticKappa()):
        metric = metric.for_task("regression", ["a", "b"])
        chosen = [choose_decision(metric, scored(each, predicted, folds), sums=sums) for each in (target, other)]
        for first, second in zip(*(each.outcomes for each in chosen), strict=True):
            assert (first.answers[folds == 0] == second.answers[folds == 0]).all(), first.name
            if first.name in ("sums", "grades"):
                assert (first.answers[folds == 1] != second.answers[folds == 1]).any(), first.name


def draw_maps(seed, rows, truth=None):
    """(4, 32, 32) probabilities of each row; nearer to the ground truth where there is one."""
    rng = np.random.default_rng(seed)
    maps = {row: rng.dirichlet([0.6] * 4, (32, 32)).transpose(2, 0, 1) for row in rows}
    if truth is not None:
        maps = {row: 0.6 * values + 0.4 * np.eye(4)[truth[row]].transpose(2, 0, 1) for row, values in maps.items()}
    return maps


@pytest.mark.parametrize("candidates", [CANDIDATES, WITH_PRESENCE])
def test_the_cleaning_of_a_folds_masks(candidates):
    rng = np.random.default_rng(1)
    masks = {row: np.kron(rng.integers(0, 4, (4, 4)), np.ones((8, 8), int)) for row in range(18)}
    maps, folds, metric = (
        draw_maps(2, masks, masks),
        np.arange(18) % 3,
        MeanIoU().for_task("segmentation", list("abcd")),
    )
    present, outcomes = rng.choice([0.01, 0.05, 0.2, 0.9], (18, 4)), []
    for changed in (False, True):
        truth = [(masks[row] + (changed and folds[row] == 1)) % 4 for row in masks]
        measured = [
            measure_candidates(metric, mask, maps[row], present[row] if candidates is WITH_PRESENCE else None)[0]
            for row, mask in enumerate(truth)
        ]
        outcomes.append(compare_cleaning(metric, np.stack(measured), folds, candidates)[0])
    for first, second in zip(*outcomes, strict=True):
        assert first.answers[folds == 1].tolist() == second.answers[folds == 1].tolist()
        assert first.per_fold[1] != second.per_fold[1]
    assert len(CANDIDATES) > 4


def test_the_cuts_of_a_folds_masks_per_class():
    rng = np.random.default_rng(1)
    masks = np.kron(rng.random((18, 2, 4, 4)) < 0.4, np.ones((8, 8))).astype(np.uint8)
    maps = np.clip(0.4 * masks + rng.normal(0.3, 0.2, masks.shape), 0, 1).astype(np.float32)
    folds, metric = np.arange(18) % 3, Dice().for_task("segmentation_overlapping", ["a", "b"])
    outcomes = []
    for changed in (False, True):
        truth = np.where(changed & (folds == 1)[:, None, None, None], 1 - masks, masks)
        counts = np.stack([measure_cuts(metric, *pair) for pair in zip(truth, maps, strict=True)])
        outcomes.append(compare_cuts(metric, counts, folds)[0])
    for first, second in zip(*outcomes, strict=True):
        assert first.answers[folds == 1].tolist() == second.answers[folds == 1].tolist()
        assert first.per_fold[1] != second.per_fold[1]
    moved = [a.answers.tolist() != b.answers.tolist() for a, b in zip(*outcomes, strict=True)]
    assert moved == [False, True, True, True]  # the other folds' cuts are fitted on fold 1 too


def test_the_blend_of_a_folds_maps(tmp_path):
    written = []
    for flipped in (False, True):
        root = write_world(tmp_path / str(flipped), flipped)
        sources = []
        for seed in (0, 1, 2):
            folder, values = begin_run(root, f"source{seed}", "segmentation", ["metric=dice"])
            for place, rows, split in (("oof", LABELLED, "oof"), ("predictions/test-none", UNLABELLED, "test")):
                maps = draw_maps(seed, rows)
                with PredictionWriter(folder / place, Header(split=split, **values)) as writer:
                    for fold in (0, 1):
                        for row in rows:
                            if split == "test" or row % 2 == fold:
                                writer.add(f"row{row}", fold, "last", "identity", maps[row].astype(np.float32))
            sources.append(folder)
        out = tmp_path / f"blend{flipped}"
        ensemble(sources, out, use="simplex")
        found = [iter_maps(read_predictions(out / place)) for place in ("oof", "predictions/test-none")]
        written.append([[(m, v.tobytes()) for *m, v in each] for each in found])
    for first, second in zip(*written, strict=True):
        assert [each for each in first if each[0][1] == 0] == [each for each in second if each[0][1] == 0]
    assert written[0] != written[1]


@pytest.mark.parametrize("method", ["linear", "logistic", "boosting", "network"])
def test_the_stack_of_a_fold_and_all_its_inputs(method, tmp_path):
    """Columns, units, groups that the folds split, and features; out of fold, in the test, and as saved."""
    found = []
    for flipped in (False, True):
        world = World(tmp_path / str(flipped), units=True, rows=120, noise=(1.0, 1.1), classes=2)
        feature = world.write_source("feature", 1.3)
        held = world.folds == 1
        if flipped:
            world.truth[held] = 1 - world.truth[held]
        world.write_tables()
        out = tmp_path / f"out{flipped}"
        inputs = {"columns": ["camera"], "relative_to": "camera", "unit_inputs": 2, "features": [feature]}
        ensemble(world.sources, out, use=method, **inputs)
        models = Stacks.load(out).folds
        arrays = [{key: value.tobytes() for key, value in _arrays(models[fold].models[0])} for fold in (1, 2)]
        found.append((world.oof(out)[held].tobytes(), world.test(out, 1).tobytes(), *arrays))
    assert found[0][:3] == found[1][:3] and found[0][3] != found[1][3]


def test_how_many_snapshots_a_fold_averages():
    """By the scores of the other folds alone."""
    rng = np.random.default_rng(0)
    for greater in (False, True):
        scores = {n: dict(enumerate(rng.random(4))) for n in (1, 2, 3)}
        before = choose_counts(scores, greater)
        changed = {n: of_folds | {1: rng.random()} for n, of_folds in scores.items()}
        assert choose_counts(changed, greater)[1] == before[1]

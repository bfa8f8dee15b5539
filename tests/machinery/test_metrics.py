"""Metrics against scikit-learn, brute force and cases by hand."""

import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as oracle
import yaml
from tiny import code_of

from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal, show_notes
from foldwise.predictions.metrics import (
    METRICS,
    Accuracy,
    Dice,
    FBeta,
    LogLoss,
    MacroF1,
    MeanAveragePrecision,
    MeanIoU,
    Published,
    QuadraticKappa,
    RocAuc,
    RowMetric,
    score_fold_evidence,
    score_folds,
)
from foldwise.predictions.metrics.building import build_metric
from foldwise.settings import list_choices

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(params=["multiclass", "multilabel"])
def case(request):
    """(task, target, probability, weight) of 300 rows and 4 classes, the probabilities better than chance."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.2, 3, 300)
    if request.param == "multiclass":
        label = rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
        logits = rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[label]
        return "multiclass", np.eye(4)[label], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), weight
    target = (rng.random((300, 4)) < [0.6, 0.3, 0.1, 0.05]).astype(float)
    return "multilabel", target, 1 / (1 + np.exp(-rng.normal(size=(300, 4)) - 2 * target + 1)), weight


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("positive", ["ant", "bee"])
def test_binary_metrics_as_scikit_learn(task, positive):
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.2, 3, 400)
    names = ["ant", "bee"] if task == "multiclass" else [positive]
    true = rng.random(400) < 0.2
    value = np.round(1 / (1 + np.exp(-rng.normal(size=400) - 2 * true + 1)), 2)  # with ties, none of them 0.5
    value[value == 0.5] = 0.51
    target, probability = (np.stack([1 - each, each], 1) for each in (true.astype(float), value))
    order = [0, 1] if positive == "bee" else [1, 0]
    target, probability = (each[:, order if task == "multiclass" else [1]] for each in (target, probability))
    answer = value >= 0.5
    expected = {
        "average_precision": oracle.average_precision_score(true, value, sample_weight=weight),
        "balanced_accuracy": oracle.balanced_accuracy_score(true, answer, sample_weight=weight),
        "binary_f_beta": oracle.fbeta_score(true, answer, beta=2, sample_weight=weight),
        "log_loss": oracle.log_loss(true, value, sample_weight=weight),
        "matthews": oracle.matthews_corrcoef(true, answer, sample_weight=weight),
        "precision": oracle.precision_score(true, answer, sample_weight=weight),
        "recall": oracle.recall_score(true, answer, sample_weight=weight),
        "roc_auc": oracle.roc_auc_score(true, value, sample_weight=weight),
    }
    for name, score in expected.items():
        options = {"beta": 2} if name == "binary_f_beta" else {}
        if name not in ("log_loss", "roc_auc"):
            options["positive"] = positive if positive == "ant" else None
        metric = METRICS[name](**options).for_task(task, names)
        assert metric(target, probability, weight) == pytest.approx(score, rel=1e-12), name
        assert metric.prepare(target, probability)(weight) == metric(target, probability, weight)
        assert metric.name == (
            f"{type(metric).__name__} of {positive}" if "positive" in options else type(metric).__name__
        )


def test_binary_metrics_without_a_class():
    one, none = np.array([[0.0, 1.0]] * 3), np.array([[1.0, 0.0]] * 3)
    for name, all_true, all_false in (
        ("average_precision", 1, None),
        ("balanced_accuracy", None, None),
        ("binary_f_beta", 1, None),
        ("matthews", 0, 0),
        ("precision", 1, 0),
        ("recall", 1, None),
    ):
        metric = METRICS[name]().for_task("multiclass", ["ant", "bee"])
        for truth, expected in ((one, all_true), (none, all_false)):
            with nullcontext() if expected is not None else pytest.warns(match=f"{metric.name} is undefined"):
                assert metric(truth, truth) == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_the_positive_class_is_one_of_the_classes():
    with pytest.raises(Refusal, match="is of one class, and there are 4: set metric.positive to one of a, b, c, d"):
        METRICS["recall"]().for_task("multiclass", NAMES)
    with pytest.raises(Refusal, match="metric.positive is e; it must be one of a, b, c, d"):
        METRICS["recall"](positive="e").for_task("multiclass", NAMES)
    assert METRICS["recall"](positive=1).for_task("multiclass", ["0", "1"]).positive == "1"
    metric = METRICS["recall"](positive="b").for_task("multiclass", NAMES)
    assert metric(np.eye(4)[[0, 1, 1, 2]], np.eye(4)[[0, 1, 2, 1]]) == 0.5


def test_as_scikit_learn(case):
    task, target, probability, weight = case
    one = task == "multiclass"
    true = target.argmax(1) if one else target
    answer = probability.argmax(1) if one else probability >= 0.5
    log_loss = (
        oracle.log_loss(true, probability, sample_weight=weight)
        if one
        else np.mean([oracle.log_loss(target[:, c], probability[:, c], sample_weight=weight) for c in range(4)])
    )
    expected = {
        LogLoss(): log_loss,
        MacroF1(): oracle.f1_score(true, answer, average="macro", sample_weight=weight),
        RocAuc(): oracle.roc_auc_score(target, probability, average="macro", sample_weight=weight),
        MeanAveragePrecision(): oracle.average_precision_score(target, probability, sample_weight=weight),
    }
    if one:
        expected[Accuracy()] = oracle.accuracy_score(true, answer, sample_weight=weight)
        expected[QuadraticKappa()] = oracle.cohen_kappa_score(true, answer, weights="quadratic", sample_weight=weight)
    else:
        expected[FBeta(threshold=0.2)] = np.average(
            [
                oracle.fbeta_score(t, p >= 0.2, beta=2, zero_division=1)
                for t, p in zip(target, probability, strict=True)
            ],
            weights=weight,
        )
    for metric, value in expected.items():
        assert metric.for_task(task, NAMES)(target, probability, weight) == pytest.approx(value), metric


def test_two_class_auc_is_the_auc():
    rng = np.random.default_rng(1)
    label, positive = rng.integers(0, 2, 50), rng.random(50).round(1)
    auc = RocAuc().for_task("multiclass", ["no", "yes"])(np.eye(2)[label], np.stack([1 - positive, positive], 1))
    pairs = [(p > n) + 0.5 * (p == n) for p in positive[label == 1] for n in positive[label == 0]]
    assert auc == pytest.approx(np.mean(pairs))


def test_f_beta_by_hand():
    metric = FBeta(beta=2, threshold=0.5).for_task("multilabel", ["a", "b", "c"])
    target = [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    probability = [[0.5, 0.1, 0.9], [0.1, 0.1, 0.1], [0.9, 0, 0], [0, 0, 0]]
    # one hit, one miss, one too many: 5·1 / (2 + 4·2); empty met by empty; a false alarm; a miss
    assert metric(np.array(target), np.array(probability)) == pytest.approx((0.5 + 1 + 0 + 0) / 4)


def test_kappa_keeps_the_distance_over_a_class_that_does_not_occur():
    metric = QuadraticKappa().for_task("multiclass", ["0", "1", "2", "3"])
    true, answer = np.array([0, 0, 3, 3, 1, 0]), np.array([0, 1, 3, 1, 1, 3])
    value = metric(np.eye(4)[true], np.eye(4)[answer])
    assert value == pytest.approx(oracle.cohen_kappa_score(true, answer, weights="quadratic", labels=[0, 1, 2, 3]))
    assert value != pytest.approx(oracle.cohen_kappa_score(true, answer, weights="quadratic"))


def test_kappa_refuses_grades_sorted_as_text():
    with pytest.raises(Refusal, match=r'order of the grades.*"2", "10"'):
        QuadraticKappa().for_task("multiclass", ["1", "10", "2"])
    with pytest.raises(Refusal, match=r'order of the grades.*"2.0", "10.0"'):
        QuadraticKappa().for_task("multiclass", ["1.0", "10.0", "2.0"])


def test_kappa_of_grades_in_a_table(tmp_path):
    """By number; words need an order that is given."""
    rng = np.random.default_rng(0)
    true = np.append(np.arange(12), rng.integers(0, 12, 88))
    answer = np.clip(true + rng.integers(-2, 3, 100), 0, 11)

    def table(names, classes=None):
        frame = pd.DataFrame({"id": range(100), "image": "a.png", "label": [names[grade] for grade in true]})
        frame.to_csv(tmp_path / "t.csv", index=False)
        return read_table(tmp_path / "t.csv", "multiclass", tmp_path, Columns(), classes)

    (tmp_path / "a.png").touch()
    for text in ("{}", "{}.0", "{:03}", "-{}"):
        names = [text.format(grade) for grade in range(12)]
        read = table(names)
        metric = QuadraticKappa().for_task("multiclass", read.classes, read)
        expected = oracle.cohen_kappa_score(true, answer, weights="quadratic")
        predicted = np.eye(12)[[read.classes.index(names[grade]) for grade in answer]]
        assert metric(read.target, predicted) == pytest.approx(expected)
    words = list("lkjihgfedcba")
    read = table(words)
    with pytest.raises(Refusal, match=r'from the lowest to the highest: classes: \["a", "b"'):
        QuadraticKappa().for_task("multiclass", read.classes, read)
    read = table(words, words)
    metric = QuadraticKappa().for_task("multiclass", read.classes, read)
    assert metric(read.target, np.eye(12)[answer]) == pytest.approx(expected)


def test_soft_targets():
    target, probability = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.5, 0.5]])
    loss = LogLoss().for_task("multiclass", ["a", "b"])(target, probability)
    assert loss == pytest.approx(-(0.7 * np.log(0.6) + 0.3 * np.log(0.4) + np.log(0.5)) / 2)
    assert Accuracy().for_task("multiclass", ["a", "b"])(target, probability) == 0.5


def test_log_loss_is_finite_when_sure_and_wrong():
    for task in ("multiclass", "multilabel"):
        loss = LogLoss().for_task(task, ["a", "b"])(np.array([[1, 0]]), np.array([[0.0, 1.0]], np.float32))
        assert loss == pytest.approx(-np.log(1e-15), rel=1e-3)


def test_a_class_with_one_value_is_left_out_and_named():
    target = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    probability = np.array([[0.9, 0.2, 0.3], [0.1, 0.3, 0.4], [0.4, 0.1, 0.8]])
    with pytest.warns(UserWarning, match=r"RocAuc leaves out 2 of 3 classes.*: b, c"):
        assert RocAuc().for_task("multilabel", ["a", "b", "c"])(target, probability) == 1.0
    with pytest.warns(UserWarning, match="leaves out 1 of 3 classes"):
        MeanAveragePrecision().for_task("multilabel", ["a", "b", "c"])(target, probability)


ROW_METRICS = [name for name, kind in METRICS.items() if issubclass(kind, RowMetric) and kind is not Published]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROW_METRICS)
def test_no_data_is_nan_and_never_a_crash(name):
    metric = METRICS[name]()
    metric = metric.for_task(metric.tasks()[0], ["a", "b"])
    assert np.isnan(metric(np.zeros((0, 2)), np.zeros((0, 2))))
    assert np.isnan(metric(np.eye(2), np.full((2, 2), np.nan)))
    metric(np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]]))


def test_score_folds_pools_or_averages():
    rng = np.random.default_rng(2)
    folds = np.repeat([-1, 0, 1], [5, 40, 10])
    target = np.eye(2)[rng.integers(0, 2, 55)]
    probability = np.clip(0.6 * target + 0.4 * rng.random((55, 2)) - 0.3 * (folds == 1)[:, None], 0, 1)
    probability[folds == -1] = 1 - target[folds == -1]
    accuracy, auc = (kind().for_task("multiclass", ["a", "b"]) for kind in (Accuracy, RocAuc))
    per_fold, overall = score_folds(accuracy, target, probability, folds)
    assert sorted(per_fold) == [0, 1]
    assert overall == pytest.approx((40 * per_fold[0] + 10 * per_fold[1]) / 50)
    per_fold, overall = score_folds(auc, target, probability, folds)
    assert overall == pytest.approx((per_fold[0] + per_fold[1]) / 2)


@pytest.mark.parametrize("kind", [RocAuc, Accuracy])
def test_one_fold_is_scored_and_noted_once(kind, capsys):
    """As all rows at once; its notes have no source line, and those of a later call are not repeated."""
    target = np.eye(3)[[0, 1, 0, 1]]
    probability = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    metric = kind().for_task("multiclass", ["a", "b", "c"])
    with show_notes():
        scores = [score_folds(metric, target, probability, np.full(4, 2)) for _ in range(2)]
    with pytest.warns(UserWarning) if kind is RocAuc else nullcontext():
        expected = metric(target, probability)
    assert scores == [({2: expected}, expected)] * 2
    said = capsys.readouterr().err
    assert said.startswith("note: fold 2: RocAuc leaves out 1 of 3 classes") == (kind is RocAuc)
    assert said.count("\n") == (kind is RocAuc)


def test_other_warnings_stay_as_they_are(capsys):
    with show_notes(), pytest.warns(DeprecationWarning, match="old"):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == ""


def test_a_fold_without_a_score_is_named_and_left_out():
    target = np.eye(2)[[0, 1, 0, 0]]
    with pytest.warns(UserWarning, match="fold 1: RocAuc"):
        per_fold, overall = score_folds(
            RocAuc().for_task("multiclass", ["a", "b"]), target, target, np.array([0, 0, 1, 1])
        )
    assert per_fold[0] == overall == 1.0 and np.isnan(per_fold[1])


def test_another_task_is_refused_with_the_ones_that_fit():
    with pytest.raises(Refusal, match=r"MeanIoU is for segmentation, .* not for multilabel; choose one of: .*f_beta, "):
        MeanIoU().for_task("multilabel", NAMES)
    with pytest.raises(Refusal, match="for_task"):
        Accuracy()(np.eye(2), np.eye(2))


def brute_force_iou(masks, answers, classes, ignore):
    values = []
    for c in range(classes):
        both = either = 0
        for mask, answer in zip(masks, answers, strict=True):
            for true, said in zip(mask.ravel(), answer.ravel(), strict=True):
                if true != ignore:
                    both += true == c and said == c
                    either += true == c or said == c
        if either:
            values.append(both / either)
    return np.mean(values)


def test_mean_iou_as_brute_force_with_ignored_pixels_and_a_class_that_is_nowhere():
    rng = np.random.default_rng(3)
    masks = [rng.choice([0, 1, 2, 255], (4, 5)).astype(np.uint8) for _ in range(3)]
    probabilities = [rng.random((4, 4, 5)) * [[[1]], [[1]], [[1]], [[0]]] for _ in range(3)]
    metric = MeanIoU().for_task("segmentation", NAMES)
    counts = np.stack([metric.measure(m, p) for m, p in zip(masks, probabilities, strict=True)])
    with pytest.warns(UserWarning, match=r"leaves out 1 of 4 classes.*: d"):
        value = metric.reduce(counts)
    assert value == pytest.approx(brute_force_iou(masks, [p.argmax(0) for p in probabilities], 4, 255))


def test_dice_pooled_and_per_image_by_hand():
    def counts(metric, mask, answer):
        return metric.measure(np.array([mask]), np.eye(2)[np.array([answer])].transpose(2, 0, 1))

    pooled, each = (Dice(per_image=flag).for_task("segmentation", ["ground", "object"]) for flag in (False, True))
    images = [([1, 1, 0, 0], [1, 0, 0, 0]), ([0, 0, 0, 255], [0, 0, 0, 1]), ([0, 0, 0, 0], [0, 1, 0, 0])]
    stacked = np.stack([counts(pooled, *image) for image in images])
    assert pooled.reduce(stacked) == pytest.approx(2 * 1 / (2 + 2))
    assert each.reduce(stacked) == pytest.approx((2 / 3 + 1 + 0) / 3)
    both = Dice(background=True).for_task("segmentation", ["ground", "object"])
    assert both.reduce(stacked) == pytest.approx((0.5 + 2 * 8 / (9 + 9)) / 2)
    per_fold, overall = score_fold_evidence(pooled, stacked, np.array([0, 0, 1]))
    assert per_fold[0] == pytest.approx(2 / 3) and per_fold[1] == 0 and overall == 0.5


def test_masks_that_do_not_fit_are_refused():
    metric = MeanIoU().for_task("segmentation", ["a", "b"])
    with pytest.raises(Refusal, match="the mask has the value 7"):
        metric.measure(np.full((2, 2), 7, np.uint8), np.zeros((2, 2, 2)))
    with pytest.raises(Refusal, match="the mask is"):
        metric.measure(np.zeros((3, 2), np.uint8), np.zeros((2, 2, 2)))


def kaggle_style(solution, submission, row_id_column_name):
    assert list(solution.columns) == list(submission.columns)
    del solution[row_id_column_name], submission[row_id_column_name]
    return oracle.log_loss(solution.to_numpy().argmax(1), submission.to_numpy())


def label_style(solution, submission, row_id_column_name):
    merged = solution.merge(submission, on=row_id_column_name)
    return float((merged.label_x == merged.label_y).mean())


def test_published_functions_in_both_forms(case):
    task, target, probability, _ = case
    if task == "multiclass":
        ours = Published(function=kaggle_style, greater_is_better=False).for_task(task, NAMES)
        assert ours(target, probability) == pytest.approx(LogLoss().for_task(task, NAMES)(target, probability))
        assert not ours.greater_is_better
    ours = Published(function=label_style, column="label", row_id_column_name="row").for_task(task, NAMES)
    true = target >= 0.5
    answer = np.eye(4)[probability.argmax(1)] > 0 if task == "multiclass" else probability >= 0.5
    assert ours(target, probability) == pytest.approx((true == answer).all(axis=1).mean())


def test_a_published_function_that_fails_does_so_before_training():
    def broken(solution, submission, row_id_column_name):
        return solution["no such column"].mean()

    with pytest.raises(Refusal, match="fails on a made-up table.*KeyError"):
        Published(function=broken).for_task("multiclass", NAMES)


def test_a_published_function_that_fails_after_training_is_a_warning():
    def picky(solution, submission, row_id_column_name):
        if len(solution) == 3:
            raise RuntimeError("three rows")
        return 1.0

    metric = Published(function=picky).for_task("multiclass", ["a", "b"])
    with pytest.warns(UserWarning, match="three rows"):
        assert np.isnan(metric(np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 1, 1]]))


def test_every_config_names_its_metric_and_sets_what_it_has():
    files = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in list_choices("metric").values()}
    assert set(files) == set(METRICS)
    for name, config in files.items():
        assert config["_target_"] == f"foldwise.predictions.metrics.{METRICS[name].__name__}"
        alias = code_of(config).alias if name == "published" else None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_metric(config, METRICS[name].tasks()[0], ["a", "b"], alias=alias)

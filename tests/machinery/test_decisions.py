"""Calibration and decisions against brute force and scikit-learn; no label of a fold decides its answers."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as oracle
from rows import scored
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from foldwise.errors import Refusal
from foldwise.predictions.decisions.calibration import CALIBRATORS, Calibrator, Platt, Temperature
from foldwise.predictions.decisions.clipping import STEPS, Clip
from foldwise.predictions.decisions.deciding import Method, bayes_notes, check_decision, choose, compare, fit_decision
from foldwise.predictions.decisions.expected_f import Group, best_answers, find_alone, find_exclusive
from foldwise.predictions.decisions.masks import (
    CANDIDATES,
    WITH_PRESENCE,
    Cleaning,
    choose_cleaning,
    compare_cleaning,
    measure_candidates,
    object_areas,
)
from foldwise.predictions.decisions.rules import (
    AdjustedArgmax,
    Argmax,
    ClassThresholds,
    ExpectedF,
    OneThreshold,
    rules_for,
    score,
    takes_values,
)
from foldwise.predictions.metrics import (
    METRICS,
    Accuracy,
    BinaryMetric,
    Dice,
    FBeta,
    LogLoss,
    MacroF1,
    MeanIoU,
    Published,
)

CLEANINGS = list(dict.fromkeys(cleaning.name for cleaning in CANDIDATES))  # all names, simplest first
PUBLISHED = Published(function=lambda true, said, _: float((true.iloc[:, 1:] * said.iloc[:, 1:]).to_numpy().mean()))


def names(count):
    return [f"c{index}" for index in range(count)]


def f_beta(classes, beta=2.0):
    return FBeta(beta=beta).for_task("multilabel", names(classes))


def draw_labels(rows=1500, classes=6, seed=0):
    """(target, true probability) of labels of different frequency."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes)) - np.linspace(0, 3, classes)
    probability = 1 / (1 + np.exp(-logits))
    return (rng.random(probability.shape) < probability).astype(float), probability


def sharpened(probability, power):
    odds = (probability / (1 - probability)) ** power
    return odds / (1 + odds)


# expected F-beta


def truths_with_chances(p, groups):
    """Every truth of one row (2^C, C), and its probability: groups are one draw, the other labels are independent."""
    truths = np.array(list(itertools.product([0.0, 1.0], repeat=len(p))))
    chances = np.ones(len(truths))
    grouped = [label for group in groups for label in group.labels]
    for label in set(range(len(p))) - set(grouped):
        chances *= np.where(truths[:, label] == 1, p[label], 1 - p[label])
    for labels, always in groups:
        share = p[list(labels)]
        if always or share.sum() > 1:
            share = share / share.sum()
        own = truths[:, labels]
        some = np.where(own.sum(axis=1) == 1, own @ share, 0)
        chances *= np.where(own.sum(axis=1) == 0, 1 - share.sum(), some)
    return truths, chances


@pytest.mark.parametrize(
    "groups", [[], [Group((0, 3), True)], [Group((1, 2, 4), False)], [Group((0, 1), True), Group((2, 4), False)]]
)
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_expected_f_is_the_best_of_all_answers(groups, beta):
    rng = np.random.default_rng(1)
    probability = np.concatenate(
        [rng.random((15, 5)), rng.beta(0.2, 2, (15, 5)), rng.choice([0.001, 0.5, 0.999, 1.0], (15, 5))]
    )
    metric, chosen = f_beta(5, beta), best_answers(probability, beta, groups)
    answers = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    for p, answer in zip(probability, chosen, strict=True):
        truths, chances = truths_with_chances(p, groups)
        assert chances.sum() == pytest.approx(1)
        worth = [metric(truths, np.tile(each, (len(truths), 1)), chances) for each in answers]
        ours = metric(truths, np.tile(answer.astype(float), (len(truths), 1)), chances)
        assert ours == pytest.approx(max(worth), abs=1e-9)


@pytest.mark.parametrize("groups", [[], [Group((0, 3), True)], [Group((1, 2), False)], [Group((0, 1, 4), True)]])
def test_a_label_that_stands_alone_is_the_whole_truth_or_none_of_it(groups):
    """The oracle: with its probability the truth is label 0 alone, else it is drawn from the others, given that."""
    rng = np.random.default_rng(7)
    metric, answers = f_beta(5), np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    group = next((group for group in groups if 0 in group.labels), None)
    for p in np.concatenate([rng.random((15, 5)) * 0.5, rng.beta(0.2, 2, (15, 5)) * 0.5]):
        single = p[0] / p[list(group.labels)].sum() if group else p[0]
        others = np.append(0, np.minimum(p[1:] / (1 - single), 1))
        if group:  # without the label, one of the rest of its group is true
            rest = [label for label in group.labels if label]
            others[rest] = p[rest] / p[rest].sum()
        left = [Group(tuple(label for label in each.labels if label), each.always) for each in groups]
        truths, chances = truths_with_chances(others, left)
        chances = chances * (1 - single) + single * (truths == np.eye(5)[0]).all(axis=1)
        worth = [metric(truths, np.tile(each, (len(truths), 1)), chances) for each in answers]
        chosen = best_answers(p[None], 2.0, groups, alone=[0]).astype(float)
        ours = metric(truths, np.tile(chosen, (len(truths), 1)), chances)
        assert ours == pytest.approx(max(worth), abs=1e-9)


def test_labels_that_stand_alone_are_found_in_enough_rows():
    rng = np.random.default_rng(8)
    weather, ground = np.eye(4)[rng.integers(4, size=300)], rng.random((300, 5)) < 0.4
    ground[weather[:, 3] == 1] = False  # nothing is seen below clouds
    target = np.hstack([weather, ground])
    rule = ExpectedF(2.0, 1.0).fit(f_beta(9), target, target)
    assert rule.alone == (3,) and rule.groups == (Group((0, 1, 2, 3), True),)
    assert find_alone(weather) == []  # all rows have one label: that is a group
    cloudy = np.flatnonzero(weather[:, 3])
    assert find_alone(np.delete(target, cloudy[1:], axis=0)) == []  # a single row is no evidence
    target[cloudy[0], 5] = 1
    assert find_alone(target) == []


def test_an_empty_answer_is_worth_what_the_metric_says():
    unlikely = np.full((1, 3), 0.1)
    assert not best_answers(unlikely, 2.0, empty=1.0).any()
    assert best_answers(unlikely, 2.0, empty=0.0).any()
    rule = next(rule for rule in rules_for(f_beta(3)) if isinstance(rule, ExpectedF))
    assert rule.empty == 1


def test_many_labels_as_by_convolution_of_the_counts():
    """The oracle convolves the counts of the answered and of the other labels, for each prefix of the sorted ones."""
    rng = np.random.default_rng(2)
    probability = np.concatenate([rng.beta(0.1, 0.3, (20, 60)), rng.choice([0.0, 1e-9, 0.5, 1 - 1e-9, 1.0], (20, 60))])

    def counts(values):
        distribution = np.ones(1)
        for p in values:
            distribution = np.convolve(distribution, [1 - p, p])
        return distribution

    def expected(p, answer):
        k, right, missed = answer.sum(), counts(p[answer]), counts(p[~answer])
        tp, fn = np.meshgrid(np.arange(len(right)), np.arange(len(missed)), indexing="ij")
        below = k + 4 * (tp + fn)
        f = np.divide(5 * tp, below, out=np.ones(tp.shape), where=below > 0)
        return right @ f @ missed

    for p, answer in zip(probability, best_answers(probability, 2.0), strict=True):
        order = np.argsort(-p, kind="stable")
        best = max(expected(p, np.isin(np.arange(60), order[:k])) for k in range(61))
        assert expected(p, answer) == pytest.approx(best, abs=1e-9)


def test_rows_do_not_depend_on_their_block(monkeypatch):
    probability = np.random.default_rng(3).random((50, 4))
    whole = best_answers(probability, 2.0)
    monkeypatch.setattr("foldwise.predictions.decisions.expected_f.BLOCK", 16 * 7)
    assert (best_answers(probability, 2.0) == whole).all()
    assert best_answers(probability[:0], 2.0).shape == (0, 4)


def test_exclusive_labels_are_found_where_exactly_one_is_always_true():
    rng = np.random.default_rng(4)
    weather, ground = np.eye(4)[rng.integers(4, size=200)], rng.random((200, 5)) < 0.3
    target = np.hstack([ground[:, :2], weather, ground[:, 2:]])
    assert find_exclusive(target) == [Group((2, 3, 4, 5), True)]
    target[7, 2:6] = 0  # one row without weather: they exclude each other, but nothing is always true
    assert find_exclusive(target) == []
    assert find_exclusive(ground) == []
    assert find_exclusive(np.hstack([weather, np.eye(2)[rng.integers(2, size=200)]])) == [
        Group((0, 1, 2, 3), True),
        Group((4, 5), True),
    ]


def test_named_groups_hold_only_if_the_labels_agree():
    target = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], float)
    rule = ExpectedF(2.0, 1.0, exclusive=[(0, 1), (0, 2)]).fit(f_beta(3), target, target)
    assert [group.always for group in rule.groups] == [False, False]
    assert ExpectedF(2.0, 1.0, exclusive=[(0, 1)]).fit(f_beta(3), target[:2], target[:2]).groups[0].always


# calibration


def test_temperature_is_the_best_of_a_grid_and_undoes_sharpening():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 1.5
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (truth.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    sharp = truth**3 / (truth**3).sum(axis=1, keepdims=True)
    fitted = Temperature().fit(np.eye(5)[label], sharp)
    losses = {t: oracle.log_loss(label, Temperature(t)(sharp)) for t in np.arange(0.5, 6, 0.05)}
    assert fitted.temperature == pytest.approx(min(losses, key=losses.get), abs=0.05)
    assert fitted.temperature == pytest.approx(3, rel=0.1)
    assert (fitted(sharp).argmax(axis=1) == sharp.argmax(axis=1)).all()
    assert fitted(np.array([[1.0, 0, 0, 0, 0]])).sum() == pytest.approx(1)


def test_platt_as_logistic_regression_of_the_logits():
    target, probability = draw_labels(20_000, 3)
    sharp = sharpened(probability, 2.5)
    fitted = Platt().fit(target, sharp)
    for c in range(3):
        logit = np.log(sharp[:, c] / (1 - sharp[:, c]))[:, None]
        model = LogisticRegression(C=1e9, tol=1e-8).fit(logit, target[:, c])
        assert fitted.slope[c] == pytest.approx(model.coef_[0, 0], rel=0.01)
        assert fitted.offset[c] == pytest.approx(model.intercept_[0], abs=0.02)
    assert np.abs(fitted(sharp) - probability).max() < 0.05


def test_platt_of_uninformative_classes():
    target = np.zeros((100, 4))
    target[:, 1] = 1
    target[:10, 2] = 1
    target[:50, 3] = 1
    probability = np.full((100, 4), 0.5)
    probability[:, 2] = np.where(target[:, 2] == 1, 0.1, 0.9)  # the wrong way round
    probability[:, 3] = target[:, 3]  # always right, and certain
    fitted = Platt().fit(target, probability)
    calibrated = fitted(probability)
    assert calibrated[0, 0] == pytest.approx(1 / 102, rel=0.05) and calibrated[0, 1] == pytest.approx(
        101 / 102, rel=0.05
    )
    assert fitted.slope[2] == 0 and calibrated[0, 2] == pytest.approx(0.1, abs=0.02)
    assert np.isfinite(calibrated).all() and 0.9 < calibrated[0, 3] < 1


# rules


def test_one_threshold_is_the_best_of_the_grid():
    target, probability = draw_labels()
    metric = f_beta(6)
    best = max(np.arange(0.01, 1, 0.01), key=lambda t: metric(target, (probability >= t).astype(float)))
    assert OneThreshold().fit(metric, target, probability).threshold == pytest.approx(best, abs=0.011)


def test_no_change_of_one_class_improves_its_threshold():
    target, probability = draw_labels(150, 4)
    metric = f_beta(4)
    rule = ClassThresholds().fit(metric, target, probability)
    reached = score(metric, target, rule.decide(probability))
    one = OneThreshold().fit(metric, target, probability)
    assert reached > score(metric, target, one.decide(probability))
    for c in range(4):
        answers = rule.decide(probability)
        for cut in [*np.unique(probability[:, c]), 2.0]:
            answers[:, c] = probability[:, c] >= cut
            assert score(metric, target, answers) <= reached + 1e-12


def test_macro_f1_thresholds_as_by_precision_and_recall():
    target, probability = draw_labels(400, 3)
    probability = probability.round(1)  # many ties
    metric = MacroF1().for_task("multilabel", names(3))
    rule = ClassThresholds().fit(metric, target, probability)
    best = []
    for c in range(3):
        precision, recall, _ = oracle.precision_recall_curve(target[:, c], probability[:, c])
        best.append(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
    assert score(metric, target, rule.decide(probability)) == pytest.approx(np.mean(best))


def test_adjusted_argmax_pays_for_macro_f1_and_leaves_accuracy():
    rng = np.random.default_rng(0)
    logits = rng.normal((3, 1, 0), size=(3000, 3))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = np.eye(3)[(truth.cumsum(axis=1) > rng.random((3000, 1))).argmax(axis=1)]
    macro, accuracy = (kind().for_task("multiclass", names(3)) for kind in (MacroF1, Accuracy))
    adjusted = AdjustedArgmax().fit(macro, target, truth)
    assert score(macro, target, adjusted.decide(truth)) > score(macro, target, Argmax().decide(truth)) + 0.01
    assert AdjustedArgmax().fit(accuracy, target, truth).strength <= 0.15


def _made(name, kind):
    if name == "published":
        return PUBLISHED
    return kind(positive="c1") if issubclass(kind, BinaryMetric) else kind()


def test_which_metrics_leave_nothing_to_decide():
    found = {
        name
        for name, kind in METRICS.items()
        for task in {"multiclass", "multilabel"} & set(kind.tasks())
        if takes_values(_made(name, kind).for_task(task, names(3)))
    }
    assert found == {"average_precision", "log_loss", "roc_auc", "mean_average_precision", "published"}
    assert [rule.name for rule in rules_for(PUBLISHED.for_task("multilabel", names(3)))] == ["probabilities"]


def confident(rows=600):
    """(target, probability) of four classes, of a model that is all but sure, and now and then wrong."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, rows)
    said = np.where(rng.random(rows) < [0.002, 0.01, 0.05, 0.2] @ np.eye(4)[true].T, (true + 1) % 4, true)
    probability = np.eye(4)[said] + 10.0 ** -rng.uniform(3, 9, (rows, 4))
    return np.eye(4)[true], probability / probability.sum(axis=1, keepdims=True)


def test_floors_and_ceilings_are_the_best_of_the_grid():
    """By scikit-learn, on the rows and one more mistake at either end."""
    target, probability = confident()
    metric = LogLoss().for_task("multilabel", names(4))
    rule = Clip().fit(metric, target, probability)
    for c in range(4):
        true, value = np.append(target[:, c], [1, 0]), np.append(probability[:, c], [0, 1])
        pairs = list(itertools.product(STEPS, STEPS))
        losses = [oracle.log_loss(true, value.clip(low, 1 - high)) for low, high in pairs]
        assert (rule.low[c], 1 - rule.high[c]) == pytest.approx(pairs[int(np.argmin(losses))], abs=1e-9)
    assert rule.low[0] < rule.low[3] and rule.high[1] > rule.high[0]
    before, after = (metric(target, each) for each in (probability, rule.decide(probability)))
    assert after < 0.7 * before


def test_floors_of_exclusive_classes():
    """None can be improved alone, and the answers are probabilities."""
    target, probability = confident()
    metric = LogLoss().for_task("multiclass", names(4))
    rule = Clip(exclusive=True).fit(metric, target, probability)

    def loss(low, c):
        clipped = probability.clip(low)
        return oracle.log_loss(target, clipped / clipped.sum(axis=1, keepdims=True)) * 600 - np.log(
            low[c] / (1 + low[c])
        )

    for c in range(4):
        tried = [np.where(np.arange(4) == c, step, rule.low) for step in STEPS[1:]]
        assert loss(rule.low, c) <= min(loss(low, c) for low in tried) + 1e-9
    answers = rule.decide(probability)
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert (rule.low > 0).all() and metric(target, answers) < 0.7 * metric(target, probability)


# out of fold


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_labels_of_a_fold_have_no_part_in_its_answers(task):
    target, probability = draw_labels(400, 4)
    if task == "multiclass":
        probability = probability / probability.sum(axis=1, keepdims=True)
        target = np.eye(4)[probability.argmax(axis=1)]
    metric = (MacroF1() if task == "multiclass" else FBeta()).for_task(task, names(4))
    folds = np.arange(400) % 4
    flipped = target.copy()
    flipped[folds == 2] = np.roll(flipped[folds == 2], 1, axis=1)
    before, after = (
        compare(CALIBRATORS[task == "multiclass"], rules_for(metric), metric, scored(labels, probability, folds))
        for labels in (target, flipped)
    )
    assert len(before) >= 4
    for first, second in zip(before, after, strict=True):
        assert (first.answers[folds == 2] == second.answers[folds == 2]).all()
        assert first.per_fold[2] != second.per_fold[2]
    assert any((a.answers != b.answers).any() for a, b in zip(before, after, strict=True))


def test_scores_are_those_of_the_answers_and_the_bayes_rule_is_told_when_it_loses():
    target, probability = draw_labels(3000)
    metric, folds = f_beta(6), np.arange(3000) % 5
    wrong = sharpened(probability, 4)
    outcomes = compare(CALIBRATORS[False], rules_for(metric), metric, scored(target, wrong, folds))
    by_name = {outcome.name: outcome for outcome in outcomes}
    for outcome in outcomes:
        own = outcome.answers[folds == 3].astype(bool)
        true = target[folds == 3].astype(bool)
        either = (true | own).any(axis=1)
        f2 = oracle.fbeta_score(true[either], own[either], beta=2, average="samples", zero_division=0)
        assert outcome.per_fold[3] == pytest.approx((f2 * either.sum() + (~either).sum()) / len(true))
    assert by_name["expected-f"].overall < by_name["one-threshold"].overall
    (told,) = bayes_notes(outcomes, True)
    assert told.startswith("expected-f (the Bayes") and "below one-threshold: do not trust its probabilities" in told
    chosen = outcomes[choose(outcomes, True)]
    assert chosen.name == "platt+expected-f" and chosen.overall > by_name["class-thresholds"].overall
    true_ones = compare([Calibrator()], rules_for(metric), metric, scored(target, probability, folds))
    assert bayes_notes(true_ones, True) == []
    assert outcomes[choose(outcomes, True, "fixed-threshold")].name == "fixed-threshold"
    with pytest.raises(Refusal, match="no --decision best; choose one of fixed-threshold"):
        check_decision("best", list(by_name))


def test_each_fold_has_its_calibrator_and_models_of_no_fold_the_common_one():
    target, probability = draw_labels(600)
    metric, folds = f_beta(6), np.arange(600) % 3
    decision = fit_decision(Method(Platt(), OneThreshold()), metric, scored(target, probability, folds))
    rest = Platt().fit(target[folds != 1], probability[folds != 1])
    assert (decision.calibrate(1, probability) == rest(probability)).all()
    assert (decision.calibrate(-1, probability) == Platt().fit(target, probability)(probability)).all()
    assert (decision.calibrate(0, probability) != decision.calibrate(1, probability)).any()


def test_a_loss_is_better_when_lower_and_one_fold_is_not_enough():
    target, probability = draw_labels(2000)
    metric = LogLoss().for_task("multilabel", names(6))
    rows = scored(target, sharpened(probability, 3), np.arange(2000) % 4)
    outcomes = compare(CALIBRATORS[False], rules_for(metric), metric, rows)
    assert [outcome.name for outcome in outcomes] == ["probabilities", "clip", "platt+probabilities", "platt+clip"]
    assert choose(outcomes, metric.greater_is_better) == 2
    with pytest.raises(Refusal, match="at least two folds"):
        compare([Calibrator()], rules_for(metric), metric, scored(target, probability, np.zeros(2000)))


# masks


def mask_case():
    """A probability map (3, 20, 20) whose most probable classes are a ring of class 1, and one pixel of class 2."""
    answer = np.zeros((20, 20), int)
    answer[2:12, 2:12] = 1
    answer[5:8, 5:8] = 0
    answer[16, 16] = 2
    probability = np.full((3, 20, 20), 0.1)
    np.put_along_axis(probability, answer[None], 0.8, axis=0)
    return answer, probability


def test_holes_are_filled_and_small_objects_go_to_the_next_class():
    answer, probability = mask_case()
    assert (Cleaning()(probability) == answer).all()
    filled = answer.copy()
    filled[5:8, 5:8] = 1
    assert (Cleaning(fill=True)(probability) == filled).all()
    small = answer.copy()
    small[16, 16] = 0
    assert (Cleaning(area=2 / 400)(probability) == small).all()
    assert (Cleaning(area=1 / 400)(probability) == answer).all()  # not smaller than it
    probability[1, 16, 16] = 0.15
    small[16, 16] = 1
    assert (Cleaning(area=2 / 400)(probability) == small).all()
    assert Cleaning(area=1.0)(np.full((1, 4, 4), 1.0)).sum() == 0


def test_holes_as_by_scipy_where_one_class_is_alone():
    rng = np.random.default_rng(0)
    for density in (0.3, 0.5, 0.7):
        mask = (rng.random((40, 50)) < density).astype(int)
        filled = Cleaning(fill=True)(np.eye(2)[mask].transpose(2, 0, 1))
        assert (filled == ndimage.binary_fill_holes(mask)).all()
    shared = np.array([[1, 1, 2, 2], [1, 0, 0, 2], [1, 1, 2, 2]])  # whose hole is it?
    assert (Cleaning(fill=True)(np.eye(3)[shared].transpose(2, 0, 1)) == shared).all()


def test_areas_of_objects_as_by_scipy():
    mask = np.random.default_rng(0).integers(0, 3, (30, 40))
    areas = object_areas(mask)
    assert (areas[mask == 0] == 1200).all()
    for label in (1, 2):
        pieces, count = ndimage.label(mask == label, np.ones((3, 3)))
        for piece in range(1, count + 1):
            assert (areas[pieces == piece] == (pieces == piece).sum()).all()


def test_cleaning_pays_where_answers_have_specks_and_holes():
    metric = MeanIoU().for_task("segmentation", names(3))
    truth, _ = mask_case()
    truth[5:8, 5:8], truth[16, 16], truth[18:20, 0:5] = 1, 0, 2
    noisy = truth.copy()
    noisy[13:18:2, 12:18:2], noisy[6, 6] = 2, 0
    evidence, counts = measure_candidates(metric, truth, np.eye(3)[noisy].transpose(2, 0, 1))
    assert (evidence == counts).all()
    outcomes, fitted = compare_cleaning(metric, np.stack([evidence] * 4), np.array([0, 0, 1, 1]))
    assert [outcome.name for outcome in outcomes] == CLEANINGS == [cleaning.name for cleaning in fitted]
    plain, filled, cleaned, both = (outcome.overall for outcome in outcomes)
    assert plain < filled < both and plain < cleaned < both == 1
    assert plain == pytest.approx(oracle.jaccard_score(truth.ravel(), noisy.ravel(), average="macro"))


def speck_image(real_sizes):
    """(mask, probability) of 100 x 100 pixels: a large object is predicted, and specks of 5 and of 30 pixels, of which
    the ground truth has those of `real_sizes`."""
    mask, answer = np.zeros((2, 100, 100), np.int64)
    for row, size in ((80, 5), (90, 30)):
        answer[row, :size] = 1
        mask[row, :size] = size in real_sizes
    mask[:50], answer[:50] = 1, 1
    return mask, 0.1 + 0.8 * np.eye(2)[answer].transpose(2, 0, 1)


def speck_images(of_fold_1):
    """Two images of the folds 0 and 2 whose small speck is none, and four of fold 1 with these specks."""
    images = [(fold, *speck_image([30])) for fold in (0, 2)] + [(1, *speck_image(of_fold_1)) for _ in range(4)]
    return [(f"r{number}", mask, probability, fold) for number, (fold, mask, probability) in enumerate(images)]


@pytest.mark.parametrize("metric", [MeanIoU(), Dice()])
@pytest.mark.parametrize("fill", [False, True])
def test_masks_of_a_fold_have_no_part_in_its_minimum_area(metric, fill):
    """Fold 1 has twice as many images as the others together: whatever is fitted on it too follows its masks."""
    metric = metric.for_task("segmentation", names(2))
    name = "hole-filling+minimum-area" if fill else "minimum-area"
    places, fitted = [], []
    for specks in ([5, 30], []):
        chosen = choose_cleaning(metric, speck_images(specks), name)
        folds = np.array([0, 2, 1, 1, 1, 1])
        answers = chosen.outcome.answers
        assert (answers[folds == 1] == CANDIDATES.index(Cleaning(fill, 0.001))).all()
        places.append(answers[folds != 1])
        fitted.append(chosen.decision)
    small, large = Cleaning(fill, 0.0002), Cleaning(fill, 0.005)
    assert fitted == [small, large]  # what saw fold 1 follows its masks
    assert [set(each) for each in places] == [{CANDIDATES.index(small)}, {CANDIDATES.index(large)}]


def test_the_area_of_a_fold_is_the_best_of_the_others():
    metric, folds = MeanIoU().for_task("segmentation", names(2)), np.array([0, 2, 1, 1, 1, 1])
    evidence = np.array([measure_candidates(metric, *image[1:3])[0] for image in speck_images([5, 30])])
    outcomes, fitted = compare_cleaning(metric, evidence, folds)
    tuned = [place for place, cleaning in enumerate(CANDIDATES) if cleaning.area and not cleaning.fill]
    best = {fold: max(tuned, key=lambda place: metric.reduce(evidence[folds != fold, place])) for fold in range(3)}
    assert best[1] != best[0] == best[2]
    for fold in range(3):
        assert (outcomes[2].answers[folds == fold] == best[fold]).all()
        assert outcomes[2].per_fold[fold] == metric.reduce(evidence[folds == fold, best[fold]])
    assert fitted[2] == CANDIDATES[max(tuned, key=lambda place: metric.reduce(evidence[:, place]))]
    with pytest.raises(Refusal, match="two folds"):
        compare_cleaning(metric, evidence, folds * 0)


def absence_images(rng, folds, true_threshold):
    """Maps of three classes; class 2 is in the image if its presence reaches the threshold, and predicted anyway."""
    images, presence = [], {}
    for number, fold in enumerate(folds):
        present = np.array([1.0, 1.0, rng.choice([0.01, 0.05, 0.2, 0.9])])
        mask = np.zeros((20, 20), np.int64)
        mask[:8] = 1
        said = mask.copy()
        said[12:] = 2
        if present[2] >= true_threshold:
            mask[12:] = 2
        images.append((f"r{number}", mask, 0.1 + 0.5 * np.eye(3)[said].transpose(2, 0, 1), fold))
        presence[f"r{number}"] = present
    return images, presence


def test_classes_that_are_not_present_get_no_mask_by_a_threshold_of_the_other_folds():
    metric, folds = MeanIoU().for_task("segmentation", names(3)), np.arange(12) % 2
    images, presence = absence_images(np.random.default_rng(0), folds, 0.1)
    chosen = choose_cleaning(metric, images, presence=presence)
    assert [outcome.name for outcome in chosen.outcomes] == [*CLEANINGS, *(_with(name) for name in CLEANINGS)]
    assert chosen.decision == Cleaning(presence=0.1) and str(chosen.decision) == "presence from 0.1"
    assert chosen.outcome.overall == 1 > chosen.outcomes[0].overall
    for id, mask, probability, _ in images:
        assert (chosen.decision(probability, presence[id]) == mask).all()
    assert (chosen.decision(images[0][2]) == images[0][2].argmax(0)).all()  # without presence
    absent = np.zeros(3)
    assert (Cleaning(presence=0.3)(images[0][2], absent) == images[0][2].argmax(0)).all()  # something must be there


def _with(name):
    return "presence" if name == "argmax" else f"{name}+presence"


def test_the_presence_threshold_of_a_fold_is_the_best_of_the_others():
    metric, folds = MeanIoU().for_task("segmentation", names(3)), np.repeat([0, 1], 8)
    first, presence = absence_images(np.random.default_rng(0), folds, 0.1)
    second, _ = absence_images(np.random.default_rng(0), folds, 0.3)
    changed = [*first[:8], *second[8:]]  # only masks of fold 1 differ
    outcomes = [choose_cleaning(metric, images, "presence", presence).outcome for images in (first, changed)]
    assert {WITH_PRESENCE[place].presence for place in outcomes[1].answers[folds == 0]} == {0.3}
    assert outcomes[0].answers[folds == 1].tolist() == outcomes[1].answers[folds == 1].tolist()

"""Identities: made individuals from training to submission, and each step against brute force."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stopping import Stop, watched
from tiny import prepare_tiny, tiny_config, train_folds, train_here

from foldwise.audit.table_notes import identity_note
from foldwise.bundle.build import build_bundle
from foldwise.checks import task_problems
from foldwise.data.folds import folds_hash
from foldwise.data.holdout import Holdout
from foldwise.data.individuals import Herd, write_individuals
from foldwise.data.problems import TableError
from foldwise.data.sampling import Balanced, EpochSampler, Identities, Pool
from foldwise.data.table import Columns, Table, read_table
from foldwise.errors import Note, Refusal
from foldwise.inference.predicting import predict_runs
from foldwise.inference.predictor import Predictor
from foldwise.inference.sharing import Choices
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model
from foldwise.models.identities import Centres, GeM, IdentityNetwork
from foldwise.models.losses import ArcFace, CrossEntropy, margins_by_size
from foldwise.predictions import search as searching
from foldwise.predictions.decisions.naming import Naming, choose_naming, name_images
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.ground_truth import check_predictions, read_ground_truth
from foldwise.predictions.metrics import Accuracy, MapAtK, RecallAtK
from foldwise.predictions.pseudo.teachers import check_probabilities
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.search import keep_apart, model_vectors, search, search_oof, search_test
from foldwise.predictions.store import read_predictions, write_predictions
from foldwise.reporting.evaluation_report import write_evaluation
from foldwise.tasks import TASKS
from foldwise.training.plan import choose_parts

CHOICES = ["experiment=retrieval", "data.image_size=32", "epochs=2", "batch_size=4", "data.sampling.images=2"]
HERDS = (Herd(6, 4, 1), Herd(4, 1, 1), Herd(2, 0, 2))


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def draw(count: int, seed: int = 0, width: int = 5) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


# search


def by_hand(queries, gallery, identity, itself=None, centres=False):
    """For each query all identities with their similarity, best first, by loops over pictures."""
    answers = []
    for number, query in enumerate(queries):
        mine = [index for index in range(len(gallery)) if itself is None or index != itself[number]]
        scores = {}
        for name in sorted({identity[index] for index in mine}):
            of_name = [gallery[index] for index in mine if identity[index] == name]
            if centres:
                mean = np.sum(of_name, axis=0)
                scores[name] = float(query @ mean / np.linalg.norm(mean))
            else:
                scores[name] = max(float(query @ vector) for vector in of_name)
        answers.append(sorted(scores.items(), key=lambda pair: -pair[1]))
    return answers


@pytest.mark.parametrize("centres", [False, True])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("block", [1, 70, 10**6])
def test_the_search_finds_what_loops_find(centres, alone, block, monkeypatch):
    monkeypatch.setattr(searching, "BLOCK", block)
    rng = np.random.default_rng(3)
    gallery, identity = draw(23), rng.integers(0, 9, 23) * 2
    rows = rng.permutation(23)[:7] if alone else None
    queries, truth = (gallery[rows], identity[rows]) if alone else (draw(7, 1), rng.integers(0, 19, 7))
    found = search(queries, gallery, identity, 4, truth, rows, centres)
    for number, answer in enumerate(by_hand(queries, gallery, identity, rows, centres)):
        names = [name for name, _ in answer]
        assert found.names[number].tolist() == names[:4]
        np.testing.assert_allclose(found.scores[number], [score for _, score in answer[:4]], rtol=1e-4, atol=1e-6)
        right = truth[number]
        assert found.rank[number] == (names.index(right) + 1 if right in names else 0)
        assert found.own[number] == pytest.approx(dict(answer).get(right, -np.inf), rel=1e-4)


def test_equal_similarities_are_in_the_order_of_the_identities_and_few_leave_places_empty():
    gallery = np.tile(draw(1), (4, 1))
    found = search(gallery[:1], gallery, np.array([5, 3, 3, 9]), 2, np.array([9]))
    assert found.names.tolist() == [[3, 5]] and found.rank.tolist() == [3]
    found = search(gallery[:1], gallery, np.array([5, 3, 3, 9]), 5, np.array([4]))
    assert found.names.tolist() == [[3, 5, 9, -1, -1]] and found.rank.tolist() == [0]
    assert found.scores[0, 3:].tolist() == [-np.inf] * 2 and found.own[0] == -np.inf


def test_vectors_of_models_side_by_side_average_their_similarities():
    views = [pd.DataFrame(draw(4, seed), columns=list("abcde")).assign(id=list("wxyz")) for seed in range(3)]
    frame = pd.concat(
        [views[0].assign(snapshot="one", view="v"), views[1].assign(snapshot="one", view="w"),
         views[2].assign(snapshot="two", view="v")]
    )  # fmt: skip
    joined = model_vectors(frame, list("abcde"), list("zyxw"))
    first, second = unit((draw(4, 0) + draw(4, 1))[::-1]), draw(4, 2)[::-1]
    np.testing.assert_allclose(joined @ joined.T, (first @ first.T + second @ second.T) / 2, atol=1e-6)


# metrics


def kaggle(answers: list[list[str]], truth: list[str], k: int = 5) -> float:
    """MAP@k as the competition defines it: precision at each place, up to the first right name."""
    total = 0.0
    for names, right in zip(answers, truth, strict=True):
        for place in range(min(k, len(names))):
            if names[place] == right and right not in names[:place]:
                total += sum(name == right for name in names[: place + 1]) / (place + 1)
    return total / len(truth)


def test_the_metrics_by_the_competitions_definition():
    rng = np.random.default_rng(0)
    names = [f"n{number}" for number in range(9)]
    answers = [rng.permutation(names).tolist() for _ in range(40)]
    truth = rng.choice(names, 40).tolist()
    ranks = np.array([answer.index(right) + 1 for answer, right in zip(answers, truth, strict=True)])
    for k in (1, 3, 5, 20):
        assert MapAtK(k=k).reduce(ranks) == pytest.approx(kaggle(answers, truth, k))
        recall = np.mean([right in answer[:k] for answer, right in zip(answers, truth, strict=True)])
        assert RecallAtK(k=k).reduce(ranks) == pytest.approx(recall)
    assert MapAtK().reduce(np.append(ranks, [0, 0])) == MapAtK().reduce(ranks)  # nothing to find
    with pytest.warns(Note, match="no image has another one of its identity"):
        assert np.isnan(MapAtK().reduce(np.zeros(3, int)))
    for wrong in (0, 2.5, "5"):
        with pytest.raises(Refusal, match=r"metric\.k is .*a whole number from 1"):
            MapAtK(k=wrong)
    with pytest.raises(Refusal, match="is for multiclass, not for retrieval; choose one of: map_at_k, recall_at_k"):
        Accuracy().for_task("retrieval", ["a", "b"])


# network and loss


def test_arcface_adds_the_margin_to_the_angle():
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(6, 4, generator=generator) * 1.6 - 0.8
    target = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    margins = [0.1, 0.2, 0.3, 0.4]
    angle = torch.acos(cosine)
    logits = 20 * torch.cos(torch.where(target > 0, angle + torch.tensor(margins), angle))
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(ArcFace(20.0, margins).samples(cosine, target), expected)
    plain = CrossEntropy().samples(20 * cosine, target)
    torch.testing.assert_close(ArcFace(20.0, 0.0).samples(cosine, target), plain)


def test_arcface_falls_everywhere_and_its_gradient_is_finite():
    cosine = torch.linspace(-1, 1, 401)[:, None].requires_grad_()
    both = torch.cat([cosine, torch.zeros(401, 1)], 1)
    loss = ArcFace(30.0, 0.5)(both, torch.eye(2)[torch.zeros(401, dtype=torch.long)])
    loss.backward()
    assert torch.isfinite(cosine.grad).all() and (cosine.grad <= 1e-7).all()
    with pytest.raises(Refusal, match="ArcFace needs the network and module of experiment=retrieval"):
        ArcFace()(torch.zeros(2, 4), torch.zeros(2, 1))


@pytest.mark.parametrize("change", [{"width": 0}, {"width": "a"}, {"subcentres": -1}])
def test_sizes_of_the_network_are_whole_numbers(change):
    with pytest.raises(Refusal, match=r"model\.(width|subcentres) is .*; it must be a whole number from"):
        IdentityNetwork("test_resnet", {"image": 3}, {"logits": 4}, **change)


def test_margins_grow_as_identities_get_rare():
    np.testing.assert_allclose(margins_by_size([1, 16, 81]), [0.55, 0.3, 0.05 + 0.5 / 3])
    assert margins_by_size([0]) == margins_by_size([1])  # in no training fold


def test_gem_lies_between_mean_and_maximum():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(GeM(1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeM(3.0)(x), (x**3).mean((2, 3)) ** (1 / 3))
    torch.testing.assert_close(GeM(200.0)(x), x.amax((2, 3)), rtol=0.03, atol=0)


def test_an_identity_is_as_near_as_its_nearest_centre():
    centres, x = Centres(5, 3, 2), torch.tensor(draw(4)) * 7
    expected = [
        [max(float(v @ w / v.norm() / w.norm()) for w in of_one) for of_one in centres.weight.detach()] for v in x
    ]
    torch.testing.assert_close(centres(x).detach(), torch.tensor(expected))


# sampling


def test_batches_hold_several_images_of_each_identity_and_every_identity_as_often():
    target = np.repeat(np.arange(5), [1, 2, 4, 7, 6])[:, None]
    order = np.random.default_rng(0).permutation(20)
    sampling = Identities(images=4)
    sampling.start(target[order], np.ones(20))
    rows = np.arange(100, 120)
    drawn = []
    for epoch in range(30):
        sampler = EpochSampler(Pool(rows, sampling), seed=1, batch_size=8)
        sampler.set_epoch(epoch)
        keys = [key.item for key in sampler]
        assert keys == [key.item for key in sampler] and len(keys) == 16
        for start in range(0, 16, 4):
            block = keys[start : start + 4]
            (name,) = set(target[order][np.array(block) - 100, 0])
            assert len(set(block)) == min(4, [1, 2, 4, 7, 6][name])
            drawn.append(name)
        ranks = []
        for rank in range(2):
            shared = EpochSampler(Pool(rows, sampling), seed=1, batch_size=4, rank=rank, world=2)
            shared.set_epoch(epoch)
            ranks.append([key.item for key in shared])
        assert [item for pair in zip(*ranks, strict=True) for item in pair] == keys
    counts = Counter(drawn)
    assert max(counts.values()) - min(counts.values()) < 12


def test_samplings_say_what_they_are_for():
    with pytest.raises(Refusal, match=r"for identities use data\.sampling=\{_target_:foldwise\.data\.sampling"):
        Balanced().start(np.zeros((3, 1), np.int64), np.ones(3))
    with pytest.raises(Refusal, match="is for task=retrieval"):
        Identities().start(np.eye(3, dtype=np.float32), np.ones(3))
    with pytest.raises(Refusal, match=r"data\.sampling\.images is 0"):
        Identities(0)


# the table and its folds


@pytest.fixture(scope="module")
def herd(tmp_path_factory) -> Path:
    """Six animals of four training images, four of one, two in the test alone."""
    root = tmp_path_factory.mktemp("herd")
    write_individuals(root, HERDS)
    return root


def test_the_made_individuals(herd):
    train, test, solution = (pd.read_csv(herd / f"{name}.csv") for name in ("train", "test", "test_solution"))
    assert sorted(train["label"].value_counts()) == [1] * 4 + [4] * 6 and len(test) == 14
    assert list(test) == ["id", "image"] and (solution["label"] == "new_individual").sum() == 4
    assert set(solution["label"]) <= {*train["label"], "new_individual"}


def read(root: Path, text: str, classes=None, columns=None):
    (root / "t.csv").write_text(text)
    return read_table(root / "t.csv", "retrieval", root, columns or Columns(), classes)


def test_targets_are_numbers_of_the_names(herd):
    image = pd.read_csv(herd / "train.csv")["image"][0]
    table = read(herd, f"id,image,label\n1,{image},zoe\n2,{image},ann b\n3,{image},zoe\n")
    assert table.classes == ("ann b", "zoe") and table.target.tolist() == [[1], [0], [1]]
    assert TASKS["retrieval"].strata(table.target).tolist() == [[False, True], [True, False], [False, True]]
    with pytest.raises(TableError) as caught:
        read(herd, f"id,image,label\n1,{image},\n2,{image}, ann\n3,{image},bob\n", ["ann", "zoe"])
    for text in (
        "the label is empty",
        "' ann' has whitespace",
        "unknown label 'bob': add it to data.classes",
        "names without an image, such as 'ann'",
    ):
        assert text in str(caught.value)
    with pytest.raises(TableError, match="retrieval needs one column, with the names"):
        read(herd, f"id,image,a,b\n1,{image},0,1\n", columns=Columns(target=["a", "b"]))


def test_folds_share_identities_or_keep_them_apart_and_the_notes_say_which():
    target = np.array([[0], [0], [1], [1], [2]])
    table = Table(pd.DataFrame(), "retrieval", ("a", "b", "c"), Path(), target, Path())
    shared, apart = np.array([0, 1, 0, 0, 1]), np.array([0, 0, 1, 1, -1])
    assert not keep_apart(target[:, 0], shared) and keep_apart(target[:, 0], apart)
    assert "folds share 1 of 3 identities" in identity_note(table, shared)
    assert "where 2 identities are new" in identity_note(table, shared)
    assert "folds keep the 2 identities apart" in identity_note(table, apart)


def test_identities_of_one_image_are_refused_before_training(herd, tmp_path):
    shutil.copytree(herd, tmp_path / "herd")
    table = tmp_path / "herd" / "train.csv"
    pd.read_csv(table).drop_duplicates("label").to_csv(table, index=False)
    with pytest.raises(TableError, match="no identity has two images, so nothing can be found out of fold"):
        prepare_tiny(config_of(tmp_path / "herd"))


# the whole way


def config_of(root: Path, *choices: str) -> dict:
    return tiny_config(root, "retrieval", *CHOICES, *choices)


@pytest.fixture(scope="module")
def runs(herd, tmp_path_factory) -> tuple[Path, Path, dict]:
    """Two finished runs of two folds that differ in seed, with predictions of the test, and their configuration."""
    folder = tmp_path_factory.mktemp("runs")
    config = config_of(herd)
    trained = [train_here(config_of(herd, f"seed={seed}"), folder / str(seed)) for seed in (1, 2)]
    tta = folder / "flips.yaml"
    tta.write_text("views: [identity, hflip]\nmean: arithmetic\n")
    for run in trained:
        predict_runs([run], Choices(tta=tta, workers=0, device="cpu"))
    return *trained, config


def oof_rows(run: Path) -> pd.DataFrame:
    return read_predictions(run / "oof").frame


def test_each_folds_model_embeds_the_whole_table(herd, runs):
    run, _, config = runs
    train, frame = pd.read_csv(herd / "train.csv"), oof_rows(run)
    assert len(frame) == 2 * len(train) and sorted(set(frame["fold"])) == [0, 1]
    for _, of_fold in frame.groupby("fold"):
        assert sorted(of_fold["id"]) == sorted(train["id"])
    columns = [f"e{number}" for number in range(128)]
    assert list(frame.columns[4:]) == columns
    np.testing.assert_allclose(np.linalg.norm(frame[columns], axis=1), 1, rtol=1e-5)
    header = json.loads((run / "oof" / "predictions.json").read_text())
    assert (header["kind"], header["columns"], header["split"]) == ("vectors", columns, "oof")
    prepared = prepare_tiny(config)  # a saved model has no head, and gives what is stored
    model = load_model(run / "fold1" / "model")
    assert model.network.net.identities is None
    ((_, values),) = Predictor([model], TTA(), workers=0).predict(prepared.source, [3])
    stored = frame[(frame["fold"] == 1) & (frame["id"] == prepared.table.ids[3])][columns].to_numpy()
    np.testing.assert_allclose(values[""][0], stored, atol=1e-5)


def answers_by_hand(run: Path, config: dict) -> tuple[list[list[tuple[str, float]]], list[str]]:
    """Ranked names of every row, from the rows of the other folds, and the truth."""
    prepared, frame = prepare_tiny(config), oof_rows(run)
    table, folds = prepared.table, prepared.fold_of_items
    label = [table.classes[code] for code in table.target[:, 0]]
    answers = []
    for row, fold in enumerate(folds):
        vectors = frame[frame["fold"] == fold].set_index("id").loc[table.ids].iloc[:, 3:].to_numpy()
        others = np.flatnonzero(folds != fold)
        found = by_hand(vectors[[row]], vectors[others], [label[n] for n in others])[0]
        answers.append(found)
    return answers, label


def test_a_run_is_scored_by_searching_among_the_other_folds(runs):
    run, _, config = runs
    answers, label = answers_by_hand(run, config)
    names = [[name for name, _ in answer] for answer in answers]
    known = [right in found for right, found in zip(label, names, strict=True)]
    assert sum(known) == 24  # the four of one image are new
    score = kaggle(
        [n for n, k in zip(names, known, strict=True) if k], [t for t, k in zip(label, known, strict=True) if k]
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["overall"] == pytest.approx(score) and metrics["metric"] == "MapAtK"
    evaluation = evaluate([run], resamples=100)
    assert evaluation.scores["score"].iloc[0] == pytest.approx(score)
    first = [found[0] == right for found, right, k in zip(names, label, known, strict=True) if k]
    assert any("4 images are not scored" in note for note in evaluation.notes)
    assert sum(first) < 24 and any("most confused: animal_" in note for note in evaluation.notes)
    assert "Worst rank of the right name" in (run / "report.html").read_text()


def test_a_report_shows_names(runs, tmp_path):
    evaluation = evaluate([runs[0], runs[1]], resamples=100)
    write_evaluation(tmp_path / "page.html", evaluation)
    assert "Largest errors" in (tmp_path / "page.html").read_text()
    assert evaluation.differences["metric"].tolist() == ["MapAtK", "RecallAtK"]


def test_a_killed_training_resumes_to_the_same_bytes(herd, tmp_path):
    config = config_of(herd, "fold=0")
    whole = train_folds(config, tmp_path / "whole")
    with watched(Stop(1, 1)), pytest.raises(OSError, match="killed"):
        train_folds(config, tmp_path / "killed")
    resumed = train_folds(config, tmp_path / "killed")
    for name in ("model/model.safetensors", "oof-0-of-1/predictions.parquet"):
        assert (whole / "fold0" / name).read_bytes() == (resumed / "fold0" / name).read_bytes()


def test_two_processes_embed_each_image_once(herd, tmp_path):
    config = config_of(herd, "fold=0", "epochs=1")
    run = train_folds(config, tmp_path, world=2)
    prepared = prepare_tiny(config)
    shards = [read_predictions(run / "fold0" / f"oof-{rank}-of-2") for rank in range(2)]
    frame = pd.concat([shard.frame for shard in shards])
    assert sorted(frame["id"]) == sorted(prepared.table.ids) and set(frame["fold"]) == {0}
    model = load_model(run / "fold0" / "model")
    values = np.stack([v[""][0, 0] for _, v in Predictor([model], TTA(), workers=0).predict(prepared.source)])
    found = search_oof(shards, prepared.table, prepared.fold_of_items, 3)
    alone = frame.set_index("id").loc[prepared.table.ids].iloc[:, 3:].to_numpy()
    np.testing.assert_allclose(alone, values, atol=1e-5)
    assert found.rows.tolist() == Holdout((0,)).held(prepared.fold_of_items).tolist()


def test_identities_that_folds_keep_apart_are_searched_among_all_others(herd, tmp_path):
    prepared_in = "data.prepared=" + str(tmp_path / "prepared")
    config = config_of(herd, "data.columns.group=label", "epochs=1", prepared_in)
    run = train_folds(config, tmp_path / "runs")
    prepared = prepare_tiny(config)
    table, folds = prepared.table, prepared.fold_of_items
    assert keep_apart(table.target[:, 0], folds)
    for fold in (0, 1):
        shard = read_predictions(run / f"fold{fold}" / "oof-0-of-1")
        vectors = shard.frame.set_index("id").loc[table.ids].iloc[:, 3:].to_numpy()
        rows = np.flatnonzero(folds == fold)
        names = by_hand(vectors[rows], vectors, table.target[:, 0], rows)
        ranks = [
            [name for name, _ in answer].index(table.target[row, 0]) + 1
            if table.target[row, 0] in dict(answer) else 0
            for answer, row in zip(names, rows, strict=True)
        ]  # fmt: skip
        stored = json.loads((run / f"fold{fold}" / "metrics.json").read_text())["score"]
        assert stored == pytest.approx(MapAtK().reduce(np.array(ranks)))


# decisions


def found_of(names, scores, truth) -> searching.Found:
    ranks = [row.index(right) + 1 if right in row else 0 for row, right in zip(names, truth, strict=True)]
    own = [s[r - 1] if r else -np.inf for s, r in zip(scores, ranks, strict=True)]
    return searching.Found(np.arange(len(names)), np.array(names), np.array(scores), np.array(ranks), np.array(own))


def test_new_is_named_where_the_similarity_falls_below_the_threshold():
    found = found_of([[3, 1, 2], [0, 2, 1], [1, 0, 3]], [[0.9, 0.5, 0.1], [0.4, 0.3, 0.2], [0.95, 0.9, 0.8]], [1, 9, 1])
    classes = list("abcd")
    naming = Naming(threshold=0.5)
    assert name_images(found, naming, classes, "new") == [["d", "b", "new"], ["new", "a", "c"], ["b", "a", "d"]]
    assert name_images(found, Naming(), classes, "new") == [["d", "b", "c"], ["a", "c", "b"], ["b", "a", "d"]]
    assert naming.ranks(found).tolist() == [2, 1, 1] and Naming(threshold=0.93).ranks(found).tolist() == [3, 1, 1]
    assert Naming().ranks(found)[1] > 10**9


def test_ranks_with_a_threshold_are_those_in_the_list_of_names():
    rng = np.random.default_rng(0)
    gallery, identity, queries = draw(30), np.arange(30) % 10, draw(40, 1)
    truth = rng.integers(0, 14, 40)
    found, classes = search(queries, gallery, identity, 5, truth), [f"n{number}" for number in range(14)]
    right = [classes[code] if code < 10 else "new" for code in truth]
    for threshold in (None, -1.0, 0.4, 0.6, 0.8, 2.0):
        naming = Naming(threshold=threshold)
        by_names = kaggle(name_images(found, naming, classes, "new"), right)
        assert MapAtK().reduce(naming.ranks(found)) == pytest.approx(by_names)
    tried = [MapAtK().reduce(Naming(threshold=t).ranks(found)) for t in np.arange(-1, 1, 0.002)]
    fitted = Naming().fit(MapAtK(), found)
    assert MapAtK().reduce(fitted.ranks(found)) >= max(tried) - 0.03  # of a grid ten times as fine


def test_a_folds_threshold_is_fitted_on_the_images_of_the_others(runs):
    truth, oof = read_ground_truth(runs[0]), read_predictions(runs[0] / "oof")
    outcomes = choose_naming(truth, oof).outcomes
    assert [outcome.name for outcome in outcomes] == ["nearest", "centres", "nearest+new", "centres+new"]
    for centres, outcome in ((False, outcomes[2]), (True, outcomes[3])):
        found = search_oof([oof], truth.table, truth.folds, 5, centres)
        for fold in (0, 1):
            held = truth.folds[found.rows] == fold
            own, others = (searching.Found(*(values[which] for values in found)) for which in (held, ~held))
            fitted = Naming(centres).fit(truth.metric, others)
            assert outcome.answers[held].tolist() == fitted.ranks(own).tolist()


def test_a_submission_has_five_names_a_row(herd, runs, tmp_path):
    run, _, config = runs
    made = make_submission(run, decision="nearest+new", out=tmp_path / "s.csv", ledger=tmp_path / "l.csv")
    file = pd.read_csv(tmp_path / "s.csv", dtype=str)
    names = {*pd.read_csv(herd / "train.csv")["label"], "new_individual"}
    assert list(file) == ["id", "label"] and sorted(file["id"]) == sorted(pd.read_csv(herd / "test.csv")["id"])
    lists = [cell.split(" ") for cell in file["label"]]
    assert all(len(set(each)) == 5 and set(each) <= names for each in lists)
    # by hand: the mean similarity of both folds' models, the nearest image of each name, then the threshold
    prepared = prepare_tiny(config)
    test = read_predictions(run / "predictions" / "test-flips").frame
    similar = 0
    for fold in (0, 1):
        sides = [frame[frame["fold"] == fold].set_index("id") for frame in (test, oof_rows(run))]
        query, gallery = (
            s.loc[i].iloc[:, 3:].to_numpy() for s, i in zip(sides, (file["id"], prepared.table.ids), strict=True)
        )
        similar = similar + query @ gallery.T / 2
    label = np.array(prepared.table.classes)[prepared.table.target[:, 0]]
    for row, names_of_row in zip(similar, lists, strict=True):
        scores = {name: row[label == name].max() for name in prepared.table.classes}
        scores["new_individual"] = made.chosen.decision.threshold
        expected = sorted(scores, key=lambda name: -scores[name])[:5]
        assert names_of_row == expected
    shares = made.chosen.shares
    assert shares["ground truth"][0] == pytest.approx(4 / 28) and set(shares) >= {"test, one model", "test"}
    assert shares["test"][0] == pytest.approx(np.mean([each[0] == "new_individual" for each in lists]))


def test_names_that_a_submission_cannot_tell_apart_are_refused(runs, tmp_path):
    for options, message in (
        ({"separator": "_"}, "contains the separator '_': choose another --separator"),
        ({"new": "animal_000"}, "'animal_000' is a name in the training table"),
    ):
        with pytest.raises(Refusal, match=message):
            make_submission(runs[0], options=options, out=tmp_path / "s.csv", ledger=tmp_path / "l.csv")


def test_where_nobody_is_new_no_threshold_is_fitted(runs):
    truth, oof = read_ground_truth(runs[0]), read_predictions(runs[0] / "oof")
    identity = truth.table.target[:, 0]
    twice = np.isin(identity, np.flatnonzero(np.bincount(identity) > 1))
    folds = np.where(twice, truth.folds, -1)
    object.__setattr__(truth, "folds", folds)
    chosen = choose_naming(truth, oof)
    assert [outcome.name for outcome in chosen.outcomes] == ["nearest", "centres"]
    assert chosen.shares["ground truth"][0] == 0


def test_several_sources_are_put_side_by_side(runs, tmp_path):
    comparison, written = ensemble([runs[0], runs[1]], tmp_path / "out", use="mean")
    assert comparison.names == ["single", "mean"] and len(written) == 2
    truth = read_ground_truth(tmp_path / "out")
    similar = []
    for source in (runs[0], runs[1], tmp_path / "out"):
        predictions = read_predictions(source / "oof")
        check_predictions(predictions, truth)
        of_fold = predictions.frame[predictions.frame["fold"] == 1]
        vectors = model_vectors(of_fold, predictions.columns, truth.table.ids)
        similar.append(vectors @ vectors.T)
    np.testing.assert_allclose(similar[2], (similar[0] + similar[1]) / 2, atol=1e-5)
    found = search_oof([read_predictions(tmp_path / "out" / "oof")], truth.table, truth.folds, 5)
    assert comparison.overall[1] == pytest.approx(MapAtK().reduce(found.rank))
    made = make_submission(tmp_path / "out", out=tmp_path / "s.csv", ledger=tmp_path / "l.csv")
    assert len(pd.read_csv(made.path)) == 14
    with pytest.raises(Refusal, match="there is no method geometric for retrieval .*; there are single, mean"):
        ensemble([runs[0], runs[1]], tmp_path / "other", use="geometric")


# refusals


def test_what_makes_no_sense_is_refused_by_name(herd, runs, tmp_path):
    run, _, config = runs
    with pytest.raises(Refusal, match="a bundle of retrieval would need all training images"):
        build_bundle([run], tmp_path / "bundle")
    truth = read_ground_truth(run)
    with pytest.raises(Refusal, match="need probabilities, which the task retrieval does not predict"):
        check_probabilities(truth)
    prepared = prepare_tiny(config)
    for fold in ("full", "pairs"):
        with pytest.raises(Refusal, match="retrieval needs out-of-fold vectors|needs three"):
            choose_parts(fold, [], prepared)
    with pytest.raises(Refusal, match="--table is not for retrieval"):
        evaluate([run], labelled=herd / "train.csv")
    with pytest.raises(Refusal, match="leave it out of the table"):
        TASKS["retrieval"].fallback(None, 2)
    assert "loss ArcFace is for retrieval" in task_problems("multiclass", config["loss"])[0]


def test_vectors_that_do_not_fit_the_table_are_refused(runs, tmp_path):
    truth, whole = read_ground_truth(runs[0]), read_predictions(runs[0] / "oof")
    missing = whole.frame["id"] == truth.table.ids[2]
    with pytest.raises(PredictionsError, match="1 ids lack some of the 2 members"):
        write_predictions(tmp_path / "one", whole.frame[~missing | (whole.frame["fold"] == 0)], whole.header)
    write_predictions(tmp_path / "less", whole.frame[~missing], whole.header)
    with pytest.raises(PredictionsError, match=rf"have no vector of fold 1: {truth.table.ids[2]}"):
        check_predictions(read_predictions(tmp_path / "less"), truth)
    zero = whole.frame.copy()
    zero.loc[0, whole.columns] = 0
    with pytest.raises(PredictionsError, match="have vectors of length 0"):
        write_predictions(tmp_path / "zero", zero, whole.header)
    test = read_predictions(runs[0] / "predictions" / "test-flips")
    lone = whole.frame[whole.frame["fold"] == 0]
    write_predictions(tmp_path / "lone", lone, whole.header)
    ids = test.frame["id"].drop_duplicates().tolist()
    with pytest.raises(PredictionsError, match="there are no vectors of fold 1"):
        search_test(read_predictions(tmp_path / "lone"), test, truth.table, ids, 5)


def test_out_of_fold_vectors_of_other_views_are_predicted_whole(runs, tmp_path):
    """predict.py --oof embeds every image by every fold's model, and what was interrupted resumes."""
    run, _, config = runs
    tta = tmp_path / "flips.yaml"
    tta.write_text("views: [identity, hflip]\nmean: arithmetic\n")
    folders = predict_runs([run], Choices(tta=tta, oof=True, workers=0, device="cpu"), out=tmp_path / "oof-flips")
    predictions = read_predictions(folders[0])
    check_predictions(predictions, read_ground_truth(run))
    assert len(predictions.frame) == 2 * len(prepare_tiny(config).table)
    assert predictions.header.folds_hash == folds_hash(prepare_tiny(config).folds)

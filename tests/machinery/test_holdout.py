"""Models of every row: trained on all, scored on nothing, and members of whatever predicts with a run."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import prepare_tiny, tiny_config, train_here

from foldwise.bundle.sources import open_sources
from foldwise.config import followers
from foldwise.data.holdout import FULL, Holdout, choose_holdouts
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.store import read_predictions
from foldwise.settings import find_choice
from foldwise.training.plan import choose_parts

FOLDS = np.array([1, -1, 0, 2, 0])


@pytest.mark.parametrize(
    ("chosen", "names", "held"),
    [
        ("all", ["fold0", "fold1", "fold2"], [[2, 4], [0], [3]]),
        (2, ["fold2"], [[3]]),
        ([2, 0, 2], ["fold0", "fold2"], [[2, 4], [3]]),
        ("full", ["full"], [[]]),
        ("pairs", ["without-0-1", "without-0-2", "without-1-2"], [[0, 2, 4], [2, 3, 4], [0, 3]]),
    ],
)
def test_what_is_held_out_is_not_trained_and_all_else_is(chosen, names, held):
    parts = choose_holdouts(chosen, [0, 1, 2])
    assert [part.name for part in parts] == names
    assert [part.held(FOLDS).tolist() for part in parts] == held
    for part in parts:
        assert sorted([*part.held(FOLDS), *part.trained(FOLDS)]) == list(range(5))


@pytest.mark.parametrize("chosen", [3, [0, 5], [], "some", "pairs"])
def test_what_does_not_exist_is_refused(chosen):
    with pytest.raises(Refusal, match=r"the folds are \[0, 1\]"):
        choose_holdouts(chosen, [0, 1])


def test_what_follows_a_validation_cannot_be_trained_without_one(data):
    config = tiny_config(data, "multiclass", "fold=full", "top_k=2", "scheduler=plateau")
    with pytest.raises(Refusal, match="fold=full: top_k=2 depends.*\nfold=full: scheduler depends"):
        choose_parts(config["fold"], followers(config), prepare_tiny(config))


@pytest.fixture(scope="module")
def world(data, tmp_path_factory) -> tuple[Path, Path]:
    """A run of a model of every row alone, and one that has those of the folds too."""
    folder = tmp_path_factory.mktemp("runs")
    alone = tiny_config(data, "multiclass", "fold=full", "epochs=1", "seed=1")
    both = tiny_config(data, "multiclass", "epochs=1")
    runs = train_here(alone, folder), train_here(both, folder)
    assert train_here(both | {"fold": "full"}, folder) == runs[1]  # the same run: its epochs are those of the folds
    predict_runs(runs, Choices(tta=find_choice("tta", "none"), workers=0, device="cpu"))
    return runs


def members(predictions: Path) -> set[int]:
    return {member["fold"] for member in read_predictions(predictions).header.members}


def test_it_predicts_beside_the_folds_or_alone_and_has_no_score(world):
    alone, both = world
    assert members(alone / "predictions" / "test-none") == {FULL}
    assert members(both / "predictions" / "test-none") == {FULL, 0, 1}
    assert read_json(alone / "full" / "metrics.json")["score"] is None
    assert pd.read_csv(alone / "full" / "history.csv")["score"].isna().all()
    assert not (alone / "oof").exists() and not (alone / "metrics.json").exists()
    assert members(both / "oof") == {0, 1}
    with pytest.raises(Refusal, match="is a full fit"):
        predict_runs([alone], Choices(tta=find_choice("tta", "none"), oof=True, workers=0, device="cpu"))


def test_it_is_a_member_of_ensembles_and_bundles(world, tmp_path):
    run = world[1]
    other = Path(shutil.copytree(run, tmp_path / "other"))
    ensemble([run, other], tmp_path / "out", use="mean")
    ours, theirs = (read_predictions(each / "predictions" / "test-none").frame for each in (tmp_path / "out", run))
    for fold in (FULL, 0, 1):
        mean, own = (frame[frame["fold"] == fold].set_index("id")["blue"] for frame in (ours, theirs))
        np.testing.assert_allclose(mean.loc[own.index], own, atol=1e-6)
    assert open_sources([run], "oof").runs[0].weights == {FULL: 1.0, 0: 1.0, 1: 1.0}
    shutil.rmtree(other / "full")
    shutil.rmtree(other / "predictions")
    predict_runs([other], Choices(tta=find_choice("tta", "none"), workers=0, device="cpu"))
    with pytest.raises(Refusal, match="have a full fit .*: predict both with it"):
        ensemble([run, other], tmp_path / "out2", use="mean")


def test_the_decisions_of_the_folds_submit_it(world, tmp_path, command, monkeypatch):
    """As docs/recipes.md has it: predicted into a run of folds with the same settings."""
    alone, both = world
    shutil.copytree(both, tmp_path / "both")
    choices = Choices(tta=find_choice("tta", "none"), workers=0, device="cpu")
    predict_runs([alone], choices, out=tmp_path / "both" / "predictions" / "all_data")
    monkeypatch.chdir(tmp_path)
    code, _, error = command("submit.py", "make", "both", "--test", "all_data", "--decision", "argmax")
    assert (code, error) == (0, "")
    answers = pd.read_csv("submissions/both-all_data.csv").set_index("id")["label"]
    said = read_predictions(alone / "predictions" / "test-none").frame.set_index("id")[["blue", "green", "red"]]
    assert (said.idxmax(axis=1).loc[answers.index] == answers).all()


def test_each_model_of_a_run_begins_from_other_weights():
    from foldwise.training.fold import initial_seed

    parts = [*choose_holdouts("all", [0, 1, 2]), *choose_holdouts("pairs", [0, 1, 2]), Holdout(())]
    assert len({initial_seed(7, part) for part in parts}) == len(parts)

"""Averaged weights: the average and its statistics, the rule and what it may see, and a run that all commands take."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import log_loss
from tiny import CLASSES, make_spec, random_model, tiny_config, train_scored, write_data
from torch.optim.swa_utils import update_bn

from foldwise.data.batches import Packed
from foldwise.errors import Refusal
from foldwise.files import sha256_file
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.predictions.store import read_predictions
from foldwise.settings import find_choice
from foldwise.training import averaged_run
from foldwise.training.averaged_run import average_weights, print_averaging
from foldwise.training.averaging import average_states, choose_counts, find_snapshots, frozen_norms
from foldwise.training.ema import reestimate_batch_norm

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def network(seed):
    torch.manual_seed(seed)
    net = random_model(make_spec("multiclass", CLASSES), seed).network
    with torch.no_grad():
        net.train()({"image": torch.rand(8, 3, 32, 32)})  # statistics of its own
    return net.eval()


def test_the_average_is_the_mean_of_floats_and_the_newest_counters():
    states = [network(seed).net.state_dict() for seed in range(3)]
    for number, state in enumerate(states):
        state["net.bn1.num_batches_tracked"] = torch.tensor(10 - number)
    average = average_states(states)
    for name, value in average.items():
        assert value.dtype == states[0][name].dtype
        if value.is_floating_point():
            np.testing.assert_allclose(value, np.mean([state[name].numpy() for state in states], axis=0), atol=1e-6)
    assert average["net.bn1.num_batches_tracked"] == 10


def test_statistics_are_those_of_torch_but_for_norms_that_stay_frozen():
    net = network(0)
    images = [torch.rand(4, 3, 32, 32) for _ in range(3)]
    expected = deepcopy(net)
    update_bn([{"image": image} for image in images], expected)
    batches = [Packed({"image": image}, torch.zeros(4, 0), torch.zeros(4, 0), ((), ())) for image in images]
    free = deepcopy(net)
    reestimate_batch_norm(free, batches, CPU)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(free.state_dict()[name], value)
    held = deepcopy(net)
    reestimate_batch_norm(held, batches, CPU, frozen=["net.bn1"])
    changed = [name for name, value in held.state_dict().items() if not torch.equal(value, net.state_dict()[name])]
    assert changed and not any(name.startswith("net.net.bn1.") for name in changed)


def test_norms_are_frozen_whose_statistics_no_snapshot_moved():
    first, second = (network(seed).net.state_dict() for seed in range(2))
    norms = {name.removesuffix(".running_mean") for name in first if name.endswith(".running_mean")}
    assert frozen_norms([first]) == norms and frozen_norms([first, second]) == set()
    second["net.bn1.running_mean"] = first["net.bn1.running_mean"]
    assert frozen_norms([first, second]) == {"net.bn1"}


def test_a_fold_does_not_influence_its_own_rule():
    scores = {1: {0: 0.9, 1: 0.2, 2: 0.3}, 2: {0: 0.1, 1: 0.4, 2: 0.8}, 3: {0: 0.5, 1: 0.3, 2: 0.7}}
    assert choose_counts(scores, True) == {0: 2, 1: 1, 2: 1}
    assert choose_counts(scores, False) == {0: 1, 1: 2, 2: 2}
    for fold in range(3):
        other = {n: of_n | {fold: float(n == 3)} for n, of_n in scores.items()}
        assert choose_counts(other, True)[fold] == choose_counts(scores, True)[fold]


def test_of_equal_rules_the_smallest_and_folds_without_score_are_silent():
    # Added up one after the other, the three differ in the last digit.
    assert choose_counts({1: {0: 0, 1: 0.9, 2: 0.8, 3: 0.7}, 2: {0: 0, 1: 0.7, 2: 0.8, 3: 0.9}}, True)[0] == 1
    assert choose_counts({1: {0: 0, 1: 0.7, 2: 0.8, 3: 0.9}, 2: {0: 0, 1: 0.9, 2: 0.8, 3: 0.7}}, True)[0] == 1
    nan = float("nan")
    assert choose_counts({1: {0: nan, 1: 0.1, 2: 0.5}, 2: {0: nan, 1: 0.2, 2: 0.1}}, True) == {0: 1, 1: 1, 2: 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three folds of three snapshots, by a metric without ties."""
    folder = tmp_path_factory.mktemp("cycles")
    choices = ["phases=cycles", "epochs=3", "data.folds=3", "metric=log_loss", "optimizer.lr=0.01"]
    return train_scored(tiny_config(write_data(folder / "data"), "multiclass", *choices), folder / "runs")


@pytest.fixture(scope="module")
def averaged(run):
    out = run.with_name(f"{run.name}-averaged")
    return average_weights(run, out, "cpu"), out


def score(run, frame):
    """Mean over the ids of the log loss of probabilities that are averaged over the snapshots."""
    mean = frame.groupby("id")[CLASSES].mean()
    truth = pd.read_csv(run.parents[1] / "data" / "train.csv").set_index("id")["label"]
    return log_loss(truth[mean.index], mean, labels=CLASSES)


def test_every_number_can_be_found_again(run, averaged):
    result, out = averaged
    own, new = read_predictions(run / "oof").frame, read_predictions(out / "oof").frame
    assert new["id"].tolist() == pd.read_csv(run.parents[1] / "data" / "train.csv")["id"].tolist()
    assert result.overall == pytest.approx(score(run, new), abs=1e-6)
    assert result.run == pytest.approx(score(run, own), abs=1e-6)
    assert result.newest == pytest.approx(score(run, own[own["snapshot"] == "cycle3"]), abs=1e-6)
    table = pd.DataFrame(result.scores)
    for fold, n in result.chosen.items():
        assert n == table.drop(index=fold).mean().idxmin()
        assert result.per_fold[fold] == pytest.approx(table.loc[fold, n])
    assert max(result.chosen.values()) > 1, "nothing was averaged, so the tests below see nothing"


def test_models_are_averages_of_the_snapshots_that_the_record_names(run, averaged):
    _, out = averaged
    for fold, names in json.loads((out / "averaging.json").read_text())["snapshots"].items():
        parts = [load_file(run / f"fold{fold}" / "snapshots" / name / "model.safetensors") for name in names]
        model = load_file(out / f"fold{fold}" / "model" / "model.safetensors")
        for name, value in model.items():
            if value.is_floating_point() and (len(parts) == 1 or "running_" not in name):
                np.testing.assert_allclose(value, sum(part[name].numpy() for part in parts) / len(parts), atol=1e-6)


def test_predict_takes_it_as_a_run_and_predicts_the_same(averaged, tmp_path):
    _, out = averaged
    tta = find_choice("tta", "none")
    (again,) = predict_runs([out], Choices(tta=tta, oof=True, workers=0, device="cpu"), out=tmp_path / "oof")
    one, other = read_predictions(out / "oof"), read_predictions(again)
    assert one.header.run == out.name and one.header.members == other.header.members
    frames = [part.frame.sort_values("id", ignore_index=True) for part in (one, other)]
    pd.testing.assert_frame_equal(*frames, check_exact=False, atol=1e-5)


def test_interrupted_it_resumes_and_ends_the_same(run, averaged, tmp_path, monkeypatch):
    made, predict = [], averaged_run.predict_held_out

    def predict_four(*arguments, **named):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(arguments[-2:])
        predict(*arguments, **named)

    out = tmp_path / averaged[1].name
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(averaged_run, "predict_held_out", predict_four)
        average_weights(run, out, "cpu")
    assert not out.exists()
    monkeypatch.setattr(averaged_run, "predict_held_out", lambda *a, **k: (made.append(a[-2:]), predict(*a, **k)))
    assert average_weights(run, out, "cpu").scores == averaged[0].scores
    assert len(made) == len(set(made)) == 9
    for name in ("oof/predictions.parquet", "fold0/model/model.safetensors", "averaging.json"):
        assert (out / name).read_bytes() == (averaged[1] / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_whatever_is_missing_is_listed_at_once(run, tmp_path):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    shutil.rmtree(broken / "fold0" / "snapshots" / "cycle1")
    shutil.rmtree(broken / "fold1" / "snapshots" / "cycle2")
    (broken / "fold2" / "metrics.json").unlink()
    with pytest.raises(Refusal) as error:
        average_weights(broken, tmp_path / "out", "cpu")
    for part in (
        "fold 0 lacks the snapshots cycle1",
        "fold 1 lacks the snapshots cycle2",
        "folds [2] are not finished",
    ):
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_runs_without_snapshots_or_other_folds_are_refused(run):
    config = averaged_run.read_config(run)
    with pytest.raises(Refusal, match="so it takes two"):
        find_snapshots(run, config, [0], False)
    config["phases"] = {"train": {"epochs": 2}}
    with pytest.raises(Refusal, match="phases=cycles or top_k=3"):
        find_snapshots(run, config, [0, 1], False)


def test_a_fold_whose_average_is_nan_is_named(run, tmp_path):
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    folder = broken / "fold1" / "snapshots" / "cycle2"
    state = load_file(folder / "model.safetensors")
    state["net.bn1.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors")
    spec = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(spec | {"sha256": sha256_file(folder / "model.safetensors")}))
    with pytest.raises(Refusal, match="fold 1: the mean of the snapshots cycle3, cycle2 "):
        average_weights(broken, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_masks_and_the_best_epochs(data, tmp_path, capsys):
    config = tiny_config(data, "segmentation", "top_k=2", "epochs=2", "optimizer.lr=0.01")
    run = train_scored(config, tmp_path)
    result = average_weights(run, tmp_path / "out", "cpu")
    for fold, names in find_snapshots(run, config, [0, 1], True).items():
        history = pd.read_csv(run / f"fold{fold}" / "history.csv").sort_values("score", ascending=False)
        assert names == [f"epoch{epoch:03d}" for epoch in history["epoch"][:2]]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["overall"] == result.overall and metrics["chosen_on_own_fold"] is True
    assert len(read_predictions(tmp_path / "out" / "oof").frame) == 24
    print_averaging(result)
    assert "optimistic" in capsys.readouterr().out


def test_the_command_prints_what_was_written_or_what_is_wrong(run, command):
    code, said, _ = command("tools/average_weights.py", run, "--device", "cpu", "--out", run.with_name("by-command"))
    assert code == 0 and "out of fold, the averaged weights" in said and "next      python evaluate.py" in said
    code, _, error = command("tools/average_weights.py", run, "--out", run.with_name("by-command"))
    assert code == 2 and "by-command exists and is not overwritten" in error
    code, _, error = command("tools/average_weights.py", run.with_name("typo"))
    assert code == 2 and error.startswith("error: ") and "typo is not a run" in error

"""tools/tune.py: finds a planted mistake, resumes after a kill, and says when nothing is better."""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("optuna")

from groups import wait_for
from tiny import ROOT, prepare_tiny

from foldwise.command import duration
from foldwise.config import compose_config, resolve_config
from foldwise.errors import Refusal
from foldwise.settings import read_yaml
from foldwise.tuning import outcome
from foldwise.tuning.space import Choices, Range, read_space
from foldwise.tuning.trials import next_trial, open_study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
TRIALS = 6


@pytest.fixture
def base(data, tmp_path, monkeypatch):
    """Overrides of a training of a second, in a folder where tune.py and what it starts work as plain forks."""
    from foldwise.training import run
    from foldwise.tuning import trials, tune

    monkeypatch.setattr(trials, "COMPARED", 2)
    for module in (run, tune):
        monkeypatch.setattr(module, "start_server", lambda: multiprocessing.get_context("fork"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outcome, "OWNER", tmp_path / "configs")
    (tmp_path / "solution").symlink_to(ROOT / "solution")
    words = [
        "experiment=baseline",
        "data=competition",
        f"data.root={data}",
        f"data.table={data}/train.csv",
        f"data.prepared={tmp_path}/prepared",
        "data.image_size=32",
        "data.folds=2",
        "data.workers=0",
        "augmentation=none",
        "metric=log_loss",
        "batch_size=4",
        "epochs=2",
        "trainer=cpu",
        "logger=none",
    ]
    prepare_tiny(resolve_config(compose_config(words)))
    return words


def write_space(text: str) -> Path:
    path = Path("space.yaml")
    path.write_text(text)
    return path


def trials_of(folder: Path) -> pd.DataFrame:
    (path,) = folder.glob("tuning/*/trials.csv")
    return pd.read_csv(path)


def test_a_planted_learning_rate_is_found_also_after_a_kill(base, command, tmp_path, monkeypatch):
    space = write_space("small: {fold: 0}\nspace: {optimizer.lr: {factor: 100}, mixing: [none, mixup]}")
    words = [*base, "optimizer.lr=0.12", "--trials", TRIALS, "--space", space.resolve()]

    def start_in(folder):
        folder.mkdir()
        (folder / "solution").symlink_to(ROOT / "solution")
        monkeypatch.chdir(folder)

    start_in(tmp_path / "first")
    code, said, errors = command("tools/tune.py", *words)
    assert code == 0, errors
    (experiment,) = (tmp_path / "configs/experiment").glob("*")
    assert experiment.name == "baseline_tuned.yaml" and "python train.py experiment=baseline_tuned" in said
    assert "optimizer.lr=0.12" not in said.partition("next  ")[2]
    found = read_yaml(experiment)
    assert found["defaults"][0] == "baseline" and found["optimizer"]["lr"] < 0.12 / 4, said
    frame = trials_of(tmp_path / "first")
    assert frame["optimizer.lr"][0] == 0.12 and frame["score"].min() < frame["score"][0] / 2
    assert "pruned" in frame["state"].tolist()
    assert not list(Path("tuning").glob("*/[0-9]*"))

    start_in(tmp_path / "second")
    killed = multiprocessing.get_context("fork").Process(target=command, args=("tools/tune.py", *words))
    killed.start()
    wait_for(lambda: len(list(Path("tuning").glob("*/2/*/fold0/last.ckpt"))) == 1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    time.sleep(1.5)  # its fold ends with it
    code, said, errors = command("tools/tune.py", *words, "--trials", 4)
    assert code == 0 and "2 of 4 trials" in said, (said, errors)
    again = trials_of(tmp_path / "second")
    names = ["state", "score", "optimizer.lr", "mixing"]
    pd.testing.assert_frame_equal(frame[names][:4], again[names])


def test_a_space_without_effect_ends_in_not_better(base, command):
    """Seeds: the best is the luckiest, and the confirmation sees that."""
    space = write_space("small: {fold: 0}\nspace: {seed: [1, 2]}")
    _, said, _ = command("tools/tune.py", *base, "--space", space, "--budget", "0.001s")
    assert "no trial was finished; raise --budget" in said
    code, said, errors = command("tools/tune.py", *base, "--trials", 3, "--space", space, "--confirm", 1)
    assert code == 0 and "verdict  not better: LogLoss" in said, (said, errors)
    assert not Path("configs").exists() and "not better" in next(Path("tuning").glob("*/report.html")).read_text()


@pytest.mark.parametrize("storage", [None, "sqlite:///study.db"])
def test_a_trial_of_a_lost_machine_is_repeated(base, storage):
    space = read_space(write_space("space: {optimizer.lr: {factor: 10}}"), base)
    study = open_study("study", storage, Path("tuning"), greater_is_better=True, epochs=3)

    def ask():
        trial = next_trial(study, space, Path("tuning"), seed=0, most=4)
        return trial, trial and space.suggest(trial)

    first, start = ask()
    second, values = ask()
    assert start == space.start and values != start
    second.set_user_attr("worker", ["another", 1])
    assert ask()[1] not in (start, values)  # it may still run
    second.set_user_attr("seen", time.time() - 1000)
    repeated, again = ask()
    assert again == values and repeated.user_attrs["folder"] == second.number
    study.tell(first, 0.5)
    assert ask()[1] not in (start, values)
    assert ask()[0] is None  # as many as were asked for


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("studies", "--storage is no database as in"),
        ("sqlite:////nowhere/a.db", "unable to open"),
        ("postgresql+pg8000://a@b/c", "driver"),
    ],
)
def test_a_database_that_cannot_be_opened_is_refused(storage, reason, tmp_path):
    with pytest.raises(Refusal, match=reason):
        open_study("study", storage, tmp_path, greater_is_better=True, epochs=3)


def test_a_space_is_read_with_the_values_of_the_experiment(base):
    space = write_space(
        """
        small: {fold: 0, data.image_size: half}
        space:
          optimizer.lr: {factor: 10}
          batch_size: {low: 8, high: 16}
          epochs: {factor: 2}
          loss.label_smoothing: {low: 0.1, high: 0.2}
          loss.gamma: {low: 1e-1, high: 4}
          loss: [focal, bce]
          ema: [0.99]
        """
    )
    found = read_space(space, base, ["seed=7"])
    smoothing = Range("loss.label_smoothing", 0.0, 0.2, 0.0)
    assert found.dimensions == (
        Range("optimizer.lr", 0.0004, 0.04, 0.004, log=True),
        Range("batch_size", 4, 16, 4),
        Range("epochs", 1, 4, 2, log=True),
        smoothing,
        Choices("loss", ("cross_entropy", "focal"), "cross_entropy"),
        Choices("ema", ("null", "0.99"), "null"),
    )
    assert found.half == ""  # 32 pixels are small already
    config = found.config(found.start | {"ema": "0.99"})
    assert (config["fold"], config["seed"], config["ema"], config["fold_workers"]) == (0, 7, 0.99, 1)
    assert read_space(space, [*base, "data.image_size=[224,300]"]).half == "data.image_size=[96,128]"
    assert [note for note in found.notes if note.startswith("loss.gamma")]
    assert any("bce" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {optimizer.rate: [1, 2]}", "no setting 'optimizer.rate'"),
        ("space: {optimizer.lr: {factor: 1}}", "factor above 1"),
        ("space: {optimizer.lr: {factor: 0}}", "factor above 1"),
        ("space: {optimizer.lr: {factor: .nan}}", "factor above 1"),
        ("space: {optimizer.lr: {low: 0.1, high: .inf}}", "low must be below high"),
        ("space: {optimizer.lr: {factor: 10}", "cannot be read as YAML"),
        ("small: [a]\nspace: {optimizer.lr: {factor: 10}}", "small is \\['a'\\]"),
        ("space: {optimizer.lr: {low: 1, high: 0}}", "low must be below high"),
        ("space: {optimizer.lr: {low: a, high: b}}", "must be numbers"),
        ("space: {optimizer.lr: 0.1}", "it must be a list of choices"),
        ("space: {augmentation: [none, heavier]}", "there is no augmentation=heavier"),
        ("space: {loss.gamma: [1, 2]}", "nothing that this experiment can vary"),
        ("space: {1: [a, b]}", "no setting '1'"),
        ("space: {}", "has no space"),
        ("search: {}", "unknown search"),
    ],
)
def test_a_wrong_space_is_refused(base, text, message):
    with pytest.raises(Refusal, match=message):
        read_space(write_space(text), base)


def test_a_setting_is_varied_or_set(base):
    with pytest.raises(Refusal, match="it varies what --small optimizer.lr=3 sets"):
        read_space(write_space("space: {optimizer.lr: {factor: 10}}"), base, ["optimizer.lr=3"])
    with pytest.raises(Refusal, match="run=runs/a names a run that is trained already"):
        read_space(write_space("space: {optimizer.lr: {factor: 10}}"), [*base, "run=runs/a"])


def test_times_are_read():
    assert [duration(text) for text in ("90s", "1.5m", "6h", "2d")] == [90, 90, 21600, 172800]
    for text in ("6", "h", "0h", "6 h"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a time"):
            duration(text)

"""Examples on the whole way, by the commands that a user types: two folds, killed and resumed, to a rehearsed bundle.

`make test` takes three of them, `make test-all` takes all.
"""

import importlib.util
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import Render, Run, kill_after_first_epoch
from test_examples import TRIED, render_examples

ALWAYS = {"auxiliary", "clips", "heads"}
EXPORTED = {"auxiliary", "clips", "metadata"}
HEADS = [  # built-in heads: a mask, which is kept, and classes that some rows lack
    "heads",
    "~outputs.background",
    "+outputs.mask={task: segmentation, target: mask, classes: [background,thing], weight: 0.5}",
    "+outputs.kind={task: multiclass, target: kind, weight: 0.3}",
]
WITHOUT_EXAMPLE = {"teacher": [["teacher", "module.teacher=weights/teacher/full/model"]], "heads": [HEADS]}
SMALL = [
    *("data.workers=0", "batch_size=4", "epochs=2", "trainer=cpu"),
    *("trainer.limit_train_batches=2", "logger=none"),
]
CASES = [
    pytest.param(experiment, id=f"{experiment[0]}-{number}", marks=[] if name in ALWAYS else [pytest.mark.slow])
    for name, experiments in (TRIED | WITHOUT_EXAMPLE).items()
    for number, experiment in enumerate(experiments)
]
NUMBERS = ["baseline", "task=regression", "metric=rmse", "data.columns.target=[age,size]"]  # age has gaps
CASES.append(pytest.param(NUMBERS, id="regression"))


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_examples(render, tmp_path_factory.mktemp("way"), "data/competition")


def train_teacher(folder: Path, run_forked: Run) -> None:
    """Leave a short baseline of every row in weights/teacher, and nothing else."""
    options = ["experiment=baseline", "data=competition", "data.image_size=32", "data.folds=2", "fold=full"]
    run_forked(["prepare.py", "--data", "competition", "data.folds=2"], folder)
    run = made(folder, ["train.py", *options, *SMALL], run_forked)
    shutil.move(run, folder / "weights" / "teacher")
    shutil.rmtree(folder / "data/competition/prepared")


def made(folder: Path, command: list[str], run_forked: Run) -> Path:
    """Run a training; the one run in `runs/`."""
    run_forked(command, folder)
    (run,) = (folder / "runs").glob("[!.]*")
    return run


def kept(run: Path) -> dict[str, bytes]:
    """The models and out-of-fold predictions of a run, of each output."""
    files = [path for pattern in ("*.safetensors", "*.parquet", "*.npz") for path in run.rglob(pattern)]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("choices", CASES)
def test_an_example_goes_the_whole_way(choices: list[str], repository: Path, tmp_path: Path, run_forked: Run) -> None:
    work, straight = tmp_path / "work", tmp_path / "straight"
    shutil.copytree(repository, work)
    if choices[0] == "teacher":
        train_teacher(work, run_forked)
    grouped = [] if any("columns.group" in word for word in choices) else ["data.columns.group=series"]
    data = [*(word for word in choices if word.startswith("data.")), *grouped, "data.image_size=32", "data.folds=2"]
    own = [f"experiment={choices[0]}", *choices[1:], *data]
    training = ["train.py", "data=competition", *own, *SMALL]
    run_forked(["prepare.py", *own], work)
    shutil.copytree(work, straight)

    kill_after_first_epoch(work, training)
    run = made(work, training, run_forked)
    files = kept(run)
    assert files and files == kept(made(straight, [*training, "preflight=false"], run_forked)), (
        "the resumed run is not the uninterrupted one"
    )

    # The baseline beside it, where each row is a picture of one class; else the example with another seed.
    oof, rows = run / "oof" / "predictions.parquet", pd.read_csv(work / "data/competition/train.csv")["id"]
    plain = oof.exists() and pd.read_parquet(oof)["id"].isin(rows).all()
    plain = plain and not any("data.columns.image" in word for word in choices)
    plain = plain and choices[0] != "baseline"
    other = ["experiment=baseline", *data] if plain else [*own, "seed=1"]
    run_forked(["train.py", "data=competition", *other, *SMALL, "preflight=false"], work)
    (second,) = {*(work / "runs").glob("[!.]*")} - {run}

    sources = [run, *(run / "outputs").glob("*")]
    for each in (run, second):
        run_forked(["predict.py", str(each), "--tta", "flips", "--workers", "0"], work)
    run_forked(["predict.py", str(run), "--oof", "--tta", "flips", "--workers", "0"], work)
    for source in sources:
        run_forked(["evaluate.py", str(source), "--resamples", "100"], work)
        run_forked(["submit.py", "make", str(source), "--ledger", f"{source.name}.csv"], work)
        assert (source / "evaluation.html").exists() and (work / f"{source.name}.csv").exists()
    assert len(list((work / "submissions").iterdir())) >= len(sources)
    run_forked(["ensemble.py", str(run), str(second), "--out", "ensembles/both"], work)

    if choices[0] in EXPORTED and importlib.util.find_spec("onnxscript"):  # it compares the graph with torch
        run_forked(["export.py", str(run), "--threads", "1", "--out", "exports/first"], work)
        assert (work / "exports/first/model.onnx").exists()

    run_forked(["bundle.py", str(run), "--out", "bundle", "--oof", "oof-flips"], work)
    rehearsal = ["bundle.py", "bundle", "--rehearse", "--table", "data/competition/test.csv", "--rows", "48"]
    said = run_forked([*rehearsal, "--workers", "0"], work, check=oof.exists())
    if oof.exists():
        assert "answers by 0.0000%" in said
    else:  # of masks after so few steps many pixels lie at the threshold, and predict.py rounds to 8 bits
        assert re.search(r"answers by [0-4]\.", said), said

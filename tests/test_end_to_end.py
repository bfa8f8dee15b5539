"""Each task goes the whole way for real: prepare, train (killed and resumed, for two tasks), be done, predict."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import Render, Run, kill_after_first_epoch

TRAIN = [
    *("train.py", "experiment=baseline", "epochs=2", "batch_size=16", "data.workers=0", "logger=csv"),
    *("trainer=cpu", "trainer.limit_train_batches=3"),
]


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file was changed, and its content."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def predicted_ids(folder: Path) -> list[str]:
    name = "index.parquet" if (folder / "index.parquet").exists() else "predictions.parquet"
    return sorted(pd.read_parquet(folder / name)["id"])


# Regression goes it in test_wheel.py, each command in a process of its own.
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "segmentation"])
def test_task(task: str, render: Render, tmp_path: Path, run_forked: Run) -> None:
    go_the_whole_way(render(tmp_path, task=task, folds="2"), task, run_forked, killed=task != "multilabel")


def go_the_whole_way(repository: Path, task: str, run_script: Run, killed: bool = False) -> Path:
    """From the embedded sample to a submission; the run."""
    data = repository / "data" / "sample" / task

    run_script(["prepare.py", "--data", "sample"], repository)
    folds = pd.read_csv(data / "prepared" / "folds.csv", dtype={"id": str})
    assert sorted(folds["fold"].unique()) == [0, 1]
    rows = pd.read_csv(data / "train.csv", dtype={"id": str})["id"]
    assert sorted(folds["id"]) == sorted(rows)

    if killed:
        kill_after_first_epoch(repository, TRAIN)
        assert not list(repository.glob("runs/*/metrics.json"))
    assert "machinery edited" not in run_script(TRAIN, repository)
    (run,) = (repository / "runs").glob("[!.]*")  # one: the same command resumes; .lock lies there too
    for fold in (0, 1):
        assert pd.read_csv(run / f"fold{fold}" / "history.csv")["epoch"].tolist() == [1, 2]
    assert predicted_ids(run / "oof") == sorted(rows), "not every row was predicted out of fold exactly once"
    assert (run / "report.html").exists() and (run / "metrics.json").exists()

    before = snapshot(repository / "runs")
    assert "finished" in run_script(TRAIN, repository)
    assert snapshot(repository / "runs") == before, "a finished run was changed by the command that made it"

    run_script(["predict.py", str(run), "--workers", "0"], repository)
    (predictions,) = (run / "predictions").iterdir()
    test_rows = pd.read_csv(data / "test.csv", dtype={"id": str})["id"]
    models = 2 if task != "segmentation" else len(predicted_ids(predictions)) // len(test_rows)
    assert predicted_ids(predictions) == sorted([*test_rows] * models)

    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["task"], settings["data"]["folds"]) == (task, 2)
    go_to_a_submission(repository, run, len(test_rows), run_script)
    return run


def go_to_a_submission(repository: Path, run: Path, rows: int, run_script: Run) -> None:
    """Evaluate, blend with a second source, decide and submit, by the commands that the steps themselves print."""
    shutil.copytree(run, run.with_name("second"))
    said = run_script(["evaluate.py", str(run), str(run.with_name("second"))], repository)
    assert (run / "evaluation.html").exists() and "difference" in said
    out = repository / "ensembles" / "both"
    said = run_script(["ensemble.py", str(run), str(run.with_name("second")), "--out", str(out)], repository)
    assert (out / "report.html").exists() and "Not better" in said
    (command,) = [line.split() for line in said.splitlines() if line.strip().startswith("python submit.py make")]
    run_script(command[1:], repository)
    (submission,) = (path for path in (repository / "submissions").iterdir())
    if submission.suffix == ".csv":
        assert len(pd.read_csv(submission, dtype=str)) >= rows
    run_script(["submit.py", "score", str(submission.relative_to(repository)), "0.5"], repository)
    assert "best" in run_script(["submit.py", "choose"], repository)

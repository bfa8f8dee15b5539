"""wandb never stops or slows a run, and its key is in no file."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import wandb
from groups import log_of, start_training
from tiny import tiny_config

from foldwise.training.loggers import csv_logger

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "no key found"),
    ],
)
def test_without_its_server_wandb_goes_offline(environment, sentence, data, tmp_path):
    def spoil() -> None:
        os.environ.pop("WANDB_MODE", None)
        os.environ["NETRC"] = str(tmp_path / "none")
        os.environ.update(environment)

    wandb.teardown()  # else the fork would go on in the session of a test before this one
    config = tiny_config(data, "multiclass", "logger=wandb", "fold=0", "epochs=2")
    command = start_training(config, tmp_path, before=spoil)
    command.join(timeout=240)  # wandb alone goes on trying for longer
    log = log_of(tmp_path)
    assert command.exitcode == 0, log
    assert sentence in log and "later: wandb sync" in log
    fold = next(tmp_path.glob("runs/*/fold0"))
    logged = next(fold.glob("wandb/offline-run-*/run-*.wandb"))
    assert logged.name == f"run-{fold.parent.name}-fold0.wandb"  # its id is fixed, so that a resume goes on in it
    assert logged.read_bytes().count(b"train_loss") >= 2  # of both epochs: all of it is on disk
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_costs_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = multiprocessing.get_context("fork").Process(target=log_two, args=(server.getsockname()[1], tmp_path))
        process.start()
        process.join(timeout=120)  # by itself, wandb waits for minutes
    assert process.exitcode == 0
    assert next(tmp_path.glob("wandb/offline-run-*/run-r-fold0.wandb")).read_bytes().count(b"loss") >= 2


def log_two(port: int, folder: Path) -> None:
    from foldwise.training.loggers import wandb_logger

    os.environ.pop("WANDB_MODE", None)
    os.environ |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    logger = wandb_logger("r", "fold0", folder, "p")
    for step in range(2):
        logger.log_metrics({"loss": 1.0}, step)
    logger.finalize("success")


def test_a_resume_deletes_no_csv(tmp_path):
    for loss in (0.5, 0.25, 0.125):
        logger = csv_logger("run", "fold0", tmp_path)
        logger.log_metrics({"loss": loss})
        logger.save()
    files = sorted(tmp_path.glob("*/metrics.csv"))
    assert [path.read_text().split()[1].split(",")[0] for path in files] == ["0.5", "0.25", "0.125"]

"""Experiment loggers, one function a choice of configs/logger: a Lightning logger, or False for none."""

import netrc
import os
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from foldwise.reachable import connection_problem


class FoldWandbLogger(WandbLogger):
    """Ends the wandb run with the training: a fold's process lacks the exit handlers by which wandb would do it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._wandb_init.pop("anonymous", None)  # wandb warns of an argument that Lightning still hands over

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def wandb_logger(run: str, part: str, folder: Path, project: str) -> Logger:
    """Weights & Biases: the run `<run>-<part>`, such as `<run>-fold0`, in the group `<run>`.

    The id is fixed, so a resumed fold continues its own curve. Without a key or an answer of the server within seconds
    (unless the environment sets wandb's limits), the run is logged offline, and the command to upload it is printed.
    """
    import wandb  # here: the other loggers need not wait for it

    os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "30")  # the rest stays on disk, and wandb warns
    name = f"{run}-{part}"
    make = partial(FoldWandbLogger, project=project, name=name, id=name, group=run, save_dir=folder, resume="allow")
    if os.environ.get("WANDB_MODE", "online") != "online":
        return make(offline=True)
    problem = "no key found" if not _has_wandb_key() else connection_problem(_server())
    if problem is None:
        logger = make()
        try:
            _ = logger.experiment  # made here, so that a refusal is met here
            return logger
        except wandb.Error as error:
            wandb.teardown()  # else the failed run keeps its id and its mode
            problem = str(error).partition("\n")[0]
    os.environ.setdefault("WANDB_SILENT", "true")  # the line below is enough
    print(f"wandb: {problem}, so this run is logged offline; later: wandb sync {folder}/wandb/offline-run-*")
    return make(offline=True)


def tensorboard_logger(run: str, part: str, folder: Path) -> Logger:
    """TensorBoard event files in the fold's folder."""
    return TensorBoardLogger(save_dir=folder, name=None, version="tensorboard")


def csv_logger(run: str, part: str, folder: Path) -> Logger:
    """Lightning's CSV file in the fold's folder: `csv/`, after a resume `csv-2/`, since it would delete the first."""
    attempts = len(list(folder.glob("csv*/metrics.csv")))
    return CSVLogger(save_dir=folder, name=None, version=f"csv-{attempts + 1}" if attempts else "csv")


def no_logger(run: str, part: str, folder: Path) -> bool:
    """Only what every run writes."""
    return False


def _has_wandb_key() -> bool:
    """Whether wandb could log in without asking: from the environment or from the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(_server()).hostname or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")

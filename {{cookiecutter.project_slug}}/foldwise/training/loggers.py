"""Experiment loggers, one function per choice of the group `logger`."""

import netrc
import os
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from foldwise.reachable import connection_problem


class FoldWandbLogger(WandbLogger):
    """Finishes the wandb run with the training: forked processes do not run wandb's exit handlers."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._wandb_init.pop("anonymous", None)  # deprecated in wandb, and Lightning still passes it

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def wandb_logger(run: str, part: str, folder: Path, project: str) -> Logger:
    """Weights & Biases: run `<run>-fold<k>` in the group `<run>`; a resumed fold continues the same wandb run.

    Without a key, or if the server does not answer in time, logs offline and prints the command to upload.
    """
    import wandb  # slow to import

    os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "30")  # what is not uploaded by then stays on disk
    name = f"{run}-{part}"
    make = partial(FoldWandbLogger, project=project, name=name, id=name, group=run, save_dir=folder, resume="allow")
    if os.environ.get("WANDB_MODE", "online") != "online":
        return make(offline=True)
    problem = "no key found" if not _has_wandb_key() else connection_problem(_server())
    if problem is None:
        logger = make()
        try:
            _ = logger.experiment  # connects now, so that errors are caught here
            return logger
        except wandb.Error as error:
            wandb.teardown()  # otherwise the failed run keeps its id and mode
            problem = str(error).partition("\n")[0]
    os.environ.setdefault("WANDB_SILENT", "true")  # the message below is enough
    print(f"wandb: {problem}, so this run is logged offline; later: wandb sync {folder}/wandb/offline-run-*")
    return make(offline=True)


def tensorboard_logger(run: str, part: str, folder: Path) -> Logger:
    """TensorBoard event files in the fold's folder."""
    return TensorBoardLogger(save_dir=folder, name=None, version="tensorboard")


def csv_logger(run: str, part: str, folder: Path) -> Logger:
    """Lightning's CSV file in `csv/` of the fold; after a resume in `csv-2/`, since it would delete the first."""
    attempts = len(list(folder.glob("csv*/metrics.csv")))
    return CSVLogger(save_dir=folder, name=None, version=f"csv-{attempts + 1}" if attempts else "csv")


def no_logger(run: str, part: str, folder: Path) -> bool:
    """No logger; history.csv is always written."""
    return False


def _has_wandb_key() -> bool:
    """True if the environment or the netrc file has a key, so that wandb does not prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(_server()).hostname or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")

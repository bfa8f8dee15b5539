"""Experiment loggers, one function a choice of configs/logger; each gives a Lightning logger, or False for none."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger


def wandb_logger(run: str, fold: int, folder: Path, project: str) -> Logger:
    """Weights & Biases: the run `<run>-fold<k>` in the group `<run>`; offline, and saying so, when there is no key.

    The id is fixed, so a resumed fold goes on in its own curve.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online" and not _has_wandb_key():
        mode = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")  # the line below says all that there is to know
        print(f"wandb: no key found, so this run is logged offline; later: wandb sync {folder}/wandb/offline-run-*")
    name = f"{run}-fold{fold}"
    return WandbLogger(
        project=project, name=name, id=name, group=run, save_dir=folder, offline=mode == "offline", resume="allow"
    )


def tensorboard_logger(run: str, fold: int, folder: Path) -> Logger:
    """TensorBoard event files in the fold's folder."""
    return TensorBoardLogger(save_dir=folder, name=None, version="tensorboard")


def csv_logger(run: str, fold: int, folder: Path) -> Logger:
    """Lightning's CSV file in the fold's folder."""
    return CSVLogger(save_dir=folder, name=None, version="csv")


def no_logger(run: str, fold: int, folder: Path) -> bool:
    """Nothing but what every run writes anyway."""
    return False


def _has_wandb_key() -> bool:
    """Whether wandb could log in without asking: from the environment or from the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False

"""`train.py` in a process group of its own, for tests that send it signals or spoil its machine.

The command starts its processes from a server that imports torch, which takes seconds; here they are plain forks.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tiny import ROOT, prepare_tiny

import foldwise.training.fold  # noqa: F401  # here, or each fork would import torch anew
from foldwise.training import run as runs

# The first backward pass of a process decides whether its forks may have any: after torch.compile it would start
# threads, which do not survive a fork.
torch.ones(1, requires_grad=True).backward()


def start_training(config: dict[str, Any], folder: Path, before: Callable[[], None] = lambda: None) -> BaseProcess:
    """Start the command with a resolved configuration in `folder`, where its output goes to `log`.

    Args:
        before: called first in the new process; what it changes, the processes of the folds inherit.
    """
    prepare_tiny(config)
    shutil.copytree(ROOT / "solution", folder / "solution", dirs_exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_lead, args=(config, folder, before))
    process.start()
    return process


def _lead(config: dict[str, Any], folder: Path, before: Callable[[], None]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)  # in place of pytest's
    runs.start_server = lambda: multiprocessing.get_context("fork")  # type: ignore[assignment,return-value]
    before()
    import train

    train.resolve_config = OmegaConf.to_container  # type: ignore[assignment]  # it is resolved
    train.main(OmegaConf.create(config))


def log_of(folder: Path) -> str:
    """What the command has said so far."""
    return (folder / "log").read_text() if (folder / "log").exists() else ""


def members(group: int | None) -> list[int]:
    """The processes of a group that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # state, parent, group
        except OSError:
            continue  # it ended meanwhile
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What `condition` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value

"""The fork server: imports torch and Lightning once and forks the training processes.

Each fold has its own process, since folds in one process leak state (seeds, deterministic mode, loggers). Importing
torch takes longer than a small fold, so processes fork from a server that has imported it. The command itself never
imports torch.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foldwise.processes.exits import EXIT_CODES

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    Context = ForkServerContext | SpawnContext

# Variables for processes/preload.py: comma-separated modules, and the process id of the command.
NAMES, COMMAND = "FOLDWISE_PRELOAD", "FOLDWISE_COMMAND"
PRELOAD = ("torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "foldwise.training.fold")


def start_server(preload: Sequence[str] = PRELOAD) -> "Context":
    """Start the server, which imports `preload` in the background, and return its multiprocessing context.

    Later calls return the running server.
    """
    # OpenMP threads that spin while waiting take cores from other training and image reading: on a shared CPU a small
    # network trained four times slower. But alone on two cores, a tiny network took nearly twice as long with two
    # passive threads, hence `threads: 1` in experiment=baseline.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ |= {NAMES: ",".join(preload), COMMAND: str(os.getpid())}
    context.set_forkserver_preload(["foldwise.processes.preload"])
    from multiprocessing.forkserver import ensure_running

    # Signals to the process group must not end the server, which reports the exit codes of its children.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in EXIT_CODES}
    ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return context

"""The fork server: imports torch and Lightning once; the processes that train are forks of it.

Folds in one process leak state into each other (seeds, deterministic mode, loggers), so each has a process of its own.
Importing torch takes longer than a small fold, so these fork from a server that has imported it and has no other
state. The command itself stays free of torch.
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

# For processes/preload.py, which only the server imports: modules by comma, and the process that the server is for.
NAMES, COMMAND = "FOLDWISE_PRELOAD", "FOLDWISE_COMMAND"
PRELOAD = ("torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "foldwise.training.fold")


def start_server(preload: Sequence[str] = PRELOAD) -> "Context":
    """The context to start processes from; the server begins to import `preload` in the background.

    Called again, it gives the server that runs.
    """
    # Threads that spin while they wait take the cores from whatever else trains or reads images: on a shared CPU a
    # small network trained four times slower. The price: alone on two cores, two waiting threads took a tiny network
    # nearly twice as long, hence `threads: 1` in experiment=baseline.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ |= {NAMES: ",".join(preload), COMMAND: str(os.getpid())}
    context.set_forkserver_preload(["foldwise.processes.preload"])
    from multiprocessing.forkserver import ensure_running

    # A signal to the whole process group must not end the server, which reports how its children end.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in EXIT_CODES}
    ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return context

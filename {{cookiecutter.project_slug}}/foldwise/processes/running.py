"""Starts the processes that train: one a fold and device, forked from a server that has imported torch once.

Folds in one process leak state into each other (seeds, deterministic mode, loggers), so each has its own. Importing
torch and Lightning takes longer than a small fold, so they are not started from nothing: a server process without any
state imports them, and every fold is a fork of it. The parent itself stays free of torch.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from foldwise.errors import ProcessFailed, Refusal
from foldwise.processes.faults import describe_exit
from foldwise.processes.group import Group
from foldwise.processes.signals import EXIT_CODES

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    Context = ForkServerContext | SpawnContext

NAMES = "FOLDWISE_PRELOAD"  # modules by comma, for processes/preload.py, which the server alone imports
PRELOAD = ("torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "foldwise.training.fold")


def fold_context(preload: Sequence[str] = PRELOAD) -> "Context":
    """The way to start processes here; the server begins to import `preload` in the background at once."""
    # Threads that spin while they wait take the cores from whatever else trains or reads images; on a CPU that another
    # process shares, a small network trained four times slower. The price: alone on two cores, two waiting threads
    # took a tiny network nearly twice as long, hence `threads: 1` in experiment=baseline.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    os.environ[NAMES] = ",".join(preload)
    context.set_forkserver_preload(["foldwise.processes.preload"])
    from multiprocessing.forkserver import ensure_running

    # Whoever signals the whole process group must not end the server, which tells how its children end.
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in EXIT_CODES}
    ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return context


def call(context: "Context", function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` gives in a process of its own.

    Raises:
        Refusal: the function raised one; the message is the same.
        ProcessFailed: it failed in another way, and its traceback has been printed.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        kind, answer = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        raise ProcessFailed(f"{function.__name__} {describe_exit(code)}", code) from None
    except BaseException:
        process.kill()
        raise
    process.join()
    if kind == "error":
        raise Refusal(answer)
    return answer


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(("value", function(*arguments)))
    except Refusal as error:
        sender.send(("error", str(error)))  # the text, since not every exception survives pickling
    except KeyboardInterrupt:
        sys.exit(130)


def run_processes(context: "Context", target: Callable[..., None], arguments: tuple[Any, ...], world: int) -> int:
    """Call `target(*arguments, place)` in `world` processes at once; the first exit code that is not 0, or 0."""
    with Group(context, target, arguments, world) as group:
        while (code := group.poll()) is None:
            wait(group.sentinels)
    return code

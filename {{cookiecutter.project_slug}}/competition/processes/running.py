"""Starts the processes that train: one a fold and device, forked from a server that has imported torch once.

Folds in one process leak state into each other (seeds, deterministic mode, loggers), so each has its own. Importing
torch and Lightning takes longer than a small fold, so they are not started from nothing: a server process without any
state imports them, and every fold is a fork of it. The parent itself stays free of torch.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException

from competition.processes.faults import explain
from competition.processes.signals import EXIT_CODES, Stopped, leave_on_signals, received

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    Context = ForkServerContext | SpawnContext

# Seconds that processes have to leave before they are killed; and that a rank waits for the parent to end it, when its
# error may be only that another rank is gone.
PATIENCE, AFTERMATH = 20.0, 5.0
PRELOAD = ["torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "competition.training.fold"]


@dataclass(frozen=True)
class Place:
    """Which process of a fold's `world` this is; on one machine `rank` is also the number of its device."""

    rank: int = 0
    world: int = 1
    port: int = 0


def fold_context() -> "Context":
    """The way to start processes here; the server begins to import in the background at once."""
    # Threads that spin while they wait take the cores from whatever else trains or reads images; on a CPU that another
    # process shares, a small network trained four times slower. The price: alone on two cores, two waiting threads
    # took a tiny network nearly twice as long, hence `threads: 1` in experiment=baseline.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
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
        ValueError: the function raised one; the message is the same.
        RuntimeError: it failed in another way, and its traceback has been printed.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        kind, answer = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}") from None
    except BaseException:
        process.kill()
        raise
    process.join()
    if kind == "error":
        raise ValueError(answer)
    return answer


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(("value", function(*arguments)))
    except (ValueError, HydraException) as error:
        sender.send(("error", str(error)))  # the text, since not every exception survives pickling
    except KeyboardInterrupt:
        sys.exit(130)


def run_processes(context: "Context", target: Callable[..., None], arguments: tuple[Any, ...], world: int) -> int:
    """Call `target(*arguments, place)` in `world` processes at once; the first exit code that is not 0, or 0.

    When one of them fails, the others are ended: they would wait for it for ever. A signal that `Stopped` this process
    is passed on; Ctrl-C reaches them by itself. None outlives this call.
    """
    port = _free_port() if world > 1 else 0
    processes = [
        context.Process(
            target=_start,
            args=(target, arguments, Place(rank, world, port), multiprocessing.get_start_method()),
            name=f"rank{rank}",
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        return _wait(processes)
    except Stopped as stop:
        _end(processes, stop.number)
        raise
    except KeyboardInterrupt:
        _end(processes)
        raise


def _wait(processes: Sequence[BaseProcess]) -> int:
    """Wait until all have ended well or one has not; then end the rest."""
    running = list(processes)
    while running:
        ready = wait([process.sentinel for process in running])
        # Asked once: between two questions a process can end, and its exit code would be lost.
        ended = [process for process in running if process.sentinel in ready]
        running = [process for process in running if process not in ended]
        for process in ended:
            process.join()
            if process.exitcode:
                _end(running, signal.SIGTERM)
                return process.exitcode
    return 0


def _end(processes: Sequence[BaseProcess], number: int | None = None) -> None:
    """Signal the processes, wait for them, and kill those that do not leave, as one that waits for another rank."""
    for process in processes:
        if number is not None and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
    for process in processes:
        process.join()


def _start(target: Callable[..., None], arguments: tuple[Any, ...], place: Place, method: str) -> None:
    """In the new process: find the others, end with the parent, call the target, exit with a code."""
    leave_on_signals()
    # A child takes over the server's way to start processes: each data loader would start a server of its own and
    # import everything once more.
    multiprocessing.set_start_method(method, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.world > 1:
        # Names that Lightning and torch.distributed read. Lightning then starts no processes of its own.
        os.environ |= {
            "LOCAL_RANK": str(place.rank),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(place.port),
        }
    try:
        sys.exit(_run(target, arguments, place))
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(target: Callable[..., None], arguments: tuple[Any, ...], place: Place) -> int:
    """Call the target; 0, or 2 after a sentence on what went wrong."""
    try:
        target(*arguments, place)
    except Exception as error:
        if received:  # the error comes from leaving: a signal to the whole group ends the workers of the loaders too
            raise Stopped(received[0]) from None
        sentence = explain(error)
        if sentence is None:
            time.sleep(AFTERMATH if place.world > 1 else 0)
            raise
        print(f"error{f' of rank {place.rank}' if place.world > 1 else ''}: {sentence}", file=sys.stderr)
        return 2
    return 0


def _end_with_parent() -> None:
    """A killed parent must not leave processes that train on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

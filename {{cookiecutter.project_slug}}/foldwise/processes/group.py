"""Processes that do one thing together, such as training a fold: they begin, fail and end as one."""

import io
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from foldwise.errors import ProcessFailed, Refusal, explain
from foldwise.processes.exits import Stopped, describe_exit, leave_on_signals, received
from foldwise.processes.nodes import Node

if TYPE_CHECKING:
    from foldwise.processes.server import Context

# Seconds that processes have to exit before they are killed; and that a rank waits for the parent to end it, when its
# error may only be that another rank is gone.
PATIENCE, AFTERMATH = 20.0, 5.0
# Variables of srun and torchrun for train.py, not for the processes that it starts: Lightning would take Slurm's number
# of processes for its own and requeue the job by itself, and torch.distributed would look for torchrun's store.
LAUNCHER = re.compile("SLURM_|TORCHELASTIC_|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$")


@dataclass(frozen=True)
class Rank:
    """Which process of a group of `world_size` this is.

    Attributes:
        nodes: machines that the group runs on, `world_size / nodes` processes on each, in the order of ranks.
        sharing: processes of this and of other groups that share the cores of this machine.
    """

    index: int = 0
    world_size: int = 1
    nodes: int = 1
    sharing: int = 1

    @property
    def devices(self) -> int:
        """Processes of the group on this machine, each with a device of its own."""
        return self.world_size // self.nodes


class Group:
    """Starts `target(*arguments, rank)` in `devices` processes on this machine.

    When one of them fails, the others are ended: they would wait for it for ever. None outlives the `with` block: a
    signal that `Stopped` this process is passed on to them; Ctrl-C reaches them by itself.

    Args:
        node: this one of several; rank 0 listens at its address and port, 0: a free one, for a single machine.
        sharing: groups that run on this machine at once.
        visible: CUDA_VISIBLE_DEVICES of the processes; None: as it is.
        log: file for their errors and progress, while lines for the user go to the console too; None: all to it.
    """

    def __init__(
        self,
        context: "Context",
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        devices: int,
        node: Node | None = None,
        sharing: int = 1,
        visible: str | None = None,
        log: Path | None = None,
    ) -> None:
        node = node or Node()
        world_size = devices * node.count
        environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        if world_size > 1:
            # Names that Lightning and torch.distributed read. Lightning then starts no processes of its own.
            port = str(node.port or free_port())
            environment |= {"NODE_RANK": str(node.rank), "MASTER_ADDR": node.address, "MASTER_PORT": port}
        method = multiprocessing.get_start_method()
        self.running: list[BaseProcess] = []
        for local in range(devices):
            rank = Rank(node.rank * devices + local, world_size, node.count, devices * sharing)
            own = environment | ({"LOCAL_RANK": str(local)} if world_size > 1 else {})
            args = target, arguments, rank, own, log, method
            self.running.append(context.Process(target=_start, args=args, name=f"rank{rank.index}"))

    def __enter__(self) -> Self:
        for process in self.running:
            process.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Stopped):
            self.end(error.number)
        elif self.running:
            self.end(None if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)

    @property
    def sentinels(self) -> list[int]:
        """Ready, for `multiprocessing.connection.wait`, when a process ends."""
        return [process.sentinel for process in self.running]

    def poll(self) -> int | None:
        """0 when all have ended well; the first other exit code, once the rest is ended too; None while they run."""
        for process in list(self.running):
            code = process.exitcode
            if code is None:
                continue
            self.running.remove(process)
            if code:
                self.end(signal.SIGTERM)
                return code
        return None if self.running else 0

    def signal(self, number: int) -> None:
        """Send a signal to the processes that run."""
        for process in self.running:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def end(self, number: int | None = None) -> None:
        """Signal the processes, wait for them, and kill those that do not exit, as one that waits for another rank."""
        if number is not None:
            self.signal(number)
        deadline = time.monotonic() + PATIENCE
        for process in self.running:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
        for process in self.running:
            process.join()
        self.running.clear()


def run_processes(context: "Context", target: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> int:
    """Call `target(*arguments, rank)` in `world_size` processes at once; the first exit code that is not 0, or 0."""
    with Group(context, target, arguments, world_size) as group:
        while (code := group.poll()) is None:
            wait(group.sentinels)
    return code


def call(context: "Context", function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own and return its result.

    Raises:
        Refusal: the function raised one; the message is the same.
        ProcessFailed: it failed in another way, and its traceback has been printed.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result, refusal = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        raise ProcessFailed(f"{function.__name__} {describe_exit(code)}", code) from None
    except BaseException:
        process.kill()
        raise
    process.join()
    if refusal is not None:
        raise Refusal(refusal)
    return result


def free_port() -> int:
    """A TCP port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), None))
    except Refusal as error:
        sender.send((None, str(error)))  # the text, since not every exception survives pickling
    except KeyboardInterrupt:
        sys.exit(130)


def _start(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    rank: Rank,
    environment: Mapping[str, str],
    log: Path | None,
    method: str,
) -> None:
    """In the new process: end with the parent, call the target, exit with a code."""
    leave_on_signals()
    # A child takes over the server's way to start processes: each data loader would start a server of its own and
    # import everything once more.
    multiprocessing.set_start_method(method, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in filter(LAUNCHER.match, list(os.environ)):
        del os.environ[name]
    os.environ |= environment
    if log is not None:
        _log_to(log)
    try:
        _run(target, arguments, rank)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(target: Callable[..., None], arguments: tuple[Any, ...], rank: Rank) -> None:
    """Call the target; exit with 2 and a message where data, settings or machine are to blame."""
    many = rank.world_size > 1
    try:
        target(*arguments, rank)
    except Exception as error:
        if received:  # the error comes from leaving: a signal to the whole group ends the workers of the loaders too
            raise Stopped(received[0]) from None
        message = explain(error)
        if message is None:
            time.sleep(AFTERMATH if many else 0)
            raise
        print(f"error{f' of rank {rank.index}' if many else ''}: {message}", file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    """A killed parent must not leave processes that train on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Tee(io.TextIOBase):
    """A text stream that writes to several, line by line."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)


def _log_to(path: Path) -> None:
    """Append errors, warnings and progress to the file; print to it and to the console."""
    path.parent.mkdir(exist_ok=True)
    file = path.open("a", buffering=1, encoding="utf-8")
    sys.stdout = _Tee(os.fdopen(os.dup(1), "w", buffering=1), file)
    os.dup2(file.fileno(), 2)  # of libraries in C too

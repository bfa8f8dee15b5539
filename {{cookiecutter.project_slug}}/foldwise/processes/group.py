"""Groups of processes that work together, such as the ranks of a fold: they start, fail and end together."""

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

# Seconds: until processes that do not exit are killed; until a failed rank prints its traceback, since its error may
# only be that another rank has died, and then the parent ends it first.
PATIENCE, AFTERMATH = 20.0, 5.0
# Variables of srun and torchrun that child processes must not see: Lightning would use Slurm's world size and requeue
# the job itself, and torch.distributed would look for torchrun's store.
LAUNCHER = re.compile("SLURM_|TORCHELASTIC_|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$")


@dataclass(frozen=True)
class Rank:
    """Rank and world size of a process.

    Attributes:
        nodes: machines of the group, with `world_size / nodes` consecutive ranks each.
        sharing: processes, of all groups, that share this machine's cores.
    """

    index: int = 0
    world_size: int = 1
    nodes: int = 1
    sharing: int = 1

    @property
    def devices(self) -> int:
        """Processes of the group on this machine, one per device."""
        return self.world_size // self.nodes


class Group:
    """Runs `target(*arguments, rank)` in `devices` processes on this machine.

    If one fails, the others are ended, as they would wait for it forever. None outlives the `with` block. A signal
    that `Stopped` this process is passed on; Ctrl-C reaches all processes anyway.

    Args:
        node: rank 0 listens at its address and port; port 0 picks a free one, on a single machine.
        sharing: groups that run on this machine at once.
        visible: CUDA_VISIBLE_DEVICES of the processes; None leaves it unchanged.
        log: file for their output; stdout goes to the console too. None: console only.
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
            # Read by Lightning, which then starts no processes itself, and by torch.distributed.
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
        """Objects that `multiprocessing.connection.wait` returns when a process ends."""
        return [process.sentinel for process in self.running]

    def poll(self) -> int | None:
        """None while processes run; 0 if all succeeded; else the first other exit code, after ending the rest."""
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
        """Send a signal to the running processes."""
        for process in self.running:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def end(self, number: int | None = None) -> None:
        """Signal the processes, wait, and kill those that do not exit in time."""
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
    """Run `target(*arguments, rank)` in `world_size` processes; return the first nonzero exit code, or 0."""
    with Group(context, target, arguments, world_size) as group:
        while (code := group.poll()) is None:
            wait(group.sentinels)
    return code


def call(context: "Context", function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process and return its result.

    Raises:
        Refusal: with the message of a Refusal in the process.
        ProcessFailed: any other failure; the process has printed its traceback.
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
    """A free TCP port."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _answer(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send((function(*arguments), None))
    except Refusal as error:
        sender.send((None, str(error)))  # as text: not every exception can be pickled
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
    """Entry point of a new process."""
    leave_on_signals()
    # The fork server's start method would be inherited: each data loader would start another server and import
    # everything again.
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
    """Call the target; exit with code 2 and a message if data, settings or machine are to blame."""
    many = rank.world_size > 1
    try:
        target(*arguments, rank)
    except Exception as error:
        if received:  # the signal also ended data loader workers, which raised the error
            raise Stopped(received[0]) from None
        message = explain(error)
        if message is None:
            time.sleep(AFTERMATH if many else 0)
            raise
        print(f"error{f' of rank {rank.index}' if many else ''}: {message}", file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    """Exit when the parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Tee(io.TextIOBase):
    """A text stream that writes to several."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)


def _log_to(path: Path) -> None:
    """Redirect stderr to the file, and stdout to the file and the console."""
    path.parent.mkdir(exist_ok=True)
    file = path.open("a", buffering=1, encoding="utf-8")
    sys.stdout = _Tee(os.fdopen(os.dup(1), "w", buffering=1), file)
    os.dup2(file.fileno(), 2)  # also for C libraries

"""Processes that do one thing together, such as training a fold: they begin, fail and end as one."""

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
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from foldwise.errors import explain
from foldwise.processes.logs import log_to
from foldwise.processes.signals import Stopped, leave_on_signals, received

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    Context = ForkServerContext | SpawnContext

# Seconds that processes have to leave before they are killed; and that a rank waits for the parent to end it, when its
# error may be only that another rank is gone.
PATIENCE, AFTERMATH = 20.0, 5.0
# What srun and torchrun say to train.py, not to the processes that it starts: Lightning would take Slurm's numbers of
# processes for its own and requeue the job by itself, and torch.distributed would look for torchrun's store.
LAUNCHER = re.compile("SLURM_|TORCHELASTIC_|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$")


@dataclass(frozen=True)
class Place:
    """Which process of a group of `world` this is.

    Attributes:
        nodes: machines that the group runs on, `world / nodes` processes on each, in the order of ranks.
        sharing: processes of this and of other groups that share the cores of this machine.
    """

    rank: int = 0
    world: int = 1
    nodes: int = 1
    sharing: int = 1

    @property
    def devices(self) -> int:
        """Processes of the group on this machine, and devices: each has its own."""
        return self.world // self.nodes


@dataclass(frozen=True)
class Setting:
    """Where a group runs: on which of the `nodes`, on which devices, and what it says.

    Attributes:
        address, port: where rank 0 listens for the others; a port of 0 is for a single machine, which finds one.
        sharing: groups that run on this machine at once.
        visible: CUDA_VISIBLE_DEVICES of the processes; None: as it is.
        log: their file for errors and progress, while lines for the user go to the console too; None: all to it.
    """

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    sharing: int = 1
    visible: str | None = None
    log: Path | None = None


class Group:
    """Starts `target(*arguments, place)` in `devices` processes on this machine.

    When one of them fails, the others are ended: they would wait for it for ever. None outlives the `with` block: a
    signal that `Stopped` this process is passed on to them; Ctrl-C reaches them by itself.
    """

    def __init__(
        self,
        context: "Context",
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        devices: int,
        setting: Setting = Setting(),
    ) -> None:
        world = devices * setting.nodes
        environment = {} if setting.visible is None else {"CUDA_VISIBLE_DEVICES": setting.visible}
        if world > 1:
            # Names that Lightning and torch.distributed read. Lightning then starts no processes of its own.
            environment |= {
                "NODE_RANK": str(setting.node),
                "MASTER_ADDR": setting.address,
                "MASTER_PORT": str(setting.port or free_port()),
            }
        self.running: list[BaseProcess] = [
            context.Process(
                target=_start,
                args=(
                    target,
                    arguments,
                    Place(setting.node * devices + local, world, setting.nodes, devices * setting.sharing),
                    environment | ({"LOCAL_RANK": str(local)} if world > 1 else {}),
                    setting.log,
                    multiprocessing.get_start_method(),
                ),
                name=f"rank{setting.node * devices + local}",
            )
            for local in range(devices)
        ]

    def __enter__(self) -> Self:
        for process in self.running:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped):
            self.end(error.number)
        elif self.running:
            self.end(None if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)

    @property
    def sentinels(self) -> list[int]:
        """What becomes ready when one of the processes that run ends, for `multiprocessing.connection.wait`."""
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
        """Signal the processes, wait for them, and kill those that do not leave, as one that waits for another rank."""
        if number is not None:
            self.signal(number)
        deadline = time.monotonic() + PATIENCE
        for process in self.running:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
        for process in self.running:
            process.join()
        self.running.clear()


def free_port() -> int:
    """A TCP port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _start(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    place: Place,
    environment: Mapping[str, str],
    log: Path | None,
    method: str,
) -> None:
    """In the new process: find the others, end with the parent, call the target, exit with a code."""
    leave_on_signals()
    # A child takes over the server's way to start processes: each data loader would start a server of its own and
    # import everything once more.
    multiprocessing.set_start_method(method, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in filter(LAUNCHER.match, list(os.environ)):
        del os.environ[name]
    os.environ |= environment
    if log is not None:
        log_to(log)
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

"""Exit codes and signals of schedulers.

On SIGTERM and SIGUSR1 a process exits at once: the state after the last finished epoch is always on disk.
"""

import os
import signal
from types import FrameType

# 128 + 15, as shells report SIGTERM; EX_TEMPFAIL of sysexits.h, which means "try again", for requeueing.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}
received: list[int] = []  # the first stop signal of this process


class Stopped(BaseException):
    """Raised by a stop signal. No Exception, like KeyboardInterrupt, so that `except Exception` does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)
        self.exit_code = EXIT_CODES[self.number]


def raise_stopped(code: int) -> None:
    """Raise `Stopped` if the exit code means that a signal stopped the process."""
    for number, meaning in EXIT_CODES.items():
        if code == meaning:
            raise Stopped(number)


def leave_on_signals() -> None:
    """Raise `Stopped` in the main thread on the first SIGTERM or SIGUSR1.

    Later signals are ignored: a scheduler may signal all processes and the parent its children too, which would
    interrupt the cleanup. Forked processes such as data loader workers ignore them all; this process ends them.
    """
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner and not received:
            received.append(number)
            raise Stopped(number)

    for number in EXIT_CODES:
        signal.signal(number, leave)


def describe_exit(code: int, where: str = "above") -> str:
    """Describe how a process ended.

    Args:
        code: from `multiprocessing`: negative after a signal.
        where: where the process printed its error.
    """
    if code >= 0:
        return f"ended with exit code {code}, see {where}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", most often because memory ran out" if -code == signal.SIGKILL else "")


def how_to_resume(*codes: int) -> str:
    """Advice to resume; positive exit codes mean that an error was printed, which needs a fix first."""
    shown = any(code > 0 for code in codes)
    return f"{'Fix the error above, then run' if shown else 'Run'} the same command to resume"

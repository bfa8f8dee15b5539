"""How processes end: exit codes in words, and the signals by which a scheduler asks for its machine.

On SIGTERM and SIGUSR1 a process exits at once: the disk always has the state after the last whole epoch.
"""

import os
import signal
from types import FrameType

# 128 + 15, as a shell shows a process that SIGTERM ended; and EX_TEMPFAIL of sysexits.h: try again, as requeueing does.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}
received: list[int] = []  # the signal that asked this process to exit


class Stopped(BaseException):
    """A signal asked this process to exit. Like KeyboardInterrupt no Exception: nothing takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)
        self.exit_code = EXIT_CODES[self.number]


def raise_stopped(code: int) -> None:
    """Raise `Stopped` if this is the exit code of a process that was stopped."""
    for number, meaning in EXIT_CODES.items():
        if code == meaning:
            raise Stopped(number)


def leave_on_signals() -> None:
    """Let the first SIGTERM or SIGUSR1 raise `Stopped` in the main thread.

    A second one, as when a scheduler signals all processes and the parent its children, would interrupt the cleanup.
    Processes forked from this one, such as the workers of a data loader, are ended by it and ignore the signals.
    """
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner and not received:
            received.append(number)
            raise Stopped(number)

    for number in EXIT_CODES:
        signal.signal(number, leave)


def describe_exit(code: int, where: str = "above") -> str:
    """How a process ended.

    Args:
        code: as `multiprocessing` gives it: negative after a signal.
        where: the process printed its error.
    """
    if code >= 0:
        return f"ended with exit code {code}, see {where}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", most often because memory ran out" if -code == signal.SIGKILL else "")


def how_to_resume(*codes: int) -> str:
    """The advice after these exit codes: an error that was shown would only come again."""
    shown = any(code > 0 for code in codes)
    return f"{'Fix the error above, then run' if shown else 'Run'} the same command to resume"

"""SIGTERM and SIGUSR1, by which a scheduler asks for its machine: leave at once, with an exit code that says so.

Nothing has to be saved then, since at any moment the disk has the state after the last whole epoch.
"""

import os
import signal
from types import FrameType

# 128 + 15, as a shell shows a process that SIGTERM ended; and EX_TEMPFAIL of sysexits.h: try again, as requeueing does.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}
received: list[int] = []  # the signal by which this process was asked to leave


class Stopped(BaseException):
    """The process was asked to leave; as KeyboardInterrupt no Exception, so that nothing takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return EXIT_CODES[self.number]


def raise_stopped(code: int) -> None:
    """Raise `Stopped` where a process ended with an exit code that says so."""
    for number, meaning in EXIT_CODES.items():
        if code == meaning:
            raise Stopped(number)


def leave_on_signals() -> None:
    """From now on SIGTERM and SIGUSR1 raise `Stopped` in the main thread, the first one only.

    A second one, as when a scheduler signals all processes and the parent its children, would interrupt the cleaning
    up. Processes forked from this one, such as the workers of a data loader, are ended by it and pass the signals over.
    """
    owner = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner and not received:
            received.append(number)
            raise Stopped(number)

    for number in EXIT_CODES:
        signal.signal(number, leave)

"""The output of a process that shares the console with others: all of it in a file of its own, some of it on both."""

import os
import sys
from pathlib import Path
from typing import TextIO


class Tee:
    """A text stream that writes to several."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        """Never: nobody draws bars here."""
        return False


def log_to(path: Path) -> None:
    """From now on errors, warnings and progress go to the end of the file `path`, what is printed there and to the
    console."""
    path.parent.mkdir(exist_ok=True)
    file = path.open("a", buffering=1, encoding="utf-8")
    sys.stdout = Tee(os.fdopen(os.dup(1), "w", buffering=1), file)
    os.dup2(file.fileno(), 2)  # of libraries in C too

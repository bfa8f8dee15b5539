"""Runs commands and counts the CPU seconds of all their processes, which on a shared machine are fairer than time."""

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SUBREAPER = 36  # prctl(2): orphans of the command become children of this process, and their CPU time counts
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}


def run_counted(
    command: Sequence[object], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> float:
    """Run a command to the end of its last process; CPU seconds of all. Exit with its log's end if it fails."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    before = _children()
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=os.environ | ENVIRONMENT | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n" + "\n".join(log.read_text().splitlines()[-15:]))
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

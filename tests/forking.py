"""Runs commands of rendered repositories in forks of a process that has imported torch; conftest.py starts it.

The import takes six seconds of a core, and the tests start a hundred commands. A fork has its own folder, environment,
output and exit code, and imports foldwise/ and solution/ itself. So does the fork server of train.py.

Reads lines of JSON (script, arguments, folder, environment, output), and answers each with the exit code.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing import process, util
from pathlib import Path
from typing import Any

PRELOAD = (
    *("torch", "torchvision", "pytorch_lightning", "timm", "albumentations", "hydra", "pandas", "matplotlib.pyplot"),
    *("scipy.stats", "sklearn.linear_model", "sklearn.ensemble"),
)


def main() -> None:
    for name in PRELOAD:
        importlib.import_module(name)
    known = set(sys.modules)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _end_after(partial(run, json.loads(line), known))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(request: dict[str, Any], known: set[str]) -> None:
    """Run a script as `python <script>` in its folder would, for ten minutes at most."""
    signal.alarm(600)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    output = os.open(request["output"], os.O_WRONLY)
    for stream, copy in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(stream, copy)
    process.ORIGINAL_DIR = request["folder"]  # type: ignore[attr-defined]  # multiprocessing remembers it on import
    script = Path(request["script"]).resolve()
    sys.argv, sys.path[0] = [request["script"], *request["arguments"]], str(script.parent)
    util.spawnv_passfds = partial(_spawn, util.spawnv_passfds, known)
    runpy.run_path(str(script), run_name="__main__")


def _spawn(real: Callable[..., int], known: set[str], path: bytes, words: Sequence[str], passed: Sequence[int]) -> int:
    """Start a process of multiprocessing: the fork server as a fork without the modules of the command."""
    code = words[-1]
    if "forkserver" not in code:
        return real(path, words, passed)
    pid = os.fork()
    if not pid:
        kept = sorted({2, *passed})
        for last, following in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(last + 1, following)
        for name in set(sys.modules) - known:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")
        _end_after(lambda: exec(code, {"__name__": "__main__"}))  # noqa: S102  as `python -c` would
    return pid


def _end_after(work: Callable[[], None]) -> None:
    """End this process after the work as Python does after a script."""
    status = 0
    try:
        work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

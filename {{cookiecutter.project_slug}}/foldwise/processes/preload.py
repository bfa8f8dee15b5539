"""Runs in the fork server: imports modules for its child processes, and survives failed imports."""

import importlib
import os
import signal
import threading

from foldwise.processes.server import COMMAND, NAMES


def _end_with_command(done: threading.Event) -> None:
    """Exit if the command ends during the imports, usually with a refusal."""
    while not done.wait(0.1):
        if str(os.getppid()) != os.environ.get(COMMAND):
            os._exit(1)


handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command; no traceback here
done = threading.Event()
watch = threading.Thread(target=_end_with_command, args=(done,), daemon=True)
watch.start()
for name in filter(None, os.environ.get(NAMES, "").split(",")):
    try:
        importlib.import_module(name)
    except (Exception, SystemExit):
        continue  # the child that needs the module will show the traceback
done.set()
watch.join()  # do not fork with threads running
signal.signal(signal.SIGINT, handler)  # forks inherit it

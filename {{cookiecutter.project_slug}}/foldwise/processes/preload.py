"""Imports what the fork server's processes need; the server survives what cannot be imported."""

import importlib
import os
import signal
import threading

from foldwise.processes.server import COMMAND, NAMES


def _end_with_command(done: threading.Event) -> None:
    """A command that ends meanwhile, with a refusal as a rule, must not leave a server that imports for seconds."""
    while not done.wait(0.1):
        if str(os.getppid()) != os.environ.get(COMMAND):
            os._exit(1)


handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's, not a traceback of the server's
done = threading.Event()
watch = threading.Thread(target=_end_with_command, args=(done,), daemon=True)
watch.start()
for name in filter(None, os.environ.get(NAMES, "").split(",")):
    try:
        importlib.import_module(name)
    except (Exception, SystemExit):
        continue  # it would end the server silently; the process that needs the module shows the traceback
done.set()
watch.join()  # forks do not go with threads
signal.signal(signal.SIGINT, handler)  # which the forks inherit

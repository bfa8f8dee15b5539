"""Imports what the fork server's processes need; the server survives what cannot be imported."""

import importlib
import os

from foldwise.processes.server import NAMES

for name in filter(None, os.environ.get(NAMES, "").split(",")):
    try:
        importlib.import_module(name)
    except (Exception, SystemExit):
        continue  # it would end the server silently; the process that needs the module shows the traceback

"""Imported by the server that folds are forked from: loads what they need, and survives what cannot be loaded."""

import importlib
import os

from foldwise.processes.running import NAMES

for name in filter(None, os.environ.get(NAMES, "").split(",")):
    try:
        importlib.import_module(name)
    except (Exception, SystemExit):
        continue  # it would end the server without a word; the process that needs the module shows the traceback

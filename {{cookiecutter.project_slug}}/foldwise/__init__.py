"""The machinery: data, models, training, inference and predictions of one repository.

It is imported from the repository's root and never installed: two installed projects of one name
in one environment would import each other's code.
"""

import os

# Importing albumentations asks the package index for a newer version; a run makes no call that nobody asked for.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# The version of the files that a run leaves (run folders, model.json, predictions.json).
# Raised when their meaning changes, so that an old file is refused with a sentence and not misread.
FORMAT_VERSION = 2

import foldwise.code.alias  # noqa: E402, F401  finds the modules of runs' code, also in processes that unpickle them

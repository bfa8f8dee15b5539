"""The machinery: data, models, training, inference and predictions.

Imported from the repository's root and never installed: two installed projects of the same name would import each
other's code.
"""

import os

# Stops albumentations from asking the package index for updates at import.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# Version of run folders, model.json and predictions.json. Raised when their meaning changes, so that old files are
# refused instead of misread.
FORMAT_VERSION = 2

import foldwise.code.alias  # noqa: E402, F401  installs the import finder for runs' code

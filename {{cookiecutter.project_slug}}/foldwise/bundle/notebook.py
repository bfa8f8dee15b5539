"""The notebook that is submitted: one cell, which runs infer.py on whatever the host has in its folders."""

from pathlib import Path
from typing import Any

from foldwise.bundle.versions import WHEELS
from foldwise.files import write_json


def write_notebook(bundle: Path, name: str) -> None:
    """Write `notebook.ipynb` into a bundle, for a host that shows data sets of this name in /kaggle/input."""
    install = [f"!pip install --quiet --no-index --no-deps {{BUNDLE}}/{WHEELS}/*.whl\n"]
    source = [
        f'BUNDLE, DATA = "/kaggle/input/{name}", "/kaggle/input/competition"  # the uploaded bundle, the data\n',
        *(install if (bundle / WHEELS).is_dir() else []),
        "!python {BUNDLE}/infer.py --test {DATA}/test.csv --images {DATA}/test_images \\\n",
        "    --sample-submission {DATA}/sample_submission.csv --out /kaggle/working --time-limit 8h",
    ]
    cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "id": "infer", "metadata": {}, "outputs": []}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [{**cell, "source": source}], "metadata": {"kernelspec": kernel}}
    write_json(bundle / "notebook.ipynb", {**notebook, "nbformat": 4, "nbformat_minor": 5})

"""Fixtures that the tests share."""

import os
from pathlib import Path

# On tensors this small a second thread costs more than it brings. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from tiny import write_data


@pytest.fixture(scope="session", params=["multiclass", "multilabel", "segmentation"])
def task(request: pytest.FixtureRequest) -> str:
    """Each of the tasks."""
    return request.param


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small data set with the targets of all tasks."""
    return write_data(tmp_path_factory.mktemp("data"))

"""Fixtures that the tests share."""

from pathlib import Path

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

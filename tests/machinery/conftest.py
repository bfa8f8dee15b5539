"""Fixtures that the tests share."""

import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# On tensors this small a second thread costs more than it brings. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Code that tests trust is not the user's to trust.
os.environ.setdefault("FOLDWISE_STATE", tempfile.mkdtemp(prefix="foldwise-state-"))

import pytest
from tiny import write_data


@pytest.fixture(scope="session", params=["multiclass", "multilabel", "regression", "segmentation"])
def task(request: pytest.FixtureRequest) -> str:
    """Each of the tasks."""
    return request.param


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test trusts, the next does not."""
    monkeypatch.delenv("FOLDWISE_TRUST_CODE", raising=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small data set with the targets of all tasks."""
    return write_data(tmp_path_factory.mktemp("data"), shuffled=True)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a script of the repository's root in this process: exit code, output, errors.

    A process of its own would show nothing more, and takes seconds to import what is here already.
    """

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(Path(__file__).parents[1] / script), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run

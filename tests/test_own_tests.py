"""The tests that a rendering brings pass on the sample of each task, and on the examples."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from conftest import Render, run_command
from test_examples import TRIED, render_examples

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "segmentation"])
def test_they_pass_for_each_task(task: str, render: Render, tmp_path: Path) -> None:
    printed = run_command(PYTEST, render(tmp_path, task=task))
    assert re.search(r"\d+ passed", printed)


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_examples(render, tmp_path_factory.mktemp("examples"), "data/competition")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [choices for all_choices in TRIED.values() for choices in all_choices], ids=" ".join
)
def test_they_pass_for_each_example(choices: list[str], repository: Path) -> None:
    if choices[0] == "dicom" and importlib.util.find_spec("pydicom") is None:
        pytest.skip("needs pydicom")
    data = ["data.image_size=32", "data.columns.group=series"]
    printed = run_command(
        [*PYTEST, "--choices", " ".join([f"experiment={choices[0]}", *choices[1:], *data])], repository
    )
    assert re.search(r"\d+ passed", printed)

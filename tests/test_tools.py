"""Style and types: the template's Python as it lies here, and a rendering with the examples by its own settings."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SOURCE, Render
from test_examples import render_examples

TOOLS = [["ruff", "check", "--no-cache"], ["ruff", "format", "--check", "--no-cache"], ["mypy"]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One mypy cache for all: reading torch's types takes longest."""
    return tmp_path_factory.mktemp("mypy")


def check(command: list[str], cache: Path, folder: Path, *paths: str) -> None:
    """Run a tool on paths of a folder, on what its settings say for mypy; fails with what it found."""
    arguments = [*command, "--cache-dir", str(cache)] if command == ["mypy"] else [*command, *paths]
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)} in {folder}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("command", TOOLS, ids=" ".join)
def test_generator(command: list[str], cache: Path) -> None:
    check(command, cache, ROOT, "hooks", "tests")


@pytest.mark.parametrize("command", TOOLS, ids=" ".join)
def test_template_in_place(command: list[str], cache: Path) -> None:
    check(command, cache, SOURCE, ".")


@pytest.mark.parametrize("command", TOOLS, ids=" ".join)
def test_a_rendering_with_all_examples(command: list[str], render: Render, tmp_path: Path, cache: Path) -> None:
    check(command, cache, render_examples(render, tmp_path, "made"), ".")

"""The machinery as an installed package: a repository without foldwise/ goes the whole way with a wheel of it.

So no path in foldwise/ depends on the repository's root, and its YAML files are found in site-packages.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import Render, run_command
from test_end_to_end import go_the_whole_way

# uv brings this backend itself. It packs every file of the package, those that are no Python, too.
SETTINGS = """
[project]
name = "foldwise"
version = "0"
[build-system]
requires = ["uv_build"]
build-backend = "uv_build"
[tool.uv.build-backend]
module-root = ""
"""


@pytest.fixture
def python(template: Path, tmp_path: Path) -> str:
    """A Python of its own with a wheel of the machinery, and all else from the environment of these tests."""
    source = tmp_path / "wheel"
    shutil.copytree(template / "{{cookiecutter.project_slug}}" / "foldwise", source / "foldwise")
    (source / "pyproject.toml").write_text(SETTINGS)
    uv = [sys.executable, "-m", "uv", "--offline", "--quiet"]
    run_command([*uv, "build", "--wheel", str(source)], source)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(environment / "bin" / "python")
    run_command([*uv, "pip", "install", "--no-deps", "--python", python, *map(str, source.glob("dist/*.whl"))], source)
    shutil.rmtree(source)
    return python


def test_an_installed_machinery_goes_the_whole_way(python: str, render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path, task="regression", folds="2")
    shutil.rmtree(repository / "foldwise")
    where = run_command([python, "-c", "import foldwise; print(foldwise.__file__)"], repository)
    assert "site-packages" in where

    listed = run_command([python, "train.py", "--help"], repository)
    assert "\n* finetune_cnn " in listed and "\n  finetune_vit " in listed
    run = go_the_whole_way(repository, "regression", lambda words, folder: run_command([python, *words], folder))
    run_command([python, "bundle.py", str(run), "--out", "bundle"], repository)
    assert (repository / "bundle" / "foldwise" / "bundle" / "inferring.py").is_file()
    table = repository / "data" / "sample" / "regression" / "train.csv"
    options = ["--rehearse", "--table", str(table), "--rows", "20", "--workers", "0"]
    run_command([python, "bundle.py", "bundle", *options], repository)

"""A rendering on a bare machine: installs from its lock, trains its baseline, passes its own tests."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import SOURCE, Render, run_command

LOCK = (SOURCE / "requirements.lock").read_text()


def test_lock_is_exact_and_names_no_index() -> None:
    for line in LOCK.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), f"not a plain exact requirement: {line}"


def test_lock_has_every_dependency() -> None:
    names = set(re.findall(r"^([a-z0-9-]+)==", LOCK, re.MULTILINE))
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    for requirement in [*settings["project"]["dependencies"], *settings["dependency-groups"]["dev"]]:
        assert re.split(r"[^A-Za-z0-9-]", requirement)[0].lower() in names, (
            f"{requirement} is not locked; run make lock"
        )


def test_a_fresh_environment_trains_the_baseline_and_passes_the_tests(render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path, task="multiclass", logger="csv")
    said = run_command(["make", "setup", f"PYTHON={sys.executable}"], repository)
    assert "source .venv/bin/activate" in said and "python train.py experiment=baseline" in said
    command = [".venv/bin/python", "train.py", "experiment=baseline", "epochs=1", "data.folds=2", "fold=0"]
    run_command([*command, "trainer.limit_train_batches=3"], repository)
    assert list(repository.glob("runs/*/fold0/metrics.json"))
    said = run_command(["make", "test"], repository, timeout=1200)
    assert re.search(r"\d+ passed", said)
    print(said.splitlines()[-1])


def test_help_lists_every_target(render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path)
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE)
    said = run_command(["make"], repository)
    assert [line.split()[1] for line in said.splitlines()] == targets


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A Python with a torch and torchvision of its own (two empty ones), as a hosted notebook has."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "host")], check=True)
    (packages,) = (tmp_path / "host" / "lib").glob("python*/site-packages")
    for name in ("torch", "torchvision"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("__version__ = 'of the host'\n")
    return tmp_path / "host" / "bin" / "python"


def test_torch_of_the_host_is_kept(host: Path, render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path)
    run_command(["make", "setup", "TORCH=keep", f"PYTHON={host}"], repository)
    program = "import numpy, torch, torchvision; print(torch.__version__, torchvision.__version__, numpy.__file__)"
    said = run_command([".venv/bin/python", "-c", program], repository)
    assert said.startswith("of the host of the host ")
    assert str(repository / ".venv") in said
    assert not list(repository.glob(".venv/lib/*/site-packages/nvidia*"))


def test_keep_needs_a_torch(host: Path, render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path)
    (torch,) = (tmp_path / "host").glob("lib/*/site-packages/torch")
    shutil.rmtree(torch)
    done = subprocess.run(
        ["make", "setup", "TORCH=keep", f"PYTHON={host}"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "which has no torch; run plain make setup." in done.stderr
    assert not (repository / ".venv").exists()


def test_other_pythons_are_refused(render: Render, tmp_path: Path) -> None:
    repository = render(tmp_path)
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\nexec "$REAL" -c "import sys; sys.version_info = (3, 10, 0); exec(sys.argv[1])" "$2"\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "setup", f"PYTHON={old}"],
        cwd=repository,
        env={**os.environ, "REAL": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "This needs Python 3.11, 3.12 or 3.13" in done.stderr and "is 3.10" in done.stderr
    assert not (repository / ".venv").exists()

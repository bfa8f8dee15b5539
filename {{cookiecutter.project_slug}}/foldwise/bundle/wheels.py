"""Wheels of what a host lacks, so that it needs no network; torch and CUDA are always the host's own."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from foldwise.errors import Refusal
from foldwise.files import read_text

OPENCV = re.compile(r"opencv-(contrib-)?python(-headless)?")  # they are all cv2, and would overwrite each other
HOSTS_OWN = re.compile(r"torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*")


def download_wheels(modules: Sequence[str], host_packages: Path, folder: Path) -> None:
    """Download wheels, in the versions that are installed here, of what modules need and the host lacks.

    Args:
        host_packages: a text with the host's `pip freeze`.
        folder: to make, unless nothing is lacking.

    Raises:
        Refusal: there is no such file, or pip is not there or could not download them.
    """
    if not host_packages.is_file():
        raise Refusal(f"--wheels {host_packages} does not exist: on the host, pip freeze > {host_packages.name}")
    lines = read_text(host_packages).splitlines()
    there = {_kind(_canonical(re.split(r"==| @ |>=", line)[0])) for line in lines if line and line[0] != "#"}
    needed = [name for name in sorted(_required(modules)) if _kind(name) not in there]
    lacking = [f"{name}=={importlib.metadata.version(name)}" for name in needed]
    if not lacking:
        return
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *lacking]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"wheels of {', '.join(lacking)} could not be downloaded: {done.stderr.strip()}")


def _pip() -> list[str]:
    """The command of pip; environments that uv made have none, but uv can bring it."""
    if _is_installed("pip"):  # find_spec("pip") would keep setuptools, and so torch.compile, from this process
        return [sys.executable, "-m", "pip"]
    if shutil.which("uv") is not None:
        return ["uv", "tool", "run", "--python", sys.executable, "pip"]
    raise Refusal("--wheels downloads with pip, which is not here: python -m ensurepip")


def _required(modules: Sequence[str]) -> set[str]:
    """The packages of modules and all that they require, without the host's own."""
    packages = importlib.metadata.packages_distributions()
    waiting = [_canonical(packages[module][0]) for module in modules]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found and not HOSTS_OWN.fullmatch(name):
            found.add(name)
            waiting += _requirements(name)
    return found


def _requirements(name: str) -> Iterator[str]:
    """The installed packages that a package requires, but for its extras."""
    for line in importlib.metadata.requires(name) or []:
        requirement, _, marker = line.partition(";")
        other = _canonical(re.split(r"[\s\[<>=!~(]", requirement.strip())[0])
        if "extra" not in marker and _is_installed(other):
            yield other


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _kind(name: str) -> str:
    """The name, one for all packages of OpenCV."""
    return "opencv" if OPENCV.fullmatch(name) else name


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

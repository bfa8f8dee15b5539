"""Wheels of what a host lacks, so that it needs no network; torch and CUDA are always the host's own."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
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
    lines = [line for line in read_text(host_packages).splitlines() if line and line[0] != "#"]
    there = {_canonical(re.split(r"==| @ |>=", line)[0]) for line in lines}
    required = required_packages(modules)
    if any(map(OPENCV.fullmatch, there)):
        required = {name for name in required if not OPENCV.fullmatch(name)}
    lacking = [f"{name}=={metadata.version(name)}" for name in sorted(required - there)]
    if not lacking:
        return
    if _is_installed("pip"):  # find_spec("pip") would keep setuptools, and so torch.compile, from this process
        pip = [sys.executable, "-m", "pip"]
    elif shutil.which("uv") is not None:  # environments that uv made have no pip, but uv can bring it
        pip = ["uv", "tool", "run", "--python", sys.executable, "pip"]
    else:
        raise Refusal("--wheels downloads with pip, which is not here: python -m ensurepip")
    command = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *lacking]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"wheels of {', '.join(lacking)} could not be downloaded: {done.stderr.strip()}")


def required_packages(modules: Sequence[str]) -> set[str]:
    """The packages of modules and all that they require, without extras and the host's own."""
    packages = metadata.packages_distributions()
    waiting = [_canonical(packages[module][0]) for module in modules]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or HOSTS_OWN.fullmatch(name) or not _is_installed(name):
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker:
                waiting.append(_canonical(re.split(r"[\s\[<>=!~(]", requirement.strip())[0]))
    return found


def _is_installed(name: str) -> bool:
    return bool(list(metadata.distributions(name=name)))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

"""Wheels of packages that an offline host lacks; torch and CUDA always come from the host."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from foldwise.errors import Refusal
from foldwise.files import read_text

OPENCV = re.compile(r"opencv-(contrib-)?python(-headless)?")  # all of them install cv2 and overwrite each other
HOSTS_OWN = re.compile(r"torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*")


def download_wheels(modules: Sequence[str], host_packages: Path, folder: Path) -> None:
    """Download wheels of what `modules` need and the host (a `pip freeze` file) lacks, in the versions used here."""
    if not host_packages.is_file():
        raise Refusal(f"--wheels {host_packages} does not exist: on the host, pip freeze > {host_packages.name}")
    lines = [line for line in read_text(host_packages).splitlines() if line and line[0] != "#"]
    on_host = {_canonical(re.split(r"==| @ |>=", line)[0]) for line in lines}
    required = required_packages(modules)
    if any(map(OPENCV.fullmatch, on_host)):
        required = {name for name in required if not OPENCV.fullmatch(name)}
    missing = [f"{name}=={metadata.version(name)}" for name in sorted(required - on_host)]
    if not missing:
        return
    if _is_installed("pip"):  # find_spec("pip") would break setuptools, and so torch.compile, in this process
        pip = [sys.executable, "-m", "pip"]
    elif shutil.which("uv") is not None:  # environments made by uv have no pip
        pip = ["uv", "tool", "run", "--python", sys.executable, "pip"]
    else:
        raise Refusal("--wheels needs pip, which is not installed: python -m ensurepip")
    command = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), *missing]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refusal(f"wheels of {', '.join(missing)} could not be downloaded: {done.stderr.strip()}")


def required_packages(modules: Sequence[str]) -> set[str]:
    """Packages of `modules` with all dependencies, without extras and packages of `HOSTS_OWN`."""
    packages = metadata.packages_distributions()
    todo = [_canonical(packages[module][0]) for module in modules]
    required: set[str] = set()
    while todo:
        name = todo.pop()
        if name in required or HOSTS_OWN.fullmatch(name) or not _is_installed(name):
            continue
        required.add(name)
        for line in metadata.requires(name) or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker:
                todo.append(_canonical(re.split(r"[\s\[<>=!~(]", requirement.strip())[0]))
    return required


def _is_installed(name: str) -> bool:
    return bool(list(metadata.distributions(name=name)))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

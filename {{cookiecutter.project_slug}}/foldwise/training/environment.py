"""The record of where and with what a run was made: command, code, packages, hardware. No environment variables."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foldwise.machinery import edited_files

PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "timm", "segmentation-models-pytorch", "albumentations",
    "opencv-python-headless", "numpy", "pandas", "scikit-learn", "hydra-core", "safetensors",
)  # fmt: skip


def describe_environment(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values for environment.json.

    Args:
        hardware: what `processes.probe_hardware` found.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "diff": _git("diff", "HEAD"),
        "edited_machinery": edited_files(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": dict(hardware),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What a git command prints, or None without git, outside a repository, or before the first commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

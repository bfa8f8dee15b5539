"""Running a command as a host would: without network, on a read-only folder, in a clean environment."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEPT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # where programs and processors are
NAMESPACES = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c"]
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" && shift && exec "$@"'
# Found by Python on its path before anything else runs. Sockets within the machine stay: workers talk through them.
NO_SOCKETS = """import socket

connect = socket.socket.connect


def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError("the rehearsal has no network")
    return connect(self, address)


socket.socket.connect = refuse
"""


def has_namespaces(folder: Path) -> bool:
    """Whether this machine lets us take the network away and a folder's permission to be written."""
    try:
        return not subprocess.run([*NAMESPACES, READ_ONLY, "sh", str(folder), "true"], capture_output=True).returncode
    except FileNotFoundError:
        return False


def run_sandboxed(
    command: Sequence[str], read_only: Path, work: Path, namespaces: bool
) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder `read_only`, with a home in `work`.

    Without `namespaces`, Python's sockets are blocked, and files protected, which does not keep root from writing.
    """
    home = work / "home"
    home.mkdir()
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"HOME": str(home), "LANG": "C.UTF-8"}
    if namespaces:
        command = [*NAMESPACES, READ_ONLY, "sh", str(read_only), *command]
    else:
        (home / "sitecustomize.py").write_text(NO_SOCKETS, encoding="utf-8")
        environment["PYTHONPATH"] = str(home)
        _protect(read_only, 0o555, 0o444)
    try:
        return subprocess.run(command, cwd=read_only, env=environment, text=True, capture_output=True)
    finally:
        if not namespaces:
            _protect(read_only, 0o755, 0o644)  # so that it can be deleted


def _protect(folder: Path, folders: int, files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(folders if path.is_dir() else files)

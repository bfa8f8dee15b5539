"""Finish a rendering: remove what an answer made unwanted, list the machinery, start git, say what comes next.

Standard library only; asks nothing and needs no network. How the answers arrive: see pre_gen_project.py.
"""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path


def git(*arguments: str) -> bool:
    """Run git quietly in the new repository; whether it succeeded."""
    return (
        subprocess.run(["git", *arguments], capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    )


def start_git() -> str:
    """Make the new folder a git repository on branch main; a sentence on what was done."""
    if shutil.which("git") is None:
        return "git is not installed, so this is not a git repository yet."
    if git("rev-parse", "--is-inside-work-tree"):
        return "The folder lies inside another git repository, so none was started in it."
    # symbolic-ref names the first branch on every version of git; `init --initial-branch` needs 2.28
    if git("init") and git("symbolic-ref", "HEAD", "refs/heads/main"):
        return "An empty git repository was started, on branch main."
    return "git init failed; start the repository by hand."


def write_manifest(folder: Path) -> None:
    """Write manifest.json, the SHA-256 of each file of the machinery, by which foldwise/machinery.py finds edits."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    contents = {path.relative_to(folder).as_posix(): path.read_bytes().replace(b"\r\n", b"\n") for path in files}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (folder / "manifest.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    answers = json.loads(r"""{{ cookiecutter | jsonify }}""")
    if answers["license"] == "Proprietary":
        Path("LICENSE").unlink()
    write_manifest(Path("foldwise"))
    print(f"\n{Path.cwd().name} is ready. {start_git()} Next:\n")
    print(f"  cd {Path.cwd().name}\n  make setup\n  make baseline\n")

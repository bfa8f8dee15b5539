"""A newer template reaches a repository by cruft: the machinery is replaced, what the owner has is kept."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command

SOURCE = "{{cookiecutter.project_slug}}"
OWNERS = {
    "solution/mine.py": "ANSWER = 42\n",
    "configs/optimizer/adamw.yaml": "# Mine.\nopt: adamw\n",
    "README.md": "# Mine\n",
}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a state")


def cruft(folder: Path, *arguments: str) -> str:
    return run_command([sys.executable, "-m", "cruft", *arguments], folder)


def digests(folder: Path) -> dict[str, str]:
    """What the manifest of a machinery should have."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def repositories(template: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the template under git, and a repository that cruft made from it, with edits of its owner's."""
    copy = tmp_path / "template"
    shutil.copytree(template, copy)
    git(tmp_path, "init", "--quiet", str(copy))
    commit(copy)
    cruft(tmp_path, "create", str(copy), "--no-input", "--output-dir", str(tmp_path))
    repository = tmp_path / "my-competition"
    for name, content in OWNERS.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    with (repository / "configs" / "train.yaml").open("a") as file:
        file.write("# mine\n")
    commit(repository)
    return copy, repository


def test_update_replaces_the_machinery_and_keeps_what_the_owner_has(repositories: tuple[Path, Path]) -> None:
    template, repository = repositories
    before = (repository / "configs" / "train.yaml").read_text()
    code, choice = template / SOURCE / "foldwise" / "files.py", template / SOURCE / "foldwise/configs/tta/new.yaml"
    code.write_text(code.read_text() + "\n\nNEWER = True\n")
    choice.write_text("# A new choice.\nviews: [identity]\nmean: arithmetic\n")
    (template / SOURCE / "foldwise" / "locks.py").unlink()
    with (template / SOURCE / "configs" / "train.yaml").open("a") as file:
        file.write("# the template's\n")
    for name in ("README.md", "predict.py"):
        with (template / SOURCE / name).open("a") as file:
            file.write("# newer\n")
    commit(template)

    assert "has been updated" in cruft(repository, "update", "--skip-apply-ask")
    assert not [path for path in repository.rglob("*") if path.suffix in (".rej", ".orig")]
    assert not git(repository, "diff", "--name-only", "--diff-filter=U")
    machinery = repository / "foldwise"
    assert (machinery / "files.py").read_text().endswith("NEWER = True\n")
    assert (machinery / "configs" / "tta" / "new.yaml").read_text() == choice.read_text()
    assert not (machinery / "locks.py").exists()
    assert (repository / "predict.py").read_text().endswith("# newer\n")
    assert json.loads((machinery / "manifest.json").read_text()) == digests(machinery)
    for name, content in OWNERS.items():
        assert (repository / name).read_text() == content
    assert (repository / "configs" / "train.yaml").read_text() == before


def test_an_edit_of_the_machinery_is_merged_and_still_reported(repositories: tuple[Path, Path]) -> None:
    template, repository = repositories
    edited, newer = (folder / "foldwise" / "files.py" for folder in (repository, template / SOURCE))
    edited.write_text(edited.read_text() + "\n\nEDITED = True\n")
    commit(repository)
    newer.write_text("# newer\n" + newer.read_text())
    commit(template)
    cruft(repository, "update", "--skip-apply-ask")
    text = edited.read_text()
    assert text.startswith("# newer\n") and text.endswith("EDITED = True\n")
    program = "from foldwise.machinery import describe_edits; print(describe_edits())"
    said = run_command([sys.executable, "-c", program], repository)
    assert said == "machinery edited: foldwise/files.py; put your own code in solution/\n"

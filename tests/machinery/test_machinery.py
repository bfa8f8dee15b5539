"""Edits of the machinery are found by the manifest of the rendering, and never an error."""

import hashlib
import json
from pathlib import Path

import pytest

from foldwise import machinery
from foldwise.machinery import describe_edits, edited_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machinery of five files with its manifest."""
    folder = tmp_path / "foldwise"
    files = {"a.py": b"1\n", "b.py": b"2\r\n", "data/c.py": b"3\n", "configs/tta/d.yaml": b"4\n", "e.txt": b"5\n"}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content.replace(b"\r", b"")).hexdigest() for name, content in files.items()}
    (folder / "manifest.json").write_text(json.dumps(digests))
    monkeypatch.setattr(machinery, "FOLDER", folder)
    monkeypatch.setattr(machinery, "MANIFEST", folder / "manifest.json")
    return folder


def test_changed_removed_and_added_files_are_listed(folder: Path):
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.py").write_text("cached")
    (folder / "notes.txt").write_text("no code")
    assert edited_files() == [] and describe_edits() is None
    (folder / "data" / "c.py").write_text("edited")
    (folder / "configs" / "tta" / "mine.yaml").write_text("added")
    assert edited_files() == ["foldwise/configs/tta/mine.yaml", "foldwise/data/c.py"]
    assert describe_edits() == (
        "machinery edited: foldwise/configs/tta/mine.yaml, foldwise/data/c.py; put your own code in solution/"
    )
    (folder / "b.py").unlink()
    (folder / "e.txt").write_text("edited")
    assert edited_files()[2:] == ["foldwise/data/c.py", "foldwise/e.txt"]
    assert ", foldwise/data/c.py and 1 more; put" in (describe_edits() or "")


@pytest.mark.parametrize("content", [None, "", "[]", '{"a.py": 1'])
def test_without_a_readable_manifest_nothing_is_edited(folder: Path, content: str | None):
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    assert edited_files() == [] and describe_edits() is None

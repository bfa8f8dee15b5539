"""Edits of the machinery: the files of foldwise/ that differ from those that the template rendered."""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"  # written by the template's hooks/post_gen_project.py; a wheel has none


def edited_files() -> list[str]:
    """The files of foldwise/ that were changed, removed or added since rendering, as foldwise/...; sorted.

    Of the added ones only code and choices count. Empty without a manifest, or with one that cannot be read.
    """
    try:
        rendered = json.loads(MANIFEST.read_text(encoding="utf-8"))
        present = {
            path.relative_to(FOLDER).as_posix(): path
            for path in FOLDER.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path != MANIFEST
        }
        edited = [name for name, digest in rendered.items() if name not in present or _hash(present[name]) != digest]
    except (OSError, ValueError, AttributeError):
        return []
    edited += [name for name in present.keys() - rendered.keys() if name.endswith((".py", ".yaml"))]
    return sorted(f"{FOLDER.name}/{name}" for name in edited)


def describe_edits() -> str | None:
    """A sentence on the edited files; None when there are none."""
    edited = edited_files()
    names = ", ".join(edited[:3]) + (f" and {len(edited) - 3} more" if len(edited) > 3 else "")
    return f"machinery edited: {names}; put your own code in solution/" if edited else None


def _hash(path: Path) -> str:
    """SHA-256 of a file with the line ends that it was rendered with: git may write others when it checks out."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()

"""Finds files of foldwise/ that differ from the template."""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "manifest.json"  # written by hooks/post_gen_project.py; wheels have none


def edited_files() -> list[str]:
    """Sorted paths (foldwise/...) of files changed, removed or added since rendering.

    Added files count if they are Python or YAML. Empty without a readable manifest.
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
    """A warning about edited files; None if there are none."""
    edited = edited_files()
    names = ", ".join(edited[:3]) + (f" and {len(edited) - 3} more" if len(edited) > 3 else "")
    return f"machinery edited: {names}; put your own code in solution/" if edited else None


def _hash(path: Path) -> str:
    """SHA-256 of a file with LF line ends: git may check out others."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()

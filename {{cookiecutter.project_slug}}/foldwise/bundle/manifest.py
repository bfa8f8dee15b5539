"""The files of a bundle with their sizes and hashes, and what takes the room."""

from collections import Counter
from pathlib import Path, PurePosixPath

from foldwise.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"
MB = 1e6


def write_manifest(bundle: Path) -> dict[str, int]:
    """List every file with its bytes and SHA-256; the bytes by path."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    sizes = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in paths}
    files = {name: {"bytes": size, "sha256": sha256_file(bundle / name)} for name, size in sizes.items()}
    write_json(bundle / MANIFEST, {"bytes": sum(sizes.values()), "files": files})
    return sizes


def manifest_problems(bundle: Path) -> list[str]:
    """Files that are missing or of another size: an upload that broke off. Hashes of weights are checked on loading."""
    problems = []
    for name, entry in read_json(bundle / MANIFEST)["files"].items():
        path = bundle / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes and should have {entry['bytes']}")
    return problems


def room(sizes: dict[str, int]) -> list[tuple[str, float]]:
    """(what, MB), the largest first: each run's models, the code, wheels."""
    total: Counter[str] = Counter()
    for name, size in sizes.items():
        parts = PurePosixPath(name).parts
        what = "/".join(parts[:2]) if parts[0] == "models" else parts[0] if parts[0] == "wheels" else "code"
        total[what] += size
    return [(what, size / MB) for what, size in total.most_common()]


def room_lines(sizes: dict[str, int]) -> list[str]:
    """The list as text."""
    rows = [*room(sizes), ("together", sum(sizes.values()) / MB)]
    return [f"  {size:9.1f} MB  {what}" for what, size in rows]

"""Manifest of a bundle, and check of files and package versions on the host. Imports nothing heavy."""

import importlib.metadata
import importlib.util
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from foldwise.errors import Refusal
from foldwise.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"
WHEELS = "wheels"
PYTHON = "python"
MB = 1e6


def write_manifest(bundle: Path) -> dict[str, int]:
    """List every file with its bytes and SHA-256; return the bytes by path."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    sizes = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in paths}
    files = {name: {"bytes": size, "sha256": sha256_file(bundle / name)} for name, size in sizes.items()}
    write_json(bundle / MANIFEST, {"bytes": sum(sizes.values()), "files": files})
    return sizes


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """Table of sizes in MB, largest first: each run's models, code, wheels."""
    total: Counter[str] = Counter()
    for name, size in sizes.items():
        parts = PurePosixPath(name).parts
        total["/".join(parts[:2]) if parts[0] == "models" else WHEELS if parts[0] == WHEELS else "code"] += size
    rows = [*total.most_common(), ("total", sum(sizes.values()))]
    return "\n".join(f"  {size / MB:9.1f} MB  {name}" for name, size in rows)


def installed_versions(modules: Sequence[str]) -> dict[str, str]:
    """Versions of Python and the installed ones of `modules`; by module, since several packages provide cv2."""
    packages = importlib.metadata.packages_distributions()
    versions = {PYTHON: platform.python_version()}
    for name in modules:
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.metadata.version(packages[name][0]) if name in packages else "unknown"
    return versions


def check_host(bundle: Path, any_version: bool) -> None:
    """Print which versions differ from those where the bundle was written.

    Raises:
        Refusal: files are missing or truncated, a package is missing, or has another major version (unless
            `any_version`).
    """
    if not (bundle / MANIFEST).is_file():
        raise Refusal(f"{bundle} is incomplete: it has no {MANIFEST}; upload it again")
    problems = []
    for name, entry in read_json(bundle / MANIFEST)["files"].items():
        path = bundle / name  # sizes are enough to find a broken upload; loading a model checks its hash
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
    if problems:
        raise Refusal(f"{bundle} is incomplete, upload it again: {'; '.join(problems)}")
    expected = read_json(bundle / "bundle.json")["versions"]
    here = installed_versions([name for name in expected if name != PYTHON])
    missing, major = [name for name in expected if name not in here], []
    for name in here:
        if here[name] != expected[name]:
            note = f"{name} is {here[name]} here, but {expected[name]} where the bundle was written"
            print(f"note: {note}")
            major += [note] if here[name].split(".")[0] != expected[name].split(".")[0] else []
    if missing:
        wheels = bundle / WHEELS
        command = f"pip install --no-index --no-deps {wheels}/*.whl" if wheels.is_dir() else "bundle.py --wheels"
        raise Refusal(f"{', '.join(missing)} cannot be imported here; {command} adds missing packages")
    if major and not any_version:
        raise Refusal(f"{'; '.join(major)}: predictions may differ; to accept that, add --any-version")

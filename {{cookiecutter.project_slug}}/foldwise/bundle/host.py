"""The manifest of a bundle, and the check of its host: files, packages and their versions. Imports nothing heavy."""

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
    """List every file with its bytes and SHA-256; the bytes by path."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    sizes = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in paths}
    files = {name: {"bytes": size, "sha256": sha256_file(bundle / name)} for name, size in sizes.items()}
    write_json(bundle / MANIFEST, {"bytes": sum(sizes.values()), "files": files})
    return sizes


def describe_sizes(sizes: Mapping[str, int]) -> str:
    """What takes how many MB, the largest first: each run's models, the code, wheels."""
    total: Counter[str] = Counter()
    for name, size in sizes.items():
        parts = PurePosixPath(name).parts
        total["/".join(parts[:2]) if parts[0] == "models" else WHEELS if parts[0] == WHEELS else "code"] += size
    rows = [*total.most_common(), ("together", sum(sizes.values()))]
    return "\n".join(f"  {size / MB:9.1f} MB  {what}" for what, size in rows)


def installed_versions(modules: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those modules that are installed; by module, since OpenCV has many packages."""
    packages = importlib.metadata.packages_distributions()
    found = {PYTHON: platform.python_version()}
    for name in modules:
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(packages[name][0]) if name in packages else "unknown"
    return found


def check_host(bundle: Path, any_version: bool) -> None:
    """Print which versions differ from those that the bundle was made with.

    Raises:
        Refusal: files of the bundle are missing or cut off, a package is missing, or, without `any_version`, has
            another major version.
    """
    if not (bundle / MANIFEST).is_file():
        raise Refusal(f"{bundle} is not a whole bundle: it has no {MANIFEST}; upload it again")
    problems = []
    for name, entry in read_json(bundle / MANIFEST)["files"].items():
        path = bundle / name  # sizes show a broken upload; loading a model checks its hash
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes and should have {entry['bytes']}")
    if problems:
        raise Refusal(f"{bundle} is not whole, upload it again: {'; '.join(problems)}")
    there = read_json(bundle / "bundle.json")["versions"]
    here = installed_versions([name for name in there if name != PYTHON])
    missing, major = [name for name in there if name not in here], []
    for name in here:
        if here[name] != there[name]:
            note = f"{name} is {here[name]} here, and {there[name]} where the bundle was made"
            print(f"note: {note}")
            major += [note] if here[name].split(".")[0] != there[name].split(".")[0] else []
    if missing:
        wheels = bundle / WHEELS
        command = f"pip install --no-index --no-deps {wheels}/*.whl" if wheels.is_dir() else "bundle.py --wheels"
        raise Refusal(f"{', '.join(missing)} cannot be imported here; {command} brings what a host lacks")
    if major and not any_version:
        raise Refusal(f"{'; '.join(major)}: predictions may differ; to accept that, add --any-version")

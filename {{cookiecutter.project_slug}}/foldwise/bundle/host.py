"""Is a bundle whole, and has its host what it needs, in the versions it was made with? Imports nothing heavy."""

import importlib.metadata
import importlib.util
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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


class Difference(NamedTuple):
    """A package whose version is `here` (None: missing), and was `there` where the bundle was written."""

    name: str
    there: str
    here: str | None

    def __str__(self) -> str:
        return f"{self.name} is {self.here or 'missing'} here, and {self.there} where the bundle was made"

    @property
    def major(self) -> bool:
        """Whether it is missing or its first number differs."""
        return self.here is None or self.here.split(".")[0] != self.there.split(".")[0]


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
    entries = read_json(bundle / MANIFEST)["files"].items()  # sizes show a broken upload; loading checks the hashes
    sizes = {name: (bundle / name).stat().st_size if (bundle / name).is_file() else None for name, _ in entries}
    problems = [
        f"{name} is missing" if sizes[name] is None else f"{name} has {sizes[name]} bytes, not {entry['bytes']}"
        for name, entry in entries
        if sizes[name] != entry["bytes"]
    ]
    if problems:
        raise Refusal(f"{bundle} is not whole, upload it again: {'; '.join(problems)}")
    there = read_json(bundle / "bundle.json")["versions"]
    here = installed_versions([name for name in there if name != PYTHON])
    differences = [Difference(name, version, here.get(name)) for name, version in there.items()]
    differences = [difference for difference in differences if difference.here != difference.there]
    for difference in differences:
        print(f"note: {difference}")
    missing = [difference.name for difference in differences if difference.here is None]
    if missing:
        wheels = bundle / WHEELS
        command = f"pip install --no-index --no-deps {wheels}/*.whl" if wheels.is_dir() else "bundle.py --wheels"
        raise Refusal(f"{', '.join(missing)} cannot be imported here; {command} brings what a host lacks")
    other = [str(difference) for difference in differences if difference.major]
    if other and not any_version:
        raise Refusal(f"{'; '.join(other)}: predictions may differ; to accept that, add --any-version")

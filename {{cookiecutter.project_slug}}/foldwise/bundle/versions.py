"""Whether the host has what a bundle needs, in the versions that it was made with. Nothing heavy is imported."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from foldwise.bundle.manifest import MANIFEST, manifest_problems
from foldwise.errors import Refusal
from foldwise.files import read_json

PYTHON = "python"
WHEELS = "wheels"


class Difference(NamedTuple):
    """A package of another version here than where the bundle was made; `here` None: it is missing."""

    name: str
    there: str
    here: str | None

    def __str__(self) -> str:
        return f"{self.name} is {self.here or 'missing'}" + f" here, and {self.there} where the bundle was made"

    @property
    def major(self) -> bool:
        """Whether it is missing or its first number differs."""
        return self.here is None or self.here.split(".")[0] != self.there.split(".")[0]


def installed_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those modules that are there; by the module's name, since OpenCV has many packages."""
    packages = importlib.metadata.packages_distributions()
    found = {PYTHON: platform.python_version()}
    for name in names:
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(packages[name][0]) if name in packages else "unknown"
    return found


def find_differences(there: Mapping[str, str]) -> list[Difference]:
    """What differs here."""
    here = installed_versions([name for name in there if name != PYTHON])
    return [Difference(name, version, here.get(name)) for name, version in there.items() if here.get(name) != version]


def check_host(bundle: Path, any_version: bool) -> None:
    """Say which versions differ from those that the bundle was made with.

    Raises:
        Refusal: files of the bundle are missing or cut off, a package is missing, or, without `any_version`,
            has another major version.
    """
    if not (bundle / MANIFEST).is_file():
        raise Refusal(f"{bundle} is not a whole bundle: it has no {MANIFEST}; upload it again")
    problems = manifest_problems(bundle)
    if problems:
        raise Refusal(f"{bundle} is not whole, upload it again: {'; '.join(problems)}")
    differences = find_differences(read_json(bundle / "bundle.json")["versions"])
    for difference in differences:
        print(f"note: {difference}")
    missing = [difference.name for difference in differences if difference.here is None]
    if missing:
        wheels = bundle / WHEELS
        command = f"pip install --no-index --no-deps {wheels}/*.whl" if wheels.is_dir() else "bundle.py --wheels"
        raise Refusal(f"{', '.join(missing)} cannot be imported here; {command} brings what a host lacks")
    other = [str(difference) for difference in differences if difference.major]
    if other and not any_version:
        raise Refusal(f"{'; '.join(other)}: predictions may differ; --any-version goes on in spite of it")

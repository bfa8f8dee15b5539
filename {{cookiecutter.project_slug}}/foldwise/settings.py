"""The choices of all groups and the names of all settings, and which of them may have been meant; no Hydra.

A choice is a file `<group>/<choice>.yaml`. The owner's, in `configs/` where the command is started, come before the
library's in `foldwise/configs/`: a file in both places counts once, the owner's.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from foldwise.errors import Refusal

OWNER = Path.cwd() / "configs"
LIBRARY = Path(__file__).with_name("configs")
# In the order of Hydra's search path, which configs/train.yaml extends by the library.
CONFIGS = tuple(folder for folder in (OWNER, LIBRARY) if folder.is_dir())


@cache
def list_groups() -> list[str]:
    """All groups, sorted."""
    return sorted({path.parent.name for folder in CONFIGS for path in folder.glob("*/*.yaml")})


def list_choices(group: str) -> dict[str, Path]:
    """The file of each choice of a group, sorted by name; those in its folders as amazon/albu."""
    files: dict[str, Path] = {}
    for folder in CONFIGS:
        for path in (folder / group).rglob("*.yaml"):
            files.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    return dict(sorted(files.items()))


def find_choice(group: str, choice: str) -> Path:
    """The file of a choice: the owner's where there is one, else the library's.

    Raises:
        Refusal: the group has no such choice.
    """
    path = list_choices(group).get(choice)
    if path is None:
        raise Refusal(unknown_choice(group, choice))
    return path


@cache
def known_settings() -> tuple[str, ...]:
    """Every setting of every choice of every group, as it is written on the command line, and the groups themselves."""
    names = dict.fromkeys(run_settings())
    for group in list_groups():
        names[group] = None
        for path in list_choices(group).values():
            if "@package _global_" not in path.read_text(encoding="utf-8"):
                names |= dict.fromkeys(_flatten(_read(path), group))
    return tuple(names)


def run_settings() -> list[str]:
    """The settings of a run that are in no group, from the owner's train.yaml."""
    path = OWNER / "train.yaml"
    return [name for name in _read(path) if name not in ("defaults", "hydra")] if path.is_file() else []


def unknown_setting(name: str, known: Sequence[str] = ()) -> str:
    """A sentence for a setting that does not exist, with the one that may have been meant.

    Args:
        known: those that there are; by default all.
    """
    known = known or known_settings()
    same_end = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = nearest(name, same_end, 0.0) or nearest(name, known)
    return f"there is no setting {name!r}{f'; did you mean {hint}?' if hint else ': python train.py --help lists all'}"


def unknown_choice(group: str, choice: str) -> str:
    """A sentence for a choice that a group does not have."""
    known = list(list_choices(group))
    hint = nearest(choice, known)
    suggestion = f", did you mean {hint}?" if hint else ""
    return f"there is no {group}={choice}{suggestion} ({group} is one of {', '.join(known)})"


def nearest(name: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The name that is most like another one, where one is."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _flatten(value: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, inner in value.items():
        yield f"{prefix}.{key}"
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}.{key}")

"""The names of all settings, read from the files in configs/, and which of them somebody may have meant."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parent.parent / "configs"


@cache
def known_settings() -> tuple[str, ...]:
    """Every setting of every choice of every group, as it is written on the command line, and the groups themselves."""
    names = {name: None for name in _read(CONFIGS / "train.yaml") if name not in ("defaults", "hydra")}
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        names[path.parent.name] = None
        if "@package _global_" not in path.read_text(encoding="utf-8"):
            names |= dict.fromkeys(_flatten(_read(path), path.parent.name))
    return tuple(names)


def unknown_setting(name: str, known: Sequence[str] = ()) -> str:
    """A sentence for a setting that does not exist, with the one that may have been meant.

    Args:
        known: those that there are; by default all.
    """
    known = known or known_settings()
    same_end = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = nearest(name, same_end, 0.0) or nearest(name, known)
    return f"there is no setting {name!r}{f'; did you mean {hint}?' if hint else ': python train.py --help lists all'}"


def choices(group: str) -> list[str]:
    """The choices of a group, with those in its folders, as amazon/albu."""
    paths = (CONFIGS / group).rglob("*.yaml")
    return sorted(path.relative_to(CONFIGS / group).with_suffix("").as_posix() for path in paths)


def unknown_choice(group: str, choice: str) -> str:
    """A sentence for a choice that a group does not have."""
    known = choices(group)
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

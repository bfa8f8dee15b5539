"""The choices of all groups, the names of all settings, and `python train.py --help`; without Hydra and torch.

A choice is a file `<group>/<choice>.yaml`. The owner's, in `configs/` where the command is started, come before the
library's in `foldwise/configs/`: a file in both places counts once, the owner's.
"""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from foldwise.errors import Refusal, did_you_mean

OWNER = Path.cwd() / "configs"
LIBRARY = Path(__file__).with_name("configs")
# In the order of Hydra's search path, which configs/train.yaml extends by the library.
CONFIGS = tuple(folder for folder in (OWNER, LIBRARY) if folder.is_dir())
HELP = """
usage: python train.py [group=choice | setting=value | +setting=value] ...    (--hydra-help: Hydra's own flags)

Everything is an override: group=choice takes another file, group.setting=value changes one value, +group.setting=value
adds one that the file does not have, such as an argument of a network, optimizer, loss, Trainer or callback.
experiment=<name> is a tested combination; what is written after it on the command line counts more.
* marks yours, in configs/<group>/. The others are the library's, in foldwise/configs/<group>/: to change one, copy its
file to configs/<group>/ under its own name, where it takes the place of the library's, or under a new one.
"""


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
    """The file of a choice, the owner's where there is one, else the library's; or a Refusal with the choices."""
    path = list_choices(group).get(choice)
    if path is None:
        raise Refusal(unknown_choice(group, choice))
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a choice, or of another YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


@cache
def known_settings() -> tuple[str, ...]:
    """Every setting of every choice of every group, as it is written on the command line, and the groups themselves."""
    names = dict.fromkeys(run_settings())
    for group in list_groups():
        names[group] = None
        for path in list_choices(group).values():
            if "@package _global_" not in path.read_text(encoding="utf-8"):
                names |= dict.fromkeys(_flatten(read_yaml(path), group))
    return tuple(names)


def run_settings() -> list[str]:
    """The settings of a run that are in no group, from the owner's train.yaml."""
    path = OWNER / "train.yaml"
    return [name for name in read_yaml(path) if name not in ("defaults", "hydra")] if path.is_file() else []


def unknown_setting(name: str, known: Sequence[str] = ()) -> str:
    """A sentence for a setting that does not exist, with the one of the `known` (all) that may have been meant."""
    known = known or known_settings()
    same_end = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = did_you_mean(name, same_end, 0.0) or did_you_mean(name, known) or ": python train.py --help lists all"
    return f"there is no setting {name!r}{hint}"


def unknown_choice(group: str, choice: str) -> str:
    """A sentence for a choice that a group does not have."""
    known = list_choices(group)
    return f"there is no {group}={choice}{did_you_mean(choice, known)} ({group} is one of {', '.join(known)})"


def train_help(text: str) -> str:
    """The help of `train.py`: its docstring, and every group with its choices."""
    width = max(80, shutil.get_terminal_size((120, 0)).columns)
    rest = textwrap.fill(", ".join(run_settings()), width, initial_indent="  ", subsequent_indent="  ")
    groups = [_describe_group(group, width) for group in list_groups()]
    return "\n".join([text.strip(), HELP, *groups, "settings in no group, in configs/train.yaml", rest])


def first_comment(path: Path) -> str:
    """The first comment line of a file, which says what it is; Hydra's `# @package` left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @")), "")


def _describe_group(group: str, width: int) -> str:
    choices = list_choices(group)
    column = max(map(len, choices)) + 4
    lines = [group]
    for name, path in choices.items():
        start = f"{'*' if path.is_relative_to(OWNER) else ' '} {name}".ljust(column)
        text = start + (first_comment(path) or "-")
        lines += textwrap.wrap(text, width, subsequent_indent=" " * column, break_on_hyphens=False)
    return "\n".join([*lines, ""])


def _flatten(value: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, inner in value.items():
        yield f"{prefix}.{key}"
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}.{key}")

"""The choices of each group, the names of all settings, and `python train.py --help`; without Hydra and torch.

A choice is a file `<group>/<choice>.yaml`. The owner's in `configs/` (of the current folder) take precedence over the
library's in `foldwise/configs/`.
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
# In the order of Hydra's search path, which configs/train.yaml extends.
CONFIGS = tuple(folder for folder in (OWNER, LIBRARY) if folder.is_dir())
HELP = """
usage: python train.py [group=choice | setting=value | +setting=value] ...    (--hydra-help: Hydra's own flags)

Everything is an override: group=choice selects a file, group.setting=value changes one value, +group.setting=value adds
one that the file does not have, such as an argument of a network, optimizer, loss, Trainer or callback.
experiment=<name> selects a tested combination; other overrides on the command line take precedence over it.
* marks your files in configs/<group>/. The others are the library's in foldwise/configs/<group>/. To change one, copy
it to configs/<group>/, under the same name to replace it or under a new name.
"""


@cache
def list_groups() -> list[str]:
    """Names of all groups, sorted."""
    return sorted({path.parent.name for folder in CONFIGS for path in folder.glob("*/*.yaml")})


def list_choices(group: str) -> dict[str, Path]:
    """Files of a group's choices by name, sorted; in subfolders as amazon/albu."""
    files: dict[str, Path] = {}
    for folder in CONFIGS:
        for path in (folder / group).rglob("*.yaml"):
            files.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    return dict(sorted(files.items()))


def find_choice(group: str, choice: str) -> Path:
    """The file of a choice; raise a Refusal that lists the choices if there is none."""
    path = list_choices(group).get(choice)
    if path is None:
        raise Refusal(unknown_choice(group, choice))
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; {} if it is empty."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path} has no settings: each is a line such as name: value")
    return content


@cache
def known_settings() -> tuple[str, ...]:
    """Every setting of all choices as written on the command line, and the groups."""
    names = dict.fromkeys(run_settings())
    for group in list_groups():
        names[group] = None
        for path in list_choices(group).values():
            if "@package _global_" not in path.read_text(encoding="utf-8"):
                names |= dict.fromkeys(_flatten(read_yaml(path), group))
    return tuple(names)


def run_settings() -> list[str]:
    """Settings outside of groups, from the owner's train.yaml."""
    path = OWNER / "train.yaml"
    return [name for name in read_yaml(path) if name not in ("defaults", "hydra")] if path.is_file() else []


def unknown_setting(name: str, known: Sequence[str] = ()) -> str:
    """Message for a setting that does not exist, with the most similar of `known` (default: all)."""
    known = known or known_settings()
    same_end = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = did_you_mean(name, same_end, 0.0) or did_you_mean(name, known) or ": python train.py --help lists all"
    return f"there is no setting {name!r}{hint}"


def unknown_choice(group: str, choice: str) -> str:
    """Message for a choice that a group does not have."""
    known = list_choices(group)
    return f"there is no {group}={choice}{did_you_mean(choice, known)} ({group} is one of {', '.join(known)})"


def train_help(text: str) -> str:
    """The help of `train.py`: `text`, then every group with its choices."""
    width = max(80, shutil.get_terminal_size((120, 0)).columns)
    rest = textwrap.fill(", ".join(run_settings()), width, initial_indent="  ", subsequent_indent="  ")
    groups = [_describe_group(group, width) for group in list_groups()]
    return "\n".join([text.strip(), HELP, *groups, "settings in no group, in configs/train.yaml", rest])


def first_comment(path: Path) -> str:
    """The first comment line of a file, except `# @package`."""
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

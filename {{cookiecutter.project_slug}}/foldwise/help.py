"""`python train.py --help`: every group with its choices, read from their files; without Hydra and torch."""

import shutil
import textwrap
from pathlib import Path

from foldwise.settings import OWNER, list_choices, list_groups, run_settings

USAGE = (
    "usage: python train.py [group=choice | setting=value | +setting=value] ...    (--hydra-help: Hydra's own flags)"
)
OVERRIDES = """
Everything is an override: group=choice takes another file, group.setting=value changes one value, +group.setting=value
adds one that the file does not have, such as an argument of a network, optimizer, loss, Trainer or callback.
experiment=<name> is a tested combination; what is written after it on the command line counts more.
* marks yours, in configs/<group>/. The others are the library's, in foldwise/configs/<group>/: to change one, copy its
file to configs/<group>/ under its own name, where it takes the place of the library's, or under a new one.
"""


def train_help(text: str) -> str:
    """The whole help.

    Args:
        text: the command's docstring: what it does, examples, exit codes.
    """
    width = max(80, shutil.get_terminal_size((120, 0)).columns)
    rest = textwrap.fill(", ".join(run_settings()), width, initial_indent="  ", subsequent_indent="  ")
    groups = [_describe_group(group, width) for group in list_groups()]
    return "\n".join([text.strip(), "", USAGE, OVERRIDES, *groups, "settings in no group, in configs/train.yaml", rest])


def first_comment(path: Path) -> str:
    """What a choice is: the first comment line of its file, Hydra's `# @package` left out."""
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

"""Shared by the commands: argument parsers and exit codes."""

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foldwise.code.source import OPTION, trust_all
from foldwise.errors import exit_code, explain, other_python, show_notes
from foldwise.processes.exits import Stopped

# Here, as the commands import further packages before `exit_on_error`. A bundle may do without torch.
if find_spec("torch") is None and (Path(__file__).parents[1] / "Makefile").is_file():
    print(f"error: {other_python('torch')}", file=sys.stderr)
    sys.exit(2)


def make_parser(text: str | None, opens_runs: bool = False) -> argparse.ArgumentParser:
    """Make a parser with a docstring as its help: first line, options, then the rest verbatim.

    Args:
        opens_runs: add the option of `add_trust`.
    """
    first, _, rest = (text or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if opens_runs:
        add_trust(parser)
    return parser


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option to import the code of runs that were trained elsewhere."""
    text = "import code that arrived with a run, after you have looked at it"
    parser.add_argument(OPTION, action=_Trust, nargs=0, help=text)


class _Trust(argparse.Action):
    """Takes effect while parsing, before the command does anything."""

    def __call__(self, *_: Any) -> None:
        trust_all()


def take_trust(arguments: Sequence[str]) -> list[str]:
    """Apply the trust option of a Hydra command line, and remove it."""
    if OPTION in arguments:
        trust_all()
    return [argument for argument in arguments if argument != OPTION]


def whole_number(least: int) -> Callable[[str], int]:
    """An argument type: a whole number >= `least`."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return convert


def positive_number(text: str) -> float:
    """An argument type: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def duration(text: str) -> float:
    """An argument type: a time such as 90s, 45m, 6h or 2d, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 45m, 6h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


@contextmanager
def exit_on_error(after: str = "nothing was written") -> Iterator[None]:
    """Exit with 2 and a message on a refusal, with 1 and the traceback on a bug, with 130 on Ctrl-C, and with the code
    of a signal.

    Args:
        after: what is kept and how to resume, printed after a traceback, Ctrl-C and a signal.
    """
    try:
        with show_notes():
            yield
    except KeyboardInterrupt:
        print(f"\nstopped; {after}", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        print(f"\nstopped by {stop.number.name}; {after}", file=sys.stderr)
        sys.exit(stop.exit_code)
    except Exception as error:
        sentence = explain(error)
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"\nThis is a bug, in solution/ or in foldwise/. {after[0].upper()}{after[1:]}.", file=sys.stderr)
        sys.exit(exit_code(error))

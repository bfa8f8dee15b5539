"""Refusals, reported by their message, and bugs, reported by their traceback."""

import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# Errors in data loader workers arrive as the text of a traceback; only its end is for the user.
WORKER_ERROR = re.compile(r"\ACaught \w+ in DataLoader worker process.*\n(?=\S)[\w.]+: (.+)\Z", re.DOTALL)


class Refusal(Exception):  # noqa: N818  not an error in code
    """Unusable input; the message says what is wrong, where, and what to do.

    Not a ValueError: numpy, torch and the owner's code raise those for bugs.
    """


class ProcessFailed(Refusal):
    """A process failed, after printing why.

    Attributes:
        exit_code: for the command: 1 if a process printed a traceback, else 2.
    """

    def __init__(self, message: str, *codes: int | None) -> None:
        super().__init__(message)
        self.exit_code = 1 if 1 in codes else 2


class Note(UserWarning):
    """A warning that is about the user's data, not about code."""


@contextmanager
def show_notes() -> Iterator[None]:
    """Print each `Note` once and without the source line that Python adds."""
    shown = set[str]()

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not issubclass(category, Note):
            other(message, category, *rest)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Note)
        other, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
        yield


def refuse_all(problems: Iterable[str]) -> None:
    """Raise a Refusal that lists the problems, one per line, if there are any."""
    if text := "\n".join(problems):
        raise Refusal(text)


def explain(error: BaseException) -> str | None:
    """A message if data, settings or machine are to blame; None for a bug."""
    text = str(error)
    advice = "most often memory ran out; lower data.workers, or batch_size"
    if isinstance(error, Refusal | FloatingPointError):
        match = WORKER_ERROR.match(text)
        return match[1].strip() if match else text
    if isinstance(error, ConnectionError | EOFError):  # only worker connections raise these directly
        return f"a DataLoader worker ended while it handed over a batch ({text or type(error).__name__}): {advice}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'} cannot be read or written ({error.strerror or text})"
    if isinstance(error, ModuleNotFoundError) and Path(".venv").is_dir() and not Path(".venv").samefile(sys.prefix):
        return other_python(error.name)
    name = type(error).__name__  # by name, to avoid importing torch and safetensors
    if name == "SafetensorError":
        return f"the weights cannot be written ({text})"
    if name == "OutOfMemoryError":
        return f"the device's memory ran out ({text.splitlines()[0]}): lower batch_size or data.image_size"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return f"{text.strip().rstrip('.')}: {advice}"
    return None


def other_python(module: str | None) -> str:
    setup = "" if Path(".venv").is_dir() else "make setup, "
    return f"{sys.executable} has no {module}: {setup}source .venv/bin/activate, then run the same command"


def exit_code(error: Exception) -> int:
    """The exit code of a command after an error: 1 for a bug, else 2."""
    if isinstance(error, ProcessFailed):
        return error.exit_code
    return 1 if explain(error) is None else 2


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest a similar name, as "; did you mean epochs?"; "" if there is none."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""

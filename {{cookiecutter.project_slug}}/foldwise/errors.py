"""Refusals and bugs: a refusal ends with its sentence, everything else with its traceback."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# An error of a data loader's worker arrives as text: its traceback, of which only the last part is for the user.
WORKER_ERROR = re.compile(r"\ACaught \w+ in DataLoader worker process.*\n(?=\S)[\w.]+: (.+)\Z", re.DOTALL)


class Refusal(Exception):  # noqa: N818  a refusal is no bug
    """Input that cannot be used: the message says what is wrong, where, and what to do.

    It is no ValueError: numpy, torch and an unpacking in the owner's code raise those, and theirs are bugs.
    """


class ProcessFailed(Refusal):
    """A process ended before its work was done; it has printed why.

    Attributes:
        exit_code: that of the command: 1 where one of the processes showed a traceback, else 2.
    """

    def __init__(self, message: str, *codes: int | None) -> None:
        super().__init__(message)
        self.exit_code = 1 if 1 in codes else 2


def refuse_all(problems: Iterable[str]) -> None:
    """Raise a Refusal that lists the problems, a line each; nothing without problems."""
    if text := "\n".join(problems):
        raise Refusal(text)


def explain(error: BaseException) -> str | None:
    """A sentence where data, settings or machine are to blame; None for a bug, which needs its traceback."""
    text = str(error)
    advice = "most often memory ran out; lower data.workers, or batch_size"
    if isinstance(error, Refusal | FloatingPointError):
        match = WORKER_ERROR.match(text)
        return match[1].strip() if match else text
    if isinstance(error, ConnectionError | EOFError):  # workers are the only peers that torch does not stand between
        return f"a DataLoader worker ended while it handed over a batch ({text or type(error).__name__}): {advice}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'} cannot be read or written ({error.strerror or text})"
    name = type(error).__name__  # by name: what does not need torch or safetensors does not import them
    if name == "SafetensorError":
        return f"the weights cannot be written ({text})"
    if name == "OutOfMemoryError":
        return f"the device's memory ran out ({text.splitlines()[0]}): lower batch_size or data.image_size"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return f"{text.strip().rstrip('.')}: {advice}"
    return None


def exit_code(error: Exception) -> int:
    """The exit code of a command after an error: 2 where a sentence says it all, 1 where a traceback is shown."""
    if isinstance(error, ProcessFailed):
        return error.exit_code
    return 1 if explain(error) is None else 2


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a sentence on a name that does not exist, as "; did you mean epochs?"; "" if none is like it."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""

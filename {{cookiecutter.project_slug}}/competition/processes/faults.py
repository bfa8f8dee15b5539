"""What went wrong in a training, in a sentence."""

import re
import signal

# An error of a data loader's worker arrives as text: its traceback, of which only the last part is for the user.
WORKER_ERROR = re.compile(r"\ACaught \w+ in DataLoader worker process.*\n(?=\S)[\w.]+: (.+)\Z", re.DOTALL)


def explain(error: Exception) -> str | None:
    """A sentence for what the data, the settings or the machine are to blame for; None for what needs its traceback."""
    from safetensors import SafetensorError

    text = str(error)
    advice = "most often memory ran out; lower data.workers, or batch_size"
    if isinstance(error, ValueError | FloatingPointError):
        match = WORKER_ERROR.match(text)
        return match[1].strip() if match else text
    if isinstance(error, ConnectionError | EOFError):  # the only peers that are spoken to without torch between
        return f"a DataLoader worker ended while it handed over a batch ({text or type(error).__name__}): {advice}"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read or written ({error.strerror or text})"
    if isinstance(error, SafetensorError):
        return f"the weights cannot be written ({text})"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return f"{text.strip().rstrip('.')}: {advice}"
    return None


def describe_exit(code: int, where: str = "above") -> str:
    """How a process ended, from its exit code as `multiprocessing` gives it: negative after a signal.

    Args:
        where: it said why.
    """
    if code >= 0:
        return f"ended with exit code {code}, see {where}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", most often because memory ran out" if -code == signal.SIGKILL else "")


def goes_on(*codes: int) -> str:
    """What to do after processes ended so: an error that was explained would only come again."""
    same = "same command goes on from there"
    return f"Mend what is named above; then the {same}" if 2 in codes else f"The {same}"

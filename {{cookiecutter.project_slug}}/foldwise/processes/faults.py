"""How processes ended, and how to resume, in a sentence."""

import signal


def describe_exit(code: int, where: str = "above") -> str:
    """How a process ended, from its exit code as `multiprocessing` gives it: negative after a signal.

    Args:
        where: the process printed why.
    """
    if code >= 0:
        return f"ended with exit code {code}, see {where}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", most often because memory ran out" if -code == signal.SIGKILL else "")


def how_to_resume(*codes: int) -> str:
    """What to do after processes ended so: an error that was shown would only come again."""
    shown = any(code > 0 for code in codes)
    return f"{'Fix the error above, then run' if shown else 'Run'} the same command to resume"

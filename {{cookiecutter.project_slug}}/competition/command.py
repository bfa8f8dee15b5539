"""What the commands share: how they explain themselves, and how they end when something is wrong."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a docstring: its first line, then the options, then the rest as it is written."""
    return argparse.ArgumentParser(
        description=(text or "").partition("\n")[0],
        epilog=(text or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def ending_with_a_sentence(stopped: str = "nothing was written") -> Iterator[None]:
    """End with exit code 2 and a sentence when the input is wrong, and with 130 and `stopped` on Ctrl-C.

    RuntimeError is what torch says of a device that is full. HYDRA_FULL_ERROR=1 shows where an error came from.
    """
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        sys.exit(130)

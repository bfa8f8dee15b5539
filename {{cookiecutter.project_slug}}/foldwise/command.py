"""What the commands share: help that shows examples, and how they end."""

import argparse
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from foldwise.errors import exit_code, explain


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a docstring: its first line, then the options, then the rest as it is written."""
    return argparse.ArgumentParser(
        description=(text or "").partition("\n")[0],
        epilog=(text or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def exit_on_error(after: str = "nothing was written") -> Iterator[None]:
    """Exit with 2 and a sentence on a refusal, with 1 and the traceback on a bug, and with 130 on Ctrl-C.

    A bug in a process that the command started has shown its traceback there; it ends with 1 too.

    Args:
        after: what is left and how to resume, printed after a traceback and after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; {after}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = explain(error)
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(exit_code(error))
        traceback.print_exc()
        print(f"\nThis is a bug, in solution/ or in foldwise/. {after[0].upper()}{after[1:]}.", file=sys.stderr)
        sys.exit(1)

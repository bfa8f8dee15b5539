"""Progress callbacks of long work, and a progress bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]  # description, steps done, total steps


def silent(text: str, done: int, total: int) -> None:
    """Show nothing."""


def stepping(progress: Progress, text: str, total: int, done: int = 0) -> Callable[..., None]:
    """A function to call after each step, or with a number of steps."""

    def step(count: int = 1) -> None:
        nonlocal done
        done += count
        progress(text, done, total)

    step(0)
    return step


@contextmanager
def progress_bar(text: str, console: "Console | None" = None) -> Iterator[Progress]:
    """Show a bar until the block ends; `text` is its first description."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True, console=console) as bar:
        task = bar.add_task(text, total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)

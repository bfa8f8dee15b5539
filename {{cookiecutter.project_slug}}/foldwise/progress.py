"""How far long work is: what it calls, and the bar that the commands show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

Progress = Callable[[str, int, int], None]  # what is being done, how many steps are done, of how many


def silent(text: str, done: int, total: int) -> None:
    """Show nothing."""


def stepping(progress: Progress, text: str, total: int) -> Callable[[], None]:
    """What is called after each of the steps."""
    done = count(1)
    progress(text, 0, total)
    return lambda: progress(text, next(done), total)


@contextmanager
def progress_bar(text: str) -> Iterator[Progress]:
    """A bar that is gone in the end; `text` stands there until work says what it is doing."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)

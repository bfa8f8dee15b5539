"""Tasks: what an output of a network means, an entry each; see `tasks.base.Task`.

A new task is a class with a name of its own in `TASKS`. Whatever reads, trains, predicts, stores and evaluates asks
the task and no name: `kind` says what is stored of an item, `exclusive` whether its values sum to 1.
"""

from foldwise.errors import Refusal
from foldwise.tasks.base import ForTasks, Kind, Task
from foldwise.tasks.classes import Classes, Multiclass, Multilabel, Segmentation

TASKS: dict[str, Task] = {task.name: task for task in (Multiclass(), Multilabel(), Segmentation())}

__all__ = ["TASKS", "Classes", "ForTasks", "Kind", "Multiclass", "Multilabel", "Segmentation", "Task", "find_task"]


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        Refusal: there is none.
    """
    if name not in TASKS:
        raise Refusal(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    return TASKS[name]

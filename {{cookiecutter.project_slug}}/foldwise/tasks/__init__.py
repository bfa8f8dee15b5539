"""Tasks: the meaning of a network's output, an entry each; see `tasks.base.Task`.

A new task is a class with a name of its own in `TASKS`: no other code asks for the name of a task.
"""

from foldwise.errors import Refusal
from foldwise.tasks.base import ForTasks, Kind, Task
from foldwise.tasks.classes import Classes, Multiclass, Multilabel, Segmentation

TASKS: dict[str, Task] = {task.name: task for task in (Multiclass(), Multilabel(), Segmentation())}

__all__ = ["TASKS", "Classes", "ForTasks", "Kind", "Multiclass", "Multilabel", "Segmentation", "Task", "find_task"]


def find_task(name: str) -> Task:
    """The task of this name."""
    if name not in TASKS:
        raise Refusal(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    return TASKS[name]

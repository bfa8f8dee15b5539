"""Registry of tasks. To add one, write a `Task` subclass and add it to `TASKS`: no other code depends on task names."""

from foldwise.errors import Refusal
from foldwise.tasks.base import ForTasks, Kind, Task
from foldwise.tasks.classes import Classes, Multiclass, Multilabel, Overlapping, Segmentation, Soft, task_of_masks
from foldwise.tasks.detection import Detection
from foldwise.tasks.numbers import Regression
from foldwise.tasks.retrieval import Retrieval

ENTRIES = (Multiclass(), Multilabel(), Regression(), Segmentation(), Overlapping(), Soft(), Retrieval(), Detection())
TASKS: dict[str, Task] = {task.name: task for task in ENTRIES}

__all__ = [
    "TASKS", "Classes", "Detection", "ForTasks", "Kind", "Multiclass", "Multilabel", "Overlapping", "Regression",
    "Retrieval", "Segmentation", "Soft", "Task", "find_task", "task_of_masks",
]  # fmt: skip


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise Refusal(f"task is {name!r}; it must be one of {', '.join(TASKS)}")
    return TASKS[name]

"""From a configuration to the metric that it names."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.errors import Refusal
from foldwise.predictions.metrics import METRICS, Metric

if TYPE_CHECKING:
    from foldwise.data.table import Table

PACKAGE = "foldwise.predictions.metrics"
OWNER = "solution"


def build_metric(config: Mapping[str, Any], task: str, classes: Sequence[str], table: "Table | None" = None) -> Any:
    """The metric of a configuration, ready for the task and its classes.

    Folders of runs come from other people too, so this makes the metrics of `METRICS` and the owner's, and nothing else
    that a configuration may name.

    Args:
        config: `_target_`, a class of `METRICS` or a Metric of the owner's by its dotted path, and its options.
        table: what will be scored, where it is known, see `Metric.for_task`.

    Raises:
        Refusal: another target, options that the metric does not have, or a task that does not have the metric.
    """
    target = str(config["_target_"])
    kinds = {f"{PACKAGE}.{kind.__name__}": kind for kind in METRICS.values()}
    if target not in kinds and not target.startswith(f"{OWNER}."):
        names = ", ".join(sorted(kind.__name__ for kind in METRICS.values()))
        raise Refusal(
            f"the metric {target} is none of {PACKAGE} ({names}); one of your own goes into {OWNER}/metric.py: "
            f"_target_: {OWNER}.metric.<class> in a file of configs/metric, or a published function with "
            f"metric=published metric.function={OWNER}.metric.<function>"
        )
    kind = kinds[target] if target in kinds else import_owner(target)
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise Refusal(f"{target} is no metric: a subclass of {PACKAGE}.Metric; for a function take metric=published")
    options = {key: value for key, value in config.items() if key != "_target_"}
    try:
        metric = kind(**options)
    except TypeError as error:
        raise Refusal(f"metric {kind.__name__}: {error}") from error
    return metric.for_task(task, classes, table)


def import_owner(path: str) -> Any:
    """What a dotted path such as `solution.metric.score` names in the owner's package, in the current folder.

    Raises:
        Refusal: it names something else, or there is nothing of the name.
    """
    module, _, name = path.rpartition(".")
    file = Path(module.replace(".", "/") + ".py")
    if not module.startswith(f"{OWNER}.") or not file.is_file():
        raise Refusal(f"there is no {path} here: it is a name in a file of {OWNER}/, such as {OWNER}.metric.score")
    if (root := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, root)
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise Refusal(f"{file} has no {name}")
    return found

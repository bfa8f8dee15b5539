"""Construction of the configured metric."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foldwise.code.build import resolve
from foldwise.errors import Refusal
from foldwise.predictions.metrics import METRICS, Metric, Published

if TYPE_CHECKING:
    from foldwise.data.table import Table

PACKAGE = "foldwise.predictions.metrics"
OWNER = "solution"


def build_metric(
    config: Mapping[str, Any],
    task: str,
    classes: Sequence[str],
    table: "Table | None" = None,
    alias: str | None = None,
) -> Any:
    """Build the configured metric, set up for the task and its classes.

    Run folders may come from strangers, so only metrics of `METRICS` and of the owner's code are built.

    Args:
        table: the table to score, if known, see `Metric.for_task`.
        alias: module alias of the owner's code.
    """
    target, options = str(config["_target_"]), {key: value for key, value in config.items() if key != "_target_"}
    kinds = {f"{PACKAGE}.{kind.__name__}": kind for kind in METRICS.values()}
    if target not in kinds and not target.startswith(f"{OWNER}."):
        names = ", ".join(sorted(kind.__name__ for kind in METRICS.values()))
        raise Refusal(
            f"the metric {target} is not in {PACKAGE} ({names}). Save your own class in {OWNER}/metric.py and set "
            f"_target_: {OWNER}.metric.<class> in a file of configs/metric; for a published function use "
            f"metric=published metric.function={OWNER}.metric.<function>"
        )
    kind = kinds[target] if target in kinds else resolve(target, alias, "metric._target_")
    if not (isinstance(kind, type) and issubclass(kind, Metric)):
        raise Refusal(f"{target} is not a subclass of {PACKAGE}.Metric; for a function use metric=published")
    function = options.get("function")
    if kind is Published and isinstance(function, str):
        if not function.startswith(f"{OWNER}."):
            raise Refusal(
                f"metric.function is {function}: save the function in {OWNER}/metric.py and name it "
                f"{OWNER}.metric.score"
            )
        options["function"] = resolve(function, alias, "metric.function")
    try:
        metric = kind(**options)
    except TypeError as error:
        raise Refusal(f"metric {kind.__name__}: {error}") from error
    return metric.for_task(task, classes, table)

"""From a configuration to the metric that it names."""

from collections.abc import Mapping, Sequence
from typing import Any

from foldwise.errors import Refusal
from foldwise.predictions.metrics import METRICS

PACKAGE = "foldwise.predictions.metrics"


def build_metric(config: Mapping[str, Any], task: str, classes: Sequence[str]) -> Any:
    """The metric of a configuration, ready for the task and its classes.

    Folders of runs come from other people too, so this instantiates the metrics of `METRICS` and nothing else that a
    configuration may name.

    Args:
        config: `_target_`, a class of `METRICS` by its dotted path, and its options.

    Raises:
        Refusal: another target, options that the metric does not have, or a task that does not have the metric.
    """
    package, _, name = str(config["_target_"]).rpartition(".")
    kinds = {kind.__name__: kind for kind in METRICS.values()}
    if package != PACKAGE or name not in kinds:
        raise Refusal(
            f"the metric {config['_target_']} is none of {PACKAGE} ({', '.join(sorted(kinds))}); one of your own goes "
            "into METRICS there, a published function is named with metric=published metric.function=<file>.<function>"
        )
    options = {key: value for key, value in config.items() if key != "_target_"}
    try:
        metric = kinds[name](**options)
    except TypeError as error:
        raise Refusal(f"metric {name}: {error}") from error
    return metric.for_task(task, classes)

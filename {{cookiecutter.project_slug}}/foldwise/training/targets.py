"""Targets as the loss sees them: numbers transformed by `data.transform`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foldwise.data.prepare import Prepared
from foldwise.tasks.outputs import Output
from foldwise.tasks.transforms import fit_transform, transform


def fit_outputs(data: Mapping[str, Any], prepared: Prepared, rows: np.ndarray) -> tuple[Output, ...]:
    """Return all trained outputs with transforms fitted on the training items `rows`."""
    fitted = []
    for output in prepared.trained:
        target = prepared.tables[output.target].target
        if output.meaning.transforms and target is not None:
            state = fit_transform(data["transform"], target[rows], list(output.columns))
            output = replace(output, transform=state)
        fitted.append(output)
    return tuple(fitted)


def transform_targets(prepared: Prepared, outputs: Sequence[Output]) -> Prepared:
    """Return the prepared data with `tables` in the space of the loss; `table` keeps the unit that is scored."""
    tables = dict(prepared.tables)
    for output in outputs:
        table = tables[output.target]
        if output.transform is not None and table.target is not None:
            tables[output.target] = replace(table, target=transform(output.transform, table.target))
    return replace(prepared, tables=tables)

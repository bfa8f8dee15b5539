"""Columns of the training and the test table as inputs of stacking."""

from collections.abc import Sequence

import numpy as np

from foldwise.data.samples import TableItems
from foldwise.data.table import Columns, Table
from foldwise.errors import Refusal, refuse_all
from foldwise.predictions.ensembles.extra import Encoder, Extra
from foldwise.predictions.ground_truth import GroundTruth, read_test_table
from foldwise.predictions.schema import listed, raise_problems
from foldwise.tasks import TASKS

NOT_METADATA = ("id", "image", "mask", "unit", "group", "fold", "weight")


def read_metadata(
    truth: GroundTruth, names: Sequence[str], group: str | None, units: bool, test_ids: Sequence[str] | None
) -> tuple[Encoder, str | None, Extra, Extra]:
    """Read further inputs: the encoder, the group column in the table, and `Extra` of the table's rows and test ids.

    The encoder is fitted on the training table, without its targets.

    Args:
        names: the columns to encode.
        group: the column whose groups inputs are relative to.
        units: the units of the rows are needed too.
        test_ids: None if there are no test predictions.
    """
    tables = [truth.table]
    if test_ids is not None and (names or group or units):
        tables.append(TableItems.of(read_test_table(truth), truth.items.samples).table)
    columns = Columns.from_config(truth.config["data"]["columns"])
    group = {columns.group: "group", columns.unit: "unit", None: None}.get(group, group)
    _check_columns(names, [group] if group else [], columns, tables)
    if units and not all("unit" in table.frame for table in tables):
        raise Refusal("--unit-inputs needs units: set data.columns.unit to the column of what the pictures belong to")
    encoder = Encoder.fit(truth.table.frame, names)
    rows = Extra.of(truth.table.frame, encoder, group, truth.folds)
    if len(tables) == 1:
        ids = np.array(test_ids or [], object)
        return (
            encoder,
            group,
            rows,
            Extra(np.zeros((len(ids), rows.values.shape[1]), np.float32), ids, np.zeros(len(ids), int)),
        )
    test = tables[1]
    missing = set(test_ids or ()) - set(test.ids)
    refuse_all(listed(f"predicted ids are not in {test.path}, so their columns are unknown", missing))
    frame = test.frame.set_index("id", drop=False).loc[list(test_ids or ())]
    return encoder, group, rows, Extra.of(frame, encoder, group)


def _check_columns(names: Sequence[str], groups: Sequence[str], columns: Columns, tables: Sequence[Table]) -> None:
    declared = [columns.id, columns.image, columns.group, columns.unit, columns.weight, columns.fold]
    target = columns.target or [task.column for task in TASKS.values()]
    targets = [target] if isinstance(target, str) else list(target)
    problems = [f"the column {name} is the target" for name in (*names, *groups) if name in targets]
    problems += [
        f"the column {name} identifies or weights rows and tells nothing about new ones"
        for name in names
        if name in declared or name in NOT_METADATA
    ]
    problems += [
        f"{table.path} has no column {name}"
        for table in tables
        for name in dict.fromkeys((*names, *groups))
        if name not in table.frame and (name in groups or name not in NOT_METADATA)
    ]
    problems += [
        f"each row of {tables[0].path} has its own {name}, so nothing is relative to it"
        for name in groups
        if name in tables[0].frame and tables[0].frame[name].is_unique
    ]
    raise_problems("--columns, --relative-to" if groups else "--columns", problems)

"""Pictures of items to look at: in reports, in samples.png, and to find what is alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foldwise.data.fields import Item
from foldwise.data.samples import Rows, Samples
from foldwise.data.table import Table


@dataclass(frozen=True)
class Pictures:
    """The picture of each item of a table, by its number, as the reader gives it: (H, W, C) as stored."""

    samples: Samples
    rows: Rows
    items: Sequence[Item]

    @classmethod
    def of(cls, table: Table, samples: Samples) -> "Pictures":
        """Of the rows of a table."""
        rows = Rows(table, samples)
        return cls(samples, rows, samples.items(rows))

    @cached_property
    def _state(self) -> dict[str, Any]:
        return self.samples.fit(self.rows, self.items)

    def __call__(self, number: int) -> np.ndarray:
        return self.samples.picture(self.samples.read(self.rows, self.items[number], self._state, None))

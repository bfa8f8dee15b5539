"""Format of boxes: one text for each picture."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats.base import Format
from foldwise.tasks import Kind

PLACES = {"class": "car", "score": 0.5, "x0": 1.0, "y0": 1.0, "x1": 2.0, "y1": 2.0, "w": 1.0, "h": 1.0}


@dataclass(frozen=True, kw_only=True)
class BoxTexts(Format):
    """One column with the boxes of a picture, best score first.

    Args:
        box: template of a box with {class}, {score}, the edges {x0}, {y0}, {x1}, {y1} or the sides {w}, {h}, also with
            decimals, such as {x0:.0f}.
        shares: edges and sides are shares of the picture's, not pixels.
    """

    box: str = "{class} {score:.5g} {x0:.5g} {y0:.5g} {x1:.5g} {y1:.5g}"
    shares: bool = False
    separator: str = " "

    name: ClassVar[str] = "boxes"
    kind: ClassVar[Kind] = "boxes"
    probabilities: ClassVar[bool | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.box) if name is not None]
            self.box.format_map(PLACES)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            places = ", ".join(f"{{{name}}}" for name in PLACES)
            raise Refusal(f"--box {self.box!r}: the placeholders are {places}") from error
        if not {"x0", "y0", "x1", "y1"} <= set(names) and not {"x0", "y0", "w", "h"} <= set(names):
            raise Refusal(f"--box {self.box!r} lacks edges: it needs {{x0}} {{y0}} and {{x1}} {{y1}} or {{w}} {{h}}")

    def table(self, ids: Sequence[str], answers: Any) -> pd.DataFrame:
        """Build the table of the `Boxes` of these ids, with edges as they are to be written."""
        texts = [self.separator.join(self._text(*each) for each in zip(*boxes, strict=True)) for boxes in answers]
        return pd.DataFrame({self.id_column: self.row_ids(ids), self.value_column: [t or self.empty for t in texts]})

    def _text(self, label: int, score: float, edges: Any) -> str:
        x0, y0, x1, y1 = edges.tolist()
        values = {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "w": x1 - x0, "h": y1 - y0}
        return self.box.format_map({"class": self.written[label], "score": float(score), **values})

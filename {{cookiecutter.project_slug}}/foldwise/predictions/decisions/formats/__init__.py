"""Submission formats: columns, rows, and a distance between answers.

labels     id and one column: the class, or labels with a separator
columns    id and one column a class: probabilities or other values, or 0 and 1; or one column for one class
rle        id and run-length encoded masks, a row for each image and class
ranking    id and one column of names, the most likely first
boxes      id and one column of boxes, each by a template
masks      a zip of PNG masks <id>.png (a / in the id is a folder), whose pixel values are the class numbers; of
           overlapping or soft masks <id>.tif with a channel per class from 0 to 255, for one class <id>.png
"""

from typing import Any

from foldwise.predictions.decisions.formats.base import Format
from foldwise.predictions.decisions.formats.boxes import BoxTexts
from foldwise.predictions.decisions.formats.masks import Masks, RunLengths
from foldwise.predictions.decisions.formats.rows import ColumnPerClass, Labels, Ranking

FORMATS: dict[str, Any] = {kind.name: kind for kind in (Labels, Ranking, ColumnPerClass, RunLengths, Masks, BoxTexts)}

__all__ = ["FORMATS", "BoxTexts", "ColumnPerClass", "Format", "Labels", "Masks", "Ranking", "RunLengths"]

"""A row of the table that unpacking writes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Unpacked:
    """One image of an unpacked file.

    Attributes:
        image: file name in the folder of its file.
        unit: what the image is a part of, such as a DICOM series; "": the file.
        order: position within the unit; any number, images are numbered by it afterwards.
        facts: further columns.
    """

    image: str
    unit: str
    order: float
    facts: dict[str, Any] = field(default_factory=dict)

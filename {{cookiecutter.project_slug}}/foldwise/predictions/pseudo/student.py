"""What a student gets, counted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Student:
    """What the student of a fold gets.

    Attributes:
        student: its fold.
        rows: images.
        held_out: images of its own fold, which are left out.
        unsure: images that are left out because no answer is confident.
        surest: the highest confidence of an image that is not held out, of masks that of a pixel.
        classes: the sum of the targets of each class; of masks its pixels.
        answered: of masks, all pixels of each class, confident or not, in images that are not held out.
    """

    student: int
    rows: int
    held_out: int
    unsure: int
    surest: float
    classes: dict[str, float]
    answered: dict[str, int] | None = None

    @property
    def problem(self) -> str | None:
        """A sentence where it gets nothing."""
        if self.rows:
            return None
        why = f"the surest has {self.surest:.3f}" if self.unsure else "all are of its own fold"
        return f"the student of fold {self.student} gets no image: {why}"

    @property
    def lacking(self) -> list[str]:
        """Classes that it gets nothing of."""
        return [name for name, total in self.classes.items() if not total]

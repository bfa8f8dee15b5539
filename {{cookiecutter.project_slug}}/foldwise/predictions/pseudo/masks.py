"""Pseudo masks: the teachers' answer where it is confident, `data.ignore_index` elsewhere; a PNG an image and student.

A file is named after its content, `<table>/<student>/<hash>.png`: so the hash of the table, which is part of a run's
identity, covers the masks, and the record of scanned images never takes a new mask for an old one.
"""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from foldwise.data.pseudo import STUDENT
from foldwise.predictions.pseudo.rules import Confident, Rule
from foldwise.predictions.pseudo.student import Student
from foldwise.predictions.pseudo.teachers import Teachers


class Masks:
    """Writes the masks of students, one image at a time.

    Args:
        teachers: of segmentation.
        folder: where the masks will be found in the end, which must lie under the data root as all masks do.
    """

    def __init__(self, teachers: Teachers, folder: Path) -> None:
        self.teachers, self.folder = teachers, folder.resolve()
        self.root = teachers.table.root.resolve()
        self.ignore_index: int = teachers.truth.config["data"]["ignore_index"]
        self.dtype = np.uint8 if max(self.ignore_index, len(teachers.classes) - 1) <= 255 else np.uint16

    @property
    def problems(self) -> list[str]:
        """Why no masks can be written."""
        problems = []
        if not self.folder.is_relative_to(self.root):
            problems.append(
                f"the masks would lie in {self.folder}, and training reads masks from the data root "
                f"{self.teachers.table.root}: name a table there, --out {self.teachers.table.root / 'pseudo.csv'}"
            )
        if not 0 <= self.ignore_index <= 65535:
            problems.append(
                f"data.ignore_index is {self.ignore_index}, which no PNG can hold, and it marks what is not confident: "
                "train the teachers with a value from the classes to 65535, such as 255"
            )
        return problems

    def label(self, rule: Rule, fold: int, folder: Path) -> tuple[Student, pd.DataFrame]:
        """Write the masks of a fold's student into `folder`, which will take the place of the real one.

        Returns:
            What the student gets, and its rows: id, image, student, confidence, mask, labelled.
        """
        assert isinstance(rule, Confident)  # others are refused by their `problems`
        teachers, held_out = self.teachers, self.teachers.held_out(fold)
        counts, surest = np.zeros((2, len(teachers.classes)), np.int64), 0.0  # confident pixels, and all
        lines: list[dict[str, Any]] = []
        rows = np.flatnonzero(~held_out)
        (folder / str(fold)).mkdir()
        for row, probability in zip(rows, teachers.maps(rows, fold), strict=True):
            answer, sure = rule.answer(probability, teachers.classes)
            counts += [np.bincount(pixels, minlength=counts.shape[1]) for pixels in (answer[sure], answer.ravel())]
            best = probability.max(axis=0)
            surest = max(surest, float(best.max()))
            if not sure.any():
                continue
            mask = np.where(sure, answer, self.ignore_index).astype(self.dtype)
            name = self._write(mask, folder, str(fold))
            image = teachers.table.frame.iloc[row]
            lines.append(
                {
                    "id": image["id"],
                    "image": image["image"],
                    STUDENT: fold,
                    "confidence": round(float(best.mean()), 6),
                    "mask": (self.folder.relative_to(self.root) / name).as_posix(),
                    "labelled": round(float(sure.mean()), 6),
                }
            )
        confident, answered = (dict(zip(teachers.classes, of_class.tolist(), strict=True)) for of_class in counts)
        student = Student(fold, len(lines), int(held_out.sum()), len(rows) - len(lines), surest, confident, answered)
        return student, pd.DataFrame(lines, columns=["id", "image", STUDENT, "confidence", "mask", "labelled"])

    def _write(self, mask: np.ndarray, folder: Path, student: str) -> str:
        """Write a mask (H, W); its path in the folder."""
        data = cv2.imencode(".png", mask)[1].tobytes()
        name = f"{student}/{hashlib.sha256(data).hexdigest()[:16]}.png"
        (folder / name).write_bytes(data)
        return name

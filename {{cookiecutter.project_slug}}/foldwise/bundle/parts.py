"""What was predicted so far, on disk: a run that is killed goes on where it stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.bundle.recipe import Recipe
from foldwise.files import read_json, write_atomic, write_json

REQUEST, LINES, BLOCK = "request.json", "done.jsonl", "block-{:06d}.npz"


class Parts:
    """Results by the number of their image; what was begun with another request is dropped.

    Of rows, what each member said: (members, C) float32, NaN where one did not predict. Of masks, the answer as it is
    written: bytes.
    """

    def __init__(self, folder: Path, recipe: Recipe, request: dict[str, Any]) -> None:
        self.folder, self.recipe = folder, recipe
        path = folder / REQUEST
        if not path.is_file() or read_json(path) != request:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(path, request)
        self.blocks = len(list(folder.glob("block-*.npz")))

    def done(self) -> dict[int, str]:
        """The images that are done, with what was wrong with them, or nothing."""
        path = self.folder / LINES
        # A last line that was cut off has no end: its image is predicted again.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return dict(map(json.loads, lines))

    def add(self, results: dict[int, Any], problems: dict[int, str]) -> None:
        """Keep the results of a batch, and what is wrong with its other images; the note that they are done is last."""
        if self.recipe.meaning.kind == "maps":
            for number, answer in results.items():
                path = self._answer_path(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(answer)
        elif results:
            with write_atomic(self.folder / BLOCK.format(self.blocks)) as temporary:
                np.savez(temporary, numbers=np.array(list(results)), values=np.stack(list(results.values())))
            self.blocks += 1
        done = dict.fromkeys(results, "") | problems
        with (self.folder / LINES).open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(entry) + "\n" for entry in done.items())

    def answer(self, number: int) -> bytes | None:
        """The answer of an image, None where there is none."""
        path = self._answer_path(number)
        return path.read_bytes() if path.exists() else None

    def remove(self) -> None:
        """Delete everything: the results are elsewhere now."""
        shutil.rmtree(self.folder)

    def _answer_path(self, number: int) -> Path:
        return self.folder / f"answers-{number // 1000:06d}" / f"{number:09d}"  # few files a folder


def read_rows(folder: Path, recipe: Recipe, images: int) -> np.ndarray:
    """(images, members, C) float32 of what the parts in a folder have, NaN where nothing is known."""
    values = np.full((images, len(recipe.members), len(recipe.classes)), np.nan, np.float32)
    for path in sorted(folder.glob("block-*.npz")):
        with np.load(path, allow_pickle=False) as block:
            values[block["numbers"]] = block["values"]
    return values

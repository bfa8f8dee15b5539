"""Predictions so far, on disk, so that a killed inference can resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.bundle.spec import BundleSpec
from foldwise.files import read_json, write_atomic, write_json

REQUEST, DONE, BLOCKS = "request.json", "done.jsonl", "block-*.npz"


class Shards:
    """Results by image number; those of a different request are deleted.

    A result is (members, columns) float32, see `BundleSpec.decide_rows`; or an encoded mask.
    """

    def __init__(self, folder: Path, spec: BundleSpec, request: dict[str, Any]) -> None:
        self.folder, self.spec = folder, spec
        path = folder / REQUEST
        if not path.is_file() or read_json(path) != request:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(path, request)

    def done(self) -> dict[int, str]:
        """Finished images, with their problem or ""."""
        path = self.folder / DONE
        # A truncated last line has no newline: drop it, and its image is predicted again.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return dict(map(json.loads, lines))

    def add(self, results: dict[int, Any], problems: dict[int, str]) -> None:
        """Save the results of a batch and the problems of its other images, then mark them as done."""
        if self.spec.maps:
            for number, mask in results.items():
                path = self._mask_path(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(mask)
        elif results:
            with write_atomic(self.folder / BLOCKS.replace("*", f"{min(results):09d}")) as temporary:
                np.savez(temporary, numbers=np.array(list(results)), values=np.stack(list(results.values())))
        with (self.folder / DONE).open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(entry) + "\n" for entry in (dict.fromkeys(results, "") | problems).items())

    def mask(self, number: int) -> bytes | None:
        path = self._mask_path(number)
        return path.read_bytes() if path.exists() else None

    def _mask_path(self, number: int) -> Path:
        return self.folder / f"masks-{number // 1000:06d}" / f"{number:09d}"  # at most 1000 files per folder


def read_rows(folder: Path, spec: BundleSpec, images: int) -> np.ndarray:
    """Read the shards of a folder: (images, members, columns) float32, NaN where nothing was predicted."""
    values = np.full((images, len(spec.members), max(spec.widths)), np.nan, np.float32)
    for path in sorted(folder.glob(BLOCKS)):
        with np.load(path, allow_pickle=False) as block:
            values[block["numbers"]] = block["values"]
    return values

"""The folder of stored features while its blocks of rows are computed, by any number of processes."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from foldwise.data.features import ENCODER, NONE, RECORD, ROWS
from foldwise.data.reading import Reader
from foldwise.errors import Refusal
from foldwise.files import new_folder, read_json, sha256_file, write_atomic, write_json

BLOCKS, REQUEST = "blocks", "request.json"  # of an unfinished folder


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Options of tools/features.py, see --help."""

    out: Path
    stages: str | tuple[int | str, ...] = "all"
    pool: str = "mean"
    views: tuple[str, ...] = (NONE,)
    dtype: str = "float16"
    batch_size: int = 32
    workers: int = 2
    device: str = "auto"
    devices: int | None = None


@dataclass(frozen=True)
class Work:
    """What a process needs to compute blocks.

    Attributes:
        record: of features.json, without the hashes of the files.
        readers: of the tables, one after another.
    """

    choices: Choices
    record: Mapping[str, Any]
    readers: Sequence[Reader]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(len(reader.items) for reader in self.readers), sum(self.record["encoder"]["widths"])

    @property
    def files(self) -> dict[str, Path]:
        return {view: self.choices.out / f"{view}.npy" for view in self.choices.views}

    @property
    def finished(self) -> bool:
        return (self.choices.out / RECORD).exists()

    def mark(self, block: range) -> Path:
        """The file whose existence means that a block is done."""
        return self.choices.out / BLOCKS / f"{block.start:09d}.done"

    def blocks(self) -> list[range]:
        """The rows of each block; no block has rows of two tables."""
        blocks, start, rows = [], 0, self.record["rows_of_a_block"]
        for reader in self.readers:
            stop = start + len(reader.items)
            blocks += [range(first, min(first + rows, stop)) for first in range(start, stop, rows)]
            start = stop
        return blocks

    def rest(self) -> list[range]:
        """The blocks that are not done."""
        return [block for block in self.blocks() if not self.mark(block).exists()]


def open_work(work: Work, encoder: nn.Module, rows: pd.DataFrame, console: Console) -> bool:
    """Create the folder, or check that it is of the same features; True if it is complete."""
    out, (count, width) = work.choices.out, work.shape
    for name in (RECORD, REQUEST):
        if (out / name).exists():
            made = read_json(out / name)
            other = [key for key in work.record if key != "command" and made.get(key) != work.record[key]]
            if other:
                raise Refusal(f"{out} has other features, by {', '.join(other)}: choose another --out, or delete it")
            if name == RECORD:
                console.print(f"{out} is finished")
                return True
    dtype, views = np.dtype(work.choices.dtype), len(work.files)
    needed = count * width * dtype.itemsize * views
    console.print(f"{count:,} rows x {width:,} features x {views} views of {dtype}: {_gigabytes(needed)} in {out}")
    free = shutil.disk_usage(out.parent).free
    left = needed * sum(map(len, work.rest())) // count
    if free < left:
        raise Refusal(f"the disk of {out} has {_gigabytes(free)} left, and {_gigabytes(left)} are needed")
    if not (out / REQUEST).exists():
        with new_folder(out) as temporary:
            with write_atomic(temporary / ENCODER) as file:
                save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, file)
            rows.to_csv(temporary / ROWS, index=False)
            for file in work.files.values():
                np.lib.format.open_memmap(temporary / file.name, "w+", dtype, work.shape)
            write_json(temporary / REQUEST, work.record)
    return False


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def complete(work: Work) -> bool:
    """Write features.json if all blocks are done."""
    out = work.choices.out
    if not work.finished:
        if work.rest():
            return False
        files = [ENCODER, *(file.name for file in work.files.values())]
        hashes = {"sha256": {name: sha256_file(out / name) for name in files}}
        sizes = {"bytes": {name: (out / name).stat().st_size for name in files}}
        write_json(out / RECORD, {**work.record, **hashes, **sizes})
        (out / REQUEST).unlink()
    shutil.rmtree(out / BLOCKS, ignore_errors=True)  # a command that looks for a last block makes the folder again
    return True


def write_block(work: Work, block: range, values: Mapping[str, np.ndarray]) -> None:
    """Write the rows of a block, then mark it as done."""
    for view, rows in values.items():
        stored = rows.astype(work.choices.dtype)
        if not np.isfinite(stored).all():
            advice = "" if work.choices.dtype == "float32" else ": store them as --dtype float32"
            raise Refusal(f"features of the rows {block.start} to {block.stop - 1} are not finite{advice}")
        path = work.files[view]
        with path.open("r+b") as file:  # not a memory map: over NFS, two machines would write the same page
            file.seek(path.stat().st_size - (work.shape[0] - block.start) * stored[0].nbytes)
            file.write(stored.tobytes())
            file.flush()
            os.fsync(file.fileno())
    work.mark(block).touch()

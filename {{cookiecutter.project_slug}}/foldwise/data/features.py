"""Stored features: what a pretrained network makes of each image, read in place of the image.

tools/features.py computes them once:

    features/<name>/
        features.json        the network, how images were read, views, hashes, the command
        rows.csv             id, image and file size of each row: the training table, then the test table
        none.npy, flip.npy   (rows, width) of each view
        encoder.safetensors  weights of the network
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise import FORMAT_VERSION
from foldwise.code.syntax import hash_text
from foldwise.data.fields import Field, Item
from foldwise.data.images import image_hw
from foldwise.data.problems import some
from foldwise.data.samples import Rows, Sample, Samples, TableItems
from foldwise.data.scan import file_size, image_fields, reader_key
from foldwise.data.table import Table
from foldwise.data.units import Units
from foldwise.errors import Refusal
from foldwise.files import read_json, sha256_file
from foldwise.shell import command, override

FOLDER, RECORD, ROWS, ENCODER = Path("features"), "features.json", "rows.csv", "encoder.safetensors"
FIELD = "features"  # in samples and batches
NONE = "none"  # the view that predictions use


@dataclass(frozen=True)
class FeatureSet:
    """A folder of stored features; `record` is its features.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def encoder(self) -> dict[str, Any]:
        """Arguments of `foldwise.models.features.Encoder`, and the `widths` of its stages."""
        return self.record["encoder"]

    @property
    def weights(self) -> Path:
        return self.folder / ENCODER

    @property
    def digest(self) -> str:
        """Hash of the features and of the network that they stand for."""
        return hash_text(json.dumps([self.encoder, self.record["views"], self.record["sha256"]]))[:16]

    def read_rows(self) -> pd.DataFrame:
        return read_rows(self.folder)


class StoredFeatures(Samples):
    """Reads the stored features of a table's images: the view `none`; in training a random view that all sets have.

    Of `Units`, a stack of them (N, width), and the columns beside the pictures.
    """

    def __init__(self, samples: Samples, sets: Sequence[FeatureSet], table: Table) -> None:
        self.samples, self.columns, self.target_columns = samples, samples.columns, samples.target_columns
        self.views = [view for view in sets[0].record["views"] if all(view in one.record["views"] for one in sets)]
        self.files_of = {view: [one.folder / f"{view}.npy" for one in sets] for view in self.views}
        self.positions = [_find_rows(one, table) for one in sets]
        self.stacked = isinstance(samples, Units) and samples.unit is not None
        beside = {name: field for name, field in samples.fields.items() if field.kind != "image"}
        self.fields = {FIELD: Field("values", ragged=self.stacked), **beside}

    def items(self, rows: Rows) -> list[Item]:
        return self.samples.items(rows)

    def files(self, rows: Rows, item: Item) -> list[Path]:
        return self.samples.files(rows, item)

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        files = self.files_of[NONE if rng is None else self.views[rng.integers(len(self.views))]]
        units = self.samples if isinstance(self.samples, Units) else None
        chosen = units.choose(item, rng) if units else [item.rows[0]]
        parts = [_open(file)[found[chosen]] for file, found in zip(files, self.positions, strict=True)]
        features = np.concatenate(parts, axis=1)
        beside = units.read_columns(rows, item, chosen, state) if units else {}
        return {FIELD: features if self.stacked else features[0], **beside}


def open_features(
    data: Mapping[str, Any], items: TableItems, scan: pd.DataFrame, statistics: Mapping[str, Any]
) -> tuple[FeatureSet, ...]:
    """Open the sets of `data.features`; refuse those of other images, settings or weights.

    Args:
        scan, statistics: of the training table.
    """
    names = data.get("features") or ()
    if not names:
        return ()
    check_reader(items)
    repeated = sorted({name for name in names if names.count(name) > 1})
    sets, problems = [], [f"data.features has {name} more than once" for name in repeated]
    reading = describe_reading(data, items, statistics)
    for name in names:
        folder = FOLDER / name
        if not (folder / RECORD).is_file():
            made = f"python tools/features.py data={data['name']} model.name=... model.weights=... --out {folder}"
            problems.append(f"there are no features {folder}: make them with\n  {made}")
            continue
        sets.append(FeatureSet(folder, read_json(folder / RECORD)))
        problems += _stale(sets[-1], reading, image_bytes(items, scan))
    if problems:
        raise Refusal("\n".join(problems))
    return tuple(sets)


def picture_reader(samples: Samples) -> Samples:
    """The reader of the pictures whose features are stored, one per row; of `Units`, a plain one."""
    return Samples(samples.mode) if type(samples) is Units else samples


def image_bytes(items: TableItems, scan: pd.DataFrame) -> dict[str, str]:
    """The file size of each image of a table, by the scan of its items."""
    images = items.source.frame["image"].to_numpy()
    sizes: dict[str, str] = {}
    for item, text in zip(items.items, scan["bytes"].astype(str), strict=True):
        names = dict.fromkeys(images[list(item.rows)])
        sizes.update(zip(names, text.split(";") if len(names) > 1 else [text], strict=True))
    return sizes


def check_reader(items: TableItems) -> None:
    """Refuse a reader whose sample is more than one image, or depends on the training items of a fold."""
    samples, name = items.samples, type(items.samples).__name__
    if samples.crop is not None or samples.channels:
        raise Refusal(
            "features are stored of whole pictures by themselves: leave out data.features, or samples.crop and "
            "samples.channels"
        )
    if type(samples) is Units:
        return
    if list(samples.fields) != image_fields(samples) or len(samples.fields) != 1:
        raise Refusal(f"features replace an image, and {name}.read returns {', '.join(samples.fields)}")
    if any(len(item.rows) > 1 for item in items.items):
        raise Refusal(f"features are stored by row, and {name}.items makes items of several rows")
    if items.state:
        raise Refusal(f"features are the same for all folds, and {name}.fit learns from the training items of a fold")


def describe_reading(data: Mapping[str, Any], items: TableItems, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and statistics on which features depend, by the name that a refusal shows."""
    image = next(iter(statistics["images"].values()))
    return {
        "data.image_size": list(image_hw(data["image_size"])),
        "data.fit": data["fit"],
        "data.normalize": data["normalize"],
        "data.scale": image["scale"],
        "the number of channels": image["channels"],
        "the reader or its settings (data.mode, data.exif)": reader_key(
            picture_reader(items.samples), items.source.exif
        ),
    } | ({"the mean and std of the images": [image["mean"], image["std"]]} if data["normalize"] == "dataset" else {})


def read_rows(folder: Path) -> pd.DataFrame:
    """The columns id, image and bytes of the stored rows, as text."""
    return pd.read_csv(folder / ROWS, dtype=str, keep_default_na=False, encoding="utf-8")


def _stale(features: FeatureSet, reading: Mapping[str, Any], sizes: Mapping[str, str]) -> list[str]:
    """What features have been made with that is different now, with the command that makes them again."""
    record, folder = features.record, features.folder
    if record.get("format_version") != FORMAT_VERSION:
        return [f"{folder} has the format version {record.get('format_version')}; this code reads {FORMAT_VERSION}"]
    old = record["reading"]
    changed = [name for name in reading if old.get(name) != reading[name]]
    short = [name for name in changed if name.startswith("data.")]
    problems = [f"{name} was {old.get(name)} and is {reading[name]}" for name in short]
    problems += [f"{name} changed" for name in changed if name not in short]
    problems += size_problems(features, sizes)
    weights = record["weights"]
    if weights["file"] and Path(weights["file"]).is_file() and sha256_file(Path(weights["file"])) != weights["sha256"]:
        problems.append(f"{weights['file']} has other weights")
    damaged = [name for name, size in record["bytes"].items() if file_size(folder / name) != size]
    if not damaged and sha256_file(features.weights) != record["sha256"][ENCODER]:
        damaged = [ENCODER]
    problems += [f"{name} is damaged or missing" for name in damaged]
    if not problems:
        return []
    kept = [word for word in record["command"] if word.partition("=")[0] not in short]
    again = command(*kept, *(override(name, reading[name]) for name in short))
    return [f"{folder} is stale: {'; '.join(problems)}. Make it again:\n  rm -r {folder}\n  {again}"]


def size_problems(features: FeatureSet, sizes: Mapping[str, str]) -> list[str]:
    """Problems of images, by their file sizes, that features lack or were not made of."""
    known = features.read_rows().drop_duplicates("image").set_index("image")["bytes"]
    current = pd.Series(sizes, dtype=object)
    found = known.reindex(current.index)
    missing, other = found.index[found.isna()], found.index[found.notna() & (found != current)]
    problems = [f"{len(missing)} images are not among its rows: {some(list(missing))}"] if len(missing) else []
    return problems + ([f"{len(other)} images have another size: {some(list(other))}"] if len(other) else [])


def _find_rows(features: FeatureSet, table: Table) -> np.ndarray:
    """The stored row of each row of a table, by its image; refuse images without one."""
    rows = features.read_rows()["image"].drop_duplicates()
    found = pd.Index(rows).get_indexer(pd.Index(table.frame["image"]))
    if (found < 0).any():
        absent = table.frame["image"][found < 0].tolist()
        raise Refusal(f"{len(absent)} images of {table.path} have no features in {features.folder}: {some(absent)}")
    return rows.index.to_numpy()[found]


@cache
def _open(file: Path) -> np.ndarray:
    """A memory map, opened once in each process: pickling one would read all of it."""
    return np.load(file, mmap_mode="r")

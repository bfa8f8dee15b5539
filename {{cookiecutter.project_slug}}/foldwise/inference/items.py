"""Items as prediction reads them: each once, and resized for every network. Without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from foldwise.code.build import resolve_strict
from foldwise.code.runs import find_code
from foldwise.data.augmentation import Augmentation, build_transforms, sample_seed
from foldwise.data.decoding import FileNote, noting
from foldwise.data.fields import Field
from foldwise.data.image_problems import describe_damage, describe_left_out
from foldwise.data.images import ImageError, cached_images, to_mode
from foldwise.data.problems import some
from foldwise.data.reading import Reader, fit_sample
from foldwise.data.samples import Rows, Sample, Samples
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.files import write_csv
from foldwise.inference.spec import ModelSpec, read_spec
from foldwise.inference.tta import TTA

BadImage = tuple[str, Path, str]  # id, first file, problem


def write_bad_images(path: Path, bad: Sequence[BadImage]) -> None:
    write_csv(path, pd.DataFrame(bad, columns=["id", "image", "problem"]))


class Readable(Protocol):
    """What reading needs of a model."""

    @property
    def samples(self) -> Samples: ...
    @property
    def spec(self) -> ModelSpec: ...


@dataclass(frozen=True)
class Described:
    """A model folder without its weights."""

    samples: Samples
    spec: ModelSpec


def describe_model(folder: Path) -> Described:
    """Read a model folder, and build its reader, without loading weights."""
    spec = read_spec(folder)
    return Described(build_samples(spec, find_code(Path(folder), spec.code)), spec)


def build_samples(spec: ModelSpec, alias: str | None) -> Samples:
    arguments = {name: value for name, value in spec.samples.items() if name != "_target_"}
    return resolve_strict(spec.samples["_target_"], alias, Samples)(**arguments)


@dataclass(frozen=True)
class InputSpec:
    """Key of a model's input; models with equal keys share samples."""

    reading: str
    image_size: tuple[int, ...]
    fit: str
    channels: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, model: Readable) -> "InputSpec":
        spec = model.spec
        read = [each for each in spec.network["channels"].items() if each[0] in model.samples.fields]  # else features
        return cls(spec.reading, spec.image_size, spec.fit, tuple(read))


class Read(NamedTuple):
    """Samples of an item, one per `InputSpec`, and its stored (height, width); or a problem.

    The problem is text, because a DataLoader buries a worker's exception in its traceback.
    """

    number: int
    samples: list[Sample]
    size: tuple[int, int]
    problem: str = ""
    notes: Sequence[FileNote] = ()


class Items:
    """Items `numbers` of a table (default: all), read and resized for each `InputSpec`; not resized with `tiles`."""

    def __init__(
        self,
        table: Table,
        models: Mapping[InputSpec, Readable],
        tta: TTA,
        numbers: Sequence[int] | None = None,
        tiles: bool = False,
    ) -> None:
        self.inputs, self.draws, self.tiles = list(models), tta.draws, tiles
        self.readers: dict[str, Reader] = {}
        for inputs, model in models.items():
            if inputs.reading not in self.readers:
                samples, rows = model.samples, Rows(replace(table, exif=model.spec.exif), model.samples)
                reader = Reader(samples, rows, samples.items(rows), model.spec.state, model.spec.scales)
                self.readers[inputs.reading] = reader
        self.first = next(iter(self.readers.values()))
        if any(reader.items != self.first.items for reader in self.readers.values()):
            raise Refusal(f"the runs group the rows of {table.path} into different items: predict them in two commands")
        self.numbers = list(range(len(self.first.items))) if numbers is None else list(numbers)
        self.augmentations = {}
        if tta.draws:
            transforms = build_transforms(tta.transforms)
            self.augmentations = {key: Augmentation(transforms, reader.fields) for key, reader in self.readers.items()}

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Read:
        with noting() as notes:
            read = self._read(index, notes)
        return read._replace(notes=notes)

    def _read(self, index: int, notes: list[FileNote]) -> Read:
        number = self.numbers[index]
        size = (0, 0)
        for_inputs: list[Sample] = []
        read: dict[str, list[Sample]] = {}
        with cached_images():  # readers that differ only in state decode once
            for inputs in self.inputs:
                reader = self.readers[inputs.reading]
                if inputs.reading not in read:
                    try:
                        sample = _as_trained(reader.read(number), inputs, reader.files(number), notes)
                    except ImageError as error:
                        return Read(index, [], size, str(error))
                    size = _stored_size(sample, reader) or size
                    read[inputs.reading] = self._draw(inputs.reading, sample, number)
                samples = read[inputs.reading]
                problem = _channel_problem(samples[0], inputs, reader, number)
                if problem:
                    return Read(index, [], size, problem)
                image_size = None if self.tiles else inputs.image_size
                fitted = [fit_sample(sample, reader.fields, image_size, inputs.fit) for sample in samples]
                for_inputs.append(self._stack(fitted, reader.fields))
        return Read(index, for_inputs, size)

    def _draw(self, key: str, sample: Sample, number: int) -> list[Sample]:
        """Augment the sample `draws` times, seeded by its file name."""
        if not self.draws:
            return [sample]
        name = self.readers[key].files(number)[0].name
        return [self.augmentations[key](sample, sample_seed(0, draw, name)) for draw in range(self.draws)]

    def _stack(self, draws: list[Sample], fields: Mapping[str, Field]) -> Sample:
        """Stack draws into one sample: spatial fields are (D, ...), ragged ones (N, D, ...), since collate pads N."""
        if not self.draws:
            return draws[0]
        spatial = {
            name: np.stack([each[name] for each in draws], axis=int(field.ragged))
            for name, field in fields.items()
            if field.spatial
        }
        return draws[0] | spatial


def _stored_size(sample: Sample, reader: Reader) -> tuple[int, int] | None:
    """(height, width) of a sample's first spatial field."""
    for name, field in reader.fields.items():
        if field.spatial:
            height, width = _images(sample[name])[0].shape[:2]
            return height, width
    return None


def _as_trained(sample: Sample, inputs: InputSpec, files: Sequence[Path], notes: list[FileNote]) -> Sample:
    """Convert grey images for a model of RGB, and the reverse, as `data.mode` does; add a note."""
    changed = {}
    for name, channels in inputs.channels:
        images = _images(sample[name])
        mode = {1: "gray", 3: "rgb"}.get(channels)
        if mode and any(image.shape[2] != channels for image in images) and all(im.shape[2] <= 4 for im in images):
            converted = [to_mode(image, mode, files[0]) for image in images]
            changed[name] = converted if isinstance(sample[name], list) else converted[0]
            notes.append(FileNote(files[0], 1, "", mode))
    return sample | changed


def _channel_problem(sample: Sample, inputs: InputSpec, reader: Reader, number: int) -> str:
    for name, channels in inputs.channels:
        for image in _images(sample[name]):
            where = ", ".join(map(str, reader.files(number)[:1]))
            if image.shape[2] != channels:
                return f"{where} has {image.shape[2]} channels, but the model was trained on {channels}"
            if reader.scales.get(name) == 255 and image.dtype != np.uint8 and image.max() > 1:
                return f"{where} has values above 255, but the model was trained on 8 bits: convert it"
    return ""


def _images(value: Any) -> list[np.ndarray]:
    return value if isinstance(value, list) else [value]


def describe_notes(notes: Sequence[FileNote], models: Sequence[Readable]) -> list[str]:
    """Name pictures that are damaged, converted, left out, or turned by an EXIF orientation new to the models."""
    turned = [f"{note.path} ({note.orientation})" for note in notes if note.orientation != 1]
    lines = describe_damage({str(note.path): note.damage for note in notes if note.damage})
    for mode in ("rgb", "gray"):
        names = [str(note.path) for note in notes if note.mode == mode]
        if names:
            lines.append(
                f"{len(names):,} pictures do not have the channels of the training images, and are converted as with "
                f"data.mode={mode}: {some(names)}"
            )
    lines += describe_left_out([f"{note.path} (of {note.item})" for note in notes if note.left_out])
    if turned and any(model.spec.exif is None for model in models):
        lines.append(
            "these pictures have an EXIF orientation, which no training image had, and are turned upright (train with "
            f"data.exif=ignore to keep such pictures as stored): {some(turned, 20)}"
        )
    return lines

"""Checks of the reader: same for training and prediction, each item from its own files, only what is declared.

A check yields a sentence with the usual cause for each failure.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foldwise.data.images import ImageError
from foldwise.data.reading import Reader
from foldwise.data.samples import Rows, Sample
from foldwise.preflight.shuffled import shuffle, target_columns
from foldwise.preflight.subject import Subject

MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped": lambda x: x[:, ::-1],
    "upside down": lambda x: x[::-1],
    **{f"{n} pixels {xy}": partial(np.roll, shift=n, axis=a) for n in (-3, 3) for a, xy in enumerate("yx")},
}
BLANK = 0.01  # standard deviation of the pixels of an image, in [0, 1], that shows nothing


def check_alike(subject: Subject) -> Iterator[str]:
    """Prediction reads what training reads, but for what is random; the same each time."""
    predicting, training = subject.reader(), subject.reader(targets=True)
    again, always, targets, drawn = set[str](), set[str](), set[str](), []
    for item in subject.items:
        plain = predicting.read(item)
        random = [training.read(item, np.random.default_rng(number)) for number in (0, 0, 1, 2, 3)]
        again |= _differing(plain, predicting.read(item)) | _differing(*random[:2])
        targets |= _differing(plain, training.read(item))
        changed = set[str]().union(*(_differing(plain, other) for other in random))
        always |= {name for name in changed if not any(name in _differing(random[0], other) for other in random)}
        if "image" in changed:
            drawn.append([_pixels(each).mean(0) for each in (plain, *random)] + [_pixels(plain).std(0)])
    if again:
        yield f"{_names(again)} of an item differs when it is read again: draw random numbers from `rng` in `read`"
        return
    if targets:
        yield f"{_names(targets)} is read differently when there are targets: `read` tests `rows.targets` for more"
    if always - targets:
        yield (
            f"training always reads {_names(always)} differently from prediction: a step of `read`, such as the order "
            "of the channels or a normalisation, is only where there is an `rng`"
        )
    elif drawn:  # at random, values differ, but not on average
        plain, *random, std = np.mean(drawn, axis=0)
        if np.abs(np.mean(random, axis=0) - plain).max() >= 0.3 * std.max():
            yield (
                "the images of training are brighter or darker on average than those of prediction: a step of `read`, "
                "such as a normalisation, is only where there is an `rng`"
            )


def check_own(subject: Subject) -> Iterator[str]:
    """Each item is read from its own files and columns, and no input depends on the targets."""
    reader = subject.reader()
    samples = [reader.read(item) for item in subject.items]
    if len(samples) > 1 and not any(_differing(samples[0], other) for other in samples[1:]):
        yield f"the first {len(samples)} items are read alike: `read` opens the same file for every item"
    moved = replace(reader, rows=Rows(shuffle(subject.config, subject.prepared).source, reader.samples))
    leaked = set[str]().union(
        *(_differing(sample, moved.read(item)) for item, sample in zip(subject.items, samples, strict=True))
    )
    if leaked:
        columns = ", ".join(target_columns(subject.config)[:-1])
        yield (
            f"the input {_names(leaked)} depends on the target ({columns}), which a test table does not have: "
            "`columns` of the reader, or samples.numbers or samples.categories, name it"
        )


def check_declared(subject: Subject) -> Iterator[str]:
    """An item is read the same where nothing but its declared files, rows and columns are there."""
    reader, prepared = subject.reader(), subject.prepared
    if prepared.features:
        return
    samples, source = prepared.samples, prepared.source
    for number in subject.items[:4]:
        item = prepared.items[number]
        with tempfile.TemporaryDirectory() as scratch:
            for path in reader.files(number):
                new = Path(scratch) / path.relative_to(source.root)
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, new)
            columns = [*dict.fromkeys(["id", "image", *samples.columns])]
            frame = source.frame[columns].iloc[sorted(set(item.rows))].reset_index(drop=True)
            rows = Rows(replace(source, frame=frame, root=Path(scratch)), samples)
            alone = [other for other in samples.items(rows) if other.id == item.id]
            if not alone:
                yield f"the item {item.id} is not made of its own rows alone: `items` counts rows of the whole table"
                return
            with contextlib.chdir(scratch):
                try:
                    sample = replace(reader, rows=rows, items=alone).read(0)
                except (OSError, ImageError) as error:
                    yield f"{item.id}: `read` opens a file that `files` does not list ({error})"
                    return
        if changed := _differing(reader.read(number), sample):
            yield (
                f"{_names(changed)} of {item.id} is read differently where only its own rows and files are there: "
                "`read` takes something of the whole table, which `fit` should have kept, or of another row"
            )
            return


def check_channels(subject: Subject) -> Iterator[str]:
    """The channels of the network are red, green and blue, as in the files."""

    def blank(channel: int, _: int, image: Image.Image) -> Image.Image | None:
        bands = list(image.split())
        bands[channel : channel + 1] = [Image.new("L", image.size)]
        return Image.merge("RGB", bands) if len(bands) == 3 else None

    with tempfile.TemporaryDirectory() as scratch:
        for channel, name in enumerate(("red", "green", "blue")):
            reader = _changed(subject, Path(scratch) / name, partial(blank, channel))
            if reader is None:
                return
            flat = np.max([_pixels(reader.read(item)).std(0) for item in subject.items], axis=0) < 1e-3
            found = set(np.flatnonzero(flat) % 3)
            if found - {channel}:  # empty: the reader makes other channels of them
                yield f"{name} of a file is read as channel {', '.join(map(str, found))}: OpenCV reads blue first"
                return


def check_masks(subject: Subject) -> Iterator[str]:
    """Images painted like their masks still fit them after reading and augmentation."""
    plain, ignored = subject.reader(targets=True), subject.config["data"]["ignore_index"]
    fields = {} if subject.prepared.features else plain.fields

    def things(sample: Sample, name: str) -> np.ndarray:
        return (sample[name] > 0) & (sample[name] != ignored)

    def paint(name: str, item: int, image: Image.Image) -> Image.Image:
        white = Image.fromarray(np.uint8(255) * things(plain.read(item), name))
        return white.resize(image.size, Image.Resampling.NEAREST).convert(image.mode)

    for name in [name for name, field in fields.items() if field.kind == "mask"]:
        with tempfile.TemporaryDirectory() as scratch:
            reader = _changed(subject, Path(scratch), partial(paint, name), targets=True)
            if reader is None:
                return
            read = [("`read`", subject.plain(reader), (item, 0)) for item in subject.items]
            augmented = subject.augmented(reader)
            read += [("an augmentation", augmented, (item, draw)) for item in subject.items for draw in range(4)]
            for where, samples, (item, draw) in read:
                sample = samples.read((item, draw))
                image, mask = sample["image"].mean(axis=0), things(sample, name)
                white = image > image.max() / 2
                better = [how for how, move in MOVES.items() if (move(white) == mask).sum() > (white == mask).sum()]
                if better:
                    yield (
                        f"the image of {plain.items[item].id} would fit its {name} better {better[0]}: {where} flips "
                        "or moves one without the other"
                    )
                    return


def check_augmented(subject: Subject) -> Iterator[str]:
    """Augmented images show something, and no field has NaN."""
    plain, augmented = subject.plain(subject.reader(targets=True)), subject.augmented()
    images = [name for name, field in plain.fields.items() if field.kind == "image"]
    before, after = ([each.read((item, 0)) for item in subject.items] for each in (plain, augmented))
    for name in plain.fields:
        bad = [a for a in after if a[name].dtype.kind == "f" and not np.isfinite(a[name]).all()]
        if bad and not name.startswith("target"):  # an unknown target is NaN
            yield f"{name} of {len(bad)} of {len(after)} items has NaN or infinite values: a division by 0 in `read`?"
    for name in images:
        shown = [(a, b) for a, b in zip(after, before, strict=True) if _contrast(b[name]) >= BLANK]
        blank = [a for a, _ in shown if _contrast(a[name]) < BLANK]
        if len(blank) > len(shown) / 2:
            yield (
                f"the augmentation leaves nothing of {len(blank)} of {len(shown)} images in {name}: one of its "
                "transforms is too strong, or expects values up to 255 and gets them up to 1"
            )


def _changed(subject: Subject, folder: Path, change: Callable[[int, Any], Any], targets: bool = False) -> Reader | None:
    """A reader of copies of the images that `change(item, image)` made; None if they are not 8-bit gray or RGB."""
    reader, source = subject.reader(), subject.prepared.source
    if "image" not in reader.fields or subject.prepared.features:
        return None
    owners = {path: number for number in subject.items for path in reader.files(number)}
    for path, item in owners.items():
        try:
            image: Image.Image = Image.open(path)
        except UnidentifiedImageError:
            return None
        if image.mode not in ("L", "RGB"):
            return None
        image = image if source.exif == "ignore" else ImageOps.exif_transpose(image)
        changed = change(item, image)
        if changed is None:
            return None
        new = folder / path.relative_to(source.root)
        new.parent.mkdir(parents=True, exist_ok=True)
        changed.save(new, format="TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG")
    return subject.reader(targets, folder)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _differing(first: Sample, second: Sample) -> set[str]:
    """The fields of the first sample in which the second differs."""
    pairs = {name: (_listed(value), _listed(second[name])) for name, value in first.items()}
    same = partial(np.array_equal, equal_nan=True)
    return {name for name, (a, b) in pairs.items() if len(a) != len(b) or not all(map(same, a, b))}


def _pixels(sample: Sample) -> np.ndarray:
    """Those of the image or stack, (pixels, C) in [0, 1]."""
    flat = np.concatenate([image.reshape(-1, image.shape[-1]) for image in _listed(sample["image"])])
    return flat / 255 if flat.dtype == np.uint8 else flat


def _contrast(image: np.ndarray) -> float:
    return float(image.std()) / (255 if image.dtype == np.uint8 else 1)


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))

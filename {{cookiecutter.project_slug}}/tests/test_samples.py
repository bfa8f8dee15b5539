"""solution/samples.py: training and prediction read alike, each item its own files, and nothing that is not declared."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BATCH, Training, World, augmented, equal
from PIL import Image, ImageOps, UnidentifiedImageError

from foldwise.data.reading import Reader
from foldwise.data.samples import Rows


def change(world: World, folder: Path, changes) -> Reader:
    """A reader of copies of the files, some of them changed.

    Args:
        changes: by the number of the item, from a picture to what takes its place; items without one stay as they are.
    """
    own = {path: item for item in changes for path in world.files(item)}
    for item in range(BATCH):
        for path in world.files(item):
            new = folder / path.relative_to(world.prepared.source.root)
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                picture = Image.open(path)
            except UnidentifiedImageError:
                pytest.skip(f"{path.name} is no picture that Pillow reads")
            if picture.mode not in ("L", "RGB"):
                pytest.skip(f"{path.name} is neither 8-bit gray nor RGB")
            if path in own:
                picture = changes[own[path]](picture)
            picture.save(new, format="TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG")
    return world.reader(root=folder)


def values(sample, name="image") -> np.ndarray:
    """The pixels of an image or stack in [0, 1], by channel: (pixels, C)."""
    pictures = sample[name] if isinstance(sample[name], list) else [sample[name]]
    flat = np.concatenate([picture.reshape(-1, picture.shape[-1]) for picture in pictures])
    return flat / 255 if flat.dtype == np.uint8 else flat


def test_training_reads_as_prediction_does(world: World):
    """Usual cause: a step of `read`, such as a normalisation, that is taken only where there is an `rng` or a target."""
    means = []
    for item in range(BATCH):
        predicted = world.read(item)
        assert not equal(predicted, world.read(item, targets=True)), "targets change what is read"
        first, second = (world.read(item, np.random.default_rng(seed), targets=True) for seed in (0, 1))
        drawn = set(equal({name: first[name] for name in predicted}, second))
        assert set(equal(predicted, first)) <= drawn, "training reads other values, and does not draw them"
        images = [name for name in drawn if world.prepared.samples.fields[name].kind == "image"]
        means += [np.r_[values(s, n).mean(0), values(s, n).std(0)] for n in images for s in (predicted, first, second)]
    if means:  # what is drawn differs, but not on average
        predicted, first, second = (np.mean(means[number::3], axis=0) for number in range(3))
        assert np.abs((first + second) / 2 - predicted).max() < 0.15 * predicted.max()


def test_an_item_is_read_the_same_twice(world: World):
    """Usual cause: random numbers from `np.random` or `random` in `read`, in place of the `rng` that it gets."""
    for item in range(BATCH):
        assert not equal(world.read(item), world.read(item))
        assert not equal(*(world.read(item, np.random.default_rng(3), targets=True) for _ in range(2)))


def test_reading_uses_only_what_is_declared(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Usual cause: `read` opens a file that `files` does not name, or a column that `columns` does not, or takes a
    mean of the whole table, which a test table does not have, in place of what `fit` gave."""
    source, samples, root = world.prepared.source, world.prepared.samples, world.prepared.source.root
    for number in range(BATCH):
        item, folder = world.prepared.items[number], tmp_path / str(number)
        for path in world.files(number):
            (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(root))
        frame = source.frame.iloc[sorted(set(item.rows))][list(dict.fromkeys(["id", "image", *samples.columns]))]
        frame.to_csv(folder / "table.csv", index=False)
        alone = replace(source, frame=frame.reset_index(drop=True), root=folder, path=folder / "table.csv", target=None)
        rows = Rows(alone, samples)
        (same,) = (other for other in samples.items(rows) if other.id == item.id)
        reader = world.reader()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            sample = replace(reader, rows=rows, items=[same]).read(0)
        assert not equal(world.read(number), sample), f"{item.id} is read otherwise where there is nothing beside it"


def test_an_item_has_the_name_of_its_rows(world: World):
    """Usual cause: `items` counts rows otherwise than the table, so that an item gets the target of another."""
    frame = world.prepared.source.frame.astype(str)
    for item in world.prepared.items:
        own = frame.iloc[list(item.rows)]
        shared = [own[name].iat[0] for name in own if own[name].nunique() == 1]
        assert item.id in (own["id"].iat[0], *shared), f"the item {item.id} has the rows of {', '.join(own['id'])}"


def test_each_item_shows_its_own_pictures(world: World, tmp_path: Path):
    """Usual cause: `read` takes another row than the item's, such as `rows.path(0)` or one beside it."""
    plain = change(world, tmp_path / "plain", {})
    for item in range(BATCH):
        inverted = change(world, tmp_path / str(item), {item: ImageOps.invert})
        for other in range(BATCH):
            same = not equal(plain.read(other), inverted.read(other))
            assert same != bool(set(world.files(item)) & set(world.files(other))), f"{item} changed, {other} was read"


def test_channels_are_in_their_order(world: World, tmp_path: Path):
    """Usual cause: OpenCV, which reads blue first. Channels that are no longer red, green and blue: skip this test."""
    plain = change(world, tmp_path / "plain", {})
    for channel in range(3):

        def without(picture: Image.Image, channel=channel) -> Image.Image:
            if picture.mode != "RGB":
                pytest.skip("the pictures have no colours")
            bands = list(picture.split())
            bands[channel] = ImageOps.invert(bands[channel])
            return Image.merge("RGB", bands)

        changed = change(world, tmp_path / str(channel), dict.fromkeys(range(BATCH), without))
        for item in range(BATCH):
            before, after = values(plain.read(item)), values(changed.read(item))
            if before.shape[1] % 3:
                pytest.skip("the reader makes other channels of them")
            moved = np.flatnonzero(np.abs(before - after).max(axis=0) > 1e-3)
            assert moved.size and set(moved % 3) == {channel}, f"channel {channel} of the file is read as {moved}"


def test_masks_lie_on_their_pictures(world: World, fresh: Training, tmp_path: Path):
    """Usual cause: a flip, crop or shift of the picture in `read`, or an augmentation, that the mask does not get."""
    fields = world.reader(targets=True).fields
    masks = [name for name, field in fields.items() if field.kind == "mask"]
    if not masks or fields.get("image") is None:
        pytest.skip("there are no masks")
    ignored, plain = world.config["data"]["ignore_index"], world.reader(targets=True)
    for name in masks:
        stored = {item: plain.read(item)[name] for item in range(BATCH)}
        paint = {
            item: lambda picture, mask=mask: Image.fromarray(
                np.where((mask > 0) & (mask != ignored), np.uint8(255), np.uint8(0))
            ).resize(picture.size, Image.Resampling.NEAREST).convert(picture.mode)
            for item, mask in stored.items()
        }  # fmt: skip
        change(world, tmp_path, paint)
        painted = replace(plain, rows=world.reader(True, tmp_path).rows)
        for dataset in (world.dataset(painted), augmented(fresh, painted)):
            overlap = dict.fromkeys(["as it is", "flipped", "upside down", *((y, x) for y in (-2, 0, 2) for x in (-2, 0, 2))], 0)
            for item in range(BATCH):
                sample = dataset.read((item, 0))
                bright, mask = sample["image"].mean(axis=0), (sample[name] > 0) & (sample[name] != ignored)
                bright = bright > bright.max() / 2
                for how in overlap:
                    moved = {"as it is": bright, "flipped": bright[:, ::-1], "upside down": bright[::-1]}.get(how)
                    moved = np.roll(bright, how, (0, 1)) if moved is None else moved
                    overlap[how] += (moved == mask).sum()
            assert overlap["as it is"] >= max(overlap.values()), f"{name} lies {max(overlap, key=overlap.get)}"

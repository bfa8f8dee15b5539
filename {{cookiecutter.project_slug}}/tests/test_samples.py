"""solution/samples.py: training and prediction read alike, each item its own files, nothing that is not declared."""

import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import BATCH, Training, World
from PIL import Image, UnidentifiedImageError

from foldwise.data.samples import Rows

MOVES = {
    **{"flipped": lambda x: x[:, ::-1], "upside down": lambda x: x[::-1]},
    **{f"{n} pixels {axis}": lambda x, n=n, a=a: np.roll(x, n, a) for n in (-3, 3) for a, axis in enumerate("yx")},
}


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def differing(first, second) -> set[str]:
    """The fields in which two samples differ."""
    pairs = {name: (listed(value), listed(second[name])) for name, value in first.items()}
    return {name for name, (a, b) in pairs.items() if len(a) != len(b) or not all(map(np.array_equal, a, b))}


def pixels(sample) -> np.ndarray:
    """Those of the image or stack, (pixels, C) in [0, 1]."""
    flat = np.concatenate([image.reshape(-1, image.shape[-1]) for image in listed(sample["image"])])
    return flat / 255 if flat.dtype == np.uint8 else flat


def changed(world: World, folder, change, targets=False):
    """A reader of copies of the images that `change(item, image)` made."""
    reader = world.reader()
    for path, item in {path: number for number in range(BATCH) for path in reader.files(number)}.items():
        try:
            image = Image.open(path)
        except UnidentifiedImageError:
            pytest.skip(f"{path.name} is not an image that Pillow reads")
        if image.mode not in ("L", "RGB") or "image" not in reader.fields:
            pytest.skip(f"{path.name} is neither 8-bit gray nor RGB, or there is no field `image`")
        new = folder / path.relative_to(world.prepared.source.root)
        new.parent.mkdir(parents=True, exist_ok=True)
        change(item, image).save(new, format="TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG")
    return world.reader(targets, folder)


def test_training_reads_as_prediction_does(world: World):
    """A step of `read`, such as normalisation, only where there is an `rng`, or targets; `np.random` for `rng`."""
    predicting, training, drawn = world.reader(), world.reader(targets=True), []
    for item in range(BATCH):
        plain, again = predicting.read(item), predicting.read(item)
        random = [training.read(item, np.random.default_rng(number)) for number in (0, 0, 1, 2, 3)]
        assert not differing(plain, again) and not differing(*random[:2]), "a second time, it is read otherwise"
        assert not differing(plain, training.read(item)), "what is read depends on whether there are targets"
        for name in set.union(*(differing(plain, other) for other in random)):
            assert any(name in differing(random[0], other) for other in random), f"training always changes {name}"
            drawn += [[pixels(s).mean(0) for s in (plain, *random)] + [pixels(plain).std(0)]] if name == "image" else []
    if drawn:  # at random: values differ, but not on average
        plain, *random, std = np.mean(drawn, axis=0)
        assert np.abs(np.mean(random, axis=0) - plain).max() < 0.3 * std.max()


def test_reading_needs_only_what_is_declared(world: World, tmp_path, monkeypatch):
    """`read` opens a file that `files` does not name, or takes a mean of the table at hand, where `fit` should have
    kept that of the training items; or `items` counts rows otherwise than the table does."""
    reader, source, samples = world.reader(), world.prepared.source, world.prepared.samples
    for number, item in enumerate(world.prepared.items[:BATCH]):
        folder = tmp_path / str(number)
        for path in reader.files(number):
            new = folder / path.relative_to(source.root)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, new)
        columns = [*dict.fromkeys(["id", "image", *samples.columns])]
        frame = source.frame[columns].iloc[sorted(set(item.rows))].reset_index(drop=True)
        rows = Rows(replace(source, frame=frame, root=folder), samples)
        (alone,) = (other for other in samples.items(rows) if other.id == item.id)
        monkeypatch.chdir(folder)
        sample = replace(reader, rows=rows, items=[alone]).read(0)
        monkeypatch.undo()
        assert not differing(reader.read(number), sample), f"{item.id} is read otherwise where nothing else is there"


@pytest.mark.parametrize("channel", range(3))
def test_channels_are_red_green_and_blue(channel, world: World, tmp_path):
    """OpenCV reads blue first. Where channels mean something else on purpose, remove this test."""

    def blank(_, image):
        bands = list(image.split())
        if len(bands) < 3:
            pytest.skip("the images have no colours")
        bands[channel] = Image.new("L", image.size)
        return Image.merge("RGB", bands)

    reader = changed(world, tmp_path, blank)
    flat = np.flatnonzero(np.max([pixels(reader.read(item)).std(0) for item in range(BATCH)], axis=0) < 1e-3)
    if not flat.size:
        pytest.skip("the reader makes other channels of them")
    assert set(flat % 3) == {channel}, f"channel {channel} of a file is read as {flat.tolist()}"


def test_masks_lie_on_their_images(world: World, tmp_path):
    """A flip or shift of the image, in `read` or by an augmentation, that the mask does not get."""
    plain, ignored = world.reader(targets=True), world.config["data"]["ignore_index"]
    masks = [name for name, field in plain.fields.items() if field.kind == "mask"]
    if not masks:
        pytest.skip("there are no masks")

    def things(sample, name):
        return (sample[name] > 0) & (sample[name] != ignored)

    augmented = copy(Training(world).loader.dataset)
    for name in masks:

        def paint(item, image, name=name):
            white = Image.fromarray(np.uint8(255) * things(plain.read(item), name))
            return white.resize(image.size, Image.Resampling.NEAREST).convert(image.mode)

        augmented.reader = changed(world, tmp_path / name, paint, targets=True)
        for samples, draws in ((world.samples(augmented.reader), 1), (augmented, 4)):
            for item, draw in np.ndindex(BATCH, draws):
                sample = samples.read((item, draw))
                image, mask = sample["image"].mean(axis=0), things(sample, name)
                white = image > image.max() / 2
                for how, move in MOVES.items():
                    better = (move(white) == mask).sum() > (white == mask).sum()
                    assert not better, f"the image of item {item} would fit its {name} better {how}"

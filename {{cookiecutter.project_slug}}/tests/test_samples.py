"""solution/samples.py: training and prediction read alike, each item its own files, nothing that is not declared."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import BATCH, Training, World
from PIL import Image, ImageOps, UnidentifiedImageError

from foldwise.data.samples import Rows


def differing(first, second) -> set[str]:
    """The names under which two samples differ."""
    stacks = [{n: v if isinstance(v, list) else [v] for n, v in sample.items()} for sample in (first, second)]
    return {
        name
        for name, one in stacks[0].items()
        if len(one) != len(stacks[1][name]) or not all(map(np.array_equal, one, stacks[1][name]))
    }


def pixels(sample) -> np.ndarray:
    """Those of the image or stack in [0, 1], by channel: (pixels, C)."""
    pictures = sample["image"] if isinstance(sample["image"], list) else [sample["image"]]
    flat = np.concatenate([picture.reshape(-1, picture.shape[-1]) for picture in pictures])
    return flat / 255 if flat.dtype == np.uint8 else flat


def copied(world: World, folder, changes=None, targets=False):
    """A reader of copies of the pictures; `changes` has functions of those of an item, by its number."""
    reader = world.reader()
    changed = {path: change for item, change in (changes or {}).items() for path in reader.files(item)}
    for path in {path for item in range(BATCH) for path in reader.files(item)}:
        new = folder / path.relative_to(world.prepared.source.root)
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture = Image.open(path)
        except UnidentifiedImageError:
            pytest.skip(f"{path.name} is no picture that Pillow reads")
        if picture.mode not in ("L", "RGB") or "image" not in reader.fields:
            pytest.skip(f"{path.name} is neither 8-bit gray nor RGB, or there is no field `image`")
        picture = changed.get(path, Image.Image.copy)(picture)
        picture.save(new, format="TIFF" if path.suffix.lower() in (".tif", ".tiff") else "PNG")
    return replace(world.reader(targets), rows=world.reader(targets, folder).rows)


def test_training_reads_as_prediction_does(world: World):
    """Usual cause: a step of `read`, such as normalisation, that is taken only where there is an `rng`, or targets."""
    predicting, training, drawn = world.reader(), world.reader(targets=True), []
    for item in range(BATCH):
        plain, *random = (predicting.read(item), *(training.read(item, np.random.default_rng(n)) for n in range(4)))
        assert not differing(plain, training.read(item)), "what is read depends on whether there are targets"
        changing = set.union(*(differing(plain, other) for other in random))
        constant = {name for name in changing if not any(name in differing(random[0], other) for other in random)}
        assert not constant, f"training always reads another {', '.join(constant)}"
        drawn += [[*(pixels(s).mean(0) for s in (plain, *random)), pixels(plain).std(0)]] if "image" in changing else []
    if drawn:  # at random: values differ, but not on average
        plain, *random, std = np.mean(drawn, axis=0)
        assert np.abs(np.mean(random, axis=0) - plain).max() < 0.3 * std.max()


def test_an_item_is_read_the_same_twice(world: World):
    """Usual cause: random numbers from `np.random` or `random` in `read`, in place of the `rng` that it gets."""
    reader = world.reader()
    for item in range(BATCH):
        assert not differing(reader.read(item), reader.read(item))
        assert not differing(*(reader.read(item, np.random.default_rng(3)) for _ in range(2)))


def test_reading_needs_only_what_is_declared(world: World, tmp_path, monkeypatch):
    """Usual cause: `read` opens a file that `files` does not name, or a column that `columns` does not; or it takes a
    mean of the table at hand, where `fit` should have kept that of the training items."""
    reader, source = world.reader(), world.prepared.source
    for number, item in enumerate(world.prepared.items[:BATCH]):
        folder = tmp_path / str(number)
        for path in reader.files(number):
            new = folder / path.relative_to(source.root)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, new)
        columns = dict.fromkeys(["id", "image", *world.prepared.samples.columns])
        frame = source.frame.iloc[sorted(set(item.rows))][list(columns)].reset_index(drop=True)
        frame.to_csv(folder / "table.csv", index=False)
        rows = Rows(replace(source, frame=frame, root=folder, path=folder / "table.csv"), world.prepared.samples)
        (alone,) = (other for other in world.prepared.samples.items(rows) if other.id == item.id)
        monkeypatch.chdir(folder)
        sample = replace(reader, rows=rows, items=[alone]).read(0)
        monkeypatch.undo()
        assert not differing(reader.read(number), sample), f"{item.id} is read otherwise where nothing else is there"


def test_an_item_has_the_name_of_its_rows(world: World):
    """Usual cause: `items` counts rows otherwise than the table does, and each item gets the target of another."""
    frame = world.prepared.source.frame.astype(str)
    for item in world.prepared.items:
        own = frame.iloc[list(item.rows)]
        shared = [own[name].iat[0] for name in own if own[name].nunique() == 1]
        assert item.id in (own["id"].iat[0], *shared), f"the item {item.id} has the rows of {', '.join(own['id'])}"


def test_each_item_shows_its_own_pictures(world: World, tmp_path):
    """Usual cause: `read` takes another row than the item's, such as `rows.path(0)` or a neighbour's."""
    plain = copied(world, tmp_path / "plain")
    for changed in range(BATCH):
        inverted = copied(world, tmp_path / str(changed), {changed: ImageOps.invert})
        for item in range(BATCH):
            shared = set(plain.files(changed)) & set(plain.files(item))
            assert bool(differing(plain.read(item), inverted.read(item))) == bool(shared), f"{item} shows {changed}"


def test_channels_are_red_green_and_blue(world: World, tmp_path):
    """Usual cause: OpenCV, which reads blue first. Where channels mean something else on purpose, remove this test."""
    for channel in range(3):

        def blank(picture, channel=channel):
            bands = list(picture.split())
            if len(bands) < 3:
                pytest.skip("the pictures have no colours")
            bands[channel] = Image.new("L", picture.size)
            return Image.merge("RGB", bands)

        reader = copied(world, tmp_path / str(channel), dict.fromkeys(range(BATCH), blank))
        flat = np.flatnonzero(np.max([pixels(reader.read(item)).std(0) for item in range(BATCH)], axis=0) < 1e-3)
        if not flat.size:
            pytest.skip("the reader makes other channels of them")
        assert set(flat % 3) == {channel}, f"channel {channel} of a file is read as {flat.tolist()}"


MOVES = {
    **{"flipped": lambda x: x[:, ::-1], "upside down": lambda x: x[::-1]},
    **{f"{n} pixels {axis}": lambda x, n=n, a=a: np.roll(x, n, a) for n in (-3, 3) for a, axis in enumerate("yx")},
}


def test_masks_lie_on_their_pictures(world: World, tmp_path):
    """Usual cause: a flip or shift of the picture, in `read` or by an augmentation, that the mask does not get."""
    plain, ignored = world.reader(targets=True), world.config["data"]["ignore_index"]
    masks = [name for name, field in plain.fields.items() if field.kind == "mask"]
    if not masks:
        pytest.skip("there are no masks")
    training = Training(world)
    for name in masks:

        def is_thing(mask):
            return (mask > 0) & (mask != ignored)

        def paint(mask):
            white = Image.fromarray(np.uint8(255) * is_thing(mask))
            return lambda picture: white.resize(picture.size, Image.Resampling.NEAREST).convert(picture.mode)

        pictures = {item: paint(plain.read(item)[name]) for item in range(BATCH)}
        reader = copied(world, tmp_path / name, pictures, targets=True)
        for samples, draws in ((world.samples(reader), 1), (training.augmented(reader), 4)):
            for item, draw in np.ndindex(BATCH, draws):
                sample = samples.read((item, draw))
                white, thing = sample["image"].mean(axis=0), is_thing(sample[name])
                white = white > white.max() / 2
                agreed = (white == thing).mean()
                better = [how for how, move in MOVES.items() if (move(white) == thing).mean() > agreed]
                assert not better, f"the picture of item {item} would fit its {name} better {' or '.join(better)}"

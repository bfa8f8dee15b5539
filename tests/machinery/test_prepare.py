"""Preparation: statistics against numpy, every offender listed, nothing read or moved twice."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

from foldwise.audit.descriptors import PixelDescriber
from foldwise.audit.image_notes import audit_images
from foldwise.audit.table_notes import audit_table
from foldwise.code.alias import open_code
from foldwise.code.build import make as make_object
from foldwise.code.source import Code
from foldwise.config import compose_config
from foldwise.data import scan
from foldwise.data.folds import read_folds
from foldwise.data.prepare import Prepared, check_test_table
from foldwise.data.prepare import prepare as prepare_data
from foldwise.data.problems import TableError
from foldwise.errors import Refusal
from foldwise.reporting.pictures import choose_samples, draw_samples

DATA = {
    "name": "competition", "test_table": None, "folds": 2, "columns": {}, "classes": None, "ignore_index": 255,
    "image_size": 64, "mode": "stored", "scale": None,
}  # fmt: skip


def prepare(data: dict[str, Any], task: str = "multiclass", make_folds: bool = True) -> Prepared:
    """What foldwise's own reader makes of the data."""
    samples = {"_target_": "foldwise.data.samples.Samples", "mode": data["mode"]}
    return prepare_data({"data": data, "task": task, "seed": 0, "samples": samples}, None, make_folds, progress=False)


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return DATA | {"root": str(root), "table": str(root / "train.csv"), "prepared": str(root / "prepared")} | changes


def make(root: Path, images: list[np.ndarray], **columns: list[Any]) -> dict[str, np.ndarray]:
    """Write images as TIFF and their table; gives them by path."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{number}.tif" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        layout = {"planarconfig": "contig"} if image.shape[2] > 1 else {}
        tifffile.imwrite(root / name, image.squeeze(), photometric="minisblack", **layout)
    frame = {"id": [f"i{number}" for number in range(len(images))], "image": names} | columns
    pd.DataFrame(frame).to_csv(root / "train.csv", index=False)
    return dict(zip(names, images, strict=True))


def noise(count: int, channels: int, dtype: Any = np.uint8, size: tuple[int, int] = (20, 30)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    return [
        (rng.random((size[0] + number, size[1], channels)) ** (1 + np.arange(channels)) * top).astype(dtype)
        for number in range(count)
    ]


def write_masks(root: Path, masks: list[np.ndarray]) -> list[str]:
    (root / "masks").mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return [f"masks/{number}.png" for number in range(len(masks))]


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (4, np.uint16), (8, np.float32)])
def test_mean_and_std_of_each_channel(tmp_path, channels, dtype):
    images = noise(6, channels, dtype)
    make(tmp_path, images, label=list("aabbab"))
    prepared = prepare(config(tmp_path))
    result = prepared.image
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64) / top
    np.testing.assert_allclose(result["mean"], pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(result["std"], pixels.std(axis=0), rtol=1e-7)
    assert (result["channels"], result["dtype"]) == (channels, np.dtype(dtype).name)
    assert prepared.statistics["items"] == 6
    assert len(set(np.round(result["mean"], 3))) == channels  # each its own, not the first one's


def test_a_declared_scale_and_mode(tmp_path):
    images = [image // 16 for image in noise(4, 3, np.uint16)]
    make(tmp_path, images, label=list("abab"))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 4095
    result = prepare(config(tmp_path, scale=4095)).image
    np.testing.assert_allclose(result["mean"], pixels.mean(axis=0), rtol=1e-9)
    gray = prepare(config(tmp_path, scale=4095, mode="gray")).image
    assert gray["channels"] == 1
    np.testing.assert_allclose(gray["mean"], [pixels.mean(axis=0) @ [0.299, 0.587, 0.114]], atol=1e-3)


@pytest.mark.parametrize(("top", "scale"), [(255, 255), (256, 1023), (4095, 4095), (4096, 16383), (16384, None)])
def test_few_bits_in_16_bit_files_are_noted_with_their_scale(top, scale, tmp_path):
    images = [np.minimum(image, top) for image in noise(4, 3, np.uint16)]
    images[2][0, 0, 1] = top
    make(tmp_path, images, label=list("abab"))
    prepared = prepare(config(tmp_path))
    notes = [note for note in audit_table(config(tmp_path), prepared) if "data.scale=" in note]
    assert [note.endswith(f"set data.scale={scale}") for note in notes] == [True] * (scale is not None)
    # A scale that was set is a decision, also if it is that of 16 bits.
    assert not any("data.scale=" in note for note in audit_table(config(tmp_path, scale=65535), prepared))


def test_no_bits_are_missing_from_8_bit_and_float_images(tmp_path):
    for name, dtype in (("bytes", np.uint8), ("floats", np.float32)):
        make(tmp_path / name, noise(4, 1, dtype), label=list("abab"))
        data = config(tmp_path / name)
        assert not any("data.scale=" in note for note in audit_table(data, prepare(data)))


def test_large_images_are_added_up_in_blocks(tmp_path, monkeypatch):
    images = noise(2, 2, np.uint16)
    make(tmp_path / "a", images, label=["a", "b"])
    whole = prepare(config(tmp_path / "a")).statistics
    monkeypatch.setattr(scan, "BLOCK", 7)
    make(tmp_path / "b", images, label=["a", "b"])
    assert prepare(config(tmp_path / "b")).statistics == whole


def test_constant_channels_are_named_and_do_not_divide_by_zero(tmp_path):
    images = noise(4, 4)
    for image in images:
        image[..., 3] = 255
    make(tmp_path, images, label=list("abab"))
    prepared = prepare(config(tmp_path))
    assert prepared.image["std"][3] == 1 / 255
    assert any(
        "channel 3 is constant" in note and "data.mode=rgb" in note for note in audit_table(config(tmp_path), prepared)
    )


def test_a_second_call_reads_no_image_and_writes_nothing(tmp_path, monkeypatch):
    make(tmp_path, noise(6, 3), label=list("aabbab"))
    first = prepare(config(tmp_path))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()}
    assert {path.name for path in files} == {"folds.csv", "images.csv", "statistics.json"}
    for path in (tmp_path / "images").iterdir():  # same sizes, no content
        path.write_bytes(bytes(path.stat().st_size))
    second = prepare(config(tmp_path))
    assert (second.folds, second.folds_hash, second.statistics, second.images_hash, second.notes) == (
        first.folds, first.folds_hash, first.statistics, first.images_hash, first.notes,
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prepared").iterdir()} == files


def test_a_damaged_record_of_images_is_named(tmp_path):
    make(tmp_path, noise(4, 3), label=list("abab"))
    prepare(config(tmp_path))
    record = tmp_path / "prepared/images.csv"
    record.write_bytes(record.read_bytes() + b'"\xff')
    with pytest.raises(Refusal, match=r"images\.csv cannot be read .*; delete it and run the same command again"):
        prepare(config(tmp_path))


def test_a_changed_image_is_read_again_and_changes_the_hash(tmp_path):
    images = noise(4, 3)
    make(tmp_path, images, label=list("abab"))
    first = prepare(config(tmp_path))
    images[2] = images[2][:-3] // 2
    make(tmp_path, images, label=list("abab"))
    second = prepare(config(tmp_path))
    assert second.images_hash != first.images_hash and second.folds == first.folds
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(second.image["mean"], pixels.mean(axis=0), rtol=1e-9)
    assert len(pd.read_csv(tmp_path / "prepared/images.csv")) == 4


def test_only_a_change_of_what_reads_reads_all_images_again(tmp_path):
    source = (
        "from foldwise.data import samples\nGAIN = 1\nclass Samples(samples.Samples):\n"
        "    def read(self, *a):\n        return GAIN\n"
    )

    def key(text: str) -> str:
        alias = open_code(Code({"solution/samples.py": text.encode()}, tmp_path))
        return scan.reader_key(make_object({"_target_": "solution.samples.Samples"}, alias))

    assert key(source) == key(f"# why\n{source}other = 3\n")
    assert len({key(source), key(source.replace("GAIN = 1", "GAIN = 2")), key(source.replace("*a", "*b"))}) == 3


def test_new_rows_join_and_rows_that_left_are_not_forgotten(tmp_path):
    images = noise(8, 1)
    make(tmp_path, images[:6], label=list("ababab"))
    first = prepare(config(tmp_path))
    make(tmp_path, images, label=list("abababab"))
    second = prepare(config(tmp_path))
    assert len(second.folds) == 8 and all(second.folds[name] == fold for name, fold in first.folds.items())
    assert any("2 new rows joined" in note for note in second.notes)
    make(tmp_path, images[:6], label=list("ababab"))
    assert prepare(config(tmp_path)).folds == first.folds
    assert read_folds(tmp_path / "prepared/folds.csv") == second.folds


def test_training_does_not_make_folds(tmp_path):
    make(tmp_path, noise(4, 1), label=list("abab"))
    with pytest.raises(Refusal, match=r"folds\.csv does not exist.*python prepare\.py --data competition"):
        prepare(config(tmp_path), make_folds=False)
    prepare(config(tmp_path))
    prepare(config(tmp_path), make_folds=False)
    with pytest.raises(Refusal, match=r"has 2 folds, but data\.folds is 3"):
        prepare(config(tmp_path, folds=3))


def test_given_folds_are_taken_as_they_are(tmp_path):
    make(tmp_path, noise(5, 1), label=list("ababa"), fold=[1, 1, 0, -1, 0], scene=list("xxxyy"))
    columns = {"fold": "fold", "group": "scene"}
    prepared = prepare(config(tmp_path, columns=columns), make_folds=False)
    assert list(prepared.folds.values()) == [1, 1, 0, -1, 0]
    assert prepared.statistics["class_counts"] == {"-1": [0, 1], "0": [2, 0], "1": [1, 1]}
    assert any("class 'b' does not occur in fold 0" in note for note in audit_table(config(tmp_path), prepared))
    assert any("2 groups are in more than one fold" in note for note in audit_table(config(tmp_path), prepared))
    with pytest.raises(TableError, match=r"\[0, 1\], but data.folds=3 needs 0 to 2"):
        prepare(config(tmp_path, columns=columns, folds=3))


def test_units_and_groups_are_not_split(tmp_path):
    make(tmp_path, noise(12, 1), label=list("aaabbbaaabbb"), case=list("111222333444"), scene=list("xxxxxxyyyyyy"))
    for columns, names in (({"unit": "case"}, "1234"), ({"unit": "case", "group": "scene"}, "xy")):
        prepared = prepare(config(tmp_path, columns=columns, prepared=str(tmp_path / names)))
        folds = pd.Series(prepared.folds.values()).groupby(prepared.table.frame[list(columns)[-1]]).nunique()
        assert folds.tolist() == [1] * len(names)


def test_every_bad_image_is_listed(tmp_path):
    make(tmp_path, [*noise(5, 3), noise(1, 4)[0], noise(1, 3, np.uint16)[0]], label=list("abababa"))
    (tmp_path / "images/1.tif").write_bytes(b"II*\0broken")
    (tmp_path / "images/2.tif").write_bytes(b"")
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path))
    assert len(error.value.problems) == 4
    for part in ("1.tif cannot be decoded", "2.tif is empty", "5.tif has channels 4, most images have 3",
                 "6.tif has dtype uint16, most images have uint8"):  # fmt: skip
        assert sum(part in problem for problem in error.value.problems) == 1, part


def test_float_images_need_a_scale_beyond_one(tmp_path):
    make(tmp_path, [image * 300 for image in noise(4, 1, np.float32)], label=list("abab"))
    with pytest.raises(TableError, match=r"set data\.scale to"):
        prepare(config(tmp_path))
    prepared = prepare(config(tmp_path, scale=250.0))
    assert any("values range from" in note for note in audit_table(config(tmp_path, scale=250.0), prepared))
    images = noise(4, 1, np.float32)
    images[1][3, 3] = np.nan
    make(tmp_path / "nan", images, label=list("abab"))
    with pytest.raises(TableError, match=r"1\.tif has NaN or infinite values"):
        prepare(config(tmp_path / "nan"))


def test_masks_pixels_per_class_and_folds_by_class(tmp_path):
    rng = np.random.default_rng(0)
    images = noise(12, 3)
    masks = [rng.integers(0, 2, image.shape[:2]).astype(np.uint8) for image in images]
    for number in (3, 8):  # a rare class in two images: one a fold
        masks[number][:4] = 2
    masks[5][:2] = 255
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    prepared = prepare(config(tmp_path, classes=["a", "b", "c"]), "segmentation")
    counts = np.array([prepared.statistics["class_counts"][fold] for fold in "01"])
    folds = np.array(list(prepared.folds.values()))
    expected = [[sum((masks[n] == c).sum() for n in np.flatnonzero(folds == f)) for c in range(3)] for f in range(2)]
    np.testing.assert_array_equal(counts, expected)
    assert (counts[:, 2] > 0).all()


def test_every_bad_mask_is_listed(tmp_path):
    images = noise(5, 3)
    masks = [np.zeros(image.shape[:2], np.uint8) for image in images]
    masks[0][3] = 1
    masks[1] = masks[1].T
    masks[2][0, :2] = 7, 9
    masks[3][0] = 255
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    (tmp_path / "masks/4.png").write_bytes(b"no mask")
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, classes=["a", "b"]), "segmentation")
    assert len(error.value.problems) == 4
    for part in ("masks/1.png of images/1.tif is 30 x 21 (height x width), the image 21 x 30",
                 "value 7 in 1 pixels of 'masks/2.png' is neither a class (0 to 1: a, b) nor data.ignore_index (255)",
                 "data.ignore_index=9 if it means void", "masks/4.png is text ('no mask'...)"):  # fmt: skip
        assert sum(part in problem for problem in error.value.problems) == 1, part
    with pytest.raises(Refusal, match="is class 'b'"):
        prepare(config(tmp_path, classes=["a", "b"], ignore_index=1), "segmentation")


def test_images_that_share_a_problem_are_one_line(tmp_path):
    images = [np.zeros((20, 30, 3 if number < 4 else 4), np.uint8) for number in range(7)]
    masks = [np.full(image.shape[:2], number % 2, np.uint8) for number, image in enumerate(images)]
    for number in (1, 3, 5):
        masks[number][0, : number + 1] = 11
    masks[0], masks[2] = masks[0][1:], masks[2][1:]
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, classes=["road", "sky"]), "segmentation")
    channels, sizes, values = error.value.problems
    assert channels.startswith("images/4.tif (and 2 more) has channels 4, most images have 3")
    assert sizes.startswith("masks/0.png of images/0.tif (and 1 more) is 19 x 30 (height x width), the image 20 x 30")
    assert values.startswith("value 11 in 2 pixels of 'masks/1.png' and in 2 more masks (12 pixels) is neither")
    assert "0 to 1: road, sky" in values and "data.ignore_index=11 if it means void" in values


def test_masks_of_0_and_255_are_not_silently_ignored(tmp_path):
    images = noise(4, 3)
    masks = [np.where(image[..., 0] > 99, 255, 0).astype(np.uint8) for image in images]
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    with pytest.raises(TableError, match="no two classes to learn"):
        prepare(config(tmp_path, classes=["a", "b"]), "segmentation")


@pytest.mark.parametrize("ignored", [255, 7])
@pytest.mark.parametrize(
    ("stored", "numbers", "classes", "line"),
    [
        ([0, 255], [0, 1], "ab", "mask_values: {0: 0, 255: 1}"),
        ([0, 128, 255], [0, 1, 2], "abc", "mask_values: {0: 0, 128: 1, 255: 2}"),
    ],
)
def test_stored_mask_values_are_mapped_as_the_error_advises(stored, numbers, classes, line, ignored, tmp_path):
    """The line of the error prepares what rewritten masks prepare, and everything reads the same masks."""
    rng = np.random.default_rng(0)
    images = noise(6, 3)
    masks = [rng.choice(numbers, image.shape[:2]).astype(np.uint8) for image in images]
    tables = {}
    for name, values in (("stored", np.array(stored, np.uint8)), ("numbers", np.arange(len(numbers), dtype=np.uint8))):
        (tmp_path / name).mkdir()
        make(tmp_path / name, images, mask=write_masks(tmp_path / name, [values[mask] for mask in masks]))
        tables[name] = {"classes": list(classes), "ignore_index": ignored}
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path / "stored", **tables["stored"]), "segmentation")
    assert error.value.problems[-1].endswith(line)
    tables["stored"] |= yaml.safe_load(line)
    prepared = {name: prepare(config(tmp_path / name, **each), "segmentation") for name, each in tables.items()}
    assert prepared["stored"].statistics == prepared["numbers"].statistics
    assert prepared["stored"].folds == prepared["numbers"].folds
    for number in range(6):
        mask = prepared["stored"].table.read_mask(number)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, masks[number])


def test_masks_of_colours_are_read_exactly_and_from_jpegs_by_the_nearest(tmp_path):
    images = noise(6, 3)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)  # "#0000ff" is small enough for a value
    numbers = [(image[::4, ::4, 0] // 86).repeat(4, 0).repeat(4, 1) for image in images]
    numbers = [each[: len(image), : image.shape[1]] for each, image in zip(numbers, images, strict=True)]
    paths = write_masks(tmp_path, [colors[each] for each in numbers])
    make(tmp_path, images, mask=paths)
    values = {"#000000": 0, "#FF0000": 1, "#0000ff": 2}
    coloured = {"classes": ["a", "b", "c"], "mask_encoding": "colors", "mask_values": values}
    first = prepare(config(tmp_path, **coloured), "segmentation")
    for row, expected in enumerate(numbers):
        np.testing.assert_array_equal(first.table.read_mask(row), expected)
    near = [np.clip(colors[each] + np.int16([9, 0, -9]), 0, 255).astype(np.uint8) for each in numbers]
    for row, mask in enumerate(near):
        Image.fromarray(mask).save(tmp_path / f"masks/{row}.jpg", quality=100, subsampling=0)
    make(tmp_path, images, mask=[f"masks/{row}.jpg" for row in range(6)])
    inexact = prepare(config(tmp_path, **coloured), "segmentation")
    for row in range(6):
        stored = np.array(Image.open(tmp_path / f"masks/{row}.jpg"), np.int64)
        nearest = np.square(stored[:, :, np.newaxis] - colors).sum(axis=3).argmin(axis=2)
        assert (inexact.table.read_mask(row) != nearest).mean() < 0.01  # decoders round differently
    make(tmp_path, images, mask=write_masks(tmp_path, near))
    with pytest.raises(TableError, match=r"value #090000 in masks/0\.png \(and 5 more\) is not in data\.mask_values"):
        prepare(config(tmp_path, **coloured), "segmentation")
    with pytest.raises(Refusal, match=r"mask_encoding=colors needs data\.mask_values"):
        prepare(config(tmp_path, classes=["a", "b"], mask_encoding="colors"), "segmentation")
    with pytest.raises(Refusal, match="map colours to class numbers"):
        prepare(config(tmp_path, **coloured | {"mask_values": {"red": 0}}), "segmentation")


def test_every_other_value_is_a_problem_of_the_mapping(tmp_path):
    images = noise(4, 3)
    masks = [np.where(image[..., 0] > 99, 255, 0).astype(np.uint8) for image in images]
    masks[2][0, 0], masks[3][0, :2] = 7, 128
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    values = {"classes": ["a", "b"], "mask_values": {0: 0, 255: 1, 128: 255}}
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, **values), "segmentation")
    assert error.value.problems == ["value 7 in masks/2.png is not in data.mask_values: add its class"]
    values["mask_values"][7] = 9
    with pytest.raises(TableError, match=r"data\.mask_values: 7 becomes 9, which is neither a class"):
        prepare(config(tmp_path, **values), "segmentation")
    values["mask_values"][7] = 1
    prepared = prepare(config(tmp_path, **values), "segmentation")
    assert prepared.table.read_mask(3)[0, :2].tolist() == [255, 255] and prepared.table.read_mask(2)[0, 0] == 1
    counts = np.array(list(prepared.statistics["class_counts"].values())).sum(axis=0)
    assert counts.tolist() == [sum((m == 0).sum() for m in masks), sum(np.isin(m, (7, 255)).sum() for m in masks)]
    for wrong in ({0: "a"}, [0, 255], {}, {0: True}, {-1: 0}):
        with pytest.raises(Refusal, match=r"data\.mask_values is .* such as \{0: 0, 255: 1\}"):
            prepare(config(tmp_path, classes=["a", "b"], mask_values=wrong), "segmentation")


def test_some_masks_of_0_and_255_are_noted(tmp_path):
    images = noise(4, 3)
    masks = [np.where(image[..., 0] > 99, 255, 0).astype(np.uint8) for image in images]
    masks[0] //= 255
    make(tmp_path, images, mask=write_masks(tmp_path, masks))
    (note,) = [n for n in prepare(config(tmp_path, classes=["a", "b"]), "segmentation").notes if "255" in n]
    assert note.startswith("3 masks have only the values 0 and 255") and "mask_values: {0: 0, 1: 1, 255: 1}" in note
    values = {"classes": ["a", "b"], "mask_values": {0: 0, 1: 1, 255: 1}}
    assert not any("255" in note for note in prepare(config(tmp_path, **values), "segmentation").notes)


def test_the_test_images_must_be_like_the_training_images(tmp_path):
    make(tmp_path, noise(4, 3), label=list("abab"))
    data = config(tmp_path, test_table=str(tmp_path / "test.csv"))
    prepared = prepare(data)
    tifffile.imwrite(tmp_path / "images/gray.tif", noise(1, 1)[0][..., 0])
    (tmp_path / "test.csv").write_text("id,image\nt,images/gray.tif\n")
    with pytest.raises(TableError, match="its images have channels 1, the training images 3"):
        check_test_table(data, prepared, progress=False)
    (tmp_path / "test.csv").write_text("id,image\nt,images/1.tif\n")
    assert len(check_test_table(data, prepared, progress=False)[0]) == 1


def test_statistics_are_plain_json(tmp_path):
    make(tmp_path, noise(4, 3), label=list("abab"))
    prepared = prepare(config(tmp_path))
    assert json.loads((tmp_path / "prepared/statistics.json").read_text()) == prepared.statistics


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (2, np.uint8), (3, np.uint8), (4, np.uint16), (8, np.float32)]
)
def test_samples_are_drawn_once(tmp_path, channels, dtype):
    make(tmp_path, noise(3, channels, dtype, (300, 40)), labels=["x", "", "x y"])
    data = config(tmp_path)
    prepared = prepare(data, "multilabel")
    path = draw_samples(data, prepared)
    drawn = path.stat().st_mtime_ns
    assert np.asarray(Image.open(path).convert("L")).std() > 5
    assert draw_samples(data, prepared).stat().st_mtime_ns == drawn


def test_classes_take_turns_among_the_samples():
    present = np.zeros((1000, 4))
    present[:900, 0] = present[900:997, 1] = present[997:999, 2] = 1
    chosen = choose_samples(present, 10)
    assert len(set(chosen)) == 10
    assert {997, 998, 999} <= set(chosen) and (present[chosen][:, :2].sum(axis=0) >= 3).all()


def test_the_next_command_is_about_the_same_data(tmp_path: Path, command: Any) -> None:
    make(tmp_path, [np.full((8, 8, 3), 30 * number, np.uint8) for number in range(8)], label=list("abababab"))
    (tmp_path / "with space").mkdir()
    settings = config(tmp_path, prepared=str(tmp_path / "with space"))
    overrides = [f"data.{name}={settings[name]}" for name in ("root", "table", "prepared", "folds")]
    code, out, err = command(
        "prepare.py", "--data", "competition", "task=multiclass", "data.test_table=null", *overrides
    )
    assert code == 0, err
    script, *arguments = shlex.split(out.split("Next:")[1])[1:]
    assert script == "train.py"
    trained = compose_config(arguments)
    assert {name: trained.data[name] for name in ("root", "table", "prepared", "folds")} == {
        name: settings[name] for name in ("root", "table", "prepared", "folds")
    }
    assert trained.task == "multiclass"


def test_many_classes_are_one_note(tmp_path):
    labels = [f"c{number % 40}" for number in range(80)]
    make(tmp_path, noise(1, 3) * 80, label=labels, fold=[number // 40 for number in range(80)])
    data = config(tmp_path, columns={"fold": "fold"})
    assert not any("class" in note for note in audit_table(data, prepare(data)))
    make(tmp_path, noise(1, 3) * 80, label=labels, fold=[number % 2 for number in range(80)])
    (note,) = [note for note in audit_table(data, prepare(data)) if "class" in note]
    assert note.startswith(
        "40 of 40 classes do not occur in every fold: class 'c0' does not occur in fold 1; class 'c1'"
    )
    data["classes"] = [f"c{number}" for number in range(100)]
    assert [note[:28] for note in audit_table(data, prepare(data)) if "class" in note] == [
        "60 of 100 classes never occu", "40 of 100 classes do not occ"
    ]  # fmt: skip


@pytest.mark.parametrize("names", [["cat", "Cat"], ["1", "01"], ["2.0", "2"], ["caf\u00e9", "cafe\u0301"]])
def test_spellings_of_one_name_are_noted(tmp_path, names):
    make(tmp_path, noise(1, 3) * 8, label=[*names, "dog", "12"] * 2)
    data = config(tmp_path)
    (note,) = [note for note in audit_table(data, prepare(data)) if "spellings" in note]
    assert all(repr(name) in note for name in names) and "dog" not in note and note.startswith("1 names")
    data["classes"] = [*names, "dog", "12"]
    assert not any("spellings" in note for note in audit_table(data, prepare(data)))


def test_suspicious_ids_and_labels_are_noted(tmp_path):
    make(tmp_path, noise(1, 3) * 8, label=["cat", "nan"] * 4)
    data = config(tmp_path)
    assert any("class 'nan' reads like a missing label" in note for note in audit_table(data, prepare(data)))
    table = pd.read_csv(data["table"], dtype=str)
    (tmp_path / "again").mkdir()
    table.assign(id=[f"{row}.0" for row in range(8)], label=["x", "y"] * 4).to_csv(data["table"], index=False)
    data["prepared"] = str(tmp_path / "again")
    (note,) = [note for note in audit_table(data, prepare(data)) if " ids " in note]
    assert note.startswith("all ids end in .0, such as 0.0")


def test_ids_of_train_and_test_are_compared(tmp_path):
    make(tmp_path, noise(1, 3) * 8, label=["cat", "dog"] * 4)
    data = config(tmp_path)
    prepared = prepare(data)
    frame = pd.read_csv(data["table"], dtype=str)
    frame[:3].assign(image=frame["image"][[0, 2, 1]].tolist()).to_csv(tmp_path / "test.csv", index=False)
    data["test_table"] = str(tmp_path / "test.csv")
    test = check_test_table(data, prepared)[0]
    (note,) = [note for note in audit_images(data, prepared, test, PixelDescriber()) if " ids " in note]
    assert note.startswith("3 of 3 ids of the test table are in the training table, 1 of them with the same image")

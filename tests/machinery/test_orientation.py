"""EXIF orientation: pictures and masks against Pillow's own turning, and what is refused, proposed and noted."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageOps
from test_prepare import config, prepare

from foldwise.data.decoding import decode_mask, noting, stored_size
from foldwise.data.images import cached_images, read_image, read_mask
from foldwise.data.orientation import oriented
from foldwise.data.prepare import check_test_table
from foldwise.data.problems import TableError

FORMATS = ["jpg", "png", "webp", "tif"]


def photo(seed: int = 0, size: tuple[int, int] = (24, 40)) -> np.ndarray:
    """Smooth RGB (H, W, 3) without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 255, (3, 5, 3), np.uint8)
    return np.array(Image.fromarray(small).resize(size[::-1]))


def save(path: Path, image: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tif": {"tiffinfo": {0x0112: orientation}}, "webp": {"lossless": True, "exif": exif}}
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path, **options.get(path.suffix[1:], {"exif": exif}))
    return path


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    return np.array(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_turned_as_pillow_turns_them(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", photo(), orientation)
    with Image.open(save(tmp_path / f"b.{suffix}", photo(), 1)) as image:
        plain = np.array(image)
    expected = upright(plain, orientation)
    with oriented("apply"), noting() as notes:
        image = read_image(path)
        assert stored_size(path) == image.shape[:2] == expected.shape[:2]
    np.testing.assert_array_equal(image, expected)
    assert [note.orientation for note in notes] == [orientation][: orientation != 1]
    with oriented("ignore"):
        stored = read_image(path)
        assert stored_size(path) == stored.shape[:2] == (24, 40)
    np.testing.assert_array_equal(stored, plain)
    if suffix != "jpg":
        mask = save(tmp_path / f"m.{suffix}", photo()[:, :, 0], orientation)
        with oriented("apply"):
            shown = decode_mask(mask)
            np.testing.assert_array_equal(
                shown if shown.ndim == 2 else shown[:, :, 0], upright(photo()[:, :, 0], orientation)
            )
        with oriented("ignore"):
            shown = decode_mask(mask)
            np.testing.assert_array_equal(shown if shown.ndim == 2 else shown[:, :, 0], photo()[:, :, 0])


def test_ycbcr_tiffs_are_turned_once(tmp_path):
    """Pillow, which decodes them, turns TIFFs by itself."""
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.tif"
        Image.fromarray(photo()).convert("YCbCr").save(path, tiffinfo={0x0112: orientation})
        assert tifffile.TiffFile(path).pages.first.photometric == 6
        with Image.open(path) as image:
            expected = np.array(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected)
        with oriented("ignore"):
            assert read_image(path).shape == (24, 40, 3)
            first = read_image(tmp_path / "1.tif")
            np.testing.assert_array_equal(read_image(path), first)


def test_damaged_exif_does_not_make_a_picture_unreadable(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"Exif") + 6
    for bad in (b"\0" * 20, b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\0"):
        (tmp_path / "a.jpg").write_bytes(data[:start] + bad + data[start + len(bad) :])
        assert read_image(tmp_path / "a.jpg").shape == (24, 40, 3)
    with oriented("apply"):
        save(tmp_path / "b.jpg", photo(), 9)
        assert read_image(tmp_path / "b.jpg").shape == (24, 40, 3)


def test_models_of_both_kinds_share_no_cached_image(tmp_path):
    path = save(tmp_path / "a.jpg", photo(), 6)
    with cached_images():
        with oriented("apply"):
            assert read_image(path).shape == (40, 24, 3)
        with oriented("ignore"):
            assert read_image(path).shape == (24, 40, 3)


def write(root: Path, turned: dict[int, int], masks: str = "", count: int = 6) -> None:
    """A table of photos, some with an orientation; masks have the size of the "stored" or the "upright" image."""
    frame = pd.DataFrame({"id": [f"i{n}" for n in range(count)], "image": [f"images/{n}.jpg" for n in range(count)]})
    for row, name in enumerate(frame["image"]):
        save(root / name, photo(row), turned.get(row, 1))
        if masks:
            shape = upright(photo(row), turned.get(row, 1)).shape[:2] if masks == "upright" else (24, 40)
            mask = np.zeros(shape, np.uint8)
            mask[:9, :5] = 1
            save(root / f"masks/{row}.png", mask, 1)
    if masks:
        frame["mask"] = [f"masks/{row}.png" for row in range(count)]
    else:
        frame["label"] = list("abc" * count)[:count]
    frame.to_csv(root / "train.csv", index=False)


def test_nothing_changes_without_orientations(tmp_path):
    write(tmp_path, {})
    prepared = [prepare(config(tmp_path, exif=exif)).statistics for exif in (None, "apply", "ignore")]
    assert prepared[0] == prepared[1] == prepared[2]
    assert prepare(config(tmp_path)).statistics == prepared[0]  # older configurations lack the setting


def test_an_undeclared_orientation_is_refused_with_the_line_to_write(tmp_path):
    write(tmp_path, {1: 6, 4: 3})
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path))
    (problem,) = error.value.problems
    assert problem == (
        "2 files have an EXIF orientation, such as images/1.jpg (6), images/4.jpg (3): write under the data settings "
        "(configs/data):  exif: apply  to turn them upright, as viewers do, or  exif: ignore  to keep the pixels as "
        "stored"
    )
    record = (tmp_path / "prepared/images.csv").stat().st_mtime_ns
    scan = prepare(config(tmp_path, exif="apply")).scan
    assert (tmp_path / "prepared/images.csv").stat().st_mtime_ns == record  # nothing is read again
    assert scan[["height", "width"]].to_numpy().tolist() == [[40, 24] if row == 1 else [24, 40] for row in range(6)]
    ignored = prepare(config(tmp_path, exif="ignore")).scan
    assert ignored[["height", "width"]].drop_duplicates().to_numpy().tolist() == [[24, 40]]


@pytest.mark.parametrize(("masks", "value", "other"), [("upright", "apply", "ignore"), ("stored", "ignore", "apply")])
def test_masks_say_which_value_is_right(tmp_path, masks, value, other):
    write(tmp_path, {1: 6, 2: 8, 4: 3}, masks)
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, classes=["a", "b"]), "segmentation")
    assert any(f"exif: {value}  (of 2 masks, 2 have the size" in problem for problem in error.value.problems)
    prepared = prepare(config(tmp_path, classes=["a", "b"], exif=value), "segmentation")
    assert prepared.table.read_mask(1).shape == ((40, 24) if value == "apply" else (24, 40))
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, classes=["a", "b"], exif=other), "segmentation")
    (problem,) = error.value.problems
    assert f"with data.exif={value} both have the same size" in problem and "(and 1 more)" in problem


def test_masks_with_an_orientation_of_their_own_are_turned_too(tmp_path):
    write(tmp_path, {1: 6}, "stored")
    mask = read_mask(tmp_path / "masks/1.png")
    save(tmp_path / "masks/1.png", mask, 6)
    prepared = prepare(config(tmp_path, classes=["a", "b"], exif="apply"), "segmentation")
    np.testing.assert_array_equal(prepared.table.read_mask(1), np.rot90(mask, -1))


def test_the_test_table_is_asked_about_too(tmp_path):
    write(tmp_path, {})
    save(tmp_path / "images/t.jpg", photo(9), 6)
    (tmp_path / "test.csv").write_text("id,image\nt,images/t.jpg\n")
    data = config(tmp_path, test_table=str(tmp_path / "test.csv"))
    with pytest.raises(TableError, match=r"1 files have an EXIF orientation, such as images/t\.jpg \(6\)"):
        check_test_table(data, prepare(data), progress=False)
    data["exif"] = "apply"
    assert check_test_table(data, prepare(data), progress=False)[1] == []


def test_a_size_that_differs_proposes_no_mask_values(tmp_path):
    """Though the masks lack class 1, which the ignored value 2 could be."""
    write(tmp_path, {1: 6}, "upright")
    for path in (tmp_path / "masks").iterdir():
        mask = read_mask(path) * 2
        save(path, mask.astype(np.uint8), 1)
    with pytest.raises(TableError) as error:
        prepare(config(tmp_path, classes=["a", "b"], ignore_index=2, exif="ignore"), "segmentation")
    (problem,) = error.value.problems
    assert "with data.exif=apply both have the same size" in problem

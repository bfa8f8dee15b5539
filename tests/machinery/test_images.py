"""Images and masks: read as stored, in RGB order, resized without a shift."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from foldwise.data.images import (
    ImageError,
    default_scale,
    fit_image,
    image_hw,
    read_image,
    read_mask,
    resize,
    resize_mask,
    to_unit,
)
from foldwise.errors import Refusal


def noise(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    return values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


def red(height: int = 8, width: int = 12) -> np.ndarray:
    """RGB written by another library than the one that reads."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 250
    return image


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_red_is_the_first_channel(tmp_path, suffix):
    path = tmp_path / f"red.{suffix}"
    Image.fromarray(red()).save(path)
    image = read_image(path)
    assert image.shape == (8, 12, 3) and image.dtype == np.uint8
    assert image[..., 0].min() > 240 and image[..., 1:].max() < 15


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_comes_back_exactly(tmp_path, channels, dtype):
    image = noise((9, 13, channels), dtype)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "a.png"), image[:, :, order])
    result = read_image(tmp_path / "a.png")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_comes_back_exactly(tmp_path, channels, dtype, planar):
    image = noise((20, 30, channels), dtype)
    stored = np.moveaxis(image, -1, 0) if planar else image
    layout = {} if channels == 1 else {"planarconfig": "separate" if planar else "contig"}
    stored = stored.squeeze() if channels == 1 else stored
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", compression="zlib", **layout)
    result = read_image(tmp_path / "a.tif")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, image)


def test_tiff_pages_are_channels_and_unknown_axes_take_the_shortest(tmp_path):
    image = noise((20, 30, 6), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(image, -1, 0), metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), image)
    tifffile.imwrite(tmp_path / "b.tif", image)  # written as 20 pages of 30 x 6
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), image)
    tifffile.imwrite(tmp_path / "c.tif", noise((2, 3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"c\.tif has the axes"):
        read_image(tmp_path / "c.tif")


def test_names_that_are_not_ascii(tmp_path):
    Image.fromarray(red()).save(tmp_path / "ü β 图.png")
    assert read_image(tmp_path / "ü β 图.png").shape == (8, 12, 3)


def test_gray_and_rgb(tmp_path):
    gray, color, alpha = noise((9, 9), np.uint16), noise((9, 9, 3), np.uint16), noise((9, 9, 4), np.uint16)
    for name, image in (("gray", gray), ("color", color), ("alpha", alpha), ("many", noise((9, 9, 6), np.uint16))):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, photometric="minisblack", planarconfig="contig")
    rgb = read_image(tmp_path / "gray.tif", "rgb")
    np.testing.assert_array_equal(rgb, np.stack([gray] * 3, axis=2))
    assert rgb.dtype == np.uint16
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.tif", "rgb"), alpha[..., :3])
    one = read_image(tmp_path / "color.tif", "gray")
    assert one.shape == (9, 9, 1) and one.dtype == np.uint16
    # ITU-R BT.601 luma.
    np.testing.assert_allclose(one[..., 0], color @ [0.299, 0.587, 0.114], atol=2)
    with pytest.raises(ImageError, match="6 channels"):
        read_image(tmp_path / "many.tif", "rgb")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise((100, 100, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"cut\."):
        read_image(path)


def test_missing_empty_and_other_files(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for name in ("none.png", "empty.png", "text.png"):
        for read in (read_image, read_mask):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / name)


def test_masks_are_read_as_stored(tmp_path):
    mask = np.random.default_rng(0).integers(0, 12, (20, 30)).astype(np.uint8)
    palette = Image.fromarray(mask, "P")
    palette.putpalette(list(range(100, 136)))
    palette.save(tmp_path / "palette.png")
    Image.fromarray(mask).save(tmp_path / "gray.png")
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    for name in ("palette.png", "gray.png", "mask.tif"):
        result = read_mask(tmp_path / name)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, mask)
    deep = mask.astype(np.uint16) * 5000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), deep)
    Image.fromarray(mask > 5).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bilevel.png"), mask > 5)


def test_masks_with_colours_or_losses_are_refused(tmp_path):
    Image.fromarray(red()).save(tmp_path / "color.png")
    with pytest.raises(ImageError, match=r"color\.png.*one channel"):
        read_mask(tmp_path / "color.png")
    Image.fromarray(red()[..., 0]).save(tmp_path / "mask.jpg")
    with pytest.raises(ImageError, match="JPEG"):
        read_mask(tmp_path / "mask.jpg")
    tifffile.imwrite(tmp_path / "float.tif", noise((9, 9), np.float32))
    with pytest.raises(ImageError, match="must be integers"):
        read_mask(tmp_path / "float.tif")


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (17, 90)])
def test_resized_images_and_masks_stay_on_each_other(channels, size):
    """The centre of mass of a blob keeps its relative place, in the image and in the mask."""
    y, x = np.mgrid[:40, :50]
    blob = ((y - 22.5) ** 2 + (x - 18.5) ** 2 < 100).astype(np.uint8)
    image = np.repeat(blob[:, :, None].astype(np.float32), channels, axis=2)
    result, mask = resize(image, size), resize_mask(blob, size)
    assert result.shape == (*size, channels) and mask.shape == size and mask.dtype == np.uint8

    def center(weights: np.ndarray) -> np.ndarray:
        rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
        middle = np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum()
        return middle / weights.shape

    np.testing.assert_allclose(center(result[..., -1]), center(blob), atol=0.005)
    np.testing.assert_allclose(center(mask), center(blob), atol=0.01)


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
def test_shrinking_averages_areas(channels):
    image = noise((64, 64, channels), np.float32)
    expected = image.reshape(16, 4, 16, 4, channels).mean(axis=(1, 3))
    np.testing.assert_allclose(resize(image, 16), expected, atol=1e-5)
    np.testing.assert_allclose(resize(image, (16, 100)).mean(axis=1), expected.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(resize(image, (23, 31)).mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=1e-4)
    assert resize(image, 64) is image


@pytest.mark.parametrize(
    ("shape", "size"), [((40, 90), (32, 32)), ((90, 40), (32, 48)), ((17, 31), (64, 33)), ((9, 9), 8)]
)
def test_cropped_images_keep_their_proportions_and_their_centre(shape, size):
    """A disc in the centre stays a disc in the centre, whatever the shape of the picture."""
    y, x = np.indices(shape)
    radius = min(shape) / 4
    inside = (y - (shape[0] - 1) / 2) ** 2 + (x - (shape[1] - 1) / 2) ** 2 <= radius**2
    disc = fit_image(np.float32(inside)[:, :, None], size, "crop")[:, :, 0]
    height, width = image_hw(size)
    assert disc.shape == (height, width)
    scale = max(height / shape[0], width / shape[1]) / 0.875
    assert disc.sum() == pytest.approx(inside.sum() * scale**2, rel=0.1)
    rows, columns = disc.sum(axis=1), disc.sum(axis=0)
    assert rows @ np.arange(height) / rows.sum() == pytest.approx((height - 1) / 2, abs=0.6)
    assert columns @ np.arange(width) / columns.sum() == pytest.approx((width - 1) / 2, abs=0.6)


def test_mask_values_are_never_mixed():
    mask = np.random.default_rng(0).choice(np.array([0, 7, 300], np.uint16), (31, 47))
    assert set(np.unique(resize_mask(mask, (77, 20)))) <= {0, 7, 300}


def test_units():
    assert [default_scale(kind) for kind in (np.uint8, "uint16", np.float32)] == [255, 65535, 1]
    image = noise((4, 4, 3), np.uint8)
    assert to_unit(image) is image and to_unit(image, 255) is image
    np.testing.assert_allclose(to_unit(image, 100), image / 100, rtol=1e-6)
    deep = noise((4, 4, 3), np.uint16)
    assert to_unit(deep).dtype == np.float32
    np.testing.assert_allclose(to_unit(deep), deep / 65535, rtol=1e-6)
    np.testing.assert_allclose(to_unit(deep, 4095), deep / 4095, rtol=1e-6)


def test_sizes():
    assert image_hw(64) == (64, 64) and image_hw([32, 96]) == (32, 96)
    for size in (0, [64], [64, 0], "64"):
        with pytest.raises(Refusal, match="image_size"):
            image_hw(size)


def test_every_image_is_named_by_its_path(tmp_path: Path):
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "none.png")
    assert str(tmp_path / "none.png") in str(error.value)

"""A corpus of small pictures in every combination that Pillow, tifffile, imagecodecs and OpenCV can write.

Each is read by the project and by another reader: equal (lossy ones within 2 levels), or refused with a reason. What a
library cannot write is left out, so the numbers of those that were compared are asserted too.
"""

import io
import itertools
import os
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from foldwise.data import jpeg as jpeg_files
from foldwise.data.decoding import ImageError, decode_mask, noting, stored_size
from foldwise.data.images import read_image, read_mask
from foldwise.data.orientation import is_ignored, oriented
from foldwise.export import predict_folder

HEIGHT, WIDTH = 40, 56
LOSSY = 2
DELIVERED: list[Path] = []  # files that predict_folder.py of an export reads


def picture() -> np.ndarray:
    """RGB ramps with a red block: swapped channels, turned axes and inverted values all show."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) * 255 // (HEIGHT + WIDTH)], 2).astype(np.uint8)
    rgb[5:20, 5:25] = (220, 30, 40)
    return rgb


def by_pillow(path: Path) -> np.ndarray:
    """(H, W, C) as Pillow reads it, its colours as RGB, turned upright."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("CMYK", "YCbCr"):
            image = image.convert("RGB")
        elif image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode == "1":
            image = image.convert("L")
        values = np.array(image)
    return values.reshape(*values.shape[:2], -1)


def outcome(path: Path, expected: np.ndarray, lossy: bool) -> str:
    """equal, refused, or what is wrong; what predict_folder.py of an export reads must be the same, bit by bit."""
    try:
        image = read_image(path)
    except ImageError as error:
        assert path.name in str(error), f"{error} does not name the file"
        return "refused"
    with suppress(Exception):  # read_picture names it; Pillow cannot read as many files as we do
        delivered = predict_folder.decode(path.read_bytes(), not is_ignored())
        if delivered.dtype != image.dtype or not np.array_equal(delivered, image):
            return "read otherwise by predict_folder.py"
        DELIVERED.append(path)
    if image.shape != expected.shape:
        return f"shape {image.shape} in place of {expected.shape}"
    difference = np.abs(image.astype(float) - expected.astype(float)).max()
    return "equal" if difference <= (LOSSY if lossy else 0) else f"differs by {difference}"


def check(
    cases: Iterator[tuple[str, Path, np.ndarray, bool]], refused: Callable[[str], bool], at_least: int, delivered: int
) -> None:
    """No case is wrong; those that are refused are the expected ones; predict_folder.py reads so many too."""
    DELIVERED.clear()
    found = {name: outcome(path, expected, lossy) for name, path, expected, lossy in cases}
    wrong = {name: what for name, what in found.items() if what not in ("equal", "refused")}
    assert not wrong, wrong
    assert {name for name, what in found.items() if what == "refused"} == {name for name in found if refused(name)}
    assert Counter(found.values())["equal"] >= at_least and len(DELIVERED) >= delivered


def test_what_pillow_writes(tmp_path):
    rgb = Image.fromarray(picture())
    grey = np.array(rgb.convert("L"))
    clear = rgb.quantize(50)
    clear.info["transparency"] = 0
    modes = {
        **{mode: rgb.convert(mode) for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")},
        **{f"P{colours}": rgb.quantize(colours) for colours in (2, 4, 16, 200)},
        "P clear": clear,
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 1000),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
        "LAB": Image.frombytes("LAB", rgb.size, picture().tobytes()),
    }
    formats: list[tuple[str, dict]] = [
        ("png", {}),
        *(
            ("jpg", {"quality": 95, "progressive": progressive, "subsampling": s})
            for progressive in (0, 1)
            for s in (0, 2)
        ),
        ("bmp", {}),
        *(("webp", {"lossless": lossless, "quality": 95}) for lossless in (False, True)),
        *(
            ("tif", {"compression": name})
            for name in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "zstd", "jpeg", "group3", "group4", "webp")
        ),
    ]

    def cases():
        for (mode, image), (suffix, options), turned in itertools.product(modes.items(), formats, (1, 5, 6)):
            exif = Image.Exif()
            exif[0x0112] = turned
            options = options | ({"exif": exif} if suffix in ("png", "jpg", "webp") else {})
            words = [mode, suffix, *(str(value) for value in options.values() if value != exif), str(turned)]
            path = tmp_path / f"{'-'.join(words)}.{suffix}"
            try:
                image.save(path, **options)
                expected = by_pillow(path)
            except Exception:  # not every library writes every combination, and each says so in its own way
                continue
            yield path.stem, path, expected, suffix in ("jpg", "webp") or "jpeg" in path.stem

    check(cases(), lambda name: name.startswith("LAB-tif"), at_least=150, delivered=400)


def test_what_tifffile_writes(tmp_path):
    """Arrays are their own reference: tifffile writes, and an array is what must come back."""
    rgb = picture()
    options = itertools.product(
        "<>",
        ("contig", "separate"),
        (None, "zlib", "lzw", "zstd", "lzma", "packbits", "jpeg2000", "webp", "png", "jpegxl"),
        (None, (16, 16)),
        (False, True),
        (np.uint8, np.uint16, np.float32),
        (1, 2, 3, 4, 7),
    )

    def cases():
        for number, (order, planar, compression, tile, big, dtype, channels) in enumerate(options):
            image = np.concatenate([rgb, rgb[::-1], rgb[:, ::-1]], 2)[:, :, :channels].astype(dtype)
            image = image * 257 if dtype == np.uint16 else image / 255 if dtype == np.float32 else image
            image = image.astype(dtype)
            stored = image[:, :, 0] if channels == 1 else image if planar == "contig" else np.moveaxis(image, 2, 0)
            kind = {1: "minisblack", 2: "minisblack", 7: "minisblack"}.get(channels, "rgb")
            arguments = {"jpeg2000": {"level": 0}, "webp": {"lossless": True}, "jpegxl": {"lossless": True}}
            path = tmp_path / f"{number}.tif"
            try:
                tifffile.imwrite(
                    path,
                    stored,
                    photometric=kind,
                    planarconfig=planar if channels > 1 else None,
                    byteorder=order,
                    compression=compression,
                    compressionargs=arguments.get(compression),
                    tile=tile,
                    bigtiff=big,
                )
            except Exception:  # as above
                continue
            yield f"{order} {planar} {compression} {tile} {big} {dtype.__name__} {channels}", path, image, False

    check(cases(), lambda name: False, at_least=500, delivered=300)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_of_tiff(tmp_path, dtype):
    """Interpretations other than RGB, each by its definition."""
    rgb, white = picture(), int(np.iinfo(dtype).max)
    scale = 1 if dtype == np.uint8 else 257
    grey = (np.array(Image.fromarray(rgb).convert("L")).astype(np.uint16) * scale).astype(dtype)
    palette = (np.random.default_rng(0).random((3, 256)) * 65535).astype(np.uint16)
    index = np.array(Image.fromarray(rgb).convert("L"))
    cmyk = (np.array(Image.fromarray(rgb).convert("CMYK")).astype(np.uint16) * scale).astype(dtype)
    ink = 1 - cmyk / white
    for name, stored, kind, more, expected in (
        ("white", grey, "miniswhite", {}, white - grey[:, :, None]),
        ("palette", index, "palette", {"colormap": palette}, (palette.T[index] >> 8)),
        ("cmyk", cmyk, "separated", {}, (ink[:, :, :3] * ink[:, :, 3:] * white).round()),
    ):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, stored, photometric=kind, **more)
        assert outcome(path, np.asarray(expected), False) == "equal", name
        assert np.array_equal(decode_mask(path), stored)  # masks keep what is stored
    tifffile.imwrite(tmp_path / "lab.tif", rgb, photometric="cielab")
    with pytest.raises(ImageError, match=r"lab\.tif stores its colours as CIELAB, .* convert it to RGB"):
        read_image(tmp_path / "lab.tif")
    for kind in ("rgb", "ycbcr"):
        tifffile.imwrite(tmp_path / "jpeg.tif", rgb, photometric=kind, compression="jpeg")
        assert outcome(tmp_path / "jpeg.tif", by_pillow(tmp_path / "jpeg.tif"), True) == "equal"


def test_axes_of_tiff(tmp_path):
    """Names decide; only an axis without a name is guessed."""
    pages = np.random.default_rng(0).integers(0, 255, (100, 64, 48), np.uint8)
    for axes in ("CYX", "ZYX", "TYX"):
        for ome in (False, True):
            path = tmp_path / f"{axes}{'.ome' * ome}.tif"
            tifffile.imwrite(path, pages, metadata={"axes": axes}, photometric="minisblack", ome=ome)
            assert outcome(path, np.moveaxis(pages, 0, -1), False) == "equal"
    tifffile.imwrite(tmp_path / "last.tif", pages, metadata={"axes": "YXC"}, photometric="minisblack")
    assert outcome(tmp_path / "last.tif", pages, False) == "equal"
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in pages:
            file.write(page, contiguous=False, metadata=None, photometric="minisblack")
    assert outcome(tmp_path / "pages.tif", np.moveaxis(pages, 0, -1), False) == "equal"
    square = pages[:, :48]
    tifffile.imwrite(tmp_path / "square.tif", square, photometric="minisblack")
    assert outcome(tmp_path / "square.tif", np.moveaxis(square, 0, -1), False) == "equal"


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A PNG of 1, 2 or 4 bits a pixel, written by its definition: no library here writes 2 and 4."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in values:
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [1, 55])
def test_masks_of_few_bits_keep_their_values(tmp_path, bits, width):
    mask = np.random.default_rng(0).integers(0, 2**bits, (9, width)).astype(np.uint8)
    (tmp_path / "mask.png").write_bytes(grey_png(mask, bits))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)
    spread = mask.astype(np.float64) * 255 / (2**bits - 1)
    np.testing.assert_array_equal(read_image(tmp_path / "mask.png")[:, :, 0], spread)


def test_large_masks_are_read_as_large_images_are(tmp_path):
    """13,500 x 13,500 pixels are more than Pillow reads unasked."""
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((13_500, 13_500), np.uint8)).save(path, compress_level=1)
    assert read_mask(path).shape == read_image(path).shape[:2] == (13_500, 13_500)


def test_pictures_beyond_the_limit_are_refused_by_their_header(tmp_path):
    """Nothing of 4 billion pixels is allocated."""
    rgb = Image.fromarray(picture())
    for suffix, name in (("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP")):
        buffer = io.BytesIO()
        rgb.save(buffer, name)
        data = bytearray(buffer.getvalue())
        if suffix == "png":
            data[16:24] = struct.pack(">II", 65_000, 65_000)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        elif suffix == "jpg":
            start = data.index(b"\xff\xc0")
            data[start + 5 : start + 9] = struct.pack(">HH", 65_000, 65_000)
        else:
            data[18:26] = struct.pack("<ii", 65_000, 65_000)
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(data)
        for read in (read_image, decode_mask):
            if read is decode_mask and suffix == "jpg":
                continue
            with pytest.raises(ImageError, match=rf"a\.{suffix} .* pixels"):
                read(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
def test_jpegs_are_decoded_as_opencv_decodes_them(mode):
    """Bit by bit: results of earlier versions, which used OpenCV, stay the same."""
    rgb, count = Image.fromarray(cv2.resize(picture(), (203, 101))), 0
    for size, progressive, subsampling, rows in itertools.product(
        ((203, 101), (17, 9), (1, 1)), (0, 1), (0, 1, 2), (0, 2)
    ):
        buffer = io.BytesIO()
        options = {"progressive": progressive, "subsampling": subsampling, "restart_marker_rows": rows}
        try:
            rgb.resize(size).convert(mode).save(buffer, "JPEG", quality=85, **options)
        except OSError:  # libjpeg takes no restart interval there
            continue
        expected = cv2.imdecode(np.frombuffer(buffer.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
        expected = expected[:, :, ::-1] if expected.ndim == 3 else expected[:, :, np.newaxis]
        np.testing.assert_array_equal(jpeg_files.decode(buffer.getvalue()), expected)
        count += 1
    assert count > 20


def test_colour_profiles_print_nothing(tmp_path, capfd):
    """libpng warns of a wrong one on the console, without the file's name."""
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path, icc_profile=b"\0" * 200)
    np.testing.assert_array_equal(read_image(path), picture())
    assert capfd.readouterr().err == ""


def jpeg(**options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(noise, (400, 300))).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def lines_of_libjpeg(data: bytes) -> str:
    """What OpenCV prints on the console when it decodes a damaged JPEG."""
    with tempfile.TemporaryFile() as file:
        console = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        finally:
            os.dup2(console, 2)
            os.close(console)
        file.seek(0)
        return file.read().decode()


def test_damage_inside_a_jpeg_is_noted_and_nothing_is_printed(tmp_path, capfd):
    """Whatever libjpeg would print for OpenCV is a note of ours, and nothing else is."""
    pytest.importorskip("simplejpeg")
    rng, path = np.random.default_rng(0), tmp_path / "a.jpg"
    noted = 0
    for number in range(200):
        data = bytearray(jpeg(progressive=number % 2 == 1))
        start = rng.integers(700, len(data) - 100)
        if number % 4 < 2:
            data[start : start + 60] = bytes(60)
        else:
            data[start] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with noting() as notes:
            try:
                read_image(path)
            except ImageError as error:
                assert str(path) in str(error)
                continue
        printed = lines_of_libjpeg(bytes(data))
        assert [note.damage for note in notes] == [printed.strip().removeprefix("Corrupt JPEG data: ")][: bool(printed)]
        noted += bool(printed)
    assert noted > 50 and capfd.readouterr().err == ""


FUZZED = ["png", "jpg", "tif", "bmp", "webp", "gif", "jp2", "lzw.tif", "zstd.tif", "16.png", "progressive.jpg"]


@pytest.mark.parametrize("suffix", FUZZED)
def test_cut_off_and_changed_files_are_read_or_refused_by_name(tmp_path, suffix):
    """200 places each; never another error."""
    rgb, path, buffer = picture(), tmp_path / f"a.{suffix}", io.BytesIO()
    if suffix == "16.png":
        data = cv2.imencode(".png", rgb.astype(np.uint16) * 257)[1].tobytes()
    elif suffix.endswith(".tif"):
        tifffile.imwrite(buffer, rgb, compression=suffix.removesuffix(".tif"))
        data = buffer.getvalue()
    else:
        name = {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF"}.get(suffix.split(".")[-1], suffix)
        Image.fromarray(rgb).save(buffer, name, progressive="progressive" in suffix)
        data = buffer.getvalue()
    rng, refused = np.random.default_rng(0), 0
    for number in range(200):
        place = int(rng.integers(0, len(data))) if number > 60 else number % 60 * len(data) // 600
        changed = bytearray(data)
        changed[place] ^= int(rng.integers(1, 256))
        for damaged in (data[:place], bytes(changed)):
            path.write_bytes(damaged)
            for read in (read_image, decode_mask):
                try:
                    read(path)
                except ImageError as error:
                    assert str(path) in str(error)
                    refused += 1
            stored_size(path)
    assert refused > 100


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"comment": b"\xff\xd9"}])
def test_the_end_of_a_jpeg_is_found_by_its_markers(tmp_path, options):
    whole = jpeg(**options)
    video = b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(5000) + b"\xff\xda\xff\xd9"
    path = tmp_path / "photo.jpg"
    for name, data in (("whole", whole), ("motion photo", whole + video)):
        path.write_bytes(data)
        assert outcome(path, by_pillow(path), False) == "equal", name
    for share in (0.3, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=r"photo\.jpg is truncated"):
            read_image(path)


def test_what_opencv_writes(tmp_path):
    rgb, whole, deep = picture(), (np.uint8,), (np.uint8, np.uint16)
    tiff, png, jpg = cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_JPEG_RST_INTERVAL
    formats: list[tuple[str, list[int], tuple, tuple[int, ...]]] = [
        *(("png", [png, level], deep, (1, 3, 4)) for level in (0, 9)),
        *(("tiff", [tiff, number], (*deep, np.float32), (1, 3, 4)) for number in (1, 5, 8, 32773)),
        ("bmp", [], whole, (1, 3, 4)),
        ("ppm", [], deep, (3,)),
        ("pgm", [], deep, (1,)),
        ("webp", [cv2.IMWRITE_WEBP_QUALITY, 101], whole, (3, 4)),
        ("jp2", [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000], deep, (1, 3)),
        *(
            (
                "jpg",
                [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111, jpg, interval],
                whole,
                (1, 3),
            )
            for interval in (0, 3)
        ),
    ]

    def cases():
        for suffix, options, dtypes, counts in formats:
            for dtype, channels in itertools.product(dtypes, counts):
                image = np.dstack([rgb, rgb[::-1, :, :1] | 1])[:, :, :channels].astype(dtype)
                image = image * 257 if dtype == np.uint16 else image / np.float32(255) if dtype == np.float32 else image
                order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
                words = f"{suffix} {options} {dtype.__name__} {channels}"
                path = tmp_path / f"{words}.{suffix}"
                path.write_bytes(
                    cv2.imencode(f".{suffix}", np.ascontiguousarray(image[:, :, order]), options)[1].tobytes()
                )
                yield words, path, by_pillow(path) if suffix == "jpg" else image, False

    check(cases(), lambda name: False, at_least=60, delivered=35)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """By the definition: rows and columns change places from 5 on, then left and right, or top and bottom."""
    image = image.transpose(1, 0, 2) if orientation > 4 else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    return image[::-1] if orientation in (3, 4, 7, 8) else image


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_oriented_tiffs_of_every_layout(tmp_path, exif):
    rgb = picture()
    layouts = itertools.product(
        range(1, 9),
        "<>",
        ("contig", "separate"),
        (None, "zlib", "jpeg2000"),
        (None, (16, 16)),
        (np.uint8, np.uint16),
        (1, 3, 5),
    )

    def cases():
        for number, (orientation, order, planar, compression, tile, dtype, channels) in enumerate(layouts):
            if number % 3 or (order, compression, dtype) == (">", "jpeg2000", np.uint16):
                continue  # a third of them has every pair of choices; tifffile itself writes the others wrongly
            image = np.concatenate([rgb, rgb[::-1]], 2)[:, :, :channels].astype(dtype)
            stored = image[:, :, 0] if channels == 1 else image if planar == "contig" else np.moveaxis(image, 2, 0)
            path = tmp_path / f"{number}.tif"
            try:
                tifffile.imwrite(
                    path,
                    stored,
                    photometric="rgb" if channels == 3 else "minisblack",
                    planarconfig=planar if channels > 1 else None,
                    byteorder=order,
                    compression=compression,
                    compressionargs={"level": 0} if compression == "jpeg2000" else None,
                    tile=tile,
                    extratags=[(274, 3, 1, orientation, True)],
                )
            except Exception:  # as above
                continue
            expected = upright(image, orientation) if exif == "apply" else image
            yield (
                f"{orientation} {order} {planar} {compression} {tile} {dtype.__name__} {channels}",
                path,
                expected,
                False,
            )

    with oriented(exif):
        check(cases(), lambda name: False, at_least=250, delivered=150)


def test_what_imagecodecs_writes(tmp_path):
    rgb = picture()
    deep = rgb.astype(np.uint16) * 257
    four = np.dstack([rgb, rgb[..., :1]])
    grey = rgb[..., :1]
    for name, data, expected in (
        ("a.png", imagecodecs.png_encode(deep), deep),
        ("b.png", imagecodecs.png_encode(four), four),
        ("c.png", imagecodecs.png_encode(np.ascontiguousarray(four[..., :2])), four[..., :2]),
        ("d.png", imagecodecs.png_encode(np.ascontiguousarray(deep[..., 0])), deep[..., :1]),
        ("e.webp", imagecodecs.webp_encode(rgb, lossless=True), rgb),
        ("f.bmp", imagecodecs.bmp_encode(rgb), rgb),
        ("g.jp2", imagecodecs.jpeg2k_encode(rgb, level=0), rgb),
        ("h.jp2", imagecodecs.jpeg2k_encode(deep, level=0), deep),
        ("i.j2k", imagecodecs.jpeg2k_encode(np.ascontiguousarray(grey[..., 0]), level=0, codecformat="j2k"), grey),
        *(
            (f"j{n}.jpg", imagecodecs.jpeg8_encode(rgb, level=100, subsampling="444", **o), rgb)
            for n, o in enumerate([{}, {"optimize": True}])
        ),
        ("k.jpg", imagecodecs.jpeg8_encode(np.ascontiguousarray(grey[..., 0]), level=100), grey),
    ):
        (tmp_path / name).write_bytes(data)
        expected = by_pillow(tmp_path / name) if name.endswith("jpg") else expected
        assert outcome(tmp_path / name, expected, False) == "equal", name

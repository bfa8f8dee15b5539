"""Files that are no images, by what they are, and paths of missing files, by the change to make."""

import gzip
import io
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_prepare import config, prepare

from foldwise.data.decoding import ImageError, decode_image, decode_mask
from foldwise.data.problems import TableError


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.png", b"x")
    return buffer.getvalue()


def array(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3)) if compressed else np.save(buffer, np.zeros(3))
    return buffer.getvalue()


NIFTI = b"\x5c\1\0\0" + bytes(340) + b"n+1\0" + bytes(100)
FILES = [
    ("a.png", b"", "is empty, 0 bytes"),
    ("a.png", bytes(5000), "has only zero bytes"),
    ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "run git lfs pull"),
    ("a.jpg", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
    ("a.jpg", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML"),
    ("a.jpg", b'{"message": "Not Found"}', 'is text (\'{"message": "Not Found"}\'...)'),
    ("a.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing: render it"),
    (
        "a.dcm",
        bytes(128) + b"DICM" + b"\2\0\0\0UL",
        "is a DICOM file: unpack it with python tools/unpack.py dicom",
    ),
    ("a.dcm", b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "is a DICOM file"),
    ("a.nii", NIFTI, "is a NIfTI volume: convert it"),
    ("a.nii.gz", gzip.compress(NIFTI, mtime=0), "is a NIfTI volume: convert it"),
    ("a.png.gz", gzip.compress(b"\x89PNG", mtime=0), "is compressed by gzip: unpack it first"),
    ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC photo: convert it"),
    ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0", "is a HEIF photo"),
    ("a.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0", "is a video: unpack it with python tools/unpack.py video"),
    ("a.avi", b"RIFF\x10\0\0\0AVI LIST", "is a video"),
    ("a.npy", array(), "is a NumPy array"),
    ("a.npz", array(True), "is a NumPy archive"),
    ("a.zip", archive(), "is a zip archive: unpack it first"),
    ("a.pdf", b"%PDF-1.7\n%\xe2\xe3", "is a PDF: render its pages"),
    ("a.nef", b"II*\0\x08\0\0\0", "is a camera's raw file"),
    ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50), ""),
    ("a.gif", b"GIF89a" + b"\xff" * 50, ""),
]


@pytest.mark.parametrize(("name", "data", "words"), FILES)
def test_files_that_are_no_images_are_named_by_what_they_are(tmp_path, name, data, words, capfd):
    path = tmp_path / name
    path.write_bytes(data)
    for decode in (decode_image, decode_mask):
        with pytest.raises(ImageError) as error:
            decode(path)
        assert str(error.value).startswith(f"{path} ") and words in str(error.value)


def table(root: Path, images: list[str], files: list[str]) -> None:
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(path)
    frame = {"id": [f"i{number}" for number in range(len(images))], "image": images, "label": ["a", "b"] * 20}
    pd.DataFrame({name: values[: len(images)] for name, values in frame.items()}).to_csv(
        root / "train.csv", index=False
    )


def problems(root: Path) -> list[str]:
    with pytest.raises(TableError) as error:
        prepare(config(root))
    return error.value.problems


def test_files_with_one_problem_are_one_line(tmp_path):
    table(tmp_path, [f"x{n}.png" for n in range(8)], [f"x{n}.png" for n in range(8)])
    for number in (1, 3, 4):
        (tmp_path / f"x{number}.png").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "x6.png").write_bytes(b"")
    first, second = problems(tmp_path)
    assert first.startswith(f"{tmp_path}/x1.png (and 2 more) is a DICOM file: ") and "docs/extend.md" in first
    assert second.startswith(f"{tmp_path}/x6.png is empty")


CASES = [
    (["train/1", "train/2"], ["train/1.png", "train/2.png"], "add .png (such files exist)"),
    (["1", "2"], ["train/1.png", "train/2.png"], "add .png, put train/ in front, or set data.root=ROOT/train (such"),
    (["train\\1.png", "train\\2.png"], ["train/1.png", "train/2.png"], "write / for \\ (such files exist)"),
    (["1.jpg", "2.jpg"], ["1.png", "2.png"], "write .png for .jpg (such"),
    (["1.png", "2.png"], ["1.PNG", "2.PNG"], "write .PNG for .png (such"),
    (["Train/1.png", "Train/2.png"], ["train/1.png", "train/2.png"], "mind upper and lower case"),
    (
        ["/kaggle/input/train/1.png", "/kaggle/input/train/2.png"],
        ["train/1.png", "train/2.png"],
        "remove /kaggle/input/",
    ),
    (["C:\\x\\1.png", "C:\\x\\2.png"], ["1.png", "2.png"], "write / for \\, remove C:/x/ (such"),
    (["images/1.png", "images/2.png"], ["train/1.png", "train/2.png"], "write train/ for images/ (such"),
    (["1.png", "2.png"], [f"{f}/{n}.png" for f in ("a", "b") for n in (1, 2)], "such files are in a/, b/"),
    (["1.png ", "2.png "], ["1.png", "2.png"], "remove the spaces at its ends"),
    (["a.b", "c.d"], ["a.b.png", "c.d.png"], "add .png (such"),
    ([unicodedata.normalize("NFD", f"ä{n}.png") for n in (1, 2)], ["ä1.png", "ä2.png"], "composed letters (such"),
]


@pytest.mark.parametrize(("images", "files", "change"), CASES)
def test_missing_files_are_one_line_with_the_change_to_make(tmp_path, images, files, change):
    table(tmp_path, images, files)
    (problem,) = problems(tmp_path)
    assert problem.startswith("2 rows, lines 2, 3") and change.replace("ROOT", str(tmp_path)) in problem


def test_a_root_that_is_one_level_too_deep(tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    table(root, ["train/1.png", "train/2.png"], ["1.png", "2.png"])
    (problem,) = problems(root)
    assert f"set data.root={tmp_path}, one level up" in problem
    frame = pd.read_csv(root / "train.csv").assign(image="../train/1.png")
    frame.to_csv(root / "train.csv", index=False)
    assert any("remove ../train/" in problem for problem in problems(root))


def test_files_without_a_cause_are_named_and_the_rest_counted(tmp_path):
    table(tmp_path, [f"no{n}.png" for n in range(30)], ["1.png"])
    found = problems(tmp_path)
    assert len(found) == 6 and found[0].endswith(f"the image file {tmp_path}/no0.png does not exist")
    assert found[5].startswith("25 rows") and "no file of a similar name" in found[5]

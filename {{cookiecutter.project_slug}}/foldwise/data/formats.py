"""Which files can be used as images: a limit on their size, and names of those that are none, by their first bytes."""

from pathlib import Path

PIXELS = 1 << 30  # of one image; OpenCV's own limit
CONVERT = "convert it to PNG or TIFF first"
READER = f"{CONVERT}, or write a reader (docs/extend.md; the template's examples/dicom has one)"
UNPACK = "unpack it first"
AGAIN = "download it again"
DICOM = "unpack it with python tools/unpack.py dicom (docs/data.md), or write a reader (docs/extend.md)"
FRAMES = "unpack it with python tools/unpack.py video (docs/data.md)"
# (offset, bytes, what the file is, what to do); the first match counts
KINDS = [
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run git lfs pull"),
    (128, b"DICM", "a DICOM file", DICOM),
    (344, b"n+1\0", "a NIfTI volume", READER),
    (344, b"ni1\0", "a NIfTI header", READER),
    (4, b"n+2\0", "a NIfTI volume", READER),
    (0, b"NRRD", "an NRRD volume", READER),
    (0, b"ObjectType", "a MetaImage header", READER),
    (4, b"ftyphe", "a HEIC photo", CONVERT),
    (4, b"ftypmif1", "a HEIF photo", CONVERT),
    (4, b"ftypmsf1", "a HEIF photo", CONVERT),
    (4, b"ftypavi", "an AVIF picture that OpenCV does not decode here", CONVERT),
    (4, b"ftypcrx", "a camera's raw file", CONVERT),
    (4, b"ftyp", "a video", FRAMES),
    (8, b"AVI ", "a video", FRAMES),
    (0, b"\x1a\x45\xdf\xa3", "a video", FRAMES),
    (0, b"\0\0\1\xba", "a video", FRAMES),
    (8, b"WAVE", "a sound", "write a reader (docs/extend.md; the template's examples/sound has one)"),
    (0, b"\x93NUMPY", "a NumPy array", f"{CONVERT}, or write a reader (docs/extend.md)"),
    (0, b"PK\3\4", "a zip archive", UNPACK),
    (0, b"\x1f\x8b", "compressed by gzip", UNPACK),
    (0, b"BZh", "compressed by bzip2", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (0, b"Rar!", "a rar archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"%PDF", "a PDF", "render its pages to PNG first"),
    (0, b"%!PS", "a PostScript file", "render it to PNG first"),
    (0, b"\x89HDF", "an HDF5 file", READER),
    (0, b"MATLAB", "a MATLAB file", READER),
    (0, b"8BPS", "a Photoshop file", CONVERT),
    (0, b"\xff\x0a", "a JPEG XL picture", CONVERT),
    (4, b"JXL ", "a JPEG XL picture", CONVERT),
    (0, b"v/1\1", "an OpenEXR picture", CONVERT),
    (0, b"PAR1", "a parquet table", "is data.columns.image the column of the images?"),
]
# TIFFs by their first bytes, whose first page is a preview.
RAW = (".dng", ".nef", ".nrw", ".cr2", ".arw", ".pef", ".srw", ".3fr", ".iiq", ".erf")
STARTS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WebP"}


class Unusable(Exception):  # noqa: N818  as Refusal
    """A file cannot be used; the message is the end of a sentence that begins with its name."""


def check_pixels(height: int, width: int) -> None:
    if height * width > PIXELS:
        raise Unusable(f"has {height * width:,} pixels, more than {PIXELS:,}: cut it into tiles")


def describe_file(path: Path, data: bytes) -> str:
    """Say what a file that cannot be decoded is and what to do, as the end of a sentence that begins with its name."""
    if not data:
        return f"is empty, 0 bytes: copy it or {AGAIN}"
    if not any(data):
        return f"has only zero bytes, as after an interrupted download or a full disk: {AGAIN}"
    if path.suffix.lower() == ".npz" and data.startswith(b"PK"):
        return f"is a NumPy archive: {CONVERT}, or write a reader (docs/extend.md)"
    if path.name.lower().endswith(".nii.gz"):
        return f"is a NIfTI volume: {READER}"
    if path.suffix.lower() in (".dcm", ".dicom"):
        return f"is a DICOM file: {DICOM}"
    if path.suffix.lower() in RAW:
        return f"is a camera's raw file: {CONVERT}"
    for offset, start, kind, advice in KINDS:
        if data.startswith(start, offset):
            return f"is {kind}: {advice}"
    return _describe_text(data) or f"cannot be decoded: it is damaged or has an unknown format{_named(data)}"


def _describe_text(data: bytes) -> str:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "is an SVG drawing: render it to PNG first"
    for kind, found in (
        ("a web page", start.startswith((b"<!doctype html", b"<html")) or b"<body" in start),
        ("XML", start.startswith((b"<?xml", b"<error"))),
    ):
        if found:
            return f"is {kind}, most often the error of a failed download: {AGAIN}"
    try:
        text = data[:200].decode().strip()
    except UnicodeDecodeError as error:
        text = data[: error.start].decode() if error.start > 190 else ""  # a letter is cut in two
    if text and text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        return f"is text ({' '.join(text.split())[:40]!r}...), perhaps the error of a failed download: {AGAIN}"
    return ""


def _named(data: bytes) -> str:
    return next((f", and begins as a {name}" for start, name in STARTS.items() if data.startswith(start)), "")

"""Predict pictures with the model.onnx beside this file. Needs numpy, Pillow and onnxruntime, and nothing else.

examples:
  pip install numpy pillow onnxruntime
  python predict_folder.py photos                                  # every picture in photos/ and its folders
  python predict_folder.py photos/1.jpg photos/2.png --out two.csv
  python predict_folder.py patients.csv --batch 32 --threads 4     # a table whose column `image` has their paths

It writes a table with a row for each picture: its path, the probability of each class (or the predicted numbers), the
answer, and the problem of a picture that could not be read. Masks are PNG files of class numbers, or one of 0 and 255
for each class, in a folder named as the table. A model that reads further columns needs a table that has them.

The exit code is 0 if all pictures were predicted, 1 if some have a problem, 2 if nothing was written.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from PIL import Image, UnidentifiedImageError
except ImportError as error:
    print(f"{error.name} is not installed: pip install numpy pillow onnxruntime", file=sys.stderr)
    sys.exit(2)

SCHEMA = 1  # of the model's metadata
MODEL = Path(__file__).with_name("model.onnx")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")  # of Pillow
MOST_PIXELS = 1 << 30
JPEG = b"\xff\xd8"  # its first bytes
CROPPED = 0.875  # share of the shorter side that fit=crop keeps
ORIENTATION, BITS, SAMPLES, COLOURS = 274, 258, 277, 262  # tags of EXIF and TIFF
SAMPLES_OF = {"L": 1, "F": 1, "RGB": 3, "RGBA": 4}  # a pixel, by Pillow's mode
# How stored pixels become upright, by orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}


class Unusable(Exception):  # noqa: N818  # not the program has an error
    """A picture, a table or the folder of the model cannot be used; the message says why."""


def unsupported(described: dict[str, Any]) -> list[str]:
    """What a model needs that this file cannot do, from its metadata; empty if nothing."""
    samples, problems = described["samples"], []
    if samples["fit"] == "tiles":
        problems.append("it predicts large pictures in tiles")
    if samples["reader"].get("crop"):
        problems.append("it cuts pictures by boxes in columns of the table")
    for name, field in samples["fields"].items():
        if field["ragged"]:
            problems.append(f"it reads several pictures or values for each answer ({name})")
        elif name not in ("image", "numbers", "categories"):
            problems.append(f"it reads {name}, by code of its own")
    others = [output["output"] for output in described["outputs"] if output["kind"] not in ("rows", "maps")]
    return problems + [f"it predicts {name}, which is no row of numbers and no mask" for name in others]


def read_picture(path: Path, described: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """Read a picture as in training: (C, H, W), uint8 or float32 as the model takes it, and its own [height, width]."""
    reading = described["samples"]
    channels, scale = reading["channels"]["image"], reading["scales"]["image"]
    dtype = next(each["dtype"] for each in described["inputs"] if each["name"] == "image")
    try:
        image = to_mode(decode(path.read_bytes(), reading["exif"] != "ignore"), reading["reader"].get("mode", "stored"))
    except Unusable:
        raise
    except UnidentifiedImageError as error:
        raise Unusable(f"is no picture of {', '.join(FORMATS)}, or damaged") from error
    except Exception as error:  # Pillow raises many types
        raise Unusable(getattr(error, "strerror", None) or f"cannot be decoded: {error}") from error
    if dtype != "uint8":
        scale = scale or (np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1)
        image = image.astype(np.float32) / np.float32(scale)
    elif image.dtype != np.uint8:
        raise Unusable("has more than 8 bits, but the model was trained on 8: convert it")
    if image.shape[2] != channels and image.shape[2] <= 4:
        image = to_mode(image, {1: "gray", 3: "rgb"}.get(channels, "stored"))
    if image.shape[2] != channels:
        raise Unusable(f"has {image.shape[2]} channels, but the model was trained on {channels}")
    size = list(image.shape[:2])
    return np.ascontiguousarray(fit(image, described["size"], reading["fit"]).transpose(2, 0, 1)), size


def decode(data: bytes, upright: bool) -> np.ndarray:
    """Decode an image file to (H, W, C) uint8, uint16 or float32; `upright` turns it by its EXIF orientation."""
    if not data:
        raise Unusable("is empty")
    if data[:2] == JPEG and not is_whole(data):
        raise Unusable("is truncated: the end of the JPEG is missing")
    Image.MAX_IMAGE_PIXELS = None
    picture: Any
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise Unusable(f"has more than {MOST_PIXELS:,} pixels")
        tags = picture.tag_v2 if picture.format == "TIFF" else None
        if tags is not None and getattr(picture, "n_frames", 1) > 1:
            raise Unusable("has several pages: save the one to predict as a file of its own")
        if tags is not None:
            bits, samples, orientation = tags.get(BITS, (8,)), tags.get(SAMPLES, 1), tags.get(ORIENTATION, 1)
            lost = (samples > 1 and max(bits) > 8) or (picture.mode == "F" and data[:2] == b"MM")
            lost = lost or samples != SAMPLES_OF.get(picture.mode, samples)
            lost = lost or (tags.get(COLOURS) == 0 and picture.mode not in ("1", "L"))  # white is zero
        else:
            lost = picture.format == "PNG" and data[24] == 16 and data[25] != 0
        if lost:
            raise Unusable("has more bits or channels than Pillow reads: convert it to 8 bits or one channel")
        picture.load()
        if tags is None:
            orientation = exif_orientation(picture.info.get("exif", b""))
        elif ORIENTATION not in tags:  # Pillow has turned it
            picture = picture if upright else turn(picture, BACK.get(orientation))
            orientation = 1
        return to_array(turn(picture, TURNS.get(orientation) if upright else None), data)


def is_whole(data: bytes) -> bool:
    """Follow a JPEG's markers to its end (ITU T.81, annex B); Pillow reads some cut-off files without an error."""
    position = 2
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 1:
        marker = data[position + 1]
        if marker == 0xD9:
            return True
        alone = marker in (0, 1) or 0xD0 <= marker <= 0xD8  # no segment follows
        length = 0 if alone or marker == 0xFF else int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if marker == 0xFF else 2 + length
    return False


def turn(picture: Image.Image, how: Image.Transpose | None) -> Image.Image:
    return picture if how is None else picture.transpose(how)


def exif_orientation(exif: bytes) -> int:
    tags = Image.Exif()
    try:
        tags.load(exif)
    except Exception:  # damaged metadata does not make a picture unreadable
        return 1
    return tags.get(ORIENTATION, 1)


def to_array(picture: Image.Image, data: bytes) -> np.ndarray:
    """Pixels (H, W, C): colours as RGB, palettes looked up, alpha last."""
    mode = picture.mode
    if mode == "CMYK" and data[:2] == JPEG:  # as OpenCV converts it
        ink = 255 - np.asarray(picture).astype(np.int32)
        return (ink[..., 3:] - ((255 - ink[..., :3]) * ink[..., 3:] >> 8)).astype(np.uint8)
    if mode in ("P", "PA") or (mode == "RGB" and "transparency" in picture.info):
        picture = picture.convert("RGBA" if mode == "PA" or "transparency" in picture.info else "RGB")
    elif mode in ("CMYK", "YCbCr", "1"):
        picture = picture.convert("L" if mode == "1" else "RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not mode.startswith("I;16"):
        raise Unusable(f"stores its pixels as {mode}, which is not supported: convert it to RGB")
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8:
        deep = pixels.dtype.kind == "u" or (mode == "I" and data[:4] == b"\x89PNG")
        pixels = pixels.astype(np.uint16 if deep else np.float32)
    return pixels.reshape(*pixels.shape[:2], -1)


def to_mode(image: np.ndarray, mode: str) -> np.ndarray:
    """Convert channels: stored keeps them, gray gives one, rgb three."""
    channels = image.shape[2]
    if mode == "stored" or channels == {"gray": 1, "rgb": 3}[mode]:
        return image
    if mode == "rgb":
        return np.repeat(image[:, :, :1], 3, axis=2) if channels < 3 else image[:, :, :3]
    if channels < 3:
        return image[:, :, :1]
    if image.dtype == np.float32:
        return image[:, :, :3] @ np.array([[0.299], [0.587], [0.114]], np.float32)
    weights = np.array([[9798], [19235], [3735]])  # the same in 15 bits
    return (image[:, :, :3] @ weights + (1 << 14) >> 15).astype(image.dtype)


def fit(image: np.ndarray, size: Sequence[int], how: str) -> np.ndarray:
    """Resize (H, W, C) to the model's (height, width): stretched, or scaled to cover it and cut in the centre."""
    height, width = size
    if how != "crop" or image.shape[:2] == (height, width):
        return resize(image, height, width)
    scale = max(height / image.shape[0], width / image.shape[1]) / CROPPED
    covering = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    image = resize(image, *covering)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) as OpenCV does: areas are averaged to shrink, then bilinear to enlarge."""
    image = shrink(image, min(height, image.shape[0]), min(width, image.shape[1]))
    return enlarge(image, height, width)


def shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average areas, as OpenCV's INTER_AREA: uint8 is equal, float32 up to rounding."""
    if image.shape[:2] == (height, width):
        return image
    (down, rest_down), (right, rest_right) = divmod(image.shape[0], height), divmod(image.shape[1], width)
    if rest_down or rest_right:
        averaged = average(average(image.astype(np.float32), width, 1), height, 0)
    else:
        total = np.uint32 if image.dtype == np.uint8 else np.float32
        summed = image.reshape(height, down, width, right, -1).sum((1, 3), dtype=total)
        if image.dtype == np.uint8 and down == right == 2 and image.shape[2] != 2:
            return (summed + 2 >> 2).astype(np.uint8)  # OpenCV rounds halves up here, and to even elsewhere
        averaged = summed.astype(np.float32) * np.float32(1 / (down * right))
    return np.rint(averaged).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else averaged


def average(image: np.ndarray, target: int, axis: int) -> np.ndarray:
    """Average along an axis; pixels at the ends of an area count by their share in it."""
    size = image.shape[axis]
    scale = size / target
    start = np.arange(target)[:, None] * scale
    pixels = np.floor(start + 1e-3).astype(int) + np.arange(int(np.ceil(scale)) + 1)
    share = np.minimum(start + scale, pixels + 1) - np.maximum(start, pixels)
    share = np.where(share > 1e-3, share, 0) / np.minimum(scale, size - start)
    shape = [-1, 1, 1] if axis == 0 else [1, -1, 1]
    parts = zip(pixels.clip(0, size - 1).T, share.astype(np.float32).T, strict=True)
    return sum(np.take(image, pixel, axis) * part.reshape(shape) for pixel, part in parts)


def enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate bilinearly, as OpenCV's INTER_LINEAR: uint8, in its integers, is equal; float32 up to 1e-5."""
    if image.shape[:2] == (height, width):
        return image
    (left, right, along), (top, bottom, down) = neighbours(image.shape[1], width), neighbours(image.shape[0], height)
    along, down = np.where(left == right, 0, along)[None, :, None], down[:, None, None]
    if image.dtype != np.uint8:
        rows = image[:, left] * (1 - along) + image[:, right] * along
        return rows[top] * (1 - down) + rows[bottom] * down
    a, b, c, d = (np.rint(part * np.float32(2048)).astype(np.int32) for part in (1 - along, along, 1 - down, down))
    rows = image[:, left].astype(np.int32) * a + image[:, right].astype(np.int32) * b >> 4
    return ((rows[top] * c >> 16) + (rows[bottom] * d >> 16) + 2 >> 2).astype(np.uint8)


def neighbours(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two pixels between which each target pixel lies, and the second one's share."""
    at = ((np.arange(target) + 0.5) * (size / target) - 0.5).astype(np.float32)
    low = np.floor(at).astype(int)
    return low.clip(0, size - 1), (low + 1).clip(0, size - 1), (at - low).astype(np.float32)


def read_columns(row: dict[str, str], described: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read what the model takes beside a picture: numbers, standardised and flagged where empty, and categories."""
    state, read = described["samples"]["state"], {}
    try:
        values = {name: float(row[name] or "nan") for name in state.get("numbers", {})}
    except ValueError as error:
        raise Unusable(f"has a column that is not a number: {error}") from error
    if values:
        scaled = [(values[name] - mean) / std for name, (mean, std) in state["numbers"].items()]
        read["numbers"] = np.array([*np.nan_to_num(scaled), *np.isnan(scaled)], np.float32)
    if state.get("categories"):
        codes = [1 + known.index(row[name]) if row[name] in known else 0 for name, known in state["categories"].items()]
        read["categories"] = np.array(codes, np.int64)
    return read


def list_rows(paths: Sequence[Path], described: dict[str, Any]) -> list[dict[str, str]]:
    """List what is to be predicted: the rows of tables, files, and the pictures in folders."""
    rows: list[dict[str, str]] = []
    state = described["samples"]["state"]
    columns = ["image", *state.get("numbers", {}), *state.get("categories", {})]
    for path in paths:
        if not path.exists():
            raise Unusable(f"{path} does not exist")
        if path.suffix.lower() == ".csv" and not path.is_dir():
            try:
                with path.open(newline="", encoding="utf-8-sig") as file:
                    table = list(csv.DictReader(file, restval=""))
            except (UnicodeDecodeError, csv.Error) as error:
                raise Unusable(f"{path} is no table in UTF-8 with commas: {error}") from error
            if missing := [name for name in columns if not table or name not in table[0]]:
                raise Unusable(
                    f"{path} has no rows or no column {', '.join(missing)}: the model reads {', '.join(columns)}"
                )
            if empty := [str(number) for number, row in enumerate(table, 1) if not row["image"]]:
                raise Unusable(f"{path} has no image in row {', '.join(empty[:5])}{' ...' * (len(empty) > 5)}")
            rows += [{**row, "image": str(path.parent / row["image"])} for row in table]
        elif len(columns) > 1:
            raise Unusable(
                f"this model also reads {', '.join(columns[1:])}: give a table (.csv) with {', '.join(columns)}"
            )
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            rows += [{"image": str(file)} for file in found]
        else:
            rows.append({"image": str(path)})
    return rows


Read = tuple[dict[str, np.ndarray] | None, list[int], str]  # inputs, height and width, problem


def read_row(row: dict[str, str], described: dict[str, Any]) -> Read:
    try:
        image, size = read_picture(Path(row["image"]), described)
        return {"image": image, **read_columns(row, described)}, size, ""
    except Unusable as error:
        return None, [], str(error)


def read_ahead(rows: list[dict[str, str]], described: dict[str, Any], batch: int, threads: int) -> Iterator[list[Read]]:
    """Read batches in threads, the next one while the caller predicts."""
    waiting: deque[list[Future[Read]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows) + 2 * batch, batch):
            waiting.append([pool.submit(read_row, row, described) for row in rows[start : start + batch]])
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]


class Writer:
    """Makes the cells of the table, and writes masks into `folder`, which is `masks` in the end.

    Args:
        root: folder that the names of masks are relative to.
    """

    def __init__(self, described: dict[str, Any], folder: Path, masks: Path, root: str) -> None:
        self.outputs, self.thresholds = described["outputs"], described["thresholds"]
        self.folder, self.masks, self.root = folder, masks, root
        self.answers = self.outputs[0]["output"] == "probabilities" and self.outputs[0]["kind"] == "rows"

    def header(self) -> list[str]:
        names = []
        for output in self.outputs:
            columns = ["mask"] if output["task"] == "segmentation" else output["columns"]
            names += [f"{output['name']}.{name}" if output["name"] else name for name in columns]
        return ["image", *names, *(["answer"] if self.answers else []), "problem"]

    def cells(self, image: str, size: list[int], values: dict[str, np.ndarray]) -> list[Any]:
        """The cells between path and problem of a picture of height and width `size`."""
        cells: list[Any] = []
        main, decided = values[self.outputs[0]["output"]], values.get("decisions")
        for output in self.outputs:
            found = values[output["output"]]
            if output["kind"] == "maps":
                cells += self.write_masks(image, output, enlarge(found.transpose(1, 2, 0), *size).clip(0, 1))
            else:  # decisions about numbers are numbers
                found = decided if decided is not None and not self.answers and found is main else found
                cells += [f"{value:.7g}" for value in found.tolist()]
        if self.answers:
            if decided is None:
                limits = main.max() if self.thresholds is None else np.array(self.thresholds)
                decided = main >= limits
            names = zip(self.outputs[0]["columns"], decided, strict=True)
            cells.append("; ".join(name for name, chosen in names if chosen))
        return cells

    def write_masks(self, image: str, output: dict[str, Any], maps: np.ndarray) -> list[str]:
        """Write the masks of a picture from probabilities (H, W, C); return their paths."""
        if output["task"] == "segmentation":
            masks = {"": maps.argmax(2).astype(np.uint8 if maps.shape[2] <= 256 else np.uint16)}
        else:
            shares = maps if output["task"] == "segmentation_soft" else maps >= 0.5
            names = [re.sub(r"[^\w.-]", "_", f".{name}") for name in output["columns"]]
            masks = dict(zip(names, np.rint(shares.transpose(2, 0, 1) * 255.0).astype(np.uint8), strict=True))
        start = Path(output["name"], os.path.relpath(image, self.root))
        (self.folder / start).parent.mkdir(parents=True, exist_ok=True)
        for name, mask in masks.items():
            Image.fromarray(mask).save(f"{self.folder / start}{name}.png")
        return [f"{self.masks / start}{name}.png" for name in masks]


def predict(
    session: Any, described: dict[str, Any], rows: list[dict[str, str]], out: Path, batch: int, threads: int
) -> int:
    """Predict rows and write `out`; return how many have a problem."""
    work, masks = out.with_name(f".{out.name}.part"), out.with_suffix("")
    root = os.path.commonpath([Path(row["image"]).parent.absolute() for row in rows])
    writer, names = Writer(described, work / "masks", masks, root), [output.name for output in session.get_outputs()]
    taken = [each.name for each in session.get_inputs()]
    done, bad, begun = 0, 0, time.monotonic()
    shutil.rmtree(work, ignore_errors=True)  # of a killed command
    work.mkdir(parents=True)
    try:
        with (work / "table.csv").open("w", newline="", encoding="utf-8") as file:
            table, header = csv.writer(file), writer.header()
            table.writerow(header)
            for read in read_ahead(rows, described, batch, threads):
                good = [inputs for inputs, _, _ in read if inputs is not None]
                feeds = {name: np.stack([inputs[name] for inputs in good]) for name in taken if good}
                found = zip(*session.run(names, feeds), strict=True) if good else iter(())
                for inputs, size, problem in read:
                    image = rows[done]["image"]
                    if inputs is None:
                        table.writerow([image, *[""] * (len(header) - 2), problem])
                        print(f"\r{image} {problem}", file=sys.stderr)
                        bad += 1
                    else:
                        table.writerow(
                            [image, *writer.cells(image, size, dict(zip(names, next(found), strict=True))), ""]
                        )
                    done += 1
                speed = done / (time.monotonic() - begun)
                print(f"\r{done} of {len(rows)} pictures, {speed:.1f} a second ", end="", file=sys.stderr, flush=True)
        if writer.folder.is_dir():
            writer.folder.replace(masks)
        (work / "table.csv").replace(out)
    finally:
        shutil.rmtree(work)
        print(file=sys.stderr)
    return bad


def open_session(threads: int) -> tuple[Any, dict[str, Any]]:
    """The model on the GPU if there is one, and what its file says of itself."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unusable("onnxruntime is not installed: pip install onnxruntime") from error
    if not MODEL.is_file():
        raise Unusable(f"{MODEL} is missing: copy the whole folder")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    known = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    try:
        session = onnxruntime.InferenceSession(str(MODEL), options, providers=providers)
        described = json.loads(session.get_modelmeta().custom_metadata_map["foldwise"])
        schema = described["schema"]
    except Exception as error:  # onnxruntime raises many types
        raise Unusable(f"{MODEL} is damaged, or not from export.py: copy the whole folder again ({error})") from error
    if schema != SCHEMA:
        raise Unusable(f"{MODEL} has the schema {schema}, and this file reads {SCHEMA}: take the one exported with it")
    if problems := unsupported(described):
        raise Unusable(f"{MODEL} cannot be predicted with this file: {'; '.join(problems)}")
    return session, described


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    first, _, rest = str(__doc__).partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=first, epilog=rest, formatter_class=form)
    parser.add_argument("paths", nargs="+", type=Path, help="folders, pictures, or tables (.csv)")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.csv"), help="table to write (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="pictures in one pass (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="that read and compute (default: all cores, %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.batch < 1 or options.threads < 1:
        parser.error("--batch and --threads must be 1 or more")
    if options.out.suffix != ".csv":
        parser.error("--out must end with .csv")
    return options


def main() -> None:
    options = parse()
    try:
        for path in (options.out, options.out.with_suffix("")):
            if path.exists():
                raise Unusable(f"{path} exists already: name another with --out")
        session, described = open_session(options.threads)
        rows = list_rows(options.paths, described)
        if not rows:
            raise Unusable(f"there is no picture in {', '.join(map(str, options.paths))}")
        bad = predict(session, described, rows, options.out, options.batch, options.threads)
    except (Unusable, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"{len(rows) - bad} of {len(rows)} pictures predicted: {options.out}")
    if bad:
        print(f"{bad} could not be read: see the column `problem`", file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

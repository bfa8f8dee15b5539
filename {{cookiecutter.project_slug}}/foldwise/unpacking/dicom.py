"""Images of a DICOM file as PNGs, by pydicom."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foldwise.errors import Refusal
from foldwise.unpacking.rows import Unpacked

SUFFIXES: tuple[str, ...] = (".dcm", ".dicom", ".ima", "")
# Columns of the table, and the DICOM attributes that they hold. No names or dates: a table gets shared.
FACTS = {
    "group": "PatientID",
    "study": "StudyInstanceUID",
    "modality": "Modality",
    "view": "ViewPosition",
    "laterality": "ImageLaterality",
    "description": "SeriesDescription",
    "thickness": "SliceThickness",
}


@dataclass(frozen=True)
class Dicom:
    """Converts the stored values by the file's rescaling and a window to grey levels.

    Attributes:
        windows: (centre, width) of each channel, in rescaled units (Hounsfield for CT): one for grey, three for RGB;
            empty: the window that the file declares, else the whole range of its values.
        bits: 8 or 16 of a grey level.
    """

    windows: Sequence[tuple[float, float]] = ()
    bits: int = 8

    def unpack(self, path: Path, folder: Path) -> list[Unpacked]:
        """Write the frames of a file to `folder`; return their rows, whose order is the position along the stack.

        Raises:
            Refusal: no DICOM, no image in it, or its pixels cannot be decoded.
        """
        import cv2
        import pydicom

        try:
            file = pydicom.dcmread(path)
        except Exception as error:  # pydicom raises many types
            raise Refusal(f"it cannot be read as DICOM ({error})") from error
        if "PixelData" not in file and "FloatPixelData" not in file and "DoubleFloatPixelData" not in file:
            raise Refusal(f"it holds no image ({file.get('Modality', 'of no modality')})")
        try:
            frames, colour = _frames(file)
        except Exception as error:  # pydicom and its decoders raise many types
            advice = ": pip install pylibjpeg[all] (partly GPL) or pyjpegls" if "plugins" in str(error) else ""
            raise Refusal(f"its pixels cannot be decoded ({_first_line(error)}){advice}") from error
        facts: dict[str, Any] = {name: _text(file, attribute) for name, attribute in FACTS.items()}
        spacing = file.get("PixelSpacing") or file.get("ImagerPixelSpacing") or [None, None]
        height, width = frames.shape[1:3]
        facts |= {"height": height, "width": width, "spacing_y": _number(spacing[0]), "spacing_x": _number(spacing[1])}
        unit = str(file.get("SeriesInstanceUID", ""))
        position = _position(file)
        rows = []
        for number, frame in enumerate(frames):
            name = f"{number:05d}.png"
            image = frame[:, :, ::-1] if colour else self._grey(file, frame)
            if not cv2.imwrite(str(folder / name), np.ascontiguousarray(image)):
                raise OSError(f"{folder / name} cannot be written")
            rows.append(Unpacked(name, unit, position + number, facts))
        return rows

    def _grey(self, file: Any, frame: np.ndarray) -> np.ndarray:
        """Map rescaled values (H, W) through the windows to grey levels (H, W) or (H, W, 3) in BGR order."""
        windows = list(self.windows) or [_declared_window(file, frame)]
        # DICOM PS3.3 C.11.2.1.2.1, linear-exact: no half-step at the ends.
        shares = [((frame - centre) / width + 0.5).clip(0, 1) for centre, width in windows]
        if file.get("PhotometricInterpretation") == "MONOCHROME1":  # large values are dark
            shares = [1 - share for share in shares]
        top, dtype = (255, np.uint8) if self.bits == 8 else (65535, np.uint16)
        levels = [(share * top).round().astype(dtype) for share in shares]
        return levels[0] if len(levels) == 1 else np.stack(levels[::-1], axis=2)


def _frames(file: Any) -> tuple[np.ndarray, bool]:
    """Decode to frames (N, H, W) float64 in rescaled units, or RGB (N, H, W, 3) uint8; True for colours."""
    from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array

    values, kind = pixel_array(file), file.get("PhotometricInterpretation", "")  # YBR is converted to RGB
    count = int(file.get("NumberOfFrames") or 1)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, file)
        values = (values >> 8 if values.dtype == np.uint16 else values).astype(np.uint8)
    if file.get("SamplesPerPixel", 1) == 3 or kind == "PALETTE COLOR":
        values = values.reshape(count, *values.shape[-3:])
        if values.dtype != np.uint8:
            values = (values / max(int(values.max()), 1) * 255).round().astype(np.uint8)
        return values, True
    return apply_rescale(values, file).astype(np.float64).reshape(count, *values.shape[-2:]), False


def _declared_window(file: Any, frame: np.ndarray) -> tuple[float, float]:
    centre, width = (_number(_first(file.get(name))) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        return centre, width
    low, high = float(frame.min()), float(frame.max())
    return (low + high) / 2, max(high - low, 1e-6)


def _position(file: Any) -> float:
    """Position along the normal of the slice in mm (it orders any stack), else the number of the instance."""
    orientation, position = file.get("ImageOrientationPatient"), file.get("ImagePositionPatient")
    if orientation is not None and position is not None and len(orientation) == 6 and len(position) == 3:
        normal = np.cross(np.float64(orientation[:3]), np.float64(orientation[3:]))
        return float(normal @ np.float64(position))
    return _number(file.get("InstanceNumber")) or 0.0


def _first(value: Any) -> Any:
    from pydicom.multival import MultiValue

    return (value[0] if len(value) else None) if isinstance(value, MultiValue) else value


def _number(value: Any) -> float | None:
    try:
        return None if value is None or value == "" else float(value)
    except ValueError:
        return None


def _text(file: Any, attribute: str) -> str | None:
    value = file.get(attribute)
    return None if value is None or str(value) == "" else " ".join(str(value).split())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

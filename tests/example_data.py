"""Made data with everything that the examples read; runs as a script: python example_data.py FOLDER."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.io import wavfile

ROWS = 48
LABELS = ["blue", "green", "red"]


def write(root: Path) -> None:
    """Pictures of 32 x 32 whose class is the colour of a square, with masks, sounds, DICOM files and columns.

    Rows come in fours of one label: a series of slices, a clip, or two things of two views each.
    """
    rng = np.random.default_rng(0)
    for folder in ("images", "masks", "sounds", "dicom"):
        (root / folder).mkdir(parents=True)
    rows = []
    for row in range(ROWS):
        series, number = divmod(row, 4)
        label = series % 3
        image, mask = rng.integers(0, 80, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        size = int(rng.integers(8, 16))
        top, left = rng.integers(0, 32 - size, 2)
        image[top : top + size, left : left + size, label] = 230
        mask[top : top + size, left : left + size] = 1
        name = f"s{series:02d}_{number}"
        cv2.imwrite(str(root / f"images/{name}.png"), image)
        cv2.imwrite(str(root / f"masks/{name}.png"), mask)
        time = np.arange(4000) / 8000
        wave = np.sin(2 * np.pi * (400 + 800 * label) * time) + rng.normal(0, 0.1, len(time))
        wavfile.write(root / f"sounds/{name}.wav", 8000, (wave * 8000).astype(np.int16))
        _write_dicom(root / f"dicom/{name}.dcm", image[:, :, label].astype(np.int16) * 4 - 100)
        rows.append(
            {
                "id": f"row{row}", "image": f"images/{name}.png", "label": LABELS[label], "mask": f"masks/{name}.png",
                "sound": f"sounds/{name}.wav", "dicom": f"dicom/{name}.dcm", "size": size if row % 5 else size + 0.5,
                "age": "" if row % 7 == 0 else 20 + 10 * label + rng.integers(5), "sex": "mf"[row % 2],
                "series": f"s{series}", "number": number, "clip": f"clip{series}", "thing": f"thing{row // 2}",
                "region": ["north", "south"][row % 2], "kind": "" if row % 6 == 0 else ["small", "large"][size > 11],
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.to_csv(root / "train.csv", index=False)
    frame.drop(columns=["label", "mask", "size", "kind"]).to_csv(root / "test.csv", index=False)


def _write_dicom(path: Path, values: np.ndarray) -> None:
    """A slice of CT numbers: stored from 0 on, with slope and intercept. Nothing where pydicom is not installed."""
    try:
        import pydicom
    except ImportError:
        return
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = 1, -1024
    file.PixelData = (values + 1024).astype(np.uint16).tobytes()
    pydicom.dcmwrite(path, file)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

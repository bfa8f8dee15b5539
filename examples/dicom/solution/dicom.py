"""DICOM files read by pydicom, each window of values a channel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foldwise.data import samples
from foldwise.data.fields import Item
from foldwise.data.images import ImageError
from foldwise.data.samples import Rows, Sample


class Samples(samples.Samples):
    """A slice through `windows`, each (centre, width) in the units of the file's rescaling: Hounsfield units for CT.

    Args:
        windows: None: the whole range of the file, one channel.
    """

    def __init__(self, mode: str = "stored", windows: Sequence[Sequence[float]] | None = None) -> None:
        super().__init__(mode)
        self.windows = [list(window) for window in windows or ()]

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        import pydicom
        from pydicom.pixels import apply_rescale

        path = rows.path(item.rows[0])
        try:
            file = pydicom.dcmread(path)
            values = apply_rescale(file.pixel_array, file).astype(np.float32)
        except Exception as error:  # pydicom and its decoders raise many kinds
            raise ImageError(f"{path} cannot be read as DICOM ({error})") from error
        if values.ndim != 2:
            raise ImageError(f"{path} has the shape {values.shape}, and a slice has height and width")
        if file.get("PhotometricInterpretation") == "MONOCHROME1":  # large values are dark
            values = values.max() + values.min() - values
        windows = self.windows or [[(values.max() + values.min()) / 2, max(float(np.ptp(values)), 1e-6)]]
        channels = [np.clip((values - centre) / width + 0.5, 0, 1) for centre, width in windows]
        return {"image": np.stack(channels, axis=2).astype(np.float32)}

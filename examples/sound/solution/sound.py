"""A sound file read as a spectrogram, which any network for images takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.io import wavfile
from scipy.signal import spectrogram

from foldwise.data import samples
from foldwise.data.fields import Item
from foldwise.data.images import ImageError
from foldwise.data.samples import Rows, Sample


class Samples(samples.Samples):
    """Decibels by frequency and time, in [0, 1], of `seconds` of a WAV file: random in training, else its middle.

    Args:
        window: samples of the short-time Fourier transform; half of them overlap.
        floor: decibels below the loudest that count as silence.
    """

    def __init__(self, mode: str = "stored", seconds: float = 1.0, window: int = 256, floor: float = 80.0) -> None:
        super().__init__(mode)
        self.seconds, self.window, self.floor = seconds, window, floor

    def read(self, rows: Rows, item: Item, state: Mapping[str, Any], rng: np.random.Generator | None) -> Sample:
        path = rows.path(item.rows[0])
        try:
            frequency, wave = wavfile.read(path)
        except (OSError, ValueError) as error:
            raise ImageError(f"{path} cannot be read as WAV ({error})") from error
        wave = wave.astype(np.float32).reshape(len(wave), -1).mean(axis=1)  # one channel
        length = round(self.seconds * frequency)
        wave = np.pad(wave, (0, max(0, length - len(wave))))
        room = len(wave) - length
        start = room // 2 if rng is None else int(rng.integers(room + 1))
        _, _, power = spectrogram(wave[start : start + length], frequency, nperseg=self.window)
        level = 10 * np.log10(power + 1e-12)
        level = np.clip((level - level.max()) / self.floor + 1, 0, 1).astype(np.float32)
        return {"image": np.ascontiguousarray(level[::-1, :, None])}  # low notes at the bottom

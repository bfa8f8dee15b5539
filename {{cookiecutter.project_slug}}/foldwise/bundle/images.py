"""Pictures of a hidden test: whatever is wrong with one is its own problem and nobody else's."""

from pathlib import Path

from foldwise.data.images import TIFF_MAGIC
from foldwise.inference.reading import Images, Item

LARGEST = 100_000_000  # pixels: 300 MB of colours in each worker that decodes one; PIL calls 89 million a bomb
LEAST = 2  # pixels a side


class CarefulImages(Images):
    """As `Images`; also pictures of one pixel, enormous ones, and all that a decoder can raise become a problem."""

    def __getitem__(self, number: int) -> Item:
        path = self.paths[number]
        size = stored_size(path)
        try:
            if size[0] * size[1] > LARGEST:
                return Item(number, [], size, f"{path} has {size[0]} x {size[1]} pixels, more than {LARGEST:,}")
            if min(size) < LEAST and size != (0, 0):
                return Item(number, [], size, f"{path} has {size[0]} x {size[1]} pixels")
            item = super().__getitem__(number)
        except Exception as error:  # decoders raise many kinds, and none is worth a submission
            return Item(number, [], size, f"{path}: {type(error).__name__}: {error}")
        return item._replace(size=size) if item.problem and size != (0, 0) else item


def stored_size(path: Path) -> tuple[int, int]:
    """(height, width) by the head of a file, nothing decoded; (0, 0) where it cannot be told."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        return _tiff_size(path) if magic in TIFF_MAGIC else _size(path)
    except Exception:  # as many kinds as there are ways to damage a file; reading will say what is wrong with it
        return 0, 0


def _tiff_size(path: Path) -> tuple[int, int]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
    return sizes["Y"], sizes["X"]


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the head alone is read: LARGEST decides
    with Image.open(path) as picture:
        return picture.height, picture.width

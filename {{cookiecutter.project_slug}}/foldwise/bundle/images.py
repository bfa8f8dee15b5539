"""Items of a hidden test: whatever is wrong with one is its own problem and nobody else's."""

from pathlib import Path

from foldwise.data.images import TIFF_MAGIC
from foldwise.inference.reading import Items, Read

LARGEST = 100_000_000  # pixels: 300 MB of colours in each worker that decodes one; PIL calls 89 million a bomb
LEAST = 2  # pixels a side


class CarefulItems(Items):
    """As `Items`; also pictures of one pixel, enormous ones, and all that a reader can raise become a problem."""

    def __getitem__(self, place: int) -> Read:
        size = (0, 0)
        try:
            files = self.first.files(self.numbers[place])
            sizes = [stored_size(path) for path in files]
            size = sizes[0] if sizes else size
            for path, (height, width) in zip(files, sizes, strict=True):
                if height * width > LARGEST:
                    return Read(place, [], size, f"{path} has {height} x {width} pixels, more than {LARGEST:,}")
                if min(height, width) < LEAST and (height, width) != (0, 0):
                    return Read(place, [], size, f"{path} has {height} x {width} pixels")
            read = super().__getitem__(place)
        except Exception as error:  # readers raise many kinds, and none is worth a submission
            return Read(place, [], size, f"{self.first.items[self.numbers[place]].id}: {type(error).__name__}: {error}")
        return read._replace(size=size) if read.problem and size != (0, 0) else read


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

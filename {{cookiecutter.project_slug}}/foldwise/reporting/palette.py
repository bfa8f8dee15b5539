"""The colours of the classes: one palette by the class's number, in every picture of masks."""

import numpy as np

from foldwise.data.images import resize_mask

SHARE = 0.6  # of the class's colour in a painted pixel
HATCH = 3  # pixels; the width of the lines over ignored pixels


def class_colors(count: int) -> np.ndarray:
    """(C, 3) colours in [0, 1], neighbours far apart: matplotlib's ten, then hues in steps of the golden ratio."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    more = [hsv_to_rgb((0.618034 * index % 1, 0.5 + 0.5 * (index % 2), 0.95)) for index in range(10, count)]
    return np.array([*(to_rgb(f"C{index}") for index in range(min(10, count))), *more]).reshape(-1, 3)


def paint(image: np.ndarray, mask: np.ndarray, classes: int, ignore_index: int | None = None) -> np.ndarray:
    """The image (H, W, 3) uint8 with every class of the mask in its colour; ignored pixels are hatched.

    Args:
        classes: how many there are.
    """
    mask = resize_mask(mask, image.shape[:2])
    result = image.copy()
    ignored = np.zeros(mask.shape, bool) if ignore_index is None else mask == ignore_index
    # Over grey, since two colours mixed look like a third class.
    gray = image[~ignored].mean(axis=1, keepdims=True)
    result[~ignored] = np.rint((1 - SHARE) * gray + SHARE * 255 * class_colors(classes)[mask[~ignored]])
    result[ignored & ((np.indices(mask.shape).sum(axis=0) // HATCH) % 2 == 0)] = 128
    return result

"""Large pictures in overlapping tiles, whose maps are blended with a Gaussian window.

Tiles go from left to right and from top to bottom; rows of the picture that no further tile touches are put away as
8-bit values at once. So beside the picture and its map of 8-bit values, memory holds the sums of one row of tiles.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

OVERLAP = 0.5  # of a tile, in both directions: every pixel inside the picture lies near the middle of some tile
TILES_A_PASS = 4  # while training watches itself: less than a training step has in memory
SIGMA = 1 / 8  # of a tile: the window of nnU-Net (Isensee et al. 2021)


def predict_tiled(
    image: np.ndarray, probabilities: Callable[[Tensor], Tensor], tile: Sequence[int], classes: int, batch_size: int
) -> np.ndarray:
    """A map of a whole picture from maps of its tiles, at its own resolution.

    Args:
        image: (channels, H, W); where it is smaller than a tile, it is mirrored at its border.
        probabilities: (B, channels, h, w) to (B, classes, h, w) in [0, 1].
        tile: (h, w), sizes that the network takes.
        classes: number of classes.
        batch_size: tiles in one pass.

    Returns:
        (classes, H, W) uint8, probability = value / 255.
    """
    height, width = image.shape[1:]
    missing = [max(0, side - have) for side, have in zip(tile, (height, width), strict=True)]
    if any(missing):
        image = np.pad(image, ((0, 0), *((gap // 2, gap - gap // 2) for gap in missing)), mode="symmetric")
    window = _window(tile)
    tops, lefts = (_starts(have, side) for have, side in zip(image.shape[1:], tile, strict=True))
    result = np.empty((classes, *image.shape[1:]), np.uint8)
    total = np.zeros((classes, tile[0], image.shape[2]), np.float32)  # the sums of the rows from `top` on
    weight = np.zeros((tile[0], image.shape[2]), np.float32)
    for number, top in enumerate(tops):
        for start in range(0, len(lefts), batch_size):
            some = lefts[start : start + batch_size]
            batch = np.stack([image[:, top : top + tile[0], left : left + tile[1]] for left in some])
            for left, own in zip(some, probabilities(torch.from_numpy(batch)).cpu().numpy(), strict=True):
                total[:, :, left : left + tile[1]] += own * window
                weight[:, left : left + tile[1]] += window
        done = tops[number + 1] - top if number + 1 < len(tops) else tile[0]
        for row in range(done):
            mean = total[:, row] / weight[row]
            result[:, top + row] = np.rint(mean.clip(0, 1) * 255)
        total = np.concatenate([total[:, done:], np.zeros_like(total[:, :done])], axis=1)
        weight = np.concatenate([weight[done:], np.zeros_like(weight[:done])])
    above, before = missing[0] // 2, missing[1] // 2
    return result[:, above : above + height, before : before + width]


def tiled_logits(network: Callable[[Tensor], Tensor], image: Tensor, tile: Sequence[int], classes: int) -> Tensor:
    """Logits of a whole picture from its tiles, for losses and metrics that take logits.

    They are log-probabilities, whose softmax gives the probabilities of `predict_tiled` back; 0 is taken as 1 / 510.

    Args:
        network: (B, channels, h, w) to logits (B, classes, h, w).
        image: (1, channels, H, W).

    Returns:
        (1, classes, H, W) float32, on the device of the image.
    """

    def probabilities(tiles: Tensor) -> Tensor:
        return network(tiles.to(image.device)).float().softmax(1)

    values = torch.from_numpy(predict_tiled(image[0].cpu().numpy(), probabilities, tile, classes, TILES_A_PASS))
    return (values.to(image.device).float() / 255).clamp(min=1 / 510).log()[None]


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin: evenly spread, at most so far apart that they overlap by OVERLAP, and ending at the border."""
    count = 1 + max(0, int(np.ceil((length - tile) / (tile * (1 - OVERLAP)))))
    return np.rint(np.linspace(0, length - tile, count)).astype(int).tolist()


def _window(tile: Sequence[int]) -> np.ndarray:
    """(h, w) float32, 1 in the middle; never so small that a lone corner would be lost in rounding."""
    sides = []
    for side in tile:
        position = (np.arange(side) + 0.5) / side - 0.5
        sides.append(np.exp(-(position**2) / (2 * SIGMA**2)))
    return np.maximum(np.outer(*sides), 1e-4).astype(np.float32)

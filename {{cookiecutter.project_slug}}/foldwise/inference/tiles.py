"""Large pictures in overlapping tiles, whose maps are blended with a Gaussian window.

Tiles go from left to right and from top to bottom; rows of the picture that no further tile touches are put away as
8-bit values at once. So beside the picture and its map of 8-bit values, memory holds the sums of one row of tiles.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from foldwise.models.network import Batch
from foldwise.tasks.outputs import Output

OVERLAP = 0.5  # of a tile, in both directions: every pixel inside the picture lies near the middle of some tile
TILES_A_PASS = 4  # while training watches itself: less than a training step has in memory
SIGMA = 1 / 8  # of a tile: the window of nnU-Net (Isensee et al. 2021)


def predict_tiled(
    batch: Batch,
    spatial: Collection[str],
    values: Callable[[Batch], Tensor],
    tile: Sequence[int],
    columns: int,
    batch_size: int,
) -> np.ndarray:
    """A map of a whole picture from maps of its tiles, at its own resolution.

    Args:
        batch: of one item; spatial fields (1, ..., H, W) of one size. Where that is smaller than a tile, they are
            mirrored at the border.
        spatial: names of the spatial fields; all others are handed to each tile.
        values: a batch of tiles to their maps (B, columns, h, w) in [0, 1].
        tile: (h, w), sizes that the network takes.
        batch_size: tiles in one pass.

    Returns:
        (columns, H, W) uint8, value = stored / 255.
    """
    arrays = {name: batch[name].cpu().numpy() for name in spatial}
    height, width = next(iter(arrays.values())).shape[-2:]
    missing = [max(0, side - have) for side, have in zip(tile, (height, width), strict=True)]
    if any(missing):
        border = [(gap // 2, gap - gap // 2) for gap in missing]
        arrays = {
            name: np.pad(array, ((0, 0),) * (array.ndim - 2) + tuple(border), mode="symmetric")
            for name, array in arrays.items()
        }
    whole = next(iter(arrays.values())).shape[-2:]
    others = {name: value for name, value in batch.items() if name not in spatial}
    window = _window(tile)
    tops, lefts = (_starts(have, side) for have, side in zip(whole, tile, strict=True))
    result = np.empty((columns, *whole), np.uint8)
    total = np.zeros((columns, tile[0], whole[1]), np.float32)  # the sums of the rows from `top` on
    weight = np.zeros((tile[0], whole[1]), np.float32)
    for number, top in enumerate(tops):
        for start in range(0, len(lefts), batch_size):
            some = lefts[start : start + batch_size]
            tiles = {
                name: torch.from_numpy(
                    np.concatenate([array[..., top : top + tile[0], left : left + tile[1]] for left in some])
                )
                for name, array in arrays.items()
            } | {name: value.expand(len(some), *value.shape[1:]) for name, value in others.items()}
            for left, own in zip(some, values(tiles).cpu().numpy(), strict=True):
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


def tiled_outputs(
    network: Callable[[Batch], Batch],
    batch: Batch,
    spatial: Collection[str],
    outputs: Sequence[Output],
    tile: Sequence[int],
) -> Batch:
    """Raw outputs of a whole picture from its tiles, for losses and metrics that take raw outputs.

    They are log-probabilities, whose softmax gives the probabilities of `predict_tiled` back; 0 is taken as 1 / 510.

    Args:
        outputs: exclusive maps.

    Returns:
        (1, columns, H, W) float32 of each output, on the device of the batch.
    """
    device = next(iter(batch.values())).device
    columns = [len(output.columns) for output in outputs]

    def values(tiles: Batch) -> Tensor:
        found = network({name: value.to(device) for name, value in tiles.items()})
        return torch.cat([output.meaning.activate(found[output.key]) for output in outputs], 1)

    maps = torch.from_numpy(predict_tiled(batch, spatial, values, tile, sum(columns), TILES_A_PASS))
    logits = (maps.to(device).float() / 255).clamp(min=1 / 510).log()[None]
    return {output.key: own for output, own in zip(outputs, logits.split(columns, 1), strict=True)}


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

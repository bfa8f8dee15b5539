"""Large pictures in overlapping tiles, whose maps are blended with a Gaussian window.

Tiles go from left to right and from top to bottom; rows of the picture that no further tile touches are stored as 8-bit
values at once. So beside the picture and its 8-bit map, memory holds the sums of one row of tiles.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from foldwise.models.network import Batch
from foldwise.tasks.outputs import Output, activate

OVERLAP = 0.5  # of a tile, in both directions: every pixel inside the picture lies near the middle of some tile
TILES_A_PASS = 4  # in a validation while training: less than a training step has in memory
SIGMA = 1 / 8  # of a tile: the window of nnU-Net (Isensee et al. 2021)


def predict_tiled(
    batch: Batch,
    spatial: Collection[str],
    network: Callable[[Batch], Mapping[str, Tensor]],
    tile: Sequence[int],
    columns: Mapping[str, int],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Maps of a whole picture, at its own resolution, from maps of its tiles.

    Args:
        batch: of one item; spatial fields (1, ..., H, W) of one size, mirrored at the border where that is smaller
            than a tile.
        spatial: names of the spatial fields; all others are handed to each tile.
        network: a batch of tiles to their maps (B, C, h, w) in [0, 1], by name.
        tile: (h, w), a size that the network takes.
        columns: C of each map.
        batch_size: tiles in one pass.

    Returns:
        (C, H, W) uint8 of each map, value = stored / 255.
    """
    arrays = {name: batch[name].cpu().numpy() for name in spatial}
    height, width = next(iter(arrays.values())).shape[-2:]
    missing = [max(0, side - have) for side, have in zip(tile, (height, width), strict=True)]
    border = [(gap // 2, gap - gap // 2) for gap in missing]
    if any(missing):
        arrays = {
            name: np.pad(array, ((0, 0),) * (array.ndim - 2) + tuple(border), mode="symmetric")
            for name, array in arrays.items()
        }
    whole = height + missing[0], width + missing[1]
    others = {name: value for name, value in batch.items() if name not in spatial}
    window = _window(tile)
    tops, lefts = (_starts(have, side) for have, side in zip(whole, tile, strict=True))
    result = np.empty((sum(columns.values()), *whole), np.uint8)
    total = np.zeros((len(result), tile[0], whole[1]), np.float32)  # the sums of the rows from `top` on
    weight = np.zeros((tile[0], whole[1]), np.float32)
    for top, below in zip(tops, [*tops[1:], whole[0]], strict=True):
        for start in range(0, len(lefts), batch_size):
            some = lefts[start : start + batch_size]
            tiles = {name: value.expand(len(some), *value.shape[1:]) for name, value in others.items()}
            for name, array in arrays.items():
                cut = [array[..., top : top + tile[0], left : left + tile[1]] for left in some]
                tiles[name] = torch.from_numpy(np.concatenate(cut))
            found = network(tiles)
            maps = torch.cat([found[name] for name in columns], 1).cpu().numpy()
            for left, own in zip(some, maps, strict=True):
                total[:, :, left : left + tile[1]] += own * window
                weight[:, left : left + tile[1]] += window
        done = below - top
        for row in range(done):
            result[:, top + row] = np.rint((total[:, row] / weight[row]).clip(0, 1) * 255)
        total = np.concatenate([total[:, done:], np.zeros_like(total[:, :done])], axis=1)
        weight = np.concatenate([weight[done:], np.zeros_like(weight[:done])])
    (above, _), (before, _) = border
    result = result[:, above : above + height, before : before + width]
    return dict(zip(columns, np.split(result, np.cumsum(list(columns.values()))[:-1]), strict=True))


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
        (1, C, H, W) float32 of each output, on the device of the batch.
    """
    device = next(iter(batch.values())).device

    def values(tiles: Batch) -> dict[str, Tensor]:
        return activate(network({name: value.to(device) for name, value in tiles.items()}), outputs)

    columns = {output.name: len(output.columns) for output in outputs}
    maps = predict_tiled(batch, spatial, values, tile, columns, TILES_A_PASS)
    units = {output.key: torch.from_numpy(maps[output.name]).to(device).float() / 255 for output in outputs}
    return {key: values.clamp(min=1 / 510).log()[None] for key, values in units.items()}


def _starts(length: int, tile: int) -> list[int]:
    """First pixels of tiles: evenly spread, overlapping by OVERLAP or more, the last at the border."""
    count = 1 + max(0, int(np.ceil((length - tile) / (tile * (1 - OVERLAP)))))
    return np.rint(np.linspace(0, length - tile, count)).astype(int).tolist()


def _window(tile: Sequence[int]) -> np.ndarray:
    """(h, w) float32, 1 in the middle; never so small that a lone corner would be lost in rounding."""
    positions = [(np.arange(side) + 0.5) / side - 0.5 for side in tile]
    sides = [np.exp(-(position**2) / (2 * SIGMA**2)) for position in positions]
    return np.maximum(np.outer(*sides), 1e-4).astype(np.float32)

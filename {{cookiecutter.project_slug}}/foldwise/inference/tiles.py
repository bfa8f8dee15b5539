"""Tiled prediction of large images: overlapping tiles, blended with a Gaussian window.

Tiles go left to right, top to bottom. Finished image rows are stored as 8-bit values at once, so that apart from the
image and its 8-bit map only one row of tiles is in memory.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from foldwise.models.network import Batch
from foldwise.tasks.outputs import Output, activate

OVERLAP = 0.5  # of a tile, in both directions: every inner pixel lies near the centre of some tile
TILES_A_PASS = 4  # during validation: less memory than a training step
SIGMA = 1 / 8  # of a tile: the window of nnU-Net (Isensee et al. 2021)


def predict_tiled(
    batch: Batch,
    spatial: Collection[str],
    network: Callable[[Batch], Mapping[str, Tensor]],
    tile: Sequence[int],
    columns: Mapping[str, int],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Predict the maps of a whole image at its stored resolution.

    Args:
        batch: one item; spatial fields are (1, ..., H, W), mirror-padded if smaller than a tile.
        spatial: names of the spatial fields; every tile gets the other fields unchanged.
        network: maps a batch of tiles to (B, C, h, w) in [0, 1], by name.
        tile: (h, w).
        columns: C of each map.
        batch_size: tiles per pass.

    Returns:
        (C, H, W) uint8 by name; probability = value / 255.
    """
    arrays = {name: batch[name].cpu().numpy() for name in spatial}
    height, width = next(iter(arrays.values())).shape[-2:]
    gaps = [max(0, side - length) for side, length in zip(tile, (height, width), strict=True)]
    padding = [(gap // 2, gap - gap // 2) for gap in gaps]
    if any(gaps):
        arrays = {
            name: np.pad(array, ((0, 0),) * (array.ndim - 2) + tuple(padding), mode="symmetric")
            for name, array in arrays.items()
        }
    padded = height + gaps[0], width + gaps[1]
    others = {name: value for name, value in batch.items() if name not in spatial}
    window = _window(tile)
    tops, lefts = (_starts(length, side) for length, side in zip(padded, tile, strict=True))
    result = np.empty((sum(columns.values()), *padded), np.uint8)
    total = np.zeros((len(result), tile[0], padded[1]), np.float32)  # weighted sums of the rows from `top` on
    weight = np.zeros((tile[0], padded[1]), np.float32)
    for top, next_top in zip(tops, [*tops[1:], padded[0]], strict=True):
        for start in range(0, len(lefts), batch_size):
            batch_lefts = lefts[start : start + batch_size]
            tiles = {name: value.expand(len(batch_lefts), *value.shape[1:]) for name, value in others.items()}
            for name, array in arrays.items():
                cut = [array[..., top : top + tile[0], left : left + tile[1]] for left in batch_lefts]
                tiles[name] = torch.from_numpy(np.concatenate(cut))
            outputs = network(tiles)
            maps = torch.cat([outputs[name] for name in columns], 1).cpu().numpy()
            for left, tile_map in zip(batch_lefts, maps, strict=True):
                total[:, :, left : left + tile[1]] += tile_map * window
                weight[:, left : left + tile[1]] += window
        done = next_top - top
        for row in range(done):
            result[:, top + row] = np.rint((total[:, row] / weight[row]).clip(0, 1) * 255)
        total = np.concatenate([total[:, done:], np.zeros_like(total[:, :done])], axis=1)
        weight = np.concatenate([weight[done:], np.zeros_like(weight[:done])])
    (above, _), (before, _) = padding
    result = result[:, above : above + height, before : before + width]
    return dict(zip(columns, np.split(result, np.cumsum(list(columns.values()))[:-1]), strict=True))


def tiled_outputs(
    network: Callable[[Batch], Batch],
    batch: Batch,
    spatial: Collection[str],
    outputs: Sequence[Output],
    tile: Sequence[int],
) -> Batch:
    """Predict raw outputs (1, C, H, W) of a whole image by tiles, for losses and metrics.

    The task's activation gives the probabilities of `predict_tiled` back, except that 0 becomes 1 / 510.
    """
    device = next(iter(batch.values())).device

    def predict(tiles: Batch) -> dict[str, Tensor]:
        return activate(network({name: value.to(device) for name, value in tiles.items()}), outputs)

    columns = {output.name: len(output.columns) for output in outputs}
    maps = predict_tiled(batch, spatial, predict, tile, columns, TILES_A_PASS)
    values = {output: torch.from_numpy(maps[output.name]).to(device).float() / 255 for output in outputs}
    return {output.key: output.meaning.invert(each[None], 1 / 510) for output, each in values.items()}


def _starts(length: int, tile: int) -> list[int]:
    """First pixel of each tile: evenly spaced, overlapping by at least OVERLAP, the last one at the border."""
    count = 1 + max(0, int(np.ceil((length - tile) / (tile * (1 - OVERLAP)))))
    return np.rint(np.linspace(0, length - tile, count)).astype(int).tolist()


def _window(tile: Sequence[int]) -> np.ndarray:
    """(h, w) float32, 1 in the centre; at least 1e-4, so that a corner under one tile only survives rounding."""
    positions = [(np.arange(side) + 0.5) / side - 0.5 for side in tile]
    sides = [np.exp(-(position**2) / (2 * SIGMA**2)) for position in positions]
    return np.maximum(np.outer(*sides), 1e-4).astype(np.float32)

"""Out-of-fold predictions from the pictures alone, the metadata alone, and with one column of metadata shuffled.

The saved models of a run are used, without training: the picture of each item is encoded once.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foldwise.data.batches import to_device
from foldwise.data.images import ImageError
from foldwise.data.samples import TableItems
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.inference.device import choose_device
from foldwise.inference.items import InputSpec, Items
from foldwise.inference.predicting import oof_jobs
from foldwise.inference.reading import load_batches
from foldwise.inference.runs import load_run
from foldwise.inference.tta import TTA
from foldwise.inference.weights import Model, load_model
from foldwise.models.pooled import PooledNetwork
from foldwise.progress import Progress, silent, stepping
from foldwise.tasks.outputs import activate

BATCH, WORKERS = 32, 2


def predict_parts(
    folder: Path, items: TableItems, repeats: int, seed: int = 0, progress: Progress = silent
) -> dict[str, np.ndarray]:
    """Predict the held-out items of each fold by its own model, in one view.

    Args:
        folder: a run.
        items: of its training table.
        repeats: shuffles of each column, within the fold.

    Returns:
        By what is predicted from, all of it first, values (R, N, C); NaN for items that are never held out.
    """
    run = load_run(folder)
    if run.spec.main.meaning.kind != "rows":
        raise Refusal(f"--importance is for one answer per item, and {folder} is a {run.spec.task} run")
    jobs = oof_jobs(run, items.table)
    step = stepping(progress, "predicting", sum(len(job.rows) * len(job.members(run)) for job in jobs))
    found: dict[str, np.ndarray] = {}
    for job in jobs:
        members = job.members(run)
        for member in members:
            model = load_model(run.models[member])
            if not (isinstance(model.network.net, PooledNetwork) and model.network.net.fusion):
                raise Refusal(
                    f"{folder}: its network has no metadata beside the pictures that foldwise knows of, so there is "
                    "nothing to compare: --importance is for PooledNetwork with model.numbers or model.categories"
                )
            for name, values in _variants(model, items.source, job.rows, repeats, [seed, job.fold or 0], step).items():
                empty = np.full((len(values), len(items.items), values.shape[2]), np.nan, np.float32)
                whole = found.setdefault(name, empty)
                whole[:, job.rows] = np.nan_to_num(whole[:, job.rows]) + values / len(members)
    return found


@torch.inference_mode()
def _variants(
    model: Model, source: Table, rows: list[int], repeats: int, seed: list[int], step: Callable[[int], object]
) -> Mapping[str, np.ndarray]:
    """Values (R, N, C) of the items `rows` by what they are predicted from."""
    device, inputs = torch.device(choose_device("auto")), InputSpec.of(model)
    model.network.to(device).eval()
    net = model.network.net
    assert isinstance(net, PooledNetwork) and net.fusion is not None
    encoded: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {name: [] for name, names in net.columns.items() if names}
    for read in load_batches(Items(source, {inputs: model}, TTA(), rows), BATCH, WORKERS, device):
        if read.bad:
            raise ImageError("\n".join(item.problem for item in read.bad))
        batch = to_device(read.batches[inputs], device)
        encoded.append(net.encode(model.network.normalized(batch)))
        for name, parts in columns.items():
            parts.append(batch[name])
        step(len(read.numbers))
    pictures, batch = torch.cat(encoded), {name: torch.cat(parts) for name, parts in columns.items()}
    main, fusion = model.spec.outputs[:1], net.fusion
    metadata = fusion.encode(batch)

    def answer(*blocks: Tensor) -> np.ndarray:
        return activate(net.answer(*blocks), main)[main[0].name].cpu().numpy()

    # Left out as in training, or if it never was, the mean.
    absent = torch.zeros_like(metadata) if fusion.dropout else metadata.mean(0).expand_as(metadata)
    values = {
        "pictures and metadata": [answer(pictures, metadata)],
        "pictures only": [answer(pictures, absent)],
        "metadata only": [answer(pictures.mean(0).expand_as(pictures), metadata)],
    }
    for name in dict.fromkeys(chain(*net.columns.values())):
        generator = np.random.default_rng([*seed, len(values)])
        orders = [torch.from_numpy(generator.permutation(len(rows))).to(device) for _ in range(repeats)]
        shuffled = [answer(pictures, fusion.encode(net.shuffle(batch, name, order))) for order in orders]
        values[f"{name} shuffled"] = shuffled
    return {name: np.stack(arrays) for name, arrays in values.items()}

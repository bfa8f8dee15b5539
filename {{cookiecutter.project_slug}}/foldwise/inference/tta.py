"""Test-time augmentation: an image is predicted in several views, and the probabilities are averaged."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foldwise.errors import Refusal
from foldwise.inference.views import CROPS, SYMMETRIES, View
from foldwise.models.network import Batch
from foldwise.tasks import Task

MEANS = ("arithmetic", "geometric")
KEYS = ("views", "mean", "scales", "crops", "draws", "transforms")


class TTA:
    """The views in which images are predicted: each symmetry at each scale and in each crop, or of random draws.

    Args:
        views: names of `SYMMETRIES`, each once.
        mean: "arithmetic" or "geometric", see `Task.average`.
        scales: of the network's input; 1 is its own size.
        crops: names of `CROPS`; they come besides the scales.
        draws: times that `transforms` are drawn for each image; 0: the image as it is.
        transforms: of albumentations, as in configs/augmentation.

    Raises:
        Refusal: everything that is wrong with the choices.
    """

    def __init__(
        self,
        views: Sequence[str] = ("identity",),
        mean: str = "arithmetic",
        scales: Sequence[float] = (1.0,),
        crops: Sequence[str] = (),
        draws: int = 0,
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        problems = _list_problems("views", views, SYMMETRIES) + _list_problems("crops", crops, CROPS)
        if not isinstance(scales, Sequence) or not all(isinstance(s, int | float) and 0.1 <= s <= 4 for s in scales):
            problems.append(f"tta.scales is {scales!r}; it must be a list of numbers from 0.1 to 4")
        elif (not scales and not crops) or not views:
            problems.append("the TTA has no views: tta.views, and tta.scales or tta.crops, must not be empty")
        if mean not in MEANS:
            problems.append(f"tta.mean is {mean!r}; it must be one of {', '.join(MEANS)}")
        if not isinstance(draws, int) or draws < 0 or bool(draws) != bool(transforms):
            problems.append(
                f"tta.draws is {draws!r}; it is a number from 0, above 0 just where tta.transforms has some"
            )
        if problems:
            raise Refusal("; ".join(problems))
        zooms = [*((scale, None) for scale in scales), *((1.0, crop) for crop in crops)]
        self.views = tuple(View(symmetry, *zoom) for zoom in zooms for symmetry in views)
        self.mean = mean
        self.draws = draws
        self.transforms = tuple(transforms)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TTA":
        """The TTA of a file in configs/tta.

        Raises:
            Refusal: unknown keys, or as the class.
        """
        unknown = [str(key) for key in config if key not in KEYS]
        if unknown or "views" not in config or "mean" not in config:
            raise Refusal(f"a TTA has views and mean, and may have {', '.join(KEYS[2:])}; this one has {list(config)}")
        return cls(**config)

    @classmethod
    def from_names(cls, names: Sequence[str], mean: str) -> "TTA":
        """The TTA of views by their names, as the header of a prediction has them; not of random draws.

        Raises:
            Refusal: a name of no view, or an unknown mean.
        """
        tta = cls(mean=mean)
        tta.views = tuple(View.from_name(name) for name in names)
        return tta

    @property
    def names(self) -> list[str]:
        """A name for each view, of each draw."""
        names = [view.name for view in self.views]
        return [f"{name}#{draw}" for draw in range(self.draws) for name in names] if self.draws else names

    def describe(self, tiles: bool) -> dict[str, Any]:
        """For the header of a prediction: views and mean, and whether it was made in tiles."""
        return {"views": self.names, "mean": self.mean, **({"tiles": True} if tiles else {})}

    @property
    def name(self) -> str:
        """The `view` of the averaged prediction: that of the one view, or "mean"."""
        return self.names[0] if len(self.names) == 1 else "mean"

    @property
    def resamples(self) -> bool:
        """Whether views have other sizes than the network's own."""
        return any(view.scale != 1 for view in self.views)

    def predict(
        self,
        values: Callable[[Batch], dict[str, Tensor]],
        batch: Batch,
        spatial: Collection[str],
        tasks: Mapping[str, Task],
    ) -> dict[str, list[Tensor]]:
        """The values of each output in each view: (B, C), or maps (B, C, H, W) on the image as it lies in the batch.

        Views of one shape go through `values` as one batch; what is not spatial is the same in each of them.

        Args:
            values: a batch to the values of each output.
            spatial: names of the batch's spatial fields.
            tasks: of each output, which turns its values back.
        """
        size = next((batch[name].shape[-2:] for name in batch if name in spatial), None)
        if self.names == ["identity"] or size is None:
            return {name: [value] * len(self.views) for name, value in values(batch).items()}
        inputs = [{name: view.forward(batch[name]) for name in spatial} for view in self.views]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for index, fields in enumerate(inputs):
            alike.setdefault(tuple((value.shape, value.dtype) for value in fields.values()), []).append(index)
        results: dict[str, dict[int, Tensor]] = {name: {} for name in tasks}
        for indices in alike.values():
            together = {
                name: torch.cat([inputs[index][name] for index in indices])
                if name in spatial
                else value.expand(len(indices), *value.shape).flatten(0, 1)
                for name, value in batch.items()
            }
            for name, value in values(together).items():
                for index, own in zip(indices, value.chunk(len(indices)), strict=True):
                    results[name][index] = tasks[name].undo(own, self.views[index], size)
        return {name: [found[index] for index in range(len(inputs))] for name, found in results.items()}


def load_tta(path: Path) -> TTA:
    """The TTA of a file such as `configs/tta/d4.yaml`, which needs no Hydra.

    Raises:
        Refusal: no such file, not YAML, or as `TTA.from_config`.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise Refusal(f"there is no TTA {path}" + (f"; {path.parent} has {there}" if there else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid YAML ({error})") from error
    try:
        return TTA.from_config(values)
    except (Refusal, TypeError) as error:
        raise Refusal(f"{path}: {error}") from error


def _list_problems(key: str, names: Any, known: Mapping[str, Any]) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or len(set(map(str, names))) < len(names):
        return [f"tta.{key} is {names!r}; it must be a list of different names out of {', '.join(known)}"]
    unknown = [str(name) for name in names if name not in known]
    return [f"tta.{key} has {', '.join(unknown)}; there are {', '.join(known)}"] if unknown else []

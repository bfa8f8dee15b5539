"""Test-time augmentation: predict several views of an image and average the probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foldwise.errors import Refusal
from foldwise.files import is_number
from foldwise.tasks.views import CROPS, SYMMETRIES, View

MEANS = ("arithmetic", "geometric", "median")
KEYS = ("views", "mean", "scales", "crops", "frames", "margins", "draws", "transforms")


@dataclass(frozen=True)
class TTA:
    """Views to predict, and how to average them.

    Attributes:
        mean: one of `MEANS` that the task has, see `Task.average`.
        draws: random augmentations of each image by `transforms`; 0: none.
        transforms: albumentations, as in configs/augmentation.
    """

    views: tuple[View, ...] = (View("identity"),)
    mean: str = "arithmetic"
    draws: int = 0
    transforms: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def choose(
        cls,
        views: Sequence[str] = ("identity",),
        mean: str = "arithmetic",
        scales: Sequence[float] = (1.0,),
        crops: Sequence[str] = (),
        frames: int = 1,
        margins: Sequence[float] = (),
        draws: int = 0,
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> "TTA":
        """Combine each symmetry in `views` with each scale (factor of the network's input size) and each crop.

        Args:
            frames: above 1, so many sets of evenly spaced pictures of an item, in place of scales and crops.
            margins: around the boxes of `samples.crop`, in place of scales and crops.
        """
        problems = _list_problems("views", views, SYMMETRIES) + _list_problems("crops", crops, CROPS)
        if not isinstance(scales, Sequence) or not all(isinstance(s, int | float) and 0.1 <= s <= 4 for s in scales):
            problems.append(f"tta.scales is {scales!r}; it must be a list of numbers from 0.1 to 4")
        elif (not scales and not crops) or not views:
            problems.append("the TTA has no views: tta.views, and tta.scales or tta.crops, must not be empty")
        if mean not in MEANS:
            problems.append(f"tta.mean is {mean!r}; it must be one of {', '.join(MEANS)}")
        if not isinstance(draws, int) or draws < 0 or bool(draws) != bool(transforms):
            problems.append(f"tta.draws is {draws!r}; it must be above 0 with tta.transforms, and 0 without")
        if type(frames) is not int or frames < 1:
            problems.append(f"tta.frames is {frames!r}; it must be a whole number from 1")
        if not isinstance(margins, Sequence) or not all(is_number(margin) and 0 <= margin <= 1 for margin in margins):
            problems.append(f"tta.margins is {margins!r}; it must be a list of numbers from 0 to 1")
        elif len(set(margins)) < len(margins):
            problems.append(f"tta.margins has a number twice: {list(margins)}")
        reading = [name for name, given in {"frames": frames != 1, "margins": margins}.items() if given]
        if reading and (list(scales) != [1.0] or crops or draws or len(reading) > 1):
            problems.append(f"tta.{reading[0]} is combined with tta.views alone: leave out what else there is")
        if problems:
            raise Refusal("; ".join(problems))
        zooms: list[dict[str, Any]] = [*({"scale": scale} for scale in scales), *({"crop": crop} for crop in crops)]
        zooms = zooms if frames == 1 else [{"frames": (first, frames)} for first in range(frames)]
        zooms = [{"margin": float(margin)} for margin in margins] or zooms
        return cls(tuple(View(name, **zoom) for zoom in zooms for name in views), mean, draws, tuple(transforms))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TTA":
        """Make the TTA of a file in configs/tta."""
        unknown = [key for key in config if key not in KEYS]
        if unknown or "views" not in config or "mean" not in config:
            raise Refusal(f"a TTA has views and mean, and may have {', '.join(KEYS[2:])}; this one has {list(config)}")
        return cls.choose(**config)

    @classmethod
    def from_names(cls, names: Sequence[str], mean: str) -> "TTA":
        """Make the TTA from view names of a prediction header; refuse random draws and unknown names."""
        return cls(tuple(View.from_name(name) for name in names), cls.choose(mean=mean).mean)

    @property
    def frames(self) -> int:
        """Sets of pictures that an item is predicted from, see `foldwise.inference.weights.with_frames`."""
        return max(1 if view.frames is None else view.frames[1] for view in self.views)

    @property
    def margins(self) -> list[float | None]:
        """Different margins of the views; None is the run's own."""
        return list(dict.fromkeys(view.margin for view in self.views))

    @property
    def names(self) -> list[str]:
        names = [view.name for view in self.views]
        return [f"{name}#{draw}" for draw in range(self.draws) for name in names] if self.draws else names

    @property
    def name(self) -> str:
        """Name of the averaged prediction: the only view, or "mean"."""
        return self.names[0] if len(self.names) == 1 else "mean"

    def describe(self, tiles: bool) -> dict[str, Any]:
        return {"views": self.names, "mean": self.mean, **({"tiles": True} if tiles else {})}


def load_tta(path: Path) -> TTA:
    """Read a TTA file such as `configs/tta/d4.yaml`, without Hydra."""
    import yaml

    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise Refusal(f"there is no TTA {path}" + (f"; {path.parent} has {known}" if known else ""))
    try:
        return TTA.from_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is not valid YAML ({error})") from error
    except (Refusal, TypeError) as error:
        raise Refusal(f"{path}: {error}") from error


def _list_problems(key: str, names: Any, known: Mapping[str, Any]) -> list[str]:
    if isinstance(names, str) or not isinstance(names, Sequence) or len(set(map(str, names))) < len(names):
        return [f"tta.{key} is {names!r}; it must be a list of different names out of {', '.join(known)}"]
    unknown = [str(name) for name in names if name not in known]
    return [f"tta.{key} has unknown {', '.join(unknown)}; choose from {', '.join(known)}"] if unknown else []

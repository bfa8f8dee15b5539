"""Augmentation of one sample as a pure function of (sample, seed), on albumentations transforms."""

import copy
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from foldwise.data.fields import SPATIAL, Field
from foldwise.errors import Refusal

if TYPE_CHECKING:
    from albumentations.core.composition import TransformType


class Augmentation:
    """Transforms applied one after another to all spatial fields of a sample together.

    Args:
        transforms: albumentations transforms or their compositions (OneOf, Sequential, ...). Their `fill_mask` is
            overwritten: pixels that geometry exposes get `ignore_index`. Dropouts keep theirs.
        fields: of the samples; pixels of images change in colour and place, of maps and masks in place alone.
        ignore_index: mask value that is neither trained nor scored, in [0, 65535].

    Raises:
        Refusal: an argument that a transform does not have (albumentations itself would go on without it).
    """

    def __init__(
        self, transforms: Sequence["TransformType"], fields: Mapping[str, Field], ignore_index: int = 255
    ) -> None:
        from albumentations import Compose

        if not 0 <= ignore_index <= 65535:
            raise Refusal(f"data.ignore_index must fit an 8 or 16 bit mask, but is {ignore_index}")
        self.ignore_index = ignore_index
        self.kinds = {name: field.kind for name, field in fields.items() if field.spatial}
        # Albumentations' own names mean something else, such as masks and volume; but transforms that look at the mask
        # look at "mask".
        self.inner = {name: f"field_{name}" for name in self.kinds}
        self.inner |= dict.fromkeys([name for name, kind in self.kinds.items() if kind == "mask"][:1], "mask")
        # Names that it does not know would come back as they went in, without a word.
        targets = {
            self.inner[name]: "image" if kind == "image" else "mask"
            for name, kind in self.kinds.items()
            if self.inner[name] != "mask"
        }
        self.compose = Compose(list(transforms), additional_targets=targets)
        self._check_arguments()
        self._prepare_masks(self.compose, ignore_index, "INTER_NEAREST_EXACT")
        # Maps are numbers: they are interpolated, and 0 where geometry exposes them.
        self.of_maps: Any = None
        if "map" in self.kinds.values():
            self.of_maps = Compose(copy.deepcopy(list(transforms)), additional_targets=targets)
            self._prepare_masks(self.of_maps, 0, "INTER_LINEAR")

    def __call__(self, sample: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Augment a sample: images (H, W, C) uint8 or float32 in [0, 1], masks (H, W) uint8 or uint16, maps (H, W, C).

        The outcome depends on the arguments alone. Every picture of a stack, and pictures of different sizes, are drawn
        with the same seed. Dtypes stay, except that a uint8 mask becomes uint16 where the ignore index needs it; sizes
        may change.

        Raises:
            Refusal: a mask or map of another size than every image.
        """
        spatial = {name: sample[name] for name in self.kinds if name in sample}
        stacks = {name: value for name, value in spatial.items() if isinstance(value, list)}
        images = [value for name, value in spatial.items() if self.kinds[name] == "image"]
        pictures = [picture for value in images for picture in (value if isinstance(value, list) else [value])]
        apart = len(set(map(_look, pictures))) > 1
        result: dict[str, Any] = {}
        result |= self._augment({name: value for name, value in spatial.items() if name not in stacks}, seed, apart)
        for length in dict.fromkeys(map(len, stacks.values())):
            together = {name: value for name, value in stacks.items() if len(value) == length}
            found = [
                self._augment({name: value[number] for name, value in together.items()}, seed, apart)
                for number in range(length)
            ]
            result |= {name: [picture[name] for picture in found] for name in together}
        return {**sample, **result}

    def _augment(self, arrays: Mapping[str, np.ndarray], seed: int, apart: bool) -> dict[str, np.ndarray]:
        """Arrays that are no stacks, those of one size together."""
        result: dict[str, np.ndarray] = {}
        for size in dict.fromkeys(array.shape[:2] for array in arrays.values()):
            alike = {name: array for name, array in arrays.items() if array.shape[:2] == size}
            of_kind = {kind: [name for name in alike if self.kinds[name] == kind] for kind in SPATIAL}
            images = of_kind["image"]
            if not images:
                sizes = ", ".join(f"{name} {array.shape[:2]}" for name, array in arrays.items())
                raise Refusal(f"{', '.join(alike)} must have the size of an image to be augmented with it ({sizes})")
            # Noise is drawn for one number of channels and one dtype.
            for look in dict.fromkeys(_look(alike[name]) for name in images):
                own = [name for name in images if _look(alike[name]) == look]
                result |= self._apply(self.compose, alike, [*own, *of_kind["mask"]], seed, apart)
            if of_kind["map"]:
                names = [images[0], *of_kind["mask"], *of_kind["map"]]
                found = self._apply(self.of_maps, alike, names, seed, apart)
                result |= {name: found[name] for name in of_kind["map"]}
        return result

    def _apply(
        self, compose: Any, arrays: Mapping[str, np.ndarray], names: Sequence[str], seed: int, apart: bool
    ) -> dict[str, np.ndarray]:
        """One call of albumentations with some of the arrays, an image first."""
        # One pair of generators for all transforms. `Compose.set_random_seed` would give each its own pair with the
        # same seed, so that two flips of probability 0.5 always happen together.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if apart:
            _part(compose, seed, itertools.count())
        first, *others = names
        found = compose(image=arrays[first], **{self.inner[name]: self._wide(name, arrays[name]) for name in others})
        return {first: found["image"]} | {name: found[self.inner[name]] for name in others}

    def _wide(self, name: str, array: np.ndarray) -> np.ndarray:
        """A mask whose dtype holds the ignore index."""
        if self.kinds[name] == "mask" and self.ignore_index > np.iinfo(array.dtype).max:
            return array.astype(np.uint16)
        return array

    def check(self, channels: int, dtype: Any, hw: tuple[int, int], tries: int = 3) -> None:
        """Run every transform by itself, with probability 1, on images such as the data's.

        Args:
            channels: of the image.
            dtype: np.uint8 or np.float32.
            hw: a typical height and width of the stored images.

        Raises:
            Refusal: names every transform that fails, or that changes the channels or the dtype.
        """
        shape = (*hw, channels)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else rng.random(shape, np.float32)
        mask = np.zeros(hw, np.uint8)
        problems = []
        for leaf in leaves(self.compose):
            leaf = copy.deepcopy(leaf)
            name = type(leaf).__name__
            for seed in range(tries):  # some parameters fail where others pass
                leaf.set_random_state(np.random.default_rng(seed), random.Random(seed))
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", UserWarning)  # some only warn that they do nothing
                        result = leaf(force_apply=True, image=image.copy(), mask=mask.copy())["image"]
                except Exception as error:  # whatever a transform raises, it goes into the list
                    problems.append(f"{name} fails: {' '.join(str(error).split())[:200] or type(error).__name__}")
                    break
                if result.ndim != 3 or result.shape[2] != channels or result.dtype != image.dtype:
                    problems.append(f"{name} gives {result.shape} {result.dtype}")
                    break
                if result.dtype.kind == "f" and not (result.min() >= 0 and result.max() <= 1):  # NaN is neither
                    problems.append(f"{name} leaves the range [0, 1]: {result.min():.3g} to {result.max():.3g}")
                    break
        if problems:
            raise Refusal(
                f"the augmentation cannot take images of shape {shape} {np.dtype(dtype).name}; "
                "remove these transforms from its YAML file, or set data.mode:\n  " + "\n  ".join(problems)
            )

    def _check_arguments(self) -> None:
        problems = [
            f"{type(transform).__name__} has no argument {', '.join(transform.invalid_args)}"
            for transform in leaves(self.compose)
            if transform.invalid_args
        ]
        if problems:
            raise Refusal("the augmentation cannot be built: " + "; ".join(problems))

    def _prepare_masks(self, compose: Any, fill: int, interpolation: str) -> None:
        import cv2
        from albumentations.augmentations.dropout.transforms import BaseDropout

        wanted = getattr(cv2, interpolation)
        for transform in leaves(compose):
            # A dropout's hole is still the thing that the mask says it is, unless its config says otherwise.
            if hasattr(transform, "fill_mask") and not isinstance(transform, BaseDropout):
                transform.fill_mask = fill
            # Transforms that resize offer it; their default INTER_NEAREST shifts a mask by up to a pixel.
            field = transform.InitSchema.model_fields.get("mask_interpolation")
            if field and wanted in get_args(field.annotation):
                transform.mask_interpolation = wanted


def _look(image: np.ndarray) -> tuple[Any, ...]:
    """What noise is drawn for: height, width, channels and dtype."""
    return image.shape, image.dtype


def _part(transform: Any, seed: int, numbers: Iterator[int]) -> None:
    """Generators of its own for each transform and composition.

    Noise takes as many random numbers as an image has values, so that from one stream for all, images of different
    sizes or channels would not be turned alike after it. It takes ten times as long as one pair.
    """
    from albumentations import BaseCompose

    own = (seed << 16) + next(numbers)
    transform.set_random_state(np.random.default_rng(own), random.Random(own))
    if isinstance(transform, BaseCompose):
        for child in transform.transforms:
            _part(child, seed, numbers)


def build_transforms(configs: Sequence[Mapping[str, Any]]) -> list["TransformType"]:
    """Transforms from entries such as those of configs/augmentation, without Hydra: only classes of albumentations.

    Raises:
        Refusal: a `_target_` that is none.
    """
    import albumentations

    built = []
    for config in configs:
        module, _, name = str(config.get("_target_")).rpartition(".")
        kind = getattr(albumentations, name, None) if module == "albumentations" else None
        if not (
            isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform | albumentations.BaseCompose)
        ):
            raise Refusal(f"{config.get('_target_')} is not a transform of albumentations")
        arguments = {key: value for key, value in config.items() if key != "_target_"}
        if "transforms" in arguments:
            arguments["transforms"] = build_transforms(arguments["transforms"])
        built.append(kind(**arguments))
    return built


def leaves(transform: Any) -> Iterator[Any]:
    """The transforms inside a composition, however deeply nested."""
    from albumentations import BaseCompose

    if isinstance(transform, BaseCompose):
        for child in transform.transforms:
            yield from leaves(child)
    else:
        yield transform

"""Augment samples with albumentations, as a pure function of (sample, seed)."""

import copy
import hashlib
import itertools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from foldwise.data.fields import MASKS, Field
from foldwise.errors import Refusal

if TYPE_CHECKING:
    from albumentations.core.composition import TransformType


def sample_seed(seed: int, epoch: int, id: str, repeat: int = 0) -> int:
    """Hash to [0, 2**32), stable across processes and Python versions."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{repeat}:{id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


class Augmentation:
    """Applies transforms to all spatial fields of a sample together: colour to images only, geometry to all.

    Args:
        transforms: albumentations transforms or compositions (OneOf, Sequential, ...). Except in dropouts, their
            `fill_mask` becomes `ignore_index`: the mask value of pixels that geometry exposes.
        ignore_index: mask value that is neither trained nor scored, in [0, 65535].
    """

    def __init__(
        self, transforms: Sequence["TransformType"], fields: Mapping[str, Field], ignore_index: int = 255
    ) -> None:
        from albumentations import Compose

        if not 0 <= ignore_index <= 65535:
            raise Refusal(f"data.ignore_index must fit an 8 or 16 bit mask, but is {ignore_index}")
        self.ignore_index = ignore_index
        self.separate = any(field.separate for field in fields.values())
        self.kinds = {name: field.kind for name, field in fields.items() if field.spatial}
        # Prefixed, since albumentations gives some names (masks, volume) a meaning. The first mask is called "mask":
        # transforms that use the mask look for that name.
        self.inner = {name: f"field_{name}" for name in self.kinds}
        self.inner |= dict.fromkeys([name for name, kind in self.kinds.items() if kind == "mask"][:1], "mask")
        # Albumentations returns fields that it does not know unchanged, without a warning.
        targets = {
            self.inner[name]: "mask" if kind == "map" else kind
            for name, kind in self.kinds.items()
            if self.inner[name] != "mask"
        }
        self.compose = Compose(list(transforms), additional_targets=targets)
        problems = [  # albumentations itself only warns
            f"{type(transform).__name__} has no argument {', '.join(transform.invalid_args)}"
            for transform in leaves(self.compose)
            if transform.invalid_args
        ]
        if problems:
            raise Refusal("the augmentation cannot be built: " + "; ".join(problems))
        _set_masks(self.compose, ignore_index, "INTER_NEAREST_EXACT")
        # Maps are interpolated, and filled with 0.
        self.compose_maps: Any = None
        if "map" in self.kinds.values():
            self.compose_maps = Compose(copy.deepcopy(list(transforms)), additional_targets=targets)
            _set_masks(self.compose_maps, 0, "INTER_LINEAR")

    def __call__(self, sample: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Augment images (H, W, C) uint8 or float32 in [0, 1], masks (H, W) uint8 or uint16, and maps and
        masks per class (H, W, C).

        All images of a sample and of its stacks get the same random transform, whatever their size; if a field is
        `separate`, only those with the same place in the stacks. Sizes may change. Dtypes stay, except that a uint8
        mask becomes uint16 if the ignore index does not fit. Refuses masks and maps that do not have the size of an
        image.
        """
        spatial = {name: sample[name] for name in self.kinds if name in sample}
        stacks = {name: value for name, value in spatial.items() if isinstance(value, list)}
        values = [value for name, value in spatial.items() if self.kinds[name] == "image"]
        images = [image for value in values for image in (value if isinstance(value, list) else [value])]
        seed_each = len({(image.shape, image.dtype) for image in images}) > 1
        result: dict[str, Any] = self._augment(
            {name: value for name, value in spatial.items() if name not in stacks}, seed, seed_each
        )
        for length in dict.fromkeys(map(len, stacks.values())):
            same_length = {name: value for name, value in stacks.items() if len(value) == length}
            seeds = [sample_seed(seed, index, "picture") if self.separate else seed for index in range(length)]
            augmented = [
                self._augment({name: value[index] for name, value in same_length.items()}, own, seed_each)
                for index, own in enumerate(seeds)
            ]
            result |= {name: [each[name] for each in augmented] for name in same_length}
        return {**sample, **result}

    def _augment(self, arrays: Mapping[str, np.ndarray], seed: int, seed_each: bool) -> dict[str, np.ndarray]:
        """Augment single arrays (no stacks); those of the same size together."""
        result: dict[str, np.ndarray] = {}
        for size in dict.fromkeys(array.shape[:2] for array in arrays.values()):
            same_size = {name: array for name, array in arrays.items() if array.shape[:2] == size}
            images, maps = ([name for name in same_size if self.kinds[name] == kind] for kind in ("image", "map"))
            masks = [name for name in same_size if self.kinds[name] in MASKS]
            if not images:
                sizes = ", ".join(f"{name} {array.shape[:2]}" for name, array in arrays.items())
                raise Refusal(f"{', '.join(same_size)} must have the size of an image to be augmented ({sizes})")
            # A call draws noise for a single number of channels and dtype.
            layouts = {name: (same_size[name].shape, same_size[name].dtype) for name in images}
            for layout in dict.fromkeys(layouts.values()):
                same_layout = [name for name in images if layouts[name] == layout]
                result |= self._apply(self.compose, same_size, [*same_layout, *masks], seed, seed_each)
            if maps:
                augmented = self._apply(self.compose_maps, same_size, [images[0], *masks, *maps], seed, seed_each)
                result |= {name: augmented[name] for name in maps}
        return result

    def _apply(
        self, compose: Any, arrays: Mapping[str, np.ndarray], names: Sequence[str], seed: int, seed_each: bool
    ) -> dict[str, np.ndarray]:
        """Call albumentations with the named arrays, an image first."""
        # One pair of generators for all transforms. `Compose.set_random_seed` would seed every transform alike: two
        # flips of probability 0.5 would always happen together.
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if seed_each:
            _seed_each(compose, seed, itertools.count())
        first, *others = names
        inputs = {name: arrays[name] for name in others}
        layers = [name for name in others if self.kinds[name] == "masks"]  # albumentations wants them first: (C, H, W)
        for name, array in inputs.items():  # the ignore index must fit the mask's dtype
            integers = self.kinds[name] in MASKS and array.dtype.kind == "u"
            if integers and self.ignore_index > np.iinfo(array.dtype).max:
                inputs[name] = array.astype(np.uint16)
        inputs |= {name: np.ascontiguousarray(np.moveaxis(inputs[name], -1, 0)) for name in layers}
        augmented = compose(image=arrays[first], **{self.inner[name]: array for name, array in inputs.items()})
        result = {first: augmented["image"]} | {name: augmented[self.inner[name]] for name in others}
        return result | {name: np.moveaxis(np.asarray(result[name]), 0, -1) for name in layers}

    def check(self, channels: int, dtype: Any, hw: tuple[int, int], tries: int = 3) -> None:
        """Run each transform alone, with probability 1; refuse those that fail or change channels, dtype or range."""
        shape = (*hw, channels)
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else rng.random(shape, np.float32)
        mask = np.zeros(hw, np.uint8)
        problems = []
        for leaf in leaves(self.compose):
            leaf = copy.deepcopy(leaf)
            name = type(leaf).__name__
            for seed in range(tries):  # some random parameters fail, others pass
                leaf.set_random_state(np.random.default_rng(seed), random.Random(seed))
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", UserWarning)  # some only warn that they do nothing
                        result = leaf(force_apply=True, image=image.copy(), mask=mask.copy())["image"]
                except Exception as error:  # transforms raise anything; list it
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


def _set_masks(compose: Any, fill: int, interpolation: str) -> None:
    import cv2
    from albumentations.augmentations.dropout.transforms import BaseDropout

    flag = getattr(cv2, interpolation)
    for transform in leaves(compose):
        # A dropout hides pixels but does not change their class, unless its config says so.
        if hasattr(transform, "fill_mask") and not isinstance(transform, BaseDropout):
            transform.fill_mask = fill
        # The default of resizing transforms, INTER_NEAREST, shifts a mask by up to a pixel.
        field = transform.InitSchema.model_fields.get("mask_interpolation")
        if field and flag in get_args(field.annotation):
            transform.mask_interpolation = flag


def _seed_each(transform: Any, seed: int, numbers: Iterator[int]) -> None:
    """Give each transform its own generators; this takes ten times as long as a shared pair.

    Noise draws one random number per value of the image. With a shared stream, images of different sizes or channels
    would get different geometry after it.
    """
    from albumentations import BaseCompose

    transform_seed = (seed << 16) + next(numbers)
    transform.set_random_state(np.random.default_rng(transform_seed), random.Random(transform_seed))
    if isinstance(transform, BaseCompose):
        for child in transform.transforms:
            _seed_each(child, seed, numbers)


def build_transforms(configs: Sequence[Mapping[str, Any]]) -> list["TransformType"]:
    """Build transforms from config entries without Hydra; refuses a `_target_` outside albumentations."""
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
    """Iterate over the transforms of a composition, nested ones included."""
    from albumentations import BaseCompose

    if isinstance(transform, BaseCompose):
        for child in transform.transforms:
            yield from leaves(child)
    else:
        yield transform

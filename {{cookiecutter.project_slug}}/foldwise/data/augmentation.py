"""Augmentation of one sample as a pure function of (image, mask, seed), on albumentations transforms."""

import copy
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from foldwise.errors import Refusal

if TYPE_CHECKING:
    from albumentations.core.composition import TransformType


class Augmentation:
    """Transforms applied one after another.

    Args:
        transforms: albumentations transforms or their compositions (OneOf, Sequential, ...). Their `fill_mask` is
            overwritten: pixels that geometry exposes get `ignore_index`. Dropouts keep theirs.
        ignore_index: mask value that is neither trained nor scored, in [0, 65535].

    Raises:
        Refusal: an argument that a transform does not have (albumentations itself would go on without it).
    """

    def __init__(self, transforms: Sequence["TransformType"], ignore_index: int = 255) -> None:
        from albumentations import Compose

        if not 0 <= ignore_index <= 65535:
            raise Refusal(f"data.ignore_index must fit an 8 or 16 bit mask, but is {ignore_index}")
        self.ignore_index = ignore_index
        self.compose = Compose(list(transforms))
        self._check_arguments()
        self._prepare_masks()

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Augment an image (H, W, C) uint8 or float32 in [0, 1], and its mask (H, W) uint8 or uint16.

        The outcome depends on the arguments alone. Dtypes stay, except that a uint8 mask becomes uint16 where the
        ignore index needs it; the size may change.
        """
        # One pair of generators for all transforms. `Compose.set_random_seed` would give each its own pair with the
        # same seed, so that two flips of probability 0.5 always happen together.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if mask is None:
            return self.compose(image=image)["image"], None
        if self.ignore_index > np.iinfo(mask.dtype).max:
            mask = mask.astype(np.uint16)
        result = self.compose(image=image, mask=mask)
        return result["image"], result["mask"]

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

    def _prepare_masks(self) -> None:
        import cv2
        from albumentations.augmentations.dropout.transforms import BaseDropout

        for transform in leaves(self.compose):
            # A dropout's hole is still the thing that the mask says it is, unless its config says otherwise.
            if hasattr(transform, "fill_mask") and not isinstance(transform, BaseDropout):
                transform.fill_mask = self.ignore_index
            # Transforms that resize offer it; their default INTER_NEAREST shifts a mask by up to a pixel.
            interpolation = transform.InitSchema.model_fields.get("mask_interpolation")
            if interpolation and cv2.INTER_NEAREST_EXACT in get_args(interpolation.annotation):
                transform.mask_interpolation = cv2.INTER_NEAREST_EXACT


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

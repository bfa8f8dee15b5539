"""Mixup and CutMix on a batch, on its device, from torch's global random numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foldwise.data.batches import unit_range
from foldwise.data.fields import Field
from foldwise.errors import Refusal
from foldwise.models.network import Batch


class Mix:
    """Mix every sample of a batch with its neighbour, each field by its kind.

    Images, maps and values are mixed by share; under CutMix, spatial fields are cut instead. Masks have no shares:
    mixup refuses them. Codes come twice, as they were and as `<name>_other`, with `batch["lam"]`, the share of the
    first. Where both are on, each batch takes one of them with equal chance.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha) distribution (https://arxiv.org/abs/1710.09412); 0 is off.
        cutmix: alpha of CutMix (https://arxiv.org/abs/1905.04899); 0 is off.
        fields: of the batch.
        targets: fields of values that a sample's weight counts for: it weighs in the mixed target by its weight, as it
            would in the unmixed loss.

    Raises:
        Refusal: fields that cannot be mixed.
    """

    def __init__(
        self, mixup: float, cutmix: float, fields: Mapping[str, Field], targets: Sequence[str] = ("target",)
    ) -> None:
        if mixup < 0 or cutmix < 0:
            raise Refusal(f"mixup and cutmix are at least 0, but are {mixup} and {cutmix}")
        masks = [name for name, field in fields.items() if field.kind == "mask"]
        ragged = [name for name, field in fields.items() if field.ragged]
        if mixup and masks:
            raise Refusal(
                f"mixup has no shares of classes for the pixels of {', '.join(masks)}: set augmentation.mixup=0 "
                "(cutmix can cut masks)"
            )
        if (mixup or cutmix) and ragged:
            raise Refusal(
                f"{', '.join(ragged)} have another length in each sample and cannot be mixed: "
                "set augmentation.mixup=0 augmentation.cutmix=0"
            )
        if cutmix and not any(field.spatial for field in fields.values()):
            raise Refusal("cutmix cuts pictures, and the samples have none: set augmentation.cutmix=0")
        self.fields, self.targets = fields, targets
        self.alphas = [(alpha, cuts) for alpha, cuts in ((mixup, False), (cutmix, True)) if alpha > 0]

    def __bool__(self) -> bool:
        return bool(self.alphas)

    def __call__(self, batch: Batch) -> Batch:
        """The mixed batch: shapes stay, integer images become float in [0, 1]; `weight` (B,) keeps its sum."""
        if not self.alphas:
            return batch
        alpha, cuts = self.alphas[int(torch.randint(len(self.alphas), ()))]
        lam = float(torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample(()))
        box = None
        if cuts:
            first = next(batch[name] for name, field in self.fields.items() if field.spatial)
            height, width = first.shape[-2:]
            box, lam = _draw_box(height, width, lam)
        weight = batch["weight"]
        mixed = {"weight": _share(weight, lam), "lam": weight.new_tensor(lam)}
        for name, field in self.fields.items():
            if field.kind == "codes":
                mixed[f"{name}_other"] = batch[name].roll(1, 0)
            else:
                mixed[name] = self._mix(name, field, batch, lam, box)
        return batch | mixed

    def _mix(self, name: str, field: Field, batch: Batch, lam: float, box: tuple[int, int, int, int] | None) -> Tensor:
        value = batch[name]
        if field.kind == "image":
            value = unit_range(value)
        if field.spatial and box is not None:
            top, left, bottom, right = box
            value = value.clone()
            value[..., top:bottom, left:right] = value.roll(1, 0)[..., top:bottom, left:right]
            return value
        if name not in self.targets:
            return _share(value, lam)
        weight = batch["weight"].view(-1, *[1] * (value.ndim - 1))
        total = _share(weight, lam).clamp(min=torch.finfo(weight.dtype).tiny)
        return _share(value * weight, lam) / total


def _share(value: Tensor, lam: float) -> Tensor:
    """The value of each sample by the share `lam`, and that of its neighbour by the rest."""
    return value.roll(1, 0).mul_(1.0 - lam).add_(value.mul(lam))


def _draw_box(height: int, width: int, lam: float) -> tuple[tuple[int, int, int, int], float]:
    """A box of about the share 1 - lam: (top, left, bottom, right), and the share outside of it."""
    x, y = int(torch.randint(width, size=(1,))), int(torch.randint(height, size=(1,)))
    half = 0.5 * (1.0 - lam) ** 0.5
    half_width, half_height = int(half * width), int(half * height)
    left, top = max(x - half_width, 0), max(y - half_height, 0)
    right, bottom = min(x + half_width, width), min(y + half_height, height)
    return (top, left, bottom, right), 1.0 - (bottom - top) * (right - left) / (height * width)

"""Mixup and CutMix of a batch, on its device, with torch's global random state."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foldwise.data.batches import unit_range
from foldwise.data.fields import MASKS, Field
from foldwise.errors import Refusal
from foldwise.models.network import Batch


class Mix:
    """Mixes every sample of a batch with the previous one; with mixup and CutMix on, each batch gets one at random.

    Images, maps and values are interpolated; CutMix pastes a box of the spatial fields instead. Codes are kept; the
    partner's are `<name>_other`, and `batch["lam"]` is the share of the first. Mixup refuses masks.

    Args:
        mixup: alpha of Beta(alpha, alpha) (https://arxiv.org/abs/1710.09412); 0 is off.
        cutmix: the same for CutMix (https://arxiv.org/abs/1905.04899).
        targets: value fields to mix in proportion to the sample weights, as the unmixed loss would count them.
    """

    def __init__(
        self, mixup: float, cutmix: float, fields: Mapping[str, Field], targets: Sequence[str] = ("target",)
    ) -> None:
        if mixup < 0 or cutmix < 0:
            raise Refusal(f"mixup and cutmix must be 0 or more, but are {mixup} and {cutmix}")
        masks = [name for name, field in fields.items() if field.kind in MASKS]
        ragged = [name for name, field in fields.items() if field.ragged]
        if mixup and masks:
            raise Refusal(
                f"mixup cannot mix the masks {', '.join(masks)}: "
                "choose mixing=none, or mixing=cutmix, which works with masks"
            )
        if (mixup or cutmix) and ragged:
            raise Refusal(
                f"{', '.join(ragged)} differ in length between samples and cannot be mixed: choose mixing=none"
            )
        if cutmix and not any(field.spatial for field in fields.values()):
            raise Refusal("cutmix needs images, and the samples have none: choose mixing=none or mixing=mixup")
        self.fields, self.targets = fields, targets
        self.alphas = [(alpha, cuts) for alpha, cuts in ((mixup, False), (cutmix, True)) if alpha > 0]

    def __bool__(self) -> bool:
        return bool(self.alphas)

    def __call__(self, batch: Batch) -> Batch:
        """Mix a batch: shapes stay, integer images become float in [0, 1], `weight` (B,) keeps its sum."""
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
        mixed = {"weight": _interpolate(weight, lam), "lam": weight.new_tensor(lam)}
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
            return _interpolate(value, lam)
        weight = batch["weight"].view(-1, *[1] * (value.ndim - 1))
        total = _interpolate(weight, lam).clamp(min=torch.finfo(weight.dtype).tiny)
        return _interpolate(value * weight, lam) / total


def _interpolate(value: Tensor, lam: float) -> Tensor:
    """lam * each sample + (1 - lam) * the previous sample."""
    return value.roll(1, 0).mul_(1.0 - lam).add_(value.mul(lam))


def _draw_box(height: int, width: int, lam: float) -> tuple[tuple[int, int, int, int], float]:
    """Draw a box (top, left, bottom, right) of about the share 1 - lam; also return the exact share outside."""
    x, y = int(torch.randint(width, size=(1,))), int(torch.randint(height, size=(1,)))
    half = 0.5 * (1.0 - lam) ** 0.5
    half_width, half_height = int(half * width), int(half * height)
    left, top = max(x - half_width, 0), max(y - half_height, 0)
    right, bottom = min(x + half_width, width), min(y + half_height, height)
    return (top, left, bottom, right), 1.0 - (bottom - top) * (right - left) / (height * width)

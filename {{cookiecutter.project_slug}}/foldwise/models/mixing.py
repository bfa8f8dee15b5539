"""Mixup and CutMix on a batch, on its device, from torch's global random numbers."""

import torch
from torch import Tensor

from foldwise.errors import Refusal


class Mix:
    """Mix every sample of a batch with its neighbour; for classification only.

    Where both are on, each batch takes one of them with equal chance.

    Args:
        mixup: alpha of mixup's Beta(alpha, alpha) distribution (https://arxiv.org/abs/1710.09412); 0 is off.
        cutmix: alpha of CutMix (https://arxiv.org/abs/1905.04899); 0 is off.
        task: refused where it is "segmentation".
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0, task: str = "multiclass") -> None:
        from torchvision.transforms.v2 import CutMix, MixUp

        if mixup < 0 or cutmix < 0:
            raise Refusal(f"mixup and cutmix are at least 0, but are {mixup} and {cutmix}")
        if task == "segmentation" and (mixup or cutmix):
            raise Refusal(
                "mixup and cutmix are for classification: set augmentation.mixup=0 augmentation.cutmix=0 for masks"
            )
        self.mixers = [mixer(alpha=alpha) for mixer, alpha in ((MixUp, mixup), (CutMix, cutmix)) if alpha > 0]

    def __bool__(self) -> bool:
        return bool(self.mixers)

    def __call__(self, image: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mix a batch.

        Args:
            image: (B, C, H, W); integer images become float in [0, 1] as `Normalized` does it.
            target: float (B, K).
            weight: float (B,). A sample weighs in the mixed target by its weight, as it would in the unmixed loss.

        Returns:
            Image, target and weight of the same shapes; the sum of the weights stays.
        """
        if not self.mixers:
            return image, target, weight
        if not image.is_floating_point():
            image = image.float() / 255
        mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
        weight = weight.unsqueeze(1)
        image, mixed = mixer(image, torch.cat([target * weight, weight], dim=1))
        weight = mixed[:, -1]
        return image, mixed[:, :-1] / weight.clamp(min=torch.finfo(weight.dtype).tiny).unsqueeze(1), weight

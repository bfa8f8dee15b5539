"""Image vectors from a pretrained network, to find near duplicates and shifts."""

from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch

from foldwise.data.batches import unit_range
from foldwise.errors import Refusal
from foldwise.files import sha256_file
from foldwise.inference.device import keep_freed_memory
from foldwise.models.networks import build_network

SIZE = 128  # 224 took three times as long and found fewer re-encoded copies


class NetworkDescriber:
    """Describes images by two middle stages of a timm network (strides 8 and 16 of a CNN), averaged over the image.

    These stages encode textures and parts, which two views of a scene share. The last stage encodes kinds of objects,
    which any two streets share. On the tiles of `duplicates.py`, at the best margin without a false alarm, the middle
    stages find 96 % of the frames, the pooled features before the classifier 63 %.
    """

    learned = True

    def __init__(self, network: str, weights: Path) -> None:
        if not weights.is_file():
            raise Refusal(f"--weights: there is no file {weights}")
        net: Any = build_network({"library": "timm", "name": network}, 3, 1, weights)
        if not hasattr(net, "forward_intermediates"):
            raise Refusal(f"--network: timm cannot return the stages of {network}; choose another network")
        config = timm.data.resolve_model_data_config(net)
        fixed = getattr(net, "default_cfg", {}).get("fixed_input_size", False)
        self.size = config["input_size"][1] if fixed else SIZE
        self.key = f"{network} {sha256_file(weights)}"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.net: Any = net.eval().to(self.device)
        self.mean, self.std = (
            torch.tensor(config[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB (B, size, size, 3) to float32 (B, D)."""
        x = unit_range(torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2))
        stages = self.net.forward_intermediates((x - self.mean) / self.std, indices=3, intermediates_only=True)
        return torch.cat([stage.mean(dim=(2, 3)) for stage in stages[:2]], dim=1).cpu().numpy()

"""Vectors of images from the middle of a pretrained network, by which near duplicates and shifts are found."""

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

SIZE = 128  # at 224 it takes three times as long, and fewer re-encoded copies were found


class NetworkDescriber:
    """Describes images by a timm network; see `foldwise.audit.descriptors.Describer`.

    The last two stages but one (strides 8 and 16 of a convolutional network), averaged over the image. They see
    textures and parts, which two views of one scene share; the last stage sees kinds of things, which any two
    streets share. Without a false alarm on the tiles of `duplicates.py`, these two stages find 96 % of the frames, the
    pooled features before the classifier 63 %, each with its own best margin.

    Args:
        network: one of timm's names.
        weights: a local file with its weights (safetensors or torch).
    """

    learned = True

    def __init__(self, network: str, weights: Path) -> None:
        if not weights.is_file():
            raise Refusal(f"--weights: there is no file {weights}")
        net: Any = build_network({"library": "timm", "name": network}, 3, 1, weights)
        if not hasattr(net, "forward_intermediates"):
            raise Refusal(f"--network: timm cannot give the stages of {network}; take another network")
        wanted = timm.data.resolve_model_data_config(net)
        fixed = getattr(net, "default_cfg", {}).get("fixed_input_size", False)
        self.size = wanted["input_size"][1] if fixed else SIZE
        self.key = f"{network} {sha256_file(weights)}"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.net: Any = net.eval().to(self.device)
        self.mean, self.std = (
            torch.tensor(wanted[name], device=self.device).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    @torch.inference_mode()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """float32 (B, D) of uint8 RGB (B, size, size, 3)."""
        x = unit_range(torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2))
        stages = self.net.forward_intermediates((x - self.mean) / self.std, indices=3, intermediates_only=True)
        return torch.cat([stage.mean(dim=(2, 3)) for stage in stages[:2]], dim=1).cpu().numpy()

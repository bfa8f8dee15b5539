"""What the network does with a batch. `model._target_` in configs/train.yaml names the class."""

from foldwise.models.network import Batch
from foldwise.models.networks import ImageNetwork


class Network(ImageNetwork):
    """A network of timm's or smp's, as `model` in the configuration describes it, in `self.net`.

    For a network of your own, subclass foldwise.models.network.Network: give it an encoder (build_encoder), and all
    else that it is made of. Its constructor takes `channels`, `outputs`, `weights`, `pretrained`, and whatever you add
    to the group `model`.
    """

    def forward(self, batch: Batch) -> Batch:
        """Raw outputs; images arrive normalised, (B, C, H, W)."""
        return {"logits": self.net(batch["image"])}

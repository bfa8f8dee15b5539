"""The network. `model._target_` in configs/train.yaml selects the class."""

from foldwise.models.network import Batch
from foldwise.models.networks import ImageNetwork


class Network(ImageNetwork):
    """A timm or smp network in `self.net`, built from the config group `model`, and the heads that `outputs` adds.

    To write your own, subclass foldwise.models.network.Network and create an encoder (see `build_encoder`) and a head.
    The constructor takes `channels`, `outputs`, `weights`, `pretrained`, and every setting you add to `model`.
    """

    def forward(self, batch: Batch) -> Batch:
        """Return raw outputs by name; images are normalised, (B, C, H, W)."""
        logits, features = self.heads.encode(self.net, batch["image"])  # without heads, logits is self.net(image)
        return {"logits": logits, **self.heads(features)}

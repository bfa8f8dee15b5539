"""The training losses. `module._target_` in configs/train.yaml selects the class."""

from torch import Tensor

from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch


class Module(TrainingModule):
    """Trains `self.network` with `self.loss`, which the config group `loss` selects, and the losses of `outputs`."""

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch as "loss".

        Other scalars are logged; entries of shape (B,) are passed to the sampling at the end of each epoch.

        Args:
            outputs: returned by the network.
            batch: the fields of the samples, "target", "weight" (B,), and "row" (B,), the index of each item.
        """
        loss = self.loss(outputs["logits"], batch["target"], batch["weight"])
        weighted, heads = self.head_losses(outputs, batch)  # of further `outputs` with a loss; 0 if there are none
        return {"loss": loss + weighted, **heads}

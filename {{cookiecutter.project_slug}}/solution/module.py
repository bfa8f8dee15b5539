"""What the losses are made of. `module._target_` in configs/train.yaml names the class."""

from torch import Tensor

from foldwise.models.module import TrainingModule
from foldwise.models.network import Batch


class Module(TrainingModule):
    """Trains `self.network` with `self.loss`, which the group `loss` of the configuration names."""

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """The loss of a batch; further scalars in the dict are logged, (B,) entries go to the sampling.

        Args:
            outputs: what the network gave.
            batch: the fields of the samples; "target", "weight" (B,) and "row" (B,) beside them.
        """
        return {"loss": self.loss(outputs["logits"], batch["target"], batch["weight"])}

"""Train the folds of an experiment and score them out of fold.

    python train.py experiment=baseline
    python train.py experiment=finetune data=competition model.weights=weights/my.safetensors
    python train.py experiment=baseline fold=0 optimizer.lr=3e-4

The same command again goes on where it stopped, or says that it is done.
"""

import os
import sys
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from competition.config import register_resolvers

register_resolvers()


@hydra.main(version_base=None, config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    """Compose, check, train."""
    from competition.training.run import train

    try:
        train(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)))
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last finished epoch", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

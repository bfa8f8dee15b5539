"""Train the folds of an experiment and score them out of fold.

    python train.py experiment=baseline
    python train.py experiment=finetune_cnn data=competition model.weights=weights/my.safetensors
    python train.py experiment=baseline fold=0 optimizer.lr=3e-4

The same command resumes where it stopped, or reports that it is done. Exit codes: 2 with an error message; 1 with the
traceback of a bug; 130 after Ctrl-C; 143 after SIGTERM; 75 after SIGUSR1, for schedulers that requeue (docs/faults.md).
"""

import sys
from typing import TYPE_CHECKING

from foldwise.command import exit_on_error, take_trust
from foldwise.config import check_overrides, register_resolvers, resolve_config
from foldwise.machinery import describe_edits
from foldwise.processes.exits import leave_on_signals
from foldwise.processes.server import start_server
from foldwise.settings import OWNER, train_help

if TYPE_CHECKING:
    from omegaconf import DictConfig

RESUME = "the same command resumes after the last finished epoch"


def main(config: "DictConfig") -> None:
    """Resolve the configuration and train."""
    leave_on_signals()
    if edits := describe_edits():
        print(edits, file=sys.stderr)
    from foldwise.training.run import train

    with exit_on_error(RESUME):
        train(resolve_config(config))


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(train_help(__doc__ or ""))
        sys.exit()
    sys.argv[1:] = take_trust(sys.argv[1:])
    if not any(argument.startswith("-") for argument in sys.argv[1:]):
        start_server()  # imports torch while this process composes and checks
    with exit_on_error(RESUME):
        check_overrides(sys.argv[1:])
        import hydra  # here: child processes import this file too and need no Hydra

        register_resolvers()
        hydra.main(version_base=None, config_path=str(OWNER), config_name="train")(main)()

"""Average the weights of a run's snapshots: one model a fold in place of several, for production.

examples:
  python train.py experiment=finetune_cnn phases=cycles
  python tools/average_weights.py runs/finetune_cnn-1a2b3c4d
  python evaluate.py runs/finetune_cnn-1a2b3c4d-averaged runs/finetune_cnn-1a2b3c4d
  python predict.py runs/finetune_cnn-1a2b3c4d-averaged --tta flips

What it writes is a run like any other. How many of the newest snapshots are averaged (with top_k, of the best) is
chosen for each fold on the other folds, and batch-norm statistics are estimated anew on the training images.
Interrupted, the same command goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="a finished run of two folds or more, trained with snapshots")
    parser.add_argument("--out", type=Path, help="folder to write (default: <run>-averaged)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    return parser.parse_args(arguments)


def main() -> None:
    """Average, and end with exit code 2 and a sentence when something is wrong with the input."""
    options = parse()
    out = options.out or options.run.with_name(f"{options.run.name}-averaged")
    with exit_on_error("the same command goes on from there"):
        from foldwise.config import read_config
        from foldwise.files import check_new

        check_new(out)
        read_config(options.run)  # a mistyped name is said at once, before torch is imported, which takes seconds
        from foldwise.training.averaged_run import average_weights, print_averaging

        print_averaging(average_weights(options.run, out, options.device))
    print(f"written   {out}")
    print(f"next      python evaluate.py {out} {options.run}")


if __name__ == "__main__":
    main()

"""Average the weights of a run's snapshots into one model per fold, for production.

examples:
  python train.py experiment=finetune_cnn phases=cycles
  python tools/average_weights.py runs/finetune_cnn-1a2b3c4d
  python evaluate.py runs/finetune_cnn-1a2b3c4d-averaged runs/finetune_cnn-1a2b3c4d
  python predict.py runs/finetune_cnn-1a2b3c4d-averaged --tta flips

The result is a run like any other. It averages the newest snapshots (with top_k, the best); for each fold, their number
is chosen on the other folds. BatchNorm statistics are re-estimated on the training images. If interrupted, the same
command resumes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser
from foldwise.shell import command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="a finished run with snapshots and at least two folds")
    parser.add_argument("--out", type=Path, help="folder to write (default: <run>-averaged)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    return parser.parse_args(arguments)


def main() -> None:
    """Average and print the scores; exit with code 2 on unusable input."""
    options = parse()
    out = options.out or options.run.with_name(f"{options.run.name}-averaged")
    with exit_on_error("the same command resumes"):
        from foldwise.config import read_config
        from foldwise.files import check_new

        check_new(out)
        read_config(options.run)  # fails on a mistyped name before the slow import of torch
        from foldwise.training.averaged_run import average_weights, print_averaging

        print_averaging(average_weights(options.run, out, options.device))
    print(f"written   {out}")
    print(f"next      {command('python', 'evaluate.py', out, options.run)}")


if __name__ == "__main__":
    main()

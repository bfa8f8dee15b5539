"""Label the training images for a smaller network, by teachers that saw neither the image nor the validation fold.

examples:
  python train.py run=runs/finetune_cnn-1a2b3c4d fold=pairs
  python tools/distill.py runs/finetune_cnn-1a2b3c4d --out data/competition/distilled.csv
  python train.py experiment=small_and_fast data=competition data.pseudo=data/competition/distilled.csv

The first trains the teachers, one for each two folds: 10 of five folds, 3 of three. The student of fold k learns of an
image of fold j from the one that was trained without both, so its out-of-fold score stays honest. Several runs are
averaged. With out-of-fold predictions there are targets for a student of every row too (fold=full).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py made, with fold=pairs")
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet to write")
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of a row in the loss, beside a real row's 1 (default: 1)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Write the table; exit with code 2 and a sentence when the input is wrong."""
    options = parse()
    with exit_on_error("nothing was written"):
        from foldwise.config import read_config
        from foldwise.data.holdout import FULL
        from foldwise.data.pseudo import provenance_path, student_name
        from foldwise.predictions.distillation import distill

        students = distill(options.runs, options.out, options.weight)
        data = read_config(options.runs[0])["data"]["name"]
    for student in students:
        whom = "every row" if student["student"] == student_name(FULL) else f"fold {student['student']}"
        print(f"student of {whom}: {student['rows']} images")
    print(f"\nWritten:\n  {options.out}\n  {provenance_path(options.out)}")
    print(f"\nNext:\n  python train.py experiment=small_and_fast data={data} data.pseudo={options.out}")


if __name__ == "__main__":
    main()

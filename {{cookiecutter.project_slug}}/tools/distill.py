"""Distil into a smaller network: soft labels from teachers that saw neither the image nor the student's fold.

examples:
  python train.py run=runs/finetune_cnn-1a2b3c4d fold=pairs
  python tools/distill.py runs/finetune_cnn-1a2b3c4d --out data/competition/distilled.csv
  python train.py experiment=small_and_fast data=competition data.pseudo=data/competition/distilled.csv

The first command trains the teachers, one per pair of folds: 10 for five folds, 3 for three. For the student of fold k,
an image of fold j is labelled by the teacher trained without both folds, so the out-of-fold score stays honest. Several
runs are averaged. If all runs have out-of-fold predictions, there are also targets for the full fit (fold=full).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser
from foldwise.shell import command, override


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("runs", nargs="+", type=Path, help="folders made by train.py with fold=pairs")
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet file to write")
    parser.add_argument(
        "--weight", type=float, default=1.0, help="weight of each row in the loss; real rows have 1 (default: 1)"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error("nothing was written"):
        from foldwise.config import read_config
        from foldwise.data.holdout import FULL
        from foldwise.data.pseudo import provenance_path, student_name
        from foldwise.predictions.distillation import distill

        students = distill(options.runs, options.out, options.weight)
        data = read_config(options.runs[0])["data"]["name"]
    for student in students:
        name = "the full fit" if student["student"] == student_name(FULL) else f"fold {student['student']}"
        print(f"student of {name}: {student['rows']} images")
    print(f"\nWritten:\n  {options.out}\n  {provenance_path(options.out)}")
    words = ("experiment=small_and_fast", override("data", data), override("data.pseudo", str(options.out)))
    print(f"\nNext:\n  {command('python', 'train.py', *words)}")


if __name__ == "__main__":
    main()

"""Pseudo-label unlabelled images for the student of each fold, with models that never saw that fold.

examples:
  python tools/pseudo_label.py runs/finetune_cnn-1a2b3c4d --confident 0.95 --out data/competition/pseudo.csv
  python tools/pseudo_label.py runs/a-1a2b3c4d runs/b-5e6f7a8b --test test-d4 --soft --out pseudo.parquet
  python tools/pseudo_label.py runs/a-1a2b3c4d --confident 0.95 --confident-class cat=0.9 dog=0.99 --out pseudo.csv

The student of fold k gets the mean predictions of the runs' fold-k models. Ensembles, and runs whose checkpoints were
chosen by validation, are refused: their predictions leak fold k's labels.

Segmentation: writes one mask per student and image into a folder beside the table, which must be under the data
root. Pixels below --confident get the value data.ignore_index; images without a confident pixel are left out. Soft
masks are not supported.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser
from foldwise.shell import command, override


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("runs", nargs="+", type=Path, help="folders made by train.py, after predict.py")
    parser.add_argument("--test", metavar="NAME", help="test predictions of each run (default: the only ones there)")
    parser.add_argument(
        "--table", type=Path, help="table of the predicted images (default: the first run's data.test_table)"
    )
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet file to write")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument(
        "--confident", type=float, metavar="P", help="hard labels for images or pixels at or above this confidence"
    )
    mode.add_argument("--soft", action="store_true", help="soft labels: all images, with probabilities as targets")
    parser.add_argument(
        "--confident-class",
        nargs="+",
        type=_threshold,
        default=[],
        metavar="CLASS=P",
        help="with --confident: thresholds of single classes",
    )
    parser.add_argument(
        "--weight", type=float, default=1.0, help="weight of each row in the loss; real rows have 1 (default: 1)"
    )
    options = parser.parse_args(arguments)
    if options.confident_class and options.confident is None:
        parser.error("--confident-class needs --confident")
    return options


def main() -> None:
    options = parse()
    with exit_on_error():
        label(options)


def label(options: argparse.Namespace) -> None:
    """Write the table of pseudo labels."""
    from foldwise.config import read_config
    from foldwise.data.pseudo import masks_folder, provenance_path
    from foldwise.predictions.pseudo.labelling import pseudo_label
    from foldwise.predictions.pseudo.rules import Confident, Soft
    from foldwise.reporting.console import print_students
    from foldwise.tasks import find_task

    rule = Soft() if options.soft else Confident(options.confident, dict(options.confident_class))
    print_students(pseudo_label(options.runs, options.out, rule, options.test, options.table, options.weight))
    config = read_config(options.runs[0])
    masks = [masks_folder(options.out)] if find_task(config["task"]).kind == "maps" else []
    print("\nWritten:")
    for path in (options.out, provenance_path(options.out), *masks):
        print(f"  {path}")
    experiment = [override("experiment", config["experiment_name"])] if config["experiment_name"] else []
    words = [*experiment, override("data", config["data"]["name"]), override("data.pseudo", str(options.out))]
    words += [override("model.weights", config["model"]["weights"])] if config["model"]["weights"] else []
    print(f"\nNext:\n  {command('python', 'train.py', *words)}")
    print("Add phases=both_then_train or phases=pseudo_then_train to end training on the real rows.")


def _threshold(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS=P, for example cat=0.9")
    return name, float(value)


if __name__ == "__main__":
    main()

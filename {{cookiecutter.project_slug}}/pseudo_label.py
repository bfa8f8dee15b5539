"""Label unlabelled images by the predictions of runs, for each fold's student by models that never saw its fold.

examples:
  python pseudo_label.py runs/finetune-1a2b3c4d --confident 0.95 --out data/competition/pseudo.csv
  python pseudo_label.py runs/a-1a2b3c4d runs/b-5e6f7a8b --test test-d4 --soft --out data/competition/pseudo.parquet
  python pseudo_label.py runs/a-1a2b3c4d --confident 0.95 --confident-class cat=0.9 dog=0.99 --out pseudo.csv
  python pseudo_label.py runs/a-1a2b3c4d --uncertain 100 --out uncertain.csv

The targets of fold k's student are the mean over the runs of what their fold-k models say. Ensembles, and runs whose
checkpoints were chosen on their own fold, are refused: they know fold k's labels.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from competition.command import make_parser

SHOWN = 50


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py made, after predict.py")
    parser.add_argument("--test", metavar="NAME", help="which predictions of each run (default: the only ones)")
    parser.add_argument("--table", type=Path, help="of the predicted images (default: the first run's data.test_table)")
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet to write")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--confident", type=float, metavar="P", help="hard labels, of the images that are so sure")
    mode.add_argument("--soft", action="store_true", help="all images, with their probabilities as targets")
    mode.add_argument("--uncertain", type=_count, metavar="N", help="list the N least certain, to be labelled by hand")
    parser.add_argument(
        "--confident-class",
        nargs="+",
        type=_threshold,
        default=[],
        metavar="CLASS=P",
        help="with --confident: other thresholds of single classes",
    )
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of a row in the loss, beside a real row's 1 (default: 1)"
    )
    options = parser.parse_args(arguments)
    if options.confident_class and options.confident is None:
        parser.error("--confident-class goes with --confident")
    return options


def main() -> None:
    """Write the table, and end with exit code 2 and a sentence when something is wrong with the input."""
    options = parse()
    try:
        from competition.config import read_config
        from competition.data.pseudo import provenance_path
        from competition.predictions.pseudo import Confident, Soft, list_uncertain, pseudo_label

        if options.uncertain:
            frame = list_uncertain(options.runs, options.out, options.uncertain, options.test, options.table)
            names = ["id", "image", "entropy", "margin"]
            show(names, frame[names].to_numpy().tolist())
        else:
            rule = Soft() if options.soft else Confident(options.confident, dict(options.confident_class))
            students = pseudo_label(options.runs, options.out, rule, options.test, options.table, options.weight)
            rows = [["images", *(student["rows"] for student in students)]]
            rows += [["left out: of its own fold", *(student["held_out"] for student in students)]]
            rows += [[name, *(student["classes"][name] for student in students)] for name in students[0]["classes"]]
            show(["for the student of fold", *(str(student["student"]) for student in students)], rows)
        config = read_config(options.runs[0])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    data = config["data"]["name"]
    print(f"\nWritten:\n  {options.out}")
    if options.uncertain:
        print(f"\nNext, when they are labelled and in the training table:\n  python prepare.py --data {data}")
        return
    print(f"  {provenance_path(options.out)}")
    experiment = f"experiment={config['experiment_name']} " if config["experiment_name"] else ""
    print(f"\nNext:\n  python train.py {experiment}data={data} data.pseudo={options.out}")
    print("  and phases=both_then_train or phases=pseudo_then_train, to end on the real rows")


def show(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print the first rows of a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in names:
        table.add_column(name, justify="right")
    for row in rows[:SHOWN]:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(table)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more")


def _count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _threshold(text: str) -> tuple[str, float]:
    """A class and its threshold, for argparse."""
    name, equals, value = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS=P, for example cat=0.9")
    return name, float(value)


if __name__ == "__main__":
    main()

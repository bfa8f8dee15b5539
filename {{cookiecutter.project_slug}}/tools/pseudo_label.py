"""Label unlabelled images by the predictions of runs, for each fold's student by models that never saw its fold.

examples:
  python tools/pseudo_label.py runs/finetune_cnn-1a2b3c4d --confident 0.95 --out data/competition/pseudo.csv
  python tools/pseudo_label.py runs/a-1a2b3c4d runs/b-5e6f7a8b --test test-d4 --soft --out pseudo.parquet
  python tools/pseudo_label.py runs/a-1a2b3c4d --confident 0.95 --confident-class cat=0.9 dog=0.99 --out pseudo.csv
  python tools/pseudo_label.py runs/a-1a2b3c4d --uncertain 100 --out uncertain.csv

The targets of fold k's student are the mean over the runs of the predictions of their fold-k models. Ensembles, and
runs whose checkpoints were chosen on their own fold, are refused: they know fold k's labels.

Segmentation: each student gets a mask an image, a PNG in a folder beside the table, which must lie under the data root.
Pixels whose class is less sure than --confident have the value data.ignore_index, which is neither trained nor scored;
images without a confident pixel are left out. There are no soft masks. --uncertain goes by the mean over the pixels.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser, whole_number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("runs", nargs="+", type=Path, help="folders that train.py made, after predict.py")
    parser.add_argument("--test", metavar="NAME", help="which predictions of each run (default: the only ones)")
    parser.add_argument("--table", type=Path, help="of the predicted images (default: the first run's data.test_table)")
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet to write")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--confident", type=float, metavar="P", help="hard labels, of the images or pixels so sure")
    mode.add_argument("--soft", action="store_true", help="all images, with their probabilities as targets")
    mode.add_argument(
        "--uncertain", type=whole_number(1), metavar="N", help="list the N least certain, to be labelled by hand"
    )
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
    """Write the table; exit with code 2 and a sentence when the input is wrong."""
    options = parse()
    with exit_on_error():
        (list_images if options.uncertain else label)(options)


def list_images(options: argparse.Namespace) -> None:
    """List the images to label by hand."""
    from foldwise.config import read_config
    from foldwise.predictions.pseudo.labelling import list_uncertain
    from foldwise.reporting.console import print_uncertain

    print_uncertain(list_uncertain(options.runs, options.out, options.uncertain, options.test, options.table))
    data = read_config(options.runs[0])["data"]["name"]
    print(f"\nWritten:\n  {options.out}")
    print(f"\nNext, when they are labelled and in the training table:\n  python prepare.py --data {data}")


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
    experiment = f"experiment={config['experiment_name']} " if config["experiment_name"] else ""
    print(f"\nNext:\n  python train.py {experiment}data={config['data']['name']} data.pseudo={options.out}")
    print("  and phases=both_then_train or phases=pseudo_then_train, to end on the real rows")


def _threshold(text: str) -> tuple[str, float]:
    """A class and its threshold, for argparse."""
    name, equals, value = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS=P, for example cat=0.9")
    return name, float(value)


if __name__ == "__main__":
    main()

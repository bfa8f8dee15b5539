"""Predict a table with the models of finished runs.

examples:
  python predict.py runs/baseline-1a2b3c4d
  python predict.py runs/baseline-* --tta d4
  python predict.py runs/baseline-1a2b3c4d --table data/extra.csv --out predictions/extra
  python predict.py runs/baseline-1a2b3c4d --oof --tta d4
  python predict.py runs/unet-5e6f7a8b --overlay 10 --device cuda --precision 16-mixed
  python predict.py runs/unet-5e6f7a8b --tiles --devices 4

With several devices each image goes to one of them. Interrupted, the same command resumes, also with another number of
devices.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser, whole_number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    add, least_0, least_1 = parser.add_argument, whole_number(0), whole_number(1)
    add("runs", nargs="+", type=Path, help="folders that train.py made; every finished fold predicts")
    add("--table", type=Path, help="CSV or parquet to predict (default: the run's data.test_table)")
    add("--tta", default="none", help="choice of the group tta, or path of such a file (default: none)")
    add("--out", type=Path, help="folder to write (default: <run>/predictions/<table>-<tta>)")
    add("--batch-size", type=least_1, default=32, help="images a pass, all views counted (default: 32)")
    add("--workers", type=least_0, default=2, help="processes that read images (default: 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--devices", type=least_1, metavar="N", help="processes, one a GPU, or N on the CPU (default: all GPUs, or 1)")
    add("--precision", default="32", choices=["32", "16-mixed", "bf16-mixed"], help="(default: 32)")
    add("--oof", action="store_true", help="the training table, each row by the models that did not see it")
    add("--keep-views", action="store_true", help="keep each view; python tools/average.py puts them together")
    add("--tiles", action="store_true", help="segmentation: overlapping tiles at the stored resolution")
    add("--overlay", type=least_0, default=0, metavar="N", help="segmentation: also paint N pictures", dest="overlays")
    return parser.parse_args(arguments)


def main() -> None:
    """Predict, and exit with 2 and a sentence when something is wrong with the input."""
    options = vars(parse())
    runs, table, out, _ = (options.pop(name) for name in ("runs", "table", "out", "trust_code"))
    with exit_on_error("the same command resumes"):
        from foldwise.config import read_config
        from foldwise.settings import find_choice

        for run in runs:  # a mistyped name is reported before torch is imported, which takes seconds
            read_config(run)
        if not options["tta"].endswith((".yaml", ".yml")):
            options["tta"] = find_choice("tta", options["tta"])
        from foldwise.inference.predicting import Choices, predict_runs

        predict_runs(runs, Choices(**options | {"tta": Path(options["tta"])}), table, out)


if __name__ == "__main__":
    main()

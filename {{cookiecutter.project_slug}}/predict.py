"""Predict a table with the models of finished runs.

examples:
  python predict.py runs/baseline-1a2b3c4d
  python predict.py runs/baseline-* --tta d4
  python predict.py runs/baseline-1a2b3c4d --table data/extra.csv --out predictions/extra
  python predict.py runs/baseline-1a2b3c4d --oof --tta d4
  python predict.py runs/unet-5e6f7a8b --overlay 10 --device cuda --precision 16-mixed
  python predict.py runs/unet-5e6f7a8b --tiles --devices 4

With several devices, each image is predicted on one of them. If interrupted, run the same command again to resume; the
number of devices may change.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser, whole_number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    add, least_0, least_1 = parser.add_argument, whole_number(0), whole_number(1)
    add("runs", nargs="+", type=Path, help="run folders of train.py; every finished fold is used")
    add("--table", type=Path, help="CSV or parquet file to predict (default: the run's data.test_table)")
    add("--root", type=Path, help="folder that the paths in the table are relative to (default: the run's data.root)")
    add("--tta", default="none", help="a choice of the config group tta, or a YAML file (default: none)")
    add("--out", type=Path, help="folder to write (default: <run>/predictions/<table>-<tta>)")
    add("--batch-size", type=least_1, default=32, help="images per forward pass, counting every view (default: 32)")
    add("--workers", type=least_0, default=2, help="processes that read images (default: 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--devices", type=least_1, metavar="N", help="number of GPUs, or of CPU processes (default: all GPUs, or 1)")
    add("--precision", default="32", choices=["32", "16-mixed", "bf16-mixed"], help="(default: 32)")
    add("--oof", action="store_true", help="predict each training row with the model that did not see it")
    add("--fallback", action="store_true", help="unreadable images get the class shares, or no mask, and are listed")
    add("--features", action="store_true", help="read the stored features of data.features in place of the images")
    add("--keep-views", action="store_true", help="store each view; average them later with tools/average.py")
    add("--tiles", action="store_true", help="segmentation: overlapping tiles at the stored resolution")
    add("--overlay", type=least_0, default=0, metavar="N", help="segmentation: also write N overlays", dest="overlays")
    return parser.parse_args(arguments)


def main() -> None:
    options = vars(parse())
    runs, table, out, root, _ = (options.pop(name) for name in ("runs", "table", "out", "root", "trust_code"))
    with exit_on_error("run the same command again to resume"):
        from foldwise.config import read_config
        from foldwise.settings import find_choice

        for run in runs:  # report a mistyped name before the seconds of importing torch
            read_config(run)
        if not options["tta"].endswith((".yaml", ".yml")):
            options["tta"] = find_choice("tta", options["tta"])
        from foldwise.inference.predicting import Choices, predict_runs

        predict_runs(runs, Choices(**options | {"tta": Path(options["tta"])}), table, out, root=root)


if __name__ == "__main__":
    main()

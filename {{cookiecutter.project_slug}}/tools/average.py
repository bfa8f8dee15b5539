"""Average kept TTA views: choose views and mean without predicting again.

examples:
  python predict.py runs/baseline-1a2b3c4d --oof --tta d4 --keep-views
  python tools/average.py runs/baseline-1a2b3c4d/predictions/oof-d4-views --mean geometric
  python tools/average.py runs/baseline-1a2b3c4d/predictions/oof-d4-views --views identity hflip

The rank mean is only for ranking metrics (ROC AUC, mAP): ranks are not probabilities, and later steps refuse them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("predictions", type=Path, help="folder made by predict.py --keep-views")
    parser.add_argument("--mean", default="arithmetic", choices=["arithmetic", "geometric", "median", "rank"])
    parser.add_argument("--views", nargs="+", metavar="VIEW", help="views to average (default: all)")
    parser.add_argument("--out", type=Path, help="folder to write (default: next to it, named after views and mean)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    stem = options.predictions.name.removesuffix("-views")
    views = f"-{'-'.join(options.views)}" if options.views else ""
    out = options.out or options.predictions.with_name(f"{stem}{views}-{options.mean}")
    with exit_on_error():
        from foldwise.predictions.views import average_views

        average_views(options.predictions, out, options.mean, options.views)
    print(f"written   {out}")
    if out.parent.name == "predictions":
        kind = "--oof" if out.name.startswith("oof-") else "--test"
        command = "evaluate.py" if kind == "--oof" else "submit.py make"
        print(f"next      python {command} {out.parents[1]} {kind} {out.name}")


if __name__ == "__main__":
    main()

"""Export a run's network as an ONNX file for production.

examples:
  python export.py runs/finetune_cnn-1a2b3c4d
  python export.py runs/finetune_cnn-1a2b3c4d --folds all --out exports/first
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="a run with models; of average_weights.py, for the averaged network")
    parser.add_argument("--to", choices=["onnx"], default="onnx", help="format (default: onnx)")
    parser.add_argument("--out", type=Path, help="folder to write (default: exports/<run>)")
    parser.add_argument(
        "--folds", nargs="+", default=["0"], metavar="FOLD", help="folds in the graph, all, or full (default: 0)"
    )
    parser.add_argument("--oof", default="oof", help="out-of-fold predictions that post-processing is fitted on")
    parser.add_argument("--decision", help="post-processing (default: chosen as submit.py does)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error():
        from foldwise.export.exporting import export_run

        out = options.out or Path("exports") / options.run.resolve().name
        exported = export_run(options.run, out, options.folds, options.oof, options.decision)
        print(f"difference from torch {exported.difference:.2g}")
    print(f"\nWritten:\n  {out}")


if __name__ == "__main__":
    main()

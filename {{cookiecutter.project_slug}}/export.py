"""Export a run's network as an ONNX file for production, small and fast, and measure what that costs.

examples:
  python export.py runs/finetune_cnn-1a2b3c4d
  python export.py runs/finetune_cnn-1a2b3c4d --half --int8 --budget-mb 4 --latency-ms 30 --threads 1
  python export.py runs/finetune_cnn-1a2b3c4d --folds all --out exports/all-folds
  python export.py runs/finetune_cnn-1a2b3c4d-averaged --int8

Needs pip install onnx onnxscript onnxruntime. See docs/production.md.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser, positive_number, whole_number
from foldwise.errors import Refusal
from foldwise.shell import command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="a run; one of tools/average_weights.py for the averaged network")
    parser.add_argument("--to", choices=["onnx"], default="onnx", help="format (default: onnx)")
    parser.add_argument("--out", type=Path, help="folder to write (default: exports/<run>)")
    parser.add_argument(
        "--folds",
        nargs="+",
        default=["0"],
        metavar="FOLD",
        help="folds whose networks are averaged in the graph; all; or full (default: 0). "
        "Measured on the held-out pictures of the first",
    )
    parser.add_argument("--half", action="store_true", help="try weights in half precision")
    parser.add_argument("--int8", action="store_true", help="try static quantization, calibrated on training pictures")
    parser.add_argument("--budget-mb", type=positive_number, metavar="MB", help="refuse a larger file")
    parser.add_argument(
        "--latency-ms", type=positive_number, metavar="MS", help="refuse a slower network: 95th percentile of a picture"
    )
    parser.add_argument("--threads", type=whole_number(0), default=0, help="for the milliseconds (default: every core)")
    parser.add_argument("--oof", default="oof", help="predictions that post-processing is fitted on (default: oof)")
    parser.add_argument("--decision", help="post-processing in the graph (default: chosen as submit.py does)")
    return parser.parse_args(arguments)


def main() -> None:
    """Export, and print the table; exit with code 2 on a missed budget and on unusable input."""
    options = parse()
    out = options.out or Path("exports") / options.run.resolve().name
    with exit_on_error():
        from foldwise.export.exporting import Budget, export_run
        from foldwise.reporting.console import print_export

        exported = export_run(
            options.run,
            out,
            options.folds,
            half=options.half,
            int8=options.int8,
            budget=Budget(options.budget_mb, options.latency_ms),
            threads=options.threads,
            oof=options.oof,
            decision=options.decision,
        )
        print_export(*exported[:4])
        if exported.missed:
            raise Refusal(exported.missed)
    print(f"\nWritten:\n  {out}")
    if (reader := out / "predict_folder.py").exists():
        print(f"\nNext, on any machine:\n  {command('python', reader, 'photos', '--out', 'predictions.csv')}")


if __name__ == "__main__":
    main()

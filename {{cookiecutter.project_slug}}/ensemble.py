"""Combine several runs: compare blends and stacking out of fold, and write the simplest good one.

examples:
  python ensemble.py runs/baseline-1a2b3c4d runs/larger-5e6f7a8b --out ensembles/first
  python ensemble.py runs/* --oof oof-d4 --test test-d4 --out ensembles/d4 --methods all --strict
  python ensemble.py runs/* --out ensembles/stack --methods linear logistic --columns camera altitude
  python ensemble.py runs/* --out ensembles/clips --methods boosting network --unit-inputs quantiles:8
  python ensemble.py runs/a --features runs/a/outputs/grade --methods logistic --out ensembles/heads
  python ensemble.py runs/a runs/b ensembles/first --out ensembles/second --weights 0.5 0.2 0.3
  python ensemble.py predictions/yolo predictions/detr --out ensembles/boxes --methods nms wbf
  python ensemble.py predictions/anna predictions/ben --data competition --set metric=f_beta --out ensembles/team

The output can be used like a run: by evaluate.py, submit.py, and ensemble.py again.

Stacking fits one model per class and fold, or one network per fold. For 48 sources of 40,000 rows, 17 classes and 10
folds, two cores need about a minute each for linear and logistic, and 4 minutes for boosting; one core needs about a
minute a fold for network. --strict multiplies that by half the number of folds.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("sources", nargs="+", type=Path, help="runs, ensembles, or folders with the same layout")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example ensembles/first")
    parser.add_argument("--oof", default="oof", help="out-of-fold predictions of each source (default: oof)")
    parser.add_argument("--test", help="test predictions of each source (default: the only ones there)")
    parser.add_argument("--data", help="name of a file in configs/data, for sources without a config.yaml")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="with --data: config overrides, as in train.py"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME",
        help="methods to compare with the best single source and the mean: geometric, rank, simplex, greedy; "
        "boxes: nms, wbf; "
        "stacking: linear, logistic, boosting, network; or all (default: all but stacking)",
    )
    parser.add_argument("--use", metavar="NAME", help="write this method (default: the simplest good one)")
    parser.add_argument(
        "--weights", nargs="+", type=float, default=[], metavar="W", help="one per source: write their weighted mean"
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns of the table as further inputs of stacking; then one source is enough",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        type=Path,
        default=[],
        metavar="SOURCE",
        help="sources of any task and classes, such as heads, as further inputs of stacking; then one source is enough",
    )
    parser.add_argument(
        "--relative-to",
        metavar="COLUMN",
        help="stacking also gets each input's z-score and rank among rows with the same value in this column",
    )
    parser.add_argument(
        "--unit-inputs",
        type=_chunks,
        default=0,
        metavar="quantiles:N",
        help="stacking gets units: of each class the sorted predictions of a unit's pictures, as N means; then one "
        "source is enough",
    )
    parser.add_argument(
        "--strict", action="store_true", help="also score each fold with a method that was chosen and fitted without it"
    )
    return parser.parse_args(arguments)


def _chunks(text: str) -> int:
    kind, _, number = text.partition(":")
    if kind != "quantiles" or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not quantiles:N, such as quantiles:8")
    return int(number)


def main() -> None:
    options = parse()
    with exit_on_error():
        from foldwise.predictions.ensembles.ensembling import ensemble
        from foldwise.progress import progress_bar
        from foldwise.reporting.ensemble_report import print_ensemble, report_ensemble

        with progress_bar("reading the sources") as progress:
            comparison, written = ensemble(
                options.sources,
                options.out,
                oof=options.oof,
                test=options.test,
                data=options.data,
                overrides=options.set,
                methods=options.methods,
                use=options.use,
                weights=options.weights,
                columns=options.columns,
                features=options.features,
                relative_to=options.relative_to,
                unit_inputs=options.unit_inputs,
                strict=options.strict,
                progress=progress,
                report=report_ensemble,
            )
        print_ensemble(comparison)
    print("\nWritten:")
    for path in (*written, options.out / "ensemble.json", options.out / "report.html"):
        print(f"  {path}")
    print(f"\nNext:\n  python {'submit.py make' if len(written) > 1 else 'evaluate.py'} {options.out}")


if __name__ == "__main__":
    main()

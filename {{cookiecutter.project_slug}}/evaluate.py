"""Score predictions with intervals, over all images and for subgroups, and compare them.

examples:
  python evaluate.py runs/baseline-1a2b3c4d
  python evaluate.py runs/baseline-1a2b3c4d --by camera city --show data/competition/look_at.txt
  python evaluate.py runs/larger-5e6f7a8b runs/baseline-1a2b3c4d --oof oof-d4
  python evaluate.py runs/larger-s1 runs/larger-s2 runs/larger-s3 --against runs/base-s1 runs/base-s2 runs/base-s3
  python evaluate.py predictions/from-a-friend --table data/competition/holdout.csv --data competition
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser
from foldwise.errors import Refusal
from foldwise.files import check_new


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        help="runs, ensembles, folders of their shape, or prediction folders; further ones are compared with the first",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="SOURCE",
        help="the other side of a comparison over seeds: as many, the same seeds in the same order",
    )
    parser.add_argument("--oof", default="oof", help="out-of-fold predictions of a source, e.g. oof-d4 (default: oof)")
    parser.add_argument(
        "--table", type=Path, help="a labelled table to score test predictions by (default: out of fold)"
    )
    parser.add_argument("--test", help="with --table: which predictions of a source (default: the only ones)")
    parser.add_argument("--data", help="a file in configs/data, by name, for predictions without a config.yaml")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the config beside --data, as in train.py"
    )
    parser.add_argument(
        "--by", nargs="*", metavar="COLUMN", help="columns that make subgroups (default: those with 2 to 20 values)"
    )
    parser.add_argument(
        "--show", metavar="IDS", help="images that are shown and not scored: a file of ids, or column=value"
    )
    parser.add_argument("--resamples", type=_count, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--out", type=Path, help="HTML file to write (default: evaluation.html in the first source)")
    return parser.parse_args(arguments)


def main() -> None:
    """Evaluate, and end with exit code 2 and a sentence when something is wrong with the input."""
    options = parse()
    with exit_on_error():
        report = report_path(options.out, options.sources[0])
        from foldwise.predictions.evaluation.evaluate import evaluate

        evaluation = evaluate(
            options.sources,
            options.against,
            oof=options.oof,
            test=options.test,
            labelled=options.table,
            data=options.data,
            overrides=options.set,
            by=options.by,
            show=options.show,
            resamples=options.resamples,
            seed=options.seed,
            progress=True,
        )
        from foldwise.reporting.evaluation_console import print_evaluation
        from foldwise.reporting.evaluation_report import write_evaluation

        print_evaluation(evaluation)
        write_evaluation(report, evaluation)
    print(f"\nWritten:\n  {report}")
    if len(options.sources) == 1:
        source = options.sources[0]
        others = [path.parent for path in source.resolve().parent.glob("*/oof") if path.parent != source.resolve()]
        other = max(others, key=lambda path: path.stat().st_mtime).name if others else "<another run>"
        print(f"\nNext, to compare it with another:\n  python evaluate.py {source.parent / other} {source}")


def report_path(out: Path | None, source: Path) -> Path:
    """`out`, or the first free name of evaluation.html, evaluation-2.html, ... in the source.

    Raises:
        Refusal: the source is not a folder, or `out` exists.
    """
    if not source.is_dir():
        raise Refusal(f"{source} is not a folder")
    if out is not None:
        check_new(out)
        return out
    path, number = source / "evaluation.html", 1
    while path.exists():
        number += 1
        path = source / f"evaluation-{number}.html"
    return path


def _count(text: str) -> int:
    """A number of draws, for argparse."""
    if int(text) < 100:
        raise argparse.ArgumentTypeError("must be at least 100: the ends of an interval are rare")
    return int(text)


if __name__ == "__main__":
    main()

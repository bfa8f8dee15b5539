"""What differs between runs, and what it brought: the first run against each of the others, out of fold.

examples:
  python compare.py runs/baseline-1a2b3c4d runs/baseline-5e6f7a8b
  python compare.py runs/baseline-1a2b3c4d runs/mixup-5e6f7a8b runs/larger-9c0d1e2f --oof oof-d4

Change one thing at a time: of several, nobody can say which it was. Two runs that differ in nothing but the seed show
how much a difference is worth; python evaluate.py --against compares several seeds a side.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; see --help."""
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="the run to start from")
    parser.add_argument("others", type=Path, nargs="+", help="runs that changed something")
    parser.add_argument("--oof", default="oof", help="out-of-fold predictions of each run (default: oof)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws (default: 1000)")
    return parser.parse_args(arguments)


def main() -> None:
    """Compare, and end with exit code 2 and a sentence when something is wrong with the input."""
    options = parse()
    with exit_on_error():
        from foldwise.training.run_folder import describe_changes

        changes = [describe_changes(options.run, other) for other in options.others]
        from foldwise.predictions.evaluation.evaluate import evaluate

        runs = [options.run, *options.others]
        evaluation = evaluate(runs, oof=options.oof, by=[], resamples=options.resamples, progress=True)
        from foldwise.reporting.comparison_console import print_comparison

        print_comparison(evaluation, changes)
    print(f"\nNext, subgroups and pictures:\n  python evaluate.py {' '.join(map(str, runs))}")


if __name__ == "__main__":
    main()

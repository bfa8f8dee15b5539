"""Post-process, write a submission, and record it.

examples:
  python submit.py make runs/baseline-1a2b3c4d --sample ~/Downloads/some-competition/sample_submission.csv
  python submit.py make runs/ensemble --test test-d4 --oof oof-d4 --decision platt+expected-f --out submissions/bold.csv
  python submit.py make runs/unet-5e6f7a8b --format rle --classes car road --row-id "{id}_{index}"
  python submit.py make runs/unet-5e6f7a8b --presence runs/unet-5e6f7a8b/outputs/presence
  python submit.py score submissions/baseline-1a2b3c4d-test-none.csv 0.9123
  python submit.py choose
"""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foldwise.command import add_trust, exit_on_error
from foldwise.predictions.decisions.options import add_decision_options, add_format_options, format_options


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(**_texts(__doc__))
    commands = parser.add_subparsers(required=True, metavar="make | score | choose")

    def command(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=(function.__doc__ or "").partition("\n")[0], **_texts(function.__doc__))
        added.set_defaults(run=function)
        ledger = Path("submissions.csv")
        added.add_argument("--ledger", type=Path, default=ledger, help=f"list of submissions (default: {ledger})")
        return added

    make = command("make", make_file)
    make.add_argument("source", type=Path, help="a run, an ensemble, or a folder with the same layout")
    make.add_argument(
        "--oof", default="oof", help="oof, or the name of out-of-fold predictions in predictions/ (default: oof)"
    )
    make.add_argument("--test", help="name of test predictions in predictions/ (default: the only ones there)")
    make.add_argument("--data", help="name of a file in configs/data, for sources without a config.yaml")
    make.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="with --data: config overrides")
    make.add_argument("--out", type=Path, help="file to write (default: submissions/<source>-<test>.csv)")
    add_decision_options(make)
    add_trust(make)
    add_format_options(make)

    score = command("score", add_score)
    score.add_argument("file", type=Path, help="path or file name of a submission")
    score.add_argument("value", type=float, help="its score on the leaderboard")

    command("choose", print_choice)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error():
        options.run(options)


def make_file(options: argparse.Namespace) -> None:
    """Post-process a source's test predictions and write a submission.

    Calibration and decision rules are cross-fitted and compared out of fold; the simplest pair within one standard
    error of the best is used. With --sample, the file is checked against the sample submission before it is written.

    examples:
      python submit.py make runs/baseline-1a2b3c4d --sample ~/Downloads/some-competition/sample_submission.csv
      python submit.py make runs/baseline-1a2b3c4d --exclusive clear cloudy haze --exclusive day night
      python submit.py make team/anna --data competition --set metric=f_beta --decision one-threshold
    """
    from rich.console import Console

    from foldwise.predictions.decisions.submit import make_submission
    from foldwise.progress import progress_bar
    from foldwise.reporting.console import print_submission

    with progress_bar("reading the predictions") as progress:
        submission = make_submission(
            options.source,
            oof=options.oof,
            test=options.test,
            data=options.data,
            overrides=options.set,
            sample=options.sample,
            kind=options.format,
            options=format_options(options),
            decision=options.decision,
            exclusive=options.exclusive,
            sums=options.sums,
            presence=options.presence,
            out=options.out,
            ledger=options.ledger,
            progress=progress,
        )
    print_submission(Console(), submission)


def add_score(options: argparse.Namespace) -> None:
    """Record the leaderboard score of a submission, and plot leaderboard against out-of-fold scores.

    examples:
      python submit.py score submissions/baseline-1a2b3c4d-test-none.csv 0.9123
    """
    from foldwise.predictions.decisions.ledger import record_score

    print("\n".join(record_score(options.ledger, options.file, options.value)))


def print_choice(options: argparse.Namespace) -> None:
    """Print the two submissions to select at the end: the best out of fold, and the most different good one.

    The second is the one, within one standard error of the best, whose answers differ most from it. It is least likely
    to share the errors of the best.

    examples:
      python submit.py choose
    """
    from foldwise.predictions.decisions.ledger import describe_choice

    print("\n".join(describe_choice(options.ledger)))


def _texts(docstring: str | None) -> dict[str, Any]:
    """Split a docstring into a parser's description and the examples below its options."""
    description, _, examples = inspect.cleandoc(docstring or "").partition("examples:")
    form = argparse.RawDescriptionHelpFormatter
    return {"description": description, "epilog": f"examples:{examples}", "formatter_class": form}


if __name__ == "__main__":
    main()

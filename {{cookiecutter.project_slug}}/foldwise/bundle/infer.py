"""Predict a hidden test with this bundle, and write the submission.

examples:
  python bundle/infer.py --test test.csv --images test_images --sample-submission sample_submission.csv --out working
  python bundle/infer.py --test test_images --out working --time-limit 8.5h --batch-size 64

Killed in the middle, the same command resumes. No network is needed; nothing is written but in --out.
"""

import argparse
import re
import time
from pathlib import Path

from foldwise.command import exit_on_error, make_parser

BUNDLE = Path(__file__).parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; but for --any-version, the arguments of `inferring.infer`."""
    parser = make_parser(__doc__)
    parser.add_argument("--test", type=Path, required=True, help="table (CSV or parquet), or a folder of images")
    parser.add_argument("--images", type=Path, help="folder that the table's image paths begin in (default: its own)")
    parser.add_argument(
        "--sample-submission", dest="sample", type=Path, metavar="CSV", help="rows, columns and order to write"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for submission, log and what is in progress")
    parser.add_argument(
        "--time-limit", type=_seconds, metavar="TIME", help="such as 8h, 30m, 90s: models are dropped to keep it"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images a pass, all views counted (default: 32)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default: 2)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--precision", default="32", choices=["32", "16-mixed", "bf16-mixed"], help="(default: 32)")
    parser.add_argument("--any-version", action="store_true", help="accept packages of another major version")
    parser.add_argument("--keep-shards", action="store_true", help="leave each model's predictions in --out/shards")
    return parser.parse_args(arguments)


def main() -> None:
    """Infer; exit with code 2 and a sentence when something is wrong with the input."""
    begun = time.monotonic()
    options = vars(parse())
    with exit_on_error("the same command resumes from there"):
        from foldwise.bundle.host import check_host
        from foldwise.code.source import trust_all

        trust_all()  # the code beside this file is as much the user's as this file
        check_host(BUNDLE, options.pop("any_version"))
        from foldwise.bundle.inferring import infer

        infer(BUNDLE, **options, begun=begun)


def _seconds(text: str) -> float:
    """Seconds of 8h, 90m, 30s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError("is a number with h, m or s, such as 8.5h")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


if __name__ == "__main__":
    main()

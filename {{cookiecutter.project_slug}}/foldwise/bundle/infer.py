"""Predict a hidden test with this bundle, and write the submission.

examples:
  python bundle/infer.py --test test.csv --images test_images --sample-submission sample_submission.csv --out working
  python bundle/infer.py --test test_images --out working --time-limit 8.5h --batch-size 64

If it is killed, run the same command again to resume. It needs no network and writes only to --out.
"""

import argparse
import re
import time
from pathlib import Path

from foldwise.command import exit_on_error, make_parser

BUNDLE = Path(__file__).parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--test", type=Path, required=True, help="table (CSV or parquet), or a folder of images")
    add("--images", type=Path, help="folder that image paths are relative to (default: the table's folder)")
    add("--sample-submission", dest="sample", type=Path, metavar="CSV", help="gives the rows, columns and order")
    add("--out", type=Path, required=True, help="folder for submission, log and intermediate files")
    add("--time-limit", type=_seconds, metavar="TIME", help="such as 8h, 30m, 90s; drops views and models to meet it")
    add("--batch-size", type=int, default=32, help="images per forward pass, counting every view (default: 32)")
    add("--workers", type=int, default=2, help="processes that read images (default: 2)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--precision", default="32", choices=["32", "16-mixed", "bf16-mixed"], help="(default: 32)")
    add("--any-version", action="store_true", help="accept packages of another major version")
    add("--keep-shards", action="store_true", help="keep each model's predictions in --out/shards")
    return parser.parse_args(arguments)


def main() -> None:
    begun = time.monotonic()
    options = vars(parse())
    with exit_on_error("run the same command again to resume"):
        from foldwise.bundle.host import check_host
        from foldwise.code.source import trust_all

        trust_all()  # whoever runs this file trusts the code next to it
        check_host(BUNDLE, options.pop("any_version"))
        from foldwise.bundle.inferring import infer

        infer(BUNDLE, **options, begun=begun)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hms])", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError("must be a number with h, m or s, such as 8.5h")
    return float(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]


if __name__ == "__main__":
    main()

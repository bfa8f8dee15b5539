"""Options of submit.py and bundle.py: of the post-processing, and of the format."""

import argparse
from pathlib import Path
from typing import Any


def add_decision_options(parser: Any) -> None:
    """Add --sample, --decision and --exclusive to a parser or a group of one."""
    parser.add_argument("--sample", type=Path, help="the competition's sample submission, for columns and format")
    parser.add_argument("--decision", help="a name in the printed table (default: chosen out of fold)")
    several = "labels that exclude each other; again for more"
    parser.add_argument("--exclusive", nargs="+", action="append", metavar="LABEL", help=several)


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the group of --format and of the formats' fields, see `decisions.formats`."""
    add = parser.add_argument_group("format").add_argument
    add("--format", choices=["labels", "columns", "rle", "masks"], help="(default: by sample and metric)")
    add("--empty", help="what stands for no labels or an empty mask (default: nothing)")
    add("--positive", metavar="CLASS", help="columns: write the column of this class alone")
    rows = "rle: classes with rows (default: all but the first)"
    add("--classes", nargs="+", dest="painted", metavar="CLASS", help=rows)
    add("--row-id", help="rle: with {id}, {class}, {index} (default: {id}_{class}; for one class {id})")
    order = "rle: pixels are counted along rows (default: down columns)"
    add("--by-row", action="store_const", const=True, help=order)


def format_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the format that were given, by their names."""
    names = ("empty", "positive", "painted", "row_id", "by_row")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}

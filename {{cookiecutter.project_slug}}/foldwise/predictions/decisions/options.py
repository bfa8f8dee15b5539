"""The options of commands that decide and write submissions: of the decision, and of the format."""

import argparse
from pathlib import Path
from typing import Any

LAYOUT = ("empty", "positive", "painted", "row_id", "by_row")  # fields of the formats, see `decisions.formats`


def add_decision_options(parser: Any) -> None:
    """Add --sample, --decision and --exclusive to a parser or a group of one."""
    parser.add_argument("--sample", type=Path, help="the competition's sample submission, for columns and format")
    parser.add_argument("--decision", help="a name in the printed table (default: chosen out of fold)")
    parser.add_argument(
        "--exclusive",
        nargs="+",
        action="append",
        metavar="LABEL",
        help="labels that exclude each other; again for more",
    )


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the group of --format and what the formats can be told."""
    layout = parser.add_argument_group("format")
    layout.add_argument(
        "--format", choices=["labels", "columns", "rle", "masks"], help="(default: by sample and metric)"
    )
    layout.add_argument("--empty", help="what stands for no labels or an empty mask (default: nothing)")
    layout.add_argument("--positive", metavar="CLASS", help="columns: write the column of this class alone")
    layout.add_argument(
        "--classes",
        nargs="+",
        dest="painted",
        metavar="CLASS",
        help="rle: classes with rows (default: all but the first)",
    )
    layout.add_argument("--row-id", help="rle: with {id}, {class}, {index} (default: {id}_{class}; for one class {id})")
    layout.add_argument(
        "--by-row", action="store_const", const=True, help="rle: pixels are counted along rows (default: down columns)"
    )


def format_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the format was told, by the names of its fields."""
    return {name: getattr(options, name) for name in LAYOUT if getattr(options, name) is not None}

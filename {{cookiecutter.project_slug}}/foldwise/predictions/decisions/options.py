"""Command-line options of post-processing and submission format, shared by submit.py and bundle.py."""

import argparse
from pathlib import Path
from typing import Any


def add_decision_options(parser: Any) -> None:
    """Add --sample, --decision, --exclusive, --sum and --presence to a parser or an argument group."""
    parser.add_argument(
        "--sample", type=Path, help="the competition's sample submission, to set and check columns and ids"
    )
    parser.add_argument(
        "--decision", help="post-processing by its name in the printed table (default: chosen out of fold)"
    )
    exclusive = "mutually exclusive labels; repeat for further groups"
    parser.add_argument("--exclusive", nargs="+", action="append", metavar="LABEL", help=exclusive)
    sums = "numbers: a total (a number or a column), then the columns that add up to it; repeat for further sums"
    parser.add_argument("--sum", nargs="+", action="append", default=[], dest="sums", metavar="COLUMN", help=sums)
    presence = "masks: predictions of which classes an image has; those below a fitted threshold get no mask"
    parser.add_argument("--presence", type=Path, metavar="SOURCE", help=presence)


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add --format and the options of the formats, see `decisions.formats`."""
    add = parser.add_argument_group("format").add_argument
    add(
        "--format",
        choices=["labels", "ranking", "columns", "rle", "masks", "boxes"],
        help="format of the file (default: by sample and metric)",
    )
    add("--empty", help="text for no labels, no boxes or an empty mask (default: nothing)")
    add("--new", metavar="NAME", help="ranking: of a new individual (default: new_individual)")
    add("--separator", help="labels, ranking, boxes: text between them (default: data.label_separator, or a space)")
    add("--positive", metavar="CLASS", help="columns: write only the column of this class")
    rows = "rle: classes with rows (default: all but the first)"
    add("--classes", nargs="+", dest="painted", metavar="CLASS", help=rows)
    add("--row-id", help="ids of the rows, with {id}, {class}, {index} (default: by the sample; rle: {id}_{class})")
    names = "names of classes in the file, if others, such as cat=0 dog=1"
    add("--names", nargs="+", type=_pair, metavar="CLASS=NAME", help=names)
    box = "boxes: text of a box (default: {class} {score:.5g} {x0:.5g} {y0:.5g} {x1:.5g} {y1:.5g}); also {w}, {h}"
    add("--box", metavar="TEMPLATE", help=box)
    shares = "boxes: shares of the picture's sides (default: pixels)"
    add("--shares", action="store_const", const=True, help=shares)
    order = "rle: count pixels along rows (default: down columns)"
    add("--by-row", action="store_const", const=True, help=order)


def format_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the given options of the format, by field name."""
    names = ("empty", "new", "separator", "positive", "painted", "row_id", "by_row", "box", "shares")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return given | ({"names": dict(options.names)} if options.names else {})


def _pair(text: str) -> tuple[str, str]:
    name, equals, written = text.rpartition("=")
    if not (name and equals and written):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS=NAME")
    return name, written

"""Label by hand: list the images that are worth it, answer in a page, take the answers into a new table.

examples:
  python tools/label.py suspect runs/baseline-1a2b3c4d --out suspect.csv
  python tools/label.py uncertain runs/a-1a2b3c4d runs/b-5e6f7a8b --most 100 --diverse --out uncertain.csv
  python tools/label.py disagree runs/a-1a2b3c4d runs/b-5e6f7a8b --most 100 --out disagree.csv
  python tools/label.py boxes data/competition/cars.csv --most 100 --out boxes.csv
  python tools/label.py make suspect.csv --data competition --out suspect.html
  python tools/label.py take answers.csv suspect.csv --data competition --out data/competition/train-2.csv

suspect: labels that the out-of-fold predictions contradict. uncertain, disagree: unlabelled images (after predict.py)
about which the models are least certain, or of different opinions. boxes: rows of a table of boxes without a box, or
whose image has several. make: a list, a table of pseudo masks (accept or reject) or of boxes (drag them) as one HTML
file; open it in a browser, answer with the keys 1-9, save answers.csv. take: writes a new version of the training table
(of the list, if the table has no boxes) and a log of what changed.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import count as count_from
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import add_trust, exit_on_error, make_parser, whole_number
from foldwise.shell import command, prepare_command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    steps = parser.add_subparsers(required=True, metavar="suspect | uncertain | disagree | boxes | make | take")

    def step(name: str, function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=text, description=text.capitalize() + ".")
        added.set_defaults(step=function)
        added.add_argument("--out", type=Path, required=True, help="file to write")
        return added

    suspects = step("suspect", suspect, "list labels that out-of-fold predictions contradict")
    suspects.add_argument("run", type=Path, help="folder made by train.py")
    suspects.add_argument("--most", type=whole_number(1), help="images of the list (default: all)")
    add_trust(suspects)
    for name, text in (
        ("uncertain", "list unlabelled images about which the models are least certain"),
        ("disagree", "list unlabelled images about which the runs are of different opinions"),
    ):
        added = step(name, unlabelled, text)
        added.set_defaults(disagree=name == "disagree")
        added.add_argument("runs", nargs="+", type=Path, help="folders made by train.py, after predict.py")
        added.add_argument("--most", type=whole_number(1), default=100, help="images of the list (default: 100)")
        added.add_argument("--diverse", action="store_true", help="leave out images that look alike")
        added.add_argument("--test", metavar="NAME", help="test predictions of each run (default: the only ones)")
        added.add_argument("--table", type=Path, help="table of the predicted images (default: data.test_table)")
        add_trust(added)
    added = step("boxes", boxes, "list rows without a box, and those of images with several boxes")
    added.add_argument("table", type=Path, help="table of boxes, such as tools/crop.py writes")
    added.add_argument("--most", type=whole_number(1), help="rows of the list (default: all)")
    page = step("make", make, "write a page to label a list by hand")
    page.add_argument("list", type=Path, help="a list, a table of pseudo masks, or a table of boxes")
    answered = step("take", take, "take answers into a new version of the training table, or of a list of boxes")
    answered.add_argument("answers", type=Path, help="answers.csv, saved by the page")
    answered.add_argument("list", type=Path, help="the list that the page showed")
    for added in (page, answered):
        added.add_argument(
            "--data", default="competition", help="name of a file in configs/data (default: competition)"
        )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error():
        options.step(options)


def suspect(options: argparse.Namespace) -> None:
    from foldwise.labelling.lists import list_suspects

    _print_list(list_suspects(options.run, options.out, options.most), _data(options.run), options.out)


def unlabelled(options: argparse.Namespace) -> None:
    from foldwise.labelling.lists import list_uncertain

    most, test, table = options.most, options.test, options.table
    frame = list_uncertain(options.runs, options.out, most, test, table, options.diverse, options.disagree)
    _print_list(frame, _data(options.runs[0]), options.out)


def boxes(options: argparse.Namespace) -> None:
    from foldwise.labelling.lists import list_boxes

    _print_list(list_boxes(options.table, options.out, options.most), options.table.stem, options.out)


def _print_list(frame: Any, data: str, out: Path) -> None:
    from foldwise.reporting.console import print_listed

    print_listed(frame)
    words = ["tools/label.py", "make", out, "--data", data]
    print(f"\nWritten:\n  {out}")
    print(f"\nNext:\n  {command('python', *words, '--out', out.with_suffix('.html'))}")


def make(options: argparse.Namespace) -> None:
    from foldwise.labelling.page import open_list, write_page

    listed = open_list(options.list, _config(options.data))
    count = write_page(listed, options.out)
    print(
        f"{count:,} images\n\nWritten:\n  {options.out}\n\nNext: open it in a browser, answer, save answers.csv, then"
    )
    table, numbers = listed.base, count_from(2)
    new = next(path for number in numbers if not (path := table.with_stem(f"{table.stem}-{number}")).exists())
    words = ["python", "tools/label.py", "take", "answers.csv", options.list, "--data", options.data, "--out", new]
    print(f"  {command(*words)}")


def take(options: argparse.Namespace) -> None:
    from foldwise.labelling.answers import take_answers
    from foldwise.labelling.page import open_list

    taken = take_answers(open_list(options.list, _config(options.data)), options.answers, options.out)
    print(f"{taken.changed:,} changed, {taken.same:,} as before, {taken.new:,} new rows, {taken.rejected:,} rejected")
    print(f"\nWritten:\n  {options.out}\n  {taken.log}")
    print(f"\nNext: set  table: {options.out}  in configs/data/{options.data}.yaml, then")
    print(f"  {prepare_command(options.data)}")


def _data(run: Path) -> str:
    """The name of a run's data."""
    from foldwise.config import read_config

    return str(read_config(run)["data"]["name"])


def _config(data: str) -> dict[str, Any]:
    from foldwise.config import compose_config, resolve_config

    return resolve_config(compose_config([f"data={data}"]))


if __name__ == "__main__":
    main()

"""Read what other detectors found, and the ground truth of boxes, into the format of this repository.

examples:
  python tools/boxes.py truth annotations.json --from coco --data competition --out data/competition/train_boxes.csv
  python tools/boxes.py found --from coco --annotations annotations.json test.json --data competition \\
      --oof 0=f0.json 1=f1.json 1:hflip=f1-flipped.json --test 0=t0.json 1=t1.json --out predictions/retinanet
  python tools/boxes.py found --from yolo --data competition --oof 0=f0/labels 1=f1/labels --out predictions/yolo
  python tools/boxes.py found --from table --columns id=picture class=predicted score=box_score --oof boxes.csv \\
      --data competition --out predictions/masks

truth: writes the training table with a column of boxes. found: writes a source for evaluate.py, ensemble.py and
submit.py. A file is of one fold's model and one view: [FOLD[:VIEW]=]PATH, where full is the model of all rows; without
a fold each picture counts for its own. Boxes of a fold's model in pictures of other folds are refused: it was trained
on them. Flips and turns (hflip, vflip, rot90, ...) are undone. coco: JSON; yolo: a folder with a text file per picture,
as Ultralytics writes with save_txt=True save_conf=True; table: CSV or parquet with id, class, score, x0, y0, x1, y1.
Edges are in pixels, or shares of the picture if none is above 1.5.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser
from foldwise.shell import command

KINDS = ("coco", "yolo", "table")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    steps = parser.add_subparsers(required=True, dest="step", metavar="truth | found")
    for name, text in (("truth", "read the ground truth"), ("found", "read boxes that models found")):
        step = steps.add_parser(name, help=text, description=f"{text.capitalize()}.")
        add = step.add_argument
        add("--from", required=True, choices=KINDS, dest="kind", help="format of the files")
        add("--data", required=True, help="name of a file in configs/data")
        add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="config overrides, as in train.py")
        columns = "table: what its columns are called, such as id=picture class=predicted"
        add("--columns", nargs="+", type=_pair, default=[], metavar="OURS=NAME", help=columns)
        if name == "truth":
            add("path", type=Path, help="the file, or YOLO's folder of labels")
            add("--out", type=Path, required=True, help=".csv or .parquet file to write")
            continue
        add("--oof", nargs="+", required=True, metavar="[FOLD[:VIEW]=]PATH", help="boxes of held-out pictures")
        add("--test", nargs="+", default=[], metavar="FOLD[:VIEW]=PATH", help="boxes of the test pictures")
        names = "coco: files with the names of images and categories"
        add("--annotations", nargs="+", type=Path, default=[], metavar="FILE", help=names)
        add("--out", type=Path, required=True, help="folder to write, such as predictions/yolo")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error():
        from foldwise.predictions.box_files import Part, write_found, write_truth

        names = dict(options.columns)
        if options.step == "truth":
            boxes, without = write_truth(options.kind, options.path, options.out, options.data, options.set, names)
            counts = {"truth": (boxes, without)}
            table = f"data.table={options.out}"
            following = f"set {table} in configs/data/{options.data}.yaml, then " + command(
                "python", "prepare.py", "--data", options.data, "task=detection", "metric=detection_map"
            )
        else:
            oof, test = ([Part.parse(text) for text in texts] for texts in (options.oof, options.test))
            counts = write_found(
                options.kind, oof, test, options.out, options.data, options.set, options.annotations, names
            )
            following = command("python", "evaluate.py", options.out)
    for name, (boxes, without) in counts.items():
        print(f"{name}: {boxes:,} boxes; {without:,} pictures without one")
    print(f"\nWritten:\n  {options.out}\n\nNext:\n  {following}")


def _pair(text: str) -> tuple[str, str]:
    ours, equals, name = text.partition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not OURS=NAME, such as class=label")
    return ours, name


if __name__ == "__main__":
    main()

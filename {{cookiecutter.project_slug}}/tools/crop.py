"""Find boxes in the predicted masks of a run, for a second network that sees what is in them.

examples:
  python tools/crop.py runs/masks-1a2b3c4d --classes car --out data/competition/cars.csv
  python tools/crop.py runs/masks-1a2b3c4d --how components --classes car sign --least 50 --out data/x/things.csv
  python tools/crop.py runs/masks-1a2b3c4d --how peak --side 96 --classes fin --threshold 0.2 --out data/x/fins.csv

The box of a training image comes from the model that has not seen it, that of a test image from all models. Writes the
table OUT, OUT_test if the run has test predictions, where the boxes come from (.json), and configs/data/<OUT>.yaml to
train with. union: one box around all pixels; components: one row per connected group of pixels, with the class that it
has in the ground truth; peak: one square where the mean probability is highest. If nothing is found, the box is empty
and the whole picture is read.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser, whole_number
from foldwise.shell import command, override, prepare_command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("run", type=Path, help="folder made by train.py, with task=segmentation")
    parser.add_argument("--out", type=Path, required=True, help=".csv or .parquet file to write")
    parser.add_argument("--classes", nargs="+", required=True, metavar="CLASS", help="classes whose pixels count")
    parser.add_argument("--how", default="union", choices=["union", "components", "peak"], help="default: union")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a pixel (default: 0.5)")
    parser.add_argument("--least", type=whole_number(1), metavar="PIXELS", help="smallest group (default: 1)")
    parser.add_argument("--side", type=whole_number(1), metavar="PIXELS", help="of a peak (default: 64)")
    parser.add_argument("--map", action="store_true", help="also write the probability, as a channel of the picture")
    parser.add_argument("--test", metavar="NAME", help="test predictions of the run (default: the only ones there)")
    parser.add_argument("--table", type=Path, help="table of the test images (default: data.test_table of the run)")
    options = parser.parse_args(arguments)
    unused = "least" if options.how == "peak" else "side"
    if getattr(options, unused) is not None:
        parser.error(f"--{unused} has no meaning with --how {options.how}: leave it out")
    return options


def main() -> None:
    options = parse()
    with exit_on_error():
        from foldwise.config import read_config
        from foldwise.errors import Refusal
        from foldwise.predictions.finder import Finder
        from foldwise.predictions.found_boxes import write_boxes, write_data_config
        from foldwise.settings import OWNER, list_choices

        if options.out.stem in list_choices("data"):
            raise Refusal(f"there is a data={options.out.stem} already: choose another file name for --out")
        sizes = {"least": options.least or 1, "side": options.side or 64}
        finder = Finder(options.how, tuple(options.classes), options.threshold, **sizes, map=options.map)
        boxes = write_boxes(options.run, options.out, finder, options.test, options.table)
        components = options.how == "components"
        config = write_data_config(read_config(options.run)["data"], OWNER / "data", boxes, components)
    for each in boxes:
        print(f"{each.path}: {each.rows:,} rows of {each.images:,} images; nothing found in {len(each.without):,}")
        for id in each.without[:5]:
            print(f"  nothing found: {id}")
        if len(each.without) > 5:
            print(f"  and {len(each.without) - 5:,} more")
    print(f"\nWritten:\n  {config.relative_to(OWNER.parent)}")
    words = ["task=multiclass", "metric=accuracy"]
    words += ["experiment=crops", *(["+samples.channels=[score_map]"] if options.map else [])]
    checked = f"{prepare_command(config.stem)} {command(*words)}"
    first = "" if components else f" write what is predicted behind target: in configs/data/{config.name}, then"
    print(f"\nNext:{first}\n  {checked}\n  {command('python', 'train.py', override('data', config.stem), *words)}")


if __name__ == "__main__":
    main()

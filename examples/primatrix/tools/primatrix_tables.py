"""Write the tables of the Pri-matrix experiments: the labels of each clip beside its unpacked frames.

example:
  python tools/primatrix_tables.py data/primatrix/frames --micro data/primatrix/micro \\
      --labels data/primatrix/train_labels.csv --test data/primatrix/submission_format.csv

--labels has the column `filename`, one of 0 and 1 for each label, and perhaps `camera`. FRAMES and --micro are folders
of tools/unpack.py. Writes FRAMES/train.csv and FRAMES/test.csv, a row a frame, and FRAMES/sample.csv, the rows of --test.
Clips that could not be decoded are in none of them; FRAMES/broken.csv has the share of each label for those of the
test, to append to the submission.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("frames", type=Path, help="folder of the unpacked clips")
    parser.add_argument("--micro", type=Path, required=True, help="folder of the unpacked micro version")
    parser.add_argument("--labels", type=Path, required=True, help="CSV with the labels of the training clips")
    parser.add_argument("--test", type=Path, required=True, help="CSV that lists the test clips")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with exit_on_error("nothing was written"):
        frames = with_metadata(pd.read_csv(options.frames / "table.csv"), pd.read_csv(options.micro / "table.csv"))
        labels, sample = pd.read_csv(options.labels), pd.read_csv(options.test)
        names = [name for name in labels if name not in ("filename", "camera")]
        of_clip = labels[[name for name in labels if name not in names]].assign(
            labels=["|".join(name for name, value in row.items() if value) for row in labels[names].to_dict("records")],
            blank=labels["blank"].map({1: "blank", 0: ""}),
        )
        readable = sample["filename"].isin(frames["filename"])
        train, test = (frames.merge(part, on="filename") for part in (of_clip, sample[["filename"]]))
        broken = sample[~readable].assign(**labels[names].mean())
        tables = {"train": train, "test": test, "sample": sample[readable], "broken": broken}
        for name, table in tables.items():
            table.to_csv(options.frames / f"{name}.csv", index=False)
    clips = {name: table["filename"].nunique() for name, table in (("training", train), ("test", test))}
    lost = len(labels) - clips["training"]
    print(
        f"{clips['training']:,} training clips ({lost:,} broken), {clips['test']:,} of the test ({len(broken):,} broken)"
    )


def with_metadata(frames: pd.DataFrame, micro: pd.DataFrame) -> pd.DataFrame:
    """Frames with the bytes of their clip z-scored within its (height, width), and the metadata of the micro version."""
    frames = frames.rename(columns={"unit": "clip", "order": "number"}).assign(
        filename=frames["file"].str.rpartition("/")[2]
    )
    clips = frames.drop_duplicates("filename").set_index("filename")
    within = clips.groupby(["height", "width"])["bytes"]
    z = (clips["bytes"] - within.transform("mean")) / within.transform("std")
    small = micro.drop_duplicates("unit").set_index("unit")
    return frames[["id", "image", "clip", "number", "filename", "height", "width"]].assign(
        bytes_z=frames["filename"].map(z),
        micro_bytes=frames["clip"].map(small["bytes"]),
        micro_bit_rate=frames["clip"].map(small["bit_rate"]),
    )


if __name__ == "__main__":
    main()

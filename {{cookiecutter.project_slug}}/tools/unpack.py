"""Unpack videos or DICOM files into images and a table with one row per image.

examples:
  python tools/unpack.py video downloads/clips --out data/clips --fps 3 --most 45 --size 404
  python tools/unpack.py dicom downloads/ct --out data/ct --window 40 400

OUT/table.csv has the columns id, image, unit (the video, or the DICOM series), order (position in the unit) and what
the file says about itself. Join your labels to it by `file` or `unit`, then name its columns in configs/data (unit,
group). Files that cannot be read are listed in OUT/bad_files.csv with the reason. If interrupted, the same command
resumes.

Videos need PyAV (pip install av), DICOM files pydicom (pip install pydicom, and pylibjpeg[all] for compressed pixels).
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser, positive_number, whole_number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("kind", choices=["video", "dicom"], help="what the files are")
    parser.add_argument("source", type=Path, help="folder with the files; folders in it are searched too")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--processes", type=whole_number(1), default=os.cpu_count(), help="default: one per CPU core")
    video = parser.add_argument_group("video")
    video.add_argument("--fps", type=positive_number, default=1.0, help="frames per second (default: 1)")
    video.add_argument("--most", type=whole_number(1), help="maximum number of frames of a video (default: all)")
    video.add_argument("--size", type=whole_number(1), help="longest side in pixels (default: as stored)")
    dicom = parser.add_argument_group("dicom")
    dicom.add_argument(
        "--window",
        nargs=2,
        type=float,
        action="append",
        metavar=("CENTRE", "WIDTH"),
        help="values to show, such as 40 400; three of them make an RGB image (default: the window in the file)",
    )
    dicom.add_argument("--bits", type=int, choices=[8, 16], default=8, help="bits per channel (default: 8)")
    options = parser.parse_args(arguments)
    if options.window and len(options.window) not in (1, 3):
        parser.error(f"--window is given {len(options.window)} times; give it once, or three times for RGB")
    if any(width <= 0 for _, width in options.window or ()):
        parser.error("the WIDTH of a --window must be above 0")
    return options


def main() -> None:
    """Unpack and print what was written; exit with code 2 on unusable input."""
    options = parse()
    with exit_on_error("what is unpacked stays; the same command resumes"):
        from foldwise.errors import Refusal
        from foldwise.progress import progress_bar
        from foldwise.unpacking import dicom, video
        from foldwise.unpacking.unpack import Unpacker, unpack

        package = {"video": "av", "dicom": "pydicom"}[options.kind]
        if importlib.util.find_spec(package) is None:
            raise Refusal(f"this needs a package that is not installed: pip install {package}")
        unpacker: Unpacker
        if options.kind == "video":
            unpacker, suffixes = video.Video(options.fps, options.most, options.size), video.SUFFIXES
        else:
            windows = tuple((centre, width) for centre, width in options.window or ())
            unpacker, suffixes = dicom.Dicom(windows, options.bits), dicom.SUFFIXES
        with progress_bar("files") as progress:
            result = unpack(options.source, options.out, unpacker, suffixes, options.processes, progress)
    good = result.files - len(result.bad)
    print(f"{good:,} of {result.files:,} files: {result.images:,} images, {result.units:,} units")
    for file, problem in list(result.bad.items())[:5]:
        print(f"  bad: {file}: {problem}")
    if len(result.bad) > 5:
        print(f"  and {len(result.bad) - 5:,} more in {options.out / 'bad_files.csv'}")
    print(f"\nWritten:\n  {options.out / 'table.csv'}\n  {options.out / 'bad_files.csv'}")
    print("\nNext: join your labels to the table, and name its columns in configs/data/competition.yaml")


if __name__ == "__main__":
    main()

"""Check a competition's data and prepare it for training: folds, image statistics, samples.png.

examples:
  python prepare.py --discover ~/Downloads/some-competition
  python prepare.py --data sample
  python prepare.py --data competition
  python prepare.py --data competition data.folds=10 seed=1
  python prepare.py --data competition --weights weights/tf_efficientnet_lite0.safetensors

--discover looks at a competition's folder as it was unpacked, writes configs/data/competition.yaml (or the name given
with --data), and says what it found, why, and what it could not decide. The folder is only read; a table that it lacks
is written to data/competition/tables.

Without --discover it reports all problems of the table and the images at once. Then it looks for duplicates and for a
shift between train and test: in pixels or, with --weights, in the features of a network. Run it again at any time: only
new images are read, existing rows keep their folds, and new rows are added to the folds.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldwise.command import exit_on_error, make_parser
from foldwise.errors import Refusal
from foldwise.shell import command, override

if TYPE_CHECKING:
    from foldwise.audit.descriptors import Describer
    from foldwise.data.prepare import Prepared

SHOWN_CLASSES = 40


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", default="competition", help="a file in configs/data, by name (default: competition)")
    add("--discover", type=Path, metavar="FOLDER", help="write the data config for a folder as it was unpacked")
    add("--weights", type=Path, metavar="FILE", help="weights of --network: also finds other views of a scene")
    add("--network", default="tf_efficientnet_lite0", help="a timm network (default: tf_efficientnet_lite0)")
    add("overrides", nargs="*", metavar="key=value", help="changes to the config, as in train.py")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error("run the same command again to resume; images already read are skipped"):
        if options.discover is not None:
            if options.overrides or options.weights:
                raise Refusal("--discover takes no other settings than --data: change the file that it writes")
            return discover_folder(options.discover.expanduser(), options.data)
        run(options.data, options.overrides, options.weights, options.network)


def discover_folder(folder: Path, name: str) -> None:
    """Write the data config `name` for a folder, and print what was found."""
    from foldwise.discovery.discover import discover, write

    found = discover(folder, name)
    width = max(len(what) for what, _ in found.lines)
    print(f"Found in {found.root}:")
    for what, text in found.lines:
        print(f"  {what:{width}}  {text}")
    if found.doubts:
        print("\nNot decided (please check):")
    for doubt in found.doubts:
        print(f"  - {doubt}")
    written = write(found)
    print("\nWritten:")
    for file in written:
        print(f"  {file}")
    print(f"\nNext:\n  {command('python', 'prepare.py', '--data', name)}")


def run(name: str, overrides: list[str], weights: Path | None, network: str) -> None:
    """Prepare the data config `name` and print the result."""
    from omegaconf import OmegaConf

    from foldwise.audit.image_notes import audit_images
    from foldwise.audit.table_notes import audit_table
    from foldwise.checks import check_data
    from foldwise.code.runs import current_code
    from foldwise.config import compose_config
    from foldwise.data.prepare import check_test_table, prepare
    from foldwise.reporting.pictures import draw_samples

    config: Any = OmegaConf.to_container(compose_config([f"data={name}", *overrides]), resolve=True)
    check_data(config)
    data = config["data"]
    describe = make_describer(weights, network)
    prepared = prepare(config, current_code(config).alias)
    notes = [*prepared.notes, *audit_table(data, prepared)]
    path, test = data["test_table"], None
    if path is None or not Path(path).exists():
        notes.append(f"there is no test table ({path or 'data.test_table is null'})")
    else:
        test, found = check_test_table(data, prepared)
        notes += [f"{path}: {note}" for note in found]
        print(f"{path}: {len(test)} rows, checked")
    notes += audit_images(data, prepared, test, describe)
    draw_samples(data, prepared)
    show(prepared, notes)
    print("\nWritten:")
    for file in ("folds.csv", "images.csv", "statistics.json", "samples.png", "duplicates.csv", "adversarial.csv"):
        if (written := Path(data["prepared"]) / file).exists():
            print(f"  {written}")
    chosen = [] if any(word.startswith("experiment=") for word in overrides) else ["experiment=baseline"]
    following = command("python", "train.py", *chosen, override("data", name), *overrides)
    if config["task"] == "detection":
        following = f"{command('python', 'tools/boxes.py', 'found', '--data', name)} --from <coco, yolo or table> ..."
    print(f"\nNext:\n  {following}")


def make_describer(weights: Path | None, network: str) -> "Describer":
    """Make what similar images are found with: a network if its weights are given, else pixels."""
    if weights is None:
        from foldwise.audit.descriptors import PixelDescriber

        return PixelDescriber()
    from foldwise.audit.embeddings import NetworkDescriber

    return NetworkDescriber(network, weights)


def show(prepared: "Prepared", notes: list[str]) -> None:
    """Print the classes of each fold, the images, and the notes."""
    import numpy as np
    from rich.console import Console

    from foldwise.data.holdout import GOLD
    from foldwise.reporting.console import make_table
    from foldwise.tasks import find_task

    table, statistics, scan = prepared.table, prepared.statistics, prepared.scan
    counts = np.array(list(statistics["class_counts"].values()))
    folds, rows = np.unique(prepared.fold_of_items, return_counts=True)
    task = find_task(table.task)
    what = (
        "known numbers per column" if task.transforms else f"{'pixels' if task.kind == 'maps' else 'images'} per class"
    )
    title = f"{table.path}: {len(table)} rows; {what} and fold"
    names = [{-1: "train", GOLD: "gold"}.get(fold, f"fold {fold}") for fold in folds.tolist()]
    histogram = make_table(title, ["column" if task.transforms else "class"], [*names, "all"])
    for number in np.sort(np.argsort(counts.sum(axis=0), kind="stable")[:SHOWN_CLASSES]):
        of_class = counts[:, number]
        histogram.add_row(table.classes[number], *(f"{value:,.10g}" for value in [*of_class, of_class.sum()]))
    histogram.add_section()
    histogram.add_row("rows", *(f"{value:,}" for value in [*rows, len(table)]))
    Console().print(histogram)
    if len(table.classes) > SHOWN_CLASSES:
        print(f"the {SHOWN_CLASSES} rarest of {len(table.classes)} classes; statistics.json has them all")
    sizes = [f"{side} {scan[side].min():.0f} to {scan[side].max():.0f}" for side in ("height", "width")]
    print(f"images: {', '.join(sizes)}")
    for name, image in statistics["images"].items():
        mean, std = ([f"{value:.4f}" for value in image[moment]] for moment in ("mean", "std"))
        print(f"{name}: {image['channels']} channels of {image['dtype']}, 1.0 is {image['scale']:g}")
        print(f"  mean [{', '.join(mean)}], std [{', '.join(std)}]")
    for note in notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()

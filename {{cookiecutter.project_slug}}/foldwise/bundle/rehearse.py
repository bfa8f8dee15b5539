"""Rehearsal: runs a bundle as the host would, and compares its predictions with predict.py's."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from foldwise.bundle.comparison import Comparison, compare_boxes, compare_with_runs
from foldwise.bundle.first_stage import BOXES
from foldwise.bundle.inferring import REPORT
from foldwise.bundle.inputs import LARGEST, Inputs, read_inputs
from foldwise.bundle.spec import BundleSpec, read_bundle
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.items import describe_model
from foldwise.inference.runs import load_run
from foldwise.predictions.writers import BAD

DATA = "data"  # link to the table's images, next to the planted ones
# Allowed differences from predict.py: of a probability, and of the answers (rounding can tip them).
EXACT, ROUNDED = (1e-4, 0.01), (0.02, 0.05)  # full precision, half precision
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # of the environment
# Python imports it as sitecustomize before anything else. Unix sockets stay, since workers need them.
NO_SOCKETS = """import socket

connect = socket.socket.connect


def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError("the rehearsal has no network")
    return connect(self, address)


socket.socket.connect = refuse
"""


class Rehearsed(NamedTuple):
    """Result of a rehearsal: infer.py's report, the images that got the fallback, the number of planted ones, the
    comparison with predict.py, the forecast in seconds for the hidden test, and problems."""

    report: dict[str, Any]
    bad: pd.DataFrame
    planted: int
    comparison: Comparison
    hidden_seconds: float | None
    problems: list[str]


def rehearse(
    bundle: Path,
    table: Path,
    images: Path | None = None,
    rows: int = 5000,
    hidden: int | None = None,
    workers: int = 2,
    batch_size: int = 32,
) -> Rehearsed:
    """Run a bundle on a made-up hidden test with planted bad images, and check what it wrote.

    Args:
        table: rows to draw from, with the columns of the test table; rows repeat if there are fewer than `rows`.
        images: folder that image paths are relative to; default: data root of the first run.
        rows: of the made-up test; items if the reader groups several rows into one.
        hidden: rows of the real hidden test, for the forecast; default: `rows`.
    """
    spec = read_bundle(bundle)
    seen = spec.first or spec  # what reads the test
    missing = [
        run.source
        for run in (*spec.runs, *(spec.first.runs if spec.first else ()))
        if not (Path(run.source) / "config.yaml").is_file()
    ]
    if missing:
        raise Refusal(
            f"there is no run {', '.join(missing)} here to compare the bundle with: rehearse in the folder where "
            "you ran bundle.py"
        )
    if not table.exists():
        raise Refusal(f"--table {table} does not exist")
    run = load_run(Path(seen.runs[0].source))
    root = images or Path(run.data["root"])
    samples = describe_model(next(iter(run.models.values()))).samples
    inputs = read_inputs(table, root, seen.columns, set(), samples)
    second = describe_model(next(iter(load_run(Path(spec.runs[0].source)).models.values()))).samples
    columns = [*samples.columns, *(spec.stacks.columns if spec.stacks else ()), *second.columns]
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        work = Path(name)
        host, out = work / "input", work / "out"
        shutil.copytree(bundle, host / "bundle")
        (host / "images").mkdir()
        (host / "images" / DATA).symlink_to(root.resolve(), target_is_directory=True)
        test, planted = _draw(
            inputs,
            [name for name in dict.fromkeys(columns) if name in inputs.test.source.frame],
            seen,
            rows,
            plant(work / "planted"),
        )
        for name, path in planted.items():
            (host / "images" / name).parent.mkdir(parents=True)
            if path.exists():  # "missing.png" does not
                shutil.copy(path, host / "images" / name)
        test.to_csv(host / "test.csv", index=False)
        hidden_test = read_inputs(host / "test.csv", host / "images", seen.columns, set(), samples)
        layout = spec.layout
        ids = layout.row_ids(list(dict.fromkeys(image.unit for image in hidden_test.images)))
        by_box = spec.first is not None and spec.first.decision.how == "components"
        sample = pd.DataFrame({name: ids if name == layout.id_column else 0 for name in layout.columns})
        sample.to_csv(host / "sample.csv", index=False)
        command = [sys.executable, "bundle/infer.py", "--test", "test.csv", "--images", "images"]
        # The rows of components, without a unit that holds those of a picture together, are not known before.
        command += [] if by_box and spec.columns["unit"] is None else ["--sample-submission", "sample.csv"]
        command += ["--out", str(out), "--keep-shards"]
        command += ["--workers", str(workers), "--batch-size", str(batch_size)]
        without = ("torch",) if spec.runtime == "onnx" else ()
        done = run_sandboxed(command, host, work, without)
        if done.returncode:
            raise Refusal(f"infer.py failed with exit code {done.returncode}:\n{done.stderr.strip()}")
        report = read_json(out / REPORT)
        bad = pd.read_csv(out / BAD, dtype=str, keep_default_na=False)
        boxes = None
        if spec.first is not None:
            boxes = compare_boxes(spec.first, test, hidden_test, out, work)
            test = pd.read_csv(out / BOXES, dtype=str, keep_default_na=False)
            hidden_test = read_inputs(out / BOXES, host / "images", spec.columns, set(), second)
        comparison = compare_with_runs(spec, test, hidden_test, set(bad["id"]), out, work)
    hidden_seconds = _forecast(report, hidden or rows)
    problems = [
        f"the planted bad image {name} was predicted as a good one"
        for name in planted
        if str(Path("images") / name) not in set(bad["image"])
    ]
    probability, answers = ROUNDED if spec.half else EXACT
    if boxes is not None and not boxes <= answers:
        problems.append(f"{boxes:.2%} of the images have other boxes than tools/crop.py finds, more than {answers:.0%}")
    if comparison.probability is not None and not comparison.probability <= probability:
        problems.append(
            f"probabilities differ from predict.py's by {comparison.probability:.2g}, more than {probability}"
        )
    if comparison.answers is not None and not comparison.answers <= answers:
        problems.append(f"answers differ from predict.py's by {comparison.answers:.2%}, more than {answers:.0%}")
    return Rehearsed(report, bad, len(planted), comparison, hidden_seconds, problems)


def _forecast(report: Mapping[str, Any], hidden: int) -> float | None:
    """Seconds for so many images at the measured speeds."""
    speed, first = report["seconds_per_image"], report.get("first_stage")
    if speed is None or (first and first["seconds_per_image"] is None):
        return None
    if not first:
        return report["seconds_to_first_batch"] + speed * hidden
    starting = report["seconds_to_first_batch"] - first["seconds"]
    return starting + (first["seconds_per_image"] + speed * report["images"] / first["images"]) * hidden


def plant(folder: Path) -> list[Path]:
    """Write bad images as a hidden test may have; the last of the returned paths does not exist."""
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(folder / "corrupt.png")
    (folder / "corrupt.png").write_bytes((folder / "corrupt.png").read_bytes()[:6000])
    noise.crop((0, 0, 1, 1)).save(folder / "one_pixel.png")
    Image.new("1", (LARGEST // 10_000 + 1, 10_000)).save(folder / "enormous.png")
    (folder / "empty.png").touch()
    (folder / "no_picture.jpg").write_bytes(b"<html>404</html>")
    tifffile.imwrite(folder / "channels.tif", np.zeros((32, 32, 7), np.uint8), photometric="minisblack")
    return [*sorted(folder.iterdir()), folder / "missing.png"]


def _draw(
    inputs: Inputs, columns: Sequence[str], spec: BundleSpec, count: int, bad: Sequence[Path]
) -> tuple[pd.DataFrame, dict[str, Path]]:
    """Draw a table of `count` + len(bad) items in random order, and replace some of their images by the bad ones.

    Rows get new ids. A bad image keeps the file stem of the image that it replaces, in case the reader parses it. If
    there are too few items, they repeat with new units. Items of several rows cannot repeat, because equal rows would
    join one item; a row that several of them share is drawn once.

    Args:
        columns: that the reader and stacking need besides ids and images.

    Returns:
        The table, and the bad files by their names in it.
    """
    rng = np.random.default_rng(0)
    table, items = inputs.test.source, inputs.test.items
    total = count + len(bad)
    several = any(len(item.rows) > 1 for item in items)
    if several:
        total = min(total, len(items))
        if total <= len(bad):
            raise Refusal(f"{table.path} has {len(items)} items, but a rehearsal needs more than {len(bad)}")
    order = np.concatenate([rng.permutation(len(items)) for _ in range(-(-total // len(items)))])[:total]
    names = {name: column for name, column in spec.columns.items() if column is not None}
    entries: list[dict[str, Any]] = []
    firsts: list[int] = []  # entries that are the first row of their item
    drawn: set[int] = set()
    for index, number in enumerate(order):
        for row in items[number].rows:
            if several and row in drawn:
                continue
            drawn.add(row)
            if row == items[number].rows[0]:
                firsts.append(len(entries))
            values = table.frame.iloc[row]
            entry = {name: values[name] for name in columns if name not in names}
            entry |= {names["id"]: f"hidden{len(entries):06d}", names["image"]: f"{DATA}/{values['image']}"}
            for name in {"unit", "group"} & names.keys() & set(values.index):
                entry[names[name]] = f"{values[name]}-{index // len(items)}"
            entries.append(entry)
    planted = {}
    for number, path in zip(rng.choice(firsts, len(bad), replace=False), bad, strict=True):
        name = f"planted/{path.stem}/{Path(entries[number][names['image']]).stem}{path.suffix}"
        entries[number][names["image"]], planted[name] = name, path
    return pd.DataFrame(entries), planted


def run_sandboxed(
    command: Sequence[str], read_only: Path, work: Path, without: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command as a host would: in the folder `read_only`, with a home in `work` and a clean environment.

    Blocks Python's sockets and write-protects the files, which root can still change.
    """
    home = work / "home"
    home.mkdir()
    absent = f"\nimport sys\n\nsys.modules.update(dict.fromkeys({list(without)!r}))\n"  # importing them fails
    (home / "sitecustomize.py").write_text(NO_SOCKETS + absent, encoding="utf-8")
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(home)}
    _protect(read_only, 0o555, 0o444)
    try:
        return subprocess.run(command, cwd=read_only, env=environment, text=True, capture_output=True)
    finally:
        _protect(read_only, 0o755, 0o644)  # so that they can be deleted


def _protect(folder: Path, folders: int, files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(folders if path.is_dir() else files)


def describe(rehearsed: Rehearsed, hidden: int) -> list[str]:
    """Format the result as lines of text."""
    report, comparison = rehearsed.report, rehearsed.comparison
    gpu = f", {report['gpu_memory_mb']} MB of the GPU" if report["gpu_memory_mb"] is not None else ""
    lines = [
        f"images      {report['images']} in {report['seconds']:.0f} s on {report['device']}",
        f"memory      {report['memory_mb']} MB with workers{gpu}",
        f"fallback    {len(rehearsed.bad)} images, {rehearsed.planted} of them planted",
    ]
    if first := report.get("first_stage"):
        lines.append(f"boxes       nothing found in {first['without_box']} of {first['images']} images")
    early = report["forecast_after_a_tenth"]
    if early is not None:
        lines.append(f"forecast    {early:.0f} s after the first tenth ({early / report['seconds'] - 1:+.1%})")
    if rehearsed.hidden_seconds is not None:
        lines.append(f"hidden      {hidden} images would take {rehearsed.hidden_seconds / 60:.1f} min here")
    compared = f"predict.py  {comparison.images} images"
    if comparison.probability is not None:
        compared += f", probabilities differ by at most {comparison.probability:.2g}"
    if comparison.answers is not None:
        compared += f", answers by {comparison.answers:.4%}"
    return [*lines, compared, *(f"note        {note}" for note in report["notes"])]

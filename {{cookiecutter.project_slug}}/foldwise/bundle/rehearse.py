"""A rehearsal: the bundle is run as the host would run it, and its predictions are compared with predict.py's."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from foldwise.bundle.comparison import Comparison, compare_with_runs
from foldwise.bundle.inferring import BAD, REPORT
from foldwise.bundle.inputs import LARGEST, Inputs, read_inputs
from foldwise.bundle.spec import BundleSpec, read_bundle
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.runs import load_run
from foldwise.inference.weights import load_samples

DATA = "data"  # the link to the table's images, beside the planted ones
# What may differ from predict.py: a probability, and the share of the answers, which rounding decides between classes.
EXACT, ROUNDED = (1e-4, 0.01), (0.02, 0.05)  # the second where weights were rounded to half precision
KEPT = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # where programs and processors are
# Found by Python on its path before anything else runs. Sockets within the machine stay: workers talk through them.
NO_SOCKETS = """import socket

connect = socket.socket.connect


def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError("the rehearsal has no network")
    return connect(self, address)


socket.socket.connect = refuse
"""


class Rehearsed(NamedTuple):
    """infer.py's own report, the images that got the fallback and how many of them were planted, the comparison with
    predict.py, the seconds forecast for the hidden test, and what is not as it must be."""

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
    """Run a bundle on a swapped table with planted bad images, and check what it wrote.

    Args:
        table: rows to draw from, with the columns of the test table; drawn again where there are fewer than `rows`.
        images: the folder that its image paths begin in; None: that of the first run's data.
        rows: of the rehearsed test, or items where the reader makes items of several rows.
        hidden: rows of the hidden test, for the forecast; None: `rows`.

    Raises:
        Refusal: the bundle, the table, its images or the runs cannot be used, or infer.py ended with an error.
    """
    spec = read_bundle(bundle)
    missing = [run.source for run in spec.runs if not (Path(run.source) / "config.yaml").is_file()]
    if missing:
        raise Refusal(
            f"there is no run {', '.join(missing)} here, whose predictions the bundle's are compared with: rehearse in "
            f"the folder in which the bundle was written"
        )
    run = load_run(Path(spec.runs[0].source))
    root = images or Path(run.data["root"])
    samples = load_samples(next(iter(run.models.values())))
    inputs = read_inputs(table, root, spec.columns, set(), samples)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        work = Path(name)
        host, out = work / "input", work / "out"
        shutil.copytree(bundle, host / "bundle")
        (host / "images").mkdir()
        (host / "images" / DATA).symlink_to(root.resolve(), target_is_directory=True)
        test, planted = _draw(inputs, samples.columns, spec, rows, plant(work / "planted"))
        for name, path in planted.items():
            (host / "images" / name).parent.mkdir(parents=True)
            if path.exists():  # one is missing
                shutil.copy(path, host / "images" / name)
        test.to_csv(host / "test.csv", index=False)
        hidden_test = read_inputs(host / "test.csv", host / "images", spec.columns, set(), samples)
        layout = spec.layout
        ids = layout.row_ids(list(dict.fromkeys(image.unit for image in hidden_test.images)))
        sample = pd.DataFrame({name: ids if name == layout.id_column else 0 for name in layout.columns})
        sample.to_csv(host / "sample.csv", index=False)
        command = [sys.executable, "bundle/infer.py", "--test", "test.csv", "--images", "images"]
        command += ["--sample-submission", "sample.csv", "--out", str(out), "--keep-shards"]
        done = run_sandboxed([*command, "--workers", str(workers), "--batch-size", str(batch_size)], host, work)
        if done.returncode:
            raise Refusal(f"infer.py ended with exit code {done.returncode}:\n{done.stderr.strip()}")
        report = read_json(out / REPORT)
        bad = pd.read_csv(out / BAD, dtype=str, keep_default_na=False)
        comparison = compare_with_runs(spec, test, hidden_test, set(bad["id"]), out, work)
    rate = report["seconds_per_image"]
    expected = None if rate is None else report["seconds_to_first_batch"] + rate * (hidden or rows)
    problems = [
        f"the planted image {name} was predicted as if it were good"
        for name in planted
        if str(Path("images") / name) not in set(bad["image"])
    ]
    probability, answers = ROUNDED if spec.half else EXACT
    if comparison.probability is not None and not comparison.probability <= probability:
        problems.append(f"probabilities differ from predict.py's by {comparison.probability:.2g}, over {probability}")
    if comparison.answers is not None and not comparison.answers <= answers:
        problems.append(f"answers differ from those to predict.py's by {comparison.answers:.2%}, over {answers:.0%}")
    return Rehearsed(report, bad, len(planted), comparison, expected, problems)


def plant(folder: Path) -> list[Path]:
    """Write pictures that a hidden test may have and no training set had; one of them is not written at all."""
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
    """A test of so many items in random order, in which bad pictures take the place of some; and those, by their names.

    Rows have new ids. A bad picture keeps the stem of the file whose place it takes, which a reader may need. Items are
    drawn again where there are too few, into units of their own; but not those that have several rows, which would
    become one. A row of several items is drawn once.

    Args:
        columns: what the reader needs beside ids and images.
        bad: files of bad pictures.

    Raises:
        Refusal: there are too few items of several rows.
    """
    rng = np.random.default_rng(0)
    table, items = inputs.found.source, inputs.found.items
    there, wanted = len(items), count + len(bad)
    several = any(len(item.rows) > 1 for item in items)
    if several:
        wanted = min(wanted, there)
        if wanted <= len(bad):
            raise Refusal(f"{table.path} has {there} items, and a rehearsal needs more than {len(bad)}")
    order = np.concatenate([rng.permutation(there) for _ in range(-(-wanted // there))])[:wanted]
    names = {name: column for name, column in spec.columns.items() if column is not None}
    entries: list[dict[str, Any]] = []
    firsts: list[int] = []  # entries that are the first row of their item
    drawn: set[int] = set()
    for place, number in enumerate(order):
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
                entry[names[name]] = f"{values[name]}-{place // there}"
            entries.append(entry)
    planted = {}
    for number, path in zip(rng.choice(firsts, len(bad), replace=False), bad, strict=True):
        name = f"planted/{path.stem}/{Path(entries[number][names['image']]).stem}{path.suffix}"
        entries[number][names["image"]], planted[name] = name, path
    return pd.DataFrame(entries), planted


def run_sandboxed(command: Sequence[str], read_only: Path, work: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a host would: in the folder `read_only`, with a home in `work` and a clean environment.

    Python's sockets are blocked, and files protected, which does not keep root from writing.
    """
    home = work / "home"
    home.mkdir()
    (home / "sitecustomize.py").write_text(NO_SOCKETS, encoding="utf-8")
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(home)}
    _protect(read_only, 0o555, 0o444)
    try:
        return subprocess.run(command, cwd=read_only, env=environment, text=True, capture_output=True)
    finally:
        _protect(read_only, 0o755, 0o644)  # so that it can be deleted


def _protect(folder: Path, folders: int, files: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(folders if path.is_dir() else files)


def describe(rehearsed: Rehearsed, hidden: int) -> list[str]:
    """The result as lines of text."""
    report, comparison = rehearsed.report, rehearsed.comparison
    gpu = f", {report['gpu_memory_mb']} MB of the GPU" if report["gpu_memory_mb"] is not None else ""
    lines = [
        f"images      {report['images']} in {report['seconds']:.0f} s on {report['device']}",
        f"memory      {report['memory_mb']} MB with its workers{gpu}",
        f"fallback    {len(rehearsed.bad)} images, of which {rehearsed.planted} were planted",
    ]
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

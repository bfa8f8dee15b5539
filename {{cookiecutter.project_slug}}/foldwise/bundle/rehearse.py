"""A rehearsal: the bundle is run as the host would run it, and what it says is compared with predict.py."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from foldwise.bundle.comparison import Comparison, compare_with_runs
from foldwise.bundle.inferring import BAD, REPORT
from foldwise.bundle.inputs import Inputs, read_inputs
from foldwise.bundle.planted import plant
from foldwise.bundle.recipe import Recipe, read_recipe
from foldwise.bundle.sandbox import has_namespaces, run_sandboxed
from foldwise.errors import Refusal
from foldwise.files import read_json
from foldwise.inference.runs import open_run
from foldwise.inference.weights import load_samples

DATA = "data"  # the link to the table's images, beside the planted ones
# What may differ from predict.py: a probability, and the share of the answers, which rounding decides between classes.
EXACT, ROUNDED = (1e-4, 0.01), (0.02, 0.05)  # the second where weights were rounded to half precision


@dataclass(frozen=True)
class Rehearsed:
    """What came out.

    Attributes:
        report: infer.py's own, see `inferring.infer`.
        bad: images that got the fallback: those that were planted, and others that the table has.
        planted: how many were planted.
        comparison: with predict.py.
        hidden_seconds: forecast for the hidden test.
        isolated: whether the network was taken away by the system, and not only from Python.
        problems: what is not as it must be.
    """

    report: dict[str, Any]
    bad: pd.DataFrame
    planted: int
    comparison: Comparison
    hidden_seconds: float | None
    isolated: bool
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
    """Run a bundle on a swapped table with planted bad images, and look at what it wrote.

    Args:
        table: rows to draw from, with the columns of the test table; drawn again where there are fewer than `rows`.
        images: the folder that its image paths begin in; None: that of the first run's data.
        rows: of the rehearsed test, or items where the reader makes items of several rows.
        hidden: rows of the hidden test, for the forecast; None: `rows`.

    Raises:
        Refusal: the bundle, the table, its images or the runs cannot be used, or infer.py ended with an error.
    """
    recipe = read_recipe(bundle)
    missing = [run.source for run in recipe.runs if not (Path(run.source) / "config.yaml").is_file()]
    if missing:
        raise Refusal(
            f"there is no run {', '.join(missing)} here, whose predictions the bundle's are compared with: rehearse in "
            f"the folder in which the bundle was written"
        )
    run = open_run(Path(recipe.runs[0].source))
    root = images or Path(run.data["root"])
    samples = load_samples(next(iter(run.models.values())))
    inputs = read_inputs(table, root, recipe.columns, set(), samples)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        work = Path(name)
        host, out = work / "input", work / "out"
        shutil.copytree(bundle, host / "bundle")
        (host / "images").mkdir()
        (host / "images" / DATA).symlink_to(root.resolve(), target_is_directory=True)
        planted = [f"planted/{path.name}" for path in plant(host / "images" / "planted")]
        test = _draw(inputs, samples.columns, recipe, rows, planted)
        test.to_csv(host / "test.csv", index=False)
        hidden_test = read_inputs(host / "test.csv", host / "images", recipe.columns, set(), samples)
        _sample(recipe, hidden_test).to_csv(host / "sample.csv", index=False)
        command = [sys.executable, "bundle/infer.py", "--test", "test.csv", "--images", "images"]
        command += ["--sample-submission", "sample.csv", "--out", str(out), "--keep-parts"]
        command += ["--workers", str(workers), "--batch-size", str(batch_size)]
        isolated = has_namespaces(host)
        done = run_sandboxed(command, host, work, isolated)
        if done.returncode:
            raise Refusal(f"infer.py ended with exit code {done.returncode}:\n{done.stderr.strip()}")
        report = read_json(out / REPORT)
        bad = pd.read_csv(out / BAD, dtype=str, keep_default_na=False)
        comparison = compare_with_runs(recipe, test, hidden_test, set(bad["id"]), root, out, work)
        problems = _problems(recipe, bad, planted, comparison)
    rate = report["seconds_per_image"]
    expected = None if rate is None else report["seconds_to_first_batch"] + rate * (hidden or rows)
    return Rehearsed(report, bad, len(planted), comparison, expected, isolated, problems)


def _draw(inputs: Inputs, columns: Sequence[str], recipe: Recipe, items: int, planted: Sequence[str]) -> pd.DataFrame:
    """A test of so many items in random order, and among them one for each planted picture, in the place of its own.

    Rows have new ids. Items are drawn again where there are too few, into units of their own; but not those that have
    several rows, which would become one.

    Args:
        columns: what the reader needs beside ids and images.

    Raises:
        Refusal: there are too few items of several rows.
    """
    rng = np.random.default_rng(0)
    there, wanted = len(inputs.items), items + len(planted)
    if any(len(item.rows) > 1 for item in inputs.items):
        wanted = min(wanted, there)
        if wanted <= len(planted):
            raise Refusal(f"{inputs.table.path} has {there} items, and a rehearsal needs more than {len(planted)}")
    order = np.concatenate([rng.permutation(there) for _ in range(-(-wanted // there))])[:wanted]
    turns = np.arange(wanted) // there
    bad = dict(zip(rng.choice(wanted, len(planted), replace=False).tolist(), planted, strict=True))
    names = {name: column for name, column in recipe.columns.items() if column is not None}
    entries: list[dict[str, Any]] = []
    frame = inputs.table.frame
    for place, (number, turn) in enumerate(zip(order, turns, strict=True)):
        for row in inputs.items[number].rows:
            values = frame.iloc[row]
            entry = {name: values[name] for name in columns if name not in names}
            entry[names["id"]] = f"hidden{len(entries):06d}"
            entry[names["image"]] = bad.pop(place, f"{DATA}/{values['image']}")
            for name in ("unit", "group"):
                if name in names and name in frame:
                    entry[names[name]] = f"{values[name]}-{turn}"
            entries.append(entry)
    return pd.DataFrame(entries)


def _sample(recipe: Recipe, test: Inputs) -> pd.DataFrame:
    """A sample submission for the test, of the bundle's own format; what is in its cells is not read."""
    layout = recipe.format
    ids = layout.row_ids(list(dict.fromkeys(test.units or test.ids)))
    return pd.DataFrame({name: ids if name == layout.id_column else 0 for name in layout.columns})


def _problems(recipe: Recipe, bad: pd.DataFrame, planted: Sequence[str], comparison: Comparison) -> list[str]:
    problems = [
        f"the planted image {name} was predicted as if it were good"
        for name in planted
        if str(Path("images") / name) not in set(bad["image"])
    ]
    probability, answers = ROUNDED if recipe.half else EXACT
    if comparison.probability is not None and not comparison.probability <= probability:
        problems.append(f"probabilities differ from predict.py's by {comparison.probability:.2g}, over {probability}")
    if comparison.answers is not None and not comparison.answers <= answers:
        problems.append(f"answers differ from those to predict.py's by {comparison.answers:.2%}, over {answers:.0%}")
    return problems


def describe(rehearsed: Rehearsed, hidden: int) -> list[str]:
    """What came out, for people."""
    report, comparison = rehearsed.report, rehearsed.comparison
    lines = [
        "without network, in a namespace" if rehearsed.isolated else "without sockets in Python; no namespaces here",
        f"images      {report['images']} in {report['seconds']:.0f} s on {report['device']}",
        f"memory      {report['memory_mb']} MB with its workers"
        + (f", {report['gpu_memory_mb']} MB of the GPU" if report["gpu_memory_mb"] is not None else ""),
        f"fallback    {len(rehearsed.bad)} images, of which {rehearsed.planted} were planted",
    ]
    early = report["forecast_after_a_tenth"]
    if early is not None:
        lines.append(f"forecast    {early:.0f} s after the first tenth ({early / report['seconds'] - 1:+.1%})")
    if rehearsed.hidden_seconds is not None:
        lines.append(f"hidden      {hidden} images would take {rehearsed.hidden_seconds / 60:.1f} min here")
    said = [f"{comparison.images} images"]
    if comparison.probability is not None:
        said.append(f"probabilities differ by at most {comparison.probability:.2g}")
    if comparison.answers is not None:
        said.append(f"answers by {comparison.answers:.4%}")
    return [*lines, f"predict.py  {', '.join(said)}", *(f"note        {note}" for note in report["notes"])]

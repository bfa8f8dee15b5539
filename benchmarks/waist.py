"""What the dicts at the waist cost: training and prediction of the sample, in turns with another commit.

    .venv/bin/python benchmarks/waist.py 1ec8b23 [PAIRS [EPOCHS [OVERRIDE ...]]]

Prints median ratios to that commit: of the seconds of an epoch (its history.csv, without the first), of the seconds of
predict.py, and of an epoch with five extra keys in every sample. The guard: 1.03, and 1.05 with the keys. Both
repositories are rendered into a temporary folder; the commit is checked out as a worktree there. Overrides are of the
trainings.
"""

import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEYS = '''
from foldwise.data.fields import Field
from solution import samples


class Samples(samples.Samples):
    """Five keys beside the image."""

    fields = {"image": Field("image"), **{f"extra{number}": Field("values") for number in range(5)}}

    def read(self, rows, item, state, rng):
        return super().read(rows, item, state, rng) | {f"extra{number}": [1.0, 2.0, 3.0] for number in range(5)}
'''


def render(template: Path, out: Path) -> Path:
    """A rendering of a template; its sample is prepared."""
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", "--output-dir", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    (repository,) = out.iterdir()
    subprocess.run([sys.executable, "prepare.py", "--data", "sample"], cwd=repository, check=True, capture_output=True)
    return repository


def train(repository: Path, name: str, epochs: int, *options: str) -> tuple[Path, list[float]]:
    """The run, and the seconds of its epochs but the first."""
    shared = ["experiment=baseline", "fold=0", f"epochs={epochs}", f"experiment_name={name}", "logger=none"]
    command = [sys.executable, "train.py", *shared, *options]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    (run,) = (repository / "runs").glob(f"{name}-*")
    with (run / "fold0/history.csv").open() as file:
        return run, [float(row["seconds"]) for row in csv.DictReader(file)][1:]


def predict(repository: Path, run: Path) -> float:
    """Seconds of predicting the test table in eight views."""
    begun = time.perf_counter()
    command = [sys.executable, "predict.py", str(run), "--tta", "d4", "--table", "data/sample/multiclass/train.csv"]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure in turns, and print the ratios."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    pairs, epochs = (int(value) for value in [*sys.argv[2:4], *("5", "4")[len(sys.argv[:4]) - 2 :]])
    with tempfile.TemporaryDirectory(prefix="waist-") as folder:
        other = Path(folder) / "other"
        worktree = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*worktree, "add", "--detach", str(other), sys.argv[1]], check=True, capture_output=True)
        try:
            before, after = render(other, Path(folder) / "a"), render(ROOT, Path(folder) / "b")
            (after / "solution/waist.py").write_text(KEYS)
            measure(before, after, pairs, epochs, sys.argv[4:])
        finally:
            subprocess.run([*worktree, "remove", "--force", str(other)], check=True)


def measure(before: Path, after: Path, pairs: int, epochs: int, overrides: list[str]) -> None:
    """Print the ratio of each pair and their medians."""
    ratios: dict[str, list[float]] = {"epoch": [], "predict": [], "epoch with five keys": []}
    for pair in range(pairs):
        old_run, old = train(before, f"pair{pair}", epochs, *overrides)
        new_run, new = train(after, f"pair{pair}", epochs, *overrides)
        _, keys = train(after, f"keys{pair}", epochs, *overrides, "samples._target_=solution.waist.Samples")
        ratios["epoch"].append(statistics.median(new) / statistics.median(old))
        ratios["epoch with five keys"].append(statistics.median(keys) / statistics.median(old))
        ratios["predict"].append(predict(after, new_run) / predict(before, old_run))
        print("  ".join(f"{name} {values[-1]:.3f}" for name, values in ratios.items()), flush=True)
        for run in (old_run, new_run):
            shutil.rmtree(run)
    for name, values in ratios.items():
        print(f"{name:22s} median {statistics.median(values):.3f} of {pairs}")


if __name__ == "__main__":
    main()

"""The baseline's training beside a hand-written loop of the same network, batches and steps (plain_loop.py), in turns.

    make demo && .venv/bin/python benchmarks/training_loop.py build/demo/demo [EPOCHS [TURNS]]

Prints the median seconds of an epoch of each and their ratio: what checks, callbacks, validation and the checkpoint of
each epoch cost. The first epoch of each run, which starts the workers, is left out.
"""

import csv
import shutil
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run both in turns and print the ratio."""
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit(__doc__)
    root = Path(sys.argv[1]).resolve()
    epochs, turns = (int(value) for value in [*sys.argv[2:], *("5", "3")[len(sys.argv) - 2 :]])
    python = str(root / ".venv/bin/python") if (root / ".venv").exists() else sys.executable
    plain, ours = [], []
    for turn in range(turns):
        command = [python, str(Path(__file__).with_name("plain_loop.py").resolve()), str(epochs)]
        done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        plain += [float(line) for line in done.stdout.split()][1:]
        name = f"benchmark{turn}"
        options = ["experiment=baseline", "fold=0", f"epochs={epochs}", f"experiment_name={name}", "logger=none"]
        subprocess.run([python, "train.py", *options, "preflight=false"], cwd=root, check=True, capture_output=True)
        (run,) = (root / "runs").glob(f"{name}-*")
        with (run / "fold0/history.csv").open() as file:
            ours += [float(row["seconds"]) for row in csv.DictReader(file)][1:]
        shutil.rmtree(run)
    print(f"plain loop          {statistics.median(plain):.2f} s an epoch")
    print(f"baseline            {statistics.median(ours):.2f} s an epoch, with validation")
    print(f"ratio               {statistics.median(ours) / statistics.median(plain):.2f}")


if __name__ == "__main__":
    main()

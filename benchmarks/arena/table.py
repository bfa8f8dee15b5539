"""The arena's table in Markdown: mean over seeds, 95 % interval over groups, difference from the best of each set.

python benchmarks/arena/table.py build/arena-results --sets build/arena [--seconds 240]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from evidence import World, score

DRAWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    results = pd.read_csv(options.folder / "results.csv")
    results = results[results["seconds"] == options.seconds]
    print("| set | way | seeds | score | interval | from the best | standard error | CPU seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in results.groupby("set", sort=False):
        world, rng = World(options.sets / str(name)), np.random.default_rng(0)
        group = pd.factorize(world.frame["group"].iloc[world.held])[0]
        members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
        draws = [np.arange(len(group))]
        for _ in range(DRAWS):
            draws.append(np.concatenate([members[number] for number in rng.integers(0, len(members), len(members))]))
        scores = {}
        for rival, own in rows.groupby("rival", sort=False):
            seeds = []
            for seed in own["seed"]:
                path = options.folder / "evidence" / f"{name}-{rival}-{seed}-{options.seconds:g}.npz"
                with np.load(path) as kept:
                    seeds.append([score(world, kept["values"], chosen) for chosen in draws])
            scores[str(rival)] = np.mean(seeds, axis=0)
        best = max(scores, key=lambda rival: scores[rival][0])
        for rival, found in sorted(scores.items(), key=lambda item: -item[1][0]):
            low, high = np.quantile(found[1:], [0.025, 0.975])
            apart = found - scores[best]
            own = rows[rows["rival"] == rival]
            cells = [name, rival, len(own), f"{found[0]:.3f}", f"{low:.3f} to {high:.3f}", f"{apart[0]:.3f}"]
            print("|", " | ".join(map(str, [*cells, f"{apart[1:].std():.3f}", f"{own['used'].mean():.0f}"])), "|")


if __name__ == "__main__":
    main()

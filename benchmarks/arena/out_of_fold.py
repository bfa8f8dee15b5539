"""Keeps the evidence of a run's out-of-fold predictions; starts in the rendered repository.

python out_of_fold.py <set folder> <run> <evidence.npz>
"""

import sys
from pathlib import Path

import numpy as np
from evidence import World, save

sys.path.insert(0, str(Path.cwd()))


def main() -> None:
    from foldwise.predictions.store import average_members, iter_average_maps, read_predictions

    world, run, out = World(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    found = read_predictions(next((run / "fold0").glob("oof-*")))
    ids = world.frame["id"].iloc[world.held].astype(str).tolist()
    if world.task == "segmentation":
        maps = {id: map.argmax(0) for id, map in iter_average_maps(found, ids)}
        raw = [maps[id] for id in ids]
    else:
        mean = average_members(found.frame, world.names).set_index("id").loc[ids, world.names].to_numpy()
        raw = list(mean if world.task == "regression" else np.log(np.clip(mean, 1e-6, 1)))
    save(out, world, raw, 0)


if __name__ == "__main__":
    main()

"""Two steps of examples in one process, started in a rendering that has their overlays: train, save, load, predict.

python try_example.py DATA EXPERIMENT [OVERRIDE ...]  [-- EXPERIMENT ...]
"""

import sys
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parent / "machinery")]


def main() -> None:
    """Try each experiment, and print what it left."""
    data, *rest = sys.argv[1:]
    for separator, group in groupby(rest, lambda word: word == "--"):
        if not separator:
            experiment, *overrides = group
            print(experiment, attempt(data, experiment, overrides), flush=True)


def attempt(data: str, experiment: str, overrides: list[str]) -> str:
    """Train one fold for two steps and predict the test table; the shares of ids that were predicted."""
    import pandas as pd
    import tiny

    from foldwise.config import compose_config, resolve_config
    from foldwise.inference.predicting import predict_runs
    from foldwise.inference.sharing import Choices
    from foldwise.settings import find_choice

    columns = ["data.columns.group=series"] if not any("columns.group" in word for word in overrides) else []
    config: dict[str, Any] = resolve_config(
        compose_config(
            [
                f"experiment={experiment}",
                "data=competition",
                f"data.root={data}",
                f"data.table={data}/train.csv",
                f"data.test_table={data}/test.csv",
                f"data.prepared={data}/prepared-{experiment}",
                "data.image_size=32",
                "data.folds=2",
                "data.workers=0",
                "batch_size=4",
                "epochs=1",
                "fold=0",
                "trainer=cpu",
                "trainer.limit_train_batches=2",
                "logger=none",
                f"experiment_name={experiment}",
                *columns,
                *overrides,
            ]
        )
    )
    tiny.ROOT = Path.cwd()  # whose solution/ is trained
    run = tiny.train_folds(config, Path("runs"))
    (folder,) = predict_runs([run], Choices(tta=find_choice("tta", "flips"), workers=0, device="cpu"))
    name = "index.parquet" if (folder / "index.parquet").exists() else "predictions.parquet"
    return f"{pd.read_parquet(folder / name)['id'].nunique()} predicted"


if __name__ == "__main__":
    main()

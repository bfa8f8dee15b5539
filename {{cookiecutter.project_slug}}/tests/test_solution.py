"""The solution trains: two steps end in a saved model."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_two_steps(tmp_path):
    for name in ("foldwise", "solution", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    short = ["epochs=1", "fold=0", "trainer=cpu", "trainer.limit_train_batches=2", "data.workers=0", "logger=none"]
    command = [sys.executable, ROOT / "train.py", "experiment=baseline", *short]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert list(tmp_path.glob("runs/*/fold0/metrics.json"))

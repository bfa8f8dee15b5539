"""Every benchmark runs, small: what it measures is for people, that it still runs is for the suite."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, Render, Run, run_command

BENCHMARKS = ROOT / "benchmarks"
SHORT = ["preflight=false", "data.workers=0", "trainer.limit_train_batches=2"]


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory, run_forked: Run) -> Path:
    """A rendering with its prepared sample and one short run with kept views."""
    repository = render(tmp_path_factory.mktemp("benchmarks"), task="multilabel")
    run_forked(["prepare.py", "--data", "sample"], repository)
    short = ["epochs=1", "logger=none", "trainer=cpu", *SHORT]
    run_forked(["train.py", "experiment=baseline", *short], repository)
    (run,) = (repository / "runs").glob("[!.]*")
    run_forked(["predict.py", str(run), "--oof", "--tta", "flips", "--keep-views"], repository)
    return repository


def test_each_is_tried_here() -> None:
    tried = {"arrays", "memory", "steps", "training_loop", "plain_loop", "waist"}  # plain_loop by training_loop
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == tried


def test_arrays_and_memory(tmp_path: Path) -> None:
    assert "stacking" in run_command([sys.executable, str(BENCHMARKS / "arrays.py"), "1000", "2"], tmp_path)
    assert "kept" in run_command([sys.executable, str(BENCHMARKS / "memory.py"), "32"], tmp_path)


def test_steps(repository: Path) -> None:
    (run,) = (repository / "runs").glob("[!.]*")
    (views,) = run.glob("predictions/oof-*")
    assert "| --- |" in run_command([sys.executable, str(BENCHMARKS / "steps.py"), str(run), str(views)], repository)


def test_training_loop(render: Render, tmp_path: Path, run_forked: Run) -> None:
    repository = render(tmp_path, task="multiclass")
    run_forked(["prepare.py", "--data", "sample"], repository)
    command = [sys.executable, str(BENCHMARKS / "training_loop.py"), str(repository), "2", "1"]
    assert "ratio" in run_command(command, tmp_path)


@pytest.mark.slow
def test_arena(tmp_path: Path) -> None:
    """Two ways on a set of two colours; the rest needs data and weights that are not here."""
    import timm
    from safetensors.torch import save_file

    folder, rng, rows = tmp_path / "sets/fashion_500", np.random.default_rng(0), ["id,image,label,group,fold"]
    (folder / "images").mkdir(parents=True)
    for number in range(60):
        colour = np.full((28, 28, 3), 60 + 120 * (number % 2), np.uint8)
        cv2.imwrite(str(folder / f"images/{number}.png"), colour + rng.integers(0, 60, colour.shape, np.uint8))
        rows.append(f"{number},images/{number}.png,kind{number % 2},{number},{int(number > 19)}")
    (folder / "train.csv").write_text("\n".join(rows))
    weights = tmp_path / "tf_efficientnet_lite0.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    arena = [sys.executable, str(BENCHMARKS / "arena/run.py"), "--sets", str(tmp_path / "sets"), "--seeds", "0"]
    arena += ["--weights", str(weights), "--folder", str(tmp_path / "results"), "--only", folder.name]
    arena += ["--seconds", "30", "--rivals", "plan", "probe"]
    said = run_command(arena, tmp_path)
    assert said.count("CPU seconds") == 2
    assert "CPU seconds" not in run_command(arena, tmp_path)  # resumed: all is done
    table = [str(tmp_path / "results"), "--sets", str(tmp_path / "sets"), "--seconds", "30"]
    printed = run_command([sys.executable, str(BENCHMARKS / "arena/table.py"), *table], tmp_path)
    assert "| fashion_500 | probe | 1 |" in printed and "| fashion_500 | plan | 1 |" in printed


@pytest.mark.slow
def test_waist(tmp_path: Path) -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout: there is no other commit to compare with")
    printed = run_command([sys.executable, str(BENCHMARKS / "waist.py"), "HEAD", "1", "2", *SHORT], tmp_path)
    assert "median" in printed

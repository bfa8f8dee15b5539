"""Kept views, put together afterwards, against averages by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import rankdata

from foldwise.errors import Refusal
from foldwise.predictions.schema import Header
from foldwise.predictions.store import iter_maps, read_predictions, write_predictions
from foldwise.predictions.views import average_views
from foldwise.predictions.writers import PredictionWriter

CLASSES = ["cat", "dog", "newt"]
VIEWS = ["identity", "hflip", "rot90"]
IDS = [f"r{number}" for number in range(7)]


def header(task):
    return Header(split="test", task=task, columns=CLASSES, run="a", folds_hash="h", created_by="a test")


@pytest.fixture
def kept(tmp_path):
    """Two folds, two snapshots, three views: (folder, {(fold, snapshot, view): (N, C)})."""
    rng, values, frames = np.random.default_rng(0), {}, []
    for fold in (0, 1):
        for snapshot in ("cycle1", "cycle2"):
            for view in VIEWS:
                value = rng.random((len(IDS), 3)).astype(np.float32)
                values[fold, snapshot, view] = value
                frames.append(
                    pd.DataFrame(value, columns=CLASSES).assign(id=IDS, fold=fold, snapshot=snapshot, view=view)
                )
    frame = pd.concat(frames).sample(frac=1, random_state=0)  # in no order at all
    write_predictions(tmp_path / "test-d4-views", frame, header("multilabel"))
    return tmp_path / "test-d4-views", values


BY_HAND = {
    "arithmetic": lambda stacked: stacked.mean(axis=0),
    "geometric": lambda stacked: expit(logit(stacked).mean(axis=0)),
    "rank": lambda stacked: np.mean([(rankdata(view, axis=0) - 0.5) / len(view) for view in stacked], axis=0),
}


@pytest.mark.parametrize("mean", list(BY_HAND))
@pytest.mark.parametrize("views", [None, ["hflip", "identity"], ["rot90"]])
def test_rows_are_averaged_view_by_view_within_each_model(mean, views, kept, tmp_path):
    folder, values = kept
    average_views(folder, tmp_path / "out", mean, views)
    back = read_predictions(tmp_path / "out")
    assert back.header.tta == {"views": back.header.tta["views"], "mean": mean}
    assert back.header.ranks == (mean == "rank")
    for fold in (0, 1):
        for snapshot in ("cycle1", "cycle2"):
            rows = back.frame[(back.frame["fold"] == fold) & (back.frame["snapshot"] == snapshot)].set_index("id")
            stacked = np.stack([values[fold, snapshot, view] for view in views or VIEWS]).astype(np.float64)
            np.testing.assert_allclose(rows.loc[IDS, CLASSES], BY_HAND[mean](stacked), atol=1e-5)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_masks_are_averaged_one_image_at_a_time(mean, tmp_path):
    rng = np.random.default_rng(0)
    with PredictionWriter(tmp_path / "views", header("segmentation")) as writer:
        maps = {}
        for id, size in (("a", (4, 6)), ("b", (5, 3))):
            for view in VIEWS:
                maps[id, view] = rng.dirichlet(np.full(3, 20), size).transpose(2, 0, 1)
                writer.add(id, 0, "last", view, maps[id, view])
    average_views(tmp_path / "views", tmp_path / "out", mean)
    for row in iter_maps(read_predictions(tmp_path / "out")):
        stacked = np.stack([maps[row.id, view] for view in VIEWS])
        expected = stacked.mean(axis=0)
        if mean == "geometric":
            expected = np.exp(np.log(stacked.clip(1e-6)).mean(axis=0))
            expected /= expected.sum(axis=0)
        np.testing.assert_allclose(row.probability, expected, atol=0.02)  # both ends are kept in 8 bits
    with pytest.raises(Refusal, match="rank mean is meaningless for pixels"):
        average_views(tmp_path / "views", tmp_path / "ranks", "rank")


def test_the_command(kept, command):
    folder, _ = kept
    assert "test-d4-geometric" in command("tools/average.py", folder, "--mean", "geometric")[1]
    again = command("tools/average.py", folder, "--mean", "geometric")
    assert again[0] == 2 and "not overwritten" in again[2]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["test-d4-geometric", "test-d4-views"]
    script = [sys.executable, "tools/average.py", str(folder), "--views", "hflip", "rot45"]
    unknown = subprocess.run(script, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert unknown.returncode == 2 and "has the views" in unknown.stderr and "Traceback" not in unknown.stderr

"""Exports: the graph gives what torch gives on every picture, and says what it is."""

from pathlib import Path

import pytest
from tiny import tiny_config, train_scored, write_data

from foldwise.export.exporting import export_run
from foldwise.export.metadata import read_metadata

pytest.importorskip("onnxscript", reason="needs the extra `export`")
ort = pytest.importorskip("onnxruntime", reason="needs the extra `export`")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "world")


def opened(folder: Path):
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session, read_metadata(session.get_modelmeta().custom_metadata_map, folder)


FOLDS = {"multiclass": ["0"], "multilabel": ["all"], "regression": ["all"], "segmentation": ["1"]}


@pytest.mark.parametrize("task, folds", FOLDS.items())
def test_a_run(root, tmp_path, task, folds):
    run = train_scored(tiny_config(root, task), tmp_path / "runs")
    exported = export_run(run, tmp_path / "out", folds)
    assert exported.difference <= 1e-4
    session, described = opened(tmp_path / "out")
    assert [each.name for each in session.get_inputs()] == ["image"]
    assert described["folds"] == ([0, 1] if folds == ["all"] else [int(folds[0])])

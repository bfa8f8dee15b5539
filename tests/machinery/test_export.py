"""Exports: the graph gives what torch gives, says what it is, and the table of variants names the right one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_spec, random_model, tiny_config, train_scored, write_data

from foldwise.data.holdout import GOLD
from foldwise.data.images import read_image
from foldwise.data.samples import Samples
from foldwise.errors import Refusal
from foldwise.export import exporting, measuring
from foldwise.export import variants as variants_of
from foldwise.export.exporting import Budget, choose, export_run
from foldwise.export.graph import CARRIED, Graph, as_feeds, write_graph
from foldwise.export.metadata import open_session, read_metadata
from foldwise.export.reader import write_reader
from foldwise.export.subject import open_subject
from foldwise.models.pools import POOLS
from foldwise.predictions.decisions import rules
from foldwise.predictions.decisions.calibration import Platt, Temperature
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.number_rules import Range, Rounded
from foldwise.predictions.store import read_predictions

for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra `export`")


@pytest.fixture(autouse=True)
def no_memory(request, monkeypatch):
    """One test measures memory, in a process per variant that imports torch."""
    if "three_variants" not in request.node.name:
        monkeypatch.setattr(measuring, "_memory", lambda *_: 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "world", rows=36)


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run of two folds of 18 pictures each."""
    return train_scored(tiny_config(root, "multiclass"), tmp_path_factory.mktemp("runs"))


def opened(folder: Path):
    session = open_session(folder / "model.onnx")
    return session, read_metadata(session.get_modelmeta().custom_metadata_map, folder)


def test_a_fold_in_three_variants(run, root, tmp_path, command, monkeypatch):
    monkeypatch.setattr(variants_of, "STRETCHES", 3)
    words = ("export.py", run, "--half", "--int8", "--threads", 1, "--out", tmp_path / "out")
    code, said, errors = command(*words)
    assert code == 0, errors
    table = pd.read_csv(tmp_path / "out/comparison.csv")
    variants = table[table["column"].isna()].set_index("variant")
    chosen = variants.index[variants["chosen"] == True].tolist()  # noqa: E712  of objects
    assert list(variants.index[:4]) == ["torch", "float", "half", "int8"] and len(chosen) == 1
    assert variants.loc["torch", "memory_mb"] > 2 * variants.loc["int8", "memory_mb"] > 20
    assert variants.loc["half", "mb"] < 0.7 * variants.loc["float", "mb"]
    assert variants.loc["float", "change"] < 1e-5 < variants.loc["int8", "change"]
    assert f"python {tmp_path / 'out/predict_folder.py'} photos --out predictions.csv" in said
    assert chosen[0] in said and (tmp_path / "out/comparison.png").stat().st_size > 1000
    # The file itself, on pictures that OpenCV reads, against what training wrote out of fold.
    export_run(run, tmp_path / "float")
    session, described = opened(tmp_path / "float")
    assert described["variant"] == "float" and described["run"] == run.name and described["folds"] == [0]
    assert described["inputs"] == [{"name": "image", "dtype": "uint8", "axes": [None, 3, 32, 32]}]
    script = [sys.executable, tmp_path / "float/predict_folder.py", root / "images", "--out", tmp_path / "p.csv"]
    assert subprocess.run(script).returncode == 0 and run.name in (tmp_path / "float/README.md").read_text()
    stored = read_predictions(run / "oof").frame.query("fold == 0").set_index("id")
    pictures = [cv2.imread(str(root / f"images/{id[3:]}.png"))[:, :, ::-1].transpose(2, 0, 1) for id in stored.index]
    found, decided = session.run(["probabilities", "decisions"], {"image": np.stack(pictures)})
    expected = stored[described["classes"]].to_numpy()
    if described["temperature"]:
        expected = Temperature(described["temperature"]["0"])(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    delivered = pd.read_csv(tmp_path / "p.csv")
    delivered = delivered.set_index("row" + delivered["image"].str.extract(r"(\d+)\.png")[0])
    np.testing.assert_allclose(delivered.loc[stored.index, described["classes"]], expected, atol=1e-5)
    assert decided.dtype == np.uint8 and (decided.argmax(1) == expected.argmax(1)).all() and (decided.sum(1) == 1).all()
    # A reader that does what no description says.
    monkeypatch.setattr(Samples, "read_image", lambda _, rows, row, rng: read_image(rows.path(row))[:, ::-1])
    (note,) = write_reader(tmp_path / "float/model.onnx", open_subject(run, ["0"]))
    assert "has other pixels when the run's own reader" in note
    assert "There is no `predict_folder.py`" in (tmp_path / "float/README.md").read_text()


def test_what_is_calibrated_on_is_never_held_out(run, monkeypatch):
    subject = open_subject(run, ["0"])
    assert set(subject.truth.folds[subject.held]) == {0} and set(subject.truth.folds[subject.trained]) == {1}
    assert not subject.seen and open_subject(run, ["all"]).seen
    truth = replace(subject.truth, folds=np.where(subject.truth.folds == 1, GOLD, subject.truth.folds))
    monkeypatch.setattr("foldwise.export.subject.read_ground_truth", lambda *_: truth)
    assert not open_subject(run, ["0"], "oof", None).trained  # gold rows
    truth = replace(truth, folds_hash="other")
    with pytest.raises(Refusal, match="was trained with other folds"):
        open_subject(run, ["0"])


def test_a_missed_budget_ends_with_code_2(run, tmp_path, command):
    code, said, errors = command("export.py", run, "--budget-mb", 0.001, "--out", tmp_path / "out")
    assert code == 2 and "nearest: float with" in errors and "torch" in said and not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "TOLERANCE", 1e-12)
    with pytest.raises(Refusal, match=r"the graph differs from torch by .* on row\d+, and at most 1e-12"):
        export_run(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


MASK = "+outputs={mask: {task: segmentation, target: mask, classes: [background,blue,green,red], loss: cross_entropy}}"


@pytest.mark.parametrize(
    "task, more",
    [
        ("multilabel", [MASK]),
        ("regression", ["data.transform=rank"]),
        ("segmentation", ["data.fit=tiles", "data.image_size=16"]),
    ],
)
def test_all_folds_are_one_graph(root, tmp_path, task, more):
    run = train_scored(tiny_config(root, task, *more), tmp_path / "runs")
    exported = export_run(run, tmp_path / "out", ["all"])
    assert exported.variants["change"].iat[1] < (0.005 if task == "segmentation" else 1e-4)
    _, described = opened(tmp_path / "out")
    assert described["folds"] == [0, 1] and len(described["models"]) == 2 and described["notes"]
    if task == "multilabel":
        assert len(described["thresholds"]) == 3 and [each["output"] for each in described["outputs"]][1:] == ["mask"]
        with pytest.raises(Refusal, match="--decision expected-f has no form in a graph: choose one of fixed-th"):
            open_subject(run, ["0"], decision="expected-f")


def test_units_with_metadata_and_every_pool(tmp_path):
    views = {"view": "side", "views": ["left", "right"]}
    columns = {"numbers": ["age"], "categories": ["site"]}
    pools = list(POOLS)
    network = {"_target_": "foldwise.models.pooled:PooledNetwork", "name": "test_resnet", "pool": pools, **columns}
    options = {name: {"hidden": 8} for name in ("gru", "both_gru", "attention")}
    options |= {"recurrent_attention": {"width": 8}, "transformer": {"width": 8}, "slots": {"slots": 2}}
    changes = {"channels": {"image": 3}, "outputs": {"logits": 3}, "pool_options": options, "normalize": True}
    samples = {"_target_": "foldwise.data.units:Units", "unit": "house", **views, **columns}
    spec = make_spec("multiclass", ["a", "b", "c"], network={**network, **changes}, samples=samples)
    model = random_model(spec, 0)

    def batch(lengths, seed=0):
        torch.manual_seed(seed)
        count, longest = len(lengths), max(lengths)
        valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
        images = torch.randint(0, 256, (count, longest, 3, 32, 32), dtype=torch.uint8) * valid[:, :, None, None, None]
        slots = torch.randint(0, 2, (count, longest)) * valid
        codes, numbers = torch.randint(0, 5, (count, 1)), torch.randn(count, 1)
        missing = (numbers > 0.5).float()
        numbers = torch.cat([numbers * (1 - missing), missing], 1)
        ragged = {"image": images, "image_valid": valid, "slot": slots, "slot_valid": valid.clone()}
        return ragged | {"numbers": numbers, "categories": codes}

    graph = Graph([model], [0], None)
    write_graph(tmp_path / "model.onnx", graph, batch([3, 2]), model.samples.fields, {})
    session = open_session(tmp_path / "model.onnx")
    names = {each.name for each in session.get_inputs()}
    assert names == {"image", "image_valid", "slot", "numbers", "categories"}
    for seed, lengths in enumerate([[1], [4], [5, 1, 2], [2, 2]]):
        given = batch(lengths, seed)
        with torch.inference_mode():
            (expected,) = graph(given)
        np.testing.assert_allclose(session.run(None, as_feeds(given, session))[0], expected, atol=1e-5)


def test_sixteen_bits_and_four_channels(tmp_path):
    model = random_model(make_spec("multiclass", ["a", "b"], channels=4), 0)
    graph = Graph([model, model], [0, 1], None)
    write_graph(tmp_path / "model.onnx", graph, {"image": torch.rand(2, 4, 32, 32)}, model.samples.fields, {})
    session = open_session(tmp_path / "model.onnx")
    for given in (torch.rand(1, 4, 32, 32), torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8)):
        with torch.inference_mode():
            (expected,) = graph({"image": given})
        found = session.run(None, as_feeds({"image": given}, session))[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_calibrator_and_rule_as_in_numpy():
    spec = make_spec("multilabel", ["a", "b", "c"])
    models = [random_model(spec, seed) for seed in (0, 1)]
    fitted = {
        rules.AdjustedArgmax: rules.AdjustedArgmax(0.5, np.array([0.7, 0.2, 0.1])),
        rules.FixedThreshold: rules.FixedThreshold(0.4),
        rules.ClassThresholds: rules.ClassThresholds(np.array([0.2, 0.5, 0.7])),
        Range: Range(np.array([0.2, 0.3, 0.1]), np.array([0.5, 0.6, 0.7])),
        Rounded: Rounded(np.array([0.2, 0.3, 0.1]), np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.25, 0.0])),
    }
    platt = Platt(np.array([0.5, 1.0, 2.0]), np.array([-0.3, 0.0, 0.4]))
    given = {"image": torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)}
    with torch.inference_mode():
        raw = {fold: Graph([model], [0], None)(given)[0].numpy() for fold, model in enumerate(models)}
        for rule in CARRIED:
            for first in (platt, Temperature(1.7)):
                decision = Decision({0: first}, Temperature(0.6), fitted.get(rule) or rule())
                graph = Graph(models, [0, 1], decision)
                values = [each.numpy() for each in graph(given)]
                expected = decision.average(raw)
                np.testing.assert_allclose(values[0], expected, atol=1e-6)
                assert len(values) == len(graph.names) == 1 + graph.decides
                if graph.decides:
                    answers = decision.rule.decide(values[0].astype(np.float64))
                    np.testing.assert_allclose(values[1], answers, atol=1e-6)


def test_the_smallest_within_one_standard_error_and_the_budget():
    columns = ["variant", "mb", "p95_ms", "loss", "error"]
    rows = [("torch", 9, 9, 0.0, 0.01), ("float", 10, 8, 0.0, 0.01), ("half", 5, 8, 0.0, 0.01)]
    frame = pd.DataFrame([*rows, ("int8", 3, 2, 0.02, 0.01), ("mixed", 4, 3, 0.009, 0.01)], columns=columns)
    assert choose(frame, Budget()) == ("mixed", "")
    assert choose(frame[frame["variant"] != "mixed"], Budget()) == ("half", "")
    assert choose(frame.assign(p95_ms=[9, 8, 1, 2, 3]), Budget(ms=2)) == ("half", "")
    chosen, missed = choose(frame, Budget(mb=3.5))
    assert not chosen and "nearest: mixed with 4.00 MB and 3.0 ms" in missed and "but loses 0.0200" in missed


def test_what_cannot_be_exported_is_refused_by_name(run, tmp_path, monkeypatch):
    with pytest.raises(Refusal, match="has no model of fold 7; it has 0, 1"):
        open_subject(run, ["7"])
    monkeypatch.setattr(exporting, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(Refusal, match=r"no_such_package: not installed; pip install onnx no_such_package"):
        export_run(run, tmp_path / "out")

"""Runs with code of their own, made by hand: predicted, put together, bundled, and opened where they were not made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from test_bundle import run_here
from tiny import CLASSES, make_spec, write_data

from foldwise.bundle import rehearse as rehearsing
from foldwise.bundle.build import build_bundle
from foldwise.bundle.contents import find_imports
from foldwise.bundle.inferring import infer
from foldwise.bundle.inputs import read_inputs
from foldwise.bundle.rehearse import rehearse
from foldwise.bundle.spec import read_bundle
from foldwise.code.alias import open_code
from foldwise.code.build import make
from foldwise.code.imports import collect_code
from foldwise.code.runs import keep_code
from foldwise.code.source import ALL, OPTION, SOME, Code, is_trusted, read_code, trust
from foldwise.command import take_trust
from foldwise.data.folds import write_folds
from foldwise.data.problems import TableError
from foldwise.errors import Refusal
from foldwise.files import write_text
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.inference.weights import normalize, save_model
from foldwise.predictions.ground_truth import read_ground_truth
from foldwise.predictions.store import read_predictions
from foldwise.settings import find_choice
from foldwise.tasks.outputs import Output
from foldwise.training.results import output_config

ROOT = Path(__file__).parents[1]
SAMPLES = """
import numpy as np

from foldwise.data.fields import Field
from foldwise.data.samples import Samples as Base, group_items
from solution.shared import UNIT


class Samples(Base):
    columns = ("age",)
    fields = {"image": Field("image"), "age": Field("values")}

    def fit(self, rows, items):
        return {"mean": float(np.nanmean(rows.numbers("age")))}

    def read(self, rows, item, state, rng):
        age = np.nan_to_num(rows.numbers("age")[list(item.rows)] - state["mean"]).sum()
        return super().read(rows, item, state, rng) | {"age": np.array([age / UNIT], np.float32)}


class Patients(Samples):
    columns = ("age", "patient")

    def items(self, rows):
        return group_items(rows, "patient")
"""
NETWORKS = """
import torch
from torch import nn

from foldwise.models.network import Network as Base
from foldwise.models.networks import build_encoder


class Network(Base):
    def __init__(self, channels, outputs, weights=None, pretrained=False):
        super().__init__()
        self.encoder = build_encoder("test_resnet", channels["image"])
        self.heads = nn.ModuleDict({n: nn.Linear(self.encoder.num_features + 1, c) for n, c in outputs.items()})

    def forward(self, batch):
        features = torch.cat([self.encoder(batch["image"]), batch["age"]], 1)
        return {name: head(features) for name, head in self.heads.items()}
"""
OTHER = NETWORKS.replace("return {name: head(features)", "return {name: head(-2 * features)")  # the same weights fit
FILES = {"samples": SAMPLES, "shared": "UNIT = 10\n", "module": "import lightning\n", "__init__": ""}
REACHED = ["solution/__init__.py", "solution/networks.py", "solution/samples.py", "solution/shared.py"]
FOREIGN = ("lightning", "hydra", "albumentations")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = write_data(tmp_path_factory.mktemp("data"))
    for name in ("train", "test"):
        frame = pd.read_csv(root / f"{name}.csv", dtype=str, keep_default_na=False)
        frame["age"] = ["" if row == 3 else str(20 + 2 * row) for row in range(len(frame))]
        frame["patient"] = [f"p{row // 2}" for row in range(len(frame))]
        frame.to_csv(root / f"{name}.csv", index=False)
    write_folds(root / "folds.csv", {f"row{row}": row // 4 % 2 for row in range(24)})
    groups = tmp_path_factory.mktemp("groups")
    write_folds(groups / "folds.csv", {f"p{row}": row // 2 % 2 for row in range(12)})
    (root / "groups").symlink_to(groups)
    return root


def make_run(folder: Path, data: Path, networks: str = NETWORKS, reader: str = "Samples", several: bool = True) -> Path:
    """A run of two folds that predicts labels, and, unless told otherwise, beside them the output `kind`."""
    code = Code({f"solution/{n}.py": text.encode() for n, text in {**FILES, "networks": networks}.items()}, folder)
    keep_code(code, folder)
    trust(code.digest)
    samples = {"_target_": f"solution.samples.{reader}", "mode": "stored"}
    metric = {"_target_": "foldwise.predictions.metrics.FBeta"}
    entry = {"key": "kind", "task": "multiclass", "target": "label", "classes": None}
    entry["metric"] = {"_target_": "foldwise.predictions.metrics.Accuracy"}
    paths = {"root": data, "table": data / "train.csv", "test_table": data / "test.csv"}
    paths["prepared"] = data / "groups" if reader == "Patients" else data
    columns = dict.fromkeys(("target", "group", "unit", "weight", "fold")) | {"id": "id", "image": "image"}
    section = {"name": "competition", "folds": 2, "classes": CLASSES, "columns": columns}
    section |= {name: str(path) for name, path in paths.items()}
    config = {"task": "multilabel", "data": section, "samples": samples, "metric": metric}
    config["outputs"] = {"kind": entry} if several else {}
    outputs = [Output.main("multilabel", CLASSES), *([Output.other("kind", entry, CLASSES)] if several else [])]
    write_text(folder / "config.yaml", yaml.safe_dump(config))
    for output in outputs[1:]:
        write_text(folder / "outputs" / output.name / "config.yaml", yaml.safe_dump(output_config(config, output)))
    network = {"_target_": "solution.networks:Network", "channels": {"image": 3}}
    spec = make_spec(
        "multilabel",
        CLASSES,
        network={**network, "outputs": {output.key: len(output.columns) for output in outputs}},
        samples={**samples, "_target_": f"solution.samples:{reader}"},
        state={"mean": 40.0},
        outputs=tuple(outputs),
        code=code.hash,
    )
    for fold in (0, 1):
        torch.manual_seed(fold)
        save_model(folder / f"fold{fold}" / "model", normalize(make(spec.network, open_code(code)), spec), spec)
    predict(folder, oof=True)
    return folder


def predict(run: Path, **choices: bool) -> Path:
    choice = Choices(tta=find_choice("tta", "none"), workers=0, device="cpu", **choices)
    return predict_runs([run], choice, console=Console(quiet=True))[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> list[Path]:
    """Two runs whose networks are of two versions of the code."""
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "a", data), make_run(root / "b", data, OTHER)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, runs) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "both"
    build_bundle(runs, out, oof="oof-none", decision="fixed-threshold")
    return out


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> None:
    """A user who trusts no code yet; what is trusted is forgotten after the test."""
    monkeypatch.setenv("FOLDWISE_STATE", str(tmp_path / "state"))
    for name in (ALL, SOME):
        monkeypatch.setenv(name, "")


def run_infer(bundle: Path, data: Path, out: Path, **values: object) -> Path:
    """The submission that infer.py writes."""
    return infer(
        bundle, out=out, **{"test": data / "test.csv", "images": data, "workers": 0, "device": "cpu", **values}
    )


# bundles


def test_a_bundle_has_what_its_models_reach_of_each_version(bundle, runs):
    found = {folder.name: read_code(folder) for folder in (bundle / "code").iterdir()}
    assert len(found) == 2 and all(code.hash == name for name, code in found.items())
    assert all(sorted(code.files) == REACHED for code in found.values())
    for run in "ab":
        for path in (bundle / "models" / run).rglob("model.json"):
            code = found[json.loads(path.read_text())["code"]]
            assert (code.files["solution/networks.py"] == OTHER.encode()) == (run == "b")
    assert {"timm", "torch"} <= set(read_bundle(bundle).needs) and not set(FOREIGN) & set(read_bundle(bundle).needs)
    assert (bundle / "foldwise" / "models" / "networks.py").is_file()
    assert not (bundle / "foldwise" / "training").exists()


@pytest.mark.parametrize("sandboxed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_rehearsal_hands_columns_to_the_reader(sandboxed, data, bundle, stranger, monkeypatch):
    """The user has trusted the runs; the bundle's own code is trusted by infer.py alone."""
    if not sandboxed:
        monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    for run in read_bundle(bundle).runs:
        trust(read_code(Path(run.source) / "code").digest)
    rehearsed = rehearse(bundle, data / "test.csv", rows=60, workers=0)
    assert rehearsed.problems == [] and len(rehearsed.bad) == rehearsed.planted == 7
    assert rehearsed.comparison.images == 24 and rehearsed.comparison.probability < 1e-4


def test_items_of_several_rows_are_rehearsed(tmp_path, data, stranger, monkeypatch):
    run = make_run(tmp_path / "run", data, reader="Patients", several=False)
    out = tmp_path / "bundle"
    build_bundle([run], out, oof="oof-none", decision="fixed-threshold")
    monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    rehearsed = rehearse(out, data / "test.csv", rows=30, workers=0)
    assert rehearsed.problems == [] and rehearsed.report["images"] == 12
    assert len(rehearsed.bad) == rehearsed.planted == 7 and rehearsed.comparison.images == 5
    pd.read_csv(data / "test.csv").head(14).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(Refusal, match="has 7 items, but a rehearsal needs more than 7"):
        rehearse(out, tmp_path / "few.csv", data)


def test_a_table_without_a_column_of_the_reader_is_refused_before_anything_is_predicted(
    tmp_path, data, bundle, stranger, monkeypatch
):
    monkeypatch.setenv(ALL, "1")
    pd.read_csv(data / "test.csv").drop(columns="age").to_csv(tmp_path / "test.csv", index=False)
    for test in (tmp_path / "test.csv", data / "images"):
        with pytest.raises(TableError, match="there is no column 'age', which the reader declares"):
            run_infer(bundle, data, tmp_path / "out", test=test)
    assert not (tmp_path / "out").exists()


def test_columns_of_parquet_keep_their_kind(tmp_path, data, runs):
    frame = pd.DataFrame({"id": [7, 8], "image": ["images/0.png", "images/1.png"], "age": [20.0, np.nan]})
    frame.to_parquet(tmp_path / "test.parquet")
    samples = make({"_target_": "solution.samples.Samples"}, open_code(runs[0] / "code"))
    columns = {"id": "id", "image": "image", "unit": None, "group": None}
    found = read_inputs(tmp_path / "test.parquet", data, columns, set(), samples)
    assert [image.id for image in found.images] == ["7", "8"]
    assert found.test.source.frame["age"].tolist()[0] == 20 and len(found.test.items) == 2


def test_another_output_is_bundled_by_its_name(tmp_path, data, runs, stranger, monkeypatch):
    monkeypatch.setenv(ALL, "1")
    run = shutil.copytree(runs[0], tmp_path / "run")
    build_bundle([run / "outputs" / "kind"], tmp_path / "bundle", oof="oof-none", decision="argmax")
    recipe = read_bundle(tmp_path / "bundle")
    assert (recipe.task, recipe.runs[0].output) == ("multiclass", "kind")
    answers = pd.read_csv(run_infer(tmp_path / "bundle", data, tmp_path / "out")).set_index("id")["label"]
    predict(run)
    said = read_predictions(run / "outputs" / "kind" / "predictions" / "test-none").frame
    mean = said.groupby("id")[CLASSES].mean()
    assert answers.to_dict() == mean.idxmax(axis=1).to_dict()
    monkeypatch.setattr(rehearsing, "run_sandboxed", run_here)
    rehearsed = rehearse(tmp_path / "bundle", data / "test.csv", rows=30, workers=0)
    assert rehearsed.problems == [] and rehearsed.comparison.probability < 1e-4
    shutil.copytree(run / "outputs" / "kind", run / "outputs" / "gone")
    with pytest.raises(Refusal, match="have no output gone"):
        build_bundle([run / "outputs" / "gone"], tmp_path / "x", oof="oof-none")


def test_what_the_owners_code_imports_is_needed(tmp_path):
    """Also within functions, since that is how readers of rare formats are written; not what it can do without."""
    text = "import scipy\ndef f():\n    import h5py.x\ntry:\n    import rare\nexcept ImportError:\n    rare = None\n"
    text += "from foldwise.models.losses import Focal\nclass A: pass\n"
    write_text(tmp_path / "solution" / "a.py", text)
    code = collect_code(["solution.a.A"], tmp_path)
    script = tmp_path / "infer.py"
    script.write_text("from foldwise.errors import Refusal\n")
    found = find_imports(script, ROOT, targets=["foldwise.data.samples:Samples"], codes=[code])
    assert {"scipy", "h5py", "torch"} <= set(found.needs) and not {"rare", "solution", "foldwise"} & set(found.needs)
    names = {path.relative_to(ROOT).as_posix() for path in found.files}
    assert {"foldwise/models/losses.py", "foldwise/data/samples.py"} <= names


# commands


def test_a_configuration_from_elsewhere_makes_readers_and_nothing_else(tmp_path, runs):
    run = shutil.copytree(runs[0], tmp_path / "arrived")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for target in ("os.makedirs", "solution.shared.UNIT", "foldwise.files.read_json"):
        samples = {"_target_": target, "name": str(tmp_path / "made")}
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"samples": samples}))
        with pytest.raises(Refusal, match=r"samples\._target_: "):
            read_ground_truth(run)
    assert not (tmp_path / "made").exists()


def test_code_from_elsewhere_is_refused_until_it_was_looked_at(tmp_path, runs, stranger, command):
    run = shutil.copytree(runs[0], tmp_path / "arrived")
    arguments = ["predict.py", run, "--workers", 0, "--device", "cpu"]
    code, _, error = command(*arguments)
    assert code == 2 and f"{run} arrived with code of its own (5 files" in error and "--trust-code" in error
    code, said, error = command(*arguments, "--trust-code")
    assert (code, error) == (0, "") and "written" in said


def test_every_command_that_opens_runs_takes_the_option(command):
    scripts = [path for folder in (ROOT, ROOT / "tools") for path in folder.glob("*.py")]
    open_none = ("average", "boxes", "features", "plan", "prepare", "primatrix_tables", "train", "tune", "unpack")
    scripts = [path for path in scripts if path.stem not in (*open_none, "label", "submit")]
    assert len(scripts) == 9
    for path in scripts:
        code, said, _ = command(path.relative_to(ROOT), "--help")
        assert code == 0 and "--trust-code" in said
    for step in (("submit.py", "make"), ("tools/label.py", "suspect")):
        code, said, _ = command(*step, "--help")
        assert code == 0 and "--trust-code" in said


def test_train_takes_the_option_before_hydra_reads_the_rest(stranger):
    assert take_trust(["run=runs/x", OPTION, "fold=0"]) == ["run=runs/x", "fold=0"] and is_trusted("any")


def test_ensembles_carry_the_code_that_reads_their_ground_truth(tmp_path, runs, command):
    out = tmp_path / "both"
    code, _, error = command("ensemble.py", *runs, "--oof", "oof-none", "--out", out, "--use", "mean")
    assert (code, error) == (0, "")
    assert read_code(out / "code").digest == read_code(runs[0] / "code").digest
    code, said, _ = command("evaluate.py", out)
    assert code == 0 and "FBeta" in said


def test_a_further_output_is_a_source_and_no_run(tmp_path, runs, command):
    source = runs[0] / "outputs" / "kind"
    code, said, _ = command("evaluate.py", source, "--oof", "oof-none")
    assert code == 0 and "Accuracy" in said
    code, _, error = command("predict.py", source)
    assert code == 2 and f"name {runs[0]}" in error


def test_runs_that_make_other_items_are_not_predicted_together(tmp_path, data):
    runs = [make_run(tmp_path / reader, data, reader=reader, several=False) for reader in ("Samples", "Patients")]
    choices = Choices(tta=find_choice("tta", "none"), workers=0, device="cpu")
    with pytest.raises(Refusal, match="group the rows of"):
        predict_runs(runs, choices, out=tmp_path / "out", console=Console(quiet=True))

"""Stored features: exact whoever computes them, refused when stale, and one network with their encoder."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import code_of, prepare_tiny, tiny_config, train_folds, write_data

from foldwise.data import images
from foldwise.data.features import FeatureSet, StoredFeatures
from foldwise.data.samples import Rows
from foldwise.errors import Refusal
from foldwise.files import write_json
from foldwise.inference import extracting
from foldwise.inference.extracting import Choices, extract
from foldwise.inference.predictor import Predictor
from foldwise.inference.runs import load_run
from foldwise.inference.tta import TTA
from foldwise.inference.weights import load_model, on_features
from foldwise.models.features import FeatureNetwork
from foldwise.predictions.store import read_predictions
from foldwise.training.identity import hash_contents

NAME, ROWS, TEST_ROWS = "test_resnet", 24, 7  # the network of model=tiny
COMMAND = ["python", "tools/features.py", "data=competition", "--out", "features/a"]
OWN = "samples._target_=foldwise.data.samples.Samples"  # code that any new process can import
PROBE = ("experiment=probe", "data.normalize=dataset")


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data and weights in the current folder; blocks of five rows."""
    write_data(tmp_path, ROWS, shuffled=True)
    test = pd.read_csv(tmp_path / "test.csv").iloc[:TEST_ROWS][::-1]
    test.assign(id=[f"test{row}" for row in range(TEST_ROWS)]).to_csv(tmp_path / "test.csv", index=False)
    torch.manual_seed(0)
    net = timm.create_model(NAME, in_chans=3)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that a training changes
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(extracting, "BLOCK", 5)
    return tmp_path


def config_of(root: Path, *overrides: str, task: str = "multiclass") -> dict[str, Any]:
    return tiny_config(root, task, *overrides)


def make_features(root: Path, name: str = "a", *overrides: str, **choices: Any) -> FeatureSet:
    """The features of a set, by one process unless the choices say otherwise."""
    config = config_of(root, *overrides)
    config["model"]["weights"] = str(root / "weights.safetensors")
    out = Path("features") / name
    given = Choices(out=out, device="cpu", **{"workers": 0, "batch_size": 3} | choices)
    assert extract(config, code_of(config).alias, given, COMMAND)
    return FeatureSet(out, json.loads((out / "features.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_images(root: Path) -> torch.Tensor:
    """(N, 3, 32, 32) in [0, 1] of both tables, in their order."""
    paths = [*pd.read_csv(root / "train.csv")["image"], *pd.read_csv(root / "test.csv")["image"]]
    return torch.stack([torch.from_numpy(cv2.imread(str(root / path))[:, :, ::-1].copy()) for path in paths]).permute(
        0, 3, 1, 2
    ) / np.float32(255)


@pytest.mark.parametrize("stages", ["all", "last", (1, 3)])
def test_features_are_those_of_a_plain_loop(world: Path, stages: Any):
    made = make_features(world, stages=stages, views=("none", "flip"), dtype="float32")
    x = stored_images(world)
    mean, std = (getattr(x[:ROWS], name)(dim=(0, 2, 3), keepdim=True) for name in ("mean", "std"))
    kind = {"all": {"features_only": True}, "last": {"num_classes": 0}}.get(stages) or {
        "features_only": True,
        "out_indices": list(stages),
    }
    net = timm.create_model(NAME, in_chans=3, **kind).eval()
    net.load_state_dict(load_file(made.weights))
    whole = timm.create_model(NAME, in_chans=3).eval()  # the weights are those of the file
    whole.load_state_dict(load_file(world / "weights.safetensors"))
    with torch.no_grad():
        for view, images_of in (("none", x), ("flip", x.flip(-1))):
            inputs = (images_of - mean) / std
            found = net(inputs)
            expected = found if stages == "last" else torch.cat([stage.mean(dim=(2, 3)) for stage in found], 1)
            stored = np.load(made.folder / f"{view}.npy")
            torch.testing.assert_close(torch.from_numpy(stored), expected, rtol=1e-4, atol=1e-5)
            if stages == "last":
                torch.testing.assert_close(whole.forward_head(whole.forward_features(inputs), pre_logits=True), found)
    rows = made.read_rows()
    assert rows["id"].tolist() == [*pd.read_csv(world / "train.csv")["id"], *pd.read_csv(world / "test.csv")["id"]]
    assert made.record["tables"] == {str(world / "train.csv"): ROWS, str(world / "test.csv"): TEST_ROWS}
    assert stored.shape == (ROWS + TEST_ROWS, sum(made.encoder["widths"]))


def in_process(function: Callable[[], Any]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def dying_at(write: int) -> Callable[..., None]:
    """`_write` that dies by SIGKILL at the n-th block, after its rows and before its mark."""
    calls = iter(range(100))
    original = extracting.write_block

    def dying(*arguments: Any) -> None:
        if next(calls) == write:
            Path.touch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        original(*arguments)

    return dying


def test_a_killed_command_resumes_to_the_same_bytes(world: Path, monkeypatch: pytest.MonkeyPatch):
    complete = contents(make_features(world, views=("none", "flip")).folder)
    shutil.rmtree("features")
    original = extracting.write_block
    monkeypatch.setattr(extracting, "write_block", dying_at(3))
    process = in_process(lambda: make_features(world, views=("none", "flip")))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = Path("features/a")
    assert not (folder / "features.json").exists()
    with pytest.raises(Refusal, match="there are no features features/a"):
        prepare_tiny(config_of(world, "data.features=[a]"))
    written: list[range] = []
    monkeypatch.setattr(
        extracting, "write_block", lambda work, block, values: written.append(block) or original(work, block, values)
    )
    assert contents(make_features(world, views=("none", "flip")).folder) == complete
    assert len(written) == 7 - 3  # five blocks of train.csv and two of test.csv
    written.clear()
    make_features(world, views=("none", "flip"))  # finished
    assert not written
    with pytest.raises(Refusal, match="other features, by views"):
        make_features(world)


def test_several_processes_give_the_bytes_of_one(world: Path):
    one = contents(make_features(world, "a", OWN).folder)
    shutil.rmtree("features")
    processes = [in_process(lambda: extract_alone(world)) for _ in range(3)]  # as commands on three machines
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert contents(Path("features/a")) == one
    shutil.rmtree("features")
    assert contents(make_features(world, "a", OWN, devices=2).folder) == one
    shutil.rmtree("features")
    assert contents(make_features(world, "a", OWN, workers=2).folder) == one


def extract_alone(world: Path) -> None:
    config = config_of(world, OWN)
    config["model"]["weights"] = str(world / "weights.safetensors")
    choices = Choices(out=Path("features/a"), device="cpu", workers=0, batch_size=3)
    extract(config, code_of(config).alias, choices, COMMAND)  # which is last differs


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (None, ["data.image_size=16"], r"data.image_size was \[32, 32\] and is \[16, 16\]"),
        (None, ["data.normalize=weights"], "data.normalize was dataset and is weights"),
        (None, ["data.fit=crop"], "data.fit was stretch and is crop"),
        (None, ["data.scale=204"], "data.scale was 255.0 and is 204"),
        (None, ["data.mode=gray"], "the number of channels changed; the reader or its settings"),
        ("image", [], "the mean and std of the images changed; 1 images have another size: images/3.png"),
        ("row", [], "1 images are not among its rows: images/new.png"),
        ("weights", [], "weights.safetensors has other weights"),
        ("encoder", [], "encoder.safetensors is damaged or missing"),
        ("cut", [], "none.npy is damaged or missing"),
    ],
)
def test_stale_features_are_refused(world: Path, change: str | None, overrides: list[str], message: str):
    make_features(world)
    record = json.loads(Path("features/a/features.json").read_text())
    write_json(Path("features/a/features.json"), record | {"command": [*COMMAND, "data.image_size=32"]})
    prepare_tiny(config_of(world, "data.features=[a]"))
    if change == "image":
        cv2.imwrite(str(world / "images/3.png"), np.full((32, 32, 3), 9, np.uint8))
    elif change == "row":
        shutil.copy(world / "images/3.png", world / "images/new.png")
        frame = pd.read_csv(world / "train.csv")
        pd.concat([frame, frame.tail(1).assign(id="new", image="images/new.png")]).to_csv(
            world / "train.csv", index=False
        )
    elif change in ("weights", "encoder"):
        file = world / ("weights.safetensors" if change == "weights" else "features/a/encoder.safetensors")
        state = load_file(file)
        state["conv1.0.weight" if change == "weights" else next(iter(state))] += 1
        save_file(state, file)
    elif change == "cut":
        os.truncate("features/a/none.npy", 100)
    with pytest.raises(Refusal, match=message) as error:
        prepare_tiny(config_of(world, "data.features=[a]", *overrides))
    assert "rm -r features/a\n  python tools/features.py data=competition --out features/a" in str(error.value)
    assert str(error.value).count("data.image_size=") == 1
    assert ("data.image_size=32" in str(error.value)) == (overrides != ["data.image_size=16"])


def test_what_needs_images_is_refused(world: Path):
    config = config_of(world, *PROBE, "data.features=[nothing]")
    with pytest.raises(Refusal, match="there are no features features/nothing: make them with"):
        prepare_tiny(config)
    make_features(world)
    for overrides, message in (
        (["tta=flips"], "predicted out of fold without TTA"),
        (["model._target_=solution.networks.Network"], "data.features is for experiment=probe"),
    ):
        with pytest.raises(Refusal, match=message):
            train_folds(config_of(world, *PROBE, "data.features=[a]", "fold=0", *overrides), world / "runs")
    with pytest.raises(Refusal, match="trains on stored features"):
        train_folds(config_of(world, *PROBE, "fold=0"), world / "runs")
    for hidden in (512, [0], ["a"]):
        with pytest.raises(Refusal, match="model.hidden is .* it must be a list of whole numbers from 1"):
            FeatureNetwork({"image": 3}, {"logits": 2}, [{"widths": [4]}], hidden, weights=[])
    with pytest.raises(Refusal, match="data.features has a more than once"):
        prepare_tiny(config_of(world, *PROBE, "data.features=[a,a]"))
    with pytest.raises(Refusal, match="there is no model.name: set data.normalize=dataset or, for experiment=probe, d"):
        train_folds(config_of(world, "experiment=probe", "fold=0"), world / "runs")


# Random weights have features that hardly vary, and standardising them enlarges rounding: 1e-4 in place of 1e-5.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-4)])
def test_the_saved_network_predicts_from_images_what_the_head_did_from_features(
    world: Path, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    make_features(world, "a", dtype=dtype, views=("none", "flip"))
    stored = np.load(make_features(world, "b", stages="last", dtype=dtype).folder / "none.npy")
    hidden = ["model.hidden=[16]", "model.dropout=0.1"] if dtype == "float16" else []
    config = config_of(world, *PROBE, *hidden, "data.features=[a,b]", "optimizer.lr=0.01", "epochs=4", "fold=0")
    prepare_tiny(config)
    decode = images.decode_image
    monkeypatch.setattr(images, "decode_image", None)  # nothing decodes an image
    run = train_folds(config, world / "runs")
    monkeypatch.setattr(images, "decode_image", decode)
    shutil.rmtree("features")
    model = load_model(run / "fold0" / "model")
    assert list(model.samples.fields) == ["image"]
    oof = read_predictions(next((run / "fold0").glob("oof-*")))
    prepared = prepare_tiny(config_of(world))
    rows = [prepared.table.row_of[id] for id in oof.frame["id"]]
    values = [value[""][0, 0] for _, value in Predictor([model], TTA()).predict(prepared.source, rows)]
    expected = oof.frame[list(oof.columns)].to_numpy()
    np.testing.assert_allclose(np.stack(values), expected, atol=tolerance)
    assert expected.std(axis=0).min() > 0.02  # something was learnt
    encoder = model.network.net.get_submodule("encoder.1")
    with torch.no_grad():
        found = encoder(stored_images(world)).numpy()
    np.testing.assert_allclose(found, stored, rtol=tolerance, atol=tolerance / 10)
    flipped = TTA.choose(views=["identity", "hflip"])
    assert len(list(Predictor([model], flipped).predict(prepared.source, rows))) == len(rows)


UNITS = [f"+samples.{name}" for name in ("unit=thing", "order=number", "frames=3", "categories=[site]")]
UNITS.append("samples._target_=foldwise.data.units.Units")
POOLED = [f"+model.{name}" for name in ("pool=[attention,range]", "hidden=[8]", "categories=[site]", "chunk=2")]
POOLED += ["+model.normalize=true", "model._target_=foldwise.models.pooled.PooledNetwork", "model.library=null"]


def test_pools_train_on_stored_features_of_stacks_and_are_saved_with_their_encoders(world: Path):
    frame = pd.read_csv(world / "train.csv").sort_values("label", kind="stable").reset_index(drop=True)
    thing = [f"thing{row // 3}" for row in range(ROWS)]
    frame = frame.assign(thing=thing, number=-frame.index, site=[f"site{row % 2}" for row in range(ROWS)])
    frame["label"] = frame.groupby("thing")["label"].transform("first")
    frame.drop(2).to_csv(world / "train.csv", index=False)  # a thing of two pictures
    picture = cv2.imread(str(world / frame["image"][0]))
    test = frame.assign(id="test" + frame["id"], thing="test" + frame["thing"]).drop(columns="label")
    test[:6].to_csv(world / "test.csv", index=False)
    made = make_features(world, "c", *UNITS, dtype="float32")  # names of no other test: maps are cached
    make_features(world, "d", *UNITS, stages=("layer1", "layer3.0.conv1"), dtype="float32")
    config = config_of(world, *UNITS, *POOLED, "model.name=null", "data.features=[c,d]", "epochs=3", "fold=0")
    prepared = prepare_tiny(config)
    assert made.read_rows()["id"].tolist() == [*frame.drop(2)["id"], *test["id"][:6]]
    stored = np.load(made.folder / "none.npy")
    sample = prepared.reader.read(
        Rows(prepared.source, prepared.reader), prepared.items[0], prepared_state(prepared), None
    )
    np.testing.assert_array_equal(sample["features"][:, : stored.shape[1]], stored[[1, 0, 0]])  # by number
    run = train_folds(config, world / "runs")
    model = load_model(run / "fold0" / "model")
    oof = read_predictions(next((run / "fold0").glob("oof-*")))
    rows, expected = [prepared.table.row_of[id] for id in oof.frame["id"]], oof.frame[list(oof.columns)].to_numpy()
    trained = load_run(run)
    stored = on_features(model, trained.features(prepared.source), prepared.source)
    values = [value[""][0, 0] for _, value in Predictor([stored], TTA()).predict(prepared.source, rows)]
    np.testing.assert_array_equal(np.stack(values), expected)
    (world / frame["image"][0]).write_bytes(b"another size")
    Path("features/d/features.json").write_text(Path("features/c/features.json").read_text())
    with pytest.raises(Refusal, match="1 images have another size(.|\n)*features/d has other features than .* was"):
        trained.features(prepared.source)
    cv2.imwrite(str(world / frame["image"][0]), picture)
    shutil.rmtree("features")
    with pytest.raises(Refusal, match="features/c, which does not exist: leave out --features"):
        trained.features(prepared.source)
    values = [value[""][0, 0] for _, value in Predictor([model], TTA()).predict(prepared.source, rows)]
    np.testing.assert_allclose(np.stack(values), expected, atol=1e-4)


def prepared_state(prepared: Any) -> dict[str, Any]:
    return prepared.samples.fit(Rows(prepared.source, prepared.samples), prepared.items)


def test_the_stages_of_the_pri_matrix_networks_have_the_published_widths():
    for name, stages, width in (
        ("resnet152", (1, 2, 3, 4), 3840),
        ("inception_v4", (2, 3, 4), 2944),
        ("inception_resnet_v2", ("repeat", "repeat_1", "repeat_2"), 3488),
        ("nasnetalarge", ("reduction_cell_0", "reduction_cell_1", "cell_17"), 8064),
    ):
        with torch.device("meta"), torch.no_grad():  # shapes alone
            encoder = extracting.Encoder(name, 3, stages, "mean", [0.5] * 3, [0.5] * 3).eval()
            assert encoder(torch.zeros(1, 3, 404, 404)).shape == (1, width)


def test_training_draws_a_view_and_predictions_do_not(world: Path):
    made = make_features(world, views=("none", "flip"))
    prepared = prepare_tiny(config_of(world, "data.features=[a]"))
    reader = prepared.reader
    assert isinstance(reader, StoredFeatures)
    rows = Rows(prepared.source, reader, targets=True)
    stored = {view: np.load(made.folder / f"{view}.npy") for view in ("none", "flip")}
    drawn = []
    for number, item in enumerate(prepared.items):
        np.testing.assert_array_equal(reader.read(rows, item, {}, None)["features"], stored["none"][number])
        value = reader.read(rows, item, {}, np.random.default_rng(number))["features"]
        drawn.append(next(view for view in stored if np.array_equal(value, stored[view][number])))
    assert min(drawn.count(view) for view in stored) > ROWS / 4


def test_features_are_part_of_the_identity_and_their_name_is_not(world: Path):
    make_features(world)
    make_features(world, "last", stages="last")
    shutil.copytree("features/a", "features/copy")

    def hashes(*names: str) -> dict[str, str]:
        config = config_of(world, f"data.features=[{','.join(names)}]")
        return hash_contents(prepare_tiny(config), config)

    assert hashes("a") == hashes("copy")
    assert len({json.dumps(hashes(*names)) for names in (("a",), ("last",), ("a", "last"), ("last", "a"))}) == 4
    assert not any(name.startswith("features") for name in hashes())


def test_the_whole_disk_is_never_filled(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    usage = shutil.disk_usage(world)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(Refusal, match="has 0.0 MB left, and 0.0 MB are needed"):
        make_features(world)
    assert "31 rows x 400 features x 1 views of float16: 0.0 MB in features/a" in capsys.readouterr().out
    assert not Path("features/a").exists()


def test_features_that_cannot_be_are_refused(world: Path):
    with pytest.raises(Refusal, match="does not give the stages"):
        make_features(world, stages=(9,))
    config = config_of(world)
    with pytest.raises(Refusal, match="random weights"):
        extract(config, code_of(config).alias, Choices(out=Path("features/a")), COMMAND)


# Reads every row of a file of 2 GB, with no more than 300 MB of own memory.
READ_ALL = """
import json, resource
from pathlib import Path
import numpy as np, pandas as pd
from foldwise.data.features import FeatureSet, StoredFeatures
from foldwise.data.samples import Samples, Rows
from foldwise.data.fields import Item
from foldwise.data.table import Table
folder = Path("features/large")
frame = pd.read_csv(folder / "rows.csv", dtype=str)
table = Table(frame, "multiclass", ("a",), Path("."), None, Path("train.csv"))
reader = StoredFeatures(Samples(), [FeatureSet(folder, {"views": ["none"]})], table)
rows = Rows(table, reader)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 300 * 2**20,) * 2)
total = sum(float(reader.read(rows, Item("", (row,)), {}, None)["features"][0]) for row in range(len(frame)))
print(total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_rows(world: Path):
    count, width = 200_000, 5_000
    folder = Path("features/large")
    folder.mkdir(parents=True)
    stored = np.lib.format.open_memmap(folder / "none.npy", "w+", np.float16, (count, width))  # sparse
    stored[[0, count - 1], 0] = 1, 2
    del stored
    text = "\n".join(f"{row},{row}.png,1" for row in range(count))
    (folder / "rows.csv").write_text(f"id,image,bytes\n{text}\n")
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3.0"), done.stderr

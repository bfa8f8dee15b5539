"""Heads of the configuration: weight 0 changes nothing, losses, missing targets, sources, refusals."""

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import tiny
import torch
from safetensors.torch import load_file
from stopping import Stop, watched
from tiny import prepare_tiny, tiny_config, train_folds, train_here, write_data

from foldwise.bundle.build import build_bundle
from foldwise.bundle.host import MANIFEST, write_manifest
from foldwise.bundle.inferring import infer
from foldwise.bundle.spec import BundledPresence, to_plain
from foldwise.checks import check_config
from foldwise.config import write_config
from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.files import write_json
from foldwise.inference.weights import load_model
from foldwise.models.heads import Heads
from foldwise.models.networks import build_network
from foldwise.predictions.decisions.submission import difference
from foldwise.predictions.schema import Header
from foldwise.predictions.store import iter_maps, read_predictions, write_predictions
from foldwise.processes.group import Rank
from foldwise.training.build import build_training
from foldwise.training.dry_run import inspect_config
from foldwise.training.results import output_config

MASK = "task: segmentation, target: mask, classes: [background,blue,green,red], loss: cross_entropy"
LABELS = "task: multilabel, target: labels"
POOLED = ("model._target_=foldwise.models.pooled.PooledNetwork", "model.library=null", "+model.dropout=0.3")
SMALL = ("batch_size=3", "optimizer.lr=0.01")  # nothing is left over of 6 rows


def heads(**entries):
    inner = ", ".join(f"{name}: {{{entry}}}" for name, entry in entries.items())
    return f"+outputs={{{inner}}}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "world", rows=12)


# the bytes of a run without heads


@pytest.mark.parametrize(
    "task, entries, network",
    [
        ("multiclass", {"mask": MASK, "tags": LABELS}, ()),
        ("multiclass", {"middle": f"{LABELS}, at: layer2", "deep": f"{MASK}, at: layer3"}, ()),
        ("multiclass", {"tags": LABELS}, POOLED),
        ("segmentation", {"tags": LABELS, "other": MASK, "deep": f"{MASK}, at: decoder.blocks.1"}, ()),
    ],
)
@pytest.mark.parametrize("ema", ["ema=null", "ema=0.9"])
def test_a_head_of_weight_0_changes_no_byte(root, tmp_path, task, entries, network, ema):
    drop = "+model.options.drop_rate=0.3" if task == "multiclass" else "seed=3"
    of_zero = {name: f"{entry}, weight: 0, keep: false" for name, entry in entries.items()}
    plain, zero = (
        train_folds(tiny_config(root, task, "fold=0", ema, drop, *SMALL, *network, *more), tmp_path / str(len(more)))
        for more in ((), (heads(**of_zero),))
    )
    for file in ("model/model.safetensors", "model/model.json"):
        assert (plain / "fold0" / file).read_bytes() == (zero / "fold0" / file).read_bytes(), file
    assert plain.name != zero.name
    first, second = (read_predictions(run / "fold0/oof-0-of-1") for run in (plain, zero))
    if task == "segmentation":
        pairs = zip(iter_maps(first), iter_maps(second), strict=True)
        assert all(np.array_equal(a.probability, b.probability) for a, b in pairs)
    else:
        assert first.frame.equals(second.frame)
    assert not (zero / "outputs").exists()
    history = pd.read_csv(zero / "fold0/history.csv")
    assert {f"train_{name}" for name in entries} | {f"score_{name}" for name in entries} <= set(history)


@pytest.mark.parametrize(
    "architecture",
    [
        {"library": "timm", "name": name, "options": {}}
        for name in ("resnet18", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_100", "test_vit")
    ]
    + [
        {"library": "smp", "name": name, "encoder": "tu-resnet18", "options": {}}
        for name in ("Unet", "FPN", "DeepLabV3Plus", "UnetPlusPlus")
    ],
    ids=lambda architecture: architecture["name"],
)
def test_a_network_with_heads_gives_the_very_output_without(architecture):
    torch.manual_seed(0)
    net = build_network(architecture, 3, 5)
    size = net.pretrained_cfg["input_size"][1:] if architecture["name"] == "test_vit" else (64, 96)
    image = torch.rand(2, 3, *size)
    expected = net.eval()(image)
    state = torch.random.get_rng_state()
    both = {name: {"kind": kind, "at": None, "detach": False} for name, kind in (("mask", "maps"), ("tags", "rows"))}
    added = Heads(net, both, {"mask": 4, "tags": 2}, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    logits, features = added.encode(net, image)
    assert torch.equal(logits, expected)
    found = added(features)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"mask": (2, 4, *size), "tags": (2, 2)}
    assert not any(value.any() for value in found.values())  # the last layer starts at zero


# losses and targets


def build(config):
    return build_training(config, prepare_tiny(config), Holdout((0,)), Rank())


@pytest.fixture(scope="module")
def gaps(tmp_path_factory):
    """The tiny data with a class, a mask or a number missing in some rows."""
    folder = write_data(tmp_path_factory.mktemp("gaps") / "world", rows=12)
    table = pd.read_csv(folder / "train.csv", keep_default_na=False)
    table["kind"] = table["label"].where(table.index % 4 != 1, "")
    table["mask"] = table["mask"].where(table.index % 4 != 2, "")
    table["size"] = (100 + 50 * (table.index % 3)).astype(str).where(table.index % 4 != 3, "")
    table.to_csv(folder / "train.csv", index=False)
    return folder


KIND = "task: multiclass, target: kind"
SIZE = "task: regression, target: size"


def test_the_loss_is_the_weighted_sum_and_missing_targets_count_nothing(gaps):
    config = tiny_config(gaps, "multiclass", heads(mask=f"{MASK}, weight: 0.5", kind=f"{KIND}, weight: 2"))
    module = build(config).module
    torch.manual_seed(0)
    outputs = {"logits": torch.randn(3, 3), "kind": torch.randn(3, 3), "mask": torch.randn(3, 4, 8, 8)}
    batch = {
        "target": torch.eye(3),
        "target_kind": torch.tensor([[1.0, 0, 0], [float("nan")] * 3, [0, 0, 1]]),
        "target_mask": torch.stack([torch.zeros(8, 8), torch.full((8, 8), 255), torch.ones(8, 8)]).long(),
        "weight": torch.tensor([1.0, 1.0, 2.0]),
    }
    found = module.losses(outputs, batch)
    cross_entropy = torch.nn.functional.cross_entropy
    kind = sum(w * cross_entropy(outputs["kind"][i], torch.tensor(c)) for i, c, w in ((0, 0, 1), (2, 2, 2))) / 3
    mask = sum(
        w * cross_entropy(outputs["mask"][i : i + 1], batch["target_mask"][i : i + 1]) for i, w in ((0, 1), (2, 2))
    )
    main = sum(w * cross_entropy(outputs["logits"][i], torch.tensor(i)) for i, w in enumerate((1, 1, 2))) / 3
    assert found["kind"] == pytest.approx(kind.item()) and found["mask"] == pytest.approx(mask.item() / 3)
    assert found["loss"] == pytest.approx((main + 2 * kind + 0.5 * mask / 3).item())


def test_missing_targets_are_read_scored_and_weighted_by_as_missing(gaps):
    weights = "{_target_: foldwise.models.losses.CrossEntropy, class_weights: balanced}"
    config = tiny_config(gaps, "multiclass", heads(mask=MASK, kind=f"{KIND}, loss: {weights}"))
    prepared = prepare_tiny(config)
    assert np.isnan(prepared.tables["target_kind"].target).all(1).tolist() == [row % 4 == 1 for row in range(12)]
    training = build_training(config, prepared, Holdout((0,)), Rank())
    sample = training.loader.dataset.read((2, 0))
    assert (sample["target_mask"] == 255).all() and sample["target_mask"].shape == (32, 32)
    rows = Holdout((0,)).trained(prepared.fold_of_items)
    kinds = pd.read_csv(gaps / "train.csv", keep_default_na=False)["kind"].iloc[rows]
    counts = kinds[kinds != ""].value_counts().reindex(tiny.CLASSES, fill_value=0)
    expected = [counts.sum() / (counts.gt(0).sum() * count) if count else 1.0 for count in counts]
    assert training.module.heads["kind"].loss.class_weights.tolist() == pytest.approx(expected)


# a whole run


@pytest.fixture(scope="module")
def run(gaps, tmp_path_factory):
    config = tiny_config(
        gaps, "multiclass", heads(mask=MASK, kind=KIND, size=SIZE, tags=f"{LABELS}, keep: false"), *SMALL
    )
    return config, train_here(config, tmp_path_factory.mktemp("runs"))


def test_each_kept_head_is_a_source_and_others_are_not_saved(run, gaps, command):
    _, folder = run
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == ["kind", "mask", "size"]
    saved = load_file(folder / "fold0/model/model.safetensors")
    assert {name.split(".")[1] for name in saved if name.startswith("heads.")} == {
        "mask_head",
        "kind_head",
        "size_head",
    }
    assert [output.name for output in load_model(folder / "fold0/model").spec.outputs] == ["", "mask", "kind", "size"]
    table = pd.read_csv(gaps / "train.csv", keep_default_na=False).set_index("id")
    kinds = read_predictions(folder / "outputs/kind/oof").frame.set_index("id")
    assert len(kinds) == 12  # rows without a target are predicted too, for stacking
    known = table["kind"][table["kind"] != ""]
    correct = kinds.loc[known.index, tiny.CLASSES].idxmax(axis=1) == known
    assert json.loads((folder / "outputs/kind/metrics.json").read_text())["overall"] == pytest.approx(correct.mean())
    sizes = read_predictions(folder / "outputs/size/oof").frame["size"]
    assert len(sizes) == 12 and sizes.between(50, 250).all()  # in the table's unit
    for name in ("kind", "mask", "size"):
        code, said, error = command("evaluate.py", folder / "outputs" / name)
        assert (code, error) == (0, "")
        assert f"{json.loads((folder / 'outputs' / name / 'metrics.json').read_text())['overall']:.4f}" in said


def test_the_history_has_losses_and_scores_of_all_heads(run):
    history = pd.read_csv(run[1] / "fold0/history.csv")
    for name in ("mask", "kind", "tags"):
        assert history[f"train_{name}"].gt(0).all() and history[f"score_{name}"].between(0, 1).all()


def test_a_stopped_run_resumes_to_the_same_bytes(run, tmp_path):
    config, folder = run
    config = config | {"fold": 0}
    with watched(Stop(1, 0)), pytest.raises(OSError, match="killed"):
        train_folds(config, tmp_path)
    resumed = train_folds(config, tmp_path)
    for file in ("model/model.safetensors", "model/model.json"):
        assert (resumed / "fold0" / file).read_bytes() == (folder / "fold0" / file).read_bytes()
    for name in ("", "outputs/kind"):
        first, second = (read_predictions(each / name / "fold0/oof-0-of-1") for each in (folder, resumed))
        assert first.frame.equals(second.frame)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_two_processes_equal_one(gaps, tmp_path):
    torch.ones(1, requires_grad=True).backward()  # see test_ddp
    entries = heads(mask=f"{MASK}, keep: false", kind=KIND)
    config = tiny_config(
        gaps, "multiclass", "fold=0", "batch_size=2", "model.name=test_vit", "data.image_size=160", entries
    )
    one, two = (train_folds(config, tmp_path / str(world), world) for world in (1, 2))
    first, second = (load_file(each / "fold0/model/model.safetensors") for each in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-4)


# refusals


@pytest.mark.parametrize(
    "entries, sentence",
    [
        ({"kind": "task: multiclass, target: gone"}, "outputs.kind: .*there is no column 'gone'"),
        (
            {"kind": "task: multiclass, target: label, metric: mean_iou"},
            "outputs.kind: metric MeanIoU is for segmentation.* not for multiclass",
        ),
        ({"tags": f"{LABELS}, loss: cross_entropy"}, "outputs.tags.loss is not for multilabel: choose one of bce"),
        ({"kind": "task: multiclass, target: label, loss: dice"}, "outputs.kind.loss is not for multiclass: choose"),
        ({"kind": "task: multiclass, target: label, loss: mse"}, "outputs.kind.loss is not for multiclass: choose"),
        (
            {"a": "task: multiclass, target: labell", "b": "task: regression, target: label"},
            "outputs.a: .*no column 'labell'.*set outputs.a.target=label\n.*outputs.b: .*which is no number",
        ),
        ({"tags": f"{LABELS}, loss: bcee"}, "outputs.tags: .*bcee"),
        ({"tags": f"{LABELS}, weight: -1"}, "outputs.tags.weight is -1; it must be a number of 0 or more"),
        ({"tags": f"{LABELS}, keep: 3"}, "outputs.tags.keep is 3; it must be true or false"),
        ({"who": "task: retrieval, target: label"}, "outputs.who.task is retrieval, which can only be the main task"),
        ({"logits": LABELS}, "outputs.logits: a name .* is not loss or logits"),
        ({"tags": f"{LABELS}, key: more"}, "this network takes one output, but there are logits, more"),
        ({"a": f"{LABELS}, key: b", "b": LABELS}, "outputs use the keys logits, b, b"),
        ({"tags": f"{LABELS}, at: layer9"}, "outputs.tags.at: the network has no module 'layer9'; there are conv1"),
        ({"tags": f"{LABELS}, where: layer3"}, "it has task and target, and may have key, classes, metric"),
    ],
)
def test_what_cannot_be_a_head_is_refused(root, entries, sentence):
    with pytest.raises(Refusal, match=f"(?s){sentence}"):
        config = tiny_config(root, "multiclass", heads(**entries))
        check_config(config)
        inspect_config(config, prepare_tiny(config))


def test_a_mask_head_needs_the_stages_of_the_network():
    net = timm.create_model("test_resnet", num_classes=3)
    net.forward_intermediates = None  # as in networks that lack it
    with pytest.raises(Refusal, match="outputs.mask: ResNet of timm does not give the feature maps"):
        Heads(net, {"mask": {"kind": "maps", "at": None, "detach": False}}, {"mask": 4}, 3)


def test_all_targets_of_a_head_are_mixed(gaps):
    mixed = ("mixing=cutmix",)
    config = tiny_config(gaps, "multiclass", heads(mask=f"{MASK}, keep: false", tags=LABELS, kind=KIND), *mixed)
    module = build(config).module
    (mix,) = module.mixes.values()
    batch = {
        "image": torch.zeros(2, 3, 8, 8),
        "target": torch.eye(2),
        "target_tags": torch.eye(2),
        "target_kind": torch.tensor([[1.0, 0], [float("nan")] * 2]),
        "target_mask": torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]).long(),
        "weight": torch.ones(2),
        "row": torch.arange(2),
    }
    torch.manual_seed(1)
    found = mix(batch)
    share = found["lam"]
    assert 0 < share < 1
    expected = share * torch.eye(2) + (1 - share) * torch.eye(2).roll(1, 0)
    assert torch.allclose(found["target_tags"], expected) and torch.allclose(found["target"], expected)
    assert found["target_kind"].isnan().all()  # mixed with a missing target
    assert (found["target_mask"][0] == 0).float().mean() == pytest.approx(share.item())


def test_predictions_of_a_table_have_each_kept_head(run, command):
    _, folder = run
    code, _, error = command("predict.py", folder)
    assert (code, error) == (0, "")
    kinds = read_predictions(next((folder / "outputs/kind/predictions").iterdir()))
    assert len(kinds.frame) == 2 * 12 and list(kinds.columns) == tiny.CLASSES


# a presence head beside masks


def test_presence_decides_which_masks_are_submitted(root, tmp_path, command):
    table = pd.read_csv(root / "train.csv")
    present = "task: multilabel, target: label, metric: macro_f1"
    no_code = ("samples._target_=foldwise.data.samples.Samples", "model._target_=foldwise.models.networks.ImageNetwork")
    config = tiny_config(root, "segmentation", heads(presence=present), *SMALL, *no_code)
    run = train_here(config, tmp_path)
    assert sorted(path.name for path in (run / "outputs").iterdir()) == ["presence"]
    assert list(read_predictions(run / "outputs/presence/oof").columns) == sorted(table["label"].unique())
    assert command("predict.py", run)[0] == 0
    out, source = tmp_path / "submission.csv", run / "outputs/presence"
    options = ("--presence", source, "--out", out, "--ledger", tmp_path / "ledger.csv", "--decision", "presence")
    code, said, error = command("submit.py", "make", run, *options)
    assert (code, error) == (0, "") and "minimum-area+presence" in said
    assert "presence from" in (tmp_path / "ledger.csv").read_text() and out.is_file()
    built = build_bundle([run], tmp_path / "bundle", decision="presence", presence=source)
    assert built.spec.presence == BundledPresence(run=0, output="presence", columns=("blue", "green", "red"))
    read = {"test": root / "test.csv", "images": root, "workers": 0, "device": "cpu"}
    answers = infer(tmp_path / "bundle", out=tmp_path / "out", **read)
    assert difference(out, answers, "rle") < 0.03  # stored maps have 8 bits
    head = replace(built.spec.decision, presence=0.999)  # only the background is present enough
    write_json(tmp_path / "bundle" / "bundle.json", to_plain(replace(built.spec, decision=head)))
    (tmp_path / "bundle" / MANIFEST).unlink()
    write_manifest(tmp_path / "bundle")
    assert difference(out, infer(tmp_path / "bundle", out=tmp_path / "empty", **read), "rle") > 0.1
    words = (
        "bundle.py",
        tmp_path / "bundle",
        "--rehearse",
        "--table",
        root / "train.csv",
        "--rows",
        12,
        "--workers",
        0,
    )
    code, said, error = command(*words)
    assert (code, error) == (0, ""), said
    with pytest.raises(Refusal, match="is no head of a bundled run"):
        build_bundle([run], tmp_path / "again", presence=run)
    code, _, error = command("submit.py", "make", source, *options[:2], "--out", tmp_path / "other.csv")
    assert code and "--presence is for masks, but the task is multilabel" in error
    wrong = ("--presence", run, "--out", tmp_path / "other.csv", "--ledger", tmp_path / "other")
    code, _, error = command("submit.py", "make", run, *wrong)
    assert code and "presence is one probability per class and image" in error


def test_a_head_feeds_the_stacking_of_the_main_output(tmp_path, command):
    """The head knows what the main output does not: only with its values does stacking find the classes."""
    folder = write_data(tmp_path / "world", rows=36)
    config = tiny_config(folder, "multiclass", heads(tags=f"{LABELS}, keep: true"), "epochs=1", "fold=0", *SMALL)
    prepared = prepare_tiny(config)
    run = tiny.open_tiny(config, tmp_path / "runs", prepared)
    rng, ids = np.random.default_rng(0), prepared.table.ids
    noise, target = rng.dirichlet([1] * 3, 36), np.eye(3)[np.arange(36) % 3] * 0.9 + 0.05
    write_config(run / "outputs/tags", output_config(config, prepared.outputs[1]))
    for source, task, values in ((run, "multiclass", noise), (run / "outputs/tags", "multilabel", target)):
        frame = pd.DataFrame(values, columns=tiny.CLASSES).assign(id=ids, snapshot="last", view="none")
        header = {"task": task, "columns": tiny.CLASSES, "run": run.name, "folds_hash": prepared.folds_hash}
        header |= {"tta": {"views": ["none"], "mean": "arithmetic"}, "created_by": "test"}
        oof = frame.assign(fold=prepared.fold_of_items)
        tests = pd.concat([frame.assign(fold=fold) for fold in (0, 1)])
        write_predictions(source / "oof", oof, Header(split="oof", **header))
        write_predictions(source / "predictions/test", tests, Header(split="test", **header))
    out, features = tmp_path / "stack", run / "outputs/tags"
    options = ("--methods", "logistic", "--use", "logistic", "--features")
    code, _, error = command("ensemble.py", run, "--out", out, *options, features)
    assert (code, error) == (0, "")
    classes = prepared.table.target.argmax(1)
    for name in ("oof", "predictions/test"):
        frame = read_predictions(out / name).frame
        found = frame.groupby("id")[tiny.CLASSES].mean().loc[ids].to_numpy().argmax(1)
        assert (found == classes).all(), name
    code, _, error = command("ensemble.py", run, "--out", tmp_path / "no", "--features", features)
    assert code and "--features needs a stacking method" in error

"""Phases that train on unlabelled rows with targets made by the model in training."""

import copy

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pseudo_world import config_of, write_world
from stopping import Stop, check_resume, watched
from tiny import prepare_tiny, train_folds

from foldwise.checks import check_config
from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.training.ema import EMA
from foldwise.training.identity import hash_contents, make_identity
from foldwise.training.loaders import with_pseudo
from foldwise.training.relabelling import Relabelling

# 16 labelled rows, 8 a fold: two steps of 3 real rows and 1 of the 8 unlabelled ones.
PHASES = ["phases=train_then_relabel", "phases.train.share=1", "phases.relabel.share=3"]
COMMON = [*PHASES, "epochs=4", "data.pseudo_share=0.25", "fold=0", "augmentation=flip", "optimizer.lr=0.01"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "data")


class Witness(pl.Callback):
    """By epoch: the batches, the table of targets, and what the model says of the unlabelled rows at the start."""

    def __init__(self):
        self.batches, self.logits, self.tables = [], [], []

    def on_train_epoch_start(self, trainer, module):
        average = [callback.network for callback in trainer.callbacks if isinstance(callback, EMA)]
        network = copy.deepcopy((average or [module.network])[0]).eval()  # whose mode stays as it is
        table = next(each for each in trainer.callbacks if isinstance(each, Relabelling)).targets
        images = torch.stack([picture(trainer, row) for row in range(16, 24)])
        with torch.no_grad():
            self.logits.append(network({"image": images})["logits"])
        self.tables.append(table.clone())
        self.batches.append([])

    def on_train_batch_start(self, trainer, module, batch, step):
        self.batches[-1].append({name: value.clone() for name, value in batch.items()})


def picture(trainer, row):
    reader = trainer.train_dataloader.dataset.reader
    return torch.from_numpy(reader.read(row)["image"].transpose(2, 0, 1).copy())


@pytest.mark.parametrize(
    ("task", "choices", "activate"),
    [
        ("multiclass", ["ema=0.9", "data.columns.weight=importance"], lambda logits: logits.softmax(1)),
        ("multilabel", ["mixing.mixup=0.4", "validate_every=4"], torch.sigmoid),  # no validation sets it to eval
    ],
)
def test_the_rows_of_an_epoch_have_the_predictions_of_the_model_at_its_start(task, choices, activate, world, tmp_path):
    frame = pd.read_csv(world / "train.csv", keep_default_na=False)
    frame.assign(importance=range(1, 17)).to_csv(world / "train.csv", index=False)
    witness = Witness()
    with watched(witness):
        train_folds(config_of(world, task, *COMMON, *choices), tmp_path)
    assert not any((batch["row"] >= 16).any() for batch in witness.batches[0])
    seen = set()
    for batches, logits in list(zip(witness.batches, witness.logits, strict=True))[1:]:
        for batch in batches:
            own = batch["row"] >= 16
            rows = batch["row"][own]
            seen |= set(rows.tolist())
            assert own.sum() == 1 and (batch["weight"][own] == 1).all()
            torch.testing.assert_close(batch["target"][own], activate(logits)[rows - 16])
            assert ((batch["target"][~own] == 0) | (batch["target"][~own] == 1)).all()
    assert len(seen) > 2


def test_a_label_is_kept_for_as_many_epochs_as_relabel_says(world, tmp_path):
    witness, kept = Witness(), config_of(world, "multiclass", *COMMON, "phases.relabel.relabel=2")
    with watched(witness):
        train_folds(kept, tmp_path)
    _, first, second, third = (table.nan_to_num(nan=-1) for table in witness.tables)
    labelled = first[:, 0] >= 0
    assert labelled.any() and torch.equal(second[labelled], first[labelled])  # epochs 1 and 2
    assert (second[:, 0] >= 0).sum() > labelled.sum()  # what epoch 2 draws besides
    assert not torch.equal(third[labelled], first[labelled])


def test_a_stopped_training_ends_as_one_never_stopped(world, tmp_path):
    config = config_of(world, "multiclass", *COMMON, "phases.relabel.relabel=3", "ema=0.9")
    check_resume(config, tmp_path, Stop(2, 0))


def test_images_of_a_held_out_scene_are_left_out(world, tmp_path):
    frame = pd.read_csv(world / "test.csv").assign(site=[f"s{row}" for row in (0, 1, 2, 20, 21, 22, 23, 24)])
    frame.loc[3, "image"] = "images/4.png"  # of fold 0
    frame.to_csv(tmp_path / "test.csv", index=False)
    config = config_of(world, "multiclass", *COMMON, "data.columns.group=site")
    config["data"]["test_table"] = str(tmp_path / "test.csv")
    prepared = prepare_tiny(config)
    left_out = {0: [0, 2, 3], 1: [1]}
    for fold, rows in left_out.items():
        joined, added = with_pseudo(prepared, Holdout((fold,)))
        assert added.tolist() == [16 + row for row in range(8) if row not in rows]
        assert [joined.source.image_path(row).name for row in (15, 16)] == ["15.png", "16.png"]
    assert len(with_pseudo(prepared, Holdout(()))[1]) == 8


def test_the_images_and_the_table_are_part_of_the_identity(world, tmp_path):
    identities = []
    for rows in (8, 7):
        table = tmp_path / f"{rows}.csv"
        pd.read_csv(world / "test.csv")[:rows].to_csv(table, index=False)
        config = config_of(world, "multiclass", *COMMON)
        config["data"]["test_table"] = str(table)
        identities.append(make_identity(config, 1, hash_contents(prepare_tiny(config), config)))
    first, second = identities
    assert {name for name in first if first[name] != second[name]} == {"content images", "content unlabelled"}


@pytest.mark.parametrize(
    ("task", "choices", "message"),
    [
        ("regression", [], "for soft targets of whole images, and the task is regression"),
        ("segmentation", [], "and the task is segmentation"),
        ("multiclass", ["data.test_table=null"], "labels the images of data.test_table, which is null"),
        ("multiclass", ["data.test_table=nowhere.csv"], "which is nowhere.csv: name their table"),
        ("multiclass", ["phases.train.share=0"], "would label by an untrained network: put a phase before it"),
        ("multiclass", ["+phases.relabel.rows=real"], "phases.relabel.rows is real: leave one out"),
        ("multiclass", ["phases.relabel.relabel=0"], "relabel is 0; it must be a whole number of epochs from 1"),
        ("multiclass", ["+outputs.kind={task:multiclass,target:labels}"], "labels one output, and outputs has kind"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(task, choices, message, world):
    with pytest.raises(Refusal, match=message):
        check_config(config_of(world, task, *COMMON, *choices))


def test_a_table_of_pseudo_labels_beside_it_is_refused(world):
    with pytest.raises(Refusal, match="phases.relabel.relabel and data.pseudo exclude each other"):
        check_config(config_of(world, "multiclass", *COMMON, pseudo=world / "test.csv"))

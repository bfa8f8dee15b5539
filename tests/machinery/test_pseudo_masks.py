"""Pseudo masks: which pixels get a class, what a student is trained on, and that nothing is written by halves."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pseudo_world import LABELLED, UNLABELLED, config_of, make_map_run, write_world
from tiny import CLASSES, prepare_tiny

from foldwise.data.batches import unpack
from foldwise.data.holdout import Holdout
from foldwise.data.images import read_mask
from foldwise.data.masks import StoredMasks
from foldwise.data.pseudo import join_tables
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.labelling.lists import list_uncertain
from foldwise.predictions.pseudo.labelling import pseudo_label
from foldwise.predictions.pseudo.rules import Confident, Soft
from foldwise.processes.group import Rank
from foldwise.training.loaders import training_loader, with_pseudo

NAMES = ["background", *CLASSES]


def draw_maps(seed, folds=2, size=32):
    """(folds, 8, 4, H, W); the last image is undecided everywhere."""
    maps = np.random.default_rng(seed).dirichlet([0.3] * 4, (folds, 8, size, size)).transpose(0, 1, 4, 2, 3)
    maps[:, -1] = 0.25
    return maps


def stored(maps):
    """What is read of probabilities that were stored in 8 bits."""
    return (np.rint(maps * 255) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two runs, and a table of pseudo masks made from them."""
    root = write_world(tmp_path_factory.mktemp("masks") / "world")
    maps = [draw_maps(1), draw_maps(2)]
    runs = [make_map_run(root, name, each) for name, each in zip("ab", maps, strict=True)]
    out = root / "pseudo.csv"
    students = pseudo_label(runs, out, Confident(0.6, {"red": 0.4, "green": 1.0}), weight=0.5)
    return SimpleNamespace(root=root, runs=runs, maps=maps, out=out, students=students)


def test_each_pixel_is_the_answer_of_the_folds_own_models_where_it_is_sure(world):
    frame = pd.read_csv(world.out).set_index("row")
    threshold = dict(zip(NAMES, [0.6, 0.6, 1.0, 0.4], strict=True))
    for fold, student in enumerate(world.students):
        mean = (stored(world.maps[0][fold]) + stored(world.maps[1][fold])) / 2
        counts = dict.fromkeys(NAMES, 0)
        for place, row in enumerate(UNLABELLED[:-1]):
            expected = np.full((32, 32), 255)
            for y, x in np.ndindex(32, 32):
                best = int(np.argmax(mean[place, :, y, x]))
                if mean[place, best, y, x] >= threshold[NAMES[best]]:
                    expected[y, x] = best
                    counts[NAMES[best]] += 1
            line = frame.loc[f"{fold}/row{row}"]
            np.testing.assert_array_equal(read_mask(world.root / line["mask"]), expected)
            assert line["labelled"] == pytest.approx((expected != 255).mean(), abs=1e-6)
            assert line["confidence"] == pytest.approx(mean[place].max(axis=0).mean(), abs=1e-5)
        assert student.classes == counts and student.lacking == ["green"]
        assert sum(student.answered.values()) == 8 * 32 * 32
        assert (student.rows, student.unsure) == (7, 1) and f"{fold}/row23" not in frame.index
    assert len(list((world.root / "pseudo").rglob("*.png"))) == len(frame) == 14


@pytest.mark.parametrize(("phases", "shares"), [("single", [0.5]), ("pseudo_then_train", [1, 0])])
def test_a_student_is_trained_on_its_own_masks(world, phases, shares):
    config = config_of(
        world.root, "segmentation", f"phases={phases}", f"epochs={len(shares)}", "augmentation=none", pseudo=world.out
    )
    prepared = prepare_tiny(config)
    student = prepared.pseudo.of(1)
    joined, added = with_pseudo(prepared, Holdout((1,)))
    loader, _ = training_loader(config, joined, {}, np.array(LABELLED[::2]), added, Rank())
    for epoch, share in enumerate(shares):
        loader.sampler.set_epoch(epoch)
        batch = unpack(next(iter(loader)))
        pseudo = batch["row"] >= len(prepared.table)
        assert pseudo.sum() == 4 * share
        for row, target, weight in zip(batch["row"].tolist(), batch["target"], batch["weight"], strict=True):
            name = joined.table.ids[row]
            real = row < len(prepared.table)
            path = prepared.table.mask_files(row)[0] if real else student.mask_files(student.ids.index(name))[0]
            np.testing.assert_array_equal(target, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
            assert weight == (1 if real else 0.5) and name.startswith("row" if real else "1/row")
    assert prepared.statistics == prepare_tiny(config_of(world.root, "segmentation")).statistics


def test_images_of_the_students_own_fold_are_left_out(world, tmp_path):
    root = write_world(tmp_path / "world")
    test = pd.read_csv(root / "test.csv").assign(site=["s0", "s1", *["new"] * 6])
    test.to_csv(root / "test.csv", index=False)
    run = make_map_run(root, "a", draw_maps(1), overrides=["data.columns.group=site"])
    students = pseudo_label([run], root / "pseudo.parquet", Confident(0.5))
    assert [student.held_out for student in students] == [1, 1]
    rows = set(pd.read_parquet(root / "pseudo.parquet")["row"])
    assert {"0/row17", "1/row16"} < rows and not {"0/row16", "1/row17"} & rows


def test_what_cannot_be_made_is_refused_and_nothing_is_left(world, tmp_path):
    before = sorted(world.root.iterdir())
    for out, rule, message in (
        (world.root / "soft.csv", Soft(), "use --confident"),
        (tmp_path / "pseudo.csv", Confident(0.6), r"would be written to .*--out .*world/pseudo.csv"),
        (world.root / "none.csv", Confident(0.6, {"cat": 1}), "no class 'cat'"),
        (world.root / "pseudo.parquet", Confident(0.6), "pseudo.json exists|not overwritten"),
    ):
        with pytest.raises(Refusal, match=message):
            pseudo_label(world.runs, out, rule)
    unsure = make_map_run(world.root, "unsure", np.full((2, 8, 4, 32, 32), 0.25))
    with pytest.raises(Refusal, match=r"fold 0 gets no images: the highest confidence is 0.251\n.*fold 1"):
        pseudo_label([unsure], world.root / "other.csv", Confident(0.6))
    other = make_map_run(world.root, "other-size", draw_maps(3, size=16))
    with pytest.raises(Refusal, match="other-size.*8 maps differ in size"):
        pseudo_label([*world.runs, other], world.root / "other.csv", Confident(0.6))
    damaged = make_map_run(world.root, "damaged", draw_maps(1))
    last = sorted((damaged / "predictions" / "test-none" / "maps").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:40])
    with pytest.raises(Refusal, match="cannot be read"):
        pseudo_label([damaged], world.root / "other.csv", Confident(0.6))
    assert sorted(world.root.iterdir()) == sorted([*before, unsure, other, damaged]) and not [*tmp_path.iterdir()]


def test_a_void_value_that_no_file_can_hold_is_refused(tmp_path):
    root = write_world(tmp_path / "world")
    run = make_map_run(root, "a", draw_maps(1), overrides=["data.ignore_index=-1"])
    with pytest.raises(Refusal, match="ignore_index is -1, which a PNG cannot store"):
        pseudo_label([run], root / "pseudo.csv", Confident(0.5))


def test_uncertain_images_come_by_the_mean_entropy_of_their_pixels(world, tmp_path):
    found = list_uncertain(world.runs, tmp_path / "uncertain.csv", 3)
    mean = np.mean([stored(maps) for maps in world.maps], axis=(0, 1)).astype(np.float64)  # (N, C, H, W)
    entropy = -np.where(mean > 0, mean * np.log(mean.clip(1e-12)), 0).sum(axis=1).mean(axis=(1, 2))
    order = np.argsort(-entropy)[:3]
    assert found["id"].tolist() == [f"row{16 + place}" for place in order]
    assert found["entropy"].tolist() == pytest.approx(entropy[order], abs=1e-4)
    top = np.sort(mean, axis=1)
    assert found["margin"].tolist() == pytest.approx((top[:, 3] - top[:, 2]).mean(axis=(1, 2))[order], abs=1e-4)
    np.testing.assert_allclose(found[NAMES], mean.mean(axis=(2, 3))[order], atol=1e-4)


def test_the_command(world, command):
    out = world.root / "command.csv"
    code, said, error = command("tools/pseudo_label.py", world.runs[0], "--confident", 0.6, "--out", out)
    assert (code, error) == (0, "") and f"data.pseudo={out}" in said
    assert "left out: not confident" in said and str(Path(out).with_suffix("")) in said.splitlines()[-5].strip()
    code, _, error = command("tools/pseudo_label.py", world.runs[0], "--soft", "--out", world.root / "soft.csv")
    assert code == 2 and error.startswith("error: masks cannot store probabilities")


def test_masks_of_pseudo_labels_are_not_mapped(tmp_path):
    """Those of the table are, by `data.mask_values`; those of pseudo labels store class numbers."""
    for name, values in (("real", [[0, 255]]), ("pseudo", [[1, 255]])):
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / f"{name}.png")
    frames = [pd.DataFrame({"id": [n], "image": "i", "mask": f"{n}.png", "weight": 1.0}) for n in ("real", "pseudo")]
    real, pseudo = (
        Table(frame, "segmentation", ("a", "b"), tmp_path, None, tmp_path, StoredMasks(("a", "b"), values))
        for frame, values in zip(frames, ({0: 0, 255: 1}, None), strict=True)
    )
    joined = join_tables(real, pseudo)
    assert [joined.read_mask(row).tolist() for row in (0, 1)] == [[[0, 1]], [[1, 255]]]

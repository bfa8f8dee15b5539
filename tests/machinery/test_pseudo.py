"""Pseudo labels: what each student gets, that nothing of its fold's labels is in it, and how it is trained on them."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from pseudo_world import LABELLED, UNLABELLED, config_of, draw, make_run, write_world
from stopping import Stop, check_resume
from tiny import CLASSES, prepare_tiny, train_scored

from foldwise.data.batches import unpack
from foldwise.data.folds import folds_hash
from foldwise.data.holdout import FULL, Holdout
from foldwise.data.problems import TableError
from foldwise.data.pseudo import join_tables, provenance_path
from foldwise.data.sampling import EpochSampler, Pool, Sampling
from foldwise.errors import Refusal
from foldwise.files import read_json, write_json
from foldwise.inference.predicting import Choices, predict_runs
from foldwise.labelling.lists import list_uncertain
from foldwise.predictions.pseudo.labelling import pseudo_label
from foldwise.predictions.pseudo.rules import Confident, Soft
from foldwise.processes.group import Rank
from foldwise.schedule.phases import build_phases, pseudo_shares
from foldwise.settings import find_choice
from foldwise.training.identity import hash_contents, make_identity
from foldwise.training.loaders import training_loader, with_pseudo


@pytest.fixture
def world(tmp_path):
    return write_world(tmp_path / "world")


# what a student gets


@pytest.mark.parametrize(("task", "suffix"), [("multiclass", ".csv"), ("multilabel", ".parquet")])
def test_soft_targets_are_the_mean_of_the_folds_own_models(world, task, suffix, tmp_path):
    first, second = draw(task, 1), draw(task, 2)
    runs = [make_run(world, "a", first, task), make_run(world, "b", second, task)]
    out = tmp_path / f"pseudo{suffix}"
    pseudo_label(runs, out, Soft(), weight=0.5)
    prepared = prepare_tiny(config_of(world, task, pseudo=out))
    for fold in (0, 1):
        student = prepared.pseudo.of(fold)
        assert student.frame["image"].tolist() == [f"images/{row}.png" for row in UNLABELLED]
        expected = (first[fold].astype(np.float32) + second[fold].astype(np.float32)) / 2
        np.testing.assert_allclose(student.target, expected, atol=1e-6)
        assert set(student.frame["weight"]) == {0.5}


def test_confident_multiclass_against_a_loop(world, tmp_path):
    probability = draw("multiclass", 3)
    out = tmp_path / "pseudo.csv"
    threshold = {"blue": 0.5, "green": 0.7, "red": 0.9}
    students = pseudo_label([make_run(world, "a", probability)], out, Confident(0.7, {"blue": 0.5, "red": 0.9}))
    expected = []
    for fold in (0, 1):
        for place, row in enumerate(UNLABELLED):
            best = int(np.argmax(probability[fold, place]))
            if probability[fold, place, best] >= threshold[CLASSES[best]]:
                expected.append((f"{fold}/row{row}", f"row{row}", fold, CLASSES[best]))
    found = pd.read_csv(out)
    labels = found[CLASSES].idxmax(axis=1)
    assert list(zip(found["row"], found["id"], found["student"], labels, strict=True)) == expected
    assert set(found[CLASSES].to_numpy().ravel()) == {0.0, 1.0} and (found[CLASSES].sum(axis=1) == 1).all()
    counted = [[student.student, student.classes["red"]] for student in students]
    assert counted == [[fold, sum(e[2:] == (fold, "red") for e in expected)] for fold in (0, 1)]


def test_confident_multilabel_needs_every_label_decided(world, tmp_path):
    probability = np.tile([0.5, 0.5, 0.5], (2, 8, 1))
    probability[:, 0] = [0.95, 0.02, 0.99]  # blue and red
    probability[:, 1] = [0.95, 0.15, 0.99]  # green neither there nor absent
    probability[:, 2] = [0.05, 0.05, 0.01]  # none of them
    probability[0, 3] = [0.95, 0.05, 0.85]  # red is enough with its own threshold, for student 0 alone
    out = tmp_path / "pseudo.csv"
    pseudo_label([make_run(world, "a", probability, "multilabel")], out, Confident(0.9, {"red": 0.8}))
    found = pd.read_csv(out).set_index("row")[CLASSES]
    assert {name: row.astype(int).tolist() for name, row in found.iterrows()} == {
        "0/row16": [1, 0, 1], "0/row18": [0, 0, 0], "0/row19": [1, 0, 1],
        "1/row16": [1, 0, 1], "1/row18": [0, 0, 0],
    }  # fmt: skip


def test_images_of_the_students_own_fold_are_left_out(world, tmp_path):
    test = pd.read_csv(world / "test.csv").assign(site=["s0", "s1", "s1", "new", "new", "new", "new", "new"])
    test.loc[7, "image"] = "images/2.png"  # a training picture of fold 0
    test.to_csv(world / "test.csv", index=False)
    run = make_run(world, "a", draw("multiclass"), overrides=["data.columns.group=site"])
    out = tmp_path / "pseudo.csv"
    pseudo_label([run], out, Soft())
    by_student = pd.read_csv(out).groupby("student")["id"].agg(set)
    everything = {f"row{row}" for row in UNLABELLED}
    assert everything - by_student[0] == {"row16", "row23"}  # s0 is in fold 0
    assert everything - by_student[1] == {"row17", "row18"}
    assert [student["held_out"] for student in read_json(provenance_path(out))["students"]] == [2, 2]


def test_uncertain_images_come_by_the_entropy_of_all_models(world, tmp_path):
    probability = np.zeros((2, 8, 3))
    probability[:, :, 0] = np.linspace(0.4, 0.96, 8)
    probability[:, :, 1:] = (1 - probability[:, :, :1]) / 2
    probability[:, 5] = [[0.98, 0.01, 0.01], [0.01, 0.98, 0.01]]  # each fold is sure, of something else
    run = make_run(world, "a", probability)
    list_uncertain([run], tmp_path / "uncertain.csv", 4)
    found = pd.read_csv(tmp_path / "uncertain.csv")
    mean = probability.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    assert found["id"].tolist() == [f"row{16 + place}" for place in np.argsort(-entropy)[:4]]
    assert found["entropy"].tolist() == pytest.approx(np.sort(entropy)[::-1][:4], abs=1e-5)
    top = np.sort(mean, axis=1)
    assert found["margin"].tolist() == pytest.approx((top[:, 2] - top[:, 1])[np.argsort(-entropy)[:4]], abs=1e-5)
    other = make_run(world, "b", draw("multilabel"), "multilabel")
    frame = list_uncertain([other], tmp_path / "labels.csv", 100)
    probability = frame[CLASSES].to_numpy()
    assert len(frame) == 8 and frame["entropy"].is_monotonic_decreasing
    assert frame["margin"].to_numpy() == pytest.approx(np.abs(2 * probability - 1).min(axis=1), abs=1e-5)


# what is refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["top_k=2"], "top_k=2"),
        (["phases=best_restarts", "epochs=3"], r"phases.again1.start=best, phases.again2.start=best"),
        (["scheduler=plateau"], r"fold k \(scheduler\)"),
        (["+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"], r"callbacks.stop"),
    ],
)
def test_runs_that_followed_their_own_validation_are_refused(world, tmp_path, overrides, message):
    run = make_run(world, "a", draw("multiclass"), overrides=overrides)
    with pytest.raises(Refusal, match=message):
        pseudo_label([run], tmp_path / "pseudo.csv", Soft())


def test_ensembles_and_strangers_are_refused_in_one_error(world, tmp_path):
    run = make_run(world, "a", draw("multiclass"))
    for name in ("ensemble", "friend"):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "identity.json").unlink()
    (tmp_path / "ensemble" / "ensemble.json").write_text("{}")
    with pytest.raises(Refusal) as error:
        pseudo_label([run, tmp_path / "ensemble", tmp_path / "friend"], tmp_path / "pseudo.csv", Soft())
    assert "out-of-fold rows of other folds" in str(error.value) and "friend is not a run" in str(error.value)
    assert not (tmp_path / "pseudo.csv").exists() and not (tmp_path / "pseudo.json").exists()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"folds_hash": "other"}, "made with the folds other"),
        ({"created_by": "ensemble.py"}, "from 'ensemble.py'"),
        ({"tta": {"views": ["identity"], "mean": "rank"}}, "mean ranks"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(world, tmp_path, header, message):
    runs = [make_run(world, "a", draw("multiclass")), make_run(world, "b", draw("multiclass"), header=header)]
    with pytest.raises(Refusal, match=f"b/predictions/test-none: .*{message}"):
        pseudo_label(runs, tmp_path / "pseudo.csv", Soft())


def test_missing_folds_and_other_ids_are_refused(world, tmp_path):
    run = make_run(world, "a", draw("multiclass", folds=1))
    test = pd.read_csv(world / "test.csv")
    test.loc[0, "id"] = "stranger"
    test.to_csv(world / "test.csv", index=False)
    with pytest.raises(Refusal) as error:
        pseudo_label([run], tmp_path / "pseudo.csv", Soft())
    for part in (r"folds [1] are missing", "1 ids are not in", "row16", "have no prediction", "stranger"):
        assert part in str(error.value)


def test_empty_selections_and_bad_choices_are_refused(world, tmp_path):
    run = make_run(world, "a", np.full((2, 8, 3), 1 / 3))
    out = tmp_path / "pseudo.csv"
    with pytest.raises(Refusal, match=r"fold 0 gets no images: the highest confidence is 0.333\n.*fold 1"):
        pseudo_label([run], out, Confident(0.5))
    with pytest.raises(Refusal, match=r"no class 'cat'(.|\n)*1.5 must be above 0"):
        pseudo_label([run], out, Confident(1.5, {"cat": 0.5}))
    with pytest.raises(Refusal, match="--weight 0 must be"):
        pseudo_label([run], out, Soft(), weight=0)
    other = make_run(world, "b", draw("multilabel"), "multilabel")
    with pytest.raises(Refusal, match="0.4 must be above 0.5"):
        pseudo_label([other], out, Confident(0.4))
    assert not out.exists() and not provenance_path(out).exists()


def test_a_table_that_does_not_fit_is_refused_in_one_error(world, tmp_path):
    out = tmp_path / "pseudo.csv"
    pseudo_label([make_run(world, "a", draw("multiclass"))], out, Soft())
    with pytest.raises(Refusal, match="not overwritten"):
        pseudo_label([world / "a"], out, Soft())
    frame = pd.read_csv(out)
    frame["student"] = frame["student"].map({0: 0, 1: 7})
    frame.loc[0, "student"] = FULL  # its number in predictions is no name in a table
    frame.to_csv(out, index=False)
    write_json(provenance_path(out), {"folds_hash": "other"})
    with pytest.raises(TableError) as error:
        prepare_tiny(config_of(world, "multiclass", pseudo=out))
    for part in ("made with the folds other", "'1/row16': the student '7' is neither", "the student 1 has no rows"):
        assert part in str(error.value)
    assert "the student '-2' is neither" in str(error.value)
    provenance_path(out).unlink()
    with pytest.raises(TableError, match="is missing"):
        prepare_tiny(config_of(world, "multiclass", pseudo=out))
    frame.assign(image="images/none.png").to_csv(out, index=False)
    with pytest.raises(TableError, match="none.png does not exist"):
        prepare_tiny(config_of(world, "multiclass", pseudo=out))


# how a student is trained


def draws_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("pseudo_rows", [5, 400])
def test_every_step_has_its_share_and_all_ranks_take_part(pseudo_rows):
    real, pseudo = Pool(range(100)), Pool(np.arange(100, 100 + pseudo_rows))
    shares = [0.25, 1.0, 0.0]
    ranks = [EpochSampler(real, 3, 4, rank, 2, pseudo=pseudo, pseudo_shares=shares) for rank in (0, 1)]
    for epoch, share in enumerate([*shares, 0.0]):  # after the last it stays
        first, second = (draws_of(sampler, epoch) for sampler in ranks)
        assert len(first) == len(second) == len(ranks[0]) == 48
        steps = [first[start : start + 4] + second[start : start + 4] for start in range(0, 48, 4)]
        assert {sum(draw.item >= 100 for draw in step) for step in steps} == {round(8 * share)}
        drawn = first + second
        counts = np.bincount([draw.item for draw in drawn], minlength=100 + pseudo_rows)
        assert counts[:100].max() <= 1 and np.ptp(counts[100:]) <= 1  # as evenly as can be
        assert len({(draw.item, draw.repeat) for draw in drawn}) == len(drawn)  # a second time it looks otherwise
        alone = draws_of(EpochSampler(real, 3, 8, pseudo=pseudo, pseudo_shares=shares), epoch)
        assert sorted(alone) == sorted(drawn)
    mixed = draws_of(ranks[0], 0)
    assert 0 < sum(draw.item >= 100 for draw in mixed) < 24  # neither none nor all of the pseudo rows
    assert draws_of(ranks[0], 0) == mixed != draws_of(EpochSampler(real, 4, 4, 0, 2, pseudo, shares), 0)


def test_balanced_sampling_of_pseudo_rows():
    class Half(Sampling):
        """Draws the first item every other time."""

        def chances(self, epoch):
            return np.array([9.0] + [1.0] * 9)

    pseudo = Pool(np.arange(100, 110), Half())
    sampler = EpochSampler(Pool(range(100)), 0, 10, pseudo=pseudo, pseudo_shares=[0.5])
    counts = sum(np.bincount([draw.item for draw in draws_of(sampler, epoch)], minlength=110) for epoch in range(20))
    assert counts[:100].sum() == 1000 and 440 < counts[100] < 560


def test_a_share_below_one_row_is_refused():
    with pytest.raises(Refusal, match="share of 0.05 pseudo rows in a step of 4"):
        EpochSampler(Pool(range(10)), 0, 4, pseudo=Pool(np.arange(10, 12)), pseudo_shares=[0.05])


def test_shares_of_the_epochs():
    def shares(share, **phases):
        return pseudo_shares(build_phases(phases), share)

    default, real = {"epochs": 2}, {"epochs": 1, "rows": "real"}
    assert shares(0.3, a=default, b=real, c={"epochs": 2, "rows": "pseudo"}, d={"epochs": 1, "rows": "both"}) == [
        0.3, 0.3, 0.0, 1.0, 1.0, 0.3,
    ]  # fmt: skip
    assert shares(None, a=default, b=real) == [0.0, 0.0, 0.0]
    for rows in ("pseudo", "both"):
        with pytest.raises(Refusal, match=rf"phases.a.rows is {rows}, .* data.pseudo"):
            shares(None, a={"epochs": 1, "rows": rows})
    for share in (0, 1, 1.5, "half", True, float("nan")):
        with pytest.raises(Refusal, match="between 0 and 1"):
            shares(share, a=default)
    with pytest.raises(Refusal, match="real, pseudo, both"):
        build_phases({"a": {"epochs": 1, "rows": "all"}})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A world with a table of pseudo labels in which student 1 has half as many rows as student 0."""
    root = write_world(tmp_path_factory.mktemp("labelled") / "world")
    probability = np.tile([0.9, 0.06, 0.04], (2, 8, 1))
    probability[1, :4] = [0.4, 0.3, 0.3]
    out = root / "pseudo.csv"
    pseudo_label([make_run(root, "a", probability)], out, Confident(0.8), weight=0.5)
    return SimpleNamespace(root=root, table=out)


@pytest.mark.parametrize("phases", ["single", "pseudo_then_train", "both_then_train"])
@pytest.mark.parametrize("fold", [0, 1])
def test_a_student_gets_its_own_rows_in_the_phases_that_want_them(labelled, phases, fold):
    per_epoch = {"single": [0.5], "pseudo_then_train": [1, 0], "both_then_train": [0.5, 0]}[phases]
    epochs = f"epochs={len(per_epoch)}"
    config = config_of(labelled.root, "multiclass", f"phases={phases}", epochs, pseudo=labelled.table)
    prepared = prepare_tiny(config)
    student, real = prepared.pseudo.of(fold), [row for row in LABELLED if row % 2 != fold]
    joined, added = with_pseudo(prepared, Holdout((fold,)))
    loader, steps = training_loader(config, joined, {}, np.array(real), added, Rank())
    assert loader.sampler.pseudo_shares == per_epoch and steps == 2
    for epoch, share in enumerate(per_epoch):
        loader.sampler.set_epoch(epoch)
        batches = [unpack(batch) for batch in loader]
        assert [len(batch["row"]) for batch in batches] == [4, 4]
        for batch in batches:
            pseudo = batch["row"] >= len(prepared.table)
            assert pseudo.sum() == 4 * share
            assert batch["target"][pseudo].tolist() == [[1, 0, 0]] * int(pseudo.sum())
            assert set(batch["row"][~pseudo].tolist()) <= set(real)
            assert torch.equal(batch["weight"], torch.where(pseudo, 0.5, 1.0))
            held = {name for name in student.frame["id"] if name.startswith(f"{fold}/")}
            names = [joined.table.ids[row] for row in batch["row"][pseudo]]
            assert set(names) <= held and len(held) == (8, 4)[fold]


def test_weights_of_real_rows_stay_and_the_image_is_the_rows_own(labelled):
    frame = pd.read_csv(labelled.root / "train.csv").assign(importance=np.linspace(1, 3, 16))
    frame.to_csv(labelled.root / "weighted.csv", index=False)
    config = config_of(labelled.root, "multiclass", "data.columns.weight=importance", pseudo=labelled.table)
    config["data"]["table"] = str(labelled.root / "weighted.csv")
    prepared = prepare_tiny(config)
    joined = join_tables(prepared.table, prepared.pseudo.of(1))
    np.testing.assert_array_equal(joined.weights[:16], prepared.table.weights)
    np.testing.assert_array_equal(joined.weights[16:], 0.5)
    assert [joined.image_path(row).name for row in (3, 16, 19)] == ["3.png", "20.png", "23.png"]


def test_statistics_and_class_counts_are_those_without_pseudo_rows(labelled):
    plain = prepare_tiny(config_of(labelled.root, "multiclass"))
    prepared = prepare_tiny(config_of(labelled.root, "multiclass", pseudo=labelled.table))
    assert prepared.statistics == plain.statistics
    assert prepared.folds_hash == plain.folds_hash == folds_hash(prepared.folds)


def test_the_contents_of_the_table_are_part_of_the_identity(labelled, tmp_path):
    other = tmp_path / "pseudo.csv"
    frame = pd.read_csv(labelled.table, dtype=str)
    frame.assign(weight="0.7").to_csv(other, index=False)
    shutil.copy(provenance_path(labelled.table), provenance_path(other))
    identities = []
    for table in (None, labelled.table, other):
        config = config_of(labelled.root, "multiclass", pseudo=table)
        identities.append(make_identity(config, 1, hash_contents(prepare_tiny(config), config)))
    assert len({identity["content pseudo"] for identity in identities}) == 3
    assert identities[0]["content images"] != identities[1]["content images"] == identities[2]["content images"]


def test_a_resumed_student_equals_one_never_stopped(labelled, tmp_path):
    config = config_of(
        labelled.root, "multiclass", "phases=both_then_train", "fold=0", "epochs=2", pseudo=labelled.table
    )
    check_resume(config, tmp_path, Stop(1, 0))


# the leak


def two_rounds(root, task):
    """Train, predict, pseudo-label, and once more with what came out; the lines of both tables, and their masks."""
    tables = [root / "first.csv", root / "second.csv"]
    pseudo = None
    sure = Confident({"multiclass": 0.38, "multilabel": 0.51, "segmentation": 0.3}[task])
    for table, rule in zip(tables, (sure, sure if task == "segmentation" else Soft()), strict=True):
        of_task = "loss=cross_entropy" if task == "segmentation" else "data.sampling=balanced"
        config = config_of(
            root, task, of_task, "loss.class_weights=balanced", "optimizer.lr=0.01", "epochs=2", pseudo=pseudo
        )
        run = train_scored(config, root / "runs")
        predict_runs([run], Choices(tta=find_choice("tta", "none"), workers=0, device="cpu"))
        pseudo_label([run], table, rule)
        pseudo = table
    return [targets_of(table, root) for table in tables]


def targets_of(table, root):
    """For each student the lines of a table, each with the bytes of its mask where it has one."""
    frame = pd.read_csv(table, dtype=str)
    masks = [(root / name).read_bytes() for name in frame["mask"]] if "mask" in frame else [b""] * len(frame)
    lines = list(zip(table.read_bytes().splitlines()[1:], masks, strict=True))
    students = frame["student"].astype(int)
    return [[line for line, student in zip(lines, students, strict=True) if student == fold] for fold in (0, 1)]


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("multilabel", "segmentation")]


@pytest.mark.parametrize("task", ["multiclass", *SLOW])
def test_no_byte_of_a_students_targets_depends_on_its_folds_labels(task, tmp_path):
    """Every label of fold 0 is another one, everything is made anew in two rounds: its student must not notice."""
    rounds = [two_rounds(write_world(tmp_path / str(flipped), flipped), task) for flipped in (False, True)]
    for original, changed in zip(*rounds, strict=True):
        assert original[0] and original[0] == changed[0]
        assert original[1] and original[1] != changed[1]  # the labels do matter


# the command


def test_the_command(labelled, tmp_path, command):
    def label(*arguments):
        return command("tools/pseudo_label.py", *arguments)

    out, run = tmp_path / "pseudo.csv", labelled.root / "a"
    code, said, error = label(run, "--confident", 0.95, "--confident-class", "blue=0.8", "--out", out)
    assert (code, error) == (0, "") and f"data.pseudo={out}" in said and "left out" in said
    for fold in (0, 1):
        assert f"the student of fold {fold} gets no image of green, red: " in said
    origin = json.loads(provenance_path(out).read_text())
    assert origin["rule"] == {"name": "confident", "threshold": 0.95, "of_class": {"blue": 0.8}}
    assert [student["rows"] for student in origin["students"]] == [8, 4]
    assert origin["runs"][0]["folder"] == str(run) and len(origin["runs"][0]["identity"]) == 16
    code, _, error = label(run, "--soft", "--out", out)
    assert code == 2 and error.startswith("error: ") and "not overwritten" in error
    for wrong in (["--soft", "--confident", "0.9"], ["--confident-class", "blue=1", "--soft"]):
        assert label(run, *wrong, "--out", tmp_path / "x.csv")[0] == 2

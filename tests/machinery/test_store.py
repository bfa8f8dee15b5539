"""Prediction folders: what is written is read back, what is wrong is listed, what fails leaves nothing."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from foldwise.errors import Refusal
from foldwise.predictions.schema import Header, PredictionsError
from foldwise.predictions.store import (
    average_members,
    class_shares,
    iter_average_maps,
    iter_maps,
    read_header,
    read_predictions,
    write_predictions,
)
from foldwise.predictions.writers import PredictionWriter, merge, merge_folders

ROOT = Path(__file__).parents[1]
CLASSES = ["cat", "dog", "newt"]


def header(task="multiclass", split="oof", **values):
    return Header(
        split=split, task=task, columns=tuple(CLASSES), run="runs/a", folds_hash="0123", created_by="a test", **values
    )


def rows(ids, folds, snapshot="last", view="identity", seed=0):
    values = np.random.default_rng(seed).dirichlet(np.ones(3), len(ids)).astype(np.float32)
    frame = pd.DataFrame({"id": ids, "fold": folds, "snapshot": snapshot, "view": view})
    frame[CLASSES] = values
    return frame


def problems_of(frame, sidecar=None, tmp_path=None):
    with pytest.raises(PredictionsError) as caught:
        write_predictions(tmp_path / "p", frame, sidecar or header())
    assert list(tmp_path.iterdir()) == []
    return "\n".join(caught.value.problems)


def test_round_trip_keeps_ids_order_and_members(tmp_path):
    ids, folds = ["007", "1e5", "ü b"], [1, 0, 0]
    frame = pd.concat([rows(ids, folds), rows(ids, folds, view="hflip", seed=1)])
    write_predictions(tmp_path / "p", frame, header())
    back = read_predictions(tmp_path / "p")
    pd.testing.assert_frame_equal(back.frame, frame.reset_index(drop=True), check_dtype=False)
    assert back.header.members[0] == {"fold": 0, "snapshot": "last", "view": "hflip"} and len(back.header.members) == 4
    assert back.columns == CLASSES and back.header.run == "runs/a"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_predictions(tmp_path / name, rows(["x", "y"], 0), header())
        with PredictionWriter(tmp_path / f"maps-{name}", header("segmentation")) as writer:
            writer.add("x", 0, "last", "identity", np.full((3, 2, 2), 1 / 3))
    for file in ("predictions.parquet", "predictions.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in ("index.parquet", "maps/000000.npz"):
        assert (tmp_path / "maps-a" / file).read_bytes() == (tmp_path / "maps-b" / file).read_bytes()


def test_one_that_pandas_alone_wrote_as_the_docstring_says(tmp_path):
    folder = tmp_path / "from-a-friend"
    folder.mkdir()
    frame = pd.DataFrame({"id": ["1", "2"], "fold": 0, "snapshot": "last", "view": "identity"})
    frame[["cat", "dog"]] = np.array([[0.2, 0.8], [1.0, 0.0]])
    frame.to_parquet(folder / "predictions.parquet")
    sidecar = {
        "schema_version": 2,
        "split": "test",
        "task": "multiclass",
        "kind": "rows",
        "columns": ["cat", "dog"],
        "run": "friend",
        "folds_hash": None,
        "tta": {"views": ["identity"], "mean": "arithmetic"},
        "created_by": "a friend",
        "members": [{"fold": 0, "snapshot": "last", "view": "identity"}],
    }
    (folder / "predictions.json").write_text(json.dumps(sidecar))
    assert read_predictions(folder).frame["dog"].tolist() == [0.8, 0.0]


def test_all_problems_at_once_and_nothing_left(tmp_path):
    frame = rows(["a", "b", "c", "d"], 0)
    frame.loc[0, "cat"] = np.nan
    frame.loc[1, ["cat", "dog", "newt"]] = [1.5, -0.5, 0]
    frame.loc[3, "id"] = "c"
    text = problems_of(frame, tmp_path=tmp_path)
    assert "1 rows have NaN: ids a" in text
    assert "1 rows are outside 0 to 1: ids b" in text
    assert "1 ids have several rows for one member: c" in text


def test_rows_must_sum_to_one_but_for_multilabel(tmp_path):
    frame = rows(["a", "b"], 0)
    frame.loc[0, "cat"] /= 2
    assert "do not sum to 1" in problems_of(frame, tmp_path=tmp_path)
    write_predictions(tmp_path / "p", frame, header("multilabel"))


def test_rounding_is_cut_off(tmp_path):
    frame = rows(["a"], 0)
    frame[CLASSES] = np.array([[1.0000001, -1e-8, 0]])
    write_predictions(tmp_path / "p", frame, header())
    assert read_predictions(tmp_path / "p").frame[CLASSES].iloc[0].tolist() == [1, 0, 0]


def test_members_and_ids_go_together_by_kind(tmp_path):
    text = problems_of(rows(["a", "a", "b"], [0, 1, 0]), tmp_path=tmp_path)
    assert "predicted out of fold by more than one fold: a" in text
    uneven = pd.concat([rows(["a", "b"], 0), rows(["a"], 1)])
    assert "1 ids lack some of the 2 members: b" in problems_of(uneven, header(split="test"), tmp_path)
    unequal_views = pd.concat([rows(["a", "b"], [0, 1]), rows(["a"], 0, view="hflip")])
    assert "1 ids lack some of the 2 members: b" in problems_of(unequal_views, tmp_path=tmp_path)
    best_epochs = [rows([id], fold, snapshot=name) for id, fold, name in (("a", 0, "epoch001"), ("b", 1, "epoch003"))]
    write_predictions(tmp_path / "best", pd.concat(best_epochs), header())  # other names in each fold
    write_predictions(tmp_path / "p", pd.concat([rows(["a", "b"], 0), rows(["a", "b"], 1)]), header(split="test"))


def test_columns_and_types(tmp_path):
    frame = rows(["a", "b"], 0)
    text = problems_of(frame.rename(columns={"newt": "toad"}), tmp_path=tmp_path)
    assert "the column newt is missing" in text and "the column toad is neither in" in text
    assert "the column id is not text" in problems_of(frame.assign(id=[1, 2]), tmp_path=tmp_path)
    assert "the column fold is float64" in problems_of(frame.assign(fold=[0.0, 1.0]), tmp_path=tmp_path)
    assert "there are no rows" in problems_of(frame[:0], tmp_path=tmp_path)
    clash = replace(header(), columns=["cat", "fold", "newt"])
    assert "cannot be called fold" in problems_of(frame.assign(fold=0), clash, tmp_path)


def test_an_existing_folder_is_not_touched(tmp_path):
    write_predictions(tmp_path / "p", rows(["a"], 0), header())
    before = (tmp_path / "p" / "predictions.parquet").read_bytes()
    with pytest.raises(Refusal, match="exists and is not overwritten"):
        write_predictions(tmp_path / "p", rows(["b"], 0, seed=5), header())
    assert (tmp_path / "p" / "predictions.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99.*update the code"),
        ({"split": "train"}, "split is 'train'"),
        ({"kind": "maps"}, "kind is 'maps', but multiclass has rows"),
        ({"task": "captions"}, "task is 'captions', not one of multiclass, multilabel, regression, segmentation"),
        ({"schema_version": 1}, 'reads 2: .* rename "kind" to "split" and "classes" to "columns", add "kind": "rows"'),
        ({"columns": ["cat", "cat", "newt"]}, "are duplicated: cat"),
        ({"columns": "cat"}, "not a list of names"),
        ({"members": [{"fold": 1, "snapshot": "last", "view": "identity"}]}, "predictions.json lists the members"),
        ({"columns": ["cat", "dog", "emu"]}, "the column emu is missing"),
        ({"folds_hash": 5}, "folds_hash is neither"),
    ],
)
def test_a_sidecar_that_does_not_fit(tmp_path, change, message):
    write_predictions(tmp_path / "p", rows(["a"], 0), header())
    path = tmp_path / "p" / "predictions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PredictionsError, match=message):
        read_predictions(tmp_path / "p")


def test_what_is_not_a_prediction_is_refused(tmp_path):
    with pytest.raises(PredictionsError, match="not a prediction folder"):
        read_header(tmp_path)
    (tmp_path / "predictions.json").write_text("{")
    with pytest.raises(PredictionsError, match="not valid JSON"):
        read_header(tmp_path)
    (tmp_path / "predictions.json").write_text("{}")
    with pytest.raises(PredictionsError, match="no schema_version"):
        read_header(tmp_path)
    (tmp_path / "predictions.json").write_text(json.dumps({**asdict(header()), "members": []}))
    (tmp_path / "predictions.parquet").write_bytes(b"not a parquet file")
    with pytest.raises(PredictionsError, match="cannot be read"):
        read_predictions(tmp_path)


def test_averages():
    frame = pd.concat([rows(["b", "a", "c"], 0), rows(["b", "a", "c"], 1, seed=1)])
    average = average_members(frame, CLASSES)
    assert average["id"].tolist() == ["b", "a", "c"]
    by_hand = (rows(["b", "a", "c"], 0)[CLASSES].to_numpy() + rows(["b", "a", "c"], 1, seed=1)[CLASSES].to_numpy()) / 2
    np.testing.assert_allclose(average[CLASSES], by_hand, rtol=1e-6)


def test_class_shares():
    frame = rows(["a", "b", "c", "d"], 0)
    frame[CLASSES] = [[0.8, 0.1, 0.1], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9], [0.5, 0.5, 0.0]]
    assert class_shares(frame, header()).to_dict() == {"cat": 0.75, "dog": 0.0, "newt": 0.25}
    assert class_shares(frame, header("multilabel")).to_dict() == {"cat": 0.75, "dog": 0.25, "newt": 0.25}


def test_merging_shards_needs_each_id_once():
    ids = [f"i{n}" for n in range(7)]
    whole = rows(ids, [0, 1, 0, 1, 2, 2, 0])
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = merge([whole.iloc[rank::3] for rank in order], ids)
        pd.testing.assert_frame_equal(merged, whole)
    with pytest.raises(PredictionsError) as caught:
        merge([whole.iloc[:4], whole.iloc[3:6], rows(["stranger"], 0)], ids)
    assert caught.value.problems == [
        "1 ids are missing: i6",
        "1 ids are duplicated: i3",
        "1 ids were not requested: stranger",
    ]


def test_an_id_in_two_folds_is_no_oof():
    with pytest.raises(PredictionsError, match="1 ids are duplicated: a"):
        merge([rows(["a", "b"], 0), rows(["a"], 1)], ["a", "b"])


def make_maps(sizes, members=1):
    rng = np.random.default_rng(0)
    return [[rng.dirichlet(np.ones(3), size).transpose(2, 0, 1) for size in sizes] for _ in range(members)]


def write_maps(folder, maps, ids, split="test"):
    with PredictionWriter(folder, header("segmentation", split)) as writer:
        for place, id in enumerate(ids):
            for fold, member in enumerate(maps):
                writer.add(id, fold, "last", "mean", member[place])


def test_maps_of_many_sizes_round_trip_within_half_a_step(tmp_path):
    sizes = [(5, 7), (1, 1), (12, 3)]
    maps = make_maps(sizes, members=2)
    write_maps(tmp_path / "p", maps, ["a", "b", "c"])
    back = read_predictions(tmp_path / "p")
    found = list(iter_maps(back))
    assert [(row.id, row.fold) for row in found] == [(id, fold) for id in "abc" for fold in (0, 1)]
    for row in found:
        np.testing.assert_allclose(row.probability, maps[row.fold]["abc".index(row.id)], atol=0.5 / 255 + 1e-6)
    averaged = dict(iter_average_maps(back, ["c", "a"]))
    assert list(averaged) == ["c", "a"] and averaged["c"].shape == (3, 12, 3)
    np.testing.assert_allclose(averaged["c"], (maps[0][2] + maps[1][2]) / 2, atol=0.5 / 255 + 1e-6)
    with pytest.raises(PredictionsError, match="no prediction for id z"):
        list(iter_maps(back, ["z"]))


def test_an_error_while_maps_are_written_leaves_nothing(tmp_path):
    for bad in (np.full((3, 2, 2), np.nan), np.full((3, 2, 2), 2.0), np.zeros((2, 2, 2))):
        with (
            pytest.raises(PredictionsError, match="a:"),
            PredictionWriter(tmp_path / "p", header("segmentation")) as writer,
        ):
            writer.add("a", 0, "last", "mean", bad)
    writer = PredictionWriter(tmp_path / "p", header("segmentation"))
    with pytest.raises(PredictionsError, match="several rows for one member"), writer:
        writer.add("a", 0, "last", "mean", np.ones((3, 2, 2)))
        writer.add("a", 0, "last", "mean", np.ones((3, 2, 2)))
    assert list(tmp_path.iterdir()) == []


def test_maps_that_were_interrupted_are_taken_up_in_the_order_of_the_ids(tmp_path):
    """Also where a kill came while the maps got their names: what has lost its line in the index is written again."""
    request = {"members": 1}
    begun = PredictionWriter(tmp_path / "p", header("segmentation"), request, ["a", "b", "c"])
    with pytest.raises(KeyboardInterrupt), begun:
        shards = begun.new_shard(), begun.new_shard()
        for shard, id in ((shards[0], "c"), (shards[1], "b")):
            shard.add(id, 0, "last", "mean", np.ones((3, 2, 2)))
        raise KeyboardInterrupt
    maps = begun.temporary / "maps"
    next(maps.glob("shard-002-*")).rename(maps / "000001.npz")  # b
    with PredictionWriter(tmp_path / "p", header("segmentation"), request, ["a", "b", "c"]) as writer:
        assert writer.done == {"c"}
        for id in "ab":
            writer.add(id, 0, "last", "mean", np.zeros((3, 2, 2)))
    found = [(row.id, row.probability.max()) for row in iter_maps(read_predictions(tmp_path / "p"))]
    assert found == [("a", 0), ("b", 0), ("c", 1)]
    assert sorted(path.name for path in (tmp_path / "p").rglob("*.*")) == [
        *(f"{number:06d}.npz" for number in range(3)),
        "index.parquet",
        "predictions.json",
    ]


def test_a_bad_header_is_refused_before_the_first_map(tmp_path):
    bad = replace(header("segmentation"), columns=["cat", "fold"])
    with pytest.raises(PredictionsError, match="cannot be called fold"), PredictionWriter(tmp_path / "p", bad):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == []


def test_maps_that_were_tampered_with(tmp_path):
    write_maps(tmp_path / "p", make_maps([(4, 4), (4, 4)]), ["a", "b"])
    maps = tmp_path / "p" / "maps"
    np.savez_compressed(maps / "000000.npz", probability=np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(PredictionsError, match=r"id a.*\(3, 4, 5\), not uint8 \(3, 4, 4\)"):
        list(iter_maps(read_predictions(tmp_path / "p")))
    np.savez(maps / "000000.npz", probability=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PredictionsError, match="cannot be read"):
        list(iter_maps(read_predictions(tmp_path / "p")))
    (maps / "000001.npz").unlink()
    with pytest.raises(PredictionsError, match=r"1 map files are missing: maps/000001\.npz"):
        read_predictions(tmp_path / "p")
    index = pd.read_parquet(tmp_path / "p" / "index.parquet")
    index.assign(file="../../secret.npz").to_parquet(tmp_path / "p" / "index.parquet")
    with pytest.raises(PredictionsError, match="not in maps/"):
        read_predictions(tmp_path / "p")


def test_merging_folders_of_ranks_and_folds(tmp_path):
    ids = ["a", "b", "c", "d"]
    whole = rows(ids, [0, 1, 0, 1])
    for fold in (0, 1):
        write_predictions(tmp_path / f"fold{fold}", whole[whole["fold"] == fold], header())
    merge_folders([tmp_path / "fold1", tmp_path / "fold0"], tmp_path / "oof", ids)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "oof").frame, whole, check_dtype=False)
    assert len(read_header(tmp_path / "oof").members) == 2

    maps = make_maps([(2, 3), (4, 1), (3, 3), (2, 2)])[0]
    for rank in (0, 1):
        with PredictionWriter(tmp_path / f"rank{rank}", header("segmentation")) as writer:
            for place in range(rank, 4, 2):
                writer.add(ids[place], place % 2, "last", "mean", maps[place])
    merge_folders([tmp_path / "rank0", tmp_path / "rank1"], tmp_path / "maps", ids)
    merged = list(iter_maps(read_predictions(tmp_path / "maps")))
    assert [row.id for row in merged] == ids
    for row, expected in zip(merged, maps, strict=True):
        np.testing.assert_allclose(row.probability, expected, atol=0.5 / 255 + 1e-6)

    write_predictions(tmp_path / "other", rows(["e"], 2), replace(header(), folds_hash="other"))
    with pytest.raises(PredictionsError, match="its folds_hash differs from"):
        merge_folders([tmp_path / "fold0", tmp_path / "other"], tmp_path / "no", ids)
    assert not (tmp_path / "no").exists()


def test_predictions_need_no_torch():
    """A team mate with another pipeline uses them too, and they start in no time."""
    script = (
        "import sys\n"
        "def check(*heavy):\n"
        "    found = {'torch', 'sklearn', 'matplotlib', *heavy} & {*sys.modules}\n"
        "    assert not found, found\n"
        "import foldwise.predictions.store, foldwise.predictions.metrics, foldwise.predictions.writers\n"
        "check('rich', 'hydra')\n"
        "import foldwise.predictions.pseudo.labelling, foldwise.predictions.decisions.submit\n"
        "check('rich')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("error")
def test_thousands_of_classes_without_a_warning(tmp_path):
    names = [f"class{number}" for number in range(2500)]
    values = np.random.default_rng(0).dirichlet(np.ones(2500), 5).astype(np.float32)
    writer = PredictionWriter(tmp_path / "p", replace(header(), columns=names))
    with writer as shard:
        for row, value in enumerate(values):
            shard.add(f"i{row}", 0, "last", "identity", value)
    frame = read_predictions(tmp_path / "p").frame
    assert np.array_equal(frame[names].to_numpy(), values)
    assert np.array_equal(average_members(frame.assign(part=0), names)[names].to_numpy(), values)


def test_forty_thousand_rows_are_read_and_averaged(tmp_path):
    ids = [f"image-{n:06d}" for n in range(40_000)]
    frame = pd.concat([rows(ids, fold, seed=fold) for fold in range(5)])
    write_predictions(tmp_path / "p", frame, header(split="test"))
    back = read_predictions(tmp_path / "p")
    average = average_members(back.frame, CLASSES)
    assert average["id"].tolist() == ids

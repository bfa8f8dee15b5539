"""From predictions to submissions: the files, what is refused, and the account that is kept of them."""

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rows import SAMPLES
from submit import parse as submit_options

from foldwise.config import write_config
from foldwise.data.folds import folds_hash
from foldwise.data.run_lengths import encode_runs
from foldwise.data.table import Table
from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats import FORMATS, ColumnPerClass, Labels, RunLengths
from foldwise.predictions.decisions.ledger import (
    COLUMNS,
    describe_choice,
    final_two,
    read_ledger,
    record,
    record_score,
)
from foldwise.predictions.decisions.material import choose_layout
from foldwise.predictions.decisions.options import format_options
from foldwise.predictions.decisions.sample import fit_layout, locate, read_sample
from foldwise.predictions.decisions.submission import check_rows, difference, write_masks, write_table
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ground_truth import GroundTruth
from foldwise.predictions.metrics import METRICS
from foldwise.predictions.schema import Header, PredictionsError
from foldwise.predictions.store import write_predictions
from foldwise.predictions.writers import PredictionWriter
from foldwise.reporting.console import print_submission

CLASSES = ["cat", "dog", "newt"]


# formats


@pytest.mark.parametrize("by_row", [False, True])
def test_runs_as_by_a_walk_over_the_pixels(by_row):
    rng = np.random.default_rng(0)
    for density in (0, 0.3, 0.9, 1):
        mask = rng.random((5, 7)) < density
        code = list(map(int, encode_runs(mask, by_row).split()))
        pixels = [n for start, length in zip(code[::2], code[1::2], strict=True) for n in range(start, start + length)]
        walk = (
            [r * 7 + c + 1 for r in range(5) for c in range(7) if mask[r, c]]
            if by_row
            else [c * 5 + r + 1 for c in range(7) for r in range(5) if mask[r, c]]
        )
        assert pixels == walk
        assert all(end < start for end, start in zip(np.add(code[::2], code[1::2]), code[2::2], strict=False))


def test_runs_by_hand():
    mask = np.array([[0, 1, 0], [0, 1, 1]], bool)
    assert encode_runs(mask) == "3 2 6 1"
    assert encode_runs(mask, by_row=True) == "2 1 5 2"


def test_labels_and_columns():
    answers = np.array([[1, 0, 1], [0, 0, 0]], bool)
    text = Labels(classes=CLASSES, id_column="image", value_column="tags", empty="none").table(["a", "b"], answers)
    assert text.to_dict("list") == {"image": ["a", "b"], "tags": ["cat newt", "none"]}
    assert Labels(classes=CLASSES, separator="|").table(["a"], answers[:1])["label"].tolist() == ["cat|newt"]
    numbers = ColumnPerClass(classes=CLASSES).table(["a", "b"], answers)
    assert numbers.to_csv(index=False) == "id,cat,dog,newt\na,1,0,1\nb,0,0,0\n"
    one = ColumnPerClass(classes=CLASSES, positive="dog", value_column="target").table(
        ["a"], np.array([[0.1, 0.7, 0.2]])
    )
    assert one.to_dict("list") == {"id": ["a"], "target": [0.7]}


def test_row_ids_of_masks():
    mask = np.array([[0, 1], [2, 1]])
    layout = RunLengths(classes=["sky", *CLASSES[:2]], empty="-1")
    assert layout.row_ids(["007"]) == ["007_cat", "007_dog"] and layout.encode(mask) == b"3 2\n2 1"
    assert layout.encode(mask * 0) == b"-1\n-1"
    assert RunLengths(classes=["sky", "cat"]).row_ids(["007"]) == ["007"]
    given = RunLengths(classes=["sky", *CLASSES[:2]], painted=["dog", "sky"], row_id="{index}/{id}")
    assert given.row_ids(["1", "2"]) == ["2/1", "0/1", "2/2", "0/2"]
    with pytest.raises(Refusal, match="placeholders are {id}, {class} and {index}"):
        RunLengths(classes=CLASSES, row_id="{name}")
    with pytest.raises(Refusal, match="no class cow"):
        RunLengths(classes=CLASSES, painted=["cow"])


def test_how_much_answers_differ():
    assert FORMATS["labels"].differ("cat dog", "dog newt") == pytest.approx(2 / 3)
    assert FORMATS["labels"].differ("", "dog") == 1 and FORMATS["labels"].differ("", "") == 0
    assert FORMATS["columns"].differ("0.25", "1") == 0.75
    one, two = np.random.default_rng(0).random((2, 9, 6)) < 0.4
    expected = 1 - (one & two).sum() / (one | two).sum()
    assert FORMATS["rle"].differ(encode_runs(one), encode_runs(two)) == pytest.approx(expected)
    assert FORMATS["rle"].differ("-1", "3 2") == 1


# files


def test_a_table_takes_the_order_of_the_sample(tmp_path):
    (tmp_path / "sample.csv").write_text("id,dog,cat\n010,0,0\n2,0,0\n")
    frame = pd.DataFrame({"id": ["2", "010"], "cat": [0.5, 1 / 3], "dog": [0, 1]})
    write_table(tmp_path / "s.csv", frame, read_sample(tmp_path / "sample.csv"))
    assert (tmp_path / "s.csv").read_text() == "id,dog,cat\n010,1,0.33333333\n2,0,0.5\n"
    with pytest.raises(Refusal, match="not overwritten"):
        write_table(tmp_path / "s.csv", frame, None)


def test_everything_wrong_is_listed_at_once_and_nothing_is_written(tmp_path):
    (tmp_path / "sample.csv").write_text("id,dog,cow\n1,0,0\n2,0,0\n2,0,0\n")
    frame = pd.DataFrame({"id": ["2", "3", "3"], "cat": 0.5, "dog": [0.1, np.nan, 0]})
    sample = read_sample(tmp_path / "sample.csv")
    with pytest.raises(PredictionsError) as caught:
        write_table(tmp_path / "s.csv", frame, sample)
    assert caught.value.problems == [
        "1 ids would be written more than once: 3",
        "1 of its ids have no prediction: 1",
    ]
    layout = ColumnPerClass(classes=["cat", "dog"])
    with pytest.raises(PredictionsError) as caught:
        check_rows(layout, frame["id"].tolist(), sample)
    assert caught.value.problems == [
        "1 ids would be written more than once: 3",
        "1 ids come more than once in the sample submission: 2",
        "1 of its 2 ids have no prediction: 1",
    ]
    with pytest.raises(PredictionsError, match="in this order with --names cat=dog dog=cow"):
        fit_layout(layout, sample)
    frame["id"] = ["1", "2", "3"]
    with pytest.raises(PredictionsError, match="1 rows have NaN or infinite values: 2"):
        write_table(tmp_path / "s.csv", frame, None)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.csv"]


@pytest.mark.parametrize("text", ["", "id\n1\n", "id,label\n"])
def test_samples_that_are_none(tmp_path, text):
    (tmp_path / "sample.csv").write_text(text)
    with pytest.raises(Refusal, match="sample.csv"):
        read_sample(tmp_path / "sample.csv")


# sample submissions of other kinds: 4 images, 3 classes

IMAGES = ["0001", "0002", "003", "12"]
SAMPLES_OF = {
    "plain": ("id,label", "{id},0", "labels", {}),
    "a file name": ("image,labels", "{id}.jpg,healthy", "labels", {"row_id": "{id}.jpg"}),
    "columns of classes": ("image_id,cat,dog,newt", "{id},0,0,0", "columns", {}),
    "another order": ("newt,id,dog,cat", "0.3,{id},0.3,0.3", "columns", {}),
    "a common start": ("id,prob_Cat,prob_Dog,prob_Newt", "{id},0.3,0.3,0.3", "columns",
                       {"names": ["prob_Cat", "prob_Dog", "prob_Newt"]}),
    "a row a class": ("ID,Label", "{id}_{class},0.5", "columns", {"row_id": "{id}_{class}"}),
    "a file name and a class": ("Image_Label,EncodedPixels", "{id}.jpg_{class},1 1", "rle",
                                {"row_id": "{id}.jpg_{class}"}),
    "a file name and a number": ("ImageId_ClassId,EncodedPixels", "{id}.jpg_{index},1 1", "rle",
                                 {"row_id": "{id}.jpg_{index}"}),
    "a column of numbers": ("ImageId,EncodedPixels,ClassId", "{id}.jpg,1 1,{index}", "rle",
                            {"row_id": "{id}.jpg_{index}"}),
    "a column of names": ("id,class,predicted", "{id},{class},0.5", "columns", {"row_id": "{id}_{class}"}),
    "an index": (",id,label", "{row},{id},0", "labels", {}),
    "row numbers": ("row,id,label", "{row},{id},0", "labels", {}),
    "semicolons": ("id;cat;dog;newt", "{id};0;0;0", "columns", {}),
    "tabs": ("id\tlabel", "{id}\t0", "labels", {}),
    "masks": ("id,rle_mask", "{id},1 1", "rle", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAMPLES_OF)
@pytest.mark.parametrize("order", [1, -1])
def test_sample_submissions_of_every_shape(tmp_path, kind, order):
    header, line, name, expected = SAMPLES_OF[kind]
    path = tmp_path / "sample.csv"
    classes = ["sky", *CLASSES] if name == "rle" else CLASSES
    painted = [2] if kind == "masks" else range(name == "rle", len(classes))
    rows = [
        line.format(**{"id": id, "class": classes[index], "index": index, "row": 0})
        for id in IMAGES[::order]
        for index in painted
    ]
    rows = [row if row[:2] != "0," else f"{number},{row[2:]}" for number, row in enumerate(dict.fromkeys(rows))]
    path.write_text("\n".join([header, *rows]) + "\n")
    sample = locate(read_sample(path), [*IMAGES, "extra"], classes)
    options = {"painted": ["dog"]} if kind == "masks" else {}
    layout = fit_layout(FORMATS[name](classes=classes, **options), sample)
    for option in ("row_id", "names"):
        assert (getattr(layout, option) or None) == expected.get(option)
    notes = check_rows(layout, [*IMAGES, "extra"], sample)
    assert len(notes) == 1 and "not in" in notes[0] and "extra" in notes[0]
    out = tmp_path / "s.csv"
    if name == "rle":
        codes = [(id, layout.encode(np.zeros((2, 2), int))) for id in [*IMAGES, "extra"]]
        write_masks(out, layout, codes, sample)
    else:
        answers = np.eye(3)[[0, 1, 2, 0, 1]] * 0.75
        write_table(out, layout.table([*IMAGES, "extra"], answers if name == "columns" else answers > 0), sample)
        if layout.by_class:
            order_of = [(IMAGES.index(id), index) for id in IMAGES[::order] for index in range(3)]
            assert pd.read_csv(out)[layout.value_column].tolist() == [answers[place] for place in order_of]
        else:  # the values are those of the ids
            written = pd.read_csv(out, sep=sample.separator, dtype=str).set_index(sample.id_column)
            for id, chosen in zip(IMAGES, [0, 1, 2, 0], strict=True):
                row = written.loc[id + (layout.row_id or "{id}").removeprefix("{id}")]
                one = row[layout.written].astype(float).to_numpy() if name == "columns" else row[layout.value_column]
                assert one == CLASSES[chosen] if name == "labels" else (one == answers[chosen]).all()
    kept, new = path.read_text().splitlines(), out.read_text().splitlines()
    assert new[0] == kept[0] and len(new) == len(kept)
    for column in sample.copied if "a column of" in kind else [sample.id_column]:
        where = kept[0].split(sample.separator).index(column)
        each = [[row.split(sample.separator)[where] for row in rows] for rows in (new, kept)]
        assert each[0] == each[1]
    if kind in ("an index", "row numbers"):
        assert [row.split(",")[0] for row in new[1:]] == list("0123")


@pytest.mark.parametrize(
    ("task", "classes", "metric", "column", "positive"),
    [
        ("multiclass", ["ant", "bee"], METRICS["log_loss"](), "target", "bee"),
        ("multiclass", ["ant", "bee"], METRICS["average_precision"](positive="ant"), "target", "ant"),
        ("multiclass", ["ant", "bee", "cow"], METRICS["average_precision"](positive="bee"), "target", "bee"),
        ("multiclass", ["ant", "bee", "cow"], METRICS["log_loss"](), "Is_Cow", None),
        ("multiclass", ["ant", "bee", "cow"], METRICS["log_loss"](), "Cow", "cow"),
        ("multilabel", ["ant", "bee"], METRICS["roc_auc"](), "target", None),
        ("multilabel", ["bee"], METRICS["roc_auc"](), "target", "bee"),
    ],
)
def test_a_single_column_is_of_the_positive_class(tmp_path, task, classes, metric, column, positive):
    (tmp_path / "sample.csv").write_text(f"id,{column}\n1,0.5\n")
    frame = pd.DataFrame({"id": ["1"], "image": ["x.png"]})
    table = Table(frame, task, tuple(classes), tmp_path, None, tmp_path / "train.csv")
    truth = GroundTruth(table, np.zeros(1), "", metric.for_task(task, classes), {"data": {"columns": {}}}, None)
    sample = read_sample(tmp_path / "sample.csv")
    if positive is None:
        with pytest.raises(Refusal, match="name its class with --positive"):
            choose_layout(truth, sample)
        return
    layout, notes = choose_layout(truth, sample)
    assert (layout.positive, layout.columns) == (positive, ["id", column])
    assert any(f"Column {column} has the probabilities of {positive}" in note for note in notes) == (len(classes) > 1)


def test_other_names_of_classes_are_written(tmp_path):
    (tmp_path / "sample.csv").write_text("id,label\n1,0\n2,0\n")
    table = Table(pd.DataFrame({"id": ["1"]}), "multiclass", ("ant", "bee"), tmp_path, None, tmp_path / "train.csv")
    metric = METRICS["accuracy"]().for_task("multiclass", table.classes)
    truth = GroundTruth(table, np.zeros(1), "", metric, {"data": {"columns": {}}}, None)
    sample = locate(read_sample(tmp_path / "sample.csv"), ["1", "2"], table.classes)
    layout, notes = choose_layout(truth, sample)
    assert "--names ant=0 bee=1" in notes[-1]
    options = format_options(submit_options(["make", "x", "--names", "ant=0", "bee=1"]))
    layout, notes = choose_layout(truth, sample, options=options)
    write_table(tmp_path / "s.csv", layout.table(["1", "2"], np.eye(2, dtype=bool)), sample)
    assert (tmp_path / "s.csv").read_text() == "id,label\n1,0\n2,1\n" and not notes
    with pytest.raises(Refusal, match="there is no class cow"):
        choose_layout(truth, sample, options={"names": {"cow": "0"}})


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (["1", "2", "3", "12"], "leading zeros"),
        (["0001.0", "0002.0", "003.0", "12.1"], "1 of its 4 ids have no prediction: 12.1"),
        (["test/0001", "test/0002", "test/003", "test/12"], "they differ only by folders"),
    ],
)
def test_the_cause_of_other_ids_is_named(tmp_path, rows, cause):
    (tmp_path / "sample.csv").write_text("id,label\n" + "".join(f"{row},x\n" for row in rows))
    sample = locate(read_sample(tmp_path / "sample.csv"), IMAGES, CLASSES)
    with pytest.raises(PredictionsError, match=cause):
        check_rows(fit_layout(Labels(classes=CLASSES), sample), IMAGES, sample)


@pytest.mark.parametrize(
    "id", ["../../x", "/x", "a//b", "a/../b", "x" * 300, "é" * 130, "a\\b", "a\0b", "a./b", "C:x", "x /y"]
)
def test_ids_that_are_no_names_of_files_are_not_in_a_zip(id):
    layout = FORMATS["masks"](classes=CLASSES)
    assert layout.id_problems(["a", "a/b", "a.png", id])
    assert not layout.id_problems(["a", "a/b", "a.png", "x" * 250, "a b", "é.x"])
    assert layout.file_name("a.PNG") == "a.PNG" and layout.file_name("a/b") == "a/b.png"


# from a source to a submission


def make_source(tmp_path, task, metric, rows=120, tests=30, units=False, rank=False):
    """A source with three folds of predictions that are better than chance; its folder and the test truth."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    cv2.imwrite(str(root / "0.png"), np.zeros((8, 8), np.uint8))
    all_rows = rows + tests
    if task == "multilabel":
        target = (rng.random((all_rows, 3)) < [0.6, 0.3, 0.1]).astype(float)
    else:
        target = np.eye(3)[rng.integers(3, size=all_rows)]
    ids = [f"{row:04d}" for row in range(all_rows)]
    separator = [" ".join(np.array(CLASSES)[row == 1]) for row in target]
    masks = [f"{number.argmax()}.png" for number in target]
    for index in range(3):
        mask = np.zeros((8, 8), np.uint8)
        mask[:3, : index + 2] = index
        cv2.imwrite(str(root / f"{index}.png"), mask)
    frame = pd.DataFrame({"id": ids, "image": "0.png", "label": separator, "labels": separator, "mask": masks})
    frame["fold"] = np.arange(all_rows) % 3
    if units:  # two rows a thing, of one label and fold
        frame["thing"] = [f"thing{row // 6 * 3 + row % 3}" for row in range(all_rows)]
        first = np.arange(all_rows) // 6 * 6 + np.arange(all_rows) % 3
        target = target[first]
        frame["label"] = np.array(separator)[first]
    frame[:rows].to_csv(root / "train.csv", index=False)
    frame[rows:].drop(columns=["label", "labels", "mask", "fold"]).to_csv(root / "test.csv", index=False)
    columns = {"fold": "fold", "unit": "thing" if units else None}
    data = {"name": "competition", "root": str(root), "table": f"{root}/train.csv", "test_table": f"{root}/test.csv"}
    data |= {"prepared": f"{root}/prepared", "columns": columns, "classes": CLASSES}
    metric = {"_target_": f"foldwise.predictions.metrics.{metric}"}
    config = {"task": task, "data": data, "samples": SAMPLES, "metric": metric}
    source = tmp_path / "runs" / "test-1234"
    source.mkdir(parents=True)
    write_config(source, config)

    def header(split):
        tta = {"views": ["identity"], "mean": "rank" if rank else "arithmetic"}
        known = folds_hash(dict(zip(ids[:rows], frame["fold"][:rows].tolist(), strict=True)))
        return Header(split=split, task=task, columns=CLASSES, run="test-1234", folds_hash=known, tta=tta)

    members = (
        [(row, frame["fold"][row]) for row in range(rows)],
        [(r, k) for k in range(3) for r in range(rows, all_rows)],
    )
    for kind, folder, of in zip(("oof", "test"), ("oof", "predictions/test-none"), members, strict=True):
        if task == "segmentation":
            with PredictionWriter(source / folder, header(kind)) as writer:
                for row, fold in of:
                    mask = cv2.imread(str(root / masks[row]), cv2.IMREAD_UNCHANGED)
                    probability = 0.1 + 0.7 * np.eye(3)[mask].transpose(2, 0, 1)
                    probability[:, 6, 6] = [0, 1, 0] if row % 2 else [1, 0, 0]
                    writer.add(ids[row], fold, "last", "none", probability)
            continue
        logits = 2.5 * target[[r for r, _ in of]] - 1.5 + rng.normal(size=(len(of), 3))
        values = 1 / (1 + np.exp(-3 * logits))
        if task == "multiclass":
            values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        table = pd.DataFrame({"id": [ids[r] for r, _ in of], "fold": [int(k) for _, k in of], "snapshot": "last"})
        table["view"] = "none"
        table[CLASSES] = values
        write_predictions(source / folder, table, header(kind))
    return source, pd.DataFrame(target[rows:], ids[rows:], CLASSES)


def submit(source, tmp_path, **values):
    """(the file, what was printed) of a submission in `tmp_path`."""
    console = Console(file=io.StringIO(), width=100)
    values = {"out": tmp_path / "s.csv", "ledger": tmp_path / "submissions.csv", **values}
    made = make_submission(source, **values)
    print_submission(console, made)
    return made.path, console.file.getvalue()


def test_labels_of_an_f_beta(tmp_path):
    source, truth = make_source(tmp_path, "multilabel", "FBeta")
    sample = tmp_path / "sample.csv"
    pd.DataFrame({"image_name": truth.index[::-1], "tags": "x"}).to_csv(sample, index=False)
    path, text = submit(source, tmp_path, sample=sample)
    written = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(written) == ["image_name", "tags"] and written["image_name"].tolist() == truth.index[::-1].tolist()
    answers = np.array([[name in tags.split() for name in CLASSES] for tags in written["tags"]])
    assert (answers == truth.loc[truth.index[::-1]].to_numpy()).mean() > 0.9
    for word in (
        "fixed-threshold",
        "platt+expected-f",
        "fold 2",
        "test, one model",
        "test, mean of 3",
        "submit.py score",
    ):
        assert word in text
    entry = read_ledger(tmp_path / "submissions.csv").iloc[0]
    assert entry["source"] == source.as_posix() and entry["format"] == "labels" and entry["metric"] == "FBeta"
    assert len(entry["fold_scores"].split()) == 3 and 0.5 < float(entry["oof_score"]) <= 1


def test_the_test_is_calibrated_by_fold_averaged_and_decided(tmp_path):
    source, _ = make_source(tmp_path, "multilabel", "FBeta")
    path, _ = submit(source, tmp_path, decision="platt+one-threshold", kind="columns")
    from foldwise.predictions.decisions.calibration import Platt
    from foldwise.predictions.decisions.rules import OneThreshold
    from foldwise.predictions.metrics import FBeta
    from foldwise.predictions.store import read_predictions

    oof, test = (read_predictions(source / name).frame for name in ("oof", "predictions/test-none"))
    table = pd.read_csv(tmp_path / "data" / "train.csv", dtype=str, keep_default_na=False).set_index("id")
    target = np.array([[name in row.split() for name in CLASSES] for row in table.loc[oof["id"], "labels"]], float)
    probability, folds = oof[CLASSES].to_numpy(np.float64), oof["fold"].to_numpy()
    calibrated, average = probability.copy(), 0
    for fold in range(3):
        platt = Platt().fit(target[folds != fold], probability[folds != fold])
        calibrated[folds == fold] = platt(probability[folds == fold])
        average = average + platt(test[test["fold"] == fold][CLASSES].to_numpy(np.float64)) / 3
    rule = OneThreshold().fit(FBeta().for_task("multilabel", CLASSES), target, calibrated)
    written = pd.read_csv(path, dtype={"id": str}).set_index("id")
    assert (written[CLASSES].to_numpy() == rule.decide(average)).all()


def test_probabilities_of_a_log_loss(tmp_path):
    source, truth = make_source(tmp_path, "multiclass", "LogLoss")
    path, text = submit(source, tmp_path)
    written = pd.read_csv(path, dtype={"id": str}).set_index("id")
    assert list(written) == CLASSES and np.allclose(written.sum(axis=1), 1, atol=1e-6)
    assert "temperature+probabilities" in text and "argmax" not in text and "Columns and ids are unchecked" in text
    sample = tmp_path / "one.csv"
    pd.DataFrame({"id": truth.index, "target": 0}).to_csv(sample, index=False)
    with pytest.raises(Refusal, match="--positive"):
        submit(source, tmp_path, sample=sample, out=tmp_path / "t.csv")
    path, _ = submit(source, tmp_path, sample=sample, out=tmp_path / "t.csv", options={"positive": "dog"})
    assert np.allclose(pd.read_csv(path)["target"], written["dog"])


def test_images_of_a_unit_are_answered_together(tmp_path):
    source, truth = make_source(tmp_path, "multiclass", "Accuracy", units=True)
    path, _ = submit(source, tmp_path)
    written = pd.read_csv(path)
    assert list(written) == ["id", "label"] and len(written) == len(truth) / 2
    assert written["id"].is_unique and written["id"].str.startswith("thing").all()


def test_masks_as_run_lengths_and_as_images(tmp_path):
    source, truth = make_source(tmp_path, "segmentation", "MeanIoU", rows=24, tests=6)
    path, text = submit(source, tmp_path, options={"painted": CLASSES})
    written = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("id")["mask"]
    assert len(written) == 18 and "minimum-area" in text
    folder, _ = submit(source, tmp_path, kind="masks", out=tmp_path / "masks.zip", decision="minimum-area")
    with zipfile.ZipFile(folder) as archive:
        assert archive.namelist() == [f"{id}.png" for id in truth.index]
        for id in truth.index:
            data = np.frombuffer(archive.read(f"{id}.png"), np.uint8)
            mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            expected = cv2.imread(str(tmp_path / f"data/{truth.loc[id].to_numpy().argmax()}.png"), -1)
            assert mask[6, 6] in (0, 1)
            mask[6, 6] = expected[6, 6]
            assert (mask == expected).all()
            assert written[f"{id}_newt"] == encode_runs(mask == 2)
    again, _ = submit(source, tmp_path, kind="masks", out=tmp_path / "again.zip", decision="argmax")
    assert difference(folder, folder, "masks") == 0 and difference(folder, again, "masks") >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decision": "best"}, "no --decision best"),
        ({"exclusive": [["cat", "cow"], ["cat"]]}, "no class cow"),
        ({"kind": "rle"}, "is for segmentation"),
        ({"kind": "labels", "options": {"positive": "cat"}}, "labels has no positive"),
        ({"kind": "columns", "options": {"positive": "cow"}}, "no class cow"),
        ({"test": "test-d4"}, "test-d4"),
        ({"overrides": ["seed=1"]}, "--data"),
        ({"sample": Path("missing.csv")}, "missing.csv"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, values, message):
    source, _ = make_source(tmp_path, "multilabel", "FBeta", rows=30)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refusal, match=message):
        submit(source, tmp_path, **values)
    assert sorted(tmp_path.rglob("*")) == before


def test_ranks_are_no_probabilities(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    source, _ = make_source(tmp_path / "a", "multilabel", "FBeta", rank=True)
    with pytest.raises(Refusal, match="mean ranks"):
        submit(source, tmp_path)
    source, _ = make_source(tmp_path / "b", "multilabel", "RocAuc", rank=True)
    _, text = submit(source, tmp_path)
    assert "platt" not in text


# the ledger


def note(tmp_path, name, labels, scores, leaderboard="", **values):
    path = tmp_path / f"{name}.csv"
    pd.DataFrame({"id": range(len(labels)), "label": list(labels)}).to_csv(path, index=False)
    entry = {"file": path.as_posix(), "metric": "Accuracy", "folds": "0123", "format": "labels", "decision": "argmax"}
    entry |= {"greater_is_better": True, "oof_score": np.mean(scores), "fold_scores": " ".join(map(str, scores))}
    record(tmp_path / "submissions.csv", **{**entry, "leaderboard": leaderboard, **values})
    return path


def test_the_final_two_are_the_best_and_the_most_different_that_is_not_clearly_worse(tmp_path):
    note(tmp_path, "old", "bbbb", [0.99, 0.99, 0.99], folds="4567")
    best = note(tmp_path, "best", "aaaa", [0.90, 0.92, 0.94])
    note(tmp_path, "same", "aaaa", [0.90, 0.92, 0.93])
    note(tmp_path, "near", "aaab", [0.91, 0.90, 0.94])
    bold = note(tmp_path, "bold", "aabb", [0.88, 0.94, 0.935])
    note(tmp_path, "worse", "bbbb", [0.87, 0.89, 0.91])
    ledger = tmp_path / "submissions.csv"
    final = final_two(read_ledger(ledger).iloc[1:])
    assert final.best["file"] == best.as_posix() and final.different["file"] == bold.as_posix()
    assert "50.0%" in final.note
    text = "\n".join(describe_choice(ledger))
    assert "1 others are left out: they have another metric" in text and "bold.csv" in text and "/old.csv" not in text


def test_the_best_loss_is_the_lowest_and_may_be_alone(tmp_path):
    note(tmp_path, "high", "aaaa", [0.5, 0.6], greater_is_better=False)
    low = note(tmp_path, "low", "abab", [0.4, 0.5], greater_is_better=False)
    final = final_two(read_ledger(tmp_path / "submissions.csv"))
    assert final.best["file"] == low.as_posix() and final.different is None


def test_leaderboard_scores_are_recorded_once_and_drawn(tmp_path):
    ledger = tmp_path / "submissions.csv"
    for index, name in enumerate(["one", "two", "three"]):
        note(tmp_path, name, "ab", [0.9 + index / 100, 0.91])
    record_score(ledger, Path("one.csv"), 0.5)
    record_score(ledger, tmp_path / "two.csv", 0.7)
    text = "\n".join(record_score(ledger, tmp_path / "three.csv", 0.6))
    assert "rank correlation of both scores: 0.50 over 3" in text
    assert read_ledger(ledger)["leaderboard"].tolist() == ["0.5", "0.7", "0.6"]
    assert cv2.imread(str(tmp_path / "submissions.png")).shape[2] == 3
    kept = ledger.read_bytes()
    for file, value, message in (
        ("four.csv", 0.5, "has no submission four.csv"),
        ("one.csv", 0.4, "has the score 0.5"),
        ("one.csv", float("nan"), "not a finite number"),
    ):
        with pytest.raises(Refusal, match=message):
            record_score(ledger, Path(file), value)
    assert ledger.read_bytes() == kept


def test_ledgers_that_are_none(tmp_path):
    ledger = tmp_path / "submissions.csv"
    with pytest.raises(Refusal, match="no submissions yet"):
        describe_choice(ledger)
    ledger.write_text("id,label\n1,2\n")
    with pytest.raises(Refusal, match="lacks the columns file, made"):
        read_ledger(ledger)
    pd.DataFrame([dict.fromkeys(COLUMNS, "x")]).to_csv(ledger, index=False)
    with pytest.raises(Refusal, match="'x', not a finite number"):
        read_ledger(ledger)


# the command


def test_the_command_from_make_to_choose(tmp_path, monkeypatch, command):
    source, _ = make_source(tmp_path, "multilabel", "FBeta", rows=45)
    monkeypatch.chdir(tmp_path)
    assert command("submit.py", "make", source, "--exclusive", "cat", "dog")[0] == 0
    assert Path("submissions/test-1234-test-none.csv").is_file()
    code, _, error = command("submit.py", "make", source)
    assert code == 2 and error.startswith("error: ") and "not overwritten" in error
    Path("submissions/test-1234-test-none.csv").unlink()
    assert "which no longer exists" in command("submit.py", "make", source)[2]
    assert command("submit.py", "score", "test-1234-test-none.csv", 0.75)[0] == 0
    assert "leaderboard 0.7500" in command("submit.py", "choose")[1]

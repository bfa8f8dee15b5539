"""Boxes: the metric against pycocotools, fusion against loops, files of detectors, and the way to a submission."""

import contextlib
import io
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest

from foldwise.checks import task_problems
from foldwise.data.folds import write_folds
from foldwise.data.holdout import FULL
from foldwise.errors import Refusal
from foldwise.predictions.box_files import Part, write_found, write_truth
from foldwise.predictions.boxes import Boxes, Fusion, boxes_frame, difference, found_boxes, overlaps
from foldwise.predictions.decisions.submit import make_submission
from foldwise.predictions.ensembles.ensembling import ensemble
from foldwise.predictions.evaluation.evaluate import evaluate
from foldwise.predictions.metrics import DetectionMap, DetectionMap50, fold_score
from foldwise.predictions.schema import PredictionsError
from foldwise.predictions.store import read_predictions, write_predictions
from foldwise.predictions.views import average_views
from foldwise.reporting.evaluation_report import write_evaluation
from foldwise.tasks.detection import parse_boxes, write_boxes

CLASSES = ["car", "road sign"]
SIZES = [(60, 80), (90, 50)]  # height and width, by turns
FOLDS, ROWS = 3, 24


def random_boxes(rng, count, classes=3, near=None, whole=False, extent=80):
    """Boxes with scores that often tie, about those of `near` if it has some."""
    if near is not None and len(near.label):
        chosen = rng.integers(len(near.label), size=count)
        edges = near.edges[chosen] + rng.normal(0, 3, (count, 4))
        label = np.where(rng.random(count) < 0.8, near.label[chosen], rng.integers(classes, size=count))
    else:
        low = rng.uniform(0, 0.7 * extent, (count, 2))
        edges, label = (
            np.hstack([low, low + rng.uniform(4, 0.3 * extent, (count, 2))]),
            rng.integers(classes, size=count),
        )
    edges = np.round(edges) if whole else edges
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
    return Boxes(label.astype(np.int64), rng.integers(1, 20, count) / 20, edges)


# metric


def by_pycocotools(pairs, classes, thresholds=None, most=100):
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def described(boxes, image):
        for label, score, (x0, y0, x1, y1) in zip(*boxes, strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            yield box | {"image_id": image, "category_id": int(label), "score": float(score)}

    true = [box for image, (each, _) in enumerate(pairs) for box in described(each, image)]
    true = [box | {"id": number} for number, box in enumerate(true, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        data.dataset = {"images": [{"id": image} for image in range(len(pairs))], "annotations": true}
        data.dataset["categories"] = [{"id": label} for label in range(classes)]
        data.createIndex()
        found = data.loadRes([box for image, (_, each) in enumerate(pairs) for box in described(each, image)])
        scores = evaluation.COCOeval(data, found, "bbox")
        if thresholds is not None:
            scores.params.iouThrs = np.array(thresholds)
        scores.params.maxDets = [most]
        scores.evaluate()
        scores.accumulate()
    precision = scores.eval["precision"][:, :, :, 0, -1]
    return precision[precision > -1].mean()


def random_pairs(rng, whole):
    """Pictures without true boxes and without found ones, a class that is only found, and more than 100 boxes."""
    pairs = []
    for count in rng.choice([0, 3, 30, 150], 12):
        true = random_boxes(rng, rng.integers(0, 8), 3, whole=whole)
        found = random_boxes(rng, count, 4, true, whole)
        pairs.append((true, found._replace(label=found.label * (count < 150))))
    return pairs


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore::foldwise.errors.Note")
def test_map_is_that_of_pycocotools(seed):
    pairs = random_pairs(np.random.default_rng(seed), seed % 2)
    for metric in (DetectionMap(), DetectionMap50(), DetectionMap(thresholds=(0.3, 0.9), most=20)):
        metric = metric.for_task("detection", list("abcd"))
        evidence = np.fromiter((metric.measure(*pair) for pair in pairs), object)
        expected = by_pycocotools(pairs, 4, metric.thresholds, metric.most)
        assert metric.reduce(evidence) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore::foldwise.errors.Note")
def test_weights_repeat_pictures(seed):
    """Without ties within a picture, whose order differs between its copies."""
    rng, metric = np.random.default_rng(seed), DetectionMap().for_task("detection", list("abcd"))
    pairs = [(true, found._replace(score=rng.random(len(found.score)))) for true, found in random_pairs(rng, False)]
    evidence = np.fromiter((metric.measure(*pair) for pair in pairs), object)
    drawn = rng.integers(0, 3, len(pairs))
    expected = by_pycocotools([pairs[number] for number in np.repeat(np.arange(len(pairs)), drawn)], 4)
    score = fold_score(metric, [evidence], np.zeros(len(pairs)))
    assert score(drawn.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_map_of_nothing():
    none, metric = random_boxes(np.random.default_rng(0), 0), DetectionMap().for_task("detection", list("abc"))
    with pytest.warns(match="leaves out 3 of 3"):
        assert np.isnan(metric.reduce(np.fromiter([metric.measure(none, none)], object)))
    with pytest.raises(Refusal, match="thresholds"):
        DetectionMap(thresholds=(50,))


# fusion


def iou(a, b):
    sides = [max(0, min(a[n + 2], b[n + 2]) - max(a[n], b[n])) for n in (0, 1)]
    both = sides[0] * sides[1]
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def listed(sources, weights, floors):
    """(score, label, edges, weight) of all boxes, with each source's weight shared by its members."""
    boxes = []
    for members, weight, floor in zip(sources, weights, floors, strict=True):
        for each in members:
            boxes += [(s, c, list(e), weight / len(members)) for c, s, e in zip(*each, strict=True) if s >= floor]
    return boxes


def nms_by_hand(boxes, threshold):
    largest = max(box[3] for box in boxes)
    left = sorted(((s * w / largest, c, e) for s, c, e, w in boxes), key=lambda box: -box[0])
    kept = []
    while left:
        first, *left = left
        kept.append(first)
        left = [box for box in left if box[1] != first[1] or iou(box[2], first[2]) <= threshold]
    return kept


def wbf_by_hand(boxes, members, total, threshold):
    clusters = []
    for score, label, edges, weight in sorted(boxes, key=lambda box: -box[0] * box[3]):
        fits = [(iou(edges, mean), -n) for n, (kind, mean, _) in enumerate(clusters) if kind == label]
        best = max(fits, default=(0, 0))
        if best[0] > threshold:
            clusters[-best[1]][2].append((score * weight, edges))
        else:
            clusters.append([label, edges, [(score * weight, edges)]])
            best = (0, 1 - len(clusters))
        parts = clusters[-best[1]][2]
        clusters[-best[1]][1] = np.average([e for _, e in parts], axis=0, weights=[s for s, _ in parts])
    fused = []
    for label, mean, parts in clusters:
        score = np.mean([s for s, _ in parts]) * min(members, len(parts)) / total
        fused.append((min(score, 1), label, list(mean)))
    return sorted(fused, key=lambda box: -box[0])


@pytest.mark.parametrize("seed", range(8))
def test_fusion_is_that_of_loops(seed):
    rng = np.random.default_rng(seed)
    common = random_boxes(rng, 8)
    sources = [[random_boxes(rng, rng.integers(0, 25), near=common) for _ in range(members)] for members in (1, 2, 1)]
    sources = [[each._replace(score=rng.uniform(0.01, 1, len(each.score))) for each in source] for source in sources]
    weights, floors = np.array([0.5, 0.3, 0.2]), (0.0, 0.2, 0.1)
    boxes = listed(sources, weights, floors)
    for how in ("nms", "wbf"):
        fused = Fusion(how, tuple(weights), floors, 0.4).predict(sources)
        expected = nms_by_hand(boxes, 0.4) if how == "nms" else wbf_by_hand(boxes, 4, 1.0, 0.4)
        assert fused.label.tolist() == [label for _, label, _ in expected]
        np.testing.assert_allclose(fused.score, [score for score, _, _ in expected], atol=1e-12)
        np.testing.assert_allclose(fused.edges, [edges for *_, edges in expected], atol=1e-9)


def test_one_model_alone_keeps_its_boxes():
    boxes = random_boxes(np.random.default_rng(0), 20)
    for shares in ((1.0, 0.0), (0.0, 1.0)):
        sources = [[boxes], []] if shares[0] else [[], [boxes]]
        assert Fusion("nms", shares, (0.0, 0.0)).predict(sources) is not None
        assert all(map(np.array_equal, Fusion("wbf", shares, (0.0, 0.0)).predict(sources), boxes))


def test_overlaps_and_differences():
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 9), random_boxes(rng, 7)
    expected = [[iou(a, b) for b in second.edges] for a in first.edges]
    np.testing.assert_allclose(overlaps(first.edges, second.edges), expected)
    assert difference(first, first) == 0
    none = first.take(np.zeros(0, int))
    assert difference(first, none) == difference(none, first) == pytest.approx(first.score.sum())
    moved = first.take(np.array([2]))
    assert difference(moved, moved._replace(score=moved.score / 2)) == pytest.approx(moved.score[0] / 2)


# files


class World:
    """Pictures with boxes, a table with folds, and detectors that see the truth through noise."""

    def __init__(self, root, seed=0):
        self.root, self.rng = root, np.random.default_rng(seed)
        root.mkdir(parents=True)
        self.ids = [f"p{row}" for row in range(ROWS)]
        self.test_ids = ["t0", "t1", "t2"]
        self.true = {}
        for number, id in enumerate([*self.ids, *self.test_ids]):
            height, width = self.size(id)
            cv2.imwrite(str(root / f"{id}.png"), np.full((height, width, 3), number, np.uint8))
            self.true[id] = random_boxes(self.rng, self.rng.integers(0, 4), 2, extent=min(height, width), whole=True)
        self.folds = {id: row % FOLDS for row, id in enumerate(self.ids)}
        write_folds(root / "prepared" / "folds.csv", self.folds)
        self.write_table()
        pd.DataFrame({"id": self.test_ids, "image": [f"{id}.png" for id in self.test_ids]}).to_csv(
            root / "test.csv", index=False
        )
        self.settings = [f"data.root={root}", f"data.table={root}/train.csv", f"data.test_table={root}/test.csv"]
        self.settings += [f"data.prepared={root}/prepared", f"data.classes={CLASSES}", f"data.folds={FOLDS}"]
        self.settings += ["samples._target_=foldwise.data.samples.Samples"]

    def size(self, id):
        return SIZES[int(id[1:]) % 2]

    def write_table(self):
        cells = [
            write_boxes([(CLASSES[c], tuple(e)) for c, _, e in zip(*self.true[id], strict=True)]) for id in self.ids
        ]
        frame = pd.DataFrame({"id": self.ids, "image": [f"{id}.png" for id in self.ids], "boxes": cells})
        frame.to_csv(self.root / "train.csv", index=False)

    def found(self, id, noise):
        true = self.true[id]
        edges = true.edges + self.rng.normal(0, noise, true.edges.shape)
        height, width = self.size(id)
        edges = np.clip(edges, 0, [width, height, width, height])
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        edges -= np.maximum(0, edges[:, [2, 3, 2, 3]] - [width, height, width, height])
        seen = self.rng.random(len(edges)) < 0.9
        each = true._replace(edges=edges, score=self.rng.uniform(0.5, 1, len(edges))).take(seen)
        false = random_boxes(self.rng, 2, 2, extent=50)
        false = false._replace(score=self.rng.uniform(0.05, 0.6, 2))
        return Boxes(*map(np.concatenate, zip(each, false, strict=True)))

    def source(self, name, noise):
        """A source for ensembles, written with pandas alone but for the test."""
        rows = [
            (id, boxes_frame([(id, self.found(id, noise))], CLASSES, self.member(self.folds[id]))) for id in self.ids
        ]
        oof = pd.concat([frame for _, frame in rows])
        test = [
            boxes_frame([(id, self.found(id, noise))], CLASSES, self.member(k))
            for k in range(FOLDS)
            for id in self.test_ids
        ]
        frames = {"oof": oof, "test": pd.concat(test)}
        oof_parts = []
        for number, kind in enumerate(CLASSES):  # one file a class
            path = self.root / f"{name}{number}.csv"
            oof[oof["class"].isin([kind, ""])].drop(columns=["snapshot", "view"]).to_csv(path, index=False)
            oof_parts.append(Part(path))
        tests = []
        for fold, frame in frames["test"].groupby("fold"):
            path = self.root / f"{name}-test{fold}.csv"
            frame.to_csv(path, index=False)
            tests.append(Part(path, fold))
        out = self.root / name
        write_found("table", oof_parts, tests, out, "competition", self.settings)
        return out

    def member(self, fold):
        return {"fold": fold, "snapshot": "last", "view": "identity"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("boxes") / "world")
    made.sources = [made.source("good", 1.5), made.source("fair", 2.5)]
    return made


def coco_files(world, root, boxes, view="identity"):
    """Annotations, and results of each fold in a view of the pictures."""
    root.mkdir(exist_ok=True)
    images = [{"id": 100 + n, "file_name": f"folder/{id}.png"} for n, id in enumerate(world.ids)]
    kinds = [{"id": 10 * (n + 1), "name": name} for n, name in enumerate(CLASSES)]
    true, results = [], {fold: [] for fold in range(FOLDS)}
    for image, id in zip(images, world.ids, strict=True):
        width = world.size(id)[1]
        for label, score, (x0, y0, x1, y1) in zip(*boxes[id], strict=True):
            if view == "hflip":
                x0, x1 = width - x1, width - x0
            if view == "rot90":  # counterclockwise: what was right is up
                x0, y0, x1, y1 = y0, width - x1, y1, width - x0
            box = {"image_id": image["id"], "category_id": kinds[label]["id"], "bbox": [x0, y0, x1 - x0, y1 - y0]}
            true.append(box)
            results[world.folds[id]].append(box | {"score": score})
    (root / "annotations.json").write_text(json.dumps({"images": images, "categories": kinds, "annotations": true}))
    for fold, rows in results.items():
        (root / f"{view}{fold}.json").write_text(json.dumps(rows))
    return root


def yolo_files(world, root, boxes, scored=True):
    root.mkdir()
    for fold in range(FOLDS):
        (root / str(fold)).mkdir()
    for id in world.ids:
        height, width = world.size(id)
        lines = [
            f"{label} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height} {score}"
            for label, score, (x0, y0, x1, y1) in zip(*boxes[id], strict=True)
        ]
        lines = lines if scored else [line.rpartition(" ")[0] for line in lines]
        (root / str(world.folds[id]) / f"{id}.txt").write_text("\n".join(lines))
    return root


def read_back(folder, view="identity"):
    predictions = read_predictions(folder)
    frame = predictions.frame[predictions.frame["view"] == view]
    return {id: each[0] for id, each in found_boxes(replace(predictions, frame=frame)).items()}


def same(first, second):
    return all(
        len(first[id].label) == len(second[id].label)
        and all(np.allclose(a, b, atol=1e-4) for a, b in zip(first[id], second[id], strict=True))
        for id in second
    )


def test_coco_results_of_views_and_folds(world, tmp_path):
    boxes = {id: world.found(id, 2) for id in world.ids}
    for view in ("identity", "hflip", "rot90"):
        coco_files(world, tmp_path / "coco", boxes, view)
    parts = [
        Part.parse(f"{k}:{view}={tmp_path}/coco/{view}{k}.json") for k in range(FOLDS) for view in ("hflip", "rot90")
    ]
    parts += [Part.parse(f"{k}={tmp_path}/coco/identity{k}.json") for k in range(FOLDS)]
    counts = write_found(
        "coco", parts, [], tmp_path / "out", "competition", world.settings, [tmp_path / "coco" / "annotations.json"]
    )
    assert counts["oof"][0] == 3 * sum(len(each.label) for each in boxes.values())
    for view in ("identity", "hflip", "rot90"):
        assert same(read_back(tmp_path / "out" / "oof", view), boxes)
    header = read_predictions(tmp_path / "out" / "oof").header
    assert header.folds_hash and header.tta["views"] == ["hflip", "rot90", "identity"] and len(header.members) == 9
    with pytest.raises(Refusal, match="fused, not averaged"):
        average_views(tmp_path / "out" / "oof", tmp_path / "mean", "arithmetic")


def test_yolo_and_ground_truth(world, tmp_path):
    boxes = {id: world.found(id, 2) for id in world.ids}
    yolo_files(world, tmp_path / "yolo", boxes)
    parts = [Part.parse(f"{k}={tmp_path}/yolo/{k}") for k in range(FOLDS)]
    write_found("yolo", parts, [], tmp_path / "out", "competition", world.settings)
    assert same(read_back(tmp_path / "out" / "oof"), boxes)

    yolo_files(world, tmp_path / "truth", world.true, scored=False)
    files = tmp_path / "all"
    files.mkdir()
    for path in (tmp_path / "truth").glob("*/*.txt"):
        path.rename(files / path.name)
    coco_files(world, tmp_path / "coco", world.true)
    shares = [
        (id, CLASSES[c], *(e / [*world.size(id)[::-1], *world.size(id)[::-1]]))
        for id in world.ids
        for c, _, e in zip(*world.true[id], strict=True)
    ]
    pd.DataFrame(shares, columns=["name", "class", "x0", "y0", "x1", "y1"]).to_csv(tmp_path / "shares.csv", index=False)
    expected = pd.read_csv(world.root / "train.csv", keep_default_na=False)
    for kind, path in {
        "yolo": files,
        "coco": tmp_path / "coco" / "annotations.json",
        "table": tmp_path / "shares.csv",
    }.items():
        out = tmp_path / f"{kind}.csv"
        counts = write_truth(kind, path, out, "competition", world.settings, {"id": "name"})
        assert counts == (len(shares), sum(not len(world.true[id].label) for id in world.ids))
        written = pd.read_csv(out, keep_default_na=False)
        assert list(written) == ["id", "image", "boxes"]
        for ours, theirs in zip(written["boxes"], expected["boxes"], strict=True):
            one, two = parse_boxes(ours), parse_boxes(theirs)
            assert [name for name, _ in one] == [name for name, _ in two]
            np.testing.assert_allclose([e for _, e in one], [e for _, e in two], atol=1e-6)


def test_every_problem_of_the_files_is_listed(world, tmp_path):
    good = {"id": "p0", "class": "car", "score": 0.5, "x0": 2, "y0": 2, "x1": 9, "y1": 9}
    bad = [
        {"id": "p0x"},
        {"class": "tree"},
        {"score": 50},
        {"x1": 99},
        {"x1": 1},
        {"id": "p1"},
    ]
    pd.DataFrame([good, *({**good, **each} for each in bad)]).to_csv(tmp_path / "boxes.csv", index=False)
    with pytest.raises(Refusal) as error:
        write_found(
            "table",
            [Part(tmp_path / "boxes.csv", 0)],
            [Part(tmp_path / "boxes.csv")],
            tmp_path / "out",
            "competition",
            world.settings,
        )
    text = str(error.value)
    for sentence in (
        "pictures that the table does not have, in 1 pictures: p0x",
        "a class that is none of car, road sign, in 1 pictures: p0",
        "no score from 0 to 1, in 1 pictures: p0",
        "lead out of their picture, in 1 pictures: p0",
        "have no area, in 1 pictures: p0",
        "not in fold 0, whose model learnt from them: p1",
        "--oof has no boxes of fold 1",
        "--oof has no boxes of fold 2",
        "name the model's fold: 0=",
    ):
        assert sentence in text, (sentence, text)
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refusal, match="no column id: name it with --columns id=<column>"):
        pd.DataFrame([{**good, "picture": "p0"}]).drop(columns="id").to_csv(tmp_path / "other.csv", index=False)
        write_found("table", [Part(tmp_path / "other.csv")], [], tmp_path / "out", "competition", world.settings)
    with pytest.raises(Refusal, match="no view 'hflop'"):
        write_found(
            "table", [Part(tmp_path / "boxes.csv", 0, "hflop")], [], tmp_path / "out", "competition", world.settings
        )


def test_broken_files_are_refused(world, tmp_path):
    coco = coco_files(world, tmp_path / "coco", world.true)
    (tmp_path / "list.json").write_text(json.dumps([{"image_id": 100, "category_id": 10, "bbox": [1, 2, 3]}]))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "p0.txt").write_text("0 0.5 0.5 0.1 0.1 0.9\n0 0.5 0.5 0.1\n7 0.5 0.5 0.1 0.1 0.9\n")
    cases = [
        (
            "coco",
            tmp_path / "list.json",
            "1 entries, counted from 0, lack one of image_id, category_id, bbox, score: 0",
        ),
        ("coco", coco / "annotations.json", "has no list of results"),
        ("yolo", tmp_path / "0", r"confidence \(save_conf=True\): 1 such: p0.txt:2"),
        ("yolo", tmp_path / "0", "a class that is none of car, road sign"),
        ("yolo", tmp_path / "list.json", "is no folder"),
    ]
    for kind, path, message in cases:
        with pytest.raises(Refusal, match=message):
            known = [coco / "annotations.json"]
            write_found(kind, [Part(path, 0)], [], tmp_path / "out", "competition", world.settings, known)
    with pytest.raises(Refusal, match="no file of COCO annotations"):
        parts = [Part(coco / "identity0.json", 0)]
        write_found("coco", parts, [], tmp_path / "out", "competition", world.settings, [tmp_path / "list.json"])
    known = [coco / "annotations.json"]
    for parts, message in (
        ([Part(coco / "identity0.json", 0)] * 2, "the same boxes in several files of one fold and view of --oof"),
        ([Part(coco / "identity0.json", FULL)], "the model of all rows has no held-out pictures"),
    ):
        with pytest.raises(Refusal, match=message):
            write_found("coco", parts, [], tmp_path / "out", "competition", world.settings, known)
    annotations = json.loads(known[0].read_text())
    annotations["categories"].pop()
    (tmp_path / "unnamed.json").write_text(json.dumps(annotations))
    with pytest.raises(Refusal, match="1 categories have no name: "):
        write_truth("coco", tmp_path / "unnamed.json", tmp_path / "out.csv", "competition", world.settings)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.csv").exists()


def test_a_prediction_folder_of_boxes_is_checked(world, tmp_path):
    good = read_predictions(world.sources[0] / "oof")
    frame = good.frame
    first = frame.index[frame["class"] != ""][0]
    problems = {
        "not in columns": ("class", "tree"),
        "no score from 0 to 1": ("score", 7.0),
        "no area": ("x1", -5.0),
        "not a float": ("score", None),
    }
    for message, (column, value) in problems.items():
        changed = frame.copy()
        if value is None:
            changed[column] = "0.5"
        else:
            changed.loc[first, column] = value
        with pytest.raises(PredictionsError, match=message):
            write_predictions(tmp_path / "bad", changed, good.header)
    shares = frame.assign(**{name: frame[name] / 100 for name in ("x0", "y0", "x1", "y1")})
    with pytest.raises(PredictionsError, match="seem to be shares"):
        write_predictions(tmp_path / "bad", shares, good.header)
    twice = pd.concat(
        [
            frame,
            frame[:1].assign(**{"class": "", "score": np.nan, "x0": np.nan, "y0": np.nan, "x1": np.nan, "y1": np.nan}),
        ]
    )
    with pytest.raises(PredictionsError, match="beside an empty one"):
        write_predictions(tmp_path / "bad", twice, good.header)
    with pytest.raises(PredictionsError, match="have no prediction"):
        lost = good.frame[good.frame["id"] != "p3"]
        write_predictions(tmp_path / "lost", lost, good.header)
        evaluate(
            [tmp_path / "lost"],
            data="competition",
            overrides=[*world.settings, "task=detection", "metric=detection_map"],
        )


def test_cells_of_boxes():
    boxes = [("road sign", (1.0, 2.5, 3.0, 4.125)), ("car", (0.0, 0.0, 1.0, 1.0))]
    assert parse_boxes(write_boxes(boxes)) == boxes and parse_boxes("") == []
    for bad in ("car 1 2 3", "1 2 3 4", "car 1 2 0 4", "car 1 2 nan 4", "car"):
        assert parse_boxes(bad) is None


# the way to a submission


def test_evaluate_ensemble_and_submit(world, tmp_path):
    out = tmp_path / "fused"
    comparison, written = ensemble(world.sources, out, strict=True)
    assert comparison.names == ["single", "mean", "nms", "wbf"] and [path.name for path in written] == ["oof", "test"]
    assert comparison.overall[1] > comparison.source_overall.max()
    fitted = json.loads((out / "fusion.json").read_text())
    assert set(fitted) == {"sources", "fold0", "fold1", "fold2"} and fitted["fold0"]["how"] in ("nms", "wbf")
    evaluation = evaluate([out, *world.sources], resamples=100)
    scores = evaluation.scores[evaluation.scores["column"] == ""]
    assert scores["metric"].tolist()[:2] == ["DetectionMap", "DetectionMap50"]
    assert scores["score"].iat[0] == pytest.approx(comparison.overall[comparison.chosen])
    assert (scores["low"] <= scores["score"]).all() and (scores["score"] <= scores["high"]).all()
    write_evaluation(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text()
    assert "Largest disagreement of the predictions" in page and "Classes: DetectionMap" in page

    pd.DataFrame({"image_id": [f"{id}.png" for id in world.test_ids], "PredictionString": ""}).to_csv(
        tmp_path / "sample.csv", index=False
    )
    texts = {}
    for name, options in {
        "pixels": {},
        "scored": {"box": "{score:.3f} {x0:.0f} {y0:.0f} {w:.0f} {h:.0f}", "empty": "none"},
        "shares": {
            "box": "{class} {score} {x0} {y0} {x1} {y1}",
            "shares": True,
            "names": {"car": "0", "road sign": "1"},
        },
    }.items():
        made = make_submission(
            out,
            sample=tmp_path / "sample.csv",
            options=options,
            out=tmp_path / f"{name}.csv",
            ledger=tmp_path / "l.csv",
        )
        texts[name] = pd.read_csv(made.path, keep_default_na=False)
        assert list(texts[name]) == ["image_id", "PredictionString"]
    predictions = found_boxes(read_predictions(out / "predictions" / "test"))
    merged = {id: Fusion("wbf", (1.0,), (0.0,)).predict([each]) for id, each in predictions.items()}
    for number, id in enumerate(world.test_ids):
        width, height = world.size(id)[::-1]
        words = texts["shares"]["PredictionString"][number].split()
        values = np.array(words, float).reshape(-1, 6)
        assert values[:, 0].tolist() == merged[id].label.tolist()
        np.testing.assert_allclose(values[:, 2:] * np.tile([width, height], 2), merged[id].edges, atol=1e-3)
        first = texts["scored"]["PredictionString"][number].split()[:5]
        x0, y0, x1, y1 = merged[id].edges[0]
        np.testing.assert_allclose(np.array(first[1:], float), [x0, y0, x1 - x0, y1 - y0], atol=0.51)
        assert texts["pixels"]["PredictionString"][number].startswith(CLASSES[merged[id].label[0]])
    with pytest.raises(Refusal, match="placeholders are"):
        make_submission(out, options={"box": "{x}"}, out=tmp_path / "no.csv", ledger=tmp_path / "l.csv")
    with pytest.raises(Refusal, match="not for boxes"):
        make_submission(out, decision="platt", out=tmp_path / "no.csv", ledger=tmp_path / "l.csv")


def test_what_boxes_cannot_do_is_refused(world, tmp_path):
    with pytest.raises(Refusal, match="there are single, mean, nms, wbf"):
        ensemble(world.sources, tmp_path / "out", methods=["logistic"])
    alone = shutil.copytree(world.sources[0], tmp_path / "alone")
    shutil.rmtree(alone / "predictions")
    with pytest.raises(Refusal, match=r"no test predictions; make them with tools/boxes.py found"):
        make_submission(alone)
    assert (
        "trained elsewhere" in task_problems("detection", {"_target_": "foldwise.models.losses.BinaryCrossEntropy"})[0]
    )


def test_a_fold_of_the_settings_does_not_depend_on_its_labels(tmp_path):
    """All boxes of fold 1 are others, and what is fused in it stays, byte for byte."""
    worlds = []
    for changed in (False, True):
        made = World(tmp_path / str(changed))
        made.sources = [made.source("good", 1.5), made.source("fair", 3.0)]
        if changed:
            for id in made.ids:
                if made.folds[id] == 1:
                    made.true[id] = random_boxes(made.rng, 3, 2, extent=50)
            made.write_table()
        worlds.append(made)
    moved = 0
    for method in ("nms", "wbf"):
        fused = []
        for made in worlds:
            ensemble(made.sources, made.root / method, use=method)
            frame = read_predictions(made.root / method / "oof").frame
            fitted = json.loads((made.root / method / "fusion.json").read_text())
            fused.append((frame[frame["fold"] == 1].to_csv(index=False), fitted["fold1"], fitted["fold2"]))
        assert fused[0][:2] == fused[1][:2]
        moved += fused[0][2] != fused[1][2]
    assert moved  # the labels do matter

"""Lists of images that are worth a look by hand: suspect labels, uncertain predictions, models that disagree, boxes.

A list is a table with `id`, `image`, why the image is in it, and the mean probability of each class or the box.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from foldwise.audit.descriptors import PixelDescriber, describe_images
from foldwise.audit.duplicates import standardize
from foldwise.data.boxes import BOX
from foldwise.data.holdout import GOLD
from foldwise.data.pseudo import same_scene
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table_file import read_file
from foldwise.errors import Refusal, refuse_all
from foldwise.files import check_new, write_atomic
from foldwise.predictions.ground_truth import align, read_ground_truth
from foldwise.predictions.metrics import cross_entropy
from foldwise.predictions.pseudo.rules import check_suffix, class_problems, confidence, write_table
from foldwise.predictions.pseudo.teachers import Teachers, check_probabilities, open_teachers
from foldwise.predictions.sources import find_sources
from foldwise.predictions.store import read_predictions

REASONS = ("entropy", "margin", "disagreement", "label", "likely", "doubt")  # columns besides id, image and classes
POOL = 10  # times as many candidates as are chosen, for --diverse


def list_suspects(run: Path, out: Path, most: int | None = None) -> pd.DataFrame:
    """Write the labels that out-of-fold predictions contradict, the most doubtful first.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068, sections 3.1 and 3.2): a class is likely if
    its probability reaches the mean one of the images labelled with it; a label is suspect if the most probable of the
    likely classes is another one, and more probable than the label. `doubt` is by how much. Multi-label: for each label
    and its absence; `likely` has a + or - before the label to add or to remove.
    """
    check_suffix(out)
    check_new(out)
    truth = read_ground_truth(run)
    check_probabilities(truth)
    if truth.task.kind != "rows":
        raise Refusal("suspect labels are those of whole images; evaluate.py lists the worst masks")
    refuse_all(class_problems(truth.table.classes, ("id", "image", *REASONS)))
    rows, probability = align(read_predictions(find_sources([run])[0].oof), truth)
    assert truth.table.target is not None
    target, classes = truth.table.target[rows], list(truth.table.classes)
    if not np.isin(target, (0, 1)).all():
        raise Refusal(f"{truth.table.path} has soft targets; suspect labels are whole ones")
    if truth.task.exclusive:
        suspect, likely = find_suspects(target.argmax(axis=1), probability)
        found = [(row, classes[likely[row]]) for row in np.flatnonzero(suspect)]
        doubt = [float(probability[row, likely[row]] - probability[row][target[row] > 0][0]) for row, _ in found]
    else:
        found, doubt = [], []
        for number, name in enumerate(classes):
            both = np.stack([1 - probability[:, number], probability[:, number]], axis=1)
            labels = target[:, number].astype(int)
            suspect, likely = find_suspects(labels, both)
            for row in np.flatnonzero(suspect):
                found.append((row, ("+" if likely[row] else "-") + name))
                doubt.append(float(both[row, likely[row]] - both[row, labels[row]]))
    frame = truth.table.frame.iloc[rows[[row for row, _ in found]]][["id", "image"]].reset_index(drop=True)
    labels = [" ".join(name for name, on in zip(classes, target[row], strict=True) if on) for row, _ in found]
    frame = frame.assign(label=labels, likely=[name for _, name in found], doubt=doubt)
    frame = frame.join(pd.DataFrame(probability[[row for row, _ in found]], columns=classes))
    return _write(frame.sort_values(["doubt", "id"], ascending=[False, True]).head(most or len(frame)), out)


def find_suspects(labels: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the labels (N,), class numbers, are suspect (N,), and the likely classes (N,); see `list_suspects`."""
    classes = probability.shape[1]
    own = [probability[labels == number, number] for number in range(classes)]
    threshold = np.array([values.mean() if len(values) else np.inf for values in own])
    # A tolerance, since the mean of equal numbers may differ from them by rounding.
    candidates = np.where(probability >= threshold - 1e-12, probability, -np.inf)
    likely = candidates.argmax(axis=1)
    return candidates.max(axis=1) > probability[np.arange(len(labels)), labels], likely


def list_uncertain(
    runs: Sequence[Path],
    out: Path,
    count: int,
    test: str | None = None,
    table: Path | None = None,
    diverse: bool = False,
    disagreement: bool = False,
) -> pd.DataFrame:
    """Write the images without a label that the models of all folds are least certain about.

    Images of the training table are left out, and those that share a file, group or unit with gold rows. Columns that
    both tables have, such as groups, are copied, since `take` needs them.

    `entropy` is that of the mean prediction (multi-label: mean over the labels; masks: mean over the pixels), `margin`
    the gap between the two most probable classes (multi-label: between presence and absence of the least certain label;
    Settles 2009, Active Learning Literature Survey, section 3.1), `disagreement` the part of the entropy that the runs
    do not share (Houlsby et al. 2011, arXiv:1112.5745).

    Args:
        runs, test, table: as in `open_teachers`.
        count: number of images.
        diverse: of `POOL` times as many images, take those that look least alike.
        disagreement: sort by that in place of the entropy; needs two runs.
    """
    check_suffix(out)
    check_new(out)
    teachers = open_teachers(runs, test, table)
    refuse_all(class_problems(teachers.classes, ("id", "image", *REASONS)))
    if disagreement and (len(runs) < 2 or teachers.task.kind == "maps"):
        raise Refusal("a disagreement needs two runs that predict classes or labels")
    probability, entropy, margin = _uncertainty(teachers)
    truth, unlabelled = teachers.truth, teachers.table.frame
    own = ("id", "image", *REASONS, *teachers.classes)
    copied = [name for name in read_file(truth.table.path) if name in unlabelled and name not in own]
    frame = unlabelled[["id", "image", *copied]].assign(entropy=entropy, margin=margin)
    if disagreement:
        each = [_entropy(one.probability(), teachers) for one in _single(teachers)]
        frame["disagreement"] = (entropy - np.mean(each, axis=0)).clip(0)
    frame = frame.join(pd.DataFrame(probability, columns=teachers.classes))
    known = frame["id"].isin(truth.table.ids) | frame["image"].isin(truth.table.frame["image"])
    frame = frame[~known & ~same_scene(unlabelled, truth.table.frame[truth.folds == GOLD])]
    if frame.empty:
        raise Refusal(f"all images of {teachers.table.path} have a label, or belong to gold rows")
    order = ["disagreement" if disagreement else "entropy", "id"]
    frame = frame.sort_values(order, ascending=[False, True])
    if diverse:
        frame = frame.head(POOL * count)
        frame = frame.iloc[spread(_describe(teachers, frame.index.to_numpy()), count)]
    return _write(frame.head(count), out)


def list_boxes(table: Path, out: Path, most: int | None = None) -> pd.DataFrame:
    """Write the rows of a table of boxes that are worth a look: without a box, then of images with several boxes."""
    check_suffix(out)
    check_new(out)
    frame = read_file(table).reset_index(drop=True)
    missing = [name for name in ("id", "image", *BOX) if name not in frame]
    if missing:
        raise Refusal(
            f"{table} has no column {', '.join(missing)}: it is no table of boxes, as tools/crop.py writes it"
        )
    boxes = (frame[list(BOX)].astype(str).replace("nan", "") != "").all(axis=1).groupby(frame["image"]).transform("sum")
    frame = frame.assign(boxes=boxes)[boxes != 1]
    frame = frame.sort_values("boxes", key=lambda n: n.where(n > 0, np.inf), ascending=False, kind="stable")
    return _write(frame.head(most or len(frame)), out)


def spread(vectors: np.ndarray, count: int) -> list[int]:
    """Choose rows of (N, D) far from each other: the first, then always the one farthest from those chosen.

    Greedy k-centre (Sener and Savarese 2018, arXiv:1708.00489, algorithm 1).
    """
    chosen = [0]
    distance = np.linalg.norm(vectors - vectors[0], axis=1)
    while len(chosen) < min(count, len(vectors)):
        distance[chosen[-1]] = -1
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
    return chosen


def _describe(teachers: Teachers, rows: np.ndarray) -> np.ndarray:
    """Descriptors (N, D) of the pictures of rows, as prepare.py compares them."""
    data = teachers.truth.config["data"]
    chosen = replace(teachers.table, frame=teachers.table.frame.iloc[rows].reset_index(drop=True))
    items = TableItems.of(chosen, Samples(data["mode"]))
    return standardize(describe_images([items], data, PixelDescriber(), progress=True).vectors)


def _single(teachers: Teachers) -> list[Teachers]:
    pairs = zip(teachers.sources, teachers.predictions, strict=True)
    return [Teachers([source], [part], teachers.truth, teachers.table) for source, part in pairs]


def _uncertainty(teachers: Teachers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probabilities (N, C), entropy and margin (N,)."""
    exclusive = teachers.task.exclusive
    if teachers.task.kind != "maps":
        probability = teachers.probability()
        return probability, _entropy(probability, teachers), _margin(probability, exclusive)
    images = (maps.reshape(len(maps), -1).T for maps in teachers.maps(np.arange(len(teachers.table))))
    means = [
        (pixels.mean(axis=0), cross_entropy(pixels, pixels, exclusive).mean(), _margin(pixels, exclusive).mean())
        for pixels in images
    ]
    probability, entropy, margin = (np.array(values) for values in zip(*means, strict=True))
    return probability, entropy, margin


def _entropy(probability: np.ndarray, teachers: Teachers) -> np.ndarray:
    return cross_entropy(probability, probability, teachers.task.exclusive)


def _margin(probability: np.ndarray, exclusive: bool) -> np.ndarray:
    if exclusive:
        return np.diff(np.partition(probability, -2, axis=1)[:, -2:], axis=1)[:, 0]
    return 2 * confidence(probability, False) - 1


def _write(frame: pd.DataFrame, out: Path) -> pd.DataFrame:
    frame = frame.round(6).reset_index(drop=True)
    with write_atomic(out) as temporary:
        write_table(temporary, frame)
    return frame

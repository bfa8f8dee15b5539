"""The report is one file that loads nothing, and its figures take any number of classes."""

import warnings
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest

from competition.reporting.figures import (
    class_colors,
    confusion,
    confusion_matrix,
    displayable,
    gallery,
    learning_curves,
    overlay,
    per_class,
    to_png,
    worst_rows,
)
from competition.reporting.report import write_report


class Tags(HTMLParser):
    """All tags of a page, and all that they refer to."""

    def __init__(self):
        super().__init__()
        self.names, self.links = set(), []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]


def decode(figure):
    return cv2.imdecode(np.frombuffer(to_png(figure), np.uint8), cv2.IMREAD_COLOR)


def history(epochs=4):
    frame = pd.DataFrame({"epoch": np.arange(1, epochs + 1), "lr": 1e-3, "train_loss": 0.5, "seconds": 1.0})
    validated = np.arange(epochs) % 2 == 1
    return frame.assign(val_loss=np.where(validated, 0.6, np.nan), score=np.where(validated, 0.9, np.nan))


def test_one_file_with_everything_escaped_and_nothing_loaded(tmp_path):
    evil = '<script src="https://evil.example/x.js"></script>'
    write_report(
        tmp_path / "report.html",
        title=f"run {evil}",
        summary={"model": "resnet18", evil: evil},
        scores=[{"fold": 0, "accuracy": 0.91}, {"fold": 1, "accuracy": float("nan")}, {"fold": "OOF", "accuracy": 0.9}],
        history={0: history(), 1: history(1)},
        figures=[(f"per class {evil}", per_class(np.array([0.5]), ["a"], "F1")), ("raw", b"\x89PNG")],
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.names and "link" not in tags.names
    assert len(tags.links) == 3 and all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert "url(" not in text and "@import" not in text
    assert "0.9100" in text and "—" in text and 'class="total"' in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_empty_report_is_a_page(tmp_path):
    write_report(tmp_path / "report.html", "empty", {}, [], {}, [])
    assert "<h1>empty</h1>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("count", [0, 1, 2, 15, 200])
def test_figures_of_any_number_of_classes(count):
    rng = np.random.default_rng(0)
    names = [f"class number {index} with a long name, 50% and $x_{index}$" for index in range(count)]
    target, probability = np.eye(max(count, 1))[rng.integers(0, max(count, 1), 500)], rng.random((500, max(count, 1)))
    matrix = confusion_matrix(target, probability) if count else np.zeros((0, 0), int)
    values = rng.random(count)
    values[:1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [confusion(matrix, names), per_class(values, names, "F1", support=np.arange(count))]
        for figure in pictures:
            height, width, _ = decode(figure).shape
            assert height <= 1500 and width <= 1500
    assert class_colors(count).shape == (count, 3) and len({tuple(c) for c in class_colors(count)}) == count


def test_confusion_matrix_has_the_truth_in_its_rows():
    target, probability = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 1, 1, 0]]
    assert confusion_matrix(target, probability).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_many_classes_show_those_with_errors():
    matrix = np.diag(np.full(60, 10))
    matrix[57, 3] = 5
    axis = confusion(matrix, [f"c{index}" for index in range(60)]).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 40 and {"c3", "c57"} <= set(labels) and "40 of 60" in axis.get_title()


def test_worst_rows_first():
    target = np.eye(3)[[0, 1, 2, 0]]
    probability = np.array([[0.9, 0.1, 0], [0.5, 0.5, 0], [1, 0, 0], [0.1, 0.9, 0]])
    assert worst_rows(target, probability, 3).tolist() == [2, 3, 1]
    assert worst_rows(target, probability, 9).tolist() == [2, 3, 1, 0]
    labels, answers = np.array([[0, 0], [1, 1]]), np.array([[0.9, 0.1], [0.6, 0.6]])
    assert worst_rows(labels, answers, 2, multilabel=True).tolist() == [0, 1]


@pytest.mark.parametrize("folds", [{}, {0: history(0)}, {0: history(1)}, {fold: history(3) for fold in range(12)}])
def test_learning_curves_of_any_number_of_folds(folds):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(learning_curves(folds)).ndim == 3


def test_images_of_every_kind_can_be_shown():
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (5, 9, 1), np.uint8),
        rng.integers(0, 256, (40, 20, 2), np.uint8),
        rng.integers(0, 4096, (30, 30, 8)).astype(np.uint16),
        np.zeros((10, 10, 4), np.float32),
    ]
    for image in images:
        shown = displayable(image)
        assert shown.shape == (*image.shape[:2], 3) and shown.dtype == np.uint8
    assert displayable(images[2]).max() == 255 and displayable(images[2]).min() == 0
    assert decode(gallery(images, ["a", "b\ntrue x, said y", "$c", "d"])).ndim == 3
    assert decode(gallery([], [])).ndim == 3


@pytest.mark.parametrize("size", [(40, 30), (20, 90)])
def test_overlay_paints_the_answer_where_it_is(size):
    image = np.zeros((*size, 3), np.uint8)
    answer = np.zeros(size, np.uint8)
    answer[: size[0] // 2, : size[1] // 2] = 1
    figure = overlay(image, answer, ["ground", "object"], "an id")
    painted = figure.axes[1].get_images()[0].get_array()
    assert painted[1, 1].max() > 0.2 and painted[-1, -1].max() == 0 and painted[1, -1].max() == 0
    assert "object 25.0%" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert decode(figure).ndim == 3

"""The report is one file that loads nothing, and its figures take any number of classes."""

import warnings
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest

from foldwise.predictions.metrics import confusion_matrix
from foldwise.reporting.figures import color_of, confusion, learning_curves, per_class, to_png
from foldwise.reporting.pictures import displayable, gallery, overlay, paint
from foldwise.reporting.report import write_report
from foldwise.reporting.run_report import worst_rows
from foldwise.tasks import find_task


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
        figures=[(f"per class {evil}", per_class(np.array([0.5]), ["a"], "F1", np.array([1]))), ("raw", b"\x89PNG")],
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
    matrix = confusion_matrix(*rng.integers(0, max(count, 1), (2, 500)), count) if count else np.zeros((0, 0), int)
    values = rng.random(count)
    values[:1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [confusion(matrix, names), per_class(values, names, "F1", support=np.arange(count))]
        for figure in pictures:
            height, width, _ = decode(figure).shape
            assert height <= 1500 and width <= 1500
    assert len({tuple(color_of(number)) for number in range(count)}) == count


def test_confusion_matrix_has_the_true_classes_in_its_rows():
    true, answer, weight = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), np.array([1, 2, 0.5, 1])
    assert confusion_matrix(true, answer, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion_matrix(true, answer, 3, weight).tolist() == [[1, 2, 0], [0, 0.5, 0], [1, 0, 0]]


def test_many_classes_show_those_with_errors():
    matrix = np.diag(np.full(60, 10))
    matrix[57, 3] = 5
    axis = confusion(matrix, [f"c{index}" for index in range(60)]).axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 40 and {"c3", "c57"} <= set(labels) and "40 of 60" in axis.get_title()


def test_worst_rows_first():
    target = np.eye(3)[[0, 1, 2, 0]]
    probability = np.array([[0.9, 0.1, 0], [0.5, 0.5, 0], [1, 0, 0], [0.1, 0.9, 0]])
    assert worst_rows(target, probability, 3, find_task("multiclass")).tolist() == [2, 3, 1]
    assert worst_rows(target, probability, 9, find_task("multiclass")).tolist() == [2, 3, 1]  # the first is right
    labels, answers = np.array([[0, 0], [1, 1]]), np.array([[0.9, 0.1], [0.6, 0.6]])
    assert worst_rows(labels, answers, 2, find_task("multilabel")).tolist() == [0]


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
    assert decode(gallery([], [])).ndim == 3


def test_a_gallery_shows_every_image_whole_in_its_cell():
    """Each thumbnail is one colour, so that where it lies and how large it is can be counted."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (255, 255, 0), (0, 255, 255), (90, 10, 200)]
    sizes = [(10, 10), (600, 300), (30, 90), (220, 220), (7, 11), (500, 500), (1, 1)]
    images = [np.full((*size, 3), color, np.uint8) for color, size in zip(colors, sizes, strict=True)]
    titles = ["a", "b\ntrue x, said y", "$c", "d", "a title that is much too long to be shown", "f", "g"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = decode(gallery(images, titles, [("ground", np.zeros(3)), ("object", np.ones(3))]))[:, :, ::-1]
    shown = [(218, 218), (218, 109), (73, 218), (218, 218), (139, 218), (218, 218), (218, 218)]  # 220 less the frame
    for place, (color, size) in enumerate(zip(colors, shown, strict=True)):
        rows, columns = np.nonzero((page == color).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == size and len(rows) == size[0] * size[1]
        assert (rows.min() // 272, columns.min() // 230) == divmod(place, 6)


def test_masks_are_laid_over_their_images():
    """Every class in its colour, that of number 0, too."""
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.array([[1, 0], [0, 255]], np.uint8)
    result = paint(image, mask, 3, 255)
    first, second = (np.rint(40 + 0.6 * 255 * color) for color in map(color_of, range(2)))  # over 0.4 of the grey
    assert (result[:4, :4] == second).all() and (result[:4, 4:] == first).all() and (result[4:, :4] == first).all()
    assert 4 <= (result[4:, 4:] != image[4:, 4:]).any(axis=2).sum() <= 12  # hatched


@pytest.mark.parametrize("size", [(40, 30), (20, 90), (900, 2000)])
def test_overlay_paints_the_answer_where_it_is(size):
    image, answer = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    answer[: size[0] // 2, : size[1] // 2] = 1
    figure = overlay(image, answer, ["ground", "object"], "an id")
    plain, painted = (picture.get_array() for picture in figure.images)
    assert plain.shape == painted.shape and 450 <= max(plain.shape) <= 1500
    height, width = plain.shape[:2]
    blue, orange = (np.rint(0.6 * 255 * color_of(number)) for number in range(2))  # over black
    assert (painted[: height // 2 - 1, : width // 2 - 1] == orange).all()
    assert (painted[height // 2 + 1 :] == blue).all() and (painted[:, width // 2 + 1 :] == blue).all()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["ground 75.0%", "object 25.0%"]
    page = decode(figure)[:, :, ::-1]
    for color, share in ((orange, 1 / 4), (blue, 3 / 4), (np.zeros(3), 1)):
        pixels = (np.abs(page - color) <= 1).all(axis=2).sum()
        assert pixels == pytest.approx(height * width * share, rel=0.02)


def test_ignored_pixels_have_no_share_and_colours_are_those_of_the_number():
    image, mask = np.zeros((50, 50, 3), np.uint8), np.full((50, 50), 255, np.uint8)
    mask[:10] = 2
    figure = overlay(image, mask, ["sky", "road", "car"], ignore_index=255)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["car 100.0%"]
    assert tuple(figure.legends[0].get_patches()[0].get_facecolor()[:3]) == tuple(color_of(2))

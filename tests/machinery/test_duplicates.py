"""Duplicates and shifts: planted copies are found, unrelated pictures are not, results equal brute force."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from test_prepare import config, prepare

from foldwise.audit.adversarial import adversarial_validation, auc_interval, column_aucs, image_properties
from foldwise.audit.descriptors import Descriptors, PixelDescriber, describe_images, to_picture
from foldwise.audit.duplicates import (
    COSINE,
    NEAR_MARGIN,
    aligned_correlation,
    alike_pairs,
    exact_pairs,
    find_duplicates,
    nearest,
    standardize,
)
from foldwise.audit.embeddings import NetworkDescriber
from foldwise.audit.image_notes import audit_images
from foldwise.data.images import ImageError
from foldwise.data.prepare import check_test_table
from foldwise.data.samples import Samples, TableItems
from foldwise.data.table import Table
from foldwise.errors import Refusal


def scene(seed: int, height: int = 150, width: int = 190) -> np.ndarray:
    """A picture like no other: soft colours, with discs and bars before them."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 255, (5, 6, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        color = tuple(int(value) for value in rng.integers(0, 255, 3))
        x, y = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(image, (x, y), int(rng.integers(5, 25)), color, -1)
        cv2.line(image, (x, y), (int(rng.integers(width)), int(rng.integers(height))), color, 4)
    return image


COPIES: dict[str, Any] = {
    "encoded": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1),
    "brighter": lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.6).astype(np.uint8),
    "shifted": lambda image: image[:-8, 10:],
    "cropped": lambda image: image[7:-7, 9:-9],
    "smaller": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "gray": lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
}


def write(root: Path, pictures: dict[str, np.ndarray], table: str = "train.csv", **columns: list[Any]) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, image in pictures.items():
        cv2.imwrite(str(root / f"images/{name}.png"), image)
    frame = {"id": list(pictures), "image": [f"images/{name}.png" for name in pictures]} | columns
    pd.DataFrame(frame).to_csv(root / table, index=False)


def descriptors_of(pictures: list[np.ndarray]) -> Descriptors:
    shown = np.stack([to_picture(image, None, 128) for image in pictures])
    thumbnails = [
        cv2.cvtColor(cv2.resize(p, (48, 48), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for p in shown
    ]
    return Descriptors(np.stack(thumbnails), PixelDescriber()(shown), learned=False)


def test_copies_are_found_and_unrelated_images_are_not():
    originals = [scene(seed) for seed in range(60)]
    copies = [change(originals[10 + number]) for number, change in enumerate(COPIES.values())]
    found = {(a, b): kind for a, b, kind, _ in alike_pairs(descriptors_of(originals + copies), 67)}
    assert found == {(10 + number, 60 + number): "copy" for number in range(len(COPIES))}


def test_flat_images_are_never_copies():
    pictures = [np.full((60, 60, 3), 200 + number, np.uint8) for number in range(5)]
    assert alike_pairs(descriptors_of(pictures + [scene(seed) for seed in range(9)]), 14) == []


def test_correlation_does_not_depend_on_brightness_and_contrast():
    thumbnail = cv2.resize(cv2.cvtColor(scene(0), cv2.COLOR_BGR2GRAY), (48, 48), interpolation=cv2.INTER_AREA)
    assert aligned_correlation(thumbnail, (thumbnail * 0.5 + 60).astype(np.uint8)) > 0.999
    assert aligned_correlation(thumbnail, 255 - thumbnail) < 0.9


def test_neighbours_are_the_nearest_training_images():
    vectors = standardize(np.random.default_rng(0).normal(size=(90, 12)))
    index, product = nearest(vectors, 70, 8)
    products = vectors.astype(np.float64) @ vectors[:70].T.astype(np.float64)
    products[np.arange(70), np.arange(70)] = -np.inf
    np.testing.assert_array_equal(index, np.argsort(-products, axis=1)[:, :8])
    np.testing.assert_allclose(product, -np.sort(-products, axis=1)[:, :8], atol=1e-6)


def test_near_pairs_stand_out_from_their_surroundings():
    """A tight pair in an empty region is near, pictures of a dense crowd are not; against the formula itself."""
    rng = np.random.default_rng(0)
    crowd = rng.normal(size=(1, 24)) * 3 + rng.normal(size=(60, 24)) * 0.3
    vectors = np.concatenate([rng.normal(size=(60, 24)), crowd])
    vectors[1] = vectors[0] + rng.normal(size=24) * 0.05
    noise = rng.integers(0, 255, (120, 48, 48), np.uint8)  # no two thumbnails correlate
    train = 100
    found = {(a, b) for a, b, *_ in alike_pairs(Descriptors(noise, vectors, learned=True), train)}
    z = standardize(vectors).astype(np.float64)
    cosine = z @ z[:train].T
    cosine[np.arange(train), np.arange(train)] = -2
    around = (-np.sort(-cosine, axis=1))[:, 10:30].mean(axis=1)
    margin = 2 * cosine - around[:, None] - around[None, :train]
    expected = np.argwhere((cosine >= COSINE) & (margin >= NEAR_MARGIN))
    assert found == {(min(pair), max(pair)) for pair in expected.tolist()} and (0, 1) in found
    assert cosine[60:, 60:].max() > 0.95 and not any(min(pair) >= 60 for pair in found)
    assert alike_pairs(Descriptors(noise, vectors, learned=False), train) == []


def test_constant_columns_and_few_pictures_do_no_harm():
    vectors = np.ones((3, 4), np.float32)
    assert not standardize(vectors).any()
    for count in (1, 2, 3):
        descriptors = Descriptors(np.zeros((count, 48, 48), np.uint8), vectors[:count], learned=True)
        assert alike_pairs(descriptors, count) == []


def test_equal_files_are_paired_with_each_part_and_not_with_all(tmp_path):
    files = [tmp_path / str(number) for number in range(300)]
    for number, file in enumerate(files):
        file.write_bytes(b"same" if number < 200 else b"%4d" % number)  # all of the same size
    place = np.arange(300) % 4
    pairs = exact_pairs(files, place)
    assert len(pairs) <= 200 * 4 and all(a < b < 200 for a, b in pairs)
    met = pd.DataFrame([(a, place[b]) for a, b in pairs] + [(b, place[a]) for a, b in pairs]).drop_duplicates()
    assert (met.groupby(0).size() == 4).all() and met[0].nunique() == 200


def test_where_a_pair_lies(tmp_path):
    pictures = [scene(seed) for seed in range(12)]
    write(tmp_path, {f"p{number}": image for number, image in enumerate([*pictures, *pictures[:3], pictures[5]])})
    files = [tmp_path / f"images/p{number}.png" for number in range(16)]
    descriptors = descriptors_of([*pictures, *pictures[:3], pictures[5]])
    fold = np.array([0, -1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0])[:14]
    found = find_duplicates([f"p{number}" for number in range(16)], files, fold, descriptors)
    assert found.to_dict("records") == [
        {"id_a": a, "id_b": b, "kind": "exact", "similarity": 1.0, "where": where}
        for a, b, where in [
            ("p1", "p13", "between folds"),  # what always trains leaks into fold 1
            ("p2", "p14", "train and test"),
            ("p5", "p15", "train and test"),
            ("p0", "p12", "same fold"),
        ]
    ]


def test_pairs_within_the_test_table_are_not_listed():
    descriptors = descriptors_of([scene(seed) for seed in range(9)] + [scene(20), scene(20) // 2])
    assert alike_pairs(descriptors, 9) == [] and len(alike_pairs(descriptors, 10)) == 1


def test_only_new_images_are_read(tmp_path):
    write(tmp_path, {f"p{seed}": scene(seed) for seed in range(4)})
    names = [f"images/p{seed}.png" for seed in range(4)]

    def describe(*tables):
        frames = [pd.DataFrame({"id": table, "image": table}, dtype=object) for table in tables]
        read = [Table(frame, "multiclass", ("a",), tmp_path, None, tmp_path / "t.csv") for frame in frames]
        items = [TableItems.of(table, Samples()) for table in read]
        return describe_images(items, {"prepared": tmp_path, "scale": None}, PixelDescriber())

    first = describe(names[:3])
    sizes = [(tmp_path / name).stat().st_size for name in names]
    for name, size in zip(names[:3], sizes, strict=False):
        (tmp_path / name).write_bytes(bytes(size))  # same sizes, no content
    second = describe([names[3]], names[:3])
    np.testing.assert_array_equal(second.vectors[1:], first.vectors)
    np.testing.assert_array_equal(second.thumbnails[1:], first.thumbnails)
    (tmp_path / names[0]).write_bytes(b"changed")
    with pytest.raises(ImageError, match=r"p0\.png is text"):
        describe(names)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (2, np.uint16), (4, np.uint8), (3, np.float32), (6, np.uint16)]
)
def test_any_image_becomes_a_picture(channels, dtype):
    top = 1 if dtype == np.float32 else 255 if dtype == np.uint8 else 4095
    image = (scene(0)[..., :1] / 255 * top).astype(dtype).repeat(channels, axis=2)
    picture = to_picture(image, None, 64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and picture.std() > 30


def test_a_network_describes_images_and_wrong_weights_are_refused(tmp_path):
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.safetensors")
    describe = NetworkDescriber("test_resnet", tmp_path / "weights.safetensors")
    pictures = np.stack([to_picture(scene(seed), None, describe.size) for seed in range(3)])
    vectors = describe(pictures)
    assert vectors.dtype == np.float32 and len(vectors) == 3 and np.ptp(vectors, axis=0).max() > 0
    np.testing.assert_allclose(describe(pictures[1:2])[0], vectors[1], rtol=1e-4, atol=1e-6)
    for network, file in (
        ("resnet18", "weights.safetensors"),
        ("no_such_net", "weights.safetensors"),
        ("resnet18", "x"),
    ):
        with pytest.raises(Refusal):
            NetworkDescriber(network, tmp_path / file)


@pytest.mark.parametrize(("shift", "differs"), [(0.0, False), (1.5, True)])
def test_adversarial_validation(shift, differs):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 10)), rng.normal(size=(200, 10)) + shift
    auc, likeness = adversarial_validation(train, test)
    assert auc.low <= auc.value <= auc.high and (auc.low > 0.5) == differs
    assert auc.value > 0.95 if differs else auc.low < 0.5 < auc.high
    assert likeness.shape == (300,)
    if differs:  # the training row that lies farthest towards the test
        assert likeness.argmax() in np.argsort(-train.sum(axis=1))[:5]


def test_the_interval_covers_no_difference_about_as_often_as_it_claims():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        auc, _ = adversarial_validation(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)))
        covered += auc.low <= 0.5 <= auc.high
    assert covered >= 34  # 38 expected


def test_recognising_a_scene_does_not_separate_the_tables():
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(40), 15)
    x = rng.normal(size=(40, 30))[scenes] + 0.05 * rng.normal(size=(600, 30))
    (rows, _), (groups, _) = (adversarial_validation(x[:300], x[300:], names) for names in (None, [*scenes]))
    assert rows.value > 0.9 and groups.low < 0.5


def test_columns_that_separate_train_from_test():
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"camera": ["a"] * 90 + ["b"] * 10, "year": [str(v) for v in rng.integers(2000, 2010, 100)]})
    test = pd.DataFrame({"camera": ["a"] * 10 + ["b"] * 90, "year": [str(v) for v in rng.integers(2000, 2010, 100)]})
    train["name"], test["name"] = [f"x{n}" for n in range(100)], [f"y{n}" for n in range(100)]
    train["height"], test["height"] = [100] * 100, [101] * 100
    aucs = column_aucs(train, test.assign(extra=1))
    assert list(aucs)[:2] == ["height", "camera"] and aucs["height"] == (1, 1, 1)
    assert aucs["camera"].value == pytest.approx(0.9, abs=0.02)
    assert max(aucs["name"].value, aucs["year"].value) < 0.62 and "extra" not in aucs


def test_the_interval_of_an_auc_has_the_true_one_in_19_of_20_samples():
    """Two normal distributions whose means are apart by d: the true AUC is the normal one of d / sqrt(2)."""
    rng = np.random.default_rng(0)
    for distance in (0.0, 0.5, 1.5):
        negatives, positives = rng.normal(size=(2000, 60)), rng.normal(distance, 1, (2000, 90))
        areas = (positives[:, :, None] > negatives[:, None, :]).mean(axis=(1, 2))
        intervals = [auc_interval(area, 60, 90) for area in areas]
        inside = np.mean([one.low <= norm.cdf(distance / np.sqrt(2)) <= one.high for one in intervals])
        assert 0.92 < inside < 0.97


def test_what_prepare_says(tmp_path):
    train = {f"a{seed}": scene(seed) for seed in range(30)}
    train |= {"copy": COPIES["brighter"](scene(3)), "same": scene(5)}
    write(tmp_path, train, label=["x", "y"] * 16, fold=[0, 1] * 15 + [0, 0])
    write(tmp_path, {f"t{seed}": scene(seed, 100, 100) // 3 for seed in range(100, 129)} | {"t7": scene(7)}, "test.csv")
    data = config(tmp_path, test_table=str(tmp_path / "test.csv"), columns={"fold": "fold"})
    prepared = prepare(data)
    table, _ = check_test_table(data, prepared, progress=False)
    notes = audit_images(data, prepared, table, PixelDescriber(), progress=False)
    pairs = pd.read_csv(tmp_path / "prepared/duplicates.csv")
    assert {(row.id_a, row.id_b, row.kind, row.where) for row in pairs.itertuples()} == {
        ("a5", "same", "exact", "between folds"),
        ("a3", "copy", "copy", "between folds"),
        ("a7", "t7", "exact", "train and test"),
    }
    for part in ("4 rows have duplicates in another fold (pairs: 1 exact, 1 copy)", "a5 = same", "a7 = t7",
                 "only pixels were compared", "a classifier tells train from test", "image mean"):  # fmt: skip
        assert any(part in note for note in notes), part
    labels = {row.id_b: (row.label_a, row.label_b) for row in pairs.fillna("").itertuples()}
    assert labels == {"same": ("y", "y"), "copy": ("y", "x"), "t7": ("y", "")}
    assert any("1 pairs of copies (1 copy) have different labels" in note and "a3 (y) = copy (x)" in note
               for note in notes)  # fmt: skip
    likeness = pd.read_csv(tmp_path / "prepared/adversarial.csv")
    assert sorted(likeness["id"]) == sorted(train) and likeness["test_likeness"].is_monotonic_decreasing
    properties = image_properties(prepared.scan)
    image = train["a4"].astype(np.float64)
    assert properties["image mean"].iat[4] == pytest.approx(image.mean())
    assert properties["image std"].iat[4] == pytest.approx(image.std())


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "segmentation", "soft"])
def test_copies_with_another_target_are_counted(task, tmp_path):
    """Rows 0 to 5 twice, the copies of 0, 1 and 4 with another target; what the note counts is what was planted."""
    pictures = [scene(seed) for seed in range(12)]
    numbers = [*range(12), *range(6)]
    classes = [[number % 2, number // 2 % 2] for number in numbers]
    for copy in (12, 13, 16):
        classes[copy] = [1 - classes[copy][0], classes[copy][1]]
    columns: dict[str, Any] = {"columns": {}, "classes": ["x", "y"]}
    given: dict[str, list[Any]] = {"label": ["xy"[first] for first, _ in classes]}
    if task == "multilabel":
        given = {"labels": [" ".join(name for name, one in zip("xy", row, strict=True) if one) for row in classes]}
    elif task == "soft":
        given = {"x": [0.25 + 0.5 * row[0] for row in classes], "y": [0.75 - 0.5 * row[0] for row in classes]}
        columns["columns"] = {"target": ["x", "y"]}
    elif task == "segmentation":
        (tmp_path / "masks").mkdir()
        for number, (first, _) in enumerate(classes):
            mask = np.full((150, 190), first, np.uint8)
            # The same mask is other bytes: what is compared are its pixels.
            cv2.imwrite(str(tmp_path / f"masks/{number}.png"), mask, [cv2.IMWRITE_PNG_COMPRESSION, number % 9])
        given = {"mask": [f"masks/{number}.png" for number in range(18)]}
    write(tmp_path, {f"p{place}": pictures[number] for place, number in enumerate(numbers)}, **given)
    data = config(tmp_path, **columns)
    prepared = prepare(data, "multiclass" if task == "soft" else task)
    notes = audit_images(data, prepared, None, PixelDescriber(), progress=False)
    assert any("3 pairs of copies (3 exact) have different labels" in note for note in notes)
    pairs = pd.read_csv(tmp_path / "prepared/duplicates.csv", keep_default_na=False)
    shown = {row.id_a: (row.label_a, row.label_b) for row in pairs.itertuples()}
    expected = {"multiclass": ("x", "y"), "multilabel": ("", "x"), "soft": ("x=0.25 y=0.75", "x=0.75 y=0.25"),
                "segmentation": ("masks/0.png", "masks/12.png")}  # fmt: skip
    assert len(shown) == 6 and shown["p0"] == expected[task]

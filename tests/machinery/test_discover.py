"""`prepare.py --discover` on folders in the shapes of well-known competitions, made here as these were published."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from tiny import code_of

from foldwise.config import compose_config, resolve_config
from foldwise.data.prepare import check_test_table, prepare
from foldwise.data.run_lengths import encode_runs
from foldwise.discovery import writing
from foldwise.discovery.discover import discover, write
from foldwise.discovery.findings import Findings, Rows
from foldwise.discovery.groups import choose_group
from foldwise.discovery.targets import judge
from foldwise.errors import Refusal

NAME = "made"
RNG = np.random.default_rng(3)


def picture(path: Path, channels: int = 3, size: tuple[int, int] = (14, 18)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = RNG.integers(0, 255, (*size, channels), np.uint8)
    cv2.imwrite(str(path), image[:, :, 0] if channels == 1 else image)


def blob(size: tuple[int, int] = (14, 18)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    top, left = RNG.integers(1, 6, 2)
    mask[top : top + 6, left : left + 9] = 1
    return mask


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), array)


def table(path: Path, **columns: Any) -> pd.DataFrame:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    frame.to_csv(path, index=False)
    return frame


def dogs_vs_cats(root: Path) -> None:
    for number in range(12):
        picture(root / f"train/cat.{number}.jpg", size=(10 + number, 20))
        picture(root / f"train/dog.{number}.jpg")
    for number in range(1, 5):
        picture(root / f"test1/{number}.jpg")
    table(root / "sampleSubmission.csv", id=range(1, 5), label=0)


def plant_pathology(root: Path) -> None:
    """2021, without the suffixes of its names: several diseases in a cell."""
    labels = [
        "healthy",
        "scab frog_eye_leaf_spot",
        "complex",
        "rust",
        "rust frog_eye_leaf_spot",
        "scab",
        "rust complex",
    ]
    labels += ["frog_eye_leaf_spot", "scab frog_eye_leaf_spot complex", "powdery_mildew complex", "powdery_mildew"]
    names = [f"8{number:03}b{number}" for number in range(33)]
    for name in names:
        picture(root / f"train_images/{name}.jpg")
    picture(root / "test_images/85f8cb619c66b863.jpg")
    table(root / "train.csv", image=names, labels=labels * 3)
    table(root / "sample_submission.csv", image=["85f8cb619c66b863"], labels=["healthy"])


def aptos(root: Path) -> None:
    for name in [f"{number:012x}" for number in range(4000, 4030)]:
        picture(root / f"train_images/{name}.png")
    names = [f"{number:012x}" for number in range(4000, 4030)]
    table(root / "train.csv", id_code=names, diagnosis=[0, 2, 4, 1, 0, 3] * 5)
    for name in ("0005cfc8afb6", "003f0afdcd15"):
        picture(root / f"test_images/{name}.png")
    table(root / "test.csv", id_code=["0005cfc8afb6", "003f0afdcd15"])
    table(root / "sample_submission.csv", id_code=["0005cfc8afb6", "003f0afdcd15"], diagnosis=0)


def severstal(root: Path) -> None:
    rows = []
    for number in range(10):
        picture(root / f"train_images/{number:04x}a.jpg", size=(16, 64))
        for kind in range(1, 5):
            mask = blob((16, 64))
            has = (number + kind) % 3 == 0
            rows.append((f"{number:04x}a.jpg_{kind}", encode_runs(mask) if has else ""))
    frame = pd.DataFrame(rows, columns=["ImageId_ClassId", "EncodedPixels"])
    frame.to_csv(root / "train.csv", index=False)
    picture(root / "test_images/0000f269f.jpg", size=(16, 64))
    ids = [f"0000f269f.jpg_{kind}" for kind in range(1, 5)]
    table(root / "sample_submission.csv", ImageId_ClassId=ids, EncodedPixels="1 409600")


def salt(root: Path) -> None:
    ids, codes = [f"{number:010x}" for number in range(20)], []
    for number, name in enumerate(ids):
        picture(root / f"train/images/{name}.png", size=(21, 21))
        mask = blob((21, 21)) * (number % 4 > 0)
        save(root / f"train/masks/{name}.png", mask.astype(np.uint16) * 65535)
        codes.append(encode_runs(mask))
    tests = [f"{number:010x}" for number in range(100, 103)]
    for name in tests:
        picture(root / f"test/images/{name}.png", size=(21, 21))
    table(root / "train.csv", id=ids, rle_mask=codes)
    table(root / "depths.csv", id=ids + tests, z=RNG.integers(50, 900, 23))
    table(root / "sample_submission.csv", id=tests, rle_mask="1 1")


def carvana(root: Path) -> None:
    from PIL import Image

    names = [f"{car:012x}_{view:02}" for car in range(6) for view in range(1, 5)]
    for name in names:
        picture(root / f"train/{name}.jpg")
        (root / "train_masks").mkdir(exist_ok=True)
        gif = Image.fromarray(blob(), "P")
        gif.putpalette([0, 0, 0, 255, 255, 255])
        gif.save(root / f"train_masks/{name}_mask.gif")
    picture(root / "test/0004d4463b50_01.jpg")
    codes = [encode_runs(blob().T) for _ in names]
    table(root / "train_masks.csv", img=[f"{name}.jpg" for name in names], rle_mask=codes)
    table(
        root / "metadata.csv", id=[f"{car:012x}" for car in range(6)], year=2015, make="Acura", trim1="TL", model="TL"
    )
    table(root / "sample_submission.csv", img=["0004d4463b50_01.jpg"], rle_mask="1 1")


def planet(root: Path) -> None:
    tags = ["haze primary", "agriculture clear primary water", "clear primary", "clear habitation primary road"]
    tags += ["haze primary water", "cloudy", "partly_cloudy primary", "agriculture haze primary"]
    tags += ["clear primary water", "partly_cloudy primary road"]
    for number in range(30):
        picture(root / f"train-jpg/train_{number}.jpg")
        tifffile.imwrite(
            _made(root / f"train-tif-v2/train_{number}.tif"), RNG.integers(0, 9000, (14, 18, 4), np.uint16)
        )
    for number in range(4):
        picture(root / f"test-jpg/test_{number}.jpg")
    table(root / "train_v2.csv", image_name=[f"train_{number}" for number in range(30)], tags=tags * 3)
    table(root / "sample_submission_v2.csv", image_name=[f"test_{number}" for number in range(4)], tags="primary clear")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def pawpularity(root: Path) -> None:
    ids = [f"{number:032x}" for number in range(60)]
    flags = {name: RNG.integers(0, 2, 60) for name in ("Subject Focus", "Eyes", "Face", "Near", "Blur")}
    for name in ids:
        picture(root / f"train/{name}.jpg")
    for name in ("4128bae22183829d2b5fea10effdb0c3", "43a2262d7738e3d420d453815151079e"):
        picture(root / f"test/{name}.jpg")
    table(root / "train.csv", Id=ids, **flags, Pawpularity=RNG.permutation(np.arange(60) + 1))
    tests = ["4128bae22183829d2b5fea10effdb0c3", "43a2262d7738e3d420d453815151079e"]
    table(root / "test.csv", Id=tests, **{name: [0, 1] for name in flags})
    table(root / "sample_submission.csv", Id=tests, Pawpularity=[65.76, 59.01])


def cassava(root: Path) -> None:
    names = [f"10{number:05}.jpg" for number in range(30)]
    for name in names:
        picture(root / "train_images" / name)
    picture(root / "test_images/2216849948.jpg")
    table(root / "train.csv", image_id=names, label=[0, 3, 1, 2, 4, 3] * 5)
    kinds = {"0": "Cassava Bacterial Blight (CBB)", "1": "CBSD", "2": "CGM", "3": "CMD", "4": "Healthy"}
    (root / "label_num_to_disease_map.json").write_text(json.dumps(kinds))
    table(root / "sample_submission.csv", image_id=["2216849948.jpg"], label=[4])


def hubmap(root: Path) -> None:
    ids, codes = [f"{number}e095a" for number in range(10)], []
    for name in ids:
        tifffile.imwrite(
            _made(root / f"train/{name}.tiff"), RNG.integers(0, 255, (30, 50, 3), np.uint8), photometric="rgb"
        )
        (root / f"train/{name}.json").write_text("[]")
        codes.append(encode_runs(blob((30, 50))))
    tifffile.imwrite(
        _made(root / "test/2ec3f1bb9.tiff"), RNG.integers(0, 255, (30, 50, 3), np.uint8), photometric="rgb"
    )
    table(root / "train.csv", id=ids, encoding=codes)
    table(
        root / "HuBMAP-20-dataset_information.csv",
        image_file=[f"{name}.tiff" for name in ids],
        patient_number=range(10),
    )
    table(root / "sample_submission.csv", id=["2ec3f1bb9"], predicted="")


def iwildcam(root: Path) -> None:
    ids = [f"{number:08x}" for number in range(60)]
    for name in ids:
        picture(root / f"train_images/{name}.jpg")
    picture(root / "test_images/b005e5b2.jpg")
    frame = {"category_id": RNG.permutation([0, 3, 8] * 20), "date_captured": "2011-05-13 23:43:18"}
    places = np.arange(60) // 4
    table(
        root / "train.csv",
        **frame,
        file_name=[f"{i}.jpg" for i in ids],
        frame_num=1,
        id=ids,
        location=places,
        width=1024,
    )
    test = {"date_captured": "2013-05-01", "file_name": ["b005e5b2.jpg"], "frame_num": 1, "id": ["b005e5b2"]}
    table(root / "test.csv", **test, location=20, width=1024)
    table(root / "sample_submission.csv", Id=["b005e5b2"], Predicted=0)


def siim(root: Path) -> None:
    names = [f"ISIC_{number:07}" for number in range(48)]
    for name in names:
        picture(root / f"jpeg/train/{name}.jpg")
    tests = ["ISIC_0052060", "ISIC_0052349"]
    for name in tests:
        picture(root / f"jpeg/test/{name}.jpg")
    sites = ["head/neck", "upper extremity", "torso", "lower extremity", "palms/soles", ""] * 8
    people = [f"IP_{number // 3:07}" for number in RNG.permutation(48)]
    facts = {"sex": ["male", "female"] * 24, "age_approx": [45, 50, 55] * 16, "anatom_site_general_challenge": sites}
    answer = [0, 0, 0, 1] * 12
    found = {
        "diagnosis": ["nevus", "unknown"] * 24,
        "benign_malignant": ["malignant" if n else "benign" for n in answer],
    }
    table(root / "train.csv", image_name=names, patient_id=people, **facts, **found, target=answer)
    table(
        root / "test.csv",
        image_name=tests,
        patient_id=["IP_9", "IP_8"],
        **{name: cells[:2] for name, cells in facts.items()},
    )
    table(root / "sample_submission.csv", image_name=tests, target=0)


def kvasir(root: Path) -> None:
    """Masks as JPEGs, as they are published."""
    for number in range(12):
        picture(root / f"Kvasir-SEG/images/cju{number}.jpg", size=(40, 50))
        mask = np.zeros((40, 50), np.uint8)
        mask[8 : 20 + number, 8:40] = 255
        save(root / f"Kvasir-SEG/masks/cju{number}.jpg", np.dstack([mask] * 3))
    (root / "Kvasir-SEG/kavsir_bboxes.json").write_text("{}")


def bdd(root: Path) -> None:
    for split, count in (("train", 12), ("val", 3)):
        for number in range(count):
            picture(root / f"bdd100k/seg/images/{split}/{split}{number:04x}.jpg")
            mask = np.tile(np.array([0, 1, 2, 255], np.uint8), (14, 5))[:, :18]
            save(root / f"bdd100k/seg/labels/{split}/{split}{number:04x}_train_id.png", mask)
    picture(root / "bdd100k/seg/images/test/aaaa.jpg")


def imagenet(root: Path) -> None:
    for kind in ("n01440764", "n01443537", "n02102040"):
        for number in range(6):
            picture(root / f"ILSVRC/train/{kind}/{kind}_{number}.JPEG")
            if number < 2:
                picture(root / f"ILSVRC/val/{kind}/ILSVRC2012_val_{kind}{number}.JPEG")
    picture(root / "ILSVRC/test/ILSVRC2012_test_00000001.JPEG")


def happywhale(root: Path) -> None:
    names = [f"{number:014x}.jpg" for number in range(90)]
    for name in names:
        picture(root / "train_images" / name)
    picture(root / "test_images/000110707af0ba.jpg")
    people = [f"cadddb{number:06x}" for number in [*range(60), *range(30)]]
    table(root / "train.csv", image=names, species=["beluga", "blue_whale", "beluga"] * 30, individual_id=people)
    table(root / "sample_submission.csv", image=["000110707af0ba.jpg"], predictions=[" ".join(people[:5])])


TABLE, TEST = f"data/{NAME}/tables/train.csv", f"data/{NAME}/tables/test.csv"
# What the written configuration has beside the shipped values; paths in the folder begin with @.
SHAPES: dict[Callable[[Path], None], dict[str, Any]] = {
    dogs_vs_cats: {"table": TABLE, "test_table": TEST, "columns.target": "label"},
    plant_pathology: {
        "table": TABLE, "test_table": TEST, "columns.id": "image", "columns.image": "image_path",
        "columns.target": "labels", "task": "multilabel", "metric": "f_beta",
    },
    aptos: {"table": TABLE, "test_table": TEST, "columns.id": "id_code", "columns.target": "diagnosis"},
    severstal: {
        "table": TABLE, "test_table": TEST, "columns.id": "ImageId_ClassId",
        "masks": "overlapping", "mask_encoding": "rle",
        "columns.target": ["mask_1", "mask_2", "mask_3", "mask_4"], "classes": ["1", "2", "3", "4"],
        "task": "segmentation", "metric": "dice", "loss": "bce_dice",
    },
    salt: {
        "table": TABLE, "test_table": TEST, "columns.target": "mask_path", "mask_values": {0: 0, 65535: 1},
        "classes": ["background", "object"], "task": "segmentation", "metric": "mean_iou",
    },
    carvana: {
        "table": TABLE, "test_table": TEST, "columns.id": "img", "columns.target": "mask_path",
        "classes": ["background", "object"], "task": "segmentation", "metric": "mean_iou",
    },
    planet: {
        "table": TABLE, "test_table": TEST, "columns.id": "image_name", "columns.target": "tags", "task": "multilabel",
        "metric": "f_beta",
    },
    pawpularity: {
        "table": TABLE, "test_table": TEST, "columns.id": "Id", "columns.target": "Pawpularity", "task": "regression",
        "metric": "rmse",
    },
    cassava: {"table": TABLE, "test_table": TEST, "columns.id": "image_id", "columns.target": "label"},
    hubmap: {
        "table": TABLE, "test_table": TEST, "columns.target": ["encoding"],
        "masks": "overlapping", "mask_encoding": "rle",
        "classes": ["object"], "task": "segmentation", "metric": "dice", "loss": "bce_dice",
    },
    iwildcam: {
        "table": TABLE, "test_table": TEST, "columns.target": "category_id", "columns.group": "location",
    },
    siim: {
        "table": TABLE, "test_table": TEST, "columns.id": "image_name", "columns.target": "target",
        "columns.group": "patient_id",
    },
    kvasir: {
        "table": TABLE, "columns.target": "mask", "mask_encoding": "colors",
        "mask_values": {"#000000": 0, "#ffffff": 1}, "classes": ["background", "object"], "task": "segmentation",
        "metric": "mean_iou",
    },
    bdd: {
        "table": TABLE, "test_table": TEST, "columns.target": "mask", "classes": ["class_0", "class_1", "class_2"],
        "task": "segmentation", "metric": "mean_iou",
    },
    imagenet: {"table": TABLE, "test_table": TEST, "columns.target": "label"},
    happywhale: {
        "table": TABLE, "test_table": TEST, "columns.id": "image", "columns.image": "image_path",
        "columns.target": "individual_id",
    },
}  # fmt: skip


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    writing.path_of(NAME).unlink(missing_ok=True)
    shutil.rmtree(Path("data") / NAME, ignore_errors=True)


def written(root: Path) -> dict[str, Any]:
    """Values of the written configuration that are not the shipped ones."""
    config = yaml.safe_load(writing.path_of(NAME).read_text())
    found = {
        key.partition("_global_.")[2]: value for entry in config.pop("defaults", []) for key, value in entry.items()
    }
    for key, usual in (writing.shipped(NAME) | {"root": str(root), "test_table": None}).items():
        group, _, last = key.rpartition(".")
        value = config[group][last] if group else config[last]
        value = value.replace(str(root), "@") if isinstance(value, str) and key != "root" else value
        if value != usual or key == "table":
            found[key] = value
    return found


def run(root: Path) -> Findings:
    found = discover(root, NAME)
    write(found)
    return found


def prepared(*overrides: str) -> Any:
    config = resolve_config(compose_config([f"data={NAME}", "experiment=baseline", "data.folds=2", *overrides]))
    ready = prepare(config, code_of(config).alias, progress=False)
    if config["data"]["test_table"]:
        check_test_table(config["data"], ready, progress=False)
    return ready


def test_changes_of_the_owner_are_kept(tmp_path: Path, clean: None):
    cassava(tmp_path)
    run(tmp_path)
    path = writing.path_of(NAME)
    text = path.read_text()
    path.write_text(text.replace("fit: stretch ", "fit: crop ").replace("  group: null ", "  group: label "))
    with pytest.raises(Refusal, match="columns.group: label, which would become null"):
        run(tmp_path)
    path.write_text(text.replace("fit: stretch ", "fit: crop ").replace("  weight: null ", "  weight: label "))
    run(tmp_path)
    config = yaml.safe_load(path.read_text())
    assert config["fit"] == "crop" and config["columns"]["weight"] == "label"
    rows = Path(f"data/{NAME}/tables/train.csv")
    rows.write_text(rows.read_text().replace(",0,", ",1,"))
    with pytest.raises(Refusal, match=r"train\.csv has other rows"):
        run(tmp_path)
    assert ",0," not in rows.read_text()


def test_a_question_is_asked_on_a_terminal(tmp_path: Path, clean: None, monkeypatch: pytest.MonkeyPatch):
    severstal(tmp_path)
    picture(tmp_path / "train_images/without.jpg", size=(16, 64))
    assert any("1 pictures in train_images/ have no row" in doubt for doubt in discover(tmp_path, NAME).doubts)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "2")
    found = run(tmp_path)
    assert not any("have no row" in doubt for doubt in found.doubts)
    rows = pd.read_csv(TABLE, keep_default_na=False)
    assert rows.iloc[-1][["ImageId_ClassId", "mask_1", "mask_4"]].tolist() == ["without.jpg", "", ""]


def labels_in_rows(root: Path) -> None:
    """A row for each picture and class, names with spaces."""
    rows = [(f"{n:03}.jpg", label) for n in range(12) for label in (["red car", "tree"], ["tree"], ["sky"])[n % 3]]
    for number in range(12):
        picture(root / f"img/{number:03}.jpg", channels=1 if number else 3)
    table(root / "labels.csv", file=[name for name, _ in rows], label=[label for _, label in rows])


def headless(root: Path) -> None:
    """As on SIGNATE: tabs, no header; capital suffixes, leftovers of a Mac and the zip."""
    for number in range(20):
        picture(root / f"train/train_{number:04}.JPG")
    picture(root / "test/test_0000.JPG")
    names = [f"train_{number:04}.JPG" for number in range(20)]
    pd.DataFrame({"a": names, "b": [0, 1] * 10}).to_csv(root / "train_master.tsv", sep="\t", index=False, header=False)
    (root / "sample_submit.csv").write_text("test_0000.JPG,0\n")
    (root / "__MACOSX/train").mkdir(parents=True)
    (root / "__MACOSX/train/._train_0000.JPG").write_bytes(b"Mac OS X")
    (root / "train.zip").write_bytes(b"PK\3\4")
    (root / "places.csv").write_bytes("id,place\n1,Zürich\n".encode("cp1252"))  # whose problem has two lines


def paths_elsewhere(root: Path) -> None:
    """Absolute paths of another machine, and a table of the videos that the frames are from."""
    for number in range(40):
        picture(root / f"data/train/{number:03}.png")
    paths = [f"/kaggle/input/comp/data/train/{number:03}.png" for number in range(40)]
    table(root / "data/train.csv", filepath=paths, score=np.linspace(0.1, 9, 40).round(2))
    table(root / "data/frames.csv", frame=[f"{number:03}" for number in range(40)], video=np.arange(40) // 4)


def coloured(root: Path) -> None:
    names, colors = ["sky", "road", "void"], np.array([[128, 128, 128], [128, 64, 128], [0, 0, 0]], np.uint8)
    for split, count in (("train", 12), ("val", 3), ("test", 3)):
        for number in range(count):
            picture(root / f"CamVid/{split}/{split}{number:05}.png")
            mask = colors[RNG.integers(0, 3, (14, 18))][:, :, ::-1]
            save(root / f"CamVid/{split}_labels/{split}{number:05}_L.png", mask)
    table(root / "CamVid/class_dict.csv", name=names, **{c: colors[:, n] for n, c in enumerate("rgb")})


def folders_of_patients(root: Path) -> None:
    for patient in range(12):
        for kind in ("benign", "malignant"):
            for number in range(2):
                picture(root / f"slides/patient_{patient:02}/{kind}/{number}.png")


def coco(root: Path) -> None:
    """As the FGVC competitions: JSON with images, annotations and categories."""
    kinds = [{"id": number, "name": f"species {number}"} for number in range(3)]
    for split, count in (("train", 30), ("test", 3)):
        names = [f"{split}2018/Plantae/{number % 3}/{number:05}.jpg" for number in range(count)]
        for name in names:
            picture(root / name)
        images = [{"id": number, "file_name": name, "location": number // 3} for number, name in enumerate(names)]
        seen = [{"id": 7 * number, "image_id": number, "category_id": number % 3} for number in range(count)]
        content = {"info": {}, "images": images, "categories": kinds} | (
            {"annotations": seen} if split == "train" else {}
        )
        (root / f"{split}2018.json").write_text(json.dumps(content))


OTHERS: dict[Callable[[Path], None], dict[str, Any]] = {
    labels_in_rows: {
        "table": TABLE, "columns.id": "file", "columns.target": "label", "label_separator": "|", "mode": "rgb",
        "task": "multilabel", "metric": "f_beta",
    },
    headless: {"table": TABLE, "test_table": TEST, "columns.id": "column_1", "columns.target": "column_2"},
    paths_elsewhere: {
        "table": TABLE, "columns.id": "filepath", "columns.target": "score", "columns.group": "video",
        "task": "regression", "metric": "rmse",
    },
    coloured: {
        "table": TABLE, "test_table": TEST, "columns.target": "mask", "mask_encoding": "colors",
        "mask_values": {"#808080": 0, "#804080": 1, "#000000": 2}, "classes": ["sky", "road", "void"],
        "task": "segmentation", "metric": "mean_iou",
    },
    coco: {
        "table": TABLE, "test_table": TEST, "columns.target": "category_id",
        "columns.group": "location",
    },
    folders_of_patients: {"table": TABLE, "columns.target": "label", "columns.group": "folder"},
}  # fmt: skip


ALL = {**SHAPES, **OTHERS}


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_what_a_folder_holds_is_written(make: Callable[[Path], None], tmp_path: Path, clean: None):
    make(tmp_path)
    run(tmp_path)
    assert written(tmp_path) == ALL[make]
    prepared()


def test_a_folder_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, clean: None):
    boxes, several, masks = tmp_path / "boxes", tmp_path / "several", tmp_path / "masks"
    for number in range(4):
        picture(boxes / f"train/{number}.jpg")
        for color in ("red", "green"):
            picture(several / f"train/cell{number}_{color}.png", 1)
        picture(masks / f"train/{number}/images/cell{number}.png")
        for nucleus in "ab":
            save(masks / f"train/{number}/masks/{number}{nucleus}.png", blob())
        picture(tmp_path / f"broken/{number}.jpg")
    (tmp_path / "broken/places.csv").write_bytes("id,place\n1,Zürich\n".encode("cp1252"))
    table(boxes / "train.csv", image_id=[0, 0, 1, 1, 2, 3], bbox="[834, 222, 56, 36]", source=list("aabbcc"))
    table(several / "train.csv", Id=[f"cell{number}" for number in range(4)], Target=["16 0", "7 1", "5", "1"])
    for folder, reason in (
        (boxes, r"has a row per bounding box \(bbox\)"),
        (several, "column Id of train.csv begins names of pictures, such as cell0 of cell0_green"),
        (masks, "no folder is a class"),
        (tmp_path / "none", "there is no folder"),
        (tmp_path / "broken", r"places\.csv: line 2 is not UTF-8"),
        (Path(), "is this repository or holds it"),
        (Path.cwd().parent, "is this repository or holds it"),
    ):
        with pytest.raises(Refusal, match=reason):
            discover(folder, NAME)
    for name in ("", "../made", "made.yaml", "a b"):
        with pytest.raises(Refusal, match="is no name of letters"):
            discover(boxes, name)


def test_what_no_setting_or_target_can_be_read_from_is_named(tmp_path: Path, clean: None):
    cassava(tmp_path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    run(tmp_path)
    path = writing.path_of(NAME)
    text = path.read_text()
    for broken, reason in (
        ("name: [made", "cannot be read as YAML: .* line 1"),
        ("- name", "has no settings"),
        (f"defaults: [mine]\n{text}", "defaults: {mine: null}, which would become"),
    ):
        path.write_text(broken)
        with pytest.raises(Refusal, match=reason):
            run(tmp_path)
        assert path.read_text() == broken
    rows = pd.read_csv(tmp_path / "train.csv").assign(label="a")
    rows.to_csv(tmp_path / "train.csv", index=False)
    assert any("no column of train.csv can be the target" in doubt for doubt in discover(tmp_path, NAME).doubts)


def rows_of(names: Sequence[str], **columns: Any) -> Rows:
    return Rows(
        pd.DataFrame({"id": [f"r{number}" for number in range(len(names))], "image": names, **columns}), "id", "image"
    )


def test_the_coarsest_column_that_holds_the_others_together_is_the_group():
    number = np.arange(80)
    names = [f"{n}.png" for n in number]
    for site, group in ((number // 8, "site"), (number % 10, "patient")):  # in the second, patients are at two sites
        found = Findings(Path("made"), NAME)
        choose_group(found, rows_of(names, patient=number // 2, site=site, site_width=number // 4, camera=number % 12))
        assert found.settings["columns.group"] == group
        (doubt,) = found.doubts
        assert ("patient (" in doubt, "site (" in doubt) == (group == "site", group == "patient")
        assert "site_width" not in doubt and "camera" not in doubt


@pytest.mark.parametrize(("starts", "repeat"), [(40, True), (60, False)])
def test_starts_of_names_become_a_column_where_most_repeat(starts: int, repeat: bool):
    rows = rows_of(
        [f"{min(n, starts - 1) if starts > 40 else n // 2}_{n}.png" for n in range(80)], label=["a", "b"] * 40
    )
    rows.target = judge(rows.frame, ["label"], pd.DataFrame())
    choose_group(found := Findings(Path("made"), NAME), rows)
    assert ("name_start" in rows.frame, len(found.doubts)) == (repeat, repeat)


@pytest.mark.parametrize(("rare", "kind"), [(24, "individual"), (16, "class")])
def test_names_of_few_pictures_are_individuals(rare: int, kind: str):
    cells = [f"n{number}" for number in range(40) for _ in range(1 if number < rare else 3)]
    assert judge(pd.DataFrame({"label": cells}), ["label"], pd.DataFrame()).kind == kind


def test_a_column_called_tags_holds_labels_that_other_cells_seldom_have():
    cells = ["a,b", "a,c", "b,d", "x,y"] * 2
    kinds = {name: judge(pd.DataFrame({name: cells}), [name], pd.DataFrame()).kind for name in ("tags", "label")}
    assert kinds == {"tags": "labels", "label": "class"}


@pytest.mark.parametrize(("suffix", "ids"), [("", ["t1", "t2"]), (".jpg", ["t1.jpg", "t2.jpg"])])
def test_ids_of_test_pictures_are_written_as_those_of_the_table(suffix: str, ids: list[str], tmp_path: Path):
    names = [f"p{number}" for number in range(12)]
    for name in names:
        picture(tmp_path / f"train/{name}.jpg")
    for name in ("t1", "t2"):
        picture(tmp_path / f"test/{name}.jpg")
    table(tmp_path / "train.csv", id=[name + suffix for name in names], label=["a", "b"] * 6)
    (frame,) = (frame for path, frame in discover(tmp_path, NAME).tables.items() if path.name == "test.csv")
    assert sorted(frame["id"]) == ids

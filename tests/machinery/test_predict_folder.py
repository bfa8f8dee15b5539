"""predict_folder.py reads pictures as training does, and predicts a folder without this repository.

That it reads every file of the corpus alike is asked in test_corpus.py, for each file there.
"""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_corpus import jpeg, picture

from foldwise.data.images import fit_image, read_image, to_mode
from foldwise.data.orientation import oriented
from foldwise.export import predict_folder
from foldwise.export.predict_folder import Unusable, fit, read_picture

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

SCRIPT = Path(predict_folder.__file__)
# Nothing but numpy, Pillow and onnxruntime can be imported.
ALONE = """
import runpy, sys
for name in ("torch", "cv2", "pandas", "foldwise", "albumentations", "imagecodecs", "tifffile", "scipy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("how", ["stretch", "crop"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_resizing_is_opencvs(how, dtype):
    """Bit by bit for 8 bits: odd sizes, one pixel, whole factors, one side grows while the other shrinks."""
    rng = np.random.default_rng(0)
    for number in range(300):
        sides = rng.integers(1, 90, 4)
        size = sides[2:].tolist()
        if number % 3 == 0:
            sides[:2] = sides[2:] * rng.integers(1, 4, 2)
        image = rng.integers(0, 256, (sides[0], sides[1], rng.integers(1, 6)), np.uint8)
        image = image if dtype == "uint8" else image / np.float32(255)
        expected, found = fit_image(image, size, how), fit(image, size, how)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if dtype == "uint8" else 2e-5)


@pytest.mark.parametrize("mode", ["gray", "rgb"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_modes_are_ours(mode, dtype):
    for channels in (1, 2, 3, 4):
        image = np.dstack([picture(), picture()])[:, :, :channels].astype(dtype)
        expected = to_mode(image, mode, Path("a.png"))
        np.testing.assert_allclose(predict_folder.to_mode(image, mode), expected, atol=2e-5 * (dtype == np.float32))


def described(**changes) -> dict:
    samples = {
        "reader": {"_target_": "solution.samples:Samples", "mode": "stored"},
        "state": {},
        "fields": {"image": {"kind": "image", "ragged": False}},
        "exif": None,
        "fit": "stretch",
        "scales": {"image": 255.0},
        "channels": {"image": 3},
    }
    output = {"output": "probabilities", "name": "", "task": "multiclass", "kind": "rows", "columns": ["red", "green"]}
    values = {"schema": 1, "outputs": [output], "rule": "argmax", "thresholds": None, "size": [8, 6], "notes": []}
    inputs = [{"name": "image", "dtype": "uint8", "axes": [None, 3, 8, 6]}]
    return {**values, "samples": samples | changes.pop("samples", {}), "inputs": inputs, **changes}


@pytest.mark.parametrize("exif", [None, "ignore"])
def test_a_photo_is_read_as_training_reads_it(tmp_path, exif):
    """Turned or not, then resized; grey and clear pictures become RGB; a picture of 16 bits is not for a model of 8."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "turned.jpg", exif=turned)
    of_exif = described(samples={"exif": exif})
    with oriented(exif):
        expected = read_image(tmp_path / "turned.jpg")
    found, size = read_picture(tmp_path / "turned.jpg", of_exif)
    assert size == list(expected.shape[:2]) == ([40, 56] if exif else [56, 40])
    np.testing.assert_array_equal(found, fit_image(expected, [8, 6], "stretch").transpose(2, 0, 1))
    for mode in ("L", "LA", "RGBA"):
        Image.fromarray(picture()).convert(mode).save(tmp_path / f"{mode}.png")
        expected = to_mode(read_image(tmp_path / f"{mode}.png"), "rgb", tmp_path)
        found, _ = read_picture(tmp_path / f"{mode}.png", of_exif)
        np.testing.assert_array_equal(found, fit_image(expected, [8, 6], "stretch").transpose(2, 0, 1))
    deep = picture()[:, :, 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(Unusable, match="trained on 8"):
        read_picture(tmp_path / "deep.png", of_exif)
    float_input = [{"name": "image", "dtype": "float32", "axes": [None, 1, 40, 56]}]
    of_16 = described(
        samples={"scales": {"image": 65535.0}, "channels": {"image": 1}}, inputs=float_input, size=[40, 56]
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png", of_16)[0][0], deep / np.float32(65535))


def test_cut_off_files_are_refused(tmp_path):
    """As the project refuses them; what follows the end of a JPEG, as in a motion photo, does not matter."""
    path, rng, buffer = tmp_path / "a", np.random.default_rng(0), io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    for data in (jpeg(), jpeg(progressive=True), jpeg(restart_marker_rows=1), buffer.getvalue()):
        for place in rng.integers(0, len(data) - 30, 60):  # Pillow needs no checksum of a PNG's last chunk
            path.write_bytes(data[:place])
            with pytest.raises(Unusable, match="empty|damaged|cannot be decoded|truncated"):
                read_picture(path, described())
        path.write_bytes(data + b"\xff\xda" + rng.bytes(999))
        assert np.array_equal(predict_folder.decode(path.read_bytes(), True), read_image(path))


def write_model(folder: Path, about: dict, mean_of: tuple[int, ...] = (2, 3)) -> Path:
    """A folder as export.py writes it; the graph gives the means of the channels red and green, as shares of 255."""
    helper, types = onnx.helper, onnx.TensorProto
    height, width = about["size"]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=types.FLOAT),
        helper.make_node("Slice", ["float", "zero", "two", "one"], ["some"]),
        helper.make_node("Div", ["some", "white"], ["shares"]),
    ]
    name = about["outputs"][0]["output"]
    if mean_of:
        nodes.append(helper.make_node("ReduceMean", ["shares", "axes"], [name], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", ["shares"], [name]))
    constants = {"zero": [0], "two": [2], "one": [1], "axes": list(mean_of)}
    initial = [helper.make_tensor(key, types.INT64, [len(each)], each) for key, each in constants.items()]
    initial.append(helper.make_tensor("white", types.FLOAT, [], [255.0]))
    inputs = [helper.make_tensor_value_info("image", types.UINT8, ["n", 3, height, width])]
    outputs = [helper.make_tensor_value_info(name, types.FLOAT, ["n", 2, *([] if mean_of else [height, width])])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"foldwise": json.dumps(about)})
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "predict_folder.py").write_bytes(SCRIPT.read_bytes())
    return folder


def run(folder: Path, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", ALONE, folder / "predict_folder.py", *words]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_with_a_damaged_picture(tmp_path):
    """The others are predicted, in order, in batches that do not matter; nothing is overwritten."""
    model = write_model(tmp_path / "model", described())
    photos = tmp_path / "photos" / "inside"
    photos.mkdir(parents=True)
    for number in range(5):
        Image.fromarray(np.full((9, 9, 3), (number * 10, 30, 0), np.uint8)).save(photos / f"{number}.png")
    (photos / "2a.jpg").write_text("404")
    (photos / "notes.txt").touch()
    out = tmp_path / "p.csv"
    done = run(model, tmp_path / "photos", "--out", out, "--batch", 2, "--threads", 2)
    assert done.returncode == 1 and "2a.jpg is no picture" in done.stderr and "5 of 6 pictures predicted" in done.stdout
    rows = rows_of(out)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "2a.jpg", "3.png", "4.png"]
    assert [row["answer"] for row in rows] == ["green", "green", "green", "", "red; green", "red"]
    np.testing.assert_allclose([float(row["red"]) for row in rows if row["red"]], np.arange(5) * 10 / 255, rtol=1e-6)
    assert "no picture" in rows[3]["problem"] and not any(row["problem"] for row in rows if row["answer"])
    again = run(model, tmp_path / "photos", "--out", out)
    assert again.returncode == 2 and "exists already" in again.stderr
    good = run(model, photos / "1.png", photos / "4.png", "--out", tmp_path / "two.csv")
    assert good.returncode == 0 and [row["answer"] for row in rows_of(tmp_path / "two.csv")] == ["green", "red"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "p.csv", "photos", "two.csv"]
    assert "a table with a row for each picture" in run(model, "--help").stdout


def test_what_stops_it_is_a_sentence(tmp_path):
    model = write_model(tmp_path / "model", described())
    (tmp_path / "short.csv").write_text("age,image\n1\n")
    (tmp_path / "latin.csv").write_bytes(b"image\n\xff.png\n")
    (tmp_path / "file").touch()
    photo = tmp_path / "x.png"
    Image.new("RGB", (9, 9)).save(photo)
    cases = [
        ("none", "p.csv", "none does not exist"),
        ("short.csv", "p.csv", "has no image in row 1"),
        ("latin.csv", "p.csv", "is no table in UTF-8"),
        ("x.png", "file/p.csv", "Not a directory"),
    ]
    for path, out, words in cases:
        done = run(model, tmp_path / path, "--out", tmp_path / out)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, (path, done.stderr)
    (model / "model.onnx").write_bytes((model / "model.onnx").read_bytes()[:50])
    done = run(model, photo, "--out", tmp_path / "p.csv")
    assert done.returncode == 2 and "copy the whole folder again" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("task", ["segmentation", "segmentation_overlapping"])
def test_masks_have_the_size_of_the_pictures(tmp_path, task):
    output = {"output": "probabilities", "name": "", "task": task, "kind": "maps", "columns": ["a b", "c"]}
    model = write_model(tmp_path / "model", described(outputs=[output]), mean_of=())
    (tmp_path / "photos").mkdir()
    left = np.zeros((17, 23, 3), np.uint8)
    left[:, :12], left[:, 12:] = (200, 20, 0), (10, 150, 0)
    Image.fromarray(left).save(tmp_path / "photos" / "x.png")
    assert run(model, tmp_path / "photos", "--out", tmp_path / "p.csv").returncode == 0
    (row,) = rows_of(tmp_path / "p.csv")
    names = ["mask"] if task == "segmentation" else ["a b", "c"]
    masks = [np.array(Image.open(row[name])) for name in names]
    assert all(mask.shape == (17, 23) for mask in masks)
    right = np.arange(23) >= 12
    clear = np.abs(np.arange(23) - 11.5) > 3
    expected = [right] if task == "segmentation" else [~right * 255, right * 255]
    for mask, values in zip(masks, expected, strict=True):
        assert (mask[:, clear] == values[clear]).all()


def test_columns_of_a_table(tmp_path):
    """Numbers are standardised and flagged where empty, as `foldwise.data.units.Units` does; other names count as 0."""
    state = {"numbers": {"age": [40.0, 10.0], "size": [1.0, 2.0]}, "categories": {"site": ["left", "right"]}}
    about = described(samples={"state": state})
    read = predict_folder.read_columns({"age": "60", "size": "", "site": "right"}, about)
    assert read["numbers"].tolist() == [2, 0, 0, 1] and read["categories"].tolist() == [2]
    assert predict_folder.read_columns({"age": "0", "size": "1", "site": "?"}, about)["categories"].tolist() == [0]
    with pytest.raises(Unusable, match="not a number"):
        predict_folder.read_columns({"age": "old", "size": "1", "site": ""}, about)
    with pytest.raises(Unusable, match=r"also reads age, size, site: give a table"):
        predict_folder.list_rows([tmp_path], about)
    (tmp_path / "t.csv").write_text("image,age,size\na.png,1,2\n")
    with pytest.raises(Unusable, match="no column site"):
        predict_folder.list_rows([tmp_path / "t.csv"], about)
    (tmp_path / "t.csv").write_text("site,image,age,size\nleft,a.png,1,2\n")
    assert predict_folder.list_rows([tmp_path / "t.csv"], about)[0]["image"] == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    "samples, words",
    [
        ({"fit": "tiles"}, "in tiles"),
        ({"reader": {"_target_": "foldwise.data.samples:Samples", "crop": {"box": "x"}}}, "boxes in columns"),
        ({"fields": {"image": {"kind": "image", "ragged": True}}}, "several pictures"),
        ({"fields": {"image": {"kind": "image", "ragged": False}, "age": {"kind": "values", "ragged": False}}}, "age"),
    ],
)
def test_what_it_cannot_read_is_refused(tmp_path, samples, words):
    assert words in predict_folder.unsupported(described(samples=samples))[0]
    assert not predict_folder.unsupported(described())

"""Videos and DICOM series become images and a table, also over damage and kills."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from foldwise.errors import Refusal
from foldwise.unpacking.dicom import SUFFIXES as DICOM
from foldwise.unpacking.dicom import Dicom
from foldwise.unpacking.unpack import unpack
from foldwise.unpacking.video import SUFFIXES as VIDEO
from foldwise.unpacking.video import Video

ROOT = Path(__file__).parents[1]


def film(path: Path, levels: list[int], fps: int = 10, size: tuple[int, int] = (64, 48), codec: str = "mpeg4") -> None:
    """A video whose frames are each of one grey level."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, pixels, 1
        for level in levels:
            frame = np.full((size[1], size[0], 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def grey(path: Path) -> float:
    return float(cv2.imread(str(path)).mean())


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "table.csv")


def test_frames_are_taken_at_even_times_and_named_in_the_table(tmp_path):
    levels = list(range(20, 220, 5))  # 40 frames, 4 seconds
    film(tmp_path / "in/a/one.mp4", levels)
    film(tmp_path / "in/b.mp4", levels[:15], size=(128, 32))
    result = unpack(tmp_path / "in", tmp_path / "out", Video(fps=2, size=64), VIDEO, 2)
    frame = table(tmp_path / "out")
    assert (result.files, result.images, result.units, result.bad) == (2, 11, 2, {})
    assert frame["unit"].tolist() == ["a-one"] * 8 + ["b"] * 3 and frame["id"].is_unique
    assert frame["order"].tolist() == [*range(8), *range(3)]
    assert frame["file"].unique().tolist() == ["a/one.mp4", "b.mp4"]
    one = frame[frame["unit"] == "a-one"]
    assert one["time"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    seen = [grey(tmp_path / "out" / image) for image in one["image"]]
    np.testing.assert_allclose(seen, levels[::5], atol=3)
    assert one.iloc[0][["width", "height", "fps"]].tolist() == [64, 48, 10]
    assert one.iloc[0]["bytes"] == (tmp_path / "in/a/one.mp4").stat().st_size
    image = cv2.imread(str(tmp_path / "out" / frame["image"].iloc[-1]))
    assert image.shape == (16, 64, 3)  # 128 x 32, longest side 64


def test_a_maximum_of_frames_and_more_frames_than_there_are(tmp_path):
    film(tmp_path / "in/a.mp4", list(range(0, 200, 20)))
    unpack(tmp_path / "in", tmp_path / "few", Video(fps=5, most=3), VIDEO, 1)
    assert table(tmp_path / "few")["time"].tolist() == [0, 0.2, 0.4]
    unpack(tmp_path / "in", tmp_path / "all", Video(fps=1000), VIDEO, 1)
    assert len(table(tmp_path / "all")) == 10


def test_bad_files_are_listed_and_damage_costs_its_frames(tmp_path):
    film(tmp_path / "in/good.mp4", [50] * 20)
    film(tmp_path / "whole.mkv", list(range(0, 200, 10)), codec="mjpeg", size=(320, 240))
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "in/cut.mkv").write_bytes(data[: len(data) // 2])
    middle = len(data) // 2
    (tmp_path / "in/hurt.mkv").write_bytes(data[:middle] + bytes(400) + data[middle + 400 :])
    (tmp_path / "in/text.mp4").write_text("<html>not found</html>")
    (tmp_path / "in/empty.mp4").write_bytes(b"")
    result = unpack(tmp_path / "in", tmp_path / "out", Video(fps=10), VIDEO, 2)
    bad = pd.read_csv(tmp_path / "out/bad_files.csv")
    assert bad["file"].tolist() == ["empty.mp4", "text.mp4"] == sorted(result.bad)
    assert bad["problem"].str.startswith("it cannot be decoded").all()
    counts = table(tmp_path / "out").groupby("file").size()
    assert counts["good.mp4"] == 20 and 5 < counts["cut.mkv"] < 20 and counts["hurt.mkv"] > 15


def test_a_kill_is_resumed_to_the_same_bytes_and_other_settings_are_refused(tmp_path):
    for name in "abcd":
        film(tmp_path / f"in/{name}.mp4", [30, 60, 90])
    unpack(tmp_path / "in", tmp_path / "whole", Video(fps=10), VIDEO, 2)
    unpack(tmp_path / "in", tmp_path / "out", Video(fps=10), VIDEO, 1)
    (tmp_path / "out/rows/b.json").unlink()  # killed after the images of b
    (tmp_path / "out/rows/c.json").unlink()
    (tmp_path / "out/images/c/00001.jpg").write_bytes(b"half")
    (tmp_path / "out/table.csv").unlink()
    kept = (tmp_path / "out/images/a/00000.jpg").stat().st_mtime_ns
    unpack(tmp_path / "in", tmp_path / "out", Video(fps=10), VIDEO, 1)
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert all((tmp_path / "whole" / file).read_bytes() == (tmp_path / "out" / file).read_bytes() for file in files)
    assert (tmp_path / "out/images/a/00000.jpg").stat().st_mtime_ns == kept

    with pytest.raises(Refusal, match=r"other settings \(fps 10, now 5\)"):
        unpack(tmp_path / "in", tmp_path / "out", Video(fps=5), VIDEO, 1)
    film(tmp_path / "in/a.mp4", [30, 60, 90, 120, 150])
    with pytest.raises(Refusal, match=r"changed after they were unpacked, such as .*a\.mp4"):
        unpack(tmp_path / "in", tmp_path / "out", Video(fps=10), VIDEO, 1)


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    film(tmp_path / "in/a.mp4", [30])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(Refusal, match="choose another --out"):
        unpack(tmp_path / "in", tmp_path / "out", Video(), VIDEO, 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def slice_of(path: Path, values: np.ndarray, series: str = "1.2.3", position: float = 0.0, **tags) -> None:
    """A CT slice whose stored values are Hounsfield units + 1024."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{series}.{abs(hash(path.name)) % 10**8}"
    file.SeriesInstanceUID, file.PatientID, file.PatientName, file.Modality = series, "p7", "Doe^Jane", "CT"
    file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, position]
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.BitsAllocated, file.BitsStored, file.HighBit = 1, 16, 12, 11
    file.PixelRepresentation, file.PhotometricInterpretation = 0, "MONOCHROME2"
    file.RescaleSlope, file.RescaleIntercept, file.PixelSpacing = 1, -1024, [0.5, 0.7]
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = (values + 1024).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


VALUES = np.array([[-1000, -160, 40], [140, 240, 1000]])


def test_slices_are_ordered_by_position_and_windowed(tmp_path):
    for name, position in (("x", 5.0), ("y", -5.0), ("z", 0.0)):
        slice_of(tmp_path / f"in/{name}.dcm", VALUES + round(position), position=position)
    slice_of(tmp_path / "in/other", VALUES, series="1.2.9")
    unpack(tmp_path / "in", tmp_path / "out", Dicom(((40.0, 400.0),)), DICOM, 2)
    frame = pd.read_csv(tmp_path / "out/table.csv", dtype={"unit": str})
    assert frame["file"].tolist() == ["y.dcm", "z.dcm", "x.dcm", "other"]
    assert frame["order"].tolist() == [0, 1, 2, 0] and frame["unit"].tolist() == ["1.2.3"] * 3 + ["1.2.9"]
    assert frame["group"].unique() == ["p7"] and "Doe" not in (tmp_path / "out/table.csv").read_text()
    assert frame.loc[0, ["spacing_y", "spacing_x"]].tolist() == [0.5, 0.7]
    image = cv2.imread(str(tmp_path / "out" / frame["image"].iloc[1]), cv2.IMREAD_UNCHANGED)
    expected = (np.clip((VALUES - 40) / 400 + 0.5, 0, 1) * 255).round()
    assert image.dtype == np.uint8 and (image == expected).all()


def test_three_windows_are_rgb_and_dark_is_inverted(tmp_path):
    slice_of(tmp_path / "in/a.dcm", VALUES, PhotometricInterpretation="MONOCHROME1")
    windows = ((40.0, 400.0), (-600.0, 1500.0), (300.0, 1500.0))
    unpack(tmp_path / "in", tmp_path / "out", Dicom(windows, 16), DICOM, 1)
    image = cv2.imread(str(tmp_path / "out/images/a/00000.png"), cv2.IMREAD_UNCHANGED)
    for channel, (centre, width) in zip((2, 1, 0), windows, strict=True):
        expected = ((1 - np.clip((VALUES - centre) / width + 0.5, 0, 1)) * 65535).round()
        assert (image[:, :, channel] == expected).all()


def test_without_a_window_the_file_says_it_or_the_whole_range_is_shown(tmp_path):
    slice_of(tmp_path / "in/a.dcm", VALUES)
    slice_of(tmp_path / "in/b.dcm", VALUES, WindowCenter=[40, 60], WindowWidth=[400, 10])
    unpack(tmp_path / "in", tmp_path / "out", Dicom(), DICOM, 1)
    for name, (low, high) in {"a": (-1000, 1000), "b": (-160, 240)}.items():
        image = cv2.imread(str(tmp_path / f"out/images/{name}/00000.png"), cv2.IMREAD_UNCHANGED)
        assert (image == (np.clip((VALUES - low) / (high - low), 0, 1) * 255).round()).all()


def test_the_files_of_pydicom_are_read_or_listed(tmp_path):
    examples = Path(pytest.importorskip("pydicom").__file__).parent / "data/test_files"
    result = unpack(examples, tmp_path / "out", Dicom(), DICOM, 2)
    assert result.images >= 20
    assert all(problem.startswith("it") for problem in result.bad.values()), result.bad
    frame = table(tmp_path / "out")
    shapes = [cv2.imread(str(tmp_path / "out" / image), cv2.IMREAD_UNCHANGED).shape[:2] for image in frame["image"]]
    assert shapes == list(zip(frame["height"], frame["width"], strict=True))
    if "examples_rgb_color.dcm" in set(frame["file"]):
        pydicom_rgb = __import__("pydicom").dcmread(examples / "examples_rgb_color.dcm").pixel_array
        image = frame.loc[frame["file"] == "examples_rgb_color.dcm", "image"].iloc[0]
        assert (cv2.imread(str(tmp_path / "out" / image))[:, :, ::-1] == pydicom_rgb).all()


def test_the_command_prints_what_it_wrote(tmp_path):
    film(tmp_path / "in/a.mp4", [30] * 10)
    (tmp_path / "in/b.mp4").write_bytes(b"nothing")
    command = [sys.executable, "tools/unpack.py", "video", tmp_path / "in", "--out", tmp_path / "out", "--fps", "5"]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 of 2 files: 5 images, 1 units" in done.stdout and "bad: b.mp4: it cannot be decoded" in done.stdout
    wrong = subprocess.run([*map(str, command[:-1]), "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "not a number above 0" in wrong.stderr

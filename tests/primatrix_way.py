"""The whole way of examples/primatrix, by its commands, with small networks in place of the large ones.

As a script, in the checkout, on road scenes cut into clips of ten frames; prints seconds and log losses:

    python tests/primatrix_way.py CAMVID WEIGHTS REPOSITORY
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import run_command

Run = Callable[..., str]
# What `tf_efficientnet_lite` stands for: features of the four networks, from their last stages.
NETS = {"resnet152": "lite0", "inception_v4": "lite1", "inception_resnet_v2": "lite2", "nasnetalarge": "lite0"}
MEMBERS = {
    **{f"attention-{net}": ["attention", f"data.features=[{net}]"] for net in list(NETS)[:3]},
    **{f"recurrent-{net}": ["recurrent", f"data.features=[{net}]"] for net in list(NETS)[:3]},
    **{name: [name] for name in ("nasnet", "concat", "concat_blank")},
}


@dataclass(frozen=True)
class Clip:
    """Frames (N, H, W, 3) uint8 in RGB, the labels that hold, and the camera."""

    frames: np.ndarray
    labels: frozenset[str]
    camera: str
    test: bool = False


def write_clips(root: Path, clips: Mapping[str, Clip], names: Sequence[str]) -> None:
    """Write what a competitor downloads: videos, their micro version, labels, and the submission format."""
    import cv2

    answers = [
        {"filename": f"{name}.mp4", **{label: int(label in clip.labels) for label in names}, "camera": clip.camera}
        for name, clip in clips.items()
    ]
    table, test = pd.DataFrame(answers), np.array([clip.test for clip in clips.values()])
    (root / "data/primatrix").mkdir(parents=True)
    table[~test].to_csv(root / "data/primatrix/train_labels.csv", index=False)
    table[test].drop(columns="camera").to_csv(root / "truth.csv", index=False)
    sample = table[test].drop(columns="camera").assign(**dict.fromkeys(names, 0.5))
    sample.to_csv(root / "data/primatrix/submission_format.csv", index=False)
    for folder in ("clips", "micro"):
        (root / "downloads" / folder).mkdir(parents=True)
    for name, clip in clips.items():
        small = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in clip.frames[::2]])
        write_video(root / f"downloads/clips/{name}.mp4", clip.frames, 3)
        write_video(root / f"downloads/micro/{name}.mp4", small, 2)


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in [*frames, None]:
            picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))


def timed(repository: Path) -> Run:
    """Run commands of the repository, and print their seconds."""

    def run(*words: str) -> str:
        start = time.monotonic()
        printed = run_command([sys.executable, *map(str, words)], repository, timeout=1200)
        print(f"{time.monotonic() - start:6.1f} s  {' '.join(map(str, words))}"[:150], flush=True)
        return printed

    return run


def unpack(run: Run, settings: Sequence[str], size: int, sets: Sequence[str] = ("primatrix", "primatrix_331")) -> None:
    """From the videos to prepared tables of each data set."""
    folders = {"primatrix": ("frames", 3, 45), "primatrix_331": ("frames331", 2, 30)}
    for folder, fps, most in [("micro", 2, 1), *(folders[name] for name in sets)]:
        source = "downloads/micro" if folder == "micro" else "downloads/clips"
        limits = ["--fps", fps, "--most", most, "--size", size, "--processes", 2]
        run("tools/unpack.py", "video", source, "--out", f"data/primatrix/{folder}", *limits)
    for name in sets:
        folder, experiment = folders[name][0], "attention" if name == "primatrix" else "nasnet"
        tables = ["--labels", "data/primatrix/train_labels.csv", "--test", "data/primatrix/submission_format.csv"]
        run("tools/primatrix_tables.py", f"data/primatrix/{folder}", "--micro", "data/primatrix/micro", *tables)
        chosen = [f"experiment=primatrix/{experiment}", "data.features=null", *settings]
        run("prepare.py", "--data", name, *chosen)


def features(run: Run, settings: Sequence[str], nets: Mapping[str, Sequence[str]]) -> None:
    """Features of each network, which `nets` overrides."""
    for name, network in nets.items():
        data = ["data=primatrix_331"] if name == "nasnetalarge" else []
        out = ["--stages", "2,3,4", "--out", f"features/{name}", "--workers", 0]
        run("tools/features.py", "experiment=primatrix/features", *data, *network, *settings, *out)


def train(run: Run, settings: Sequence[str], members: Sequence[str]) -> None:
    for name in members:
        experiment, *chosen = MEMBERS[name]
        classes = [word for word in settings if not word.startswith("data.classes") or name != "concat_blank"]
        words = [f"experiment=primatrix/{experiment}", *chosen, f"experiment_name=primatrix/{name}"]
        run("train.py", *words, *classes)


def runs_of(repository: Path, names: Sequence[str], folder: str = "primatrix") -> Iterator[str]:
    for name in names:
        (run,) = repository.glob(f"runs/{folder}/{name}-????????")
        yield str(run.relative_to(repository))


def log_loss(submission: Path, truth: Path) -> float:
    """Mean log loss of the labels."""
    answer, right = (pd.read_csv(path).set_index("filename").sort_index() for path in (submission, truth))
    p = answer[right.columns].to_numpy(float).clip(1e-15, 1 - 1e-15)
    return float(-np.log(np.where(right.to_numpy() == 1, p, 1 - p)).mean())


def prior_loss(root: Path) -> float:
    """The log loss of the shares of the labels in training."""
    labels, truth = pd.read_csv(root / "data/primatrix/train_labels.csv"), pd.read_csv(root / "truth.csv")
    names = [name for name in truth if name != "filename"]
    truth.assign(**labels[names].mean()).to_csv(root / "prior.csv", index=False)
    return log_loss(root / "prior.csv", root / "truth.csv")


def camvid_clips(root: Path) -> dict[str, Clip]:
    """46 clips of ten consecutive frames, every fifth to test; classes of at least 1 % of a frame are labels.

    A clip without people in its middle frame is blank.
    """
    from PIL import Image

    table = pd.read_csv(root / "train.csv").sort_values("id")
    clips: dict[str, Clip] = {}
    for block, rows in table.groupby("block"):
        for start in range(0, len(rows) - 9, 10):
            part, test = rows[start : start + 10], len(clips) % 5 == 4
            frames = np.stack([np.array(Image.open(root / path).convert("RGB")) for path in part["image"]])
            masks = [np.array(Image.open(root / path)) for path in part["mask"]]
            shares = np.stack([np.bincount(mask.ravel(), minlength=12)[:11] / mask.size for mask in masks])
            labels = {NAMES[number] for number in np.flatnonzero(shares.max(0) >= 0.01)}
            labels |= set() if shares[5, 9:].sum() > 0.002 else {"blank"}
            clips[f"{block}-{start // 10}"] = Clip(frames, frozenset(labels), str(block), test)
    return clips


NAMES = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Bicyclist"]


LITE = {net: f"tf_efficientnet_{lite}" for net, lite in NETS.items()}
SMALL = [
    *("data.image_size=96", "data.folds=3", f"data.classes=[{','.join([*NAMES, 'blank'])}]"),
    *("data.columns.group=camera", "data.workers=0", "trainer=cpu", "threads=1", "logger=none", "preflight=false"),
]
SAMPLE = ["--decision", "clip", "--sample", "data/primatrix/frames/sample.csv", "--out"]


def third_place(run: Run, repository: Path, weights: Path) -> None:
    unpack(run, SMALL, 128)
    chosen = {net: [f"model.name={name}", f"model.weights={weights / name}.safetensors"] for net, name in LITE.items()}
    features(run, SMALL, chosen)
    train(run, [*SMALL, "batch_size=8", "model.hidden=[64,64]"], list(MEMBERS))
    runs = dict(zip(MEMBERS, runs_of(repository, list(MEMBERS)), strict=True))
    for group in ([name for name in MEMBERS if "-" in name or name == "concat"], ["nasnet"], ["concat_blank"]):
        run("predict.py", *(runs[name] for name in group), "--features", "--workers", 0)
    blank = runs.pop("concat_blank")
    stack = ["--methods", "network", "--use", "network", "--out", "ensembles/primatrix"]
    print(run("ensemble.py", *runs.values(), "--features", blank, *stack))
    print(run("submit.py", "make", "ensembles/primatrix", *SAMPLE, "third.csv"))


def first_place(run: Run, repository: Path, weights: Path) -> None:
    run("prepare.py", "--data", "primatrix", "experiment=primatrix/frames", *SMALL)
    name = LITE["resnet152"]
    network = [f"model.name={name}", f"model.weights={weights / name}.safetensors", "batch_size=16"]
    run("train.py", "experiment=primatrix/frames", "experiment_name=first/lite0", *network, *SMALL)
    (source,) = runs_of(repository, ["lite0"], "first")
    run("predict.py", source, "--workers", 0)
    units = ["--methods", "boosting", "network", "--use", "network", "--unit-inputs", "quantiles:8"]
    print(run("ensemble.py", source, *units, "--out", "ensembles/first"))
    print(run("submit.py", "make", "ensembles/first", *SAMPLE, "first.csv"))


def main() -> None:
    camvid, weights, repository = (Path(word).resolve() for word in sys.argv[1:])
    run, start, names = timed(repository), time.monotonic(), [*NAMES, "blank"]
    clips = camvid_clips(camvid)
    write_clips(repository, clips, names)
    print(f"{len(clips)} clips; {pd.read_csv(repository / 'truth.csv')[names].mean().round(2).to_dict()}")
    for way in (third_place, first_place):
        way(run, repository, weights)
    print(f"{time.monotonic() - start:.0f} s in all; log loss on the test clips:")
    print(f"  the shares of the labels in training  {prior_loss(repository):.4f}")
    for name in ("third", "first"):
        print(f"  the {name} place's way  {log_loss(repository / f'{name}.csv', repository / 'truth.csv'):.4f}")


if __name__ == "__main__":
    main()

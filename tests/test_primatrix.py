"""The overlay of Pri-matrix: a few made clips from videos to a submission, by the commands of its document."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Render, Run, run_command
from primatrix_way import Clip, features, log_loss, prior_loss, runs_of, train, unpack, write_clips

LABELS = ["blank", "hog", "wild dog"]
SMALL = [
    *("data.image_size=32", "data.folds=2", "data.classes=[blank,hog,wild dog]", "data.workers=0", "trainer=cpu"),
    *("threads=1", "logger=none", "preflight=false"),
]


def made_clips() -> dict[str, Clip]:
    """Eight clips to train and four to test, of three to five frames; the colour of a square is the label."""
    rng, clips = np.random.default_rng(0), {}
    for number in range(12):
        frames = rng.integers(0, 60, (3 + number % 3, 48, 64, 3)).astype(np.uint8)
        label = number % 3
        for frame in frames[1:]:  # an animal walks in
            frame[8:40, 16:48, label] = 230
        test = number >= 8
        clips[f"{'test' if test else 'clip'}{number}"] = Clip(
            frames, frozenset([LABELS[label]]), f"c{number % 4}", test
        )
    return clips


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = render(tmp_path_factory.mktemp("primatrix"), task="multilabel", folds="2")
    shutil.copytree(ROOT / "examples" / "primatrix", folder, dirs_exist_ok=True)
    return folder


def test_from_videos_to_a_submission(repository: Path, run_forked: Run) -> None:
    pytest.importorskip("av")
    import timm
    from safetensors.torch import save_file

    (repository / "weights").mkdir()
    save_file(timm.create_model("test_resnet").state_dict(), repository / "weights/tiny.safetensors")
    write_clips(repository, made_clips(), LABELS)
    (repository / "downloads/clips/test11.mp4").write_bytes(b"broken")

    def run(*words: object) -> str:
        return run_forked([str(word) for word in words], repository)

    unpack(run, SMALL, 64, ["primatrix"])
    tables = {
        name: pd.read_csv(repository / f"data/primatrix/frames/{name}.csv") for name in ("train", "test", "broken")
    }
    assert tables["train"].groupby("clip").size().tolist() == [3, 4, 5, 3, 4, 5, 3, 4]
    assert tables["test"]["clip"].unique().tolist() == ["test10", "test8", "test9"]
    assert tables["broken"].to_dict("records") == [
        {"filename": "test11.mp4", "blank": 0.375, "hog": 0.375, "wild dog": 0.25}
    ]
    assert tables["train"].drop_duplicates("clip")["bytes_z"].notna().all()
    features(run, SMALL, {"resnet152": ["model.name=test_resnet", "model.weights=weights/tiny.safetensors"]})
    short = [*SMALL, "epochs=2", "phases.train.share=1", "phases.relabel.share=1", "batch_size=4", "model.hidden=[8]"]
    short += ["data.features=[resnet152]"]
    members = ["attention-resnet152", "concat_blank"]
    train(run, short, members)
    member, blank = runs_of(repository, members)
    for each in (member, blank):
        run("predict.py", each, "--workers", 0)
    stack = ["--features", blank, "--methods", "network", "--use", "network", "--out", "ensembles/primatrix"]
    run("ensemble.py", member, *stack)
    sample = ["--sample", "data/primatrix/frames/sample.csv", "--out", "answer.csv"]
    run("submit.py", "make", "ensembles/primatrix", "--decision", "clip", *sample)
    answer = pd.concat([pd.read_csv(repository / "answer.csv"), tables["broken"]])
    answer.to_csv(repository / "answer.csv", index=False)
    assert 0 < log_loss(repository / "answer.csv", repository / "truth.csv") < 5 * prior_loss(repository)


MEMBERS = """
import json, torch
from foldwise.config import compose_config, resolve_config
from foldwise.models.pooled import PooledNetwork
from foldwise.training.build import TRAINING_ONLY

WIDTHS = {"resnet152": 3840, "inception_v4": 2944, "inception_resnet_v2": 3488, "nasnetalarge": 8064}
found = {}
for name in ("attention", "recurrent", "nasnet", "concat", "concat_blank"):
    config = resolve_config(compose_config([f"experiment=primatrix/{name}"]))
    settings = {key: value for key, value in config["model"].items() if key not in TRAINING_ONLY and value is not None}
    encoders = [{"widths": [WIDTHS[each]]} for each in config["data"]["features"]]
    with torch.device("meta"):
        net = PooledNetwork({"image": 3}, {"logits": len(config["data"]["classes"])}, encoders=encoders, weights=[],
                            **settings)
    dense = [layer for layer in [*net.hidden, net.classifier] if isinstance(layer, torch.nn.Linear)]
    batch, share = config["batch_size"], config["data"]["pseudo_share"]
    epochs = [phase["epochs"] for phase in config["phases"].values()]
    widths = [dense[0].in_features, *(layer.out_features for layer in dense)]
    found[name] = [widths, batch, round(share * batch), epochs]
for name in ("features", "frames"):
    assert resolve_config(compose_config([f"experiment=primatrix/{name}"]))["data"]["name"] == "primatrix"
print(json.dumps(found))
"""


def test_the_members_have_the_published_sizes(repository: Path) -> None:
    printed = run_command([sys.executable, "-c", MEMBERS], repository)
    assert json.loads(printed.splitlines()[-1]) == {
        "attention": [[2 * 3840 + 128, 1024, 1024, 24], 64, 20, [15, 5]],
        "recurrent": [[2 * 3840 + 2 * 512 + 128, 1024, 1024, 24], 64, 20, [15, 5]],
        "nasnet": [[2 * 8064 + 128, 1024, 1024, 24], 48, 12, [15, 5]],
        "concat": [[2 * (3840 + 3488 + 2944) + 128, 1024, 1024, 24], 48, 16, [15, 5]],
        "concat_blank": [[2 * (3840 + 3488 + 2944) + 128, 1024, 1024, 1], 48, 16, [15, 5]],
    }

"""Mistakes in a configuration or on the command line: a sentence with the setting's name, in no time."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_config

from foldwise.checks import check_config
from foldwise.config import check_overrides, compose_config
from foldwise.errors import Refusal
from foldwise.settings import list_choices

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("epochz=1", "there is no setting 'epochz'; did you mean epochs?"),
        ("optimizr=sgd", "there is no setting 'optimizr'; did you mean optimizer?"),
        ("optimizer.lrr=1", "there is no setting 'optimizer.lrr'; did you mean optimizer.lr?"),
        ("augmentation.mixup=0.4", "there is no setting 'augmentation.mixup'; did you mean mixing.mixup?"),
        ("lr=1", "there is no setting 'lr'; did you mean optimizer.lr?"),
        ("qqqqq=1", "there is no setting 'qqqqq': python train.py --help lists all"),
        (
            "experiment=basline",
            "there is no experiment=basline; did you mean baseline? (experiment is one of all_data, ",
        ),
        (
            "experiment=amazon/alba",
            "there is no experiment=amazon/alba; did you mean amazon/albu? (experiment is one of",
        ),
        ("model=qqqqq", "there is no model=qqqqq (model is one of convnext, "),
        ("+epochs=1", "the setting 'epochs' already exists: leave out the +"),
        ("outputs={age: {}}", "outputs has no such keys: write +outputs=... to add them"),
        ("fold=[1", "'fold=[1' is not an override: write key=value"),
        ("baseline", "'baseline' is not an override: write key=value"),
    ],
)
def test_an_override_that_does_not_compose_is_named_with_what_may_have_been_meant(override: str, sentence: str):
    with pytest.raises(Refusal) as error:
        check_overrides(["seed=1", override])
    assert str(error.value).startswith(sentence)


def test_a_configuration_from_before_a_group_is_refused(data: Path):
    config = tiny_config(data, "multiclass")
    del config["mixing"]
    with pytest.raises(Refusal, match=r"has no mixing: add `- mixing: <choice>` to the defaults"):
        check_config(config)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+epochz=1", "there is no setting 'epochz'; did you mean epochs?"),
        ("+data.samplng=1", "there is no setting 'data.samplng'; did you mean data.sampling?"),
        ("+scheduler.flor=1", "there is no setting 'scheduler.flor'; did you mean scheduler.floor?"),
        ("scheduler.warmup=abc", "scheduler.warmup is 'abc'; it must be a number"),
        (
            "scheduler._target_=foldwise.schedule.schedulers.Cosin",
            "scheduler._target_: foldwise.schedule.schedulers.Cosin: there is no Cosin in foldwise.schedule",
        ),
        ("+augmentation.mixup=0.4", "augmentation has mixup; its only key is transforms: for mixup and CutMix choose"),
        ("optimizer.lr=abc", "optimizer.lr is 'abc'; it must be a number above 0"),
        ("optimizer.lr=true", "optimizer.lr is True; it must be a number above 0"),
        ("batch_size=0", "batch_size is 0; it must be a whole number from 1"),
        ("epochs=1.5", "epochs is 1.5; it must be a whole number from 1"),
        ("data.sampling=balancd", "data.sampling is 'balancd'; it must be one of shuffle, balanced"),
        ("model.pretrained=maybe", "model.pretrained is 'maybe'; it must be true or false"),
        ("data.image_size=[32,0]", "data.image_size is [32, 0]; it must be a whole number above 0, or [height,width]"),
        ("phases.train.trainable=tail", "phases.train.trainable is 'tail'; it must be all, head, or last1"),
        ("data.root=nowhere", "data.root is nowhere, and there is no such folder: put the data there, or correct"),
        ("model.weights=gone.safetensors", "there is no weight file gone.safetensors: correct model.weights"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(override: str, sentence: str, data: Path):
    check_config(tiny_config(data, "multiclass"))
    with pytest.raises(Refusal) as error:
        check_config(tiny_config(data, "multiclass", override))
    assert str(error.value).startswith(sentence)


def test_all_mistakes_are_listed_at_once(data: Path):
    wrong = ["+seeds=1", "batch_size=x", "threads=0", "loss=dice", "data.table=gone.csv"]
    with pytest.raises(Refusal) as error:
        check_config(tiny_config(data, "multiclass", *wrong))
    assert len(str(error.value).splitlines()) == len(wrong)


@pytest.mark.parametrize("other", ["phases=cycles epochs=3", "phases=best_restarts epochs=3", "top_k=2"])
def test_snapshots_of_raw_weights_are_refused_beside_an_ema(other: str, data: Path):
    check_config(tiny_config(data, "multiclass", *other.split()))
    with pytest.raises(Refusal, match="^ema and .* exclude each other: set ema=null"):
        check_config(tiny_config(data, "multiclass", *other.split(), "ema=0.9"))


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression", "segmentation"])
@pytest.mark.parametrize("experiment", [name for name in list_choices("experiment") if "/" not in name])
def test_no_experiment_is_refused_for_its_settings(experiment: str, task: str, data: Path):
    try:
        check_config(tiny_config(data, task, f"experiment={experiment}"))
    except Refusal as error:
        lines = str(error).splitlines()
        assert all("and the task is" in line or line.startswith("data.masks=overlapping is for") for line in lines)


def test_the_command_ends_with_2_before_torch_is_imported(tmp_path: Path, command):
    """Mistakes that Hydra would meet, and those that it would not."""
    try:
        compose_config([])
    except Refusal:
        pytest.skip("configs/project.yaml is a template here")
    sentence = "error: there is no setting 'epochz'; did you mean epochs?\n"
    assert command("train.py", "epochz=1") == (2, "", sentence)
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import foldwise.command\n"  # asks whether torch is installed
        "sys.modules['torch'] = None\n"  # importing it is an error, also in the processes of folds
        "sys.argv = ['train.py', 'experiment=baseline', '+epochz=1']\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]

"""The examples: overlays of at most three Python files and 150 lines that train and predict without an edit of the
machinery."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Render, Run, run_command

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in ("amazon", "primatrix"))
# Of each example, the experiments to try, with what their data needs.
TRIED: dict[str, list[list[str]]] = {
    "auxiliary": [["auxiliary"]],
    "clips": [["clips"]],
    "dicom": [["dicom", "data.columns.image=dicom", "samples.windows=[[0,400],[40,80]]"]],
    "hard_examples": [["hard_examples"]],
    "metadata": [["metadata"]],
    "noisy_labels": [["noisy_labels", "module.start=0"]],
    "own_metrics": [
        ["region_accuracy"],
        ["thing_f1", "task=segmentation", "metric.thing=1", "data.classes=[background,thing]"],
    ],
    "slices": [["slices"], ["slices", "samples._target_=solution.slices.SlicesByName"]],
    "sound": [["sound", "data.columns.image=sound", "samples.seconds=0.25"]],
    "teacher": [],  # needs a model of another run, see below
    "tiles": [["tiles", "samples.side=16", "samples.most=4"]],
    "views": [["views"], ["views", "model.pool=mean"]],
}


def render_examples(render: Render, folder: Path, data: str) -> Path:
    """A rendering with all overlays, and their data in its folder `data`."""
    repository = render(folder, task="multiclass", folds="2")
    for name in NAMES:
        shutil.copytree(EXAMPLES / name, repository, dirs_exist_ok=True)
    run_command([sys.executable, str(ROOT / "tests" / "example_data.py"), data], repository)
    return repository


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_examples(render, tmp_path_factory.mktemp("examples"), "made")


def test_examples_are_small_and_all_are_tried() -> None:
    assert set(TRIED) == set(NAMES) and len(NAMES) == 12
    listed = (EXAMPLES / "README.md").read_text()
    for name in NAMES:
        files = list((EXAMPLES / name).rglob("*.py"))
        lines = sum(len(path.read_text().splitlines()) for path in files)
        assert len(files) <= 3 and lines <= 150, f"{name}: {len(files)} files, {lines} lines"
        assert all(path.relative_to(EXAMPLES / name).parts[0] == "solution" for path in files)
        assert f"| `{name}` |" in listed


def test_each_trains_two_steps_and_predicts(repository: Path, run_forked: Run) -> None:
    words: list[str] = []
    count = 0
    for experiments in TRIED.values():
        for number, (experiment, *overrides) in enumerate(experiments):
            if experiment == "dicom" and importlib.util.find_spec("pydicom") is None:
                continue
            prepared = [f"data.prepared=made/prepared-{experiment}-{number}"]
            words += [*(["--"] if words else []), experiment, *overrides, *prepared]
            count += 1
    script = str(ROOT / "tests" / "try_example.py")
    printed = run_forked([script, "made", *words], repository)
    predicted = [line for line in printed.splitlines() if line.endswith(" predicted")]
    assert len(predicted) == count, printed


def test_a_teacher_from_another_run(repository: Path, run_forked: Run) -> None:
    script = str(ROOT / "tests" / "try_example.py")
    run_forked([script, "made", "baseline", "epochs=1", "fold=full"], repository)
    (model,) = repository.glob("runs/baseline-*/full/model")
    teacher = f"module.teacher={model.relative_to(repository)}"
    assert "predicted" in run_forked([script, "made", "teacher", teacher], repository)

"""The tests that a rendering brings pass on the sample of each task and on the examples, and find planted bugs."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from conftest import Render, run_command
from test_examples import TRIED, render_examples

PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


# Those of multiclass pass in test_install.py.
@pytest.mark.parametrize("task", ["multilabel", "regression", "segmentation"])
def test_they_pass_for_each_task(task: str, render: Render, tmp_path: Path) -> None:
    printed = run_command(PYTEST, render(tmp_path, task=task))
    assert re.search(r"\d+ passed", printed)


@pytest.fixture(scope="module")
def repository(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_examples(render, tmp_path_factory.mktemp("examples"), "data/competition")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices", [choices for all_choices in TRIED.values() for choices in all_choices], ids=" ".join
)
def test_they_pass_for_each_example(choices: list[str], repository: Path) -> None:
    if choices[0] == "dicom" and importlib.util.find_spec("pydicom") is None:
        pytest.skip("needs pydicom")
    data = ["data.image_size=32", "data.columns.group=series"]
    printed = run_command(
        [*PYTEST, "--choices", " ".join([f"experiment={choices[0]}", *choices[1:], *data])], repository
    )
    assert re.search(r"\d+ passed", printed)


READ = "self.read_image(rows, item.rows[0], rng)"
LOSS, NET = 'self.loss(outputs["logits"], batch["target"], batch["weight"])', '{"logits": logits,'
RETURN, HOOK = f"        return {NET}", "    def losses(self"
DIFFERENCE = "np.abs(solution - submission.loc[solution.index])"
# By what breaks: the file, its text, and what takes its place.
BUGS = {
    "channels are swapped": ("samples", READ, f"np.ascontiguousarray({READ}[:, :, ::-1])"),
    "another row is read": ("samples", READ, READ.replace("item.rows[0]", "0")),
    "items count rows otherwise": ("samples", "Item(id, (row,))", "Item(id, (len(rows) - 1 - row,))"),
    "a file is not declared": ("samples", "[rows.path(row) for row in item.rows]", "[rows.path(0)]"),
    "training reads darker images": ("samples", READ, f"{READ} // (1 if rng is None else 2)"),
    "what is read depends on targets": ("samples", READ, f"{READ} // (2 if rows.targets else 1)"),
    "random numbers without rng": ("samples", READ, f"np.roll({READ}, np.random.randint(4), 0)"),
    "the table at hand is used": ("samples", READ, f"{READ} // (1 + len(rows) % 3)"),
    "a mask's image is flipped": ("samples", READ, f"np.ascontiguousarray({READ}[:, ::-1])"),
    "a mask's image is shifted": ("samples", READ, f"np.roll({READ}, 3, 1)"),
    "the loss has the wrong sign": ("module", LOSS, f"-{LOSS}"),
    "the loss forgets the weights": ("module", LOSS, LOSS.replace('batch["weight"]', 'batch["weight"] * 0 + 1')),
    "targets of other samples": ("module", LOSS, LOSS.replace('["target"]', '["target"].roll(1, 0)')),
    "no gradient": ("module", LOSS, LOSS.replace('["logits"]', '["logits"].detach()')),
    "activated twice": ("module", LOSS, LOSS.replace('["logits"]', '["logits"].softmax(1)')),
    "no loss in validation": ("module", LOSS, f"{LOSS} * self.training"),
    "phases are not applied": ("module", HOOK, f"    def on_train_epoch_start(self):\n        pass\n\n{HOOK}"),
    "steps are not seeded": ("module", HOOK, f"    def on_train_batch_start(self, *_):\n        pass\n\n{HOOK}"),
    "batch norm in training mode": ("networks", RETURN, f"        self.net.train()\n{RETURN}"),
    "a mean over the batch": ("networks", NET, '{"logits": logits - logits.mean(0),'),
    "another forward in eval mode": ("networks", NET, '{"logits": logits * (1 if self.training else -1),'),
    "not saved": (
        "networks", RETURN,
        "        self.seen = getattr(self, 'seen', 0) + 0.05\n        return {\"logits\": logits * (1 + self.seen),",
    ),
    "a score that is a loss": ("metric", "float(1 - ", "float("),
    "rows are left out": ("metric", DIFFERENCE, f"{DIFFERENCE}[: len(solution) * 2 // 3]"),
    "tables line by line": (
        "metric", DIFFERENCE, "np.abs(solution.reset_index(drop=True) - submission.reset_index(drop=True))"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def repositories(render: Render, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: render(tmp_path_factory.mktemp(task), task=task) for task in ("multiclass", "segmentation")}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_they_find_a_bug(bug: str, repositories: dict[str, Path]) -> None:
    name, old, new = BUGS[bug]
    repository = repositories["segmentation" if "mask" in bug else "multiclass"]
    path = repository / "solution" / f"{name}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(AssertionError, match=r"(FAILED|ERROR) tests/"):
        run_command([*PYTEST, "-x"], repository)
    path.write_text(text)

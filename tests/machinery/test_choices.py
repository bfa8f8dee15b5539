"""The search path of choices: the owner's file before the library's, in Hydra and without; what --help lists."""

import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from foldwise.errors import Refusal
from foldwise.settings import LIBRARY, OWNER, find_choice, first_comment, list_choices, list_groups

ROOT = Path(__file__).parents[1]


def run(folder: Path, code: str) -> str:
    """What a program prints that is started in `folder`, with the package on its path."""
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_owner_has_few_files_and_the_library_the_rest():
    assert (
        5
        <= len(
            [path for path in OWNER.rglob("*.yaml") if not re.search("amazon|primatrix", path.parent.name + path.name)]
        )
        <= 12
    )
    assert set(list_groups()) >= {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert find_choice("data", "competition").is_relative_to(OWNER)
    assert find_choice("tta", "d4") == LIBRARY / "tta" / "d4.yaml"
    assert "amazon/albu" in list_choices("experiment")
    with pytest.raises(Refusal, match=r"there is no tta=flip; did you mean flips\? \(tta is one of d4, "):
        find_choice("tta", "flip")


def test_an_owners_file_replaces_the_librarys(tmp_path: Path):
    """For `find_choice`, for Hydra, and for a choice that a phase names."""
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (configs / "project.yaml").write_text("defaults: [{task: multiclass}, {metric: accuracy}, {logger: csv}]\n")
    for group, choice, old, new in (("optimizer", "adamw", "lr: 1e-3", "lr: 0.7"), ("scheduler", "step", "0.1", "0.3")):
        (configs / group).mkdir()
        text = find_choice(group, choice).read_text()
        (configs / group / f"{choice}.yaml").write_text(text.replace(old, new))
    code = """
        from foldwise.config import compose_config, resolve_config
        from foldwise.settings import find_choice
        overrides = ["data.folds=2", "data.image_size=32", "+phases.train.scheduler=step"]
        config = compose_config(overrides)
        print(*(find_choice(*choice).parts[-4] for choice in (("optimizer", "adamw"), ("tta", "none"))))
        print(config.optimizer.lr, resolve_config(config)["phases"]["train"]["scheduler"]["gamma"])
        """
    assert run(tmp_path, code).split() == [tmp_path.name, "foldwise", "0.7", "0.3"]


def test_where_there_is_no_configs_only_the_library_counts(tmp_path: Path):
    code = """
        from foldwise.config import compose_config
        from foldwise.errors import Refusal
        from foldwise.settings import LIBRARY, find_choice, list_choices
        print(*list_choices("data"), find_choice("tta", "none") == LIBRARY / "tta" / "none.yaml")
        try:
            compose_config([])
        except Refusal as error:
            print(error)
        """
    choices, error = run(tmp_path, code).splitlines()
    assert choices == "sample True"
    assert error.startswith(f"there is no {tmp_path}/configs/train.yaml: start the command in the repository's root")


def test_help_lists_every_choice_and_marks_the_owners():
    command = [sys.executable, "train.py", "--help"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1
    words = " ".join(done.stdout.split())
    for group in list_groups():
        assert f"\n{group}\n" in done.stdout
        for choice, path in list_choices(group).items():
            assert f"{choice} {' '.join(first_comment(path).split())}" in words
            assert (f"\n* {choice} " in done.stdout) == path.is_relative_to(OWNER) or choice == "none"
    for text in (
        "python train.py experiment=baseline",
        "+group.setting=value",
        "Exit codes",
        "batch_size",
        "--hydra-help",
    ):
        assert text in done.stdout

"""Rendering for the template's tests: from a clean copy of the template, without the user's cookiecutter settings."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "{{cookiecutter.project_slug}}"

Render = Callable[..., Path]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git knows or would add, so that caches and runs in the checkout are not rendered."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path_factory.mktemp("template")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """cookiecutter settings of our own, also for the commands that tests start: defaults and replays stay in there."""
    folder = tmp_path_factory.mktemp("settings")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({name: str(folder / name) for name in ("cookiecutters_dir", "replay_dir")}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOKIECUTTER_CONFIG", str(config))
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
        # A git hook that runs these tests sets GIT_DIR and GIT_INDEX_FILE, which would point git at this repository.
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        yield folder


@pytest.fixture(scope="session")
def render(template: Path) -> Render:
    """Render into a folder: `render(folder, task="multilabel")` gives the path of the new repository."""

    def render_with(folder: Path, **answers: str) -> Path:
        return Path(cookiecutter(str(template), no_input=True, extra_context=answers, output_dir=str(folder)))

    return render_with

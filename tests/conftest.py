"""Rendering for the template's tests: from a clean copy of the template, without the user's cookiecutter settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml
from cookiecutter.main import cookiecutter

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "{{cookiecutter.project_slug}}"

Render = Callable[..., Path]
Run = Callable[..., str]

# The same examples in each run, and no deadline that a busy machine would miss.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.path.stem not in ("test_whole_way", "test_end_to_end"))


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
        # Tests run side by side: threads that spin while they wait for a core made a command five times slower.
        patch.setenv("OMP_NUM_THREADS", "1")
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


def environment() -> dict[str, str]:
    """The variables for commands of a rendered repository."""
    ours = ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    return {name: value for name, value in os.environ.items() if name not in ours}


def run_command(command: list[str], folder: Path, timeout: float = 600) -> str:
    """Run a command of a rendered repository, without standard input; what it printed on both streams.

    The tests' own environment stays out of it: a rendering must find its Python and its code by itself.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def run_forked(settings: Path) -> Iterator[Run]:
    """As `run_command`, for scripts of a rendered repository, in seconds less: see forking.py.

    `run_forked(["predict.py", "runs/x"], repository)`; with `check=False` the script may fail.
    """
    command, output = [sys.executable, str(Path(__file__).with_name("forking.py"))], settings / "output.txt"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as server:
        questions, answers = server.stdin, server.stdout
        assert questions is not None and answers is not None

        def run(words: list[str], folder: Path, check: bool = True) -> str:
            output.write_text("")
            script, *arguments = words
            request = {"script": script, "arguments": arguments, "folder": str(folder), "output": str(output)}
            print(json.dumps(request | {"environment": environment()}), file=questions, flush=True)
            code = answers.readline().strip()
            assert code == "0" or not check, f"{' '.join(words)} ended with {code}:\n{output.read_text()}"
            return output.read_text()

        yield run
        questions.close()


def kill_after_first_epoch(repository: Path, command: list[str]) -> None:
    """Start the training and kill it, with its processes, as soon as an epoch of the first fold is kept."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=repository, stdin=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 300
    try:
        while not list(repository.glob("runs/*/fold0/last.ckpt")):
            assert process.poll() is None, (
                f"the training ended with {process.returncode} before its first epoch was kept"
            )
            assert time.monotonic() < end, "no epoch was kept in five minutes"
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

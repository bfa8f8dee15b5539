"""The processes of a fold: they end together, with the parent, and with a code that says how it went."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foldwise.command import exit_on_error
from foldwise.config import compose_config
from foldwise.errors import ProcessFailed, Refusal
from foldwise.processes import group as groups
from foldwise.processes.group import Rank, call, run_processes

ROOT = Path(__file__).parents[1]

# The way that the command uses, a server that imports torch, takes seconds to start; a plain fork does the same here.
pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture
def context():
    return multiprocessing.get_context("fork")


def write_rank(folder: Path, rank: Rank) -> None:
    (folder / str(rank.index)).write_text(f"{os.environ.get('LOCAL_RANK')} of {rank.world_size}")


def fail_or_wait(error: Exception, rank: Rank) -> None:
    if rank.index == 1:
        raise error
    time.sleep(60)


def exit_with(code: int, rank: Rank) -> None:
    sys.exit(code)


def wait_with_a_child(folder: Path, context) -> None:
    """Starts a process that would run for a minute, says its number, and is then killed by the test."""

    def child(rank: Rank) -> None:
        (folder / "child").write_text(str(os.getpid()))
        time.sleep(60)

    run_processes(context, child, (), 1)


def test_every_rank_runs_and_knows_its_number(tmp_path, context):
    assert run_processes(context, write_rank, (tmp_path,), world_size=2) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0 of 2", "1 of 2"]


def test_one_process_needs_no_rank(tmp_path, context, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run_processes(context, write_rank, (tmp_path,), world_size=1) == 0
    assert (tmp_path / "0").read_text() == "None of 1"


def test_a_rank_that_fails_ends_the_others_and_reports_why(context, capfd):
    started = time.monotonic()
    assert run_processes(context, fail_or_wait, (Refusal("a row is bad"),), world_size=2) == 2
    assert time.monotonic() - started < 30
    said = capfd.readouterr().err
    assert "error of rank 1: a row is bad" in said and "Traceback" not in said
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ValueError("a row is bad"), OSError("killed")])
def test_a_bug_in_a_rank_ends_the_others_and_shows_the_line_that_raised(error, context, capfd, monkeypatch):
    monkeypatch.setattr(groups, "AFTERMATH", 0.2)
    assert run_processes(context, fail_or_wait, (error,), world_size=2) == 1
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1 and "in fail_or_wait\n    raise error\n" in said
    assert f"{type(error).__name__}: {error}" in said and "error of rank" not in said
    assert not multiprocessing.active_children()


def test_the_exit_code_comes_through(context):
    assert run_processes(context, exit_with, (7,), world_size=1) == 7


def test_a_killed_parent_leaves_no_process(tmp_path, context):
    parent = context.Process(target=wait_with_a_child, args=(tmp_path, context))
    parent.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    parent.kill()
    parent.join()
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return  # ended; whoever adopted it has not asked yet
        time.sleep(0.05)
    pytest.fail("the fold's process outlived its parent")


def double(value: int) -> int:
    if value < 0:
        raise Refusal(f"{value} is below 0")
    if value == 0:
        raise ValueError("0 is a bug")
    if value > 10:
        os._exit(3)
    return 2 * value


def test_call_returns_the_value_the_message_or_the_exit_code(context, capfd):
    assert call(context, double, 4) == 8
    with pytest.raises(Refusal, match="^-1 is below 0$"):
        call(context, double, -1)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(ProcessFailed, match="double ended with exit code 3, see above") as failed:
        call(context, double, 11)
    assert failed.value.exit_code == 2


def test_call_shows_the_line_of_a_bug(context, capfd):
    with pytest.raises(ProcessFailed, match="double ended with exit code 1, see above") as failed:
        call(context, double, 0)
    assert failed.value.exit_code == 1
    assert 'in double\n    raise ValueError("0 is a bug")\n' in capfd.readouterr().err


FULL_DISK = OSError(28, "No space left on device", "last.ckpt")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Refusal("there is no table"), 2, "error: there is no table\n"),
        (FULL_DISK, 2, "error: last.ckpt cannot be read or written (No space left on device)\n"),
        (ProcessFailed("fold 0 was killed by SIGKILL", -9), 2, "error: fold 0 was killed by SIGKILL\n"),
        (ProcessFailed("fold 0 ended", 2, 1), 1, "error: fold 0 ended\n"),
        (KeyboardInterrupt(), 130, "\nstopped; the rest is kept\n"),
    ],
)
def test_a_command_ends_with_a_message_if_that_says_it_all(error, code, sentence, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_error("the rest is kept"):
        raise error
    assert (stop.value.code, capsys.readouterr().err) == (code, sentence)


@pytest.mark.parametrize("error", [ValueError("2 is 3"), RuntimeError("2 is 3"), OSError("2 is 3"), KeyError("2 is 3")])
def test_a_command_shows_the_traceback_of_a_bug(error, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_error("the rest is kept"):
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.startswith("Traceback") and "\n    raise error\n" in said and f"{type(error).__name__}: " in said
    assert said.endswith("\nThis is a bug, in solution/ or in foldwise/. The rest is kept.\n")


def test_a_python_that_is_not_the_environments_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / ".venv").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop, exit_on_error():
        raise ModuleNotFoundError("No module named 'hydra'", name="hydra")
    sentence = f"error: {sys.executable} has no hydra: source .venv/bin/activate, then run the same command\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, sentence)


def test_a_python_without_packages_is_told_to_make_the_environment(tmp_path):
    bare = subprocess.run([sys.executable, "-S", ROOT / "train.py"], cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 2 and not bare.stdout
    assert bare.stderr.endswith(" has no torch: make setup, source .venv/bin/activate, then run the same command\n")


# A command with a server of its own; in the folder are the modules that the server imports before it forks.
SERVED = """
import sys
from foldwise.processes.group import run_processes
from foldwise.processes.server import start_server
from tasks import import_both

if __name__ == "__main__":
    sys.exit(run_processes(start_server(("broken", "leaving", "sound")), import_both, (), 1))
"""
MODULES = {
    "broken.py": "import no_such_module\n",
    "leaving.py": "raise SystemExit(3)\n",
    "sound.py": "import os\n\nserver = os.getpid()\n",
    "tasks.py": "import os\n\n\ndef import_both(rank):\n    import sound\n"
    "    assert sound.server == os.getppid()\n    print('the server lives', flush=True)\n    import broken\n",
    "command.py": SERVED,
}


def start(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder whose modules come before the packages."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a server to fork from")
def test_a_module_that_fails_at_its_import_is_named_and_does_not_end_the_server(tmp_path):
    """The server imports what comes after it, and the process that needs it shows why it cannot have it."""
    for name, content in MODULES.items():
        (tmp_path / name).write_text(content)
    done = start(tmp_path, "command.py")
    assert (done.returncode, done.stdout) == (1, "the server lives\n"), done.stderr
    assert f'File "{tmp_path}/broken.py", line 1, in <module>\n    import no_such_module\n' in done.stderr
    assert "ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a server to fork from")
def test_a_command_that_ends_early_ends_its_server(tmp_path):
    """Which holds the command's output: whoever waits for its end would wait for the imports."""
    (tmp_path / "long.py").write_text("import time\n\ntime.sleep(60)\n")
    lines = "from foldwise.processes.server import start_server", "if __name__ == '__main__': start_server(('long',))"
    (tmp_path / "command.py").write_text("\n".join(lines))
    started = time.monotonic()
    assert start(tmp_path, "command.py").returncode == 0
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_package_of_a_training_that_fails_at_its_import_is_named(tmp_path):
    try:
        compose_config([])
    except Refusal:
        pytest.skip("configs/project.yaml is a template here")
    for name in ("configs", "solution"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "timm.py").write_text('raise ValueError("half installed")\n')
    done = start(tmp_path, str(ROOT / "train.py"), "experiment=baseline", "logger=none", "data.workers=0")
    assert done.returncode == 1, done.stderr
    assert f'File "{tmp_path}/timm.py", line 1, in <module>' in done.stderr
    assert "ValueError: half installed" in done.stderr and "ended with exit code 1, see above" in done.stderr

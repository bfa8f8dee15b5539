"""The processes of a fold: they end together, with the parent, and with a code that says how it went."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from foldwise.errors import Refusal
from foldwise.processes.group import Place
from foldwise.processes.running import call, run_processes

# The way that the command uses, a server that imports torch, takes seconds to start; a plain fork does the same here.
pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


@pytest.fixture
def context():
    return multiprocessing.get_context("fork")


def write_rank(folder: Path, place: Place) -> None:
    (folder / str(place.rank)).write_text(f"{os.environ.get('LOCAL_RANK')} of {place.world}")


def fail_or_wait(folder: Path, place: Place) -> None:
    if place.rank == 1:
        raise ValueError("a row is bad")
    time.sleep(60)


def exit_with(code: int, place: Place) -> None:
    sys.exit(code)


def wait_with_a_child(folder: Path, context) -> None:
    """Starts a process that would run for a minute, says its number, and is then killed by the test."""

    def child(place: Place) -> None:
        (folder / "child").write_text(str(os.getpid()))
        time.sleep(60)

    run_processes(context, child, (), 1)


def test_every_rank_runs_and_knows_its_place(tmp_path, context):
    assert run_processes(context, write_rank, (tmp_path,), world=2) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["0 of 2", "1 of 2"]


def test_one_process_needs_no_rank(tmp_path, context, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run_processes(context, write_rank, (tmp_path,), world=1) == 0
    assert (tmp_path / "0").read_text() == "None of 1"


def test_a_rank_that_fails_ends_the_others_and_says_why(tmp_path, context, capfd):
    started = time.monotonic()
    assert run_processes(context, fail_or_wait, (tmp_path,), world=2) == 2
    assert time.monotonic() - started < 30
    assert "error of rank 1: a row is bad" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_the_exit_code_comes_through(context):
    assert run_processes(context, exit_with, (7,), world=1) == 7


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
        raise ValueError(f"{value} is below 0")
    if value > 10:
        os._exit(3)
    return 2 * value


def test_call_gives_the_value_the_sentence_or_the_exit_code(context):
    assert call(context, double, 4) == 8
    with pytest.raises(Refusal, match="-1 is below 0"):
        call(context, double, -1)
    with pytest.raises(RuntimeError, match="exit code 3"):
        call(context, double, 11)

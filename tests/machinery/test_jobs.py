"""Several folds at once, in one job or in several that know nothing of each other."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from groups import log_of, members, start_training, wait_for
from tiny import open_tiny, tiny_config

from foldwise.locks import lock
from foldwise.predictions.store import read_predictions
from foldwise.processes.group import Group, Rank
from foldwise.processes.nodes import Node
from foldwise.training import run as runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def ends_with(command, code: int, folder: Path) -> str:
    command.join(timeout=60)
    assert command.exitcode == code, log_of(folder)
    return log_of(folder)


def test_a_fold_that_fails_is_reported_at_the_end_and_the_others_finish(data, tmp_path):
    """Its state is damaged; it must not be the first to end, so that somebody waits for the other."""
    config = tiny_config(data, "multiclass", "epochs=1", "data.folds=3", "fold_workers=2", f"data.prepared={tmp_path}")
    run = open_tiny(config, tmp_path / "runs")
    (run / "fold1").mkdir()
    (run / "fold1/last.ckpt").write_bytes(b"nothing")
    log = ends_with(start_training(config, tmp_path), 2, tmp_path)
    assert [(run / f"fold{fold}/metrics.json").exists() for fold in range(3)] == [True, False, True]
    last = log.partition("\nerror: ")[2]
    assert f"fold 1 ended with exit code 2, see runs/{run.name}/fold1/log.txt" in last and "delete it" in last
    assert "fold 0" not in last and "fold 2" not in last
    assert "last.ckpt cannot be read" in (run / "fold1/log.txt").read_text()
    assert "epoch   1/1" in (run / "fold2/log.txt").read_text() and "fold 2  epoch   1/1" in log


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_folds(number, code, data, tmp_path):
    choices = ["epochs=500", "augmentation=none", "validate_every=100", "fold_workers=2"]
    command = start_training(tiny_config(data, "multiclass", *choices), tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("runs/*/fold*/last.ckpt"))) == 2)
    (os.killpg if number == signal.SIGINT else os.kill)(command.pid, number)
    assert "the same command resumes" in ends_with(command, code, tmp_path)
    wait_for(lambda: not members(command.pid), seconds=15)


def write_surroundings(folder: Path, rank: Rank) -> None:
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    launched = SLURMEnvironment.detect() or TorchElasticEnvironment.detect()
    values = [os.environ.get("CUDA_VISIBLE_DEVICES"), rank.sharing, launched, os.environ.get("NODE_RANK")]
    (folder / str(rank.index)).write_text(json.dumps(values))


def test_a_fold_s_processes_see_their_devices_and_not_the_launcher(tmp_path, monkeypatch):
    """Lightning would requeue the job by itself, and take Slurm's number of processes for its own."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    context = multiprocessing.get_context("fork")
    node = Node(rank=1, count=2)
    with Group(context, write_surroundings, (tmp_path,), devices=2, node=node, sharing=3, visible="4,5") as group:
        while (code := group.poll()) is None:
            pass
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}
    assert json.loads((tmp_path / "3").read_text()) == ["4,5", 6, False, "1"]


@pytest.mark.slow
def test_jobs_that_begin_and_end_together_make_one_run(data, tmp_path):
    """They meet right before the run is opened and right before its folds are put together."""
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=60)

    def meet() -> None:
        plan, train = runs.make_plan, runs.train_in_turn

        def make_plan(*arguments, **named):
            result = plan(*arguments, **named)
            barrier.wait()
            return result

        def train_in_turn(*arguments):
            train(*arguments)
            barrier.wait()

        runs.make_plan, runs.train_in_turn = make_plan, train_in_turn

    jobs = [
        start_training(tiny_config(data, "multiclass", "epochs=1", f"fold={fold}"), tmp_path, before=meet)
        for fold in (0, 1)
    ]
    logs = [ends_with(job, 0, tmp_path) for job in jobs]
    assert logs[1].count("OOF overall") == 2 and "Traceback" not in logs[1]
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert sorted(read_predictions(run / "oof").frame["id"]) == sorted(f"row{row}" for row in range(24))
    assert json.loads((run / "metrics.json").read_text())["folds"].keys() == {"0", "1"}
    assert {path.name for path in run.rglob(".*")} == {".lock", ".fold0.lock", ".fold1.lock"}
    assert len(json.loads((run / "environment.json").read_text())["continued"]) == 1


def test_a_fold_is_trained_by_one_job_at_a_time(data, tmp_path):
    config = tiny_config(data, "multiclass", "epochs=500", "fold=1", "augmentation=none", "validate_every=100")
    first = start_training(config, tmp_path)
    wait_for(lambda: any(tmp_path.glob("runs/*/fold1/last.ckpt")))
    (tmp_path / "second").mkdir()
    (tmp_path / "second/runs").symlink_to(tmp_path / "runs")
    second = start_training(config | {"fold": "all"}, tmp_path / "second")
    log = ends_with(second, 2, tmp_path / "second")
    assert (
        f"fold 1 of runs/{next((tmp_path / 'runs').glob('test-*')).name} is being trained by process {first.pid} on"
        in log
    )
    assert "fold 0 of" not in log
    os.killpg(first.pid, signal.SIGKILL)
    first.join()
    wait_for(lambda: not members(first.pid))
    lock(next(tmp_path.glob("runs/test-*")) / ".fold1.lock").close()  # the claim of a job that was killed ends

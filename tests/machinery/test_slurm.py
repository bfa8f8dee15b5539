"""The job scripts on a real cluster, where there is one."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=baseline", "epochs=1", "threads=1", "logger=none", "data.folds=2", "fold=0"]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder(tmp_path):
    """A folder to submit jobs in, with what a rendered repository has."""
    if shutil.which("sbatch") is None:
        pytest.skip("there is no Slurm here: no sbatch")
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("there is no Slurm here: sinfo reaches no controller")
    for name in ("train.py", "configs", "slurm", "solution"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def submit(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["sbatch", "--parsable", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def state(job: str) -> dict[str, str]:
    """What scontrol says of a job; its number of restarts and its exit code among it."""
    return dict(pair.split("=", 1) for pair in slurm("scontrol", "show", "job", job).split() if "=" in pair)


def wait_until(job: str, *states: str) -> None:
    deadline = time.monotonic() + 300
    while state(job)["JobState"] not in states:
        assert time.monotonic() < deadline, state(job)
        time.sleep(1)


@pytest.mark.slow
def test_a_stopped_run_over_two_nodes_resumes_after_its_requeue(folder):
    nodes = ["trainer=ddp_nodes", "trainer.accelerator=cpu", "trainer.devices=1"]
    choices = [*QUICK, *nodes, "epochs=3"]
    job = submit(folder, "--nodes=2", "slurm/train.sbatch", *choices)
    wait_until(job, "RUNNING")
    while not list(folder.glob("runs/*/fold0/last.ckpt")):
        assert state(job)["JobState"] == "RUNNING", (folder / f"slurm-{job}.out").read_text()
        time.sleep(0.2)
    slurm("scancel", "--signal=USR1", job)
    wait_until(job, "PENDING")
    slurm("scontrol", "update", f"jobid={job}", "StartTime=now")  # Slurm lets a requeued job wait for two minutes
    wait_until(job, "COMPLETED", "FAILED")
    log = (folder / f"slurm-{job}.out").read_text()
    assert (state(job)["JobState"], state(job)["Restarts"]) == ("COMPLETED", "1"), log
    assert log.count("epoch   1/3") == log.count("epoch   3/3") == 1, log
    (run,) = folder.glob("runs/*/")
    assert {path.name for path in run.glob("fold0/oof-*")} == {"oof-0-of-2", "oof-1-of-2"}
    assert len(pd.read_csv(run / "fold0/history.csv")) == 3
    assert not list(run.rglob("hpc_ckpt*"))  # Lightning's own way to go on after a requeue


@pytest.mark.slow
def test_folds_as_an_array_of_jobs_are_put_together_by_the_last(folder):
    jobs = submit(folder, "--array=0-1", "slurm/folds.sbatch", *[choice for choice in QUICK if choice != "fold=0"])
    slurm("srun", f"--dependency=afterany:{jobs}", "true")
    logs = [path.read_text() for path in folder.glob("slurm-*.out")]
    assert len(logs) == 2 and any("OOF overall" in log for log in logs), logs
    (metrics,) = folder.glob("runs/*/metrics.json")
    assert json.loads(metrics.read_text())["folds"].keys() == {"0", "1"}

"""Two nodes of one run, as two commands on this machine with the environment that torchrun gives them."""

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
from groups import log_of, members, start_training, wait_for
from tiny import tiny_config

from foldwise.errors import exit_code
from foldwise.processes.group import free_port
from foldwise.processes.nodes import Node
from foldwise.processes.team import LostNodeError, gather

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LONG = ["epochs=500", "fold=0", "augmentation=none", "validate_every=100"]
NODES = ["trainer=ddp_nodes", "trainer.accelerator=cpu", "trainer.devices=1"]


class Started(NamedTuple):
    """A node's command, and the folder that it was started in."""

    command: BaseProcess
    folder: Path


@pytest.fixture
def start_nodes(tmp_path):
    """Starts a command a configuration; each has a folder of its own, and `runs` is one for all."""
    (tmp_path / "runs").mkdir()

    def start(*configs: dict) -> list[Started]:
        port = free_port()
        nodes = []
        for rank, config in enumerate(configs):
            folder = tmp_path / f"node{rank}"
            folder.mkdir(exist_ok=True)
            if not (folder / "runs").exists():
                (folder / "runs").symlink_to(tmp_path / "runs")
            variables = {
                "TORCHELASTIC_RUN_ID": "test",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "LOCAL_WORLD_SIZE": "1",
                "RANK": str(rank),
                "GROUP_RANK": str(rank),
                "GROUP_WORLD_SIZE": str(len(configs)),
                "WORLD_SIZE": str(len(configs)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            command = start_training(config, folder, before=lambda new=variables: os.environ.update(new))
            nodes.append(Started(command, folder))
        return nodes

    return start


def end(nodes: list[Started], code: int) -> list[str]:
    """The logs of nodes that must end with this code within a minute, and all their processes with them."""
    for node in nodes:
        node.command.join(timeout=60)
    logs = [log_of(node.folder) for node in nodes]
    assert [node.command.exitcode for node in nodes] == [code] * len(nodes), "\n\n".join(logs)
    wait_for(lambda: not any(members(node.command.pid) for node in nodes), seconds=15)
    return logs


def predictions(folder: Path) -> dict[str, bytes]:
    paths = folder.glob("runs/*/fold*/oof-*-of-2/predictions.parquet")
    return {"/".join(path.parts[-3:]): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_of_one(start_nodes, data, tmp_path):
    choices = ["epochs=1", "fold=0", "augmentation=light"]
    logs = end(start_nodes(*[tiny_config(data, "multiclass", *choices, *NODES)] * 2), 0)
    assert "epoch   1/1" in logs[0] and "epoch   1/1" not in logs[1]
    (tmp_path / "one").mkdir()
    command = start_training(tiny_config(data, "multiclass", *choices, "trainer=ddp_cpu"), tmp_path / "one")
    command.join(timeout=60)
    assert len(predictions(tmp_path)) == 2 and predictions(tmp_path) == predictions(tmp_path / "one")


def test_nodes_with_different_configurations_are_refused(start_nodes, data, tmp_path):
    first, second = ([*LONG, *NODES, f"optimizer.lr={rate}"] for rate in (0.001, 0.002))
    configs = [tiny_config(data, "multiclass", *choices) for choices in (first, second)]
    logs = end(start_nodes(*configs), 2)
    assert "node 1 would train another run than node 0:\noptimizer.lr: 0.001 -> 0.002" in logs[1]
    assert "error: another node of this run ended with exit code 2" in logs[0]
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_node_that_leaves_or_dies_ends_all(which, number, start_nodes, data, tmp_path):
    nodes = start_nodes(*[tiny_config(data, "multiclass", *LONG, *NODES)] * 2)
    wait_for(lambda: any(tmp_path.glob("runs/*/fold0/last.ckpt")))
    leaving = nodes[which].command.pid
    if number == signal.SIGKILL:
        os.killpg(leaving, number)  # as a machine that is gone
        (log,) = end([nodes[1 - which]], 2)
        assert "error: another node of this run is gone" in log and "Traceback" not in log
    else:
        os.kill(leaving, number)
        assert all("the same command resumes" in log for log in end(nodes, 75))


@pytest.mark.slow
def test_a_rank_that_fails_is_named_and_ends_all(start_nodes, data, tmp_path):
    nodes = start_nodes(*[tiny_config(data, "multiclass", *LONG, *NODES)] * 2)
    wait_for(lambda: any(tmp_path.glob("runs/*/fold0/last.ckpt")))
    os.kill(max(members(nodes[1].command.pid)), signal.SIGKILL)
    logs = end(nodes, 2)
    assert "fold 0 was killed by SIGKILL" in logs[1]
    assert "another node of this run was killed by SIGKILL" in logs[0]


def test_strangers_at_the_port_of_node_0_are_sent_away():
    """One that says nothing that is understood, and a node of another job; then the one that is waited for."""
    port = free_port()
    nodes = [Node(rank, 2, "127.0.0.1", port, job) for rank, job in [(0, "mine"), (1, "other"), (1, "mine")]]

    def lead() -> dict:
        with gather(nodes[0]) as team:
            return team.receive()

    with ThreadPoolExecutor() as pool:
        heard = pool.submit(lead)
        wait_for(lambda: knock(port))
        with pytest.raises(LostNodeError), gather(nodes[1]) as team:
            team.receive()
        with gather(nodes[2]) as team:
            team.send(word="hello")
            assert heard.result(timeout=10) == {"word": "hello"}


def test_a_bug_on_one_node_ends_all_with_1():
    port = free_port()

    def lead() -> dict:
        with gather(Node(0, 2, "127.0.0.1", port, "job")) as team:
            return team.receive()

    with ThreadPoolExecutor() as pool:
        heard = pool.submit(lead)
        with pytest.raises(ValueError, match="a bug"), gather(Node(1, 2, "127.0.0.1", port, "job")):
            raise ValueError("a bug")
        with pytest.raises(LostNodeError, match="another node of this run ended with exit code 1") as lost:
            heard.result(timeout=10)
    assert exit_code(lost.value) == 1


def knock(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as visitor:
            visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
    except ConnectionRefusedError:
        return False
    return True

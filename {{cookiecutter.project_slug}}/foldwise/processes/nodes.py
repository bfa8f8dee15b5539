"""The machines (nodes) of a run. Each runs one train.py, started by torchrun or srun."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from foldwise.errors import Refusal


@dataclass(frozen=True)
class Node:
    """One of the `count` machines of a run.

    Attributes:
        rank: node 0 leads the others.
        address, port: where node 0 listens.
        job: identifies this launch; node 0 rejects connections from others.
    """

    rank: int = 0
    count: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    job: str = ""


def find_node(environment: Mapping[str, str]) -> Node | None:
    """Find this node from the variables of torchrun or srun; None if neither started this process.

    Variables: https://pytorch.org/docs/stable/elastic/run.html, and srun's manual (OUTPUT ENVIRONMENT VARIABLES).

    Raises:
        Refusal: several copies on one machine, or an unknown first host.
    """
    if "TORCHELASTIC_RUN_ID" in environment:  # first, since srun can start torchrun
        if environment["LOCAL_WORLD_SIZE"] != "1":
            raise _copies("torchrun", environment["LOCAL_WORLD_SIZE"], "--nproc-per-node 1")
        return Node(
            rank=int(environment["GROUP_RANK"]),
            count=int(environment["GROUP_WORLD_SIZE"]),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]) + 1,  # torchrun itself listens at MASTER_PORT
            job=f"{environment['TORCHELASTIC_RUN_ID']}.{environment['TORCHELASTIC_RESTART_COUNT']}",
        )
    if "SLURM_STEP_ID" in environment:
        count, tasks = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_STEP_NUM_TASKS"])
        if tasks != count:
            raise _copies("srun", f"{tasks} on {count} nodes", "--ntasks-per-node=1")
        if count == 1:
            return Node()
        job = environment["SLURM_JOB_ID"]
        return Node(
            rank=int(environment["SLURM_NODEID"]),
            count=count,
            address=environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
            # Jobs on one machine have different ids, so different ports; above the system ports.
            port=int(environment.get("MASTER_PORT") or 15000 + int(job) % 10000),
            job=f"{job}.{environment['SLURM_STEP_ID']}",
        )
    return None


def check_nodes(expected: int | str, node: Node | None) -> Node:
    """Return the node, or a single one; raise a Refusal if the number of nodes is not `trainer.num_nodes`."""
    if expected == "auto" and node is None:
        raise Refusal(
            "trainer.num_nodes=auto, and neither torchrun nor srun started this process: docs/scale.md has the "
            "commands; for one machine, trainer=ddp"
        )
    found = node or Node()
    if expected not in ("auto", found.count):
        raise Refusal(
            f"trainer.num_nodes={expected}, but train.py was started on {found.count} nodes: "
            "trainer=ddp_nodes takes all of them"
        )
    return found


def _copies(launcher: str, number: str, option: str) -> Refusal:
    return Refusal(
        f"{launcher} started several copies of train.py ({number}), which starts one process a device by itself: "
        f"give {launcher} {option}"
    )


def _first_host(hosts: str) -> str:
    """The first host of a Slurm node list such as gpu[03-05,09]."""
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refusal(f"scontrol cannot name the first of {hosts} ({error}): set MASTER_ADDR to its name") from None
    return done.stdout.split()[0]

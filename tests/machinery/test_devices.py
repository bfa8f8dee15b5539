"""Which processes, devices and machines train a fold."""

import pytest

from foldwise.errors import Refusal
from foldwise.processes.nodes import Node, check_nodes, find_node
from foldwise.training.devices import count_processes, share_gpus

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "3",
    "MASTER_ADDR": "gpu-a",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "120042",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "n1",
}


def test_the_launcher_gives_the_node_of_this_process():
    assert find_node({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}) is None  # sbatch without srun
    assert find_node(TORCHRUN) == Node(1, 3, "gpu-a", 29501, "none.0")
    assert find_node(SRUN | TORCHRUN) == find_node(TORCHRUN)
    node = find_node(SRUN)
    assert (node.rank, node.count, node.address) == (1, 2, "n1")
    assert node.port != find_node(SRUN | {"SLURM_JOB_ID": "120043"}).port
    assert find_node(SRUN | {"MASTER_PORT": "4000"}).port == 4000
    alone = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_node(SRUN | alone) == Node()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "4"}, r"torchrun started several copies .*\(4\).*--nproc-per-node 1"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "8"}, r"srun started several .*\(8 on 2 nodes\).*--ntasks-per-node=1"),
        (SRUN | {"MASTER_ADDR": ""}, r"the first of n\[1-2\].*set MASTER_ADDR"),
    ],
)
def test_a_launcher_that_was_called_wrongly_is_named(environment, message, monkeypatch):
    monkeypatch.setenv("PATH", "")  # where there is no scontrol
    with pytest.raises(Refusal, match=message):
        find_node(environment)


def test_the_number_of_nodes_is_the_one_that_was_started():
    three = find_node(TORCHRUN)
    assert check_nodes("auto", three) == check_nodes(3, three) == three
    assert check_nodes(1, None) == check_nodes(1, Node()) == check_nodes("auto", Node()) == Node()
    with pytest.raises(Refusal, match="num_nodes=1, but train.py was started on 3 nodes: trainer=ddp_nodes"):
        check_nodes(1, three)
    with pytest.raises(Refusal, match="neither torchrun nor srun"):
        check_nodes("auto", None)


def trainer(accelerator="auto", devices=1):
    return {"accelerator": accelerator, "devices": devices}


GPUS = {"accelerator": "gpu", "devices": ["a", "b", "c", "d"]}
CPU = {"accelerator": "cpu", "devices": ["cpu"]}


def test_a_fold_has_one_process_a_device():
    assert count_processes(trainer(), GPUS) == count_processes(trainer(devices="auto"), CPU) == 1
    assert count_processes(trainer("gpu", "auto"), GPUS) == 4
    assert count_processes(trainer("cpu", 2), GPUS) == count_processes(trainer("cpu", 2), CPU) == 2
    for settings, hardware, message in [
        (trainer("gpu"), CPU, "torch sees no GPU"),
        (trainer("gpu", 5), GPUS, "there are 4 GPUs"),
        (trainer(devices="all"), GPUS, "give a number, or auto"),
    ]:
        with pytest.raises(Refusal, match=message):
            count_processes(settings, hardware)


def test_folds_beside_each_other_share_no_gpu():
    assert share_gpus(4, 1, gpus=4, visible=None) == ["0", "1", "2", "3"]
    assert share_gpus(2, 2, gpus=4, visible="4,5,6,7") == ["4,5", "6,7"]
    assert share_gpus(2, 1, gpus=2, visible="GPU-aa,GPU-bb") == ["GPU-aa", "GPU-bb"]
    assert share_gpus(1, 4, gpus=4, visible=None) == [None]  # as it is
    assert share_gpus(3, 1, gpus=0, visible=None) == [None, None, None]
    with pytest.raises(Refusal, match="fold_workers=3 with 2 GPUs a fold needs 6, and there are 4.*fold_workers=2"):
        share_gpus(3, 2, gpus=4, visible=None)
    with pytest.raises(Refusal, match="fold_workers is 'auto'"):
        share_gpus("auto", 1, gpus=4, visible=None)

"""How stages are started: on one process, one node, several nodes."""

import os
import subprocess
import sys

from cisterna.runtime import launch

# What Slurm 22.05 gives the second of two tasks, as far as it matters here.
TASK = {
    "SLURM_JOB_ID": "120345",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3",
}


def test_ranks_on_one_node_are_those_of_one_torchrun():
    assert launch.command(1, 1) == "cisterna"
    assert launch.command(4, 1) == "torchrun --standalone --nproc_per_node 4 -m cisterna"


def test_srun_starts_one_launcher_a_node_with_its_share_of_the_ranks():
    words = launch.command(8, 2).split()
    assert words[0] == "srun"
    assert words[words.index("--nodes") + 1] == words[words.index("--ntasks") + 1] == "2"
    assert words[-4:] == ["python", "-m", "cisterna.runtime.launch", "4"]


def test_torchruns_of_a_job_meet_at_its_first_node():
    place = "--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr 10.1.2.3 --master_port 20345"
    words = launch.torchrun(4, ["sft", "--seed", "0"], TASK)
    assert " ".join(words) == f"torchrun {place} -m cisterna sft --seed 0"


def test_outside_of_slurm_the_error_says_what_is_missing():
    bare = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-m", "cisterna.runtime.launch", "1", "sft"], env=bare, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: SLURM_STEP_NUM_NODES is not set")


def test_gpus_of_several_nodes_are_asked_for_by_node():
    assert launch.placement(2, 8)["gres"] == "gpu:4"
    assert "gres" not in launch.placement(2, 0)
    assert launch.placement(1, 8) == {"nodes": 1}

"""How a stage is started: as one process, as the ranks of one torchrun, or as those of one torchrun on each node.

On several nodes `srun` starts this module once on each, and it becomes a torchrun. The torchruns find each other by the
variables that Slurm sets for each task: the number of its node, and the address of the first node, where `srun` ran.
Not for what a stage does.
"""

import os
import sys
from collections.abc import Mapping

from cisterna.errors import UserError

# Where the ranks meet: ports below those that the kernel assigns (32768 and up), one for each of 10,000 jobs, so that
# two jobs on the same first node use different ports.
FIRST_PORT = 20000
PORTS = 10000


def command(processes: int, nodes: int) -> str:
    """The start of a shell command, before the name of the stage, for `processes` ranks in total on `nodes` nodes."""
    if processes == 1:
        return "cisterna"
    if nodes == 1:
        return f"torchrun --standalone --nproc_per_node {processes} -m cisterna"
    # One task a node, which may use all cores of the job there. If a node fails, the others end too.
    tasks = f"--nodes {nodes} --ntasks {nodes} --ntasks-per-node 1 --cpu-bind none --kill-on-bad-exit=1"
    return f"srun {tasks} python -m cisterna.runtime.launch {processes // nodes}"


def placement(nodes: int, gpu: int) -> dict[str, str | int]:
    """Resources of a job, as snakemake-executor-plugin-slurm takes them; `gpu` is the number of GPUs on all nodes.

    Without `nodes` Slurm may spread the GPUs over any number of nodes. On several nodes, `mpi` says that the job calls
    srun itself; `gres` is the GPUs of each node (Slurm would take as many as it can from the first one); and with
    `tasks_per_gpu` 0 the plugin does not ask for one GPU a task.
    """
    if nodes == 1:
        return {"nodes": 1}
    several: dict[str, str | int] = {"nodes": nodes, "tasks": nodes, "mpi": "srun", "tasks_per_gpu": 0}
    return several | ({"gres": f"gpu:{gpu // nodes}"} if gpu else {})


def torchrun(ranks: int, arguments: list[str], task: Mapping[str, str]) -> list[str]:
    """The torchrun command of one node with `ranks` ranks, from the variables that Slurm sets for a task.

    UserError outside such a task.
    """
    try:
        nodes, node = task["SLURM_STEP_NUM_NODES"], task["SLURM_NODEID"]
        first, job = task["SLURM_LAUNCH_NODE_IPADDR"], int(task["SLURM_JOB_ID"])
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set: a stage on several nodes is started by srun, in Slurm") from None
    ranks_here = ["--nnodes", nodes, "--node_rank", node, "--nproc_per_node", str(ranks)]
    rendezvous = ["--master_addr", first, "--master_port", str(FIRST_PORT + job % PORTS)]
    return ["torchrun", *ranks_here, *rendezvous, "-m", "cisterna", *arguments]


if __name__ == "__main__":
    try:
        words = torchrun(int(sys.argv[1]), sys.argv[2:], os.environ)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.execvp(words[0], words)  # noqa: S606  (so that Slurm's signals reach torchrun itself)

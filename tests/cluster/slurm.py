"""A real Slurm of two nodes on this machine: munge, slurmctld and two slurmd, in a folder of its own, on free ports."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil

from waiting import PATIENCE, wait_until

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])  # the daemons are on the path of root only
NODES = ("node1", "node2")

CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MinJobAge=3600
SlurmdTimeout=10
KillWait=10
ReturnToService=2
GresTypes=gpu
NodeName={first} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=16000 Gres=gpu:h100:2
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=16000 Gres=gpu:h100:2
PartitionName=cpu Nodes=ALL Default=YES State=UP
PartitionName=gpu Nodes=ALL State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed here."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Slurm:
    """The cluster. With `environment` commands use it, and no other Slurm of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"cisterna{os.getpid()}"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        programs = folder / "bin"
        programs.mkdir(parents=True)
        (folder / "state").mkdir()
        # The executor starts srun without SLURM_CONF, which a real cluster does not need.
        srun = programs / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
        srun.chmod(0o755)
        commands = Path(sys.executable).parent
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
            "PATH": os.pathsep.join([str(programs), str(commands), PATH]),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> "Slurm":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        _kill(self._processes())

    def _start(self) -> None:
        folder = self.folder
        with closing(socket.socket()) as one, closing(socket.socket()) as two, closing(socket.socket()) as three:
            for each in (one, two, three):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (one, two, three)]
        facts = {"folder": folder, "name": self.name, "ports": ports, "user": getpass.getuser()}
        text = CONF.format(**facts, host=socket.gethostname().partition(".")[0], first=NODES[0], second=NODES[1])
        (folder / "slurm.conf").write_text(text)
        for number in (0, 1):  # GPUs that are files: Slurm counts them, and hands them out
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu Type=h100 File={folder}/gpu[0-1]\n")
        key, munge = folder / "munge.key", folder / "munge.socket"
        self.run("mungekey", "--create", "--force", f"--keyfile={key}")
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *files)
        wait_until(munge.exists, "munged's socket")
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.run("sinfo", "--noheader", "--format=%T") == "idle\n", "both nodes idle", pause=0.1)

    def _daemon(self, *command: str) -> None:
        name = command[-1] if command[0] == "slurmd" else command[0]
        program = shutil.which(command[0], path=PATH)
        assert program
        with (self.folder / f"{name}.out").open("ab") as stream:
            self.daemons[name] = subprocess.Popen(
                [program, *command[1:]], env=self.environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Do what a power cut does: kill the node's slurmd and all processes of its jobs, unknown to slurmctld."""
        self.daemons[node].kill()
        _kill(self._processes(SLURMD_NODENAME=node))
        self.daemons[node].wait()

    def _processes(self, **variables: str) -> list[psutil.Process]:
        """Processes of jobs whose environment has these variables, and first the slurmstepd that started them."""
        wanted = {"SLURM_CLUSTER_NAME": self.name, **variables}
        own = [process for process in psutil.process_iter() if wanted.items() <= _facts(process, "environ", {}).items()]
        above = {parent for process in own for parent in _facts(process, "parents", [])}
        steps = [parent for parent in above if "slurmstepd" in " ".join(_facts(parent, "cmdline", []))]
        return [*steps, *own]

    def run(self, *command: str) -> str:
        """Run a command of Slurm, which has to succeed; its standard output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, also ended ones, by number, as `scontrol show job` prints them."""
        lines = self.run("scontrol", "--oneliner", "--details", "show", "job").splitlines()
        found = [dict(re.findall(r"(\w[\w/:]*)=(\S*)", line)) for line in lines]
        return sorted((job for job in found if "JobId" in job), key=lambda job: int(job["JobId"]))


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes; one may have ended with the one killed before it."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _facts(process: psutil.Process, name: str, none: Any) -> Any:
    """What psutil knows about a process; `none` if it has ended."""
    try:
        return getattr(process, name)()
    except (psutil.Error, OSError):
        return none

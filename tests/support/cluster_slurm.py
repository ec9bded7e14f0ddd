"""A Slurm cluster on the hosts: slurmctld and munged on head, slurmd on nodea and nodeb, all of them real."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster_hosts import Command, Hosts, need_programs

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
NODES = ("nodea", "nodeb")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=head({hosts[head].address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
SlurmdTimeout=20
SlurmctldTimeout=20
MinJobAge=3600
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
NodeName=nodea NodeAddr={hosts[nodea].address} CPUs=16 RealMemory=1000 Gres=gpu:4
NodeName=nodeb NodeAddr={hosts[nodeb].address} CPUs=16 RealMemory=1000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Slurm:
    """The commands of Slurm, as a user on the host `head` types them."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self._hosts, self.folder = hosts, folder
        self._environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """Return the output of a command that has to succeed."""
        command = ["env", f"--chdir={cwd or self.folder}", *words]
        done = self._hosts["head"].run(*command, **self._environment | environment)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def sbatch(self, *words: str | Path, cwd: Path, **environment: str) -> int:
        """Submit a job and return its number; `python` and this package are the ones of the tests."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {"PATH": path, "OMP_NUM_THREADS": "1"}
        return int(self.run("sbatch", "--parsable", *words, cwd=cwd, **settings | environment))

    def job(self, number: int | str) -> dict[str, str]:
        """Return the job's fields, such as JobState, ExitCode, Restarts."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", str(number))))

    def wait_for(self, number: int | str, *states: str, timeout: float = 300) -> dict[str, str]:
        """Return the fields of the job as soon as it is in one of the states."""
        until = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < until, f"{job}\n{self.logs()}"
            time.sleep(0.3)
        return job

    def start_again(self, number: int | str, timeout: float = 90) -> None:
        """Wait until the job is requeued, and start it at once; Slurm would leave it pending for two minutes."""
        self.wait_for(number, "PENDING")
        time.sleep(3)  # a node refuses a start in the second in which it has ended the one before
        until = time.monotonic() + timeout
        while self.job(number)["JobState"] == "PENDING":  # the time is set anew when all processes have ended
            assert time.monotonic() < until, self.logs()
            self.run("scontrol", "update", f"jobid={number}", "starttime=now")
            time.sleep(1)

    def logs(self) -> str:
        """Return the last lines of each daemon's log."""
        return "".join(f"--- {path.name}\n{path.read_text()[-1500:]}\n" for path in self.folder.glob("*.log"))


@contextmanager
def start_slurm(hosts: Hosts) -> Iterator[Slurm]:
    """Context of a Slurm cluster whose two nodes are idle."""
    need_programs(*PROGRAMS)
    folder = hosts.folder / "slurm"
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, hosts=hosts))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n")
    (folder / "gres.conf").write_text(f"NodeName=nodea,nodeb Name=gpu File={folder}/gpu[0-3]\n")
    for number in range(4):
        (folder / f"gpu{number}").touch()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")}
    socket = folder / "munge.socket"
    daemons: list[Command] = []
    try:
        daemons.append(hosts["head"].start("munged", "--foreground", "--force", f"--socket={socket}", *files.values()))
        _wait_until(socket.exists, daemons)
        configuration = folder / "slurm.conf"
        environment = {"SLURM_CONF": str(configuration)}
        daemons.append(hosts["head"].start("slurmctld", "-D", "-f", configuration, **environment))
        for name in NODES:
            daemons.append(hosts[name].start("slurmd", "-D", "-N", name, "-f", configuration, **environment))
        slurm = Slurm(hosts, folder)
        idle = ["scontrol", "show", "nodes"]
        command = hosts["head"].run
        _wait_until(lambda: command(*idle, **environment).stdout.count("State=IDLE ") == len(NODES), daemons)
        yield slurm
    finally:
        for daemon in reversed(daemons):
            daemon.kill()


def _wait_until(condition: Callable[[], bool], daemons: list[Command]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, [daemon.output() for daemon in daemons]
        assert all(daemon.poll() is None for daemon in daemons), [daemon.output() for daemon in daemons]
        time.sleep(0.2)

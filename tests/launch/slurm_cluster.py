"""A real Slurm of two nodes on this machine: its own controller, daemons and authentication, all in one folder.

The daemons run in a mount namespace of their own, in which the nodes' names resolve; the machine's /etc/hosts stays as
it is. Each node has one processor. Jobs in the partition `low` are preempted by those in `high`, which puts them back
into the queue. The numbers of its jobs begin anywhere: jax takes its port from a job's number, and another worker of
the same suite may have a cluster at the same time.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from fake_programs import ROOT, wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare")
NODES = ("n1", "n2")
SILENT_S = 15  # After so long without a word from a node Slurm takes it for dead.


def missing() -> str:
    """Why there can be no cluster here; empty when there can."""
    if os.geteuid() != 0:
        return "a Slurm cluster is started by root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "no mount namespaces here"
    return ""


class Cluster:
    """Started by `start`, ended by `stop`; everything it writes is below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen] = {}
        self._frozen: list[int] = []  # processes of a node that was lost
        self._environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "RLHF_JAX_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "log", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(NODES)}\n")
        (self.folder / "slurm.conf").write_text(self._conf())
        f = self.folder
        self._daemon(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={f}/munge.key", f"--socket={f}/munge.socket"),
            *(f"--pid-file={f}/munged.pid", f"--log-file={f}/log/munged", f"--seed-file={f}/munge.seed"),
        )
        wait_until((f / "munge.socket").exists)
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%D %T").split() == ["2", "idle"], timeout=30)

    def start_node(self, node: str) -> None:
        """What ran on the node before is gone."""
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._frozen = []
        self._daemon(node, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Nobody hears of the node any more: neither Slurm nor the other tasks learn that its processes stopped."""
        self._end(node, signal.SIGKILL)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended meanwhile
                continue
            if f"SLURMD_NODENAME={node}".encode() in environment:
                os.kill(int(process.name), signal.SIGSTOP)
                self._frozen.append(int(process.name))

    def stop(self) -> None:
        self.ask("scancel", "--user=root", "--signal=KILL")
        self.ask("scancel", "--user=root")
        for name in reversed(list(self._daemons)):
            self._end(name, signal.SIGTERM)

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(
            command, env=self._environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    def submit(self, *arguments: str, **environment: str) -> str:
        """Submits with `sbatch`; the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={self.folder}/%j.out", "--mem=0", *arguments],
            env=self._environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def output(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, CANCELLED, ..."""
        text = self.ask("scontrol", "show", "job", job)
        return text.partition("JobState=")[2].split()[0] if "JobState=" in text else ""

    def wait_for(self, job: str, *states: str, timeout: float = 400) -> None:
        until = time.monotonic() + timeout
        while self.state(job) not in states:
            assert time.monotonic() < until, f"{self.state(job)}, not {states}:\n{self.output(job)}"
            time.sleep(0.3)

    def wait_to_say(self, job: str, text: str, timeout: float = 120) -> None:
        until = time.monotonic() + timeout
        while text not in self.output(job):
            assert time.monotonic() < until, f"{text!r} is not said:\n{self.output(job)}"
            assert self.state(job) in ("PENDING", "RUNNING", "COMPLETING"), self.output(job)
            time.sleep(0.3)

    def _daemon(self, name: str, *command: str) -> None:
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && exec {' '.join(command)}"
        with (self.folder / "log" / f"{name}.out").open("a") as log:
            self._daemons[name] = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", inside],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, name: str, how: int) -> None:
        process = self._daemons.pop(name)
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _conf(self) -> str:
        controller, *ports = _free_ports(1 + len(NODES))
        host, f = socket.gethostname().split(".")[0], self.folder
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000"
            for node, port in zip(NODES, ports, strict=True)
        )
        return f"""\
ClusterName=tests
FirstJobId={16 * random.randrange(1, 4000)}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={f}/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
SwitchType=switch/none
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout={SILENT_S}
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,batch_sched_delay=0
StateSaveLocation={f}/state
SlurmdSpoolDir={f}/spool-%n
SlurmctldPidFile={f}/slurmctld.pid
SlurmdPidFile={f}/slurmd-%n.pid
SlurmctldLogFile={f}/log/slurmctld
SlurmdLogFile={f}/log/slurmd-%n
{nodes}
PartitionName=low Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes={",".join(NODES)} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports

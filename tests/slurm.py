"""A real Slurm of one node on this machine, for tests: its own ports, folders, munge key and socket.

It accounts for nothing and contains nothing, and needs no root. Its
GPUs are /dev/null, /dev/zero and /dev/full: enough for Slurm to hand them out and to say which.
"""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SYSTEM = "/usr/sbin:/sbin"  # where Debian keeps them
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=2
GresTypes=gpu
NodeName=one NodeAddr=127.0.0.1 NodeHostname={host} CPUs={cpus} RealMemory=65536 Gres=gpu:3 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def find_missing() -> str | None:
    """Why no Slurm can be started here, in capitals; None where it can."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:{SYSTEM}")]
    return f"SLURM IS NOT INSTALLED ({' '.join(missing)}): apt install slurm-wlm munge" if missing else None


@contextlib.contextmanager
def start_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A Slurm that runs while the block does; gives the environment for its commands.

    ``folder`` should have a short name: sockets lie there. RuntimeError, with what the daemons
    said, where Slurm does not come up.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:{SYSTEM}"}
    host = socket.gethostname().split(".")[0]
    ports = dict(zip(("controller", "node"), _find_free_ports(2), strict=True))
    configuration = CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), cpus=16, **ports)
    (folder / "slurm.conf").write_text(configuration)
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={_write_cgroup_plugin(environment)}\n")
    gpus = [f"NodeName=one Name=gpu Flags=nvidia_gpu_env File=/dev/{device}\n" for device in ("null", "zero", "full")]
    (folder / "gres.conf").write_text("".join(gpus))
    _wrap_srun(folder / "bin", environment)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}"]
    munge += [f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"]
    with contextlib.ExitStack() as running:
        for command in (munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "one"]):
            running.enter_context(_start_daemon(command, environment, folder))
            if command is munge:
                _wait_until(lambda: Path(files["socket"]).exists(), folder, "munged")
        _wait_until(lambda: _is_idle(environment), folder, "slurmctld and slurmd")
        yield environment
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=environment, capture_output=True)


def _wrap_srun(folder: Path, environment: dict[str, str]) -> None:
    """Puts an srun in front that knows its Slurm: Snakemake's jobs forget SLURM_CONF before they call it."""
    folder.mkdir()
    real = shutil.which("srun", path=environment["PATH"])
    wrapper = folder / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={environment["SLURM_CONF"]} exec {real} "$@"\n')
    wrapper.chmod(0o755)
    environment["PATH"] = f"{folder}:{environment['PATH']}"


@contextlib.contextmanager
def _start_daemon(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{command[0]}.said").open("w") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _write_cgroup_plugin(environment: dict[str, str]) -> str:
    """None is wanted, but only newer versions can do without one."""
    said = subprocess.run(["slurmd", "-V"], env=environment, capture_output=True, text=True).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    return "disabled" if version >= (23, 11) else "cgroup/v1"


def _find_free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_idle(environment: dict[str, str]) -> bool:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip() == "idle"


def _wait_until(ready, folder: Path, what: str, seconds: int = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            said = {
                path.name: path.read_text()[-600:] for path in sorted([*folder.glob("*.said"), *folder.glob("*.log")])
            }
            raise RuntimeError(f"{what} did not come up: {said}")
        time.sleep(0.2)

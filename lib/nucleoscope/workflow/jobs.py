"""One job of the graph: a command with a log, GPUs of its own, and a status file that says how it ended.

Contract: this module starts the command and decides the exit status; it knows nothing of models.
"""

import os
import sys
from pathlib import Path

from nucleoscope.models import gpus
from nucleoscope.workflow import logs, status

NICENESS = 10  # of a job that must not slow another one down: a tenth of its share of a core, and all of an idle one
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # how many threads torch starts, which Snakemake sets to a job's cores


def run(
    command: list[str], log: Path, gpu_count: int | None = None, status_file: Path | None = None, tries_left: int = 0
) -> int:
    """Runs ``command`` with its output copied to ``log``; returns the exit status for the graph.

    ``gpu_count``: GPUs of this machine that the command gets for itself; 0 hides all, None leaves the
    environment alone. A job with a ``status_file`` ends well for the graph even if its command fails, so
    that the graph continues; the file says what happened. Only a command that was killed or interrupted,
    or has ``tries_left``, keeps its own exit status, and the graph tries again. A negative ``tries_left``
    runs nothing and records how the last try ended. OSError if there is no log or no GPU.
    """
    if status_file is None:
        return _run(command, log, gpu_count)
    if tries_left < 0:
        failed = not log.is_file() or logs.has_failed(log)
    else:
        failed = code = _run(command, log, gpu_count)
        if code and (tries_left or code >= 128):  # 128 and a signal's number
            return code
    status.write_status(status_file, logs.explain(log) if failed else None)
    return 0


def _run(command: list[str], log: Path, gpu_count: int | None) -> int:
    try:
        return _run_with_gpus(command, log, gpu_count)
    finally:
        _flush_output()


def _flush_output() -> None:
    """Writes what the output still holds. What nobody can take is dropped: Python would report it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_with_gpus(command: list[str], log: Path, gpu_count: int | None) -> int:
    if gpu_count is None:
        return logs.run(command, log)
    with gpus.claim(gpu_count, lambda line: logs.note(command, log, line)) as mine:
        environment = os.environ | {gpus.VISIBLE: ",".join(mine)}
        return logs.run(command, log, environment, mine.values())

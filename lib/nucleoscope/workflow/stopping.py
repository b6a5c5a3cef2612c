"""What happens when Snakemake is told to stop: its jobs are told, and it ends when they have ended.

Contract: `watch` is called once, when Snakemake's scheduler exists and no job has started. Snakemake itself passes no
signal on. At SIGTERM it waits for its jobs, which may take hours; and it waits forever if SIGTERM arrives while it is
choosing jobs, or twice in a row, because its handler needs a lock that the interrupted thread may have. `timeout`
sends SIGTERM to make and to all that make has started, and make passes its own on: that is twice in a row.
"""

import contextlib
import signal
import threading

import psutil
from snakemake.logging import logger

AGAIN = "interrupted: run the same command again to resume"
JOB = "scripts/job.py"  # in the command of each job: it passes SIGTERM on
PATIENCE = 60  # seconds that a job has to save and to end before it is killed
# Ctrl-C reaches jobs from the terminal: it would be wrong to disturb them while they end. Other signals do not.
HEAD_START = {signal.SIGINT: 10}
PAUSE = 0.5  # seconds between two looks at the jobs: one may just have been starting

arrived: list[int] = []  # the signals that have arrived


def interrupt(number: int, _: object) -> None:
    """A handler for the time in which there are no jobs: ends the program, as Ctrl-C does."""
    arrived.append(number)
    raise KeyboardInterrupt


def watch() -> None:
    """From now on, SIGINT, SIGTERM and SIGHUP stop the jobs of this process, which ends after them."""
    arrived.clear()  # one that some code has caught before
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    """A handler that may be interrupted by itself: it takes no lock, and only the first signal raises an exception.

    Snakemake then waits for its jobs, and must not be disturbed.
    """
    arrived.append(number)
    if len(arrived) == 1:
        logger.disabled = True  # it would report each job that stops as an error; the report is one line
        threading.Thread(target=_stop_jobs, daemon=True).start()
        raise KeyboardInterrupt


def _stop_jobs() -> None:
    """Tells each job once to stop, also one that is only starting, and kills it if it does not; ends with the process.

    A second signal of any kind means: at once.
    """
    told: dict[psutil.Process, float] = {}
    waited, pause = 0.0, threading.Event()
    while True:
        if waited >= HEAD_START.get(arrived[0], 0) or len(arrived) > 1:
            for job in _list_jobs():
                if job not in told:
                    told[job] = waited
                    with contextlib.suppress(psutil.Error):
                        job.terminate()
                elif waited - told[job] >= PATIENCE:
                    _kill(job)
        pause.wait(PAUSE)
        waited += PAUSE


def _list_jobs() -> list[psutil.Process]:
    """The jobs that run now: children of this process, or of a shell that is its child."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if JOB in child.cmdline():
                    found.append(child)
    return found


def _kill(job: psutil.Process) -> None:
    """Kills a job and what it has started: the job last, because this process, and with it this thread, ends with it.

    It is suspended first, so that it starts nothing more.
    """
    with contextlib.suppress(psutil.Error):
        job.suspend()
        for process in [*job.children(recursive=True), job]:
            with contextlib.suppress(psutil.Error):
                process.kill()

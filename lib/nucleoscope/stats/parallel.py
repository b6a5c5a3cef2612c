"""One function of many items, in several processes.

Contract: no numbers are computed here. Each process learns from its environment how many threads it may start: with one
per core in each of several processes, they would take the cores from each other.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

MEMORY = 1 << 30  # bytes that all processes of `map_parallel` may take together
PROCESS = 160 << 20  # bytes of a process that has imported what the statistics need
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # what numerical libraries read at the start


def map_parallel(function: Callable, items: Iterable[Any], jobs: int | None = 1, need: int = 0) -> list:
    """[function(item) ...], in ``jobs`` processes at once.

    None means one per core, but no more than fit into `MEMORY` if an item takes ``need`` bytes.
    Processes are spawned, not forked: a fork of a process whose threads hold locks can hang. Items are
    sent to them, so they should be small. Each process may start as many threads as its share of the cores.
    """
    items = list(items)
    jobs = min(jobs or min(count_cores(), max(1, MEMORY // (PROCESS + need))), len(items))
    if jobs < 2:
        return [function(item) for item in items]
    context, threads = multiprocessing.get_context("spawn"), max(1, count_cores() // jobs)
    with _limit_threads(threads), ProcessPoolExecutor(jobs, context) as pool:
        return list(pool.map(function, items))


def count_cores() -> int:
    """The number of cores that this process may use; on some systems, the number of all cores.

    OMP_NUM_THREADS reduces it, as it does for torch and numpy: Snakemake sets it to the cores of a job.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(available, int(wanted)) if wanted.isdecimal() and int(wanted) else available


@contextlib.contextmanager
def _limit_threads(number: int) -> Iterator[None]:
    """Within the block, new processes start at most this ``number`` of threads, or fewer if the user says so.

    In the process itself nothing changes: its libraries have read the environment before.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    for name, value in before.items():
        fewer = value is not None and value.isdecimal() and 0 < int(value) < number
        os.environ[name] = value if fewer else str(number)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

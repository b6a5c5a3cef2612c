#!/usr/bin/env bash
# A thread that has run one operation of torch, and then only waits, slows the operations of another thread.
#
# torch 2.13.0 from PyPI on Linux, two or more cores: operations use libgomp. Its threads spin for a while after each
# operation, so that the next one begins at once, but hardly at all while there are more of them than cores. Each Python
# thread that runs an operation gets as many of its own, and keeps them until it ends. So one operation in a worker
# thread, such as that of an executor, makes short operations of the main thread several times slower, until the
# worker ends. torch.set_num_threads(1) in the worker, before its first operation, prevents it.
#
# Output seen (times depend on the machine):
#     alone: 14 us
#     beside a waiting thread that has run one operation: 117 us
#     after that thread has ended: 23 us
#     beside a waiting thread with torch.set_num_threads(1): 16 us
#
# Exits with a status other than 0 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
env -u OMP_NUM_THREADS -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import os
import statistics
import sys
import threading
import time

import torch

cores = len(os.sched_getaffinity(0))
if cores < 2:
    sys.exit("this needs two cores")
torch.set_num_threads(cores)
values = torch.randn(60_000 * cores)  # enough for all threads to take part


def measure() -> float:
    """The median time of a short operation, in microseconds."""
    times = []
    for _ in range(4000):
        start = time.perf_counter()
        values + 1
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


@contextlib.contextmanager
def wait_beside(threads: int):
    """Another thread that has run one operation and waits until the block ends."""
    ready, over = threading.Event(), threading.Event()

    def run() -> None:
        torch.set_num_threads(threads)
        values + 1
        ready.set()
        over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    torch.set_num_threads(cores)
    yield
    over.set()
    thread.join()


measure()
alone = measure()
with wait_beside(cores):
    slow = measure()
after = measure()
with wait_beside(1):
    single = measure()
print(f"alone: {alone:.0f} us")
print(f"beside a waiting thread that has run one operation: {slow:.0f} us")
print(f"after that thread has ended: {after:.0f} us")
print(f"beside a waiting thread with torch.set_num_threads(1): {single:.0f} us")
if slow < 1.5 * max(alone, after, single):
    sys.exit("this has changed")
PYTHON

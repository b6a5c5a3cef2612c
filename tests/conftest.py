"""The order of tests, and disks of their own for some: a small one, and one that cannot be written to."""

import itertools
import os
import subprocess
import sys
from unittest import mock

import pytest

# Tests run side by side, and threads that share cores wait for each other at full speed: the arithmetic of a worker has
# one thread. These libraries read this when they are imported; what a test starts does not inherit it.
with mock.patch.dict(os.environ, OPENBLAS_NUM_THREADS="1"):
    import numpy  # noqa: F401
    import scipy.linalg  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has each worker begin with its share of the tests that are marked as long, those of a file together.

    pytest-xdist gives each worker a contiguous part of the tests, and one that has nothing left half of what another
    one still has. What is left at the end is short then, so that no worker waits for another one's long test.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    long = [item for item in items if item.get_closest_marker("long")]
    others = [item for item in items if not item.get_closest_marker("long")]
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for _, group in itertools.groupby(long, lambda item: item.path):
        min(shares, key=len).extend(group)
    ends = [len(items) * (number + 1) // workers for number in range(workers)]
    ordered: list[pytest.Item] = []
    for share, end in zip(shares, ends, strict=True):
        ordered += share
        room = max(0, end - len(ordered))
        ordered += others[:room]
        del others[:room]
    items[:] = ordered + others


def mount(place, options: str):
    """A tmpfs on the folder ``place``, as a generator of it, or a test that is skipped."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NO MOUNTING HERE: full and read-only disks are untested (needs Linux and root)")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    yield from mount(place, "size=256k")


@pytest.fixture
def small_disk_made_read_only(small_disk):
    """A function that makes the small disk read-only; root may write everywhere but there."""
    return lambda: subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

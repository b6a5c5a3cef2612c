"""Disks of their own for tests: a small one, and one that cannot be written to."""

import subprocess
import sys

import pytest


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

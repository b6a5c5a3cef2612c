"""How much memory this process may use, as the system says: what is certainly too large is refused before it is loaded.

Contract: an upper bound, so that nothing that would fit is refused. Importing this is quick.
"""

import os
from pathlib import Path

NONE = 2**60  # no limit: version 1 of control groups writes one of nearly 2**63
MEMINFO, GROUPS, MOUNT = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def read_total() -> int:
    """Bytes of memory that the machine has, or the group of this process may have."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_read_limits()])


def read_available() -> int:
    """Bytes of memory and swap that this process can get at most: what is available, within the limit of its group.

    Where the system does not say how much is available (macOS), all memory of the machine.
    """
    try:
        entries = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        free = sum(int(entries[name].split()[0]) for name in ("MemAvailable", "SwapFree")) * 1024
    except (OSError, KeyError):
        return read_total()
    return min([free, *_read_limits()])


def _read_limits() -> list[int]:
    """The limits of the control groups of this process, such as a job of Slurm or a container has."""
    try:
        lines = GROUPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":  # version 2
            found.append(_read_limit(MOUNT, path, "memory.max") + _read_limit(MOUNT, path, "memory.swap.max"))
        elif "memory" in controllers.split(","):
            found.append(_read_limit(MOUNT / "memory", path, "memory.memsw.limit_in_bytes"))
    return [limit for limit in found if limit < NONE]


def _read_limit(mount: Path, path: str, name: str) -> int:
    """The smallest number in a file of a group and of those that contain it."""
    group = mount / path.lstrip("/")
    limits = [NONE]
    for folder in (group, *group.parents):
        if folder.is_relative_to(mount) and (folder / name).is_file():
            text = (folder / name).read_text(encoding="ascii").strip()
            limits.append(int(text) if text.isdecimal() else NONE)  # "max"
    return min(limits)

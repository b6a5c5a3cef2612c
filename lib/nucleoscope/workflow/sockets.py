"""Folders for the sockets of a notebook's process: short, private, and removed even after a kill.

Contract: a folder is in the machine's temporary folder, belongs to the process that made it, and says so in a
file. What killed processes have left is removed by the next one.
"""

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nucleoscope.atomic import ABANDONED, is_alive

PREFIX, OWNER = "nucleoscope-", "owner"
LONGEST = 103  # bytes of a socket's path, which the system limits: 107 on Linux, 103 on macOS
SHORT = "/tmp"  # where sockets are if TMPDIR is too long


@contextlib.contextmanager
def create_folder() -> Iterator[Path]:
    """A new folder for sockets named kernel-1 to kernel-5, removed at the end. OSError, in one line, if there is none.

    Other users cannot listen in, and processes that start together on one machine never share a port.
    """
    base = tempfile.gettempdir()
    if len(os.fsencode(f"{base}/{PREFIX}12345678/kernel-5")) > LONGEST:
        base = SHORT
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        (folder / OWNER).write_text(f"{os.getpid()} {socket.gethostname()}")
    except OSError as error:
        raise type(error)(
            f"cannot create a temporary folder in '{base}' ({error.strerror}): set TMPDIR to another folder"
        ) from None
    sweep(Path(base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(base: Path) -> None:
    """Removes the folders in ``base`` that processes of this user on this machine left when they were killed."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # another process is faster, or it is something else
            found = folder.lstat()  # of a link, the link's own
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            process, _, host = (folder / OWNER).read_text().partition(" ")
            abandoned = time.time() - found.st_mtime > ABANDONED
            if abandoned and host == socket.gethostname() and not is_alive(int(process)):
                shutil.rmtree(folder)

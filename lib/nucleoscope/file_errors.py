"""Whose fault it is that a file cannot be read: its own, or the system's.

Contract: a file that the system could not read, for want of memory, permission or a free descriptor, may be good. It is
never called damaged, removed or measured again; what the system said is shown instead.
"""

import errno
import os
import re
from pathlib import Path

# A truncated file can be an invalid argument: that number is not among these.
SYSTEM = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


def blames_system(error: BaseException) -> bool:
    """Whether an error says that the system could not read a file, which may be good."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SYSTEM)


def check_regular(path: Path, name: str) -> None:
    """Raises OSError, in one line, unless ``path``, which a user called ``name``, is a regular file.

    A pipe can be read only once, and a device need not end; both are more often a mistake than meant.
    """
    if path.is_file():
        return
    if path.exists():
        raise OSError(f"'{name}' is not a regular file: copy its contents to one")
    raise FileNotFoundError(f"file '{name}' does not exist: check the path")


def raise_system_error(error: BaseException, path: str | os.PathLike) -> None:
    """Raises OSError, in one line, if an error says that the system could not read ``path``; else does nothing."""
    if blames_system(error):
        raise OSError(f"cannot read '{path}': {find_system_cause(error, path)}") from None


def find_system_cause(error: BaseException, path: str | os.PathLike | None = None) -> str | None:
    """Why the system could not read a file that may be good, such as missing permission; None if it could.

    torch reports some of these as a RuntimeError without a number, safetensors with the number in the message. Of an
    error that says neither, ``path`` decides, the file that was to be read.
    """
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return os.strerror(error.errno)
    if (found := re.search(r"\(os error (\d+)\)", str(error))) and int(found[1]) in SYSTEM:
        return os.strerror(int(found[1]))
    if path is None:
        return None
    try:
        with open(path, "rb") as stream:
            stream.read(1)
    except OSError as cause:
        return cause.strerror
    return None

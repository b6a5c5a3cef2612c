"""Files: atomic writing, by which one appears under its name only when it is complete; opening plainly; hashes.

Contract: this module does not depend on what is in the files.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

ABANDONED = 3600  # seconds without a change after which a partial file counts as abandoned


@contextlib.contextmanager
def write_atomically(path: Path, before_replacing: Callable[[], None] | None = None) -> Iterator[Any]:
    """A binary file to write to; it appears as ``path`` only when the block ends without an error.

    ``before_replacing`` is called when the new content is safe on the disk, just before it gets its name.

    Partial copies of the same file that killed processes left behind are removed: immediately if those
    processes ran on this machine, otherwise once they have not changed for `ABANDONED` seconds.
    """
    part_file = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        part_file.unlink(missing_ok=True)  # of an earlier process with the same number
        with part_file.open("xb") as stream:  # never through a link that somebody has put there
            _sweep(path, os.fstat(stream.fileno()).st_mtime)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if before_replacing:
            before_replacing()
        part_file.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch: "unexpected pos" on a full disk
        if not isinstance(cause, OSError):
            raise
        raise type(cause)(cause.errno, cause.strerror, str(path)) from None
    finally:
        part_file.unlink(missing_ok=True)


def compile_names(names: str) -> re.Pattern:
    """A pattern for files with some ``names``, a regular expression, and for partial copies of them that were left."""
    return re.compile(rf"(?:{names})|\.(?:{names})\..+\.\d+\.part")


def remove_files(paths: Iterable[Path], last: str) -> None:
    """Removes files, the one with the name ``last`` after all others: a kill in between leaves none without it."""
    for path in sorted(paths, key=lambda path: path.name == last):
        path.unlink(missing_ok=True)


class NotPlainError(OSError):
    """Something else than a plain file has the name of a file that is to be written: a link, a pipe, a folder."""


def open_plainly(path: Path) -> IO[bytes]:
    """Opens a file to append to and to read, unbuffered, and creates it if it does not exist.

    NotPlainError, in one line, if there is something else under that name: a link, which may lead to anybody's
    file, or a pipe, which would wait for a reader for ever.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        stream = open(path, "a+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO) or not os.path.lexists(path):
            raise
        raise NotPlainError(f"'{path}' is {_describe_kind(path)}: remove it") from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise NotPlainError(f"'{path}' is {_describe_kind(path)}: remove it")
    return stream


def _describe_kind(path: Path) -> str:
    return "a link" if path.is_symlink() else "not a plain file"


def _sweep(path: Path, now: float) -> None:
    """Removes abandoned partial copies of a file; ``now`` is the time according to its file system."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        host, _, process = part.name[len(path.name) + 2 : -len(".part")].rpartition(".")
        with contextlib.suppress(OSError):  # already removed
            ours = host == socket.gethostname() and process.isdecimal()
            if (not is_alive(int(process))) if ours else (now - part.stat().st_mtime > ABANDONED):
                part.unlink()


def is_alive(process: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def hash_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, read in parts: it may be larger than the memory."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as readable JSON, atomically."""
    with write_atomically(path) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

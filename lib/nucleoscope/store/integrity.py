"""Whether a file of results is whole, as far as its ends tell: fast enough to ask about every run of a grid.

Contract: only the first and the last bytes of a file are read. All these files are written atomically, so one
that is not whole was cut off later, by a disk or in a copy, and then its end is missing. What is wrong in the
middle of a file shows when it is read.
"""

import os
import zipfile
from pathlib import Path

EDGE = 64  # bytes that are read at each end
WHOLE = {  # by suffix: how a file begins, and how it ends, white space aside
    ".parquet": (b"PAR1", b"PAR1"),
    ".ipynb": (b"{", b"\n}"),  # as nbformat writes it, only the last brace is at the start of a line
    ".json": (b"{", b"}"),
    ".png": (b"\x89PNG", b"IEND\xaeB`\x82"),
    ".pdf": (b"%PDF", b"%%EOF"),
}


def find_damage(path: Path) -> str | None:
    """Why a file is not whole, in one line, or None. OSError if the system cannot read it."""
    with path.open("rb") as stream:
        first = stream.read(EDGE)
        stream.seek(-min(EDGE, os.fstat(stream.fileno()).st_size), os.SEEK_END)
        last = stream.read()
    if not first:
        return f"'{path}' is empty"
    if path.suffix == ".pt":
        whole = zipfile.is_zipfile(path) if first.startswith(b"PK") else first.startswith(b"\x80")  # older: a pickle
    else:
        begins, ends = WHOLE.get(path.suffix, (b"", b""))
        whole = first.startswith(begins) and last.rstrip(b" \r\n").endswith(ends)
    return None if whole else f"'{path}' is truncated or was not written by Nucleoscope"


def is_permitted(path: Path, mode: int) -> bool:
    """Whether this process may read, write or enter ``path``; ``mode`` as in `os.access`."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def find_problem(path: Path) -> str | None:
    """Why a file cannot be used, in one line, or None: it is missing, or not whole.

    OSError if the system cannot read it, so that a good file is never taken for a damaged one.
    """
    return find_damage(path) if path.is_file() else f"'{path}' is missing"


def is_whole(path: Path) -> bool:
    """Whether a file exists, can be read, and is whole: for files that can be recreated in seconds, such as a page."""
    try:
        return not find_problem(path)
    except OSError:
        return False

"""A measurements file in, its records out without their candidates: what a table of tokens needs, and no more.

Contract: no torch, and the candidates are never read, however many there are. The file is what `torch.save`
writes: a zip archive with a pickle in it. Of that pickle only lists, dicts, numbers, texts and vectors
are taken, and no name in it is ever looked up. Where anything else turns up this gives up: the caller
has `torch.load` to say what is wrong.
"""

import functools
import os
import pickle
import sys
import zipfile
from typing import TYPE_CHECKING, Any

# numpy is imported where it is used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np


class Unfamiliar(ValueError):
    """The file is not as our runs write it."""


class Vector:
    """A tensor that was not read: its storage in the archive, and its length. It cannot be taken for numbers."""

    __slots__ = ("key", "size", "start")

    def __init__(self, size: int, key: str = "", start: int = 0):
        self.size, self.key, self.start = size, key, start

    def __len__(self) -> int:
        return self.size


def light(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a measurements file, with a `Vector` for each nucleus and arrays of tokens.

    A million tokens take seconds and 1.3 GB, whatever the size of their nuclei. Raises `Unfamiliar`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = name.removesuffix("data.pkl")
            if sys.byteorder != "little" or archive.read(f"{root}byteorder") != b"little":
                raise Unfamiliar("another byte order")
            with archive.open(name) as stream:
                records = _Records(stream).load()
            for record in records:
                if isinstance(record.get("tokens"), Vector):
                    record["tokens"] = _longs(archive, root, record["tokens"])
    except FileNotFoundError:
        raise
    except Exception as error:  # what is in a file that is not ours is anybody's guess
        raise Unfamiliar(f"'{path}': {error}") from None
    return records


def _longs(archive: zipfile.ZipFile, root: str, vector: Vector) -> "np.ndarray":
    import numpy as np

    stored = np.frombuffer(archive.read(f"{root}data/{vector.key}") if vector.key else b"", np.int64)
    values = stored[vector.start : vector.start + vector.size]
    if len(values) != vector.size:
        raise Unfamiliar("tokens are no vector of int64, or cut short")
    return values.copy()  # not a view that keeps all of a storage


class _Records(pickle.Unpickler):
    """Takes what torch.save writes of our records; a name in the file stands for something of this module."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        # Not a method: the unpickler keeps all that it has seen, and must not keep itself.
        self.vector = functools.partial(_vector, {})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.vector
        if (module, name) == ("collections", "OrderedDict"):
            return _nothing  # a tensor's hooks: none
        if module == "torch" and name.endswith("Storage"):
            return name
        raise Unfamiliar(f"{module}.{name} is no part of a measurements file")

    def persistent_load(self, pid: tuple) -> tuple[str, str]:
        _, kind, key, *_ = pid
        return kind, key


def _vector(
    known: dict[int, Vector], storage: tuple[str, str], start: int, size: tuple, stride: tuple, *_: Any
) -> Vector:
    """What stands for a tensor. Those of int64 may be tokens; of the others all of one size share one."""
    (length,) = size
    if stride != (1,):
        raise Unfamiliar("a tensor is not a plain vector")
    if storage[0] == "LongStorage":
        return Vector(length, storage[1], start)
    found = known.get(length)
    if found is None:
        found = known[length] = Vector(length)
    return found


def _nothing() -> None:
    return None

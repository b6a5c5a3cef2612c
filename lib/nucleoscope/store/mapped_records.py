"""Reads the records of a measurements file without an index, with tensors that stay in the file until they are used.

Contract: torch reads the file; this module only specifies what may be in it (lists, dicts, numbers,
strings and vectors; no other name in a file is ever looked up) and replaces each tensor by a
`MappedVector`. A file that a run has written has an index, by which `record_files` reads single records; those of the
study and of earlier versions have none, and no parquet file has their candidates. Second passes (`parts`) read either
kind here, because they keep the texts of all prompts while the candidates stay in the file. So does the check of
finished results, which asks whether torch can read them. ``torch.load`` alone, also with ``mmap=True``, makes a tensor
of every token's candidates: for 10,000 prompts of 100 tokens in 109 s and 3.8 GB, here in 28 s and 0.8 GB.
"""

import functools
import io
import os
import pickle
import struct
import weakref
import zipfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# torch is imported where it is used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np
    import torch

EVERY = 100_000  # number of vectors after which an unpickler drops objects that it need not keep


class MappedVector:
    """A vector in a file: `read` returns it as a tensor; `len` gives its length without reading it."""

    __slots__ = ("size", "start", "storage")

    def __init__(self, storage: Any, start: int, size: tuple[int], stride: tuple[int], *_: Any):
        if len(size) != 1 or stride != (1,):
            raise pickle.UnpicklingError("a tensor is not a plain vector")
        self.storage, self.start, self.size = storage, start, size[0]

    def __len__(self) -> int:
        return self.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "np.ndarray":
        import numpy as np

        return np.asarray(self.read().numpy(), dtype)

    def read(self) -> "torch.Tensor":
        """The vector as an independent tensor, which does not need the file any more."""
        from torch._utils import _rebuild_tensor_v2

        return _rebuild_tensor_v2(self.storage, self.start, (self.size,), (1,), False, None).clone()


def map_records(path: str | os.PathLike, trim: Callable[[int, dict], None] | None = None) -> Any:
    """The content of a measurements file, with a `MappedVector` for each tensor.

    ``trim(index, record)`` may empty what is not needed of a record, while others are still to be read;
    it is not called for the records of the last `EVERY` vectors. Raises whatever torch and pickle raise if
    the file is damaged or was not written by Nucleoscope.
    """
    import torch

    check_sizes(path)
    unpickler = type("_Unpickler", (_Unpickler,), {"trim": staticmethod(trim)})
    loader = SimpleNamespace(__name__="pickle", Unpickler=unpickler)
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=loader)


class UnusualArchive(pickle.UnpicklingError):
    """An archive that torch.save does not write; the message says what it is."""


def check_sizes(path: str | os.PathLike) -> None:
    """Raises `UnusualArchive` for an archive that torch.save does not write, before any of it is read.

    A compressed archive of some kilobytes can unpack to gigabytes; torch.save compresses nothing, so the
    parts of its archives are together smaller than the file. A file in torch's older format, which is no archive, is
    not checked.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.filename.endswith("constants.pkl") for part in parts):  # a program, which torch would load as one
        raise UnusualArchive("a TorchScript archive is not a measurements file")
    total, size = sum(part.file_size for part in parts), os.path.getsize(path)
    if total > size:
        raise UnusualArchive(f"an archive of {size:,} bytes that unpacks to {total:,}")


def read_vectors(value: Any) -> Any:
    """The same value with its vectors read."""
    if isinstance(value, list):
        return [read_vectors(item) for item in value]
    return value.read() if isinstance(value, MappedVector) else value


class _Unpickler(pickle.Unpickler):
    """Resolves the names in a measurements file; torch has already handled the types of its storages.

    An unpickler keeps every object that a file may refer to again. The half dozen objects per tensor are
    never referred to again and would take most of the memory, so they are dropped from time to time. If a
    file does refer to one again, that is an UnpicklingError.
    """

    trim: Callable[[int, dict], None] | None = None

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        # Not a method: the unpickler keeps everything that it finds, and must not keep itself.
        self.rebuild = functools.partial(_rebuild, weakref.ref(self))
        self.vectors = self.records = 0

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("collections", "OrderedDict"):  # a tensor's hooks: none
            return _return_none
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a measurements file")

    def forget(self) -> None:
        """Drops tensors, the objects they were made from, and completed values; trims completed records."""
        memo = self.memo.copy()
        if self.trim:
            for place in sorted(memo):
                # a dict gets its items all at once, when the last one has been read
                if isinstance(memo[place], dict) and "prompt" in memo[place]:
                    self.trim(self.records, memo[place])
                    self.records += 1
        # the record that is being read has no items yet: it must be there, to be counted, when it is complete
        kept = {
            place: value
            for place, value in memo.items()
            if not isinstance(value, FORGOTTEN) or (isinstance(value, dict) and not value)
        }
        # A memo can only be set to another unpickler's memo (with a dict, CPython loses the entries), so another
        # unpickler reads a pickle that puts each value in its place: its number, the value, put, pop.
        stream = b"".join(struct.pack("<ciccIc", b"J", place, b"Q", b"r", place, b"0") for place in kept)
        other = pickle.Unpickler(io.BytesIO(stream + b"N."))
        other.persistent_load = kept.__getitem__
        other.load()
        self.memo = other.memo


def _rebuild(unpickler: weakref.ref, *arguments: Any) -> MappedVector:
    vector, owner = MappedVector(*arguments), unpickler()
    owner.vectors += 1
    if owner.vectors % EVERY == 0:
        owner.forget()
    return vector


def _return_none() -> None:
    return None


FORGOTTEN = (tuple, list, dict, MappedVector, type(None))

"""Writes files of records, and joins them in another order, without having more than one record's pickle in memory.

Contract: what is written is what ``torch.save`` would write for a list of records: a zip archive with a pickle of the
list, in which each vector refers to a part of the archive. ``torch.load(..., weights_only=True)`` reads it. Here, a
record's piece of the pickle is complete in itself, and the parts that it refers to are named after its prompt, so that
pieces and parts are copied from a run's batches into its measurements as they are. An additional part of the archive,
which torch ignores, lists the pieces.

Parts of a file written with this module are checked when they are copied or read: each has a checksum.
"""

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from nucleoscope.file_errors import blames_system

# torch is imported where it is used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import torch

FOLDER = "archive/"  # of all parts, as torch.save calls it
PICKLE, DATA, ORDER, VERSION = (FOLDER + name for name in ("data.pkl", "data/", "byteorder", "version"))
INDEX, BATCH, VARIANTS = (FOLDER + name for name in ("records.json", "batch.json", "variants/"))  # ours
ALIGNMENT = 64  # bytes: where a part's content begins, so that its numbers can be mapped into memory
HEADER, LARGE_SIZES = 30, 20  # bytes of a part's header before its name, and of its room for large sizes
LARGE = 2**30  # bytes of a part from which on its header has room for sizes beyond 4 GiB

# A pickle of protocol 2, which is torch's: an empty list, to which each piece appends a record.
HEAD, END = b"\x80\x02]", b"."
# What a pickle refers to again has a number, its place in the memo. These are used in each piece anew.
NAMED = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00", b"ccollections\nOrderedDict\nq\x01"
NAMED_AGAIN = b"h\x00", b"h\x01"
KEEP_STORAGE, STORAGE = b"q\x02", b"h\x02"
FIRST = 3  # the place of the record of prompt 0; a place of its own for each lets a reader count them
VECTOR, NUMBER = 45, 9  # bytes of a piece that a vector takes, without its numbers, and a number in a list
PUT = 5  # bytes that give the record its place, after the first of a piece, which begins it


@dataclass(frozen=True)
class KeptFile:
    """A file that this process has written and whose content is still in memory: it is not read from disk again."""

    path: Path
    content: bytes = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def open(self, _: str = "rb") -> IO[bytes]:
        """As `Path.open`."""
        return io.BytesIO(self.content)


class Piece(NamedTuple):
    """Where something of one prompt is, such as its pickle: a file, the first byte, how many, and their CRC-32."""

    path: Path | KeptFile
    start: int
    length: int
    checksum: int


def write_records(
    stream: IO[bytes],
    prompts: Sequence[int],
    records: Sequence[dict],
    batch: dict[str, Any],
    variants: Sequence["torch.Tensor"] = (),
) -> None:
    """Writes the ``records`` of these prompts, in this order, and the description of the ``batch``, which is JSON.

    ``stream`` is seekable. Tensors are vectors, in lists or alone. ValueError for others. ``variants`` are numbers of
    each prompt's tokens that are no part of its record: a tensor for each prompt, or nothing.
    """
    pieces = []
    with zipfile.ZipFile(stream, "w") as archive:
        for prompt, record in zip(prompts, records, strict=True):
            writer = _Pickling(prompt)
            pieces.append(writer.pickle(record))
            for name, content in writer.storages.items():
                _write(archive, stream, DATA + name, [content], len(content))
        _write(archive, stream, PICKLE, [HEAD, *pieces, END], len(HEAD) + sum(map(len, pieces)) + len(END))
        fields = sorted({key for record in records for key in record})
        _finish(archive, stream, prompts, map(len, pieces), map(zlib.crc32, pieces), fields)
        _write_json(archive, stream, BATCH, batch)
        for prompt, values in zip(prompts, variants, strict=True) if len(variants) else ():
            content = values.contiguous().numpy().tobytes()
            _write(archive, stream, f"{VARIANTS}{prompt}", [content], len(content))


def estimate_size(records: Iterable[dict], variants: Sequence["torch.Tensor"] = ()) -> int:
    """About how many bytes `write_records` writes, without writing them; a file's parts and index take some more."""
    size = sum(values.nbytes for values in variants)
    for record in records:
        storages = dict[int, int]()
        for value in record.values():
            items = value if isinstance(value, list) else [value]
            vectors = [item for item in items if _is_vector(item)]
            storages |= {vector.untyped_storage().data_ptr(): vector.untyped_storage().nbytes() for vector in vectors}
            size += VECTOR * len(vectors) + NUMBER * (len(items) - len(vectors))
        size += sum(storages.values())
    return size


def find_variants(path: Path | KeptFile) -> dict[int, Piece]:
    """Where the numbers are that `write_records` has written beside the records of some prompts, by the prompts.

    ValueError if the file is damaged.
    """
    with _open(path) as archive, path.open("rb") as stream:
        return {
            int(part.filename.removeprefix(VARIANTS)): Piece(path, _find_start(part, stream), part.file_size, part.CRC)
            for part in archive.infolist()
            if part.filename.startswith(VARIANTS)
        }


def read_piece(piece: Piece) -> bytes:
    """The content of a piece. ValueError, which names the file, if it is damaged."""
    with _report_damage(piece.path), piece.path.open("rb") as stream:
        return _read_checked(stream, piece)


def _read_checked(stream: IO[bytes], piece: Piece) -> bytes:
    stream.seek(piece.start)
    content = stream.read(piece.length)
    if zlib.crc32(content) != piece.checksum:
        raise ValueError("a wrong checksum")
    return content


def join_records(stream: IO[bytes], paths: Iterable[Path | KeptFile], n_prompts: int) -> None:
    """Writes the records of prompts 0 to ``n_prompts`` - 1 in this order, from files written by `write_records`.

    ValueError names a file that is damaged, KeyError is raised for a prompt that is in none of them.
    """
    pieces: dict[int, Piece] = {}
    fields: set[str] = set()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in paths:
            for name, content in _read_storages(path):
                if name not in archive.NameToInfo:  # of a prompt that is in two files, the first one counts
                    _write(archive, stream, name, [content], len(content))
            found, names = _find_pieces(path)
            pieces = found | pieces
            fields.update(names)
        ordered = [pieces[prompt] for prompt in range(n_prompts)]
        size = len(HEAD) + sum(piece.length for piece in ordered) + len(END)
        _write(archive, stream, PICKLE, _join_pieces(ordered), size)
        lengths, checksums = (piece.length for piece in ordered), (piece.checksum for piece in ordered)
        _finish(archive, stream, range(n_prompts), lengths, checksums, sorted(fields))


def read_batch(path: Path) -> dict[str, Any]:
    """The description of the batch in a file of `write_records`; its records are not read.

    ValueError if the file is damaged or has no description, OSError if the system cannot read it.
    """
    with _open(path) as archive:
        batch = json.loads(archive.read(BATCH))
        if not isinstance(batch, dict):
            raise ValueError("not an object")
        return batch


def read_fields(path: Path) -> list[str] | None:
    """The keys of the records of a file that `iterate_records` can read; None for any other file."""
    with contextlib.suppress(ValueError), _open(path) as archive:
        if archive.read(ORDER).decode() == sys.byteorder:
            return _read_index(archive)["fields"]
    return None


def iterate_records(path: Path, vectors: Collection[str] = ("tokens",)) -> Iterator[dict]:
    """The records of a file that was written with this module, one after the other.

    ``vectors`` are the fields whose vectors are read, as NumPy arrays; those of other fields have only a length.
    ValueError if the file is damaged.
    """
    with _open(path) as archive, archive.open(PICKLE) as stream:
        lengths = _read_index(archive)["lengths"]
        stream.read(len(HEAD))
        for length in lengths:
            yield _fill(archive, _read_record(stream.read(length)), vectors)


class OpenRecords:
    """A file that was written with this module, opened to read any of its records without the others.

    ``fields`` are the keys of its records, ``len`` is their number. ValueError for any other file, or if this one is
    damaged; OSError if the system cannot read it. Use it in a ``with`` block.
    """

    def __init__(self, path: Path):
        self.path = path
        with contextlib.ExitStack() as opened, _report_damage(path):
            self._archive, self._stream = opened.enter_context(_open(path)), opened.enter_context(path.open("rb"))
            if self._archive.read(ORDER).decode() != sys.byteorder:
                raise ValueError("the numbers are those of another kind of machine")
            index = _read_index(self._archive)
            if index["prompts"] != list(range(len(index["lengths"]))):
                raise ValueError("its records are not those of all prompts, in their order")
            self.fields, self._pieces = index["fields"], _list_pieces(path, self._archive, self._stream, index)
            self._opened = opened.pop_all()

    def __len__(self) -> int:
        return len(self._pieces)

    def __enter__(self) -> "OpenRecords":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, place: int, vectors: Collection[str]) -> dict:
        """The record at a ``place`` in the file, with the ``vectors`` of `iterate_records`; ValueError if damaged."""
        with _report_damage(self.path):
            return _fill(self._archive, _read_record(_read_checked(self._stream, self._pieces[place])), vectors)


def _fill(archive: zipfile.ZipFile, record: dict, names: Collection[str]) -> dict:
    """A record with the vectors of some fields, as arrays that nobody else has."""
    storages = dict[str, Any]()
    return record | {name: _read_vectors(archive, record[name], storages) for name in names if name in record}


def read_tokens(path: Path | KeptFile, prompts: Collection[int]) -> dict[int, list[int]]:
    """The ids of the tokens of some prompts, as far as they are in a file that was written with this module.

    No other record is unpickled. ValueError if the file is damaged.
    """
    found = {}
    with _open(path) as archive, archive.open(PICKLE) as stream:
        index = _read_index(archive)
        stream.read(len(HEAD))
        for prompt, length in zip(index["prompts"], index["lengths"], strict=True):
            content = stream.read(length)
            if prompt in prompts:
                found[prompt] = _read_vectors(archive, _read_record(content)["tokens"], {}).tolist()
    return found


def _read_record(piece: bytes) -> dict:
    # without its place: an unpickler has room for all lower places, as many as there are prompts before
    (record,) = _PieceUnpickler(io.BytesIO(HEAD + piece[:1] + piece[1 + PUT :] + END)).load()
    return record


def _read_vectors(archive: zipfile.ZipFile, value: Any, storages: dict[str, Any]) -> Any:
    """The same value with its vectors read; ``storages`` are the parts of the archive that were read before."""
    import numpy as np

    if isinstance(value, list) and value and isinstance(value[0], _Extent):
        return [_read_vectors(archive, each, storages) for each in value]
    if not isinstance(value, _Extent):
        return value
    if value.name not in storages:  # a bytearray, because torch warns of arrays that cannot be written to
        storages[value.name] = np.frombuffer(bytearray(archive.read(DATA + value.name)), value.kind)
    return storages[value.name][value.start : value.start + value.size]


class _Pickling:
    """The pickle of one prompt's record; ``storages`` are the contents of the parts that it refers to, by name."""

    def __init__(self, prompt: int):
        self.prompt = prompt
        self.storages: dict[str, memoryview] = {}
        self.names: dict[int, str] = {}  # of the storages, by their addresses
        self.current: int | None = None  # the address of the storage that has a place in the memo
        self.begun = False

    def pickle(self, record: dict) -> bytes:
        """The piece, which appends the record to a list."""
        parts = [struct.pack("<ccIc", b"}", b"r", FIRST + self.prompt, b"(")]
        for key, value in record.items():
            parts.append(_pickle_plainly(key))
            if _is_vector(value):
                parts.append(self._pickle_vector(value))
            elif isinstance(value, list) and value and _is_vector(value[0]):
                parts += [b"](", *map(self._pickle_vector, value), b"e"]
            else:
                parts.append(_pickle_plainly(value))
        return b"".join([*parts, b"ua"])  # the items become the dict's, the dict the list's

    def _pickle_vector(self, vector: "torch.Tensor") -> bytes:
        """torch._utils._rebuild_tensor_v2(storage, start, (size,), (1,), requires_grad=False, hooks=OrderedDict())."""
        if vector.dim() != 1:
            raise ValueError(f"a tensor of a record must be a vector, not of shape {tuple(vector.shape)}")
        vector = vector.detach().cpu().contiguous()
        storage = self._pickle_storage(vector)
        rebuild, hooks = NAMED_AGAIN if self.begun else NAMED
        self.begun = True
        numbers = (_pickle_number(vector.storage_offset()), _pickle_number(vector.numel()))
        return b"".join((rebuild, b"(", storage, *numbers, b"\x85K\x01\x85\x89", hooks, b")RtR"))

    def _pickle_storage(self, vector: "torch.Tensor") -> bytes:
        storage = vector.untyped_storage()
        address = storage.data_ptr()
        if address and address == self.current:
            return STORAGE
        name = self.names.get(address) if address else None
        if name is None:
            import torch

            name = f"{self.prompt}_{len(self.storages)}"
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.storages[name], self.names[address] = memoryview(whole.numpy()), name
        self.current = address
        kind = vector.type().rpartition(".")[2].removesuffix("Tensor") + "Storage"  # such as LongStorage
        size = _pickle_number(storage.nbytes() // vector.itemsize)
        word, key, place = map(_pickle_plainly, ("storage", name, "cpu"))
        return b"".join([b"(", word, f"ctorch\n{kind}\n".encode(), key, place, size, b"tQ", KEEP_STORAGE])


def _is_vector(value: Any) -> bool:
    return hasattr(value, "untyped_storage")


def _pickle_number(number: int) -> bytes:
    return struct.pack("<ci", b"J", number) if number < 2**31 else _pickle_plainly(number)


def _pickle_plainly(value: Any) -> bytes:
    """The pickle of numbers, strings and lists of them, without a place in the memo."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[2:-1]  # without the protocol and the end


class _Extent:
    """A vector in a file: the name of its part, the NumPy type, the first element, how many there are."""

    __slots__ = ("kind", "name", "size", "start")

    def __init__(self, storage: tuple[str, str], start: int, size: tuple[int], *_: Any):
        (self.name, self.kind), self.start, (self.size,) = storage, start, size

    def __len__(self) -> int:
        return self.size


KINDS = {"LongStorage": "i8", "IntStorage": "i4", "FloatStorage": "f4", "DoubleStorage": "f8"}
KINDS |= {"HalfStorage": "f2", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}


class _PieceUnpickler(pickle.Unpickler):
    """Reads one piece; no other name in it is ever looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Extent
        if (module, name) == ("collections", "OrderedDict"):
            return _return_none
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a measurements file")

    def persistent_load(self, identity: tuple) -> tuple[str, str]:
        _, kind, name, _, _ = identity
        return name, KINDS.get(kind, "")


def _return_none() -> None:
    return None


def _write(archive: zipfile.ZipFile, stream: IO[bytes], name: str, contents: Iterable[Any], size: int) -> None:
    """Adds a part of ``size`` bytes to the archive, which is written to the ``stream``."""
    part, large = zipfile.ZipInfo(name), size >= LARGE
    part.file_size = size
    before = stream.tell() + HEADER + len(name) + LARGE_SIZES * large + len(b"FB??")
    padding = -before % ALIGNMENT
    part.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)  # as torch.save pads
    with archive.open(part, "w", force_zip64=large) as output:
        for content in contents:
            output.write(content)


def _write_json(archive: zipfile.ZipFile, stream: IO[bytes], name: str, value: Any) -> None:
    content = json.dumps(value).encode()
    _write(archive, stream, name, [content], len(content))


def _finish(
    archive: zipfile.ZipFile,
    stream: IO[bytes],
    prompts: Iterable[int],
    lengths: Iterable[int],
    checksums: Iterable[int],
    fields: list[str],
) -> None:
    """Adds what torch.load asks for besides the pickle, and the index."""
    for name, content in {ORDER: sys.byteorder.encode(), VERSION: b"3\n"}.items():
        _write(archive, stream, name, [content], len(content))
    index = {"prompts": [*prompts], "lengths": [*lengths], "checksums": [*checksums], "fields": fields}
    _write_json(archive, stream, INDEX, index)


def _read_index(archive: zipfile.ZipFile) -> dict[str, list]:
    index = json.loads(archive.read(INDEX))
    lengths = index["lengths"]
    if min(lengths, default=0) < 0 or len(HEAD) + sum(lengths) + len(END) != archive.getinfo(PICKLE).file_size:
        raise ValueError("the pieces are not those of the pickle")
    return index


def _read_storages(path: Path | KeptFile) -> Iterator[tuple[str, bytes]]:
    with _open(path) as archive:
        for part in archive.infolist():
            if part.filename.startswith(DATA):
                yield part.filename, archive.read(part)


def _find_pieces(path: Path | KeptFile) -> tuple[dict[int, Piece], list[str]]:
    """The pieces of a file by their prompts, and the keys of its records."""
    with _open(path) as archive, path.open("rb") as stream:
        index = _read_index(archive)
        return dict(zip(index["prompts"], _list_pieces(path, archive, stream, index), strict=True)), index["fields"]


def _list_pieces(
    path: Path | KeptFile, archive: zipfile.ZipFile, stream: IO[bytes], index: dict[str, list]
) -> list[Piece]:
    """The pieces of a file in its order; ``stream`` is that of the ``archive``, opened once more."""
    first = _find_start(archive.getinfo(PICKLE), stream) + len(HEAD)
    starts = list(accumulate(index["lengths"], initial=first))[:-1]
    return [Piece(path, *each) for each in zip(starts, index["lengths"], index["checksums"], strict=True)]


def _find_start(part: zipfile.ZipInfo, stream: IO[bytes]) -> int:
    """Where the content of a part begins in the file ``stream``."""
    start = stream.seek(part.header_offset)
    name, padding = struct.unpack("<26xHH", stream.read(HEADER))
    return start + HEADER + name + padding


def _join_pieces(pieces: Iterable[Piece]) -> Iterator[bytes]:
    yield HEAD
    yield from map(read_piece, pieces)
    yield END


@contextlib.contextmanager
def _open(path: Path | KeptFile) -> Iterator[zipfile.ZipFile]:
    """The archive of a file. ValueError if it is damaged or compressed: some kilobytes could unpack to gigabytes."""
    with _report_damage(path), path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise zipfile.BadZipFile
        yield archive


@contextlib.contextmanager
def _report_damage(path: str | os.PathLike) -> Iterator[None]:
    """ValueError, which names the file, for what a damaged one raises; OSError if the system cannot read it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or blames_system(error):
            raise
        raise Damaged(path) from None
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, NotImplementedError) as error:
        raise Damaged(path) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, zlib.error, RuntimeError):
        raise Damaged(path) from None


class Damaged(ValueError):
    """A file is truncated, or its content has changed; ``path`` is the file."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        super().__init__(f"'{self.path}' is damaged")

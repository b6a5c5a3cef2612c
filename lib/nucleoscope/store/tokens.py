"""A run's tokens.parquet: one row per token and one column per quantity, which is what analyses read.

Contract: the file belongs to one measurements file, by a fingerprint, and is written again from it if it is
missing, damaged or of other measurements. It is written for the files of the published study too. The column ``text``
needs the tokenizer: it is there if the file was written with one, by the run itself or by `add_texts`.
"""

import contextlib
import hashlib
import json
import os
import textwrap
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nucleoscope import quantities
from nucleoscope.atomic import write_atomically
from nucleoscope.file_errors import find_system_cause, raise_system_error
from nucleoscope.models.token_bytes import TokenDecoder
from nucleoscope.store.measurements import find_measurements, load
from nucleoscope.store.record_files import iterate_records, read_fields

# torch, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

TOKENS = "tokens.parquet"
TEXT = "text"  # the column of the tokens' texts
SETTLED = 2 * 10**9  # ns since the last change of a file, after which another change has another time stamp
MOST_REMEMBERED = 256
_REMEMBERED: dict[tuple[int, ...], str] = {}  # hashes of files, by what changes with the file
LARGEST = 1e75  # of a quantity: the fourth power of a value is a number too, so that no mean or variance overflows
ROWS = 2**16  # of a group in tokens.parquet, and in memory, before the next one is begun
SOURCE = b"nucleoscope.measurements"  # the metadata key for the fingerprint of the measurements


def tabulate(records: list[dict], model: str, dataset: str) -> "pd.DataFrame":
    """The tokens of some records as a table; columns as in `load_runs`. ValueError names a bad prompt."""
    return read_columns(_tabulate_records(records), model, dataset, None)


def write_tokens(
    records: Iterable[dict],
    path: Path,
    fields: Iterable[str] | None = None,
    tokenizer: Any = None,
) -> None:
    """Writes the tokens of the measurements file ``path``, which contains these records, to its tokens.parquet.

    One row per token, with columns for prompt, step, k and token and one per quantity, which is null
    where it has no value. The file appears only when it is complete. ``fields`` are the keys of all records; if they
    are given, the records are iterated over once, and about `ROWS` tokens of them are in memory. Without a
    ``tokenizer`` there is no column of the tokens' texts.
    """
    fingerprint = compute_fingerprint(path)
    decoder = None if tokenizer is None else TokenDecoder(tokenizer)
    _write_tables(_tabulate_groups(records, fields, decoder), path, fingerprint)


def add_texts(folder: Path, tokenizer: Any) -> bool:
    """Adds the tokens' texts to the tokens.parquet of a run that was measured without them; whether it did.

    Nothing is added to a run whose tokens are unknown, or in a folder that cannot be written to. ValueError names
    measurements that cannot be read.
    """
    from pyarrow import parquet

    path = find_measurements(folder)
    tokens = convert(path) if path else None
    if not isinstance(tokens, Path) or TEXT in parquet.read_schema(tokens).names:
        return False
    frame = parquet.read_table(tokens).replace_schema_metadata().to_pandas()
    if not len(frame) or (frame["token"] < 0).any():
        return False
    try:
        write_parquet(_insert_texts(frame, TokenDecoder(tokenizer)), path, compute_fingerprint(path))
    except OSError:
        return False
    return True


def _insert_texts(frame: "pd.DataFrame", decoder: TokenDecoder) -> "pd.DataFrame":
    """The table of whole prompts, in order, with the texts of their tokens."""
    import pandas as pd

    ids = frame["token"].to_numpy()
    starts = [*(~frame["prompt"].duplicated()).to_numpy().nonzero()[0].tolist(), len(frame)]
    texts = [text for start, end in pairwise(starts) for text in decoder.split_text(ids[start:end].tolist())]
    frame.insert(frame.columns.get_loc("token") + 1, TEXT, pd.array(texts, dtype="str"))
    return frame


def _tabulate_groups(
    records: Iterable[dict],
    fields: Iterable[str] | None,
    decoder: TokenDecoder | None = None,
) -> Iterator["pd.DataFrame"]:
    """Tables of consecutive records, each of which ends when it has `ROWS` rows; one without rows if there are none."""

    def tabulate_group() -> "pd.DataFrame":
        frame = _tabulate_records(group, first, fields)
        return _insert_texts(frame, decoder) if decoder else frame

    if fields is None:
        records = list(records)
        fields = {key for record in records for key in record}
    fields, group, first, rows = list(fields), list[dict](), 0, 0
    for prompt, record in enumerate(records, 1):
        group.append(record)
        rows += len(record["entropies"])
        if rows >= ROWS:
            yield tabulate_group()
            group, first, rows = [], prompt, 0
    if group or not first:
        yield tabulate_group()


def repair_tokens(folder: Path) -> bool:
    """Writes the tokens.parquet of a run from its measurements if it is missing or damaged; whether it did.

    ValueError names measurements that cannot be read, OSError a file that cannot be written.
    """
    path = find_measurements(folder)
    if path is None or _is_current(path):
        return False
    convert(path)
    if not _is_current(path):
        tokens = path.with_name(TOKENS)
        why = "it is a folder" if tokens.is_dir() else "the disk is full, or writing is not allowed"
        raise OSError(f"cannot write '{tokens}': {why}")
    return True


def convert(path: Path) -> Any:
    """The tokens.parquet of a measurements file, written now if it is missing, damaged or of other measurements.

    Returns the table itself if the file cannot be written. ValueError names a bad file.
    """
    tokens = path.with_name(TOKENS)
    if _is_current(path):
        return tokens
    if path == find_measurements(path.parent) and (fields := read_fields(path)) is not None:
        with contextlib.suppress(Exception):  # what follows either succeeds or says what is wrong
            write_tokens(iterate_records(path), path, fields)
            return tokens
    fingerprint = compute_fingerprint(path)
    frame = _tabulate_records(load(path))
    if path != find_measurements(path.parent):  # an older file of the study: tokens.parquet belongs to the latest one
        return frame
    try:
        write_parquet(frame, path, fingerprint)
    except OSError:  # another user's folder, or a full disk: reading needs no write access
        return frame
    return tokens


def read_columns(source: Any, model: str, dataset: str, columns: Collection[str] | None) -> "pd.DataFrame":
    """Some or all columns of a table; a quantity unknown to the version that wrote the file is NaN.

    ValueError names a tokens.parquet that is damaged, OSError one that the system cannot read.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    known = ["model", "dataset", "prompt", "step", "k", "token", TEXT, *quantities.find_columns().values()]
    if isinstance(source, Path):
        try:
            with parquet.ParquetFile(source) as file:
                stored = file.schema_arrow.names
                frame = file.read([name for name in stored if columns is None or name in columns])
                frame = frame.replace_schema_metadata().to_pandas()  # pandas' own notes may be damaged
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            if cause := find_system_cause(error, source):
                raise OSError(f"cannot read '{source}': {cause}") from None
            reason = textwrap.shorten(str(error), 100)
            raise ValueError(
                f"'{source}' is damaged ({reason}): delete it, and it will be recreated from the measurements"
            ) from None
    else:
        frame = source.copy()
    frame = _add_names(frame, model, dataset)
    for name in known:
        if name not in frame:
            frame[name] = pd.array([None] * len(frame), dtype="str") if name == TEXT else np.nan
    others = [name for name in frame if name not in known]  # registered when the file was written, but not here
    return frame[[name for name in (*known, *others) if columns is None or name in columns]]


def _tabulate_records(records: list[dict], first: int = 0, fields: Collection[str] | None = None) -> "pd.DataFrame":
    """The table of some consecutive records, without the columns model and dataset.

    ``first`` is the number of the first one; ``fields`` are the keys of all records of the file, by default of these.
    """
    import numpy as np
    import pandas as pd

    plurals = quantities.find_columns((key for record in records for key in record) if fields is None else fields)
    lengths = [len(record["entropies"]) for record in records]
    for index, (record, length) in enumerate(zip(records, lengths, strict=True), first):
        for name in ("tokens", "top_p_tokens", *plurals):
            if len(record.get(name, range(length))) != length:
                raise ValueError(f"prompt {index} has {len(record[name])} {name} but {length} entropies")
    columns: dict[str, Any] = {
        "prompt": np.repeat(np.arange(first, first + len(records)), lengths),
        "step": np.array([step for length in lengths for step in range(length)], dtype=np.int64),
        "k": np.array([len(ids) for record in records for ids in record["top_p_tokens"]], dtype=np.int64),
    }
    for name, column in {"tokens": "token", **plurals}.items():
        missing, dtype = (-1, np.int64) if name == "tokens" else (np.nan, np.float64)
        try:
            parts = [np.asarray(r.get(name, [missing] * n), dtype=dtype) for r, n in zip(records, lengths, strict=True)]
        except OverflowError:
            raise ValueError(f"{name} contain a number that does not fit into 64 bits: measure again") from None
        columns[column] = np.concatenate([np.empty(0, dtype), *parts])
        if name != "tokens" and (np.abs(columns[column][np.isfinite(columns[column])]) > LARGEST).any():
            raise ValueError(
                f"{name} contain a number beyond {LARGEST:g}, which cannot be a measurement: measure again"
            )
        if quantities.needs_pair(column):  # a file contains 1, as in the study, if there is no pair
            columns[column][columns["k"] == 1] = np.nan
    return pd.DataFrame(columns)


def _add_names(frame: "pd.DataFrame", model: str, dataset: str) -> "pd.DataFrame":
    """The table with the columns model and dataset in front."""
    import numpy as np
    import pandas as pd

    for name, value in (("dataset", dataset), ("model", model)):
        frame.insert(0, name, pd.Categorical.from_codes(np.zeros(len(frame), np.int8), [value]))
    return frame


def write_parquet(frame: "pd.DataFrame", path: Path, fingerprint: bytes) -> None:
    """Writes a table of one run beside its measurements file ``path``, with their ``fingerprint``."""
    _write_tables([frame], path, fingerprint)


def _write_tables(frames: Iterable["pd.DataFrame"], path: Path, fingerprint: bytes) -> None:
    """Writes the parts of a table, which have the same columns, as groups of rows of one file; there is at least one.

    Only one of them is in memory if ``frames`` is an iterator.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        writer = None
        stream = stack.enter_context(write_atomically(path.with_name(TOKENS)))
        for frame in frames:
            table = pa.Table.from_pandas(frame, preserve_index=False)  # NaN becomes null
            if writer is None:
                schema = table.schema.with_metadata({**table.schema.metadata, SOURCE: fingerprint})
                writer = stack.enter_context(parquet.ParquetWriter(stream, schema, write_page_checksum=True))
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def _is_current(path: Path) -> bool:
    """Whether the tokens.parquet of a measurements file was written from it, and can be read to the end."""
    tokens = path.with_name(TOKENS)
    if _read_source(tokens) != compute_fingerprint(path):
        return False
    return not _has_bad_page(tokens, path.stat().st_size)  # a token takes more than a byte there


def _has_bad_page(tokens: Path, most: int) -> bool:
    """Whether a tokens.parquet cannot be read to the end, has numbers that no run measures, or over ``most`` rows.

    It is asked before a file is used, because a bad one would end an analysis half way. A part is read at a time: a
    file of some kilobytes can contain a billion equal rows.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        with parquet.ParquetFile(tokens, page_checksum_verification=True) as file:
            if file.metadata.num_rows > most:
                return True
            # a changed name would be a quantity that is missing: pandas has noted all of them a second time
            noted = json.loads(file.schema_arrow.metadata[b"pandas"])["columns"]
            if [column["name"] for column in noted] != file.schema_arrow.names:
                return True
            for batch in file.iter_batches(1 << 16):
                for column in batch.columns:
                    if pa.types.is_floating(column.type):
                        bounds = compute.min_max(compute.if_else(compute.is_finite(column), column, None)).as_py()
                        if any(abs(bound) > LARGEST for bound in bounds.values() if bound is not None):
                            return True
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise_system_error(error, tokens)
        return True
    return False


def compute_fingerprint(path: Path) -> bytes:
    """Identifies a measurements file: its name, its size, and a hash of the checksums of its parts.

    A file of torch.save is a zip archive, which lists these checksums; of any other file, all is hashed. Unlike
    a time stamp, a fingerprint is still valid after the folder was copied. An analysis asks for it once per candidate
    set, and the list may have ten thousand parts, so the hash of a file that has not changed is remembered.
    """
    with path.open("rb") as stream:
        state = os.fstat(stream.fileno())
        key = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        digest = _REMEMBERED.get(key) or _hash_checksums(stream)
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED:
        if len(_REMEMBERED) >= MOST_REMEMBERED:
            _REMEMBERED.clear()
        _REMEMBERED[key] = digest
    return f"{path.name} {state.st_size} {digest}".encode()


def _hash_checksums(stream: IO[bytes]) -> str:
    try:
        with zipfile.ZipFile(stream) as archive:
            parts = [f"{part.filename} {part.file_size} {part.CRC}" for part in archive.infolist()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    except (zipfile.BadZipFile, NotImplementedError):
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_source(tokens: Path) -> bytes | None:
    """The fingerprint of the measurements that a tokens.parquet was written from; None if it is missing or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return (parquet.read_schema(tokens).metadata or {}).get(SOURCE)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise_system_error(error, tokens)
        return None

"""A run's variants.parquet: what was measured of each token in every variant, one row per token and variant.

Contract: the file belongs to one measurements file, by its fingerprint, as tokens.parquet does, but cannot be written
from it: only measuring again can. It is written with the run that it belongs to, in groups of rows.
"""

import contextlib
import json
import os
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.atomic import write_atomically
from nucleoscope.file_errors import find_system_cause, raise_system_error
from nucleoscope.names import advise
from nucleoscope.store.integrity import find_damage
from nucleoscope.store.measurements import find_measurements
from nucleoscope.store.record_files import Piece, read_piece
from nucleoscope.store.tokens import SOURCE, compute_fingerprint
from nucleoscope.variants import COLUMNS, GEOMETRIES_BY_NAME, OF_SET, OF_VARIANT, SETS_BY_NAME, Layout
from nucleoscope.wording import MEASURE_AGAIN

# numpy, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

VARIANTS = "variants.parquet"
LAYOUT = b"nucleoscope.variants"  # the metadata key for the names of what was measured
TOKENS = 2**14  # whose numbers are in memory at once: each group of rows has one candidate set of as many tokens
# columns of few different values: a dictionary of others makes the file larger
DICTIONARIES = ("prompt", "step", "candidates", "geometry", "k")


def write_variants(path: Path, layout: Layout, pieces: Iterable[Piece]) -> None:
    """Writes variants.parquet beside the measurements file ``path``; ``pieces`` have the numbers of its prompts.

    A piece is a prompt's (T, N, 3 + 3 G) float32 numbers of T tokens in N candidate sets, as
    `measure.variants.Variants.measure` orders them: those of the set, then three for each of G geometries. About
    `TOKENS` tokens are in memory. The rows of one variant are in the order of the tokens. ValueError names a damaged
    file among the pieces.
    """
    from pyarrow import parquet

    fingerprint = compute_fingerprint(path)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(write_atomically(path.with_name(VARIANTS)))
        schema = _create_schema().with_metadata({SOURCE: fingerprint, LAYOUT: json.dumps(layout)})
        options: dict[str, Any] = {"use_dictionary": list(DICTIONARIES), "compression": "zstd"}
        writer = stack.enter_context(parquet.ParquetWriter(stream, schema, write_page_checksum=True, **options))
        for prompts, steps, values in _gather(pieces, layout):
            for place in range(len(layout.candidates)):
                writer.write_table(_tabulate(prompts, steps, values[:, place], place, layout, schema))


def _gather(pieces: Iterable[Piece], layout: Layout) -> Iterator[tuple["np.ndarray", "np.ndarray", "np.ndarray"]]:
    """Prompts (T,), steps (T,) and numbers (T, N, 3 + 3 G) of `TOKENS` tokens or a few more, the last ones fewer."""
    import numpy as np

    group, prompts, steps, total = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), 0

    def join() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.concatenate(prompts), np.concatenate(steps), np.concatenate(group)

    for prompt, piece in enumerate(pieces):
        values = np.frombuffer(read_piece(piece), np.float32).reshape(-1, len(layout.candidates), layout.width)
        for start in range(0, len(values), TOKENS):
            part = values[start : start + TOKENS]
            group.append(part)
            prompts.append(np.full(len(part), prompt, np.int32))
            steps.append(np.arange(start, start + len(part), dtype=np.int32))
            total += len(part)
            if total >= TOKENS:
                yield join()
                group, prompts, steps, total = [], [], [], 0
    if total:
        yield join()


def _create_schema() -> "pa.Schema":
    import pyarrow as pa

    names = pa.dictionary(pa.int8(), pa.string())
    kinds = {"prompt": pa.int32(), "step": pa.int32(), "candidates": names, "geometry": names, "k": pa.int32()}
    return pa.schema([(name, kinds.get(name, pa.float32())) for name in COLUMNS])


def _tabulate(
    prompts: "np.ndarray", steps: "np.ndarray", values: "np.ndarray", place: int, layout: Layout, schema: "pa.Schema"
) -> "pa.Table":
    """The rows of T tokens in one candidate set, the one at ``place``, with ``values`` (T, 3 + 3 G)."""
    import numpy as np
    import pyarrow as pa

    size, number = len(values), len(layout.geometry)
    codes = {"candidates": np.full(size * number, place), "geometry": np.tile(np.arange(number), size)}
    columns: dict[str, Any] = {
        name: pa.DictionaryArray.from_arrays(pa.array(codes[name], pa.int8()), pa.array(getattr(layout, name)))
        for name in codes
    }
    for name, column in {"prompt": prompts, "step": steps, "k": values[:, 0].astype(np.int32)}.items():
        columns[name] = pa.array(np.repeat(column, number))
    for column, name in enumerate(OF_SET[1:], 1):
        columns[name] = pa.array(np.repeat(values[:, column], number))
    of_variants = values[:, len(OF_SET) :].reshape(size, number, len(OF_VARIANT))
    for column, name in enumerate(OF_VARIANT):
        columns[name] = pa.array(of_variants[..., column].ravel(), from_pandas=True)  # NaN becomes null
    return pa.Table.from_pydict(columns, schema)


def load(
    folder: str | os.PathLike,
    columns: Sequence[str] | None = None,
    candidates: str | Collection[str] | None = None,
    geometry: str | Collection[str] | None = None,
) -> "pd.DataFrame":
    """The variants of the tokens in a run's folder; all columns and rows, or some.

    ``columns`` are some of `nucleoscope.variants.COLUMNS`, ``candidates`` and ``geometry`` the names of some candidate
    sets and geometries, or of one. What has no value is NaN: cosines where k = 1, and similarity_entropy of large sets.
    The rows of one variant are in the order of the tokens. ValueError, in one line, if the file is missing, damaged,
    or of other measurements, or for an unknown name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(folder, VARIANTS)
    given = {"candidates": candidates, "geometry": geometry}
    chosen = {name: [value] if isinstance(value, str) else list(value) for name, value in given.items() if value}
    names = list(COLUMNS if columns is None else columns)
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ValueError(f"{VARIANTS} has no column '{unknown[0]}': its columns are {', '.join(COLUMNS)}")
    layout = read_layout(folder)
    for name, values in chosen.items():
        if missing := [value for value in values if value not in getattr(layout, name)]:
            raise ValueError(f"'{path}': " + _describe_unmeasured(name, missing[0], getattr(layout, name)))
    needed = list(dict.fromkeys([*names, *chosen]))
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if problem := _find_wrong_column(file.schema_arrow, needed):
                raise ValueError(_describe_damage(path, problem))
            frame = _read_rows(file, needed, chosen).to_pandas()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise _explain(path, error) from None
    for name in given.keys() & set(frame):
        kept = [each for each in getattr(layout, name) if each in chosen.get(name, [each])]
        frame[name] = frame[name].cat.set_categories(kept)
    return frame[names]


def _find_wrong_column(schema: "pa.Schema", needed: Collection[str]) -> str:
    """What is wrong with one of the columns that are needed, or ""."""
    import pyarrow as pa

    for name in needed:
        if schema.names.count(name) != 1:
            return f"{schema.names.count(name)} columns {name}"
        kind = schema.field(name).type
        if name in ("candidates", "geometry") and not (
            pa.types.is_dictionary(kind)
            and (pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type))
        ):
            return f"column {name} has the wrong type"
    return ""


def _read_rows(file: "ParquetFile", needed: Sequence[str], chosen: dict[str, list[str]]) -> "pa.Table":
    """The rows that have what is ``chosen`` of each column, a group of rows at a time.

    pyarrow's own filter reads all columns of all groups if the column is a dictionary, which takes ten times as long.
    What the end of the file says of a group's values is not used, because it has no checksum.
    """
    import pyarrow as pa
    from pyarrow import compute

    parts = [file.read_row_groups([], needed)]
    for group in range(file.num_row_groups):
        mask = None
        for name, values in chosen.items():
            column = file.read_row_group(group, [name])[name]
            own = compute.is_in(column, pa.array(values, column.type.value_type))
            mask = own if mask is None else compute.and_(mask, own)
        if mask is None or compute.any(mask).as_py():
            part = file.read_row_group(group, needed)
            parts.append(part if mask is None or compute.all(mask).as_py() else part.filter(mask))
    return pa.concat_tables(parts)


def _describe_unmeasured(kind: str, name: str, measured: Collection[str]) -> str:
    """Why a run has no candidate set or geometry of a ``name``: there is none, or the run did not measure it."""
    what = "candidate set" if kind == "candidates" else kind
    if name in (SETS_BY_NAME if kind == "candidates" else GEOMETRIES_BY_NAME):
        return f"{what} '{name}' was not measured; measured here: {', '.join(measured)}"
    return f"there is no {what} '{name}'" + advise(name, measured, f"; measured here: {', '.join(measured)}")


def read_layout(folder: str | os.PathLike) -> Layout:
    """The names of what a run's variants.parquet has. ValueError as from `load`."""
    import pyarrow as pa
    from pyarrow import parquet

    path, measurements = Path(folder, VARIANTS), find_measurements(Path(folder))
    if problem := explain_missing(folder):
        raise ValueError(problem)
    try:
        metadata = parquet.read_schema(path).metadata or {}
        layout = Layout(*json.loads(metadata[LAYOUT]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _explain(path, error) from None
    if measurements is not None and metadata.get(SOURCE) != compute_fingerprint(measurements):
        raise ValueError(_describe_damage(path, "it belongs to other measurements"))
    return layout


def has_readable_variants(folder: str | os.PathLike) -> bool:
    """Whether a run's variants.parquet can be read to its end, which takes a while."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        read_layout(folder)
        with parquet.ParquetFile(Path(folder, VARIANTS), page_checksum_verification=True) as file:
            if file.schema_arrow.names != list(COLUMNS):
                return False
            for _ in file.iter_batches(1 << 16):
                pass
    except (ValueError, pa.ArrowException, OSError) as error:
        raise_system_error(error, Path(folder, VARIANTS))
        return False
    return True


def explain_missing(folder: str | os.PathLike) -> str | None:
    """Why a run has no variants, in one line, or None, as far as the ends of the file tell.

    OSError if the system cannot read it.
    """
    path = Path(folder, VARIANTS)
    if not path.is_file():
        return f"{folder} has no {VARIANTS}: repeat the run's command with --variants=default --overwrite"
    return _describe_damage(path, "truncated") if find_damage(path) else None


def _describe_damage(path: Path, reason: str) -> str:
    return f"'{path}' is damaged ({reason}): {MEASURE_AGAIN}"


def _explain(path: Path, error: Exception) -> Exception:
    """What to raise for what a damaged file raises, or a file that the system cannot read."""
    if cause := find_system_cause(error, path):
        return OSError(f"cannot read '{path}': {cause}")
    return ValueError(_describe_damage(path, textwrap.shorten(str(error), 100) or type(error).__name__))

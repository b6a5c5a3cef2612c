"""Writing a run's candidates.parquet, which `candidates` reads.

Contract: a run's records and its model's embedding in, the file out, whole or not at all. It is apart from reading
because it needs `measure`: what only reads the file does not depend on how it is measured.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.atomic import write_atomically
from nucleoscope.models.token_bytes import TokenDecoder
from nucleoscope.store.candidates import CANDIDATES
from nucleoscope.store.tokens import SOURCE, compute_fingerprint

# torch and pyarrow are imported where they are used: commands need only paths.
if TYPE_CHECKING:
    from nucleoscope.measure.cosine import Directions

GROUP = 2**18  # candidates of a group of rows, before the next one is begun


def write_candidates(records: Iterable[dict], path: Path, tokenizer: Any, directions: "Directions") -> None:
    """Writes the candidates.parquet of the measurements file ``path``, whose ``records`` have NumPy arrays for vectors.

    ``directions`` are those of the model's embedding (`measure.cosine.find_directions`). About `GROUP` candidates are
    in memory.
    """
    from pyarrow import parquet

    fingerprint, decoder = compute_fingerprint(path), TokenDecoder(tokenizer)
    with contextlib.ExitStack() as stack:
        stream, writer = stack.enter_context(write_atomically(path.with_name(CANDIDATES))), None
        for first, group in _group(records):
            table = _tabulate(group, first, decoder, directions)
            if writer is None:
                schema = table.schema.with_metadata({SOURCE: fingerprint})
                writer = stack.enter_context(parquet.ParquetWriter(stream, schema, write_page_checksum=True))
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def _group(records: Iterable[dict]) -> Iterator[tuple[int, list[dict]]]:
    """Consecutive records that have about `GROUP` candidates, after the number of the first; at least one group."""
    group, first, size = list[dict](), 0, 0
    for number, record in enumerate(records, 1):
        group.append(record)
        size += sum(map(len, record["top_p_tokens"]))
        if size >= GROUP:
            yield first, group
            group, first, size = [], number, 0
    if group or not first:
        yield first, group


def _tabulate(records: list[dict], first: int, decoder: TokenDecoder, directions: "Directions") -> Any:
    """The rows of some consecutive records, as an Arrow table."""
    import numpy as np
    import pyarrow as pa
    import torch

    from nucleoscope.measure.pairs import compare_candidates

    def join(parts: Iterable[Any], kind: str) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *parts]).astype(kind, copy=False)

    lengths = [len(record["tokens"]) for record in records]
    sizes = np.array([len(ids) for record in records for ids in record["top_p_tokens"]], np.int64)
    tokens = join((record["tokens"] for record in records), "i8")
    ids = join((each for record in records for each in record["top_p_tokens"]), "i4")
    probs = join((each for record in records for each in record["top_p_probs"]), "f4")
    found = compare_candidates(directions, *map(torch.from_numpy, (tokens, ids, sizes)))
    width = found.pairs.shape[1]
    counts = np.minimum(sizes * (sizes - 1) // 2, width)
    kept = np.arange(width) < counts[:, None]
    unique, places = np.unique(ids, return_inverse=True)
    texts = pa.array([decoder.read_alone(int(token)) for token in unique], pa.string())

    def split(values: Any, lengths: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(np.concatenate(([0], lengths.cumsum())), pa.int32()), values)

    return pa.table(
        {
            "prompt": pa.array(np.repeat(np.arange(first, first + len(records)), lengths), pa.int64()),
            "step": pa.array(join(map(np.arange, lengths), "i8")),
            "token": pa.array(tokens),
            "id": split(pa.array(ids), sizes),
            "text": split(pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), texts).cast(pa.string()), sizes),
            "probability": split(pa.array(probs), sizes),
            "similarity": split(pa.array(found.taken.numpy()), sizes),
            "pairs": split(pa.array(found.pairs.numpy()[kept]), counts),
        }
    )

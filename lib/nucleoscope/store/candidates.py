"""A run's candidates.parquet: what each token was chosen from, as texts, for reading; one row per token.

Contract: the file belongs to one measurements file, by a fingerprint, and is written with the run
(`candidate_writing`). It repeats the candidates of the measurements as lists (``id``, ``text``, ``probability``) and
adds what only the model's embedding could tell: ``similarity``, the cosine of each with the token taken, and ``pairs``,
those of the pairs of the ten likeliest (see `measure.pairs`), both float16. It is a file of its own because the study's
format has no place for it: whatever key a record has besides its own is read as a quantity, with one number for each
token.

A file that is missing or belongs to other measurements is never an error: readers then do without similarities, as
they do for a damaged one, which is named on stderr unless its end is damaged or missing. OSError if the system cannot
read it.
"""

import operator
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nucleoscope.file_errors import raise_system_error
from nucleoscope.models.token_bytes import TokenDecoder
from nucleoscope.names import escape_line
from nucleoscope.store.measurements import find_measurements, load_records
from nucleoscope.store.tokens import SOURCE, compute_fingerprint

# torch, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = "candidates.parquet"
NEEDED = ("tokens", "top_p_tokens", "top_p_probs")  # of a record
LISTS = ("prompt", "step", "id", "text", "probability", "similarity")  # columns that a table of candidates needs
STORED = {"similarity": "float16"}  # columns of a table of candidates that are stored with fewer digits than they have


class Similarities(NamedTuple):
    """Two NumPy arrays for each token of a prompt: its candidates' cosines with the token taken, and ``pairs``."""

    taken: list[Any]
    pairs: list[Any]

    def keep(self, step: int) -> "Similarities":
        """Those of the token ``step`` only: for the others there is nothing, which keeps a page with one card small."""
        return Similarities(*([each if place == step else () for place, each in enumerate(part)] for part in self))


def candidates(folder: Path | str, prompt: int, step: int, tokenizer: Any = None) -> "pd.DataFrame":
    """What one token of a run was chosen from: text, id, probability and similarity of each candidate, likeliest first.

    Probabilities are those of the full distribution; ``similarity`` is the cosine of the embeddings of a candidate and
    the token taken. In a run that was measured without candidates.parquet it is missing (NaN), and so are the texts
    unless its ``tokenizer`` is given. ValueError for a prompt or step that the run does not have.
    """
    folder = Path(folder)
    try:
        prompt, step = operator.index(prompt), operator.index(step)
    except TypeError:
        raise ValueError(
            f"prompt is {prompt!r}, step is {step!r}: both must be whole numbers, counted from 0"
        ) from None
    found = _tabulate_rows(_read_rows(folder, [prompt], LISTS, step) or [])
    if found.empty:
        record = _load_complete(folder, [prompt])[prompt]
        if not 0 <= step < len(record["tokens"]):
            raise ValueError(
                f"prompt {prompt} of '{folder}' has no token {step}: it has {len(record['tokens'])}, counted from 0"
            )
        found = _tabulate_rows([_describe_choice(record, prompt, step, tokenizer and TokenDecoder(tokenizer))])
    return found[["text", "id", "probability", "similarity"]]


def tabulate_candidates(folder: Path | str, prompts: Sequence[int], tokenizer: Any = None) -> "pd.DataFrame":
    """The `candidates` of all tokens of some prompts, with the columns prompt, step and place (0 is the likeliest)."""
    folder = Path(folder)
    rows = _read_rows(folder, prompts, LISTS)
    if rows is not None:
        return _tabulate_rows(rows)
    records, decoder = _load_complete(folder, prompts), tokenizer and TokenDecoder(tokenizer)
    return _tabulate_rows(
        _describe_choice(record, prompt, step, decoder)
        for prompt, record in records.items()
        for step in range(len(record["tokens"]))
    )


def _load_complete(folder: Path, prompts: Sequence[int]) -> dict[int, dict]:
    """The candidates of some prompts from the measurements. ValueError if these have none."""
    records = load_records(folder, prompts, NEEDED)
    for record in records.values():
        if lacking := [name for name in NEEDED if record.get(name) is None]:
            raise ValueError(f"the measurements in '{folder}' have no {' and no '.join(lacking)}")
    return records


def _describe_choice(record: dict, prompt: int, step: int, decoder: TokenDecoder | None) -> dict[str, Any]:
    """A row of the file as far as the measurements have it."""
    import numpy as np

    ids, probs = (np.asarray(record[name][step]) for name in NEEDED[1:])
    texts = list(map(decoder.read_alone, ids.tolist())) if decoder else [None] * len(ids)
    unknown = np.full(len(ids), np.nan, np.float32)
    return {"prompt": prompt, "step": step, "id": ids, "text": texts, "probability": probs, "similarity": unknown}


def _tabulate_rows(rows: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Rows of the file with a row for each candidate, in `LISTS` and ``place``."""
    import numpy as np
    import pandas as pd

    rows = list(rows)
    sizes = [len(row["id"]) for row in rows]
    kinds = {"id": np.int32, "probability": np.float32, "similarity": np.float32}
    joined = {
        name: np.concatenate([np.empty(0, kind), *(row[name] for row in rows)]).astype(kind)
        for name, kind in kinds.items()
    }
    found = {name: np.repeat(np.array([row[name] for row in rows], np.int64), sizes) for name in ("prompt", "step")}
    found["place"] = np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)]).astype(np.int64)
    found["text"] = pd.array([text for row in rows for text in row["text"]], dtype="str")
    return pd.DataFrame(found | joined)


def load_similarities(folder: Path | str, prompts: Sequence[int]) -> dict[int, Similarities]:
    """The similarities of some prompts' candidates, by the prompts; of none if they were not measured.

    A prompt without tokens has two empty lists.
    """
    rows = _read_rows(Path(folder), prompts, ("prompt", "similarity", "pairs"))
    if rows is None:
        return {}
    found = {int(prompt): Similarities([], []) for prompt in prompts}
    for row in rows:
        found[row["prompt"]].taken.append(row["similarity"])
        found[row["prompt"]].pairs.append(row["pairs"])
    return found


def is_current(folder: Path) -> bool:
    """Whether a run has a candidates.parquet that was written from its measurements, as far as its end tells.

    OSError if the system cannot read it.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = find_measurements(folder)
    try:
        metadata = parquet.read_schema(folder / CANDIDATES).metadata or {}
    except (OSError, ValueError, pa.ArrowException) as error:  # a damaged name is no UTF-8
        raise_system_error(error, folder / CANDIDATES)
        return False
    return path is not None and metadata.get(SOURCE) == compute_fingerprint(path)


def describe_staleness(folder: Path) -> str | None:
    """What is wrong with a run's candidates.parquet, to follow "is"; None if nothing, or it is missing.

    Only its end is read: `is_intact` reads all of it.
    """
    if not (folder / CANDIDATES).is_file() or is_current(folder):
        return None
    return "damaged or belongs to other measurements"


def is_intact(folder: Path) -> bool:
    """Whether a run's candidates.parquet can be read to its end and is current, or is missing; this takes a while."""
    import pyarrow as pa
    from pyarrow import parquet

    if describe_staleness(folder):
        return False
    path = folder / CANDIDATES
    if not path.is_file():
        return not path.exists()
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _check_types(file.schema_arrow.empty_table().select((*LISTS, "pairs")).schema)
            for _ in file.iter_batches(1 << 12):
                pass
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:  # a damaged name is no UTF-8
        raise_system_error(error, path)
        return False
    return True


def _read_rows(
    folder: Path, prompts: Sequence[int], columns: Sequence[str], step: int | None = None
) -> list[dict[str, Any]] | None:
    """The rows of some prompts, or of one step of them, in order; None without a whole file that belongs to the run.

    Only the groups of rows that have these prompts are read, one at a time: a data set's reader would decode all of
    them at once, which takes a gigabyte.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    if not is_current(folder):
        return None
    path, prompts = folder / CANDIDATES, list(map(int, prompts))
    lists = [name for name in columns if name in LISTS[2:]]
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            parts = [file.schema_arrow.empty_table().select(columns)]
            _check_types(parts[0].schema)
            for group in _find_groups(file.metadata, prompts):
                rows = file.read_row_group(group, list(columns)).select(columns)
                rows = rows.filter(compute.is_in(rows["prompt"], pa.array(prompts, pa.int64())))
                parts.append(rows if step is None else rows.filter(compute.equal(rows["step"], step)))
        found = pa.concat_tables(parts).to_pandas().to_dict("records")  # lists become NumPy arrays
        if any(len({len(row[name]) for name in lists}) > 1 for row in found):
            raise ValueError("lists of one token have different lengths")
        return found
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise_system_error(error, path)
        print(f"skipped: {escape_line(str(path))} is damaged: similarities are not shown", file=sys.stderr)
        return None


def _check_types(schema: Any) -> None:
    """Raises ValueError if a column has a different type than it was written with."""
    import pyarrow as pa

    checks = dict.fromkeys(("prompt", "step", "id"), pa.types.is_integer) | {"text": pa.types.is_string}
    for field in schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if not checks.get(field.name, pa.types.is_floating)(kind):
            raise ValueError(f"column {field.name} has the wrong type")


def _find_groups(metadata: Any, prompts: Sequence[int]) -> Iterator[int]:
    """The groups of rows that may have one of the prompts."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema == "prompt":
                bounds = column.statistics
                known = bounds is not None and bounds.has_min_max
                if not known or any(bounds.min <= prompt <= bounds.max for prompt in prompts):
                    yield number
                break

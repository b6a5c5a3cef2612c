"""A run's measurements file: where it is, and how its records are read, all or a few.

Contract: of a file that a run has written, only the records that are asked for are read; of any other, torch reads all.
This module knows the study's two formats, which torch reads without this package, and nothing of tables. Its
correlation experiment writes a list with one record per prompt, as Nucleoscope does. Its accuracy experiment writes a
dict, {"prompt0": record, "prompt1": record, ...}, whose records have the candidates and their probabilities, but as a
rule neither entropies nor cosines: what follows from the probabilities is computed here, and cosines stay
missing, because they need the model's embeddings.
"""

import contextlib
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.file_errors import find_system_cause, raise_system_error
from nucleoscope.store.record_files import OpenRecords
from nucleoscope.wording import MEASURE_AGAIN, count

# numpy and torch are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np

MEASUREMENTS = "measurements.pt"
STUDY_MEASUREMENTS = "output_*.pt"  # what the published study's code writes in the same folders
REQUIRED = ("prompt", "entropies", "cosines", "top_p_tokens")  # the keys of the study's correlation experiment
UNREADABLE = (ValueError, OSError, MemoryError)  # what reading a part of a file may raise
PROMPT_KEY = re.compile(r"prompt\d+")  # in a file of its accuracy experiment, whose records have these keys:
REQUIRED_OF_ACCURACY = ("prompt", "top_p_tokens", "top_p_probs")
NOT_MEASURED = ("decoded_tokens", "top_p_logits", "question", "ground_truth", "latency", "model", "correct")
DERIVED = ("entropies", "varentropies", "collision_entropies", "margins", "surprisals", "ranks")


def find_measurements(folder: Path) -> Path | None:
    """The measurements file in a run's folder: ours, or else the latest one from the published study's code."""
    if os.path.isfile(folder / MEASUREMENTS):  # unlike is_file, False in a folder without permission
        return folder / MEASUREMENTS
    return max(folder.glob(STUDY_MEASUREMENTS), default=None)  # their names end with the time


def load(path: str | os.PathLike) -> list[dict]:
    """The records of a measurements file, one per prompt. ValueError names a damaged or unsupported file."""
    return _check_records(read_intact(Path(path)), path)


def load_records(
    folder: str | os.PathLike, prompts: Iterable[int] | None = None, fields: Collection[str] | None = None
) -> dict[int, dict]:
    """The records of `stream_records`, by the prompt's index."""
    return dict(stream_records(folder, prompts, fields))


def stream_records(
    folder: str | os.PathLike, prompts: Iterable[int] | None = None, fields: Collection[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """The prompt's index and the record of some or all prompts of a run, one after the other, as they are asked for.

    Records have all or some of their fields. Of a file that a run has written, only these records are read; of any
    other, such as the study's, torch reads everything at once. ValueError names a damaged file, or a prompt that the
    run does not have.
    """
    for place, record in _stream(folder, prompts, fields):
        yield place, {name: _make_tensors(value) for name, value in record.items()}


def stream_arrays(
    folder: str | os.PathLike, prompts: Iterable[int] | None = None, fields: Collection[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """The same as `stream_records`, with arrays instead of tensors.

    For a file that a run has written, torch, which takes seconds to import, is not needed.
    """
    for place, record in _stream(folder, prompts, fields):
        yield place, {name: _make_arrays(value) for name, value in record.items()}


def _stream(
    folder: str | os.PathLike, prompts: Iterable[int] | None, fields: Collection[str] | None
) -> Iterator[tuple[int, dict]]:
    """Records with arrays, if a run has written the file, or with tensors, if torch has read it."""
    path = find_measurements(Path(folder))
    if path is None:
        raise FileNotFoundError(f"no measurements in '{folder}': measure the model first")
    wanted = None if prompts is None else [int(prompt) for prompt in prompts]
    opened = _open_records(path)
    if opened is None:
        yield from _choose_records(load(path), path, wanted, fields)
        return
    with opened:
        places = _check_prompts(path, wanted, len(opened))
        for number, place in enumerate(places):
            try:
                (record,) = _require([opened.read(place, opened.fields if fields is None else fields)], REQUIRED, path)
            except UNREADABLE:  # `load` says what is wrong with the file, or it is the index alone
                yield from _choose_records(load(path), path, places[number:], fields)
                return
            yield place, _choose(record, fields)


def _open_records(path: Path) -> OpenRecords | None:
    """A file that a run has written; None for any other, and if it is damaged, as `load` says."""
    with contextlib.suppress(*UNREADABLE):
        return OpenRecords(path)
    return None


def _choose_records(
    records: list[dict], path: Path, wanted: list[int] | None, fields: Collection[str] | None
) -> Iterator[tuple[int, dict]]:
    """The `stream_records` of records that have all been read."""
    for index in _check_prompts(path, wanted, len(records)):
        yield index, _choose(records[index], fields)


def _check_prompts(path: Path, wanted: list[int] | None, number: int) -> list[int]:
    """The prompts that are wanted, of a file that has this ``number``; ValueError if it does not have one of them."""
    for index in wanted or ():
        if not 0 <= index < number:
            raise ValueError(
                f"'{path}' has no prompt {index}: it has {count(number, 'prompt')} (prompts are counted from 0)"
            )
    return list(range(number)) if wanted is None else wanted


def _choose(record: dict, fields: Collection[str] | None) -> dict:
    return {name: value for name, value in record.items() if fields is None or name in fields}


def _make_tensors(value: Any) -> Any:
    """The arrays of a record as the tensors that they are for `load`."""
    import numpy as np
    import torch

    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return list(map(torch.from_numpy, value))
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _make_arrays(value: Any) -> Any:
    """The tensors of a record as arrays; bfloat16, which NumPy does not have, becomes float32."""

    def make_array(tensor: Any) -> "np.ndarray":
        try:
            return tensor.numpy()
        except TypeError:
            return tensor.float().numpy()

    if isinstance(value, list) and value and hasattr(value[0], "numpy"):
        return list(map(make_array, value))
    return make_array(value) if hasattr(value, "numpy") else value


def _check_records(content: Any, path: str | os.PathLike) -> list[dict]:
    """The records of either format as a list, in the order of the file."""
    if isinstance(content, dict) and content and all(PROMPT_KEY.fullmatch(str(key)) for key in content):
        records = _require(list(content.values()), REQUIRED_OF_ACCURACY, path)
        return [_complete(record) for record in records]
    return _require(content, REQUIRED, path)


def _require(records: Any, keys: Collection[str], path: str | os.PathLike) -> list[dict]:
    if not isinstance(records, list) or not all(isinstance(r, dict) and all(k in r for k in keys) for r in records):
        raise ValueError(
            f"'{path}' is not a measurements file: it contains no list of records with {', '.join(REQUIRED)}, "
            f"and no dict of records prompt0, prompt1, ... with {', '.join(REQUIRED_OF_ACCURACY)}"
        )
    return records


def _complete(record: dict) -> dict:
    """Adds to a record of the accuracy experiment, in place, what follows from its candidates' probabilities.

    Entropy, varentropy and collision entropy of the candidates, the margin between the two likeliest, and surprisal and
    rank of the token taken where it is a candidate. The tokens' texts, the candidates' logits and the task's facts are
    dropped. Lists that the record has stay as they are; so do other records, and those without probabilities.
    """
    import numpy as np

    if "generated_tokens" in record:
        record["tokens"] = record.pop("generated_tokens")
        for name in NOT_MEASURED:
            record.pop(name, None)
    steps = record.get("top_p_probs")
    if "entropies" in record or steps is None or record["top_p_tokens"] is None:
        return record
    taken = np.asarray(record["tokens"]).tolist() if record.get("tokens") is not None else [None] * len(steps)
    if len(taken) != len(steps) or len(record["top_p_tokens"]) != len(steps):
        raise ValueError(f"a record has {len(taken)} tokens, but probabilities of {len(steps)}: it is damaged")
    columns: dict[str, list[float]] = {name: [] for name in DERIVED}
    for token, ids, probabilities in zip(taken, record["top_p_tokens"], steps, strict=True):
        p = np.asarray(probabilities, dtype=np.float64)  # float16 in the files
        q = p[p > 0] / p.sum()
        surprisals = 0 - np.log(q)  # not -0, of one candidate
        entropy = float(q @ surprisals)
        place = np.flatnonzero(np.asarray(ids) == token)
        ranked = np.sort(p)[::-1]
        columns["entropies"].append(entropy)
        columns["varentropies"].append(float(q @ (surprisals - entropy) ** 2))
        columns["collision_entropies"].append(float(0 - np.log(q @ q)))
        columns["margins"].append(float(ranked[0] - ranked[1]) if len(ranked) > 1 else np.nan)
        columns["surprisals"].append(float(0 - np.log(p[place[0]])) if len(place) and p[place[0]] > 0 else np.nan)
        columns["ranks"].append(float(place[0] + 1) if len(place) else np.nan)
    record |= {name: values for name, values in columns.items() if name not in record}
    return record


class _UnusualArchive(ValueError):
    """An archive that torch.save does not write; the message says what it is."""


def _check_sizes(path: str | os.PathLike) -> None:
    """Raises `_UnusualArchive` for an archive that torch.save does not write, before any of it is read.

    A compressed archive of some kilobytes can unpack to gigabytes; torch.save compresses nothing, so the
    parts of its archives are together smaller than the file. A file in torch's older format, which is no archive, is
    not checked.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if any(part.filename.endswith("constants.pkl") for part in parts):  # a program, which torch would load as one
        raise _UnusualArchive("a TorchScript archive is not a measurements file")
    total, size = sum(part.file_size for part in parts), os.path.getsize(path)
    if total > size:
        raise _UnusualArchive(f"an archive of {size:,} bytes that unpacks to {total:,}")


def read(path: str | os.PathLike) -> Any:
    """The content of a file of tensors, on the CPU. ValueError: it is damaged; OSError: the system cannot read it."""
    import torch

    if os.path.isdir(path):
        raise IsADirectoryError(f"'{path}' is a folder: give its {MEASUREMENTS}")
    try:
        _check_sizes(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # the loader raises many types for a damaged file
        if cause := find_system_cause(error, path):
            raise OSError(f"cannot read '{path}': {cause}") from None
        # what torch says of a damaged file, such as "pop from empty list", explains nothing
        said = f" ({error})" if isinstance(error, _UnusualArchive) else ""
        raise ValueError(
            f"cannot read '{path}' as measurements: the file is truncated or was not written by Nucleoscope{said}: "
            f"{MEASURE_AGAIN}"
        ) from None


def read_intact(path: Path) -> Any:
    """The content of a file of tensors. ValueError also if bytes have changed, which torch does not notice."""
    content = read(path)
    check_intact(path)
    return content


def check_intact(path: Path) -> None:
    """Raises ValueError if a file of tensors has other bytes than its checksums say; torch's older format has none.

    OSError if the system cannot read it.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, OSError, EOFError, MemoryError) as error:
        raise_system_error(error, path)
        damaged = path.name
    if damaged:
        raise ValueError(f"'{path}' is damaged")

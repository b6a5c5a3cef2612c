"""Results on disk: where they are, what they are called, and how they are loaded as a table.

Contract: this module does not depend on models or statistics. A run is one model on one data set, in
``<results_dir>/<dataset>/<model>/`` (see `locate_run`); `run_folder.RunFolder` writes it. Analyses read
its tokens.parquet, which this module also writes for measurements that have none, such as those of
the published study.
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
import textwrap
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope import quantities
from nucleoscope.atomic import write_atomically
from nucleoscope.names import escape_line
from nucleoscope.settings import LONGEST_PART, quote
from nucleoscope.store.integrity import is_permitted
from nucleoscope.store.mapped_records import check_sizes, map_records, read_vectors

# torch, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

MEASUREMENTS, TOKENS, RUN_INFO = "measurements.pt", "tokens.parquet", "run.json"
MEASURE, PAGE = "measure", "run"  # the notebooks of a run: one measures, the other one is its page in the book
NOTEBOOK = f"{PAGE}.ipynb"
NOTEBOOKS = (f"{MEASURE}.ipynb", NOTEBOOK)
STUDY_MEASUREMENTS = "output_*.pt"  # what the published study's code writes in the same folders
ANALYSES = "correlation_eval"  # the folder of the analyses, beside those of the data sets
PAGES = "book"  # the folder of executed notebooks that are pages of the book and nothing else
ANALYSIS_FILES = (
    *("correlation.ipynb", "correlation.png", "correlation.pdf"),
    *("correlation_bins.csv", "correlation_stats.csv", "correlation_stats.tex", "correlation_stats_short.tex"),
    *("fits.ipynb", "fit_lines.csv", "fit_stats.csv", "fit_stats.tex"),
)
REQUIRED = ("prompt", "entropies", "cosines", "top_p_tokens")  # the keys of the published study's files
FORBIDDEN = "there is no permission to read this folder: ask its owner"
LARGEST = 1e75  # of a quantity: the fourth power of a value is a number too, so that no mean or variance overflows
SOURCE = b"nucleoscope.measurements"  # the metadata key in tokens.parquet for the fingerprint of its source


def shorten_names(dataset_name: str, model_name: str) -> tuple[str, str]:
    """The names of a run's data set and model in paths and tables.

    A file of prompts is called by its name without the extension, a model by the part after the last "/".
    """
    names = Path(dataset_name).stem, model_name.rstrip("/").rsplit("/", 1)[-1]
    for name, given in zip(names, (dataset_name, model_name), strict=True):
        if name in ("", ".", ".."):
            raise ValueError(f"cannot name a results folder after '{given}': use the folder's own name")
    return names


def locate_run(
    results_dir: str | os.PathLike, dataset_name: str, model_name: str, text_column: str | None = None
) -> Path:
    """The folder of one run.

    Texts that were scored, not generated, count as a data set of their own, <dataset>-<text_column>.
    """
    dataset, model = shorten_names(dataset_name, model_name)
    if text_column:
        dataset = f"{dataset}-{text_column.replace('/', '_')}"
    for name in (dataset, model):
        if len(os.fsencode(name)) > LONGEST_PART:
            raise ValueError(f"the name of a results folder would be {quote(name)}: use a shorter name")
    return locate_folder(results_dir) / dataset / model


def locate_folder(results_dir: str | os.PathLike) -> Path:
    """The folder of all results, in which ``~`` is the user's home."""
    return Path(os.path.expanduser(results_dir))


def locate_measured(results_dir: str | os.PathLike, model: str, dataset: str) -> Path:
    """The folder of a measured run, by its names in tables, which are those of folders."""
    return locate_folder(results_dir) / dataset / model


def load(path: str | os.PathLike) -> list[dict]:
    """The records of a measurements file, one per prompt. ValueError names a damaged or unsupported file."""
    return _check_records(read(path), path)


def _load_mapped(path: Path, trim: Callable[[int, dict], None] | None = None) -> list[dict]:
    """Like `load`, but with `mapped_records.MappedVector` for tensors if the file was written by Nucleoscope.

    ``trim(index, record)`` may empty what is not needed, as in `map_records`.
    """
    try:
        return _check_records(map_records(path, trim), path)
    except FileNotFoundError:
        raise
    except Exception:  # `load` either reads the file or says in one line what is wrong with it
        return load(path)


SYSTEM = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}


def _find_system_cause(error: BaseException, path: str | os.PathLike) -> str | None:
    """Why the system could not read a file that may be good, such as missing permission; None if it could.

    torch reports some of these as a RuntimeError without a number.
    """
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
        return "there is not enough memory"
    if isinstance(error, OSError) and error.errno in SYSTEM:  # a truncated file can be an invalid argument
        return os.strerror(error.errno)
    try:
        with open(path, "rb") as stream:
            stream.read(1)
    except OSError as cause:
        return cause.strerror
    return None


def _check_records(records: Any, path: str | os.PathLike) -> list[dict]:
    if not isinstance(records, list) or not all(isinstance(r, dict) and all(k in r for k in REQUIRED) for r in records):
        raise ValueError(
            f"'{path}' is not a measurements file: it contains no list of records with {', '.join(REQUIRED)}"
        )
    return records


def load_info(folder: Path) -> dict[str, Any]:
    """The content of a run's run.json; see `batching.collect_run_info` for the keys."""
    return read_json(folder / RUN_INFO)


def describe_run(info: Mapping[str, Any]) -> str:
    """What a run.json says of a run's size, speed and truncations, in lines to print."""
    lines = [
        f"{info['settings']['n_prompts']} prompts, {info['tokens']:,} tokens, "
        f"{info['tokens_per_second']} tokens/s on {info['device']}"
    ]
    if info["prompts_truncated"]:
        lines.append(
            f"{info['prompts_truncated']} prompts were longer than the model's context; their beginnings were cut off"
        )
    if info.get("texts_truncated"):
        lines.append(f"{info['texts_truncated']} texts were longer than max_tokens; their ends were cut off")
    return "\n".join(lines)


def find_measurements(folder: Path) -> Path | None:
    """The measurements file in a run's folder: ours, or else the latest one from the published study's code."""
    if os.path.isfile(folder / MEASUREMENTS):  # unlike is_file, False in a folder without permission
        return folder / MEASUREMENTS
    return max(folder.glob(STUDY_MEASUREMENTS), default=None)  # their names end with the time


def list_runs(results_dir: str | os.PathLike = "results", damaged: dict[Path, str] | None = None) -> list[Path]:
    """The folders below ``results_dir`` that contain measurements, by data set and model.

    A folder that the system does not let this process read, or whose name is not text, is left out and
    added to ``damaged``.
    """
    damaged = {} if damaged is None else damaged
    datasets = _list_folders(locate_folder(results_dir), damaged)
    return sorted(run for dataset in datasets for run in _list_folders(dataset, damaged) if find_measurements(run))


def _list_folders(place: Path, damaged: dict[Path, str]) -> list[Path]:
    """The folders in ``place``, without those that are added to ``damaged``."""
    try:
        folders = [place / name for name in os.listdir(place) if os.path.isdir(place / name)]
    except PermissionError:
        damaged[place] = f"'{place}': {FORBIDDEN}"
        return []
    except OSError:  # it is not there, or was removed in the meantime
        return []
    reasons = {folder: _find_obstacle(folder) for folder in folders}
    damaged |= {folder: f"'{folder}': {reason}" for folder, reason in reasons.items() if reason}
    return [folder for folder in folders if not reasons[folder]]


def _find_obstacle(folder: Path) -> str | None:
    """Why a folder cannot be used, in words that follow its name; None if it can."""
    try:
        folder.name.encode()
    except UnicodeEncodeError:  # it could be in no table, page or log
        return "the folder's name is not UTF-8 text: rename it"
    if not is_permitted(folder, os.R_OK | os.X_OK):
        return FORBIDDEN
    return None


def load_runs(
    results_dir: str | os.PathLike = "results",
) -> tuple[dict[tuple[str, str], "pd.DataFrame"], dict[Path, str]]:
    """The tokens of every run below ``results_dir``, and the files that cannot be read.

    Returns {(model, dataset): table} and {file: what is wrong with it}. Columns of a table: model,
    dataset (categories), prompt (index), step, token, k (size of the nucleus), then the quantities;
    entropies are in nats. A quantity is NaN if the file does not contain it; cosine and weighted_cosine
    are NaN if k = 1 (one candidate has no pair); the token is -1 if it is unknown.
    """
    check_folder(results_dir)
    damaged: dict[Path, str] = {}
    return dict(iterate_runs(results_dir, damaged)), damaged


def iterate_runs(
    results_dir: str | os.PathLike, damaged: dict[Path, str], columns: Collection[str] | None = None
) -> Iterator[tuple[tuple[str, str], "pd.DataFrame"]]:
    """The name and the tokens of one run after another; files that cannot be read are added to ``damaged``."""
    for folder in list_runs(results_dir, damaged):
        with _collect_damage(damaged, path := find_measurements(folder)):
            found = load_run(path, folder.name, folder.parent.name, columns)
        if path not in damaged:
            yield (folder.name, folder.parent.name), found


def load_run(
    path: str | os.PathLike, model: str, dataset: str, columns: Collection[str] | None = None
) -> "pd.DataFrame":
    """The tokens of one measurements file as a table, with all columns of `load_runs` or only some of them.

    ``path`` is the measurements file. Its tokens.parquet is read; if it does not exist or belongs to other
    measurements, it is written first. ValueError names a bad file.
    """
    return _read_columns(_convert(Path(path)), model, dataset, columns)


class StoredTables(Mapping):
    """{(model, dataset): table}, each read from its tokens.parquet whenever it is accessed, and not kept.

    ``sources`` gives the parquet file of each run, or the table itself if it could not be written to a
    file. Only ``columns`` are read (None: all). Other processes receive the paths, not the tables.
    """

    def __init__(self, sources: dict[tuple[str, str], Any], columns: Collection[str] | None = None) -> None:
        self._sources, self._columns = sources, columns

    def __getitem__(self, key: tuple[str, str]) -> "pd.DataFrame":
        return _read_columns(self._sources[key], *key, self._columns)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, key: object) -> bool:
        return key in self._sources

    def select(
        self, keys: Iterable[tuple[str, str]] | None = None, columns: Collection[str] | None = None
    ) -> "StoredTables":
        """Some of the tables, or some of their columns, from the same files."""
        sources = self._sources if keys is None else {key: self._sources[key] for key in keys}
        return StoredTables(sources, self._columns if columns is None else columns)

    def count_tokens(self) -> int:
        """The number of rows of all tables, without reading them."""
        from pyarrow import parquet

        return sum(
            parquet.read_metadata(source).num_rows if isinstance(source, Path) else len(source)
            for source in self._sources.values()
        )


def select(
    tables: Mapping[tuple[str, str], "pd.DataFrame"],
    keys: Iterable[tuple[str, str]] | None = None,
    columns: Collection[str] | None = None,
) -> Mapping[tuple[str, str], "pd.DataFrame"]:
    """Some of the tables; with `StoredTables`, only ``columns`` are then read."""
    if isinstance(tables, StoredTables):
        return tables.select(keys, columns)
    return tables if keys is None else {key: tables[key] for key in keys}


def count_tokens(tables: Mapping[tuple[str, str], "pd.DataFrame"]) -> int:
    """The number of rows of all tables."""
    return tables.count_tokens() if isinstance(tables, StoredTables) else sum(map(len, tables.values()))


def load_readable(results_dir: str | os.PathLike) -> StoredTables:
    """The tables of `load_runs`, left in their files, to be read one at a time.

    Files that cannot be read are named on stderr. ValueError if none is left.
    """
    check_folder(results_dir)
    sources: dict[tuple[str, str], Path | pd.DataFrame] = {}
    damaged: dict[Path, str] = {}
    for folder in list_runs(results_dir, damaged):
        with _collect_damage(damaged, path := find_measurements(folder)):
            sources[folder.name, folder.parent.name] = _convert(path)
    for problem in damaged.values():
        print("skipped:", escape_line(problem), file=sys.stderr)
    if not sources:
        raise ValueError(f"no readable measurements under '{results_dir}': measure a model first")
    return StoredTables(sources)


def load_table(results_dir: str | os.PathLike = "results") -> "pd.DataFrame":
    """All measured tokens below ``results_dir``, one per row; columns as in `load_runs`.

    ValueError names a bad file.
    """
    import pandas as pd
    from pandas.api.types import union_categoricals

    tables, damaged = load_runs(results_dir)
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    if not tables:
        return tabulate([], "", "").assign(model=pd.Categorical([]), dataset=pd.Categorical([]))
    parts = [tables[key] for key in sorted(tables, key=lambda key: key[::-1])]
    names = {name: union_categoricals([part[name] for part in parts]) for name in ("model", "dataset")}
    joined = pd.concat([part.drop(columns=list(names)) for part in parts], ignore_index=True)
    return joined.assign(**names)[["model", "dataset", *joined.columns]]


def load_records(
    folder: str | os.PathLike, prompts: Iterable[int] | None = None, fields: Collection[str] | None = None
) -> dict[int, dict]:
    """The records of some or all prompts of a run, by the prompt's index, with all or some of their fields.

    Everything else is not read from disk or not kept: candidates are read only for these prompts.
    ValueError names a damaged file, or a prompt that the run does not have.
    """
    path = find_measurements(Path(folder))
    if path is None:
        raise FileNotFoundError(f"no measurements in '{folder}': measure the model first")
    wanted = None if prompts is None else [int(prompt) for prompt in prompts]
    kept = None if wanted is None else set(wanted)

    def trim(index: int, record: dict) -> None:
        for name in record:
            if (kept is not None and index not in kept) or (fields is not None and name not in fields):
                record[name] = None

    records, found = _load_mapped(path, trim), {}
    for index in range(len(records)) if wanted is None else wanted:
        if not 0 <= index < len(records):
            raise ValueError(f"'{path}' has no prompt {index}: it has {len(records)} prompts, counted from 0")
        record = records[index]
        found[index] = {name: read_vectors(record[name]) for name in record if fields is None or name in fields}
    return found


def check_folder(results_dir: str | os.PathLike) -> None:
    """Raises FileNotFoundError if there is no folder of results."""
    if not locate_folder(results_dir).is_dir():
        raise FileNotFoundError(f"folder '{results_dir}' does not exist (current folder: {Path.cwd()})")


@contextlib.contextmanager
def _collect_damage(damaged: dict[Path, str], path: Path) -> Iterator[None]:
    """Records in ``damaged`` why ``path`` cannot be read, instead of raising the error."""
    try:
        yield
    except Exception as error:  # values of any type and size may be under the right keys
        said = "there is not enough memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        damaged[path] = said if str(path) in said else f"'{path}': {said}"


def tabulate(records: list[dict], model: str, dataset: str) -> "pd.DataFrame":
    """The tokens of some records as a table; columns as in `load_runs`. ValueError names a bad prompt."""
    return _add_names(_tabulate_records(records), model, dataset)


def _tabulate_records(records: list[dict]) -> "pd.DataFrame":
    """The table of some records, without the columns model and dataset."""
    import numpy as np
    import pandas as pd

    plurals = quantities.find_columns(key for record in records for key in record)
    lengths = [len(record["entropies"]) for record in records]
    for index, (record, length) in enumerate(zip(records, lengths, strict=True)):
        for name in ("tokens", "top_p_tokens", *plurals):
            if len(record.get(name, range(length))) != length:
                raise ValueError(f"prompt {index} has {len(record[name])} {name} but {length} entropies")
    columns: dict[str, Any] = {
        "prompt": np.repeat(np.arange(len(records)), lengths),
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
            raise ValueError(f"{name} contain a number beyond {LARGEST:g}, which is no measurement: measure again")
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


def write_tokens(records: list[dict], path: Path) -> None:
    """Writes the tokens of the measurements file ``path``, which contains these records, to its tokens.parquet.

    One row per token, with columns for prompt, step, k and token and one per quantity, which is null
    where it has no value. The file appears only when it is complete.
    """
    _write_parquet(_tabulate_records(records), path, _compute_fingerprint(path))


def _write_parquet(frame: "pd.DataFrame", path: Path, fingerprint: bytes) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = pa.Table.from_pandas(frame, preserve_index=False)  # NaN becomes null
    columns = columns.replace_schema_metadata({**columns.schema.metadata, SOURCE: fingerprint})
    with write_atomically(path.with_name(TOKENS)) as stream:
        parquet.write_table(columns, stream, write_page_checksum=True)


def repair_tokens(folder: Path) -> bool:
    """Writes the tokens.parquet of a run from its measurements if it is missing or damaged; whether it did.

    ValueError names measurements that cannot be read.
    """
    path = find_measurements(folder)
    if path is None or _is_current(path):
        return False
    _convert(path)
    return True


def _convert(path: Path) -> "Path | pd.DataFrame":
    """The tokens.parquet of a measurements file, written now if it is missing, damaged or of other measurements.

    Returns the table itself if the file cannot be written. ValueError names a bad file.
    """
    tokens = path.with_name(TOKENS)
    if _is_current(path):
        return tokens
    fingerprint = _compute_fingerprint(path)
    frame = _tabulate_records(_load_mapped(path, lambda _, record: record.pop("top_p_probs", None)))
    if path != find_measurements(path.parent):  # an older file of the study: tokens.parquet belongs to the latest one
        return frame
    try:
        _write_parquet(frame, path, fingerprint)
    except OSError:  # another user's folder, or a full disk: reading needs no write access
        return frame
    return tokens


def _is_current(path: Path) -> bool:
    """Whether the tokens.parquet of a measurements file was written from it, and can be read to the end."""
    tokens = path.with_name(TOKENS)
    if _read_source(tokens) != _compute_fingerprint(path):
        return False
    return not _has_bad_page(tokens, path.stat().st_size)  # a token takes more than a byte there


def _has_bad_page(tokens: Path, most: int) -> bool:
    """Whether a tokens.parquet cannot be read to the end, has numbers that no run measures, or over ``most`` rows.

    A part is read at a time: a file of some kilobytes can contain a billion equal rows.

    Analyses read each file several times, in several processes, where a bad one would end all of them.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        with parquet.ParquetFile(tokens, page_checksum_verification=True) as file:
            if file.metadata.num_rows > most:
                return True
            for batch in file.iter_batches(1 << 16):
                for column in batch.columns:
                    if pa.types.is_floating(column.type):
                        bounds = compute.min_max(compute.if_else(compute.is_finite(column), column, None)).as_py()
                        if any(abs(bound) > LARGEST for bound in bounds.values() if bound is not None):
                            return True
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno in SYSTEM:
            raise
        return True
    return False


def _compute_fingerprint(path: Path) -> bytes:
    """Identifies a measurements file: its name, its size, and a hash of the checksums of its parts.

    A file of torch.save is a zip archive, which lists these checksums; of any other file, all is hashed. Unlike
    a time stamp, a fingerprint is still valid after the folder was copied.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        try:
            with zipfile.ZipFile(stream) as archive:
                parts = [f"{part.filename} {part.file_size} {part.CRC}" for part in archive.infolist()]
            digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        except zipfile.BadZipFile:
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{path.name} {size} {digest}".encode()


def _read_source(tokens: Path) -> bytes | None:
    """The fingerprint of the measurements that a tokens.parquet was written from; None if it cannot be read."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return (parquet.read_schema(tokens).metadata or {}).get(SOURCE)
    except (OSError, pa.ArrowException):
        return None


def _read_columns(
    source: "Path | pd.DataFrame", model: str, dataset: str, columns: Collection[str] | None
) -> "pd.DataFrame":
    """Some or all columns of a table; a quantity unknown to the version that wrote the file is NaN.

    ValueError names a tokens.parquet that cannot be read.
    """
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet

    known = ["model", "dataset", "prompt", "step", "k", "token", *quantities.find_columns().values()]
    if isinstance(source, Path):
        try:
            with parquet.ParquetFile(source) as file:
                stored = file.schema_arrow.names
                frame = file.read([name for name in stored if columns is None or name in columns]).to_pandas()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            reason = textwrap.shorten(str(error), 100)
            raise ValueError(
                f"'{source}' is damaged: delete it, and it will be recreated from the measurements ({reason})"
            ) from None
    else:
        frame = source.copy()
    frame = _add_names(frame, model, dataset)
    for name in known:
        if name not in frame:
            frame[name] = np.nan
    others = [name for name in frame if name not in known]  # registered when the file was written, but not here
    return frame[[name for name in (*known, *others) if columns is None or name in columns]]


def select_choices(table: "pd.DataFrame") -> "pd.DataFrame":
    """The tokens that had an alternative (k > 1): with one candidate there is no pair to compare."""
    return table[table["k"] > 1]


def read_json(path: Path) -> dict:
    """A JSON object; ValueError names a file that does not contain one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"'{path}' is not valid JSON ({error}): move it out of the way") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a JSON object: move it out of the way")
    return content


def read(path: str | os.PathLike) -> Any:
    """The content of a file of tensors, on the CPU. ValueError: it is damaged; OSError: the system cannot read it."""
    import torch

    try:
        check_sizes(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # the loader raises many types for a damaged file
        if cause := _find_system_cause(error, path):
            raise OSError(f"cannot read '{path}': {cause}") from None
        reason = textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 100)
        raise ValueError(
            f"cannot read '{path}' as measurements: the file is truncated or was not written by Nucleoscope; "
            f"delete it and measure again ({reason})"
        ) from None

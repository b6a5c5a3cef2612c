"""Similarity in context on disk: beside the measurements of a run, a row and a matrix for each token with a choice.

Contract: this module deals with paths and files; `measure.context` compares, and `stats.what_or_how` splits. A run's
folder gets

* ``context.parquet``: a row per token with k > 1, with the columns `COLUMNS`,
* ``context.pt``: its candidates, their probabilities and the upper triangles of their matrices, see `MATRICES`,
* ``context.json``: the settings, and the fingerprint of the measurements that all three belong to; written last.

Until all texts are compared, they are in ``context_parts/``, a file each, so that a killed process can be resumed. A
process that writes holds the lock of the run's folder.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.atomic import write_atomically, write_json
from nucleoscope.store import integrity
from nucleoscope.store.locking import Lock, Locked, check_folder
from nucleoscope.store.mapped_records import read_vectors
from nucleoscope.store.measurements import MEASUREMENTS, load_mapped, read, read_intact
from nucleoscope.store.results import (
    CONTEXT_FILES,
    CONTEXT_INFO,
    CONTEXT_MATRICES,
    CONTEXT_PARTS,
    CONTEXT_TABLE,
    RUN_INFO,
    load_info,
    read_json,
)
from nucleoscope.store.tokens import compute_fingerprint

# torch, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FIELDS = ("prompt", "tokens", "top_p_tokens", "top_p_probs")  # of a record that are needed to compare its candidates
VALUES = ("mean_similarity", "weighted_similarity", "similarity_entropy", "continuations")
SPLIT = ("groups", "entropy_what", "entropy_how", "entropy_what_null", "entropy_how_null")
COLUMNS = ("prompt", "step", "m", *VALUES, *SPLIT)
# Per token; per candidate; per pair. All are concatenated in the order of the rows of context.parquet.
MATRICES = ("prompts", "steps", "sizes", "ids", "shares", "similarities")
PART, OTHERS = ("steps", "sizes", "ids", "shares", "similarities"), ("values", "seconds", "way")  # of each text
ABOUT = ("seconds", "ways", "device", "dtype")  # what context.json says of how candidates were compared
SETTINGS = "settings.json"
OWN = re.compile(r"\d{6,}\.pt|settings\.json|\..*\.part")
SOURCE = b"nucleoscope.context"  # the metadata key of context.parquet for the fingerprint of the measurements
AGAIN = "measure it with scripts/correlation_pipeline.py --only=context"


def check(folder: Path) -> None:
    """Before a model is loaded: FileNotFoundError if a run has no measurements, OSError if it cannot be written to.

    ValueError if its run.json is damaged.
    """
    for name in (MEASUREMENTS, RUN_INFO):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"'{folder}' has no {name}: measure the run first")
    load_info(folder)
    check_folder(folder)


def find_missing(folder: str | Path, candidates: int, threshold: float) -> str | None:
    """What is missing or differs, in one line, if similarity in context is not measured with these settings."""
    folder = Path(folder)
    try:
        for name in CONTEXT_FILES:
            if not integrity.is_whole(folder / name):
                return f"{name} is missing or damaged"
        info = read_json(folder / CONTEXT_INFO)
        if info.get("measurements") != compute_fingerprint(folder / MEASUREMENTS).decode():
            return f"{CONTEXT_INFO} belongs to other measurements"
    except (OSError, ValueError) as error:
        return str(error)
    for name, value in (("context_candidates", candidates), ("context_threshold", threshold)):
        if info.get(name) != value:
            return f"{name} is {info.get(name)} there and {value} here"
    return None


class ContextFolder(Locked):
    """Similarity in context of one run while it is measured: filled text by text, then finished.

    ``finished`` is true if it is there, with the same numbers of ``candidates`` and the same ``threshold``. Raises
    FileNotFoundError if the run is not measured, FileExistsError if it is there with another number of candidates,
    which ``overwrite`` replaces. Opening writes nothing. Write to it in a ``with`` block, which locks the folder.
    """

    def __init__(self, folder: str | Path, candidates: int, threshold: float, overwrite: bool = False):
        self.folder = Path(folder)
        self.parts = self.folder / CONTEXT_PARTS
        self.candidates, self.threshold, self.overwrite = candidates, threshold, overwrite
        self._look()

    def _look(self) -> None:
        """Finds out what is there; see `ContextFolder` for the errors."""
        path = self.folder / MEASUREMENTS
        if not path.is_file():
            raise FileNotFoundError(f"'{self.folder}' has no {MEASUREMENTS}: measure the run first")
        self.settings = {
            "measurements": compute_fingerprint(path).decode(),
            "context_candidates": self.candidates,
        }
        self.finished = find_missing(self.folder, self.candidates, self.threshold) is None
        info = self._read_info()
        same = info.get("measurements") == self.settings["measurements"]
        there = info.get("context_candidates")
        if same and there != self.candidates and not self.overwrite:
            raise FileExistsError(
                f"'{self.folder}' contains similarity in context with context_candidates {there}, not "
                f"{self.candidates}; --overwrite replaces it"
            )
        # With another threshold, nothing is measured again.
        self.compared = (
            same
            and there == self.candidates
            and all(integrity.is_whole(self.folder / name) for name in (CONTEXT_MATRICES, CONTEXT_TABLE))
        )

    def _read_info(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return read_json(self.folder / CONTEXT_INFO)
        return {}

    def __enter__(self) -> "ContextFolder":
        self._lock = Lock(self.folder)
        try:
            self._look()
            if self.finished:
                self._remove_parts()  # their writer was killed just before the end
            elif not self.compared:
                self._prepare()
        except BaseException:
            self.release()
            raise
        return self

    def _prepare(self) -> None:
        """Makes the folder of parts ready; those of other measurements or settings are removed."""
        if self.parts.is_symlink():
            raise FileExistsError(f"'{self.parts}' is a link: remove it")
        others = [path for path in self.parts.glob("*") if not _is_own(path)]
        if others:
            raise FileExistsError(f"'{self.parts}' contains '{others[0].name}', which no run has written: move it away")
        self.parts.mkdir(exist_ok=True)
        found = {}
        with contextlib.suppress(OSError, ValueError):
            found = read_json(self.parts / SETTINGS)
        if found != self.settings:
            for path in self.parts.iterdir():
                path.unlink()
            write_json(self.parts / SETTINGS, self.settings)
        for path in self.parts.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        if self.parts.is_symlink():
            return
        for path in self.parts.glob("*"):
            if _is_own(path):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, or not there
            self.parts.rmdir()

    def load_texts(self) -> list[dict[str, Any]]:
        """The records of all prompts with the `FIELDS`; vectors stay in the file until `read_text`."""

        def trim(_: int, record: dict) -> None:
            for name in record:
                if name not in FIELDS:
                    record[name] = None

        records = load_mapped(self.folder / MEASUREMENTS, trim)
        missing = [name for name in FIELDS if any(record.get(name) is None for record in records)]
        if missing:
            raise ValueError(f"'{self.folder / MEASUREMENTS}' has no {missing[0]}: measure the run again")
        return records

    @staticmethod
    def read_text(record: Mapping[str, Any]) -> dict[str, Any]:
        """A record of `load_texts` with its vectors as tensors."""
        return {name: read_vectors(record[name]) for name in FIELDS}

    def has_part(self, index: int) -> bool:
        """Whether a text has been compared."""
        return self._locate(index).is_file()

    def _locate(self, index: int) -> Path:
        return self.parts / f"{index:06d}.pt"

    def save_part(self, index: int, part: Mapping[str, Any]) -> None:
        """Saves what was found of one text: `PART` and `OTHERS` of `measure.context.Comparison`.

        Raises BlockingIOError if another process has taken over the folder; so does `finish`.
        """
        self._check_lock()
        import torch

        with write_atomically(self._locate(index)) as stream:
            torch.save({name: part[name] for name in (*PART, *OTHERS)}, stream)

    def finish(self, n_prompts: int, split: Callable, info: Mapping[str, Any] | None = None) -> None:
        """Joins the parts in prompt order into the three files.

        ``split(matrices, threshold)`` gives the columns `SPLIT` from the arrays `MATRICES`; ``info`` is what
        context.json says besides. If only the threshold is another one, the matrices that are there are split again.
        ValueError if a text is missing, also because its part turned out to be damaged: it is removed.
        """
        self._check_lock()
        matrices, values, about = self._read_compared() if self.compared else self._join(n_prompts)
        columns = {"prompt": matrices["prompts"], "step": matrices["steps"], "m": matrices["sizes"], **values}
        columns |= split(matrices, self.threshold)
        about |= dict(info or {}) | {"tokens": len(matrices["steps"])}
        self._check_lock()  # joining takes a while
        if self.compared:  # should this process be killed now, the table must not count as split at the old threshold
            write_json(self.folder / CONTEXT_INFO, self.settings | {"context_threshold": None} | about)
        else:
            (self.folder / CONTEXT_INFO).unlink(missing_ok=True)  # never beside files that it does not belong to
            self._write_matrices(matrices)
        self._write_table(columns)
        write_json(self.folder / CONTEXT_INFO, self.settings | {"context_threshold": self.threshold} | about)
        self._check_lock()
        self._remove_parts()
        self.release()
        self.finished = self.compared = True

    def _join(self, n_prompts: int) -> tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"], dict[str, Any]]:
        """The arrays `MATRICES` and `VALUES` of all parts, and what context.json says of how they were compared."""
        import numpy as np

        arrays: dict[str, list] = {name: [] for name in (*MATRICES, *VALUES)}
        seconds, ways = 0.0, set()
        for index in range(n_prompts):
            path = self._locate(index)
            if not path.is_file():
                raise ValueError(f"prompt {index} is missing from '{self.parts}': run the same command again")
            part = _read_part(path)
            arrays["prompts"].append(np.full(len(part["steps"]), index, np.int32))
            for name in PART:
                arrays[name].append(part[name].numpy())
            for name in VALUES:
                arrays[name].append(part["values"][name].numpy())
            seconds += part["seconds"]
            ways |= {part["way"]} if len(part["steps"]) else set()
        kinds = {"shares": np.float32, "similarities": np.float16} | dict.fromkeys(VALUES, np.float64)
        joined = {name: np.concatenate([np.empty(0, kinds.get(name, np.int32)), *arrays[name]]) for name in arrays}
        about = {"seconds": round(seconds, 3), "ways": sorted(ways)}
        return {name: joined[name] for name in MATRICES}, {name: joined[name] for name in VALUES}, about

    def _read_compared(self) -> tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"], dict[str, Any]]:
        """The same from the files that are there, which belong to these measurements."""
        table = load_rows(self.folder, VALUES)
        about = {name: value for name, value in self._read_info().items() if name in ABOUT}
        return load_matrices(self.folder), {name: table[name].to_numpy() for name in VALUES}, about

    def _write_matrices(self, matrices: Mapping[str, "np.ndarray"]) -> None:
        import torch

        content = self.settings | {name: torch.from_numpy(array) for name, array in matrices.items()}
        with write_atomically(self.folder / CONTEXT_MATRICES) as stream:
            torch.save(content, stream)

    def _write_table(self, columns: Mapping[str, "np.ndarray"]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({name: columns[name] for name in COLUMNS})
        table = table.replace_schema_metadata({SOURCE: self.settings["measurements"]})
        with write_atomically(self.folder / CONTEXT_TABLE) as stream:
            parquet.write_table(table, stream, write_page_checksum=True)


def load_rows(folder: str | Path, columns: Collection[str] | None = None) -> "pd.DataFrame":
    """The table of a run's context.parquet, with all `COLUMNS` or some of them.

    ValueError, in one line, if it is missing, damaged, or belongs to other measurements than those in the folder.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(folder) / CONTEXT_TABLE
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _check_source(path, (file.schema_arrow.metadata or {}).get(SOURCE, b"").decode())
            return file.read(None if columns is None else list(columns)).to_pandas()
    except FileNotFoundError:
        raise ValueError(f"'{folder}' has no {CONTEXT_TABLE}: {AGAIN}") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"'{path}' is damaged ({str(error).splitlines()[0][:100]}): remove it and {AGAIN}") from None


def load_matrices(folder: str | Path) -> dict[str, "np.ndarray"]:
    """The arrays `MATRICES` of a run's context.pt; the same errors as `load_rows`."""
    path = Path(folder) / CONTEXT_MATRICES
    try:
        content = read(path)
    except FileNotFoundError:
        raise ValueError(f"'{folder}' has no {CONTEXT_MATRICES}: {AGAIN}") from None
    except ValueError:
        raise ValueError(f"'{path}' is damaged: remove it and {AGAIN}") from None
    if not isinstance(content, dict) or not all(name in content for name in MATRICES):
        raise ValueError(f"'{path}' contains no matrices: remove it and {AGAIN}")
    _check_source(path, str(content.get("measurements")))
    return {name: content[name].numpy() for name in MATRICES}


def _check_source(path: Path, fingerprint: str) -> None:
    measurements = path.with_name(MEASUREMENTS)
    if measurements.is_file() and fingerprint != compute_fingerprint(measurements).decode():
        raise ValueError(f"'{path}' belongs to other measurements: {AGAIN}")


def find_matrix(
    matrices: Mapping[str, "np.ndarray"], prompt: int, step: int
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"] | None:
    """The ids (m,) and shares (m,) of a token's candidates, and their similarities (m, m); None if it has none.

    ``matrices`` are those of `load_matrices`.
    """
    import numpy as np

    places = np.flatnonzero((matrices["prompts"] == prompt) & (matrices["steps"] == step))
    if not len(places):
        return None
    sizes = matrices["sizes"].astype(np.int64)
    m, before = int(sizes[places[0]]), sizes[: places[0]]
    start, pair = int(before.sum()), int((before * (before - 1) // 2).sum())
    matrix = np.eye(m)
    rows, columns = np.triu_indices(m, 1)
    matrix[rows, columns] = matrix[columns, rows] = matrices["similarities"][pair : pair + m * (m - 1) // 2]
    return matrices["ids"][start : start + m], matrices["shares"][start : start + m], matrix


def _read_part(path: Path) -> dict[str, Any]:
    """The content of a part; one that is damaged is removed, which a ValueError says."""
    try:
        part = read_intact(path)
        if isinstance(part, dict) and all(name in part for name in (*PART, *OTHERS)):
            return part
    except ValueError:
        pass
    path.unlink(missing_ok=True)
    raise ValueError(f"'{path}' is damaged, and was removed: run the same command again")


def _is_own(path: Path) -> bool:
    return bool(OWN.fullmatch(path.name)) and path.is_file() and not path.is_symlink()

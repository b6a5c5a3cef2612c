"""Similarity in context on disk: beside the measurements of a run, a row and a matrix for each token with a choice.

Contract: this module deals with paths and files; `measure.context` compares, and `stats.what_or_how` splits. A run's
folder gets

* ``context.parquet``: a row per token with k > 1, with the columns `COLUMNS`,
* ``context.pt``: its candidates, their probabilities and the upper triangles of their matrices, see `MATRICES`,
* ``context.json``: the settings, and the fingerprint of the measurements that all three belong to; written last.

Until all texts are compared, they are in ``context_parts/``, a file each, so that a killed process can be resumed. A
process that writes holds the lock of the run's folder.
"""

import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nucleoscope import quantities
from nucleoscope.atomic import write_atomically, write_json
from nucleoscope.names import escape_line
from nucleoscope.settings import Settings, validate
from nucleoscope.store import parts
from nucleoscope.store.integrity import find_problem
from nucleoscope.store.measurements import read_intact
from nucleoscope.store.parts import PartsFolder, check_source, read_table
from nucleoscope.store.results import (
    CONTEXT_FILES,
    CONTEXT_INFO,
    CONTEXT_MATRICES,
    CONTEXT_PARTS,
    CONTEXT_TABLE,
    read_json,
)

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
SOURCE = b"nucleoscope.context"  # the metadata key of context.parquet for the fingerprint of the measurements
AGAIN = "repeat the run's command with --only=context"


class Grouping(NamedTuple):
    """How many candidates of a token are compared at most, and the mean similarity from which on groups are one."""

    candidates: int = Settings.context_candidates
    threshold: float = Settings.context_threshold


class Compared(NamedTuple):
    """A run's candidates: the arrays `MATRICES`, and how they are grouped."""

    matrices: dict[str, "np.ndarray"]
    grouping: Grouping


def find_missing(folder: str | Path, candidates: int, threshold: float) -> str | None:
    """What is missing or differs, in one line, if similarity in context is not measured with these settings.

    OSError if the system cannot read a file.
    """
    settings = {"context_candidates": candidates, "context_threshold": threshold}
    return parts.find_missing(Path(folder), CONTEXT_FILES, CONTEXT_INFO, settings)


class ContextFolder(PartsFolder):
    """Similarity in context of one run while it is measured: filled text by text, then finished.

    ``finished`` is true if it is there, with the same numbers of ``candidates`` and the same ``threshold``. Raises
    FileNotFoundError if the run is not measured, FileExistsError if it is there with another number of candidates,
    which ``overwrite`` replaces. Opening writes nothing. Write to it in a ``with`` block, which locks the folder.
    """

    PARTS, FIELDS, CONTENT = CONTEXT_PARTS, FIELDS, (*PART, *OTHERS)

    def __init__(self, folder: str | Path, candidates: int, threshold: float, overwrite: bool = False):
        self.candidates, self.threshold = candidates, threshold
        super().__init__(folder, {"context_candidates": candidates}, overwrite)

    def look(self) -> None:
        """Finds out what is there; see `ContextFolder` for the errors."""
        super().look()
        self.finished = find_missing(self.folder, self.candidates, self.threshold) is None
        info = self.read_info(CONTEXT_INFO)
        same = info.get("measurements") == self.settings["measurements"]
        there = info.get("context_candidates")
        if same and there != self.candidates and not self.overwrite:
            raise FileExistsError(
                f"'{self.folder}' contains similarity in context with context_candidates {there}, not "
                f"{self.candidates}: use --overwrite to replace it"
            )
        # With another threshold, nothing is measured again.
        self.joined = (
            same
            and there == self.candidates
            and not any(find_problem(self.folder / name) for name in (CONTEXT_MATRICES, CONTEXT_TABLE))
        )

    def finish(self, n_prompts: int, split: Callable, info: Mapping[str, Any] | None = None) -> None:
        """Joins the parts in prompt order into the three files.

        ``split(matrices, threshold)`` gives the columns `SPLIT` from the arrays `MATRICES`; ``info`` is what
        context.json says besides. If only the threshold is another one, the matrices that are there are split again.
        ValueError if a text is missing, also because its part turned out to be damaged: it is removed.
        """
        self._check_lock()
        matrices, values, about = self._read_compared() if self.joined else self._join(n_prompts)
        columns = {"prompt": matrices["prompts"], "step": matrices["steps"], "m": matrices["sizes"], **values}
        columns |= split(matrices, self.threshold)
        about |= dict(info or {}) | {"tokens": len(matrices["steps"])}
        self._check_lock()  # joining takes a while
        if self.joined:  # should this process be killed now, the table must not count as split at the old threshold
            write_json(self.folder / CONTEXT_INFO, self.settings | {"context_threshold": None} | about)
        else:
            (self.folder / CONTEXT_INFO).unlink(missing_ok=True)  # never beside files that it does not belong to
            self._write_matrices(matrices)
        self._write_table(columns)
        write_json(self.folder / CONTEXT_INFO, self.settings | {"context_threshold": self.threshold} | about)
        self._check_lock()
        self.remove_parts()
        self.release()
        self.finished = self.joined = True

    def _join(self, n_prompts: int) -> tuple[dict[str, "np.ndarray"], dict[str, "np.ndarray"], dict[str, Any]]:
        """The arrays `MATRICES` and `VALUES` of all parts, and what context.json says of how they were compared."""
        import numpy as np

        arrays: dict[str, list] = {name: [] for name in (*MATRICES, *VALUES)}
        seconds, ways = 0.0, set()
        for index in range(n_prompts):
            part = self.read_part(index)
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
        about = {name: value for name, value in self.read_info(CONTEXT_INFO).items() if name in ABOUT}
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

    ValueError, in one line, if it is missing, damaged, or belongs to other measurements than those in the folder;
    OSError if the system cannot read it.
    """
    return read_table(Path(folder) / CONTEXT_TABLE, columns, SOURCE, AGAIN)


def load_matrices(folder: str | Path) -> dict[str, "np.ndarray"]:
    """The arrays `MATRICES` of a run's context.pt; the same errors as `load_rows`."""
    path = Path(folder) / CONTEXT_MATRICES
    try:
        content = read_intact(path)
    except FileNotFoundError:
        raise ValueError(f"'{folder}' has no {CONTEXT_MATRICES}: {AGAIN}") from None
    except ValueError:
        raise ValueError(f"'{path}' is damaged: remove it and {AGAIN}") from None
    if not isinstance(content, dict) or not all(hasattr(content.get(name), "numpy") for name in MATRICES):
        raise ValueError(f"'{path}' contains no matrices: remove it and {AGAIN}")
    check_source(path, str(content.get("measurements")), AGAIN)
    matrices = {name: content[name].numpy() for name in MATRICES}
    sizes = matrices["sizes"].astype("int64")
    lengths = [len(sizes)] * 3 + [sizes.sum()] * 2 + [(sizes * (sizes - 1) // 2).sum()]
    if [len(matrices[name]) for name in MATRICES] != lengths:
        raise ValueError(
            f"'{path}' contains matrices whose sizes differ from those that it states: remove it and {AGAIN}"
        )
    return matrices


def load_current(folder: str | Path) -> Compared | None:
    """How a run's candidates were compared, for readers that do without: None if it was not measured in context.

    A file that is missing beside the others, damaged, or about other measurements is named on stderr, and the run
    counts as not measured in context. OSError if the system cannot read it.
    """
    return _load_current(Path(folder), lambda grouping: Compared(load_matrices(folder), grouping))


def _read_grouping(folder: Path) -> Grouping:
    """What context.json says; ValueError, in one line, if a run was not measured in context to the end."""
    path = folder / CONTEXT_INFO
    if not path.exists():  # it is written last
        raise ValueError(f"'{folder}' has no {CONTEXT_INFO}: {AGAIN}")
    found = read_json(path)
    check_source(path, str(found.get("measurements")), AGAIN)
    names = [f"context_{name}" for name in Grouping._fields]
    if found.get(names[-1], 0) is None:  # see ContextFolder.finish
        raise ValueError(f"'{path}' has no {names[-1]}, because a change of it was interrupted: {AGAIN}")
    try:
        for name in names:
            validate(name, found.get(name))
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error}): {AGAIN}") from None
    return Grouping(*(found[name] for name in names))


def join_split(table: "pd.DataFrame", folder: str | Path) -> "pd.DataFrame":
    """A run's tokens with both parts of their entropy, the columns of `quantities.IN_CONTEXT`, by prompt and step.

    Tokens without a choice have no value. Without a context.parquet that belongs to the run's measurements, the table
    is returned as it is; one that is missing beside the other files, or damaged, is named on stderr. OSError if the
    system cannot read it.
    """
    keys, names = ["prompt", "step"], [quantity.name for quantity in quantities.IN_CONTEXT]

    def load(_: Grouping) -> "pd.DataFrame":
        rows = load_rows(folder, [*keys, *names])
        if rows.duplicated(keys).any():
            raise ValueError(f"'{Path(folder) / CONTEXT_TABLE}' has a token twice: remove it and {AGAIN}")
        return rows

    rows = _load_current(Path(folder), load)
    return table if rows is None else table.merge(rows, on=keys, how="left", validate="one_to_one")


def _load_current(folder: Path, load: Callable[[Grouping], Any]) -> Any:
    """What ``load`` returns; None if a run is not measured in context, or not to the end, or if its files are damaged.

    Standard error says so, unless there is none of the files. ``load`` gets what context.json says.
    """
    if not any(os.path.lexists(folder / name) for name in CONTEXT_FILES):
        return None
    try:
        return load(_read_grouping(folder))
    except ValueError as error:
        _say_skipped(escape_line(str(error)))
        return None


@functools.cache  # once: a page reads some of the files more than once
def _say_skipped(reason: str) -> None:
    print(f"skipped: {reason}", file=sys.stderr)


def find_matrix(
    matrices: Mapping[str, "np.ndarray"], prompt: int, step: int
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"] | None:
    """The ids (m,) and shares (m,) of a token's candidates, and their similarities (m, m); None if it has none.

    ``matrices`` are those of `load_matrices`.
    """
    return find_matrices(matrices, prompt).get(step)


def find_matrices(
    matrices: Mapping[str, "np.ndarray"], prompt: int
) -> dict[int, tuple["np.ndarray", "np.ndarray", "np.ndarray"]]:
    """The `find_matrix` of all tokens of a prompt that have one, by step."""
    import numpy as np

    places = np.flatnonzero(matrices["prompts"] == prompt)
    if not len(places):
        return {}
    sizes = matrices["sizes"][: places[-1] + 1].astype(np.int64)
    starts, pairs = np.cumsum(sizes) - sizes, np.cumsum(sizes * (sizes - 1) // 2) - sizes * (sizes - 1) // 2
    found = {}
    for place in places.tolist():
        m, start, pair = (int(values[place]) for values in (sizes, starts, pairs))
        matrix = np.eye(m)
        rows, columns = np.triu_indices(m, 1)
        matrix[rows, columns] = matrix[columns, rows] = matrices["similarities"][pair : pair + m * (m - 1) // 2]
        found[int(matrices["steps"][place])] = (
            matrices["ids"][start : start + m],
            matrices["shares"][start : start + m],
            matrix,
        )
    return found

"""Branches on disk: beside the measurements of a run, how its texts would have continued from other candidates.

Contract: this module deals with paths and files; `measure.branching` draws and compares. A run's folder gets

* ``branches.parquet``: a row per branch, with the columns `BRANCH_COLUMNS`,
* ``branch_pairs.parquet``: a row per pair of candidates of a branch point, with the columns `PAIR_COLUMNS`,
* ``branch_points.parquet``: a row per branch point, with the columns `POINT_COLUMNS`: what analyses read,
* ``branches.json``: the settings, and the fingerprint of the measurements that all belong to; written last.

Until all texts are branched, they are in ``branch_parts/``; see `parts`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.atomic import write_atomically, write_json
from nucleoscope.store import parts
from nucleoscope.store.parts import PartsFolder, read_table
from nucleoscope.store.results import (
    BRANCH_FILES,
    BRANCH_INFO,
    BRANCH_PAIRS,
    BRANCH_PARTS,
    BRANCH_POINTS,
    BRANCH_TABLE,
)

# torch, pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

SETTINGS = ("context_candidates", "branch_points", "branch_length", "branch_replicates")  # that decide what is found
OUTCOMES = ("divergence", "equal_tokens", "met", "meeting_step")
BRANCH_COLUMNS = ("prompt", "step", "candidate", "id", "share", "replicate", "tokens", "ended")
PAIR_COLUMNS = ("prompt", "step", "first", "second", "cosine", "similarity", *OUTCOMES)
BASELINE = tuple(f"baseline_{name}" for name in OUTCOMES)
POINT_COLUMNS = ("prompt", "step", "m", "candidate_cosine", "mean_similarity", *OUTCOMES, *BASELINE)
SOURCE = b"nucleoscope.branches"  # the metadata key for the fingerprint of the measurements
AGAIN = "repeat the run's command with --only=branches"


def find_missing(folder: str | Path, settings: Mapping[str, Any]) -> str | None:
    """What is missing or differs, in one line, if a run has no branches with these `SETTINGS`.

    OSError if the system cannot read a file.
    """
    wanted = {name: settings[name] for name in SETTINGS}
    return parts.find_missing(Path(folder), BRANCH_FILES, BRANCH_INFO, wanted)


class BranchFolder(PartsFolder):
    """The branches of one run while they are drawn: filled text by text, then finished.

    ``settings`` has the `SETTINGS`; ``finished`` is true if there are branches with these. Raises FileNotFoundError if
    the run is not measured, FileExistsError if it has branches with other settings, which ``overwrite`` replaces.
    Opening writes nothing. Write to it in a ``with`` block, which locks the folder.
    """

    PARTS = BRANCH_PARTS
    FIELDS = ("prompt", "tokens", "top_p_tokens", "top_p_probs", "entropies", "cosines")
    CONTENT = ("steps", "sizes", "ids", "shares", "tokens", "pairs", "baseline", "seconds", "way")

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], overwrite: bool = False):
        super().__init__(folder, {name: settings[name] for name in SETTINGS}, overwrite)

    def look(self) -> None:
        """Finds out what is there; see `BranchFolder` for the errors."""
        super().look()
        self.finished = find_missing(self.folder, self.settings) is None
        info = self.read_info(BRANCH_INFO)
        others = [name for name in SETTINGS if info.get(name) != self.settings[name]]
        if info.get("measurements") == self.settings["measurements"] and others and not self.overwrite:
            raise FileExistsError(
                f"'{self.folder}' contains branches with {others[0]} {info.get(others[0])}, not "
                f"{self.settings[others[0]]}: use --overwrite to replace them"
            )

    def finish(self, n_prompts: int, info: Mapping[str, Any] | None = None) -> None:
        """Joins the parts in prompt order into the files; ``info`` is what branches.json says besides.

        ValueError if a text is missing, also because its part turned out to be damaged: it is removed.
        """
        self._check_lock()
        tables: dict[str, list] = {BRANCH_TABLE: [], BRANCH_PAIRS: [], BRANCH_POINTS: []}
        seconds, tokens, ways = 0.0, 0, set()
        for index in range(n_prompts):
            part = self.read_part(index)
            tables[BRANCH_TABLE].append(_tabulate_branches(index, part))
            tables[BRANCH_PAIRS].append(_tabulate_pairs(index, part))
            tables[BRANCH_POINTS].append(_tabulate_points(index, part))
            seconds += part["seconds"]
            tokens += int((part["tokens"] >= 0).sum())
            ways |= {part["way"]} if len(part["steps"]) else set()
        self._check_lock()  # joining takes a while
        (self.folder / BRANCH_INFO).unlink(missing_ok=True)  # never beside files that it does not belong to
        for name, tabulated in tables.items():
            self._write_table(name, tabulated)
        points = sum(len(part) for part in tables[BRANCH_POINTS])
        about = {"points": points, "tokens": tokens, "seconds": round(seconds, 3), "ways": sorted(ways)}
        write_json(self.folder / BRANCH_INFO, self.settings | about | dict(info or {}))
        self._check_lock()
        self.remove_parts()
        self.release()
        self.finished = True

    def _write_table(self, name: str, parts: "list[pa.Table]") -> None:
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.concat_tables(parts).replace_schema_metadata({SOURCE: self.settings["measurements"]})
        with write_atomically(self.folder / name) as stream:
            parquet.write_table(table, stream, write_page_checksum=True)


def _count_pairs(part: Mapping[str, Any]) -> "np.ndarray":
    """The number of pairs (N,) of each point."""
    sizes = part["sizes"].numpy()
    return sizes * (sizes - 1) // 2


def _tabulate_branches(index: int, part: Mapping[str, Any]) -> "pa.Table":
    """The rows of a text's branches, (K R): `BRANCH_COLUMNS`. Candidates are numbered from 0, likeliest first.

    ``tokens`` are those after the candidate, without the one that ended the branch, if it ``ended``.
    """
    import numpy as np
    import pyarrow as pa

    tokens, sizes = part["tokens"].numpy(), part["sizes"].numpy()
    replicates, length = tokens.shape[1:]
    rows = tokens.reshape(-1, length)
    lengths = (rows >= 0).sum(1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    place = [np.arange(size, dtype=np.int32) for size in sizes]
    columns = {
        "prompt": np.full(len(rows), index, np.int32),
        "step": np.repeat(np.repeat(part["steps"].numpy(), sizes), replicates).astype(np.int32),
        "candidate": np.repeat(np.concatenate([np.empty(0, np.int32), *place]), replicates),
        "id": np.repeat(part["ids"].numpy(), replicates),
        "share": np.repeat(part["shares"].numpy(), replicates),
        "replicate": np.tile(np.arange(replicates, dtype=np.int32), len(rows) // replicates),
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows[rows >= 0], pa.int32())),
        "ended": lengths < length,
    }
    return pa.table({name: columns[name] for name in BRANCH_COLUMNS})


def _tabulate_pairs(index: int, part: Mapping[str, Any]) -> "pa.Table":
    """The rows of a text's pairs of candidates, (P,): `PAIR_COLUMNS`; outcomes are means over replicates."""
    import numpy as np
    import pyarrow as pa

    counts = _count_pairs(part)
    places = [np.triu_indices(size, 1) for size in part["sizes"].tolist()]
    first, second = (np.concatenate([np.empty(0, int), *(each[i] for each in places)]).astype(np.int32) for i in (0, 1))
    columns = {
        "prompt": np.full(counts.sum(), index, np.int32),
        "step": np.repeat(part["steps"].numpy(), counts).astype(np.int32),
        **{"first": first, "second": second},
        **{name: values.numpy() for name, values in part["pairs"].items()},
    }
    return pa.table({name: columns[name] for name in PAIR_COLUMNS})


def _tabulate_points(index: int, part: Mapping[str, Any]) -> "pa.Table":
    """The rows of a text's branch points, (N,): `POINT_COLUMNS`, means over the pairs of candidates.

    A mean step of meeting is that of the branches that met, and NaN if none did.
    """
    import numpy as np
    import pyarrow as pa

    counts, pairs = _count_pairs(part), {name: values.numpy().astype(float) for name, values in part["pairs"].items()}
    of = np.repeat(np.arange(len(counts)), counts)

    def average(values: "np.ndarray", weights: "np.ndarray | None" = None) -> "np.ndarray":
        sums = np.bincount(of, values if weights is None else values * weights, len(counts))
        total = counts if weights is None else np.bincount(of, weights, len(counts))
        return np.divide(sums, total, out=np.full(len(counts), np.nan), where=total > 0)

    columns = {
        "prompt": np.full(len(counts), index, np.int32),
        "step": part["steps"].numpy(),
        "m": part["sizes"].numpy(),
        "candidate_cosine": average(pairs["cosine"]),
        "mean_similarity": average(pairs["similarity"]),
        **{name: average(pairs[name]) for name in OUTCOMES[:-1]},
        OUTCOMES[-1]: average(np.nan_to_num(pairs[OUTCOMES[-1]]), pairs["met"]),
        **{name: part["baseline"][name.removeprefix("baseline_")].numpy().astype(float) for name in BASELINE},
    }
    return pa.table({name: columns[name] for name in POINT_COLUMNS})


def load_rows(folder: str | Path, name: str = BRANCH_POINTS, columns: Collection[str] | None = None) -> "pd.DataFrame":
    """One of a run's tables, ``name`` of `BRANCH_TABLE`, `BRANCH_PAIRS` and `BRANCH_POINTS`, or some of its columns.

    ValueError, in one line, if it is missing, damaged, or belongs to other measurements than those in the folder;
    OSError if the system cannot read it.
    """
    return read_table(Path(folder) / name, columns, SOURCE, AGAIN)

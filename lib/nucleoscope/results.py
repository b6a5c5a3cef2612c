"""Records on disk: where they lie, how they are saved, continued and loaded as a table.

Contract: this module knows paths and files, and nothing of models or statistics. A file appears
under its name only when it is whole. A cell is one model on one data set, in
``<results_dir>/<dataset>/<model>/`` (see `cell_folder`); while it runs, finished batches wait in ``batches/`` there,
next to the settings that they were made with, so that a killed run goes on where it was.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch and pandas are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

MEASUREMENTS, RUN_INFO, NOTEBOOK = "measurements.pt", "run.json", "run.ipynb"
STUDY_MEASUREMENTS = "output_*.pt"  # what the published study's code writes in the same folders
ANALYSES = "correlation_eval"  # the folder of the analyses, beside those of the data sets
PAGES = "book"  # the folder of executed notebooks that are pages of the book and nothing else
ANALYSIS_FILES = (
    *("correlation.ipynb", "correlation.png", "correlation.pdf"),
    *("correlation_bins.csv", "correlation_stats.csv", "correlation_stats.tex", "correlation_stats_short.tex"),
    *("fits.ipynb", "fit_lines.csv", "fit_stats.csv", "fit_stats.tex"),
)
LOCK_SECONDS = 10  # how long a second writer waits for the first one to end
REQUIRED = ("prompt", "entropies", "cosines", "top_p_tokens")  # what the published study's files have
COLUMNS = {  # a record's list -> the table's column
    "tokens": "token",
    "entropies": "entropy",
    "full_entropies": "full_entropy",
    "varentropies": "varentropy",
    "surprisals": "surprisal",
    "cosines": "cosine",
    "weighted_cosines": "weighted_cosine",
    "similarity_entropies": "similarity_entropy",
}
LABELS = {  # a column's name for readers, with its unit
    "entropy": "entropy (nats)",
    "full_entropy": "full entropy (nats)",
    "varentropy": "varentropy (nats²)",
    "surprisal": "surprisal (nats)",
    "cosine": "cosine similarity",
    "weighted_cosine": "weighted cosine similarity",
    "similarity_entropy": "similarity-sensitive entropy (nats)",
}
QUANTITIES = {**LABELS, "k": "candidates (k)"}  # what a token can be tinted by
PAIRWISE = ("cosine", "weighted_cosine")  # what one candidate alone does not have
LISTED = 10  # candidates on a card


def short_names(dataset_name: str, model_name: str) -> tuple[str, str]:
    """What a cell's data set and model are called in paths and tables.

    A file of prompts goes by its name without the ending, a model by what stands after the last "/".
    """
    names = Path(dataset_name).stem, model_name.rstrip("/").rsplit("/", 1)[-1]
    for name, given in zip(names, (dataset_name, model_name), strict=True):
        if name in ("", ".", ".."):
            raise ValueError(f"'{given}' gives no name for a results folder: write the folder's own name")
    return names


def cell_folder(
    results_dir: str | os.PathLike, dataset_name: str, model_name: str, text_column: str | None = None
) -> Path:
    """The folder of one cell.

    Texts that were measured, not written, count as a data set of their own, <dataset>-<text_column>.
    """
    dataset, model = short_names(dataset_name, model_name)
    if text_column:
        dataset = f"{dataset}-{text_column.replace('/', '_')}"
    return Path(results_dir, dataset, model)


class Cell:
    """One cell on disk: opened with its settings, filled batch by batch, then finished.

    ``settings`` are the parameters and identities that decide which tokens are measured. Opening
    writes nothing. It raises FileExistsError when the folder holds results or batches made with
    other settings; ``overwrite`` lets `finish` replace those instead, except another model's or
    data set's. ``finished`` is true when the results with these settings are there.

    A cell is written to in a ``with`` block, which holds the folder's lock.
    """

    def __init__(self, folder: str | os.PathLike, settings: dict[str, Any], overwrite: bool = False):
        self.folder = Path(folder)
        self.batches = self.folder / "batches"
        self.settings, self.overwrite = json.loads(json.dumps(settings)), overwrite
        self._lock: Any = None
        self.finished = self._look()

    def _look(self) -> bool:
        """Whether the results are there; FileExistsError where what is there may not be replaced."""
        measurements, info = self.folder / MEASUREMENTS, self.folder / RUN_INFO
        done = self._check(info, lambda content: content.get("settings"))
        if done and measurements.is_file() and not (self.overwrite and not _readable(measurements)):
            return True
        begun = self._check(self.batches / "settings.json", lambda content: content)
        if measurements.is_file() and not info.is_file() and not begun and not self.overwrite:
            raise FileExistsError(f"'{measurements}' is there without its {RUN_INFO}: move it away or use --overwrite")
        return False

    def _check(self, path: Path, pick: Any) -> bool:
        """Whether the settings in ``path`` are ours; FileExistsError where they may not be replaced."""
        if not path.is_file():
            return False
        found = pick(_read_json(path))
        if not isinstance(found, dict):
            raise ValueError(f"'{path}' holds no settings: move it away")
        if found != self.settings and not (self.overwrite and self._replaceable(found)):
            raise FileExistsError(self._difference(found))
        return found == self.settings

    def _replaceable(self, found: dict) -> bool:
        """Whether both are of the same model and data set, by name or by content."""
        return all(
            any(found.get(key) == self.settings.get(key) is not None for key in keys)
            for keys in (("model_name", "model"), ("dataset_name", "dataset"))
        )

    def _difference(self, found: dict) -> str:
        keys = [key for key in {**found, **self.settings} if found.get(key) != self.settings.get(key)]
        advice = "--overwrite replaces them, another --results_dir keeps both"
        if not self._replaceable(found):
            keys = [key for key in ("model_name", "dataset_name") if key in keys] or keys
            advice = "use another --results_dir or move that folder away"
        changes = [f"{key} is {_brief(found.get(key))} there and {_brief(self.settings.get(key))} here" for key in keys]
        return f"'{self.folder}' holds results of another run: {', '.join(changes)}; {advice}"

    def __enter__(self) -> "Cell":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def start(self) -> None:
        """Makes the folders, locks them, and writes the settings that the batches will belong to.

        Batches of other settings go, and what a killed process left half written. The system
        drops the lock when this process ends, however it ends. BlockingIOError names the process
        that holds it; where that one has just finished the cell, ``finished`` is true afterwards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / ".lock")
        try:
            self.finished = self._look()
            if not self.finished:
                self._prepare()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets others write to the folder."""
        if self._lock:
            (self.folder / ".lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _prepare(self) -> None:
        self.batches.mkdir(exist_ok=True)
        if not self._check(self.batches / "settings.json", lambda content: content):
            for path in self.batches.iterdir():
                path.unlink()
            write_json(self.batches / "settings.json", self.settings)
        for path in [*self.folder.glob(".*.[0-9]*"), *self.batches.glob(".*.[0-9]*")]:
            path.unlink()

    def save_plan(self, batch_size: int | str, batches: list[list[int]]) -> None:
        """Keeps the batches that a run with this ``batch_size`` setting is made in."""
        write_json(self.batches / "plan.json", {"batch_size": batch_size, "batches": batches})

    def load_plan(self, batch_size: int | str) -> list[list[int]] | None:
        """The batches kept for this ``batch_size`` setting, or None."""
        path = self.batches / "plan.json"
        kept = _read_json(path) if path.is_file() else {}
        return kept.get("batches") if kept.get("batch_size") == batch_size else None

    def save_batch(self, indices: list[int], records: list[dict], seconds: float) -> None:
        """Keeps one finished batch: prompt indices, their records, and the seconds it took."""
        _save({"indices": indices, "records": records, "seconds": seconds}, self.batches / f"{min(indices):06d}.pt")

    def load_batches(self) -> list[dict]:
        """The batches finished so far, as they were saved. One that cannot be read counts as not done."""
        found = []
        for path in sorted(self.batches.glob("*.pt")):
            with contextlib.suppress(ValueError):
                found.append(_load(path))
        return found

    def finish(self, n_prompts: int, info: dict[str, Any]) -> list[dict]:
        """Joins the batches in prompt order into the measurements, writes ``info`` beside them."""
        batches = self.load_batches()
        records = dict(
            zip((i for b in batches for i in b["indices"]), (r for b in batches for r in b["records"]), strict=True)
        )
        missing = sorted(set(range(n_prompts)) - set(records))
        if missing:
            raise ValueError(f"'{self.batches}' lacks prompt {missing[0]}: run the same command again")
        ordered = [records[index] for index in range(n_prompts)]
        # An old run.json must not stand beside new measurements, whenever this is interrupted.
        (self.folder / RUN_INFO).unlink(missing_ok=True)
        _save(ordered, self.folder / MEASUREMENTS)
        write_json(self.folder / RUN_INFO, {"settings": self.settings, **info})
        shutil.rmtree(self.batches)
        self.release()
        self.finished = True
        return ordered


def load(path: str | os.PathLike) -> list[dict]:
    """The records of a measurements file, one a prompt. ValueError names a file that is damaged or not ours."""
    records = _load(path)
    if not isinstance(records, list) or not all(isinstance(r, dict) and all(k in r for k in REQUIRED) for r in records):
        raise ValueError(f"'{path}' is not a measurements file: it is no list of records with {', '.join(REQUIRED)}")
    return records


def load_info(folder: Path) -> dict[str, Any]:
    """What a cell's run.json says; see `runs.run_info` for the keys."""
    return _read_json(folder / RUN_INFO)


def measurements(folder: Path) -> Path | None:
    """The measurements file of a cell's folder: ours, or else the latest one of the published study's code."""
    if (folder / MEASUREMENTS).is_file():
        return folder / MEASUREMENTS
    return max(folder.glob(STUDY_MEASUREMENTS), default=None)  # their names end in the time


def cells(results_dir: str | os.PathLike = "results") -> list[Path]:
    """The folders below ``results_dir`` that hold measurements, by data set and model."""
    return sorted(folder for folder in Path(results_dir).glob("*/*/") if measurements(folder))


def load_cells(
    results_dir: str | os.PathLike = "results",
) -> tuple[dict[tuple[str, str], "pd.DataFrame"], dict[Path, str]]:
    """The tokens of every cell below ``results_dir``, and the files that cannot be read.

    Returns {(model, dataset): table} and {file: what is wrong with it}. Columns of a table: model,
    dataset (categories), prompt (index), step, token, k (size of the nucleus), then the quantities,
    in nats where they are entropies; NaN, and -1 for the token, where a file lacks them.
    """
    if not Path(results_dir).is_dir():
        raise FileNotFoundError(f"no folder '{results_dir}' here ({Path.cwd()})")
    tables, damaged = {}, {}
    for folder in cells(results_dir):
        path = measurements(folder)
        try:
            tables[folder.name, folder.parent.name] = table(load(path), folder.name, folder.parent.name)
        except (ValueError, TypeError, RuntimeError, OSError) as error:  # the right names may hold anything
            damaged[path] = str(error) if str(path) in str(error) else f"'{path}': {error}"
    return tables, damaged


def load_readable(results_dir: str | os.PathLike) -> dict[tuple[str, str], "pd.DataFrame"]:
    """The tables of `load_cells`; files that cannot be read are named on stderr. ValueError where none is left."""
    tables, damaged = load_cells(results_dir)
    for problem in damaged.values():
        print("skipped:", problem, file=sys.stderr)
    if not tables:
        raise ValueError(f"no measurements that can be read under '{results_dir}': measure a model first")
    return tables


def load_table(results_dir: str | os.PathLike = "results") -> "pd.DataFrame":
    """Every measured token below ``results_dir``, one a row; columns as in `load_cells`.

    ValueError names a bad file.
    """
    import pandas as pd
    from pandas.api.types import union_categoricals

    tables, damaged = load_cells(results_dir)
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    if not tables:
        return table([], "", "").assign(model=pd.Categorical([]), dataset=pd.Categorical([]))
    parts = [tables[key] for key in sorted(tables, key=lambda key: key[::-1])]
    names = {name: union_categoricals([part[name] for part in parts]) for name in ("model", "dataset")}
    joined = pd.concat([part.drop(columns=list(names)) for part in parts], ignore_index=True)
    return joined.assign(**names)[parts[0].columns]


def table(records: list[dict], model: str, dataset: str) -> "pd.DataFrame":
    """The tokens of some records as a table; columns as in `load_cells`. ValueError names a bad prompt."""
    import numpy as np
    import pandas as pd

    lengths = [len(record["entropies"]) for record in records]
    for index, (record, length) in enumerate(zip(records, lengths, strict=True)):
        for name in ("top_p_tokens", *COLUMNS):
            if len(record.get(name, range(length))) != length:
                raise ValueError(f"prompt {index} has {len(record[name])} {name} for {length} entropies")
    total = sum(lengths)
    columns: dict[str, Any] = {
        "model": pd.Categorical([model] * total, [model]),
        "dataset": pd.Categorical([dataset] * total, [dataset]),
        "prompt": np.repeat(np.arange(len(records)), lengths),
        "step": np.array([step for length in lengths for step in range(length)], dtype=np.int64),
        "k": np.array([len(ids) for record in records for ids in record["top_p_tokens"]], dtype=np.int64),
    }
    for name, column in COLUMNS.items():
        lacking, dtype = (-1, np.int64) if name == "tokens" else (np.nan, np.float64)
        parts = [np.asarray(r.get(name, [lacking] * n), dtype=dtype) for r, n in zip(records, lengths, strict=True)]
        columns[column] = np.concatenate([np.empty(0, dtype), *parts])
    return pd.DataFrame(columns)


def choices(table: "pd.DataFrame") -> "pd.DataFrame":
    """The tokens that had an alternative (k > 1): with one candidate there is no pair to compare."""
    return table[table["k"] > 1]


def _save(value: Any, path: Path) -> None:
    import torch

    with whole(path) as stream:
        torch.save(value, stream)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Any]:
    """A binary file to write to; it appears as ``path`` only when the block ends without an error."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say where
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as readable JSON, whole or not at all."""
    with whole(path) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def _locked(path: Path) -> Any:
    """``path``, open and locked for this process alone. A killed run's kernel may live a few seconds longer."""
    for attempt in range(LOCK_SECONDS + 1):
        stream = path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break  # else its holder has just removed it: this lock guards nothing
        except BlockingIOError:
            if attempt == LOCK_SECONDS:
                stream.seek(0)
                raise BlockingIOError(f"'{path.parent}' is being written by {stream.read().strip()}") from None
            time.sleep(1)
        except OSError as error:
            raise OSError(f"'{path.parent}' cannot be locked ({error.strerror}): use another --results_dir") from None
        stream.close()
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()
    return stream


def _readable(path: Path) -> bool:
    try:
        load(path)
    except ValueError:
        return False
    return True


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): move it away") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a JSON object: move it away")
    return content


def _load(path: str | os.PathLike) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what a damaged file makes of the loader is anybody's guess
        reason = textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 100)
        raise ValueError(
            f"'{path}' cannot be read as measurements: it is truncated or not ours; "
            f"delete it and measure again ({reason})"
        ) from None


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

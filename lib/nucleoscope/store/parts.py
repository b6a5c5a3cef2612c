"""What a second pass over a measured run writes text by text, beside the measurements, until all texts are done.

Contract: this module deals with paths and files. A subclass of `PartsFolder` knows which files it leaves in the end.
Until then, what was found of each text is a file of its own in a folder of parts, so that a killed process can be
resumed. A process that writes holds the lock of the run's folder.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from nucleoscope.atomic import compile_names, remove_files, write_atomically, write_json
from nucleoscope.file_errors import find_system_cause
from nucleoscope.store.integrity import find_problem
from nucleoscope.store.locking import Lock, Locked, check_folder
from nucleoscope.store.measurements import MEASUREMENTS, read_intact, stream_records
from nucleoscope.store.results import RUN_INFO, read_json, read_recorded
from nucleoscope.store.tokens import compute_fingerprint

if TYPE_CHECKING:
    import pandas as pd

SETTINGS = "settings.json"
OWN = compile_names(r"\d{6,}\.pt|settings\.json")


def check(folder: Path) -> None:
    """Before a model is loaded: FileNotFoundError if a run has no measurements, OSError if it cannot be written to.

    ValueError if its run.json is damaged.
    """
    for name in (MEASUREMENTS, RUN_INFO):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"'{folder}' has no {name}: measure the run first")
    read_recorded(folder)
    check_folder(folder)


def find_missing(folder: Path, files: Collection[str], info: str, settings: Mapping[str, Any]) -> str | None:
    """What is missing or differs, in one line, if a second pass was not finished with these ``settings``.

    ``info`` is the one of its ``files`` that says with which it was. OSError if the system cannot read a file.
    """
    try:
        for name in files:
            if problem := find_problem(folder / name):
                return problem
        found = read_json(folder / info)
    except ValueError as error:
        return str(error)
    measurements = folder / MEASUREMENTS
    if not measurements.is_file():
        return f"{MEASUREMENTS} is missing"
    if found.get("measurements") != compute_fingerprint(measurements).decode():
        return f"{info} belongs to other measurements"
    for name, value in settings.items():
        if found.get(name) != value:
            return f"{name} was {found.get(name)} and is now {value}"
    return None


def check_source(path: Path, fingerprint: str, again: str) -> None:
    """ValueError if a file with this ``fingerprint`` belongs to other measurements than those beside it.

    ``again`` says how to get one that belongs to them.
    """
    measurements = path.with_name(MEASUREMENTS)
    if measurements.is_file() and fingerprint != compute_fingerprint(measurements).decode():
        raise ValueError(f"'{path}' belongs to other measurements: {again}")


def read_table(path: Path, columns: Collection[str] | None, source: bytes, again: str) -> "pd.DataFrame":
    """A table that belongs to the measurements beside it, or some of its columns.

    ValueError, in one line, if it is missing, damaged, or belongs to other measurements; OSError if the system cannot
    read it. ``source`` is the metadata key of the measurements' fingerprint; ``again`` says how to get a table.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            check_source(path, (file.schema_arrow.metadata or {}).get(source, b"").decode(), again)
            return file.read(None if columns is None else list(columns)).to_pandas()
    except FileNotFoundError:
        raise ValueError(f"'{path.parent}' has no {path.name}: {again}") from None
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:  # a damaged name is no UTF-8
        if cause := find_system_cause(error, path):
            raise OSError(f"cannot read '{path}': {cause}") from None
        raise ValueError(f"'{path}' is damaged ({str(error).splitlines()[0][:100]}): remove it, then {again}") from None


class TextSize(NamedTuple):
    """How long a text is: the characters of its prompt, and the number of candidates of each of its T tokens."""

    characters: int
    candidates: list[int]


class PartsFolder(Locked):
    """A run's folder while something is found out about each of its texts.

    ``settings`` are those that decide what is found, with the fingerprint of the measurements: parts that were written
    with others are removed. ``finished`` says whether all is there, ``joined`` that the parts are not needed any more.
    Raises FileNotFoundError if the run is not measured. Opening writes nothing. Write to it in a ``with`` block.
    """

    PARTS: ClassVar[str]  # the folder of parts
    FIELDS: ClassVar[tuple[str, ...]]  # of a record that are needed
    CONTENT: ClassVar[tuple[str, ...]]  # of a part

    finished, joined = False, False

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], overwrite: bool = False):
        self.folder, self.overwrite, self._chosen = Path(folder), overwrite, dict(settings)
        self.parts = self.folder / self.PARTS
        self.look()

    def look(self) -> None:
        """Finds out what is there. A subclass also sets `finished` and `joined`, and may refuse what is there."""
        path = self.folder / MEASUREMENTS
        if not path.is_file():
            raise FileNotFoundError(f"'{self.folder}' has no {MEASUREMENTS}: measure the run first")
        self.settings = {"measurements": compute_fingerprint(path).decode(), **self._chosen}

    def read_info(self, name: str) -> dict[str, Any]:
        """The content of a json file in the folder; nothing if it is missing or damaged."""
        return _read_if_whole(self.folder / name)

    def __enter__(self):
        self._lock = Lock(self.folder)
        try:
            self.look()
            if self.finished:
                self.remove_parts()  # their writer was killed just before the end
            elif not self.joined:
                self._prepare()
        except BaseException:
            self.release()
            raise
        return self

    def _prepare(self) -> None:
        """Makes the folder of parts ready; those of other measurements or settings are removed."""
        if self.parts.is_symlink():
            raise FileExistsError(f"'{self.parts}' is a link: remove it")
        if self.parts.is_file():
            raise FileExistsError(f"'{self.parts}' is a file: move it out of the way")
        if others := self._list_others():
            raise FileExistsError(
                f"'{self.parts}' contains '{others[0].name}', which was not written by Nucleoscope: move it out of "
                "the way"
            )
        self.parts.mkdir(exist_ok=True)
        if _read_if_whole(self.parts / SETTINGS) != self.settings:
            remove_files(self.parts.iterdir(), last=SETTINGS)
            write_json(self.parts / SETTINGS, self.settings)
        for path in self.parts.glob(".*.part"):
            path.unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """Removes the parts, and nothing else that somebody has put there.

        Parts of the same measurements with other settings are those of a pass that will replace what is there, and was
        interrupted.
        """
        if self.parts.is_symlink():
            return
        settings = self.parts / SETTINGS
        found = _read_if_whole(settings) if _is_own(settings) else {}
        if found.get("measurements") == self.settings["measurements"] and found != self.settings:
            return
        others = self._list_others()
        remove_files([path for path in self.parts.glob("*") if path not in others], last=SETTINGS)
        with contextlib.suppress(OSError):  # it is not empty, or not there
            self.parts.rmdir()

    def _list_others(self) -> list[Path]:
        """What is in the folder of parts and no second pass has written.

        A name alone decides that only where the settings of one are: they are written first and removed last.
        """
        settings = self.parts / SETTINGS
        known = _is_own(settings) and isinstance(_read_if_whole(settings).get("measurements"), str)
        found = sorted(self.parts.glob("*"))
        return [path for path in found if not (_is_own(path) and (known or self._is_part(path)))]

    def _is_part(self, path: Path) -> bool:
        """Whether a file of one of our names is a part, or a partial copy of the settings, which are written first."""
        if path.suffix == ".part":
            return path.name.startswith(f".{SETTINGS}.")
        try:
            return path.name != SETTINGS and self._has_content(read_intact(path))
        except ValueError:
            return False

    def _has_content(self, part: Any) -> bool:
        return isinstance(part, dict) and all(name in part for name in self.CONTENT)

    def list_sizes(self) -> list[TextSize]:
        """The sizes of all texts, in their order; all records are read, and so checked, as by `stream_texts`."""
        return [
            TextSize(len(record["prompt"]), [len(ids) for ids in record["top_p_tokens"]])
            for _, record in self.stream_texts()
        ]

    def stream_texts(self, prompts: Iterable[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The indices and records of some or all texts, with the `FIELDS`, one after the other: see `stream_records`.

        Of a file that no run has written, all records are in memory at once. ValueError if a record has not all of the
        fields.
        """
        for index, record in stream_records(self.folder, prompts, self.FIELDS):
            for name in self.FIELDS:
                if record.get(name) is None:
                    raise ValueError(f"'{self.folder / MEASUREMENTS}' has no {name}: measure the run again")
            yield index, record

    def has_part(self, index: int) -> bool:
        """Whether a text is done."""
        return self._locate(index).is_file()

    def _locate(self, index: int) -> Path:
        return self.parts / f"{index:06d}.pt"

    def save_part(self, index: int, part: Mapping[str, Any]) -> None:
        """Saves what was found of one text: the `CONTENT`, by name.

        Raises BlockingIOError if another process has taken over the folder.
        """
        self._check_lock()
        import torch

        with write_atomically(self._locate(index)) as stream:
            torch.save({name: part[name] for name in self.CONTENT}, stream)

    def read_part(self, index: int) -> dict[str, Any]:
        """What was saved of a text. ValueError if it is missing or damaged; a damaged part is removed."""
        path = self._locate(index)
        if not path.is_file():
            raise ValueError(f"prompt {index} is missing from '{self.parts}': run the same command again")
        try:
            part = read_intact(path)
            if self._has_content(part):
                return part
        except ValueError:
            pass
        path.unlink(missing_ok=True)
        raise ValueError(f"'{path}' is damaged, and was removed: run the same command again")


def _read_if_whole(path: Path) -> dict[str, Any]:
    """The content of a json file; nothing if it is missing or damaged. OSError if the system cannot read it."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_json(path)
    return {}


def _is_own(path: Path) -> bool:
    return bool(OWN.fullmatch(path.name)) and path.is_file() and not path.is_symlink()

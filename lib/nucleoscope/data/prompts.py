"""Loads prompts by a data set's name: Hub data sets, local files, packaged sets.

Prompts keep the order of their source, and the first ``n_prompts`` are used; on request, they come with
texts to measure from another column of the same rows. Errors say in one line what is wrong, with the
line number if there is one.
"""

import codecs
import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import constants

from nucleoscope import hub
from nucleoscope.atomic import hash_file
from nucleoscope.file_errors import check_regular
from nucleoscope.names import advise, suggest
from nucleoscope.settings import Settings, quote, validate
from nucleoscope.wording import count, explain_json

if TYPE_CHECKING:
    import datasets

SUMMARISE = "Please summarize the following text:\n "  # the study's wording, before each document


class HubSet(NamedTuple):
    """Where a data set is on the Hub; ``revisions`` are tried in order."""

    path: str
    config: str | None
    split: str
    column: str
    revisions: tuple[str, ...]
    prefix: str = ""


HUB = {
    "gsm8k": HubSet("openai/gsm8k", "main", "test", "question", ("740312add88f781978c0658806c59bc2815b9866",)),
    "writingprompts": HubSet(
        "euclaise/writingprompts", None, "validation", "prompt", ("35f0aa359452ba8147b34d925684fccee26679cc",)
    ),
    "xsum": HubSet(
        "EdinburghNLP/xsum",
        None,
        "test",
        "document",
        # The first is a loading script, which datasets no longer runs; the second the same data as files.
        ("7d4d486c2f8ef850b1a11aead99b894ff3dd7da9", "refs/convert/parquet"),
        SUMMARISE,
    ),
}
PACKAGED = {"math": "", "stories": "", "articles": SUMMARISE}  # name -> prefix of each text
FIRST = 1000  # rows of a file that are checked before anything starts
SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")


class Prompts(NamedTuple):
    """Prompts in order; ``identity`` says where they came from and identifies their content.

    ``continuations`` are the texts to measure after the prompts, if a text_column was given. ``blank_lines`` says how
    many lines of a .txt file, up to the last prompt, were left out because they are blank.
    """

    texts: list[str]
    identity: dict[str, str]
    continuations: list[str] | None = None
    blank_lines: int = 0


class Column(NamedTuple):
    """A column to read: its name, the setting that chooses it, whether its texts may be blank, and another one.

    ``other`` is the column that is read beside it: of the prompts or of the texts, the one that this is not.
    """

    name: str
    option: str
    may_be_blank: bool = True
    other: str | None = None


def load(
    name: str, n_prompts: int = Settings.n_prompts, prompt_column: str | None = None, text_column: str | None = None
) -> Prompts:
    """The first ``n_prompts`` prompts of a data set (all of them if it has fewer).

    ``prompt_column`` names the column of a file, by default "prompt"; a .txt file has one prompt
    per line, without the blank lines. It is an error for a .txt file and for a data set on the Hub, whose column is
    fixed. ``text_column`` names the column with a continuation of each prompt, in any data set that has columns.
    Raises ValueError or OSError with one line for a source that cannot be read, for an empty continuation, and for a
    blank prompt without a continuation: what a model writes after it is a continuation of nothing.
    """
    validate("n_prompts", n_prompts)
    _refuse_prompt_column(name, prompt_column)
    if name in HUB:
        return _load_hub(name, n_prompts, text_column)
    path, prefix = locate(name)
    texts, continuations, blank = _read_columns(path, name, n_prompts, prompt_column, text_column)
    digest = hash_file(path)
    source = "packaged" if name in PACKAGED else "file"
    return Prompts([prefix + text for text in texts], {"source": source, "sha256": digest}, continuations, blank)


def check(
    name: str, n_prompts: int = Settings.n_prompts, prompt_column: str | None = None, text_column: str | None = None
) -> None:
    """Raises what `load` raises, as far as the first rows of a file or the cache show it; asks no network.

    A data set on the Hub is refused if it is not in the cache, and the run offline. pyarrow is imported for a
    Parquet file, and nothing slow for others.
    """
    _refuse_prompt_column(name, prompt_column)
    if name in HUB:
        _check_hub(name, text_column)
    else:
        _read_columns(locate(name)[0], name, min(n_prompts, FIRST), prompt_column, text_column)


def describe_shortage(name: str, number: int, n_prompts: int) -> str:
    """What to say of a data set with a ``number`` of prompts below ``n_prompts``, of which all are used; "" if not."""
    if number >= n_prompts:
        return ""
    used = ": all are used" if number > 1 else ""
    return f"{name} has only {count(number, 'prompt')} (n_prompts is {n_prompts:,}){used}"


def _check_hub(name: str, text_column: str | None) -> None:
    """Raises OSError or ValueError for a data set of `HUB` that is not in the cache offline, or has no such column."""
    if prepared := _find_prepared(name):
        columns = _list_columns(prepared)
        if text_column and columns:
            _check_column(Column(text_column, "text_column", other=HUB[name].column), columns, name)
    elif _find_offline_variable():
        raise _explain_offline(name)


def _refuse_prompt_column(name: str, prompt_column: str | None) -> None:
    """Raises ValueError if a column is named of what has none to choose from: lines of text, a data set of `HUB`.

    Raises what `locate` raises for a file of lines that is not there.
    """
    why = None
    if name in HUB:
        why = f"it cannot be set for {name}, whose prompts are always in column '{HUB[name].column}'"
    elif _has_lines(name):
        locate(name)
        why = f"'{name}' has no columns: each of its lines is a prompt"
    if prompt_column and why:
        raise ValueError(f"prompt_column is '{prompt_column}', but {why}; omit prompt_column")


def _read_columns(
    path: Path, name: str, n_prompts: int, prompt_column: str | None, text_column: str | None
) -> tuple[list[str], list[str] | None, int]:
    """The prompts of a file, never none, the texts after them if there is a ``text_column``, and the blank lines.

    A text can be measured after no prompt: it is then read from the model's start token.
    """
    column = Column(prompt_column or "prompt", "prompt_column", may_be_blank=bool(text_column), other=text_column)
    text = Column(text_column, "text_column", other=column.name) if text_column else None
    if name in PACKAGED:
        _check_packaged(path, name, column, text)
    found = _read(path, column)
    texts, blank = _leave_out_blank(found, n_prompts) if _has_lines(name) else (list(islice(found, n_prompts)), 0)
    if not texts:
        raise ValueError(f"'{name}' has no prompts: it {_describe_lack(path)}")
    return texts, list(islice(_read(path, text), n_prompts)) if text else None, blank


def _check_packaged(path: Path, name: str, *columns: Column | None) -> None:
    """ValueError names a packaged data set, not its file, if it lacks one of the columns."""
    known = list(json.loads(next(_read_lines(path))))
    for column in filter(None, columns):
        _check_column(column, known, name)


def _describe_lack(path: Path) -> str:
    """What a file without prompts has instead, to follow its name."""
    with path.open("rb") as stream:
        if stream.read(4) in (b"", codecs.BOM_UTF8):
            return "is empty"
    return {".csv": "has a header but no rows", ".parquet": "has no rows"}.get(
        Path(path.name).suffix.lower(), "has only blank lines"
    )


def _has_lines(name: str) -> bool:
    """Whether a data set is a file of lines, not of columns."""
    return Path(name).suffix.lower() == ".txt"


def _leave_out_blank(lines: Iterator[str], number: int) -> tuple[list[str], int]:
    """The first ``number`` lines that are not blank, and how many blank ones there are before the last of them."""
    texts, blank = [], 0
    waiting = 0
    for line in lines:
        if not line.strip():
            waiting += 1
            continue
        texts.append(line)
        blank, waiting = blank + waiting, 0
        if len(texts) == number:
            break
    return texts, blank


def locate(name: str) -> tuple[Path, str]:
    """The file of a data set that is not on the Hub, and the prefix of each of its texts."""
    if name in PACKAGED:
        return resources.files("nucleoscope.data") / "packaged" / f"{name}.jsonl", PACKAGED[name]
    check_name(name)
    check_regular(path := Path(name), name)
    return path, ""


def check_name(name: str) -> None:
    """Raises ValueError or IsADirectoryError for the name of no data set; a file need not exist."""
    path = Path(name)
    known = [*HUB, *PACKAGED]
    if name in known:
        return
    allowed = f"{', '.join(known)}, or a file ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    if path.is_dir():
        raise IsADirectoryError(f"'{name}' is a folder: a data set must be {allowed}")
    if path.suffix.lower() not in SUFFIXES or ("://" in name and not path.exists()):
        if path.is_file():
            endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            if path.suffix:
                raise ValueError(f"'{name}' is not a supported type of file: convert it to {endings}")
            raise ValueError(f"file '{name}' has no extension: rename it so that it ends in {endings}")
        last = name.lower().rsplit("/", 1)[-1]
        short = last if last in HUB else name  # as its repository is called
        if "://" in name and short == name:
            raise ValueError(f"'{name}' is a URL: save the data set to a file, and give its path")
        rule = f": it must be {allowed}"
        if "/" in name and short == name:
            rule += "; other data sets on the Hub must be saved to a file first"
        raise ValueError(f"unknown data set '{name}'" + advise(short, known, rule))


def _check_continuations(texts: list, name: str, column: str) -> None:
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text:
            what = "empty" if text == "" else f"{_quote_json(text)}, not text"
            raise ValueError(f"'{name}', row {number}: column '{column}' is {what}: there is nothing to measure")


def _load_hub(name: str, n_prompts: int, text_column: str | None) -> Prompts:
    entry = HUB[name]
    table, revision = fetch(name)
    rows, continuations = table[:n_prompts], None
    if text_column:
        _check_column(Column(text_column, "text_column", other=entry.column), table.column_names, name)
        continuations = rows[text_column]
        _check_continuations(continuations, name, text_column)
    texts = [entry.prefix + text for text in rows[entry.column]]
    return Prompts(texts, {"source": "hub", "id": entry.path, "revision": revision}, continuations)


def fetch(name: str) -> tuple["datasets.Dataset", str]:
    """A data set of `HUB`, from the cache or else the Hub, and its revision. OSError says what was tried."""
    import datasets  # slow to import, and needed only for the Hub
    from huggingface_hub.utils import logging

    for library in (logging, datasets.logging):
        library.set_verbosity_error()  # each retry would print a line; the error below reports the problem once
    entry, failures = HUB[name], []
    for revision in entry.revisions:
        try:
            options = {"split": entry.split, "revision": revision, "cache_dir": str(locate_cache(revision))}
            with hub.announce_wait(f"data set {name}"):
                table = datasets.load_dataset(entry.path, entry.config, **options)
            return table, _find_commit(table) or revision
        except Exception as error:  # the library raises many types; they are reported below
            failures.append((revision, error))
    raise explain_failures(name, failures)


def explain_failures(name: str, failures: list[tuple[str, Exception]]) -> OSError:
    """The exception, in one line, for a data set of `HUB` of which no revision can be loaded.

    ``failures``: each revision that was tried, with what happened.
    """
    if _find_offline_variable() and not is_cached(name):
        return _explain_offline(name)
    tried = "; ".join(f"revision {revision}: {_explain_failure(error)}" for revision, error in failures)
    if _find_offline_variable() is None and all(hub.is_unreachable(hub.list_causes(error)) for _, error in failures):
        reason = hub.format_reason(_explain_failure(failures[-1][1]))
        return OSError(
            f"data set {name} is not on this machine, and the Hub cannot be reached ({reason}): {hub.PREFETCH}"
        )
    where = "in the cache" if _find_offline_variable() else "on the Hub"
    return OSError(f"cannot load data set {name}: tried {HUB[name].path} {where}; {tried}")


def _explain_offline(name: str) -> OSError:
    """The exception for a data set of `HUB` that is not in the cache, where nothing else may be asked."""
    variable = _find_offline_variable()
    return OSError(
        f"data set {name} is not in the cache {locate_cache()}, and {variable} is set: unset {variable}, or "
        f"{hub.PREFETCH}"
    )


def _find_offline_variable() -> str | None:
    """The environment variable by which data sets are taken from the cache alone; datasets has one of its own."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE"
    own = os.environ.get("HF_DATASETS_OFFLINE", "")
    return "HF_DATASETS_OFFLINE" if own.upper() in constants.ENV_VARS_TRUE_VALUES else None


def _explain_failure(error: Exception) -> str:
    """Why a data set cannot be loaded: the Hub's answer or the connection's error, if that was the cause."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    # by its name, because the module that defines it is slow to import
    links = [] if type(error).__name__ == "DatasetNotFoundError" else hub.list_causes(error)
    cause = next((link for link in links if isinstance(link, (HfHubHTTPError, httpx.TransportError))), error)
    said = getattr(cause, "server_message", None)
    return hub.shorten(f"{cause.response.status_code}, {said}" if said else cause)[:150] or type(cause).__name__


def locate_cache(revision: str = "") -> Path:
    """The folder of prepared data sets, or of those of one revision.

    Each revision has its own folder, because offline, or if the Hub fails, datasets uses any revision of a
    data set that it finds in its cache.
    """
    return Path(locate_all_caches(), "nucleoscope", revision.replace("/", "-"))


def locate_all_caches() -> Path:
    """The folder in which datasets keeps what it prepares, found out without importing it, which takes seconds."""
    if "datasets" in sys.modules:  # a program may have chosen another folder
        return Path(sys.modules["datasets"].config.HF_DATASETS_CACHE)
    home = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.path.expanduser(os.environ.get("HF_HOME", home))
    return Path(os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets")))


def is_cached(name: str) -> bool:
    """Whether a data set of `HUB` is prepared in the cache, in one of its revisions."""
    return _find_prepared(name) is not None


def _find_prepared(name: str) -> Path | None:
    """The description (dataset_info.json) of a data set of `HUB` that is prepared in the cache."""
    entry = HUB[name]
    place = f"{entry.path.replace('/', '___')}/{entry.config or 'default'}/*/*/dataset_info.json"
    found = (file for revision in entry.revisions for file in locate_cache(revision).glob(place))
    return next((file for file in found if not file.parent.name.endswith(".incomplete")), None)


def _list_columns(prepared: Path) -> list[str]:
    """The columns that a dataset_info.json names; none if it is damaged or does not say."""
    try:
        features = json.loads(prepared.read_text(encoding="utf-8"))["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(features) if isinstance(features, dict) else []


def _find_commit(table: "datasets.Dataset") -> str | None:
    """The commit that a table was made from: its files are in a folder of that name."""
    folders = {Path(file["filename"]).parent.name for file in table.cache_files}
    return folders.pop() if len(folders) == 1 else None


def _read(path: Path, column: Column) -> Iterator[str]:
    """The texts of a file, in order."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_txt}
    return readers[Path(path.name).suffix.lower()](path, column)


def _check_text(value: object, path: Path, where: str, column: Column) -> str:
    place = f"'{path}', {where}: column '{column.name}'"
    if not isinstance(value, str):
        advice = _advise_type(value, path, column)
        raise ValueError(f"{place} is {_quote_json(value)}, not text{advice}")
    if column.option == "text_column" and not value:
        raise ValueError(f"{place} is empty: remove this row, because it has no text to measure")
    if not (column.may_be_blank or value.strip()):
        raise ValueError(f"{place} is {'blank' if value else 'empty'}: remove this row, or add a prompt")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place} contains a lone surrogate, which is not valid text: remove it") from None
    return value


def _quote_json(value: object) -> str:
    """A value that is no text, as JSON; a long one is cut off."""
    try:
        shown = json.dumps(value, default=str, ensure_ascii=False)
    except RecursionError:  # json.dumps gives up a level before json.loads
        return "deeply nested JSON"
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _advise_type(value: object, path: Path, column: Column) -> str:
    """What to do about a value that is not text, after a colon."""
    if value is None:
        return ": remove this row"
    if path.suffix.lower() == ".parquet":
        return ": save the column as text"
    if value != value:  # NaN, which pandas writes for a missing text
        return ": remove this row"
    if isinstance(value, (bool, int, float)):
        return ": put it in quotation marks"
    return f": give the {'prompt' if column.option == 'prompt_column' else 'text'} as one string"


def _check_column(column: Column, columns: list[str], path: Path | str) -> None:
    """ValueError unless exactly one of ``columns`` has the name of ``column``."""
    name, number = column.name, columns.count(column.name)
    if number > 1:
        raise ValueError(f"'{path}' has {number} columns named '{name}': rename or remove all but one")
    if not number:
        raise ValueError(f"'{path}' has no column '{name}': {_advise_column(column, columns)}")


def _advise_column(column: Column, columns: list[str]) -> str:
    """What to do where a column is missing, with the names of those that could be meant."""
    named = [name for name in columns if name.strip() and name != column.other]  # pandas' index has no name
    if named:
        return f"set {column.option} to {'one of ' if len(named) > 1 else ''}{_list_names(named)}"
    if column.other in columns:
        kind = "column" if all(map(str.strip, columns)) else "named column"
        other = _list_names([column.other])
        if column.option == "text_column":
            return f"its only {kind} is {other}, so it has no texts to measure"
        return f"its only {kind}, {other}, is already used as text_column: add a column with the prompts"
    return "its columns have no names" if columns else "there are no columns at all"


def _list_names(columns: list[str]) -> str:
    """The first names of columns, in quotation marks and shortened."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in columns[:10]]
    return ", ".join(shown) + (", ..." if len(columns) > 10 else "")


def _read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, decoded one by one so that an error can name its line."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise ValueError(f"'{path}', line {number}: not UTF-8 text: save the file as UTF-8") from None
            if text:
                yield text


def _read_jsonl(path: Path, column: Column) -> Iterator[str]:
    begun, lines = False, enumerate(_read_lines(path), 1)
    for number, line in lines:
        if not line.strip():
            continue
        names: list[str] = []
        try:
            # without its end, so that an error there is not on the next line
            row = json.loads(line.rstrip("\r\n"), object_pairs_hook=partial(_build_object, names=names))
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and not begun and re.match(r'\s*\[\s*($|[\[{"])', line):
                raise ValueError(_describe_array(path)) from None
            reason = explain_json(error, with_line=False)
            raise ValueError(f"'{path}', line {number}: not valid JSON ({reason}): correct that line") from None
        of_objects = isinstance(row, list) and row and all(isinstance(each, dict) for each in row)
        if of_objects and not begun and not any(other.strip() for _, other in lines):
            raise ValueError(_describe_array(path))
        if not isinstance(row, dict):
            example = json.dumps({column.name: "..."}, ensure_ascii=False)
            raise ValueError(f"'{path}', line {number}: not a JSON object: each line must be one, such as {example}")
        _check_keys(column, names, path, number, begun)
        begun = True
        yield _check_text(row[column.name], path, f"line {number}", column)


def _describe_array(path: Path) -> str:
    return (
        f"'{path}' is a JSON array, not JSON Lines: write each object on a line of its own, without brackets around "
        "all of them or commas between them"
    )


def _check_keys(column: Column, names: list[str], path: Path, number: int, begun: bool) -> None:
    """ValueError unless exactly one of a line's ``names`` is that of ``column``; ``begun``: lines above have it."""
    if names.count(column.name) > 1:
        raise ValueError(f"'{path}', line {number}: duplicate key '{column.name}': rename or remove all but one")
    if begun and column.name not in names:
        has = _list_names([name for name in names if name]) or "none"
        raise ValueError(
            f"'{path}', line {number}: no column '{column.name}', which the lines above have (this line has {has}): "
            "correct or remove that line"
        )
    _check_column(column, names, path)


def _build_object(pairs: list[tuple[str, object]], names: list[str]) -> dict[str, object]:
    """A JSON object; ``names`` become those of the latest, which is the outermost, with duplicates."""
    names[:] = [name for name, _ in pairs]
    return dict(pairs)


def _read_csv(path: Path, column: Column) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # the default limit rejects long documents
    end = 0
    reader = csv.reader(_read_lines(path), strict=True)  # an unclosed quote would take in all later rows
    try:
        if (header := next(reader, None)) is None:
            return
        _check_header(column, header, path)
        place = header.index(column.name)
        end = reader.line_num  # of the row before
        for row in reader:
            end = reader.line_num
            if row and not place < len(row) <= len(header):  # too many: an unquoted comma
                advice = (
                    "complete or remove that line"
                    if len(row) <= place
                    else "put quotes around text that contains a comma"
                )
                raise ValueError(
                    f"'{path}', line {reader.line_num}: {count(len(row), 'field')}, but the header has "
                    f"{len(header)}: {advice}"
                )
            if row:
                yield _check_text(row[place], path, f"line {reader.line_num}", column)
    except csv.Error as error:
        if "end of data" in str(error):
            raise ValueError(
                f"'{path}', line {end + 1}: a quotation mark opened on this line or later is never closed: "
                "close or remove it"
            ) from None
        raise ValueError(f"'{path}', line {end + 1}: not valid CSV ({error}): correct that line") from None


def _check_header(column: Column, header: list[str], path: Path) -> None:
    """ValueError unless the first line of a csv names ``column`` once."""
    if not header:
        raise ValueError(f"'{path}', line 1 is blank: it must contain the names of the columns")
    _check_separator(column.name, header, path)
    if column.name not in header and (close := suggest(column.name, header)):
        raise ValueError(f"'{path}' has no column '{column.name}'{close}: {_advise_column(column, header)}")
    if any(map(str.strip, header)) and not {column.name, column.other} & set(header):
        has, which = ("is", "that name") if len(header) == 1 else ("has", "one of its names")
        named = _list_names([name for name in header if name.strip()])
        raise ValueError(
            f"'{path}' has no column '{column.name}' (its first line {has} {named}): if that line is not a header, add "
            f"one above it that contains '{column.name}'; if it is, set {column.option} to {which}"
        )
    _check_column(column, header, path)


def _check_separator(column: str, columns: list[str], path: Path) -> None:
    """ValueError for a header without ``column`` whose columns seem to be separated by something else than commas."""
    header = ",".join(columns)
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if column not in columns and sign in header:
            raise ValueError(
                f"'{path}' has no column '{column}': its first line is {quote(header)}; "
                f"if {name} separate its columns, save it with commas between them"
            )


def _read_parquet(path: Path, column: Column) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(column, file.schema_arrow.names, path)
            for batch in file.iter_batches(1000, columns=[column.name]):
                for value in batch[0].to_pylist():
                    number += 1
                    yield _check_text(value, path, f"row {number}", column)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:  # a damaged name is no UTF-8
        with path.open("rb") as stream:  # what the system cannot read is not called damaged
            stream.read(1)
        if not number:
            raise ValueError(f"'{path}' is not a Parquet file, or is damaged: save or download it again") from None
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"'{path}', after row {number}: not valid Parquet ({reason})") from None


def _read_txt(path: Path, column: Column) -> Iterator[str]:
    if column.option == "text_column":
        raise ValueError(f"'{path}' has no columns: text_column needs a .jsonl, .csv or .parquet file")
    for line in _read_lines(path):
        yield line.rstrip("\r\n")

"""Results on disk: where they are, what they are called, and how they are loaded as a table.

Contract: this module does not depend on models or statistics. A run is one model on one data set, in
``<results_dir>/<dataset>/<model>/`` (see `locate_run`); `run_folder.RunFolder` writes it. What users call of
`measurements` and `tokens` is also here.
"""

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.names import escape_line, suggest
from nucleoscope.settings import LONGEST_PART, quote
from nucleoscope.store.candidates import (
    CANDIDATES,
    STORED,
    Similarities,
    candidates,
    load_similarities,
    tabulate_candidates,
)
from nucleoscope.store.integrity import is_permitted
from nucleoscope.store.measurements import (
    MEASUREMENTS,
    find_measurements,
    load,
    load_records,
    stream_arrays,
    stream_records,
)
from nucleoscope.store.run_names import check_model, format_suffix, order_model, order_run, split
from nucleoscope.store.run_settings import RUN_INFO, Head, compare_settings, list_settings, read_identity, read_settings
from nucleoscope.store.tokens import TOKENS, add_texts, convert, read_columns, repair_tokens, tabulate, write_tokens
from nucleoscope.wording import MEASURE_AGAIN, count, explain_json

# pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ANALYSES",
    "ANALYSIS_FILES",
    "BRANCHES",
    "BRANCHES_NOTEBOOK",
    "BRANCH_FILES",
    "BRANCH_INFO",
    "BRANCH_PAIRS",
    "BRANCH_PARTS",
    "BRANCH_POINTS",
    "BRANCH_TABLE",
    "CANDIDATES",
    "CONTEXT",
    "CONTEXT_FILES",
    "CONTEXT_INFO",
    "CONTEXT_MATRICES",
    "CONTEXT_NOTEBOOK",
    "CONTEXT_PARTS",
    "CONTEXT_TABLE",
    "FORBIDDEN",
    "MEASURE",
    "MEASUREMENTS",
    "NOTEBOOK",
    "NOTEBOOKS",
    "PAGE",
    "PAGES",
    "RUN_INFO",
    "STOPPED",
    "STORED",
    "TEXT_PAIR_FILES",
    "TOKENS",
    "VARIANT_FILES",
    "MissingEntry",
    "Similarities",
    "StoredTables",
    "add_texts",
    "advise_on_empty",
    "candidates",
    "check_depth",
    "check_folder",
    "check_info",
    "count_tokens",
    "describe_gaps",
    "describe_info",
    "find_advice",
    "find_measurements",
    "find_repeats",
    "find_run",
    "iterate_runs",
    "list_runs",
    "load",
    "load_info",
    "load_readable",
    "load_records",
    "load_run",
    "load_runs",
    "load_similarities",
    "load_table",
    "locate_folder",
    "locate_measured",
    "locate_run",
    "read_json",
    "read_mode",
    "read_recorded",
    "repair_tokens",
    "select",
    "select_choices",
    "shorten_names",
    "stream_arrays",
    "stream_records",
    "tabulate",
    "tabulate_candidates",
    "warn_of_format",
    "write_tokens",
]

MEASURE, PAGE = "measure", "run"  # the notebooks of a run: one measures, the other one is its page in the book
NOTEBOOK = f"{PAGE}.ipynb"
CONTEXT = "context"  # the notebook that measures similarity in context, if it is asked for
CONTEXT_NOTEBOOK = f"{CONTEXT}.ipynb"
BRANCHES = "branches"  # the notebook that continues texts from each candidate, if it is asked for
BRANCHES_NOTEBOOK = f"{BRANCHES}.ipynb"
NOTEBOOKS = (f"{MEASURE}.ipynb", NOTEBOOK, CONTEXT_NOTEBOOK, BRANCHES_NOTEBOOK)
CONTEXT_TABLE, CONTEXT_MATRICES, CONTEXT_INFO = CONTEXT_FILES = ("context.parquet", "context.pt", "context.json")
CONTEXT_PARTS = "context_parts"  # the folder of what is compared so far
BRANCH_TABLE, BRANCH_PAIRS, BRANCH_POINTS, BRANCH_INFO = BRANCH_FILES = (
    *("branches.parquet", "branch_pairs.parquet", "branch_points.parquet"),
    "branches.json",
)
BRANCH_PARTS = "branch_parts"  # the folder of what is branched so far
ANALYSES = "correlation_eval"  # the folder of the analyses, beside those of the data sets
PAGES = "book"  # the folder of executed notebooks that are pages of the book and nothing else
ANALYSIS_FILES = (
    *("correlation.ipynb", "correlation.png", "correlation.pdf"),
    *("correlation_bins.csv", "correlation_models.csv"),
    *("correlation_stats.csv", "correlation_stats.tex", "correlation_stats_short.tex"),
    *("fits.ipynb", "fit_lines.csv", "fit_stats.csv", "fit_stats.tex"),
    *("made_of.ipynb", "specification.csv", "specification_tests.csv", "null_stats.csv"),
    *("explained.csv", "explained_pairs.csv"),
)
TEXT_PAIR_FILES = ("two_texts.csv", "two_texts_bins.csv")  # beside the analyses, written by the page two_texts
VARIANT_FILES = ("variants.parquet", "nulls.parquet", "vocabulary.parquet")  # of a run, beside its measurements
STOPPED = "because the model stopped immediately"  # why a text has no tokens
BRACES = str.maketrans("{}", "()")
FORBIDDEN = "you do not have permission to read this folder: ask its owner"


def shorten_names(dataset_name: str, model_name: str) -> tuple[str, str]:
    """The names of a run's data set and model in paths and tables.

    A file of prompts is called by its name without the extension, a model by the part after the last "/". Braces
    become parentheses, because Snakemake takes what is in braces for a wildcard.
    """
    dataset, model = Path(dataset_name).stem, model_name.rstrip("/").rsplit("/", 1)[-1]
    names = dataset.translate(BRACES), model.translate(BRACES)
    for name, given, what in zip(names, (dataset_name, model_name), ("dataset_name", "model_name"), strict=True):
        if name in ("", ".", ".."):
            advice = "a data set or a file" if what == "dataset_name" else "the model's folder by its name"
            raise ValueError(f"{what} is '{given}', but no results folder can have that name: give {advice}")
    return names


def locate_run(
    results_dir: str | os.PathLike,
    dataset_name: str,
    model_name: str,
    text_column: str | None = None,
    named: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of one run.

    Texts that were scored, not generated, count as a data set of their own, <dataset>-<text_column>. The values of
    settings that are ``named`` are part of the folder's name, <model>@top_p=0.95@seed=1, so that runs with other
    values are beside it (`run_names`).
    """
    dataset, model = shorten_names(dataset_name, model_name)
    if named:
        check_model(model)
        model += format_suffix(named)
    if text_column:
        dataset = f"{dataset}-{text_column.replace('/', '_').translate(BRACES)}"
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


def check_no_file(results_dir: str | os.PathLike) -> None:
    """Raises NotADirectoryError, in one line, for a file; the folder need not exist."""
    if locate_folder(results_dir).is_file():
        raise NotADirectoryError(f"'{results_dir}' is a file: results_dir must name a folder")


def check_folder(results_dir: str | os.PathLike) -> None:
    """Raises NotADirectoryError or FileNotFoundError, in one line, if there is no folder of results."""
    check_no_file(results_dir)
    if not locate_folder(results_dir).is_dir():
        where = "" if locate_folder(results_dir).is_absolute() else f" (current folder: {Path.cwd()})"
        raise FileNotFoundError(f"folder '{results_dir}' does not exist{where}: check the path")


def load_info(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of a run's run.json; see `batching.collect_run_info` for the keys.

    To ask this dict, or its settings, for a key that it does not have raises MissingEntry, which names the file.
    """
    path = Path(folder, RUN_INFO)
    if not path.exists():
        raise FileNotFoundError(f"'{folder}' has no {RUN_INFO}: measure the run first")
    found = read_json(path)
    if isinstance(found.get("settings"), dict):
        found["settings"] = _Entries(path, found["settings"])
    return _Entries(path, found)


# What a run's page shows of its run.json.
SHOWN = dict.fromkeys(("n_prompts", "tokens", "prompts_truncated"), (int, "a whole number"))
SHOWN |= {"device": (str, "text")}


class MissingEntry(ValueError, KeyError):
    """A run.json does not have an entry: it is of another version, or was damaged, or there is no such entry."""

    __str__ = ValueError.__str__  # a KeyError would show its message in quotation marks


class _Entries(dict):
    """Entries of a run.json; what is missing is named together with the file."""

    def __init__(self, path: Path, entries: Mapping[str, Any]):
        super().__init__(entries)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise MissingEntry(f"'{self.path}' has no entry '{name}'{suggest(name, self)}")


def read_recorded(folder: Path) -> dict[str, Any]:
    """The settings in a run's run.json.

    ValueError, in one line, if it has none, or if they do not name the model, or name no data set.
    """
    found = load_info(folder).get("settings")
    if not isinstance(found, dict):
        raise ValueError(describe_unset(folder / RUN_INFO))
    names = {"model": found.get("model_name"), "dataset": found.get("dataset_name", "")}
    for kind, name in names.items():
        if not (isinstance(name, str) and isinstance(found.get(kind, {}), dict)):
            what = "model" if kind == "model" else "data set"
            raise ValueError(describe_unset(folder / RUN_INFO, f"does not name the {what}"))
    return found


def check_info(folder: Path) -> None:
    """Raises what `read_recorded` does, and ValueError if something that is shown of the run is missing or no value."""
    settings, info = read_recorded(folder), load_info(folder)
    for name, (kind, what) in SHOWN.items():
        entry = (settings if name == "n_prompts" else info).get(name)
        if not isinstance(entry, kind) or isinstance(entry, bool):
            problem = f"has no '{name}'" if entry is None else f"has a '{name}' that is not {what}"
            raise ValueError(describe_unset(folder / RUN_INFO, problem))


def describe_unset(path: Path, what: str = "contains no settings") -> str:
    """What is wrong with a file that should contain settings, and what to do."""
    return f"'{path}' {what}: {_advise(path)}"


def _advise(path: Path) -> str:
    """What to do about a bad json file; measurements without a run.json are replaced only on request."""
    again = MEASURE_AGAIN if path.name == RUN_INFO else "repeat the command that wrote it"
    return f"move it out of the way, then {again}"


def find_run(name: str, results_dir: str | os.PathLike) -> Path:
    """The folder of a measured run, by its path or by its <dataset>/<model> below ``results_dir``.

    FileNotFoundError, with the run that was probably meant, if there is none. ValueError if the name is both the path
    of one run and the <dataset>/<model> of another.
    """
    places = locate_folder(name), locate_folder(results_dir) / name
    found = [folder for folder in places if folder.is_dir() and find_measurements(folder)]
    if len(found) > 1 and not found[0].samefile(found[1]):
        raise ValueError(f"'{name}' can mean '{found[0]}' or '{found[1]}': give the absolute path of one")
    if found:
        return found[0]
    below = locate_folder(results_dir).is_dir()
    known = list_runs(results_dir) if below else []
    short = ["/".join(run.parts[-2:]) for run in known]
    close = suggest(name.rstrip("/"), [str(run) for run in known] + short)
    # a folder that could be a run's: not one that contains runs, nor one that merely has the name of a data set
    above = {folder for run in known for folder in run.parents}
    folders = [folder for folder in reversed(places) if folder.is_dir() and folder not in above]
    if folders and len(Path(name).parts) > 1 and not close:
        raise FileNotFoundError(f"'{folders[0]}' has no measurements: measure the run first, or name another")
    if not below:
        check_folder(results_dir)
    if not close and known:
        inside = [each for each in short if each.startswith(f"{name.rstrip('/').rsplit('/', 1)[-1]}/")] or short
        close = f" (measured: {', '.join(inside[:5])}{', ...' * (len(inside) > 5)})"
    advice = close or ("" if known else ": measure a model first")
    raise FileNotFoundError(f"there is no measured run '{name}' in '{results_dir}'{advice}")


def read_mode(folder: Path) -> str:
    """Whether the texts of a run were written by its model ("generate") or measured ("score")."""
    return read_recorded(folder).get("mode", "generate") if (folder / RUN_INFO).is_file() else "generate"


def describe_info(info: Mapping[str, Any]) -> str:
    """What a run.json says of a run's size, speed and truncations, in lines to print."""
    lines = [
        f"{count(info['settings']['n_prompts'], 'prompt')}, {count(info['tokens'], 'token')}, "
        f"{info['tokens_per_second']} tokens/s on {info['device']}"
    ]
    if cut := info["prompts_truncated"]:
        what = (
            "was longer than the model's context; its beginning was cut off"
            if cut == 1
            else ("were longer than the model's context; their beginnings were cut off")
        )
        lines.append(f"{count(cut, 'prompt')} {what}")
    if cut := info.get("texts_truncated"):
        what = "was longer than max_tokens; its end was" if cut == 1 else "were longer than max_tokens; their ends were"
        lines.append(f"{count(cut, 'text')} {what} cut off")
    return "\n".join(lines)


def describe_gaps(
    info: Mapping[str, Any], table: "pd.DataFrame", chat_model: bool | None = None, least_alone: float = 0
) -> list[str]:
    """What a run lacks and what to try, in lines: a chat model measured raw, empty texts, tokens with one candidate.

    ``info`` is a run.json, ``table`` has the run's columns prompt and k. ``chat_model``: whether the model has a chat
    template, by default as run.json says. Tokens with one candidate are mentioned if their share is above
    ``least_alone``.
    """
    settings = info.get("settings") or {}
    raw = settings.get("prompt_format", "raw") == "raw"
    chat_model = bool(info.get("chat_template")) if chat_model is None else chat_model
    lines = [warn_of_format(chat_model, "raw")] if chat_model and raw else []
    n_prompts, written = settings.get("n_prompts") or 0, table["prompt"].nunique()
    if empty := max(n_prompts - written, 0):
        what = f"text{'s' * (n_prompts != 1)} {'is' if empty == 1 else 'are'}"
        they = "it has" if empty == 1 else "they have"
        advice = advise_on_empty(chat_model, "raw" if raw else "chat")
        lines.append(
            f"{empty:,} of {n_prompts:,} {what} empty, {STOPPED}: {they} no tokens in any table or figure"
            + (f"; {advice}" if advice else "")
        )
    alone = int((table["k"] == 1).sum())
    if alone > least_alone * len(table):
        advice = "; a higher top_p or temperature gives more of them an alternative" if 2 * alone > len(table) else ""
        share = f"{100 * alone / len(table):.0f}%"
        left_out = "it has no cosine similarity and is" if alone == 1 else "they have no cosine similarity and are"
        lines.append(
            f"{alone:,} of {count(len(table), 'token')} ({share}) had only one candidate: {left_out} left out of all "
            f"coefficients{advice}"
        )
    return lines


def advise_on_empty(chat_model: bool, prompt_format: str) -> str:
    """What to try if a model stopped immediately (`STOPPED`), in words; "" if nothing is known to help."""
    return "prompt_format=chat may help" if chat_model and prompt_format == "raw" else ""


def find_advice(folder: Path) -> str:
    """The `advise_on_empty` for the texts of a measured run; "" also if its run.json is missing or damaged."""
    try:
        info, settings = load_info(folder), read_recorded(folder)
    except (OSError, ValueError):
        return ""
    return advise_on_empty(bool(info.get("chat_template")), settings.get("prompt_format", "raw"))


def warn_of_format(chat_model: bool, prompt_format: str) -> str:
    """A line for a chat model that is given prompts without its template; "" for any other."""
    if not chat_model or prompt_format != "raw":
        return ""
    return (
        "warning: this model has a chat template, but prompt_format is raw: the model may stop immediately or behave "
        "differently than in a chat; to use the template, set prompt_format=chat"
    )


def read_json(path: Path, advice: str = "") -> dict:
    """A JSON object; ValueError, which ends in ``advice`` (default: `_advise`), names a file that contains none."""
    advice = advice or _advise(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"'{path}' is not valid JSON ({explain_json(error)}): {advice}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a JSON object: {advice}")
    return content


def list_runs(results_dir: str | os.PathLike = "results", damaged: dict[Path, str] | None = None) -> list[Path]:
    """The folders below ``results_dir`` that contain measurements, by data set, model and settings.

    A folder that the system does not let this process read, or whose name is not text, is left out and
    added to ``damaged``.
    """
    damaged = {} if damaged is None else damaged
    datasets = _list_folders(locate_folder(results_dir), damaged)
    runs = [run for dataset in datasets for run in _list_folders(dataset, damaged) if find_measurements(run)]
    return sorted(runs, key=lambda run: (run.parent.name, order_model(run.name)))


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


class StoredTables(Mapping):
    """{(model, dataset): table}, each read from its tokens.parquet whenever it is accessed, and not kept.

    ``sources`` gives the parquet file of each run, or the table itself if it could not be written to a
    file. Only ``columns`` are read (None: all). Other processes receive the paths, not the tables. ``heads`` says in
    which settings the runs differ (`run_settings`), by default in none.
    """

    def __init__(
        self,
        sources: dict[tuple[str, str], Any],
        columns: Collection[str] | None = None,
        heads: Mapping[tuple[str, str], Head] | None = None,
    ) -> None:
        self._sources, self._columns = sources, columns
        self.heads = compare_settings({key: split(key[0])[1] for key in sources}) if heads is None else heads

    def __getitem__(self, key: tuple[str, str]) -> "pd.DataFrame":
        head = self.heads[key]
        return _add_settings(read_columns(self._sources[key], head["Model"], key[1], self._columns), head, self.heads)

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
        return StoredTables(sources, self._columns if columns is None else columns, self.heads)

    def count_tokens(self) -> int:
        """The number of rows of all tables, without reading them."""
        from pyarrow import parquet

        return sum(
            parquet.read_metadata(source).num_rows if isinstance(source, Path) else len(source)
            for source in self._sources.values()
        )


def load_runs(
    results_dir: str | os.PathLike = "results",
) -> tuple[dict[tuple[str, str], "pd.DataFrame"], dict[Path, str]]:
    """The tokens of every run below ``results_dir``, and the files that cannot be read.

    Returns {(model, dataset): table} and {file: what is wrong with it}, where a run that repeats another one
    (`find_repeats`) is among the latter, by its folder. Columns of a table: model,
    dataset (categories), prompt (index), step, k (size of the nucleus), token, text (what the token adds to the text
    of its prompt), then the quantities; entropies are in nats. A quantity is NaN if the file does not contain it;
    cosine and weighted_cosine are NaN if k = 1 (one candidate has no pair); the token is -1 if it is unknown, and the
    text is missing in files of earlier versions until `add_texts` adds it. After model and dataset there is a column
    for each setting that differs between the runs, as run.json has it: top_p, seed, dtype, ... A run whose folder's
    name says that (model@top_p=0.95) has that name as its key, and its model's name in the column model. ValueError for
    the folder of a single run or data set.
    """
    tables, damaged, repeated = _load_runs(results_dir)
    if not tables and not damaged:
        check_depth(results_dir)
    return tables, damaged | repeated


def _load_runs(
    results_dir: str | os.PathLike,
) -> tuple[dict[tuple[str, str], "pd.DataFrame"], dict[Path, str], dict[Path, str]]:
    """The tables of `load_runs`, the files that cannot be read, and the runs that repeat others."""
    check_folder(results_dir)
    damaged: dict[Path, str] = {}
    found = dict(iterate_runs(results_dir, damaged))
    heads, repeated = _compare_runs(results_dir, found)
    return {key: _add_settings(found[key], head, heads) for key, head in heads.items()}, damaged, repeated


def find_repeats(
    results_dir: str | os.PathLike, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Those of some runs that repeat another one, and which: they are counted nowhere.

    A run repeats another if both have the same settings, and their model and data set the same content. It was measured
    before its grid listed several values: its folder is not named after them, as that of the same measurement is now.
    """
    return _find_repeats(results_dir, _read_heads(results_dir, keys))


def _read_heads(results_dir: str | os.PathLike, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Head]:
    return compare_settings({key: read_settings(locate_measured(results_dir, *key)) for key in keys})


def _find_repeats(
    results_dir: str | os.PathLike, heads: Mapping[tuple[str, str], Head]
) -> dict[tuple[str, str], tuple[str, str]]:
    kept: dict[tuple, tuple[str, str]] = {}
    repeats = {}
    for key in sorted(heads, key=lambda key: not split(key[0])[1]):  # those that say their settings first
        content = read_identity(locate_measured(results_dir, *key))
        same = kept.setdefault((content, *map(str, heads[key].values())), key)
        if same != key:
            repeats[key] = same
    return repeats


def _compare_runs(
    results_dir: str | os.PathLike, keys: Iterable[tuple[str, str]]
) -> tuple[dict[tuple[str, str], Head], dict[Path, str]]:
    """The heads of runs without those that repeat another one, and what is wrong with these, by their folders."""
    heads = _read_heads(results_dir, keys)
    repeats = _find_repeats(results_dir, heads)
    places = {key: locate_measured(results_dir, *key) for key in heads}
    said = {
        places[key]: f"'{places[key]}' repeats '{places[repeats[key]]}': same model, data set and settings"
        for key in repeats
    }
    ordered = sorted(heads.keys() - repeats, key=lambda key: (key[1], order_run(key)))  # by data set, as folders are
    return {key: heads[key] for key in ordered}, said


def _add_settings(table: "pd.DataFrame", head: Head, heads: Mapping[tuple[str, str], Head]) -> "pd.DataFrame":
    """The table of a run with the name of its model, and a column for each setting in its head.

    Text is categories, the same in all tables, which may be joined. A table without its model's name stays as it is.
    """
    import pandas as pd

    if "model" not in table:
        return table
    table = table.assign(model=pd.Categorical.from_codes([0] * len(table), [head["Model"]]))
    place = table.columns.get_loc("dataset") + 1 if "dataset" in table else 1
    for name in reversed([name for name in list_settings(head) if name not in table]):
        values = [value for value in dict.fromkeys(each[name] for each in heads.values()) if value != ""]
        if isinstance(head[name], str):
            code = values.index(head[name]) if head[name] else -1  # a missing value
            table.insert(place, name, pd.Categorical.from_codes([code] * len(table), values))
        else:
            kind = int if all(isinstance(value, int) for value in values) else float
            table.insert(place, name, pd.Series(head[name], index=table.index, dtype=kind))
    return table


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
    return read_columns(convert(Path(path)), model, dataset, columns)


def load_table(results_dir: str | os.PathLike = "results") -> "pd.DataFrame":
    """All measured tokens below ``results_dir``, one per row; columns as in `load_runs`.

    With several values of a setting, the groups of the table are those of
    ``table.groupby(["model", "dataset", "top_p"], observed=True, dropna=False)``: a setting that a run does not record
    is missing, and groupby would drop its tokens without dropna=False.
    ValueError names a bad file, or says that there are no measurements.
    """
    import pandas as pd
    from pandas.api.types import union_categoricals

    tables, damaged, repeated = _load_runs(results_dir)
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    _report_skipped(repeated)
    if not tables:
        check_depth(results_dir)
        raise ValueError(f"no measurements under '{results_dir}': measure a model first")
    parts = [tables[key] for key in sorted(tables, key=lambda key: (key[1], order_run(key)))]
    names = {name: union_categoricals([part[name] for part in parts]) for name in ("model", "dataset")}
    joined = pd.concat([part.drop(columns=list(names)) for part in parts], ignore_index=True)
    return joined.assign(**names)[[*names, *joined.columns]]


def check_depth(results_dir: str | os.PathLike) -> None:
    """ValueError for the folder of one run, or of one data set, where that of all results is needed."""
    folder = locate_folder(results_dir)
    for depth, runs in enumerate(([folder], _list_folders(folder, {}))):
        if any((run / RUN_INFO).is_file() and find_measurements(run) for run in runs):
            what, right = (
                ("one data set", folder.resolve().parent) if depth else ("one run", folder.resolve().parents[1])
            )
            raise ValueError(f"'{folder}' is the folder of {what}: give the folder of all results, '{right}'")


def load_readable(results_dir: str | os.PathLike) -> StoredTables:
    """The tables of `load_runs`, left in their files, to be read one at a time.

    Their ``heads`` say in which settings the runs differ (`run_settings`). Files that cannot be read, and runs that
    repeat others, are named on stderr. ValueError if none is left.
    """
    check_folder(results_dir)
    sources: dict[tuple[str, str], Path | pd.DataFrame] = {}
    damaged: dict[Path, str] = {}
    for folder in list_runs(results_dir, damaged):
        with _collect_damage(damaged, path := find_measurements(folder)):
            sources[folder.name, folder.parent.name] = convert(path)
    heads, repeated = _compare_runs(results_dir, sources)
    _report_skipped(damaged | repeated)
    if not sources:
        why = "see above" if damaged else "measure a model first"
        raise ValueError(f"no readable measurements under '{results_dir}': {why}")
    return StoredTables({key: sources[key] for key in heads}, heads=heads)


def _report_skipped(problems: Mapping[Path, str]) -> None:
    for problem in problems.values():
        print("skipped:", escape_line(problem), file=sys.stderr)


@contextlib.contextmanager
def _collect_damage(damaged: dict[Path, str], path: Path) -> Iterator[None]:
    """Records in ``damaged`` why ``path`` cannot be read, instead of raising the error."""
    try:
        yield
    except Exception as error:  # values of any type and size may be under the right keys
        said = "there is not enough memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        damaged[path] = said if str(path) in said else f"'{path}': {said}"


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


def select_choices(table: "pd.DataFrame") -> "pd.DataFrame":
    """The tokens that had an alternative (k > 1): with one candidate there is no pair to compare."""
    return table[table["k"] > 1]

"""In which settings some runs differ, and which of them can be counted together.

Contract: folders of runs or their tables in, no statistics. The **head** of a run is what its rows in a table begin
with: Model, Dataset, and each setting that differs between the runs compared or is in the name of one of them, in the
order of `settings.FIELDS`. A setting that a run does not record is "" (text) or NaN (a number).

Runs of one model on one data set with several values of a setting are no independent evidence: the same prompts, the
same model. What counts several runs together does so only with equal values of the settings that `list_varied` names.
"""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.settings import EXACT, FIELDS, fill_defaults, list_deciding, list_grid_parameters, normalise, uses_seed
from nucleoscope.store.run_names import describe_settings, format_setting, split

if TYPE_CHECKING:
    import pandas as pd

RUN_INFO = "run.json"
NAMES = ["Model", "Dataset"]
# In run.json a revision is that of the model, which differs from model to model; mode and text column are in the data
# set's name; and variants are files beside the same measurements.
APART = ("model_revision", "mode", "text_column", "variants")
COMPARED = tuple(name for name in list_deciding() if name in list_grid_parameters() and name not in APART)
SHOWN = tuple(name for name in FIELDS if name in COMPARED or name == "model_revision")
Key = tuple[str, str]  # the names of a run's folders: model, data set
Head = dict[str, Any]


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run that can differ between runs, as run.json and its folder's name have them.

    Files of the published study, and a run.json that cannot be read, have none but those in the name.
    """
    named = split(folder.name)[1]
    try:
        info = json.loads((folder / RUN_INFO).read_text(encoding="utf-8"))
        found = fill_defaults(info["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return named
    mode = found.get("mode")
    found = {name: normalise(name, found[name]) for name in COMPARED if found.get(name) is not None}
    if isinstance(requested := info.get("n_prompts_requested"), int):
        found["n_prompts"] = requested  # a short data set has fewer
    if not uses_seed(mode):
        found.pop("seed", None)
    return named | {name: value for name, value in found.items() if isinstance(value, (str, int, float))}


def read_identity(folder: Path) -> str:
    """What a run's run.json says of the content of its model and data set, as text; "" if it says nothing.

    How the files of a model came here is left out.
    """
    try:
        found = json.loads((folder / RUN_INFO).read_text(encoding="utf-8"))["settings"]
        model, dataset = ({**found[name]} for name in ("model", "dataset"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    model.pop("source", None)
    return json.dumps([model, dataset], sort_keys=True)


def compare_settings(settings: Mapping[Key, Mapping[str, Any]]) -> dict[Key, Head]:
    """The heads of some runs, by the names of their folders, from the settings of each (see `read_settings`)."""
    names = [name for name in SHOWN if any(name in split(key[0])[1] for key in settings)]
    known = {name: {_identify(each.get(name)) for each in settings.values()} - {None} for name in COMPARED}
    names += [name for name in COMPARED if len(known[name]) > 1]
    names = [name for name in SHOWN if name in names]
    return {
        key: {"Model": split(key[0])[0], "Dataset": key[1]}
        | {name: each.get(name, _get_missing(name)) for name in names}
        for key, each in settings.items()
    }


def find_heads(runs: Mapping[Key, Any]) -> dict[Key, Head]:
    """The heads of runs, given as folders, as `results.StoredTables`, or as tables with columns of settings."""
    if hasattr(runs, "heads"):
        return {key: runs.heads[key] for key in runs}
    if runs and all(isinstance(run, Path) for run in runs.values()):
        return compare_settings({key: read_settings(folder) for key, folder in runs.items()})
    return compare_settings({key: _read_columns(key, table) for key, table in runs.items()})


def _read_columns(key: Key, table: "pd.DataFrame") -> dict[str, Any]:
    names = [name for name in SHOWN if name in table and len(table)]
    found = {name: _to_plain(table[name].iloc[0]) for name in names}
    named = split(key[0])[1]
    return named | {name: value for name, value in found.items() if _identify(value) not in ("", None)}


def _get_missing(name: str) -> Any:
    return float("nan") if FIELDS[name].metadata["type"] in (int, float) else ""


def _identify(value: Any) -> Hashable:
    """A value that can be compared: all that is missing is equal."""
    return None if value is None or value == "" or value != value else value


def list_settings(names: Iterable[str]) -> list[str]:
    """The settings among the columns of a table, in their order."""
    present = set(names)
    return [name for name in SHOWN if name in present]


def list_run_columns(names: Iterable[str]) -> list[str]:
    """The columns of a table that say which run or pool a row is about."""
    return [*NAMES, *list_settings(names)]


def build_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "pd.DataFrame":
    """A table of rows that begin with heads: ``columns``, with the settings of the heads after Model and Dataset."""
    import pandas as pd

    names = list_settings(rows[0] if rows else ())
    return pd.DataFrame(list(rows), columns=[*NAMES, *names, *(name for name in columns if name not in NAMES)])


def list_texts(names: Iterable[str]) -> list[str]:
    """Those of the settings among the columns of a table that are text."""
    return [name for name in list_settings(names) if FIELDS[name].metadata["type"] is str]


def format_values(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table of statistics with its settings as text for readers; a missing one is empty."""
    texts = {
        name: ["" if _identify(value) is None else format_setting(_to_plain(value)) for value in table[name]]
        for name in list_settings(table)
    }
    return table.assign(**texts)


def list_varied(heads: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings that have several values in runs of one model on one data set."""
    of: dict[tuple, list[Mapping[str, Any]]] = {}
    for head in heads:
        of.setdefault((head["Model"], head["Dataset"]), []).append(head)
    return [
        name
        for name in list_settings(next(iter(of.values()))[0] if of else ())
        if any(len({_identify(head[name]) for head in several}) > 1 for several in of.values())
    ]


def group_comparable(heads: Mapping[Key, Head]) -> list[list[Key]]:
    """The runs in groups within which they may be counted together, in the order of their settings' values.

    All are in one group unless a setting varies for one model on one data set. Of several runs that have the same
    head, such as one that was measured before its grid listed values, only the first counts.
    """
    varied, groups, seen = list_varied(heads.values()), {}, set()
    for key, head in heads.items():
        whole = tuple(_identify(value) for value in head.values())
        if whole not in seen:
            groups.setdefault(tuple(_identify(head[name]) for name in varied), []).append(key)
        seen.add(whole)
    return [groups[values] for values in sorted(groups, key=sort_values)]


def sort_head(head: Mapping[str, Any], names: Iterable[str]) -> list[tuple]:
    """What heads are sorted by if some settings decide."""
    return sort_values([_identify(head[name]) for name in names])


def sort_values(values: Sequence[Any]) -> list[tuple]:
    """What values of settings are sorted by: numbers by size, then text, then what is missing."""
    return [(value is None, isinstance(value, str), value if value is not None else 0) for value in values]


def merge_heads(heads: Sequence[Head], **names: str) -> Head:
    """The head of several runs: what they have in common, and ``names`` (Model, Dataset) instead of theirs."""
    first = heads[0]
    same = {
        name: value if len({_identify(head[name]) for head in heads}) == 1 else _get_missing(name)
        for name, value in first.items()
        if name not in NAMES
    }
    return {**{name: first[name] for name in NAMES}, **names, **same}


def list_heads(table: "pd.DataFrame") -> list[Head]:
    """The heads of the rows of a table of statistics, each once, in their order."""
    return table[list_run_columns(table)].drop_duplicates().to_dict("records")


def select_head(table: "pd.DataFrame", head: Mapping[str, Any]) -> "pd.DataFrame":
    """The rows of a table of statistics that have this head."""
    chosen = (table["Model"] == head["Model"]) & (table["Dataset"] == head["Dataset"])
    for name in list_settings(head):
        value = _identify(head[name])
        missing = table[name].isna() | (table[name].astype(str) == "")
        chosen &= missing if value is None else table[name] == value
    return table[chosen]


def describe_head_settings(head: Mapping[str, Any], names: Iterable[str] | None = None) -> str:
    """The settings of a head for readers, or those of some ``names``: "top_p 0.95, seed 1", without missing ones."""
    shown = list_settings(head) if names is None else names
    return describe_settings({name: _to_plain(head[name]) for name in shown if _identify(head[name]) is not None})


def describe_head_value(head: Mapping[str, Any], name: str) -> str:
    """The value of one setting of a head for readers; "" if it is missing."""
    return "" if _identify(head[name]) is None else format_setting(_to_plain(head[name]))


def _to_plain(value: Any) -> Any:
    """Python's number for numpy's; one that a gap in its column has made a fraction is whole again."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value


def describe_head(head: Mapping[str, Any], joined: str = " on ") -> str:
    """A run for readers: "SmolLM2-135M-Instruct on math, top_p 0.95"; ``joined`` is between model and data set."""
    return ", ".join(filter(None, (f"{head['Model']}{joined}{head['Dataset']}", describe_head_settings(head))))

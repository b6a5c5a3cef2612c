"""A grid in YAML: which models on which data sets, with which parameters and resources.

Contract: this module reads and checks; it measures nothing and starts nothing, and importing it is
quick. A grid is a mapping of

    results_dir:  where the results go
    parameters:   settings of all runs, by name (n_prompts, prompt_format, ...)
    resources:    of all runs: gpus (1), memory ("32G"), time ("4h")
    models:       names, or mappings with a name and settings of their own
    datasets:     the same
    analyses:     options of the analyses: resamples, seed

The settings of an entry are parameters and resources; a model may also have a revision, the commit on
the Hub to use. An entry's setting overrides that of all runs, and a data set's parameter overrides a
model's. If a model and a data set both name a resource, the run gets the larger value.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from nucleoscope.settings import FIELDS, list_grid_parameters, validate
from nucleoscope.store import results

KEYS = ("results_dir", "parameters", "resources", "models", "datasets", "analyses")
# The parameters of a run, each with its check. One that a grid leaves out, or sets to null, has its default.
PARAMETERS: dict[str, Callable] = {name: partial(validate, name) for name in list_grid_parameters()}
DEFAULTS = {name: FIELDS[name].default for name in PARAMETERS if FIELDS[name].default is not None}
ANALYSES: dict[str, Callable] = {
    "resamples": lambda value: _check_whole("resamples", value, 100),  # a 95 % interval needs as many
    "seed": lambda value: _check_whole("seed", value, 0),
}
DEFAULT_MEMORY, DEFAULT_TIME = "32G", "4h"  # of a run on a cluster
MEBIBYTES = {"M": 1, "G": 2**10, "T": 2**20}
MINUTES = {"m": 1, "h": 60, "d": 24 * 60}


@dataclass(frozen=True)
class Entry:
    """One run of a grid: its parameters, and the resources that it needs."""

    parameters: dict[str, Any]
    gpus: int = 1
    memory: str = DEFAULT_MEMORY
    time: str = DEFAULT_TIME


def parse_memory(memory: str) -> int:
    """A size such as "40G" or "500M" in MiB, counted as Slurm does; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)([MGT])i?B?", str(memory))
    if not found:
        raise ValueError(f"memory is {memory!r}: it must be a size such as 40G")
    return int(found[1]) * MEBIBYTES[found[2]]


def parse_time(time: str) -> int:
    """A time such as "4h", "90m" or "1d12h" in minutes; ValueError for anything else."""
    found = re.fullmatch(r"(?:\d+[dhm])+", str(time))
    if not found:
        raise ValueError(f"time is {time!r}: it must be a duration such as 90m, 4h or 2d")
    return sum(int(number) * MINUTES[unit] for number, unit in re.findall(r"(\d+)([dhm])", time))


def _check_whole(name: str, number: int, least: int) -> int:
    if type(number) is not int or number < least:
        raise ValueError(f"{name} is {number!r}: it must be a whole number, {least} or more")
    return number


def _check_gpus(number: int) -> int:
    return _check_whole("gpus", number, 0)


RESOURCES: dict[str, Callable] = {"gpus": _check_gpus, "memory": parse_memory, "time": parse_time}


class _Loader(yaml.SafeLoader):
    """YAML in which a duplicate key is an error; PyYAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        duplicates = [name for name in names if names.count(name) > 1]
        if duplicates:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{duplicates[0]}'", node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: str | Path, check: bool = True) -> dict[str, Any]:
    """The grid in a YAML file, checked. ValueError or OSError, in one line, names the file and what is wrong.

    check=False reads a file that is only part of a grid: its YAML must be valid, keys may be missing.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        if check:
            plan_runs(config)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"'{path}'{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"'{path}': {' '.join(str(error).split())}") from None
    except OSError as error:
        raise type(error)(f"grid '{path}' cannot be read: {error.strerror}") from None
    return config


def plan_runs(config: dict[str, Any]) -> dict[str, Entry]:
    """The runs of a grid by their folders, model by model. ValueError, in one line, names what is wrong."""
    _check(config)
    found: dict[str, Entry] = {}
    named: dict[str, tuple[str, str]] = {}
    for model in map(_expand, config["models"]):
        for dataset in map(_expand, config["datasets"]):
            entry = _merge(config, model, dataset)
            names = entry.parameters["model_name"], entry.parameters["dataset_name"]
            column = entry.parameters.get("text_column")
            folder = str(results.locate_run(config["results_dir"], names[1], names[0], column))
            if set("{}") & set(folder):
                raise ValueError(f"{folder}: Snakemake cannot use names with braces: rename what has them")
            if named.get(folder) == names:
                raise ValueError(f"'{names[0]}' on '{names[1]}' is listed twice: remove one")
            if folder in found:
                pair = " and ".join(f"'{model}' on '{dataset}'" for model, dataset in (named[folder], names))
                raise ValueError(f"{pair} have the same short name and therefore the same folder {folder}: remove one")
            found[folder], named[folder] = entry, names
    return found


def _merge(config: dict, model: dict, dataset: dict) -> Entry:
    """The run of two entries, each in its long form."""
    model = {"model_revision" if key == "revision" else key: value for key, value in model.items()}
    merged = {**config.get("parameters", {}), **model, **dataset}
    parameters = {name: merged[name] for name in PARAMETERS if merged.get(name) is not None}
    needs = {}
    for name, size in RESOURCES.items():
        own = [entry[name] for entry in (model, dataset) if entry.get(name) is not None]
        needs[name] = max(own, key=size) if own else config.get("resources", {}).get(name)
    names = {"model_name": model["name"], "dataset_name": dataset["name"], "results_dir": config["results_dir"]}
    if (parameters.get("mode") == "score") != ("text_column" in parameters):
        pair = f"'{model['name']}' on '{dataset['name']}'"
        raise ValueError(f"{pair}: set both mode: score and text_column, or neither")
    return Entry(names | parameters, **{name: need for name, need in needs.items() if need is not None})


def _expand(entry: str | dict) -> dict:
    """The long form of an entry: a mapping with its name."""
    return {"name": entry} if isinstance(entry, str) else entry


def _check(config: Any) -> None:
    """Raises ValueError for an invalid grid."""
    if not isinstance(config, dict):
        raise ValueError(f"a grid must be a mapping with the keys {', '.join(KEYS)}")
    _check_names("the grid", config, KEYS)
    if not config.get("results_dir") or not isinstance(config["results_dir"], str):
        raise ValueError("results_dir is missing: it must name the folder of the results")
    if os.path.isfile(config["results_dir"]):
        raise ValueError(f"results_dir is '{config['results_dir']}', which is a file: it must name a folder")
    config["results_dir"] = os.path.normpath(os.path.expanduser(config["results_dir"]))
    for name, checks in (("parameters", PARAMETERS), ("resources", RESOURCES), ("analyses", ANALYSES)):
        settings = config.setdefault(name, {}) or {}
        config[name] = settings
        _check_names(name, settings, checks)
        for setting, value in settings.items():
            _check_setting(name, setting, value, checks[setting])
    for kind, own in (("models", ["revision"]), ("datasets", [])):
        _check_list(kind, config.get(kind), own)


def _check_list(kind: str, entries: Any, own: list[str]) -> None:
    """``own`` are the settings that only entries of this list have."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{kind} is missing: it must be a list of names")
    for number, entry in enumerate(map(_expand, entries), 1):
        where = f"entry {number} in {kind}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{where} has no name: give a name, or a mapping with a name and settings")
        where = f"'{entry['name']}' in {kind}"
        checks = {"name": str} | dict.fromkeys(own, str) | PARAMETERS | RESOURCES
        _check_names(where, entry, checks)
        for setting, value in entry.items():
            _check_setting(where, setting, value, checks[setting])


def _check_names(where: str, settings: Any, names: Any) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must be a mapping with keys among {', '.join(names)}")
    for name in settings:
        if name not in names:
            raise ValueError(f"{where}: unknown setting '{name}': it must be one of {', '.join(names)}")


def _check_setting(where: str, name: str, value: Any, check: Callable) -> None:
    """Raises ValueError for an invalid value; ``check`` is a type, or a function that raises. None means: not set."""
    if value is None:
        return
    if isinstance(check, type):
        if type(value) is not check:
            raise ValueError(f"{where}: {name} is {value!r}: it must be of type {check.__name__}")
        return
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

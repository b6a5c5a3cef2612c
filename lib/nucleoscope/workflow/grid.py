"""A grid in YAML: which models on which data sets, with which parameters and resources.

Contract: this module reads and checks; it measures nothing and starts nothing, and importing it is
quick. A grid is a mapping of

    results_dir:  where the results go
    parameters:   of all cells, by the names of notebooks/run.py (n_prompts, prompt_format, ...)
    resources:    of all cells: gpus (1), memory ("40G"), time ("4h")
    models:       names, or mappings with a name and settings of its own
    datasets:     the same
    analyses:     options of the analyses: resamples, seed

The settings of an entry are parameters and resources; a model's may also have a revision, the Hub's
commit to take. What an entry says goes before what all cells share, and a data set's parameter before
a model's. Of the resources that a model and a data set both name the cell gets the larger.
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
# A run's parameters, each with its check. One that a grid leaves out, or sets to null, has its default.
PARAMETERS: dict[str, Callable] = {name: partial(validate, name) for name in list_grid_parameters()}
DEFAULTS = {name: FIELDS[name].default for name in PARAMETERS if FIELDS[name].default is not None}
ANALYSES = {"resamples": int, "seed": int}
MEBIBYTES = {"M": 1, "G": 2**10, "T": 2**20}
MINUTES = {"m": 1, "h": 60, "d": 24 * 60}


@dataclass(frozen=True)
class Entry:
    """One cell of a grid: the parameters of its run, and what it needs of a machine."""

    parameters: dict[str, Any]
    gpus: int
    memory: str | None
    time: str | None


def mebibytes(memory: str) -> int:
    """A size such as "40G" or "500M" in MiB, counted as Slurm does; ValueError for anything else."""
    found = re.fullmatch(r"(\d+)([MGT])i?B?", str(memory))
    if not found:
        raise ValueError(f"memory is {memory!r}: write a size such as 40G")
    return int(found[1]) * MEBIBYTES[found[2]]


def minutes(time: str) -> int:
    """A time such as "4h", "90m" or "1d12h" in minutes; ValueError for anything else."""
    found = re.fullmatch(r"(?:\d+[dhm])+", str(time))
    if not found:
        raise ValueError(f"time is {time!r}: write it as 90m, 4h or 2d")
    return sum(int(number) * MINUTES[unit] for number, unit in re.findall(r"(\d+)([dhm])", time))


def _gpus(number: int) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"gpus is {number!r}: it must be a number, 0 or more")
    return number


RESOURCES: dict[str, Callable] = {"gpus": _gpus, "memory": mebibytes, "time": minutes}


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent choice of the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{twice[0]}'", node.start_mark)
        return super().construct_mapping(node, deep)


def load(path: str | Path, check: bool = True) -> dict[str, Any]:
    """The grid in a YAML file, checked. ValueError or OSError, in one line, names the file and what is wrong.

    check=False reads a file that is only part of a grid: its YAML must be right, parameters may be missing.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        if check:
            cells(config)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"'{path}'{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"'{path}': {' '.join(str(error).split())}") from None
    except OSError as error:
        raise type(error)(f"grid '{path}' cannot be read: {error.strerror}") from None
    return config


def cells(config: dict[str, Any]) -> dict[str, Entry]:
    """The cells of a grid by their folders, model by model. ValueError, in one line, names what is wrong."""
    _check(config)
    found: dict[str, Entry] = {}
    named: dict[str, tuple[str, str]] = {}
    for model in map(_entry, config["models"]):
        for dataset in map(_entry, config["datasets"]):
            entry = _cell(config, model, dataset)
            names = entry.parameters["model_name"], entry.parameters["dataset_name"]
            column = entry.parameters.get("text_column")
            folder = str(results.cell_folder(config["results_dir"], names[1], names[0], column))
            if named.get(folder) == names:
                raise ValueError(f"'{names[0]}' on '{names[1]}' stands there twice: leave one out")
            if folder in found:
                pair = " and ".join(f"'{model}' on '{dataset}'" for model, dataset in (named[folder], names))
                raise ValueError(f"{pair} share a short name, and so the folder {folder}: leave one out")
            found[folder], named[folder] = entry, names
    return found


def _cell(config: dict, model: dict, dataset: dict) -> Entry:
    """The cell of two entries, each in its long form."""
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
        raise ValueError(f"{pair}: mode: score and text_column go together, or neither")
    return Entry(names | parameters, 1 if needs["gpus"] is None else needs["gpus"], needs["memory"], needs["time"])


def _entry(entry: str | dict) -> dict:
    return {"name": entry} if isinstance(entry, str) else entry


def _check(config: Any) -> None:
    """ValueError for what is no grid."""
    if not isinstance(config, dict):
        raise ValueError(f"a grid is a mapping of {', '.join(KEYS)}")
    _known("the grid", config, KEYS)
    if not config.get("results_dir") or not isinstance(config["results_dir"], str):
        raise ValueError("results_dir is missing: the folder for the results")
    if os.path.isfile(config["results_dir"]):
        raise ValueError(f"results_dir is '{config['results_dir']}', which is a file: name a folder")
    for name, checks in (("parameters", PARAMETERS), ("resources", RESOURCES), ("analyses", ANALYSES)):
        settings = config.setdefault(name, {}) or {}
        config[name] = settings
        _known(name, settings, checks)
        for setting, value in settings.items():
            _check_setting(name, setting, value, checks[setting])
    for kind, own in (("models", ["revision"]), ("datasets", [])):
        _check_list(kind, config.get(kind), own)


def _check_list(kind: str, entries: Any, own: list[str]) -> None:
    """``own`` are the settings that only entries of this list have."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{kind} is missing: a list of names")
    for number, entry in enumerate(map(_entry, entries), 1):
        where = f"entry {number} of {kind}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ValueError(f"{where} has no name: write a name, or name: and settings")
        where = f"'{entry['name']}' of {kind}"
        checks = {"name": str} | dict.fromkeys(own, str) | PARAMETERS | RESOURCES
        _known(where, entry, checks)
        for setting, value in entry.items():
            _check_setting(where, setting, value, checks[setting])


def _known(where: str, settings: Any, names: Any) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(names)}")
    for name in settings:
        if name not in names:
            raise ValueError(f"{where}: unknown setting '{name}': it must be one of {', '.join(names)}")


def _check_setting(where: str, name: str, value: Any, check: Callable) -> None:
    """ValueError where a value cannot be what it is for; ``check`` is a type or raises it. A null means: not set."""
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

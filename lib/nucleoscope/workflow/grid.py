"""A grid in YAML: which models on which data sets, with which parameters and resources.

Contract: this module reads and checks; it measures nothing and starts nothing, and importing it is
quick. A grid is a mapping of

    results_dir:  where the results go
    parameters:   settings of all runs, by name (n_prompts, prompt_format, ...)
    resources:    of all runs: gpus (1), memory ("32G"), time ("4h")
    models:       names, or mappings with a name and settings of their own
    datasets:     the same
    analyses:     options of the analyses: resamples, seed

The settings of an entry are parameters and resources; model_revision, the commit on the Hub to use, is a
model's. An entry's setting overrides that of all runs, and a data set's parameter overrides a
model's. If a model and a data set both name a resource, the run gets the larger value.

A parameter that affects the results may be a list of values (`settings.list_varying`): there is a run for each, and
for each combination of several. Its folder is named after them, such as <model>@top_p=0.95@seed=1. A list of seeds
does not count where texts are scored, because nothing is drawn there.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from nucleoscope import settings
from nucleoscope.data import prompts
from nucleoscope.names import MOST_LISTED, find_close, suggest
from nucleoscope.settings import FIELDS, check_whole, list_grid_parameters, quote, validate
from nucleoscope.store import results, run_names
from nucleoscope.wording import join_names


def _check_parameter(name: str, value: Any) -> None:
    """As `settings.validate`, with the values of a flag as YAML spells them."""
    if FIELDS[name].metadata["type"] is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {quote(value)}: it must be true or false")
    validate(name, value)


KEYS = ("results_dir", "parameters", "resources", "models", "datasets", "analyses")
# The parameters of a run, each with its check. One that a grid leaves out, or sets to null, has its default.
PARAMETERS: dict[str, Callable] = {name: partial(_check_parameter, name) for name in list_grid_parameters()}
DEFAULTS = {name: FIELDS[name].default for name in PARAMETERS if FIELDS[name].default is not None}
ANALYSES: dict[str, Callable] = {
    name: partial(check_whole, name, least=least, most=most) for name, (least, most) in settings.ANALYSES.items()
}
NAMED = "named_settings"  # what a run is told of the lists: which settings its folder is named after
MOST_GPUS = 10_000  # of one run
MOST_NAMED = 8  # problems of a grid that its error message names
GRID = "the grid"  # where its own keys are, beside those of its parts
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

    @property
    def varied(self) -> list[str]:
        """The parameters of which the grid lists several values; the run's folder is named after them."""
        return [name for name in (self.parameters.get(NAMED) or "").split(",") if name]

    @property
    def wants_context(self) -> bool:
        """Whether similarity in context is to be measured besides."""
        wanted = DEFAULTS | self.parameters
        return wanted["context"] and wanted["context_candidates"] > 1

    @property
    def wants_branches(self) -> bool:
        """Whether texts are to be continued from candidates besides."""
        wanted = DEFAULTS | self.parameters
        return wanted["branches"] and wanted["branch_points"] > 0 and wanted["context_candidates"] > 1


def parse_memory(memory: str) -> int:
    """A size such as "40G" or "500M" in MiB, counted as Slurm does; ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,9})([MGT])i?B?", str(memory))
    if not found or not int(found[1]):
        form = f"a whole number{_limit_digits(memory)} followed by M, G or T, without a space"
        problem = _find_problem_of_amount(memory, "[MGT]i?B?")
        raise ValueError(
            f"memory is {quote(memory)}: it must be {f'a size {problem}' if problem else form}, such as 40G"
        )
    return int(found[1]) * MEBIBYTES[found[2]]


def parse_time(time: str) -> int:
    """A time such as "4h", "90m" or "1d12h" in minutes; ValueError for anything else."""
    minutes = 0
    if re.fullmatch(r"(?:[0-9]{1,9}[dhm])+", str(time)):
        minutes = sum(int(number) * MINUTES[unit] for number, unit in re.findall(r"([0-9]+)([dhm])", str(time)))
    if not minutes:
        form = f"whole numbers{_limit_digits(time)} followed by m, h or d, without spaces"
        problem = _find_problem_of_amount(time, "[dhm]")
        must = f"a duration {problem}" if problem else form
        raise ValueError(f"time is {quote(time)}: it must be {must}, such as 90m, 4h or 1d12h")
    return minutes


def _find_problem_of_amount(value: Any, unit: str) -> str:
    """What an amount must be if its form is not at fault, in words that follow "a size"; "" if it is.

    ``unit``: a regular expression for a unit. Nothing and less than nothing have no allowed form, and a number has no
    unit.
    """
    text = str(value)
    if re.fullmatch(rf"-[0-9]+(\.[0-9]+)?({unit})?|0+(\.0+)?|(0+({unit}))+", text):
        return "above 0"
    return "with a unit" if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else ""


def _limit_digits(value: Any) -> str:
    """Words on how many digits a whole number may have, if one has more."""
    return " of at most 9 digits" if re.search("[0-9]{10}", str(value)) else ""


def _check_gpus(number: int) -> int:
    check_whole("gpus", number, 0, MOST_GPUS)
    return number


RESOURCES: dict[str, Callable] = {"gpus": _check_gpus, "memory": parse_memory, "time": parse_time}
EXAMPLES = {"parameters": "max_tokens: 100", "resources": "gpus: 1", "analyses": "resamples: 2000"}
EXAMPLES |= {"models": "gpt2", "datasets": "math"}
ELSEWHERE = {  # settings of a run that are no parameters of a grid, and what to do instead
    "model_name": "list the model under models",
    "dataset_name": "list the data set under datasets",
    NAMED: "list several values of a setting instead",
    "overwrite": "to measure a run again, move or delete its folder",
    "n_samples": "call it n_prompts",
}
ELSEWHERE |= dict.fromkeys(("only", "if_missing", "debug"), "it is an option of scripts/correlation_pipeline.py")
SECTIONS: dict[str, dict[str, Callable]] = {"parameters": PARAMETERS, "resources": RESOURCES, "analyses": ANALYSES}
KNOWN = {*KEYS, *PARAMETERS, *RESOURCES, *ANALYSES, *ELSEWHERE}  # what means something in some part of a grid


# What PyYAML says, what a user is told, and whether the place is where the construct begins, not where reading stopped;
# None if neither is known to be on the line with the mistake.
QUOTED = r"a value that begins with '\1' must be quoted"
YAML_PROBLEMS = (
    (r"found character '\\t'", "a tab is not allowed here: use spaces", False),
    (r"found character '(.)' that cannot start", QUOTED, False),
    (r"found undefined alias", "a value that begins with '*' or '&' must be quoted", False),
    (r"expected alphabetic", "a line that begins with '%', or a value with '*' or '&', must be quoted", True),
    (r"could not determine a constructor", "a value that begins with '!' must be quoted", False),
    (r"expected chomping", "a value that begins with '|' or '>' must be quoted", False),
    (r"found unknown escape character '(.)'", r"unknown escape '\\\1': use single quotation marks", False),
    (r"found unexpected end of stream", "a quotation mark is not closed", True),
    (r"could not find expected ':'", "a ':' or '-' is missing, or the space after it", True),
    (r"mapping values", "a ':' is not allowed here: check the indentation, or quote the value", False),
    (r"sequence entries", "a '-' is not allowed here: begin a list on a line of its own", False),
    (r"expected ',' or '\]'", "a [ is not closed, or a comma is missing", True),
    (r"expected ',' or '\}'", "a { is not closed, or a comma is missing", True),
    (r"expected <block end>, but found '([]}])'", r"a \1 without the bracket that opens it", False),
    (r"expected <block end>, but found '<scalar>'", "text after a closing quotation mark", False),
    (r"expected <block end>", "the indentation does not match the lines above", False),
    (r"but found another document", "remove '---': a grid is a single YAML document", False),
    (r"expected '<document start>', but found '<block", "the indentation does not match the lines above", False),
    (r"expected '<document start>', but found '([]}])'", r"a \1 without the bracket that opens it", False),
    (
        r"expected '<document start>', but found '<scalar>'",
        "text after a closing quotation mark or bracket, or after a line that begins with '%'",
        False,
    ),
    (r"expected '<document start>'", "several YAML documents, or text after the first: a grid must be one", False),
    (r"expected the node content, but found '<stream end>'", "a [ or { is not closed", None),
    (r"expected the node content, but found '([^<]+)'", r"a value is missing before '\1'", False),
    (r"found unhashable key", "a name cannot be a list or a mapping", False),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """YAML in which a duplicate key is an error, and what looks like a number or a list is one.

    PyYAML would silently take the last of two values, read 010 as 8 and 1:30 as 90 (YAML 1.1), and take an entry that
    is indented more than the one above for a part of its text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"duplicate key {quote(key.value)}: remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Text without quotation marks that is a list to anybody but YAML is an error."""
        value = self.construct_scalar(node)
        if node.style is None and node.end_mark.line > node.start_mark.line and " - " in value:
            problem = "indent every '-' of a list equally"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number, or, if there is a colon in it, text, which a setting that is a number then refuses."""
        value = self.construct_scalar(node)
        if ":" in value:
            return value
        if re.fullmatch(r"[-+]?0[0-7_]+", value):
            problem = f"{value} would be read as an octal number: write it without leading zeros"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return self.construct_yaml_float(node) if node.tag.endswith("float") else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)  # a setting checks its dates


def load(path: str | Path, check: bool = True) -> dict[str, Any]:
    """The grid in a YAML file, checked. ValueError or OSError, in one line, names the file and what is wrong.

    check=False reads a file that is only part of a grid: its YAML must be valid, keys may be missing.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
        if check:
            plan_runs(config)
    except yaml.MarkedYAMLError as error:
        mark, problem = _explain_yaml(error)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"'{path}'{line}: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(
            f"'{path}': a character that YAML does not allow, U+{error.character:04X}: remove it"
        ) from None
    except RecursionError:
        raise ValueError(f"'{path}': the YAML is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"'{path}': not UTF-8 text: save the file as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"'{path}': {' '.join(str(error).split())}") from None
    except FileNotFoundError:
        raise FileNotFoundError(
            f"grid '{path}' does not exist (current folder: {Path.cwd()}): check the path"
        ) from None
    except IsADirectoryError:
        if path == "":
            raise ValueError("the grid's path is empty: name a grid file") from None
        raise IsADirectoryError(f"grid '{path}' is a folder: name a file in it") from None
    except OSError as error:
        raise type(error)(f"grid '{path}' cannot be read: {error.strerror}") from None
    return config


def check_datasets(path: str | Path, config: dict[str, Any]) -> None:
    """Raises ValueError, in one line, if a data set of the grid in a file has a name that none has.

    A file of prompts need not exist: the grid may be meant for another machine.
    """
    for number, entry in enumerate(map(_expand, config["datasets"]), 1):
        try:
            prompts.check_name(settings.normalise("dataset_name", entry["name"]))
        except (ValueError, OSError) as error:
            raise ValueError(f"'{path}': entry {number} in datasets: {error}") from None


def _explain_yaml(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    """The place in a file of what YAML does not allow, and what it is, in words; PyYAML's own if it is rare."""
    problem = " ".join(str(error.problem).split())
    for pattern, words, at_start in YAML_PROBLEMS:
        if found := re.match(pattern, problem):
            mark = None if at_start is None else (error.context_mark if at_start else None) or error.problem_mark
            return mark, found.expand(words)
    return error.problem_mark, problem


def plan_runs(config: dict[str, Any]) -> dict[str, Entry]:
    """The runs of a grid by their folders, model by model. ValueError, in one line, names all that is wrong."""
    _raise_all(_find_problems(config))
    for name in SECTIONS:
        config[name] = config.get(name) or {}
    config["results_dir"] = os.path.normpath(settings.normalise("results_dir", config["results_dir"]))
    found: dict[str, Entry] = {}
    named: dict[str, tuple[str, str]] = {}
    problems = []
    for model in map(_expand, config["models"]):
        for dataset in map(_expand, config["datasets"]):
            try:
                for entry in _merge(config, model, dataset):
                    names = entry.parameters["model_name"], entry.parameters["dataset_name"]
                    folder = _locate(entry, found, named, config)
                    found[folder], named[folder] = entry, names
            except ValueError as error:
                problems.append(str(error))
    _raise_all(problems)
    return found


def _locate(entry: Entry, found: Mapping[str, Entry], named: Mapping[str, tuple[str, str]], config: dict) -> str:
    """The folder of a run; ValueError if another one has it. ``named``: the model and data set of each folder."""
    keys = ("results_dir", "dataset_name", "model_name", "text_column")
    results_dir, *names, column = (entry.parameters.get(key) for key in keys)
    dataset, model = names
    varied = {name: entry.parameters[name] for name in entry.varied}
    if not varied:
        run_names.check_model(results.shorten_names(dataset, model)[1])
    folder = str(results.locate_run(results_dir, dataset, model, column, varied))
    if set("{}") & set(folder):
        raise ValueError(f"results_dir is {quote(results_dir)}: Snakemake cannot use a folder with braces in its name")
    if named.get(folder) == (model, dataset):
        raise ValueError(_describe_repeated(config, {"models": model, "datasets": dataset}))
    if folder in found:
        pair = " and ".join(f"'{model}' on '{dataset}'" for model, dataset in (named[folder], (model, dataset)))
        raise ValueError(
            f"{pair} have the same short name and therefore the same folder {folder}: remove one, or put them in "
            "separate grids, each with its own results_dir"
        )
    return folder


def _describe_repeated(config: dict, names: Mapping[str, str]) -> str:
    """Which name of a run that a grid has twice is listed twice; ``names`` are those of its model and data set."""
    for (kind, name), setting in zip(names.items(), ("model_name", "dataset_name"), strict=True):
        listed = [settings.normalise(setting, entry["name"]) for entry in map(_expand, config[kind])]
        if listed.count(name) > 1:
            return f"'{name}' is listed twice in {kind}: remove one"
    return f"{' on '.join(map(repr, names.values()))} is listed twice: remove one"


def _raise_all(problems: Iterable[str]) -> None:
    """One ValueError for all problems, in one line; those of several runs are named once."""
    found = list(dict.fromkeys(problems))
    if found:
        more = [f"and {len(found) - MOST_NAMED} more problems"] if len(found) > MOST_NAMED else []
        raise ValueError("; ".join(found[:MOST_NAMED] + more))


def _merge(config: dict, model: dict, dataset: dict) -> Iterator[Entry]:
    """The runs of two entries, each in its long form: one for each combination of the values that they list."""
    merged = {**config["parameters"], **model, **dataset}
    if isinstance(merged.get("seed"), list) and not settings.uses_seed(merged.get("mode") or DEFAULTS["mode"]):
        merged["seed"] = None
    listed = {
        name: settings.list_values(name, merged[name]) for name in PARAMETERS if isinstance(merged.get(name), list)
    }
    parameters = {
        name: settings.normalise(name, merged[name])
        for name in PARAMETERS
        if merged.get(name) is not None and name not in listed
    }
    needs = {}
    for name, size in RESOURCES.items():
        own = [entry[name] for entry in (model, dataset) if entry.get(name) is not None]
        needs[name] = max(own, key=size) if own else config["resources"].get(name)
    names = {"model_name": model["name"], "dataset_name": dataset["name"]}
    names = {name: settings.normalise(name, value) for name, value in names.items()}
    if (parameters.get("mode") == "score") != ("text_column" in parameters):
        pair = f"'{model['name']}' on '{dataset['name']}'"
        raise ValueError(f"{pair}: set both mode=score and text_column, or neither")
    names["results_dir"] = config["results_dir"]
    names |= {NAMED: ",".join(name for name in settings.list_varying() if name in listed)} if listed else {}
    needed = {name: need for name, need in needs.items() if need is not None}
    for values in product(*listed.values()):
        yield Entry(names | parameters | dict(zip(listed, values, strict=True)), **needed)


def _expand(entry: str | dict) -> dict:
    """The long form of an entry: a mapping with its name."""
    return {"name": entry} if isinstance(entry, str) else entry


def _find_problems(config: Any) -> Iterator[str]:
    """What is wrong with a grid, entry by entry."""
    if not isinstance(config, dict):
        what = "the grid is empty: it needs" if config is None else "a grid must be a mapping that has"
        yield f"{what} results_dir, models and datasets"
        return
    yield from (problem.removeprefix(f"{GRID}: ") for problem in _find_unknown(GRID, config, KEYS))
    meant = [find_close(name, KEYS) for name in config if name not in KNOWN]
    folder = config.get("results_dir")
    if folder is None:
        if "results_dir" not in meant:
            yield "results_dir is missing: add it, with the name of the folder for results"
    elif problem := _explain(partial(validate, "results_dir"), folder):
        yield problem
    elif os.path.isfile(settings.normalise("results_dir", folder)):
        yield f"results_dir is '{folder}', which is a file: it must name a folder"
    for name, checks in SECTIONS.items():
        if config.get(name) is not None:
            yield from _find_wrong(name, config[name], checks)
    for kind in ("models", "datasets"):
        if config.get(kind) is not None or kind not in meant:
            yield from _find_wrong_entries(kind, config.get(kind))


def _find_wrong_entries(kind: str, entries: Any) -> Iterator[str]:
    """What is wrong with a list of models or data sets."""
    if not isinstance(entries, list) or not entries:
        yield f"{kind} {_explain_no_list(kind, entries)}"
        return
    check_name = partial(validate, {"models": "model_name", "datasets": "dataset_name"}[kind])
    for number, given in enumerate(entries, 1):
        where, entry = f"entry {number} in {kind}", _expand(given)
        if given is None or (isinstance(given, str) and not given.strip()):
            yield f"{where} is empty: give a name, or remove the entry"
        elif not isinstance(entry, dict):
            problem = f"{where} is {quote(entry)}: it must be a quoted name, or a mapping with a name and settings"
            yield problem + _explain_bool(entry)
        elif not isinstance(entry.get("name"), str):
            yield f"{where} has {_explain_missing_name(kind, entry)}"
        elif problem := _explain(check_name, entry["name"]):
            yield f"{where}: {problem}"
        else:
            checks = {"name": check_name} | PARAMETERS | RESOURCES
            yield from _find_wrong(f"{quote(entry['name'])} in {kind}", entry, checks)


def _explain_no_list(kind: str, entries: Any) -> str:
    """What is wrong with models or data sets that are no list, or an empty one, and what to do; follows their key."""
    if entries is None:
        return "is missing: add a list of names"
    if entries == []:
        return f"is an empty list: name at least one {'model' if kind == 'models' else 'data set'}"
    if isinstance(entries, dict):
        return f"must be a list: write '- name: {EXAMPLES[kind]}', with its settings on the lines below"
    if isinstance(entries, str) and re.match(r"-\S", entries):
        return f"is {quote(entries)}: put a space after '-'"
    shown = isinstance(entries, str) and re.fullmatch(r"[\w./-]{1,60}(, ?[\w./-]{1,60}){,3}", entries)
    return f"is {quote(entries)}: it must be a list, such as [{entries if shown else EXAMPLES[kind]}]"


def _explain_missing_name(kind: str, entry: dict) -> str:
    """What an entry of ``kind`` has instead of a name, and how to give it one."""
    if "name" in entry:
        found = entry["name"]
        advice = "give one name" if isinstance(found, list | dict) else "put it in quotes"
        return "no name after 'name': add it" if found is None else f"{quote(found)} as its name: {advice}"
    noun = kind.removesuffix("s")
    meant = (noun, f"{noun}_name", "path", "file", "id")
    if close := [key for key in entry if key in meant or suggest(key, ["name"])]:
        return f"{quote(close[0])} but no 'name': rename it to 'name'"
    for key, value in entry.items():  # a name with its settings below
        if isinstance(key, str) and key.strip() and key not in KNOWN and isinstance(value, dict | list | None):
            return f"no 'name': write name: {key}, with its settings on the lines below"
    return f"no 'name': begin it with one, such as name: {EXAMPLES[kind]}, and put its settings on the lines below"


def _find_wrong(where: str, values: Any, checks: Mapping[str, Callable]) -> Iterator[str]:
    """What is wrong with a mapping of settings, each with its check. A setting that is null is not set."""
    if not isinstance(values, dict):
        joined = isinstance(values, str) and re.match(r"\w+:\S", values)
        advice = ": put a space after ':'" if joined else f", such as {EXAMPLES[where]}"
        yield f"{where} is {quote(values)}: it must be a mapping of settings to values{advice}"
        return
    yield from _find_unknown(where, values, checks)
    for name, value in values.items():
        if isinstance(value, list) and name in PARAMETERS:
            problem = settings.check_varying(name) or _explain(partial(settings.list_values, name), value)
        else:
            problem = _explain(checks[name], value) if name in checks and value is not None else None
        if problem:
            yield f"{where}: {problem}{_explain_bool(value)}"


def _find_unknown(where: str, values: dict, names: Collection[str]) -> Iterator[str]:
    """The unknown settings of a mapping: those that belong in another part of a grid, then all others at once."""
    unknown = [name for name in values if name not in names]
    for section, known in SECTIONS.items():
        if misplaced := [name for name in unknown if name in known]:
            verb = "belongs" if len(misplaced) == 1 else "belong"
            yield f"{where}: {join_names(map(quote, misplaced))} {verb} under {section}"
            unknown = [name for name in unknown if name not in misplaced]
    found, unknown = _explain_known(where, unknown)
    yield from found
    if unknown:
        noun, each = ("setting", "it") if len(unknown) == 1 else ("settings", "each")
        named = [f"{quote(name)}{suggest(name, names)}" for name in unknown[:MOST_NAMED]]
        named += [f"{len(unknown) - MOST_NAMED} more"] if len(unknown) > MOST_NAMED else []
        listed = len(names) <= MOST_LISTED or not all(find_close(name, names) for name in unknown)
        rule = f": {each} must be one of {', '.join(names)}" if listed else ""
        yield f"{where}: unknown {noun} {join_names(named)}{rule}"


def _explain_known(where: str, unknown: list) -> tuple[list[str], list]:
    """What to do about keys that are known, but not there, and the keys that are unknown everywhere."""
    found = []
    sections = [name for name in unknown if name in ("parameters", "resources") and where not in SECTIONS]
    if sections:
        found.append(f"{where}: write the settings directly into the entry, without {join_names(map(quote, sections))}")
    if above := [name for name in unknown if name in KEYS and name not in sections]:
        verb = "belongs" if len(above) == 1 else "belong"
        found.append(f"{where}: {join_names(map(quote, above))} {verb} at the top level of the grid")
    refused = [name for name in unknown if name in ELSEWHERE]
    found += [f"{where}: {quote(name)} cannot be set in a grid: {ELSEWHERE[name]}" for name in refused]
    known = {*sections, *above, *refused}
    return found, [name for name in unknown if not isinstance(name, str) or name not in known]


def _explain_bool(value: Any) -> str:
    """A remark on a refused value that YAML made of a word; "" for any other."""
    values = value if isinstance(value, list) else [value]
    found = next((each for each in values if isinstance(each, bool)), None)
    return "" if found is None else f" (YAML reads {'yes and on as true' if found else 'no and off as false'})"


def _explain(check: Callable, value: Any) -> str | None:
    """Why a check refuses a value; None if it does not."""
    try:
        check(value)
    except ValueError as error:
        return str(error)
    return None
